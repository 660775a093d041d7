"""`olac.calibration.statistics` under its earlier name."""

from olac.calibration.histogram import Histogram
from olac.calibration.statistics import Calibration

__all__ = ["Calibration", "Histogram"]
