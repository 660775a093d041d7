"""Confidence in a share that was measured on a limited number of images."""

from __future__ import annotations

import math

NORMAL = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: intervals hold the true share with a probability of 95 %."""


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of confidence (Wilson 1927) for a share that was measured on `count` images.

    Scores between 0 and 1 vary no more than hits and misses, so the interval is valid for their mean as well.
    """
    if count < 1:
        return 0.0, 1.0
    z2 = NORMAL**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = NORMAL * math.sqrt(max(0.0, share * (1 - share) / count + z2 / (4 * count))) / (1 + z2)
    # In spite of rounding the interval must hold the measured share.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def images_for(share: float, goal: float) -> int | None:
    """Images for the interval's lower end to reach a goal, if the share stays; None if it is not above the goal."""
    if goal >= 1 or share <= goal:
        return None
    return math.ceil(NORMAL**2 * goal * (1 - goal) / (share - goal) ** 2)
