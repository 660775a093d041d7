"""Finds where a function can't be fitted: NaN, infinities and poles within a range."""

from __future__ import annotations

import numpy as np

from olac.ir.functions import Function
from olac.ir.types import Range
from olac.system.arrays import Array

POINTS = 4097
ZOOMS = 10
"""How often `_zoom` narrows the range around the largest value, each time to a 32nd."""
POLE_GROWTH = 100.0
"""If values grow by more than this factor while zooming, there is a pole; those of a continuous function converge."""


def singularity(function: Function, seen: Range) -> float | None:
    """An input within a range at which a function isn't finite or has a pole; None if none is found.

    The function is sampled, so a pole whose residue is far below the function's other values may be missed.
    """
    points = _points(seen.low, seen.high)
    values = _values(function, points)
    if not np.isfinite(values).all():
        return float(points[~np.isfinite(values)][0])
    if len(points) < 3 or seen.low == seen.high:
        return None
    curvature = np.abs(np.diff(values, 2))
    for index in {int(np.argmax(np.abs(values))), 1 + int(np.argmax(curvature))}:
        found = _zoom(function, points, index)
        if found is not None:
            return found
    return None


def _points(low: float, high: float) -> Array:
    """Points of a range with its ends, and 0 if it lies within."""
    points = np.linspace(low, high, POINTS)
    return np.asarray(np.unique(np.append(points, 0.0)) if low < 0 < high else np.unique(points), dtype=np.float64)


def _values(function: Function, points: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(function(points), dtype=np.float64)


def _zoom(function: Function, points: Array, index: int) -> float | None:
    """Follow the largest value around a point; the input at which it is infinite or grows without bound, or None."""
    sizes: list[float] = []
    for _ in range(ZOOMS):
        low, high = points[max(0, index - 1)], points[min(len(points) - 1, index + 1)]
        points = np.linspace(low, high, 65)
        values = _values(function, points)
        if not np.isfinite(values).all():
            return float(points[~np.isfinite(values)][0])
        index = int(np.argmax(np.abs(values)))
        sizes.append(float(np.abs(values[index])))
    # The first zooms may still climb a steep slope.
    return float(points[index]) if sizes[-1] > POLE_GROWTH * sizes[3] > 0 else None
