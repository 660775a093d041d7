"""What a model computes on calibration images: the run, its statistics and their files."""

from olac.calibration.histogram import Histogram
from olac.calibration.statistics import Calibration

__all__ = ["Calibration", "Histogram"]
