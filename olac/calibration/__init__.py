"""Runs of a model on calibration images, their statistics, and files of these."""

from olac.calibration.histogram import Histogram
from olac.calibration.statistics import Calibration

__all__ = ["Calibration", "Histogram"]
