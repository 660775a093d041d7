"""Best uniform approximation of the sign by odd polynomials, by the exchange algorithm of Remez.

On a set that is symmetric about 0, the best approximation of the sign is odd, so it is enough to approximate 1 on the
positive half. A combination of the first n of T_1, T_3, T_5, ... has fewer than n positive zeros (the Haar condition),
so the best one is known by its equioscillation: with n coefficients, the error takes its largest size n + 1 times with
alternating signs. Each step solves for that at n + 1 points and exchanges these for the extrema of the error found.

Sources: E. Remez (1934); over unions of intervals, J.-W. Lee et al., "High-precision bootstrapping of RNS-CKKS
homomorphic encryption using optimal minimax polynomial approximation and inverse sine function" (EUROCRYPT 2021).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.polynomial import chebyshev

from olac.system.arrays import Array

ITERATIONS = 60
POINTS_PER_COEFFICIENT = 24
TOLERANCE = 1e-9
"""Largest difference of the extrema from equioscillation, relative to the error itself."""
ROUNDING = 1e-14


def approximate_sign(degree: int, intervals: Sequence[tuple[float, float]]) -> tuple[Array, float]:
    """The odd polynomial that is nearest to the sign on some intervals (a, b), 0 < a < b, and on their mirror images.

    Returns Chebyshev coefficients c with p(x) = sum_k c_k T_k(x / B) for B the largest b, c_k = 0 for even k, shape
    (degree + 1,), and the largest error. Accurate in double precision up to degree 31 and beyond.

    Raises:
        ValueError: for an even degree, and for intervals that overlap or aren't positive.
        ArithmeticError: no convergence.
    """
    if degree < 1 or degree % 2 == 0:
        raise ValueError(f"the degree of an odd polynomial is odd, not {degree}")
    parts = sorted((float(a), float(b)) for a, b in intervals)
    edges = [edge for part in parts for edge in part]
    if not edges or edges[0] <= 0 or any(low >= high for low, high in itertools.pairwise(edges)):
        raise ValueError(f"{list(intervals)} are not separate intervals of positive numbers")
    half_width = edges[-1]
    parts = [(a / half_width, b / half_width) for a, b in parts]
    count = (degree + 1) // 2
    grids = [_between(a, b, POINTS_PER_COEFFICIENT * (count + 1)) for a, b in parts]
    points = _spread(parts, count + 1)
    signs = (-1.0) ** np.arange(count + 1)
    for _ in range(ITERATIONS):
        system = np.column_stack([chebyshev.chebvander(points, degree)[:, 1::2], signs])
        solution = np.linalg.solve(system, np.ones(count + 1))
        coefficients = np.zeros(degree + 1)
        coefficients[1::2] = solution[:-1]
        extrema = np.sort(np.concatenate([_extrema(coefficients, grid) for grid in grids]))
        errors = chebyshev.chebval(extrema, coefficients) - 1.0
        largest = float(np.max(np.abs(errors)))
        if largest - abs(solution[-1]) <= TOLERANCE * largest + ROUNDING:
            return coefficients, largest
        points = _alternating(extrema, errors, count + 1)
        if len(points) <= count:
            break
    raise ArithmeticError(f"no best polynomial of degree {degree} was found on {list(intervals)}")


def _between(low: float, high: float, count: int) -> Array:
    """Points from low to high, denser at the ends."""
    return np.asarray((low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0.0, np.pi, count)))


def _spread(parts: Sequence[tuple[float, float]], count: int) -> Array:
    """The first points: extrema of a Chebyshev polynomial over the intervals, joined without their gaps."""
    lengths = np.array([b - a for a, b in parts])
    at = _between(0.0, float(lengths.sum()), count)
    starts = np.concatenate([[0.0], np.cumsum(lengths)[:-1]])
    which = np.clip(np.searchsorted(starts, at, side="right") - 1, 0, len(parts) - 1)
    return np.asarray(np.array([a for a, _ in parts])[which] + at - starts[which])


def _extrema(coefficients: Array, grid: Array) -> Array:
    """Both ends of an interval, and the zeros of the derivative between them, each found to all digits by bisection."""
    slope = chebyshev.chebder(coefficients)
    rising = chebyshev.chebval(grid, slope) > 0
    turns = np.flatnonzero(rising[1:] != rising[:-1])
    low, high, first = grid[turns], grid[turns + 1], rising[turns]
    for _ in range(40):
        middle = (low + high) / 2
        before = (chebyshev.chebval(middle, slope) > 0) == first
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return np.concatenate([grid[:1], (low + high) / 2, grid[-1:]])


def _alternating(extrema: Array, errors: Array, count: int) -> Array:
    """Extrema of alternating signs, the largest of each run of one sign; superfluous ones are removed from the ends."""
    runs = np.split(np.arange(len(errors)), np.flatnonzero(np.diff(np.sign(errors))) + 1)
    kept = [int(run[np.argmax(np.abs(errors[run]))]) for run in runs]
    while len(kept) > count:
        kept.pop(0 if abs(errors[kept[0]]) < abs(errors[kept[-1]]) else -1)
    return np.asarray(extrema[kept])
