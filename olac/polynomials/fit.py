"""Weighted least-squares polynomials under a layer's own input distribution, from histograms alone.

The distribution is a calibrated histogram, or the normal density of its moments, plus a small uniform *floor* over a
padded range, so that polynomials stay bounded for inputs that calibration never saw. Fits on whole images, which
compensate the errors of earlier layers, are in `olac.approximation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev

from olac.calibration.histogram import Histogram
from olac.ir.functions import Function
from olac.polynomials.modes import Channel, Compensated, Empirical, FromHistograms, Normal, Quadratic
from olac.system.arrays import Array

FLOOR_POINTS = 512
RIDGE, NORMAL_RIDGE, CHANNEL_RIDGE = 1e-6, 1e-8, 1e-9
"""Weight of the squares of the coefficients against that of the errors.

If the data fill only a part of [-half_width, half_width], high degrees would otherwise gain a little accuracy by
coefficients of 1e6, which amplify the noise of encryption as much. Polynomials of single channels have to be good on
ranges that are narrow against the layer's, so their weight is less: at degree 7 ResNet-20 loses 0.8 points with 1e-6.
OLA's fits have none; NORMAL_RIDGE only keeps coefficients within 1e4 times the function's values.
"""

NARROWEST, LARGEST = 0.1, 1e8
"""A channel's range counts as at least this share of the layer's, because a constant channel has a polynomial as well;
and it is widened until no Chebyshev polynomial on it exceeds LARGEST within the layer's."""
TINY = 1e-6
BENDS = 160
"""Curvatures that are tried on either side of 0 if the best one does not fold."""
SQUARE = 5.0
"""The largest constant that completing the square may add, in units of the layer's largest value."""
NORMAL_REACH = 8.0
"""Standard deviations, each stretched by r, up to which a normal density is integrated."""
QUADRATIC = (0.1875, 0.5, 0.234375)
"""The quadratic of leveled ResNets (Chielle et al., arXiv 2509.22857): least squares to ReLU on [-2, 2]."""


@dataclass(frozen=True)
class Fit:
    """Polynomials sum_k c_k T_k(x / half_width) of one activation, and their errors.

    Attributes:
        coefficients: (channels or 1, degree + 1).
        half_width: of the interval that the Chebyshev polynomials are for.
        rmse: root mean square error under the calibrated distribution, relative to that of the function's values.
        max_error: largest absolute error on the calibrated range.
        outer_error: largest absolute error on the padded range around it.
        low, high: the padded range, over all channels.
    """

    coefficients: Array
    half_width: float
    rmse: float
    max_error: float
    outer_error: float
    low: float
    high: float

    @property
    def degree(self) -> int:
        """Of the polynomials."""
        return self.coefficients.shape[1] - 1


def fit(functions: Sequence[Function], histogram: Histogram, method: FromHistograms, degree: int) -> Fit:
    """Fit one activation from its histogram; a quadratic has its own degree.

    Args:
        functions: the function of each channel, or one for all.
        histogram: of the activation's input.
    """
    if isinstance(method, Quadratic):
        return quadratic_fit(functions, histogram)
    # A function that differs between channels can't be one polynomial, whatever the fit.
    if isinstance(method, Compensated | Channel) or len(functions) > 1:
        return _per_channel(functions, histogram, method, degree)
    return _one_for_all(functions[0], histogram, method, degree)


def least_fit(
    functions: Sequence[Function], histogram: Histogram, method: FromHistograms, tolerance: float, most: int
) -> Fit:
    """The fit of least degree whose `rmse` is within the tolerance, or that of degree `most`."""
    made = fit(functions, histogram, method, 1)
    for degree in range(2, most + 1):
        if made.rmse <= tolerance:
            break
        made = fit(functions, histogram, method, degree)
    return made


def _density(histogram: Histogram, channel: int | None) -> tuple[Array, Array]:
    """The centres of the bins that hold values, and their shares. Functions need not be defined anywhere else."""
    centres, masses = histogram.density(channel)
    return centres[masses > 0], masses[masses > 0]


def _one_for_all(function: Function, histogram: Histogram, method: Empirical | Normal, degree: int) -> Fit:
    centres, masses = _density(histogram, None)
    seen = histogram.range(None)
    floor, padding = method.tails(degree)
    middle, half = (seen.low + seen.high) / 2, max((seen.high - seen.low) / 2, 1e-6)
    low, high = middle - padding * half, middle + padding * half
    if isinstance(method, Normal):
        mean, deviation = histogram.mean(None), max(histogram.deviation(None), 1e-6) * method.r
        points = np.asarray(mean + deviation * np.linspace(-NORMAL_REACH, NORMAL_REACH, 4097), dtype=np.float64)
        weights = np.exp(-0.5 * ((points - mean) / deviation) ** 2)
        weights /= weights.sum()
    else:
        spread = np.linspace(low, high, FLOOR_POINTS)
        points = np.concatenate([centres, spread])
        weights = np.concatenate([(1 - floor) * masses, np.full(FLOOR_POINTS, floor / FLOOR_POINTS)])
    half_width = max(abs(low), abs(high))
    target = function(points)
    basis = chebyshev.chebvander(points / half_width, degree)
    root = np.sqrt(weights)[:, None]
    ridge = NORMAL_RIDGE if isinstance(method, Normal) else RIDGE
    rows = np.concatenate([basis * root, math.sqrt(ridge) * np.eye(degree + 1)])
    right = np.concatenate([target * root[:, 0], np.zeros(degree + 1)])
    coefficients = np.linalg.lstsq(rows, right, rcond=None)[0]
    return measured([function], histogram, coefficients[None, :], half_width, padding)


def _per_channel(functions: Sequence[Function], histogram: Histogram, method: FromHistograms, degree: int) -> Fit:
    floor, padding = method.tails(degree)
    channels = histogram.channels
    low, high = histogram.low, histogram.high
    middle, half = centred(low, high, degree)
    half_width = float((np.abs(middle) + padding * half).max())
    mapping = widening(middle, half, half_width, degree)
    size = _root_mean_square(functions, histogram)
    spread = np.linspace(-padding, padding, FLOOR_POINTS)
    rows = []
    for channel in range(channels):
        function = functions[channel if len(functions) > 1 else 0]
        centres, masses = _density(histogram, channel)
        t = np.concatenate([(centres - middle[channel]) / half[channel], spread])
        weights = np.concatenate([(1 - floor) * masses, np.full(FLOOR_POINTS, floor / FLOOR_POINTS)])
        basis = chebyshev.chebvander(t, degree) * np.sqrt(weights)[:, None]
        target = function(middle[channel] + half[channel] * t) * np.sqrt(weights)
        if degree == 2:
            inverse = np.linalg.inv(mapping[channel])
            second, first = inverse.T @ basis.T @ basis @ inverse, inverse.T @ basis.T @ target
            largest = max(abs(float(function(x)[0])) for x in np.array([[low[channel]], [high[channel]]]))
            rows.append(quadratic(second + CHANNEL_RIDGE * np.eye(3), first, max(largest, size)))
            continue
        stacked = np.concatenate([basis, math.sqrt(CHANNEL_RIDGE) * mapping[channel]])
        row = np.linalg.lstsq(stacked, np.concatenate([target, np.zeros(degree + 1)]), rcond=None)[0]
        rows.append(mapping[channel] @ row)
    return measured(functions, histogram, np.array(rows), half_width, padding)


def quadratic(second: Array, first: Array, largest: float) -> Array:
    """Least squares of degree 2 whose completed square folds: (alpha x + beta)^2 + gamma without much cancellation.

    With c_0 + c_1 T_1 + c_2 T_2 on x / half_width, beta^2 is c_1^2 / (8 |c_2|), which gamma cancels again. It stays
    within SQUARE times the function's values, so a channel that is nearly linear gets more curvature than fits best.
    If no curvature does that, the result is plain least squares, which takes two levels.

    Args:
        second: (3, 3), mean of T_i T_j.
        first: (3,), mean of T_i y.
        largest: magnitude of the function's values.
    """
    found = np.linalg.solve(second, first)
    if abs(found[2]) >= least_curvature(float(found[1]), largest):
        return np.asarray(found, dtype=np.float64)
    # For each curvature the best line; then the best of those that fold, refined between its neighbours.
    start = max(abs(float(found[2])), 1e-9 * largest)
    best, error = found, math.inf
    for sign in (1.0, -1.0):
        curvatures = sign * start * np.geomspace(1e-4, 1e6, BENDS)
        for _ in range(2):
            lines = np.linalg.solve(second[:2, :2], first[:2, None] - second[:2, 2:] * curvatures[None, :])
            tried = np.concatenate([lines, curvatures[None, :]])
            errors = np.einsum("ik,ij,jk->k", tried, second, tried) - 2 * first @ tried
            folds = [abs(c) >= least_curvature(b, largest) for b, c in zip(tried[1], curvatures, strict=True)]
            errors = np.where(folds, errors, math.inf)
            k = int(np.argmin(errors))
            if errors[k] < error:
                best, error = tried[:, k], float(errors[k])
            curvatures = np.linspace(curvatures[max(k - 1, 0)], curvatures[min(k + 1, BENDS - 1)], BENDS)
    return np.asarray(best, dtype=np.float64)


def least_curvature(slope: float, largest: float) -> float:
    """The least |c_2| for a c_1; see `quadratic`."""
    return max(slope**2 / (8 * SQUARE * largest), 1e-9 * largest)


def centred(low: Array, high: Array, degree: int) -> tuple[Array, Array]:
    """Middle and half width of each channel's range, widened as NARROWEST and LARGEST demand."""
    layer = max(float(np.maximum(np.abs(low), np.abs(high)).max(initial=0.0)), TINY)
    share = max(NARROWEST, 1 / math.cosh(math.acosh(LARGEST) / max(1, degree)))
    return (low + high) / 2, np.maximum((high - low) / 2, share * layer)


def widening(middle: Array, half: Array, half_width: float, degree: int) -> Array:
    """Matrices (channels, n, n) from Chebyshev coefficients on (x - middle) / half to those on x / half_width.

    n is degree + 1. Exact up to rounding, by interpolation at n points. Least squares penalise the resulting
    coefficients, whose size amplifies the noise of encryption.
    """
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    t = (half_width * nodes[None, :] - middle[:, None]) / half[:, None]
    return np.asarray(np.linalg.solve(chebyshev.chebvander(nodes, degree), chebyshev.chebvander(t, degree)))


def _root_mean_square(functions: Sequence[Function], histogram: Histogram) -> float:
    sizes = []
    for channel in range(histogram.channels):
        centres, masses = _density(histogram, channel)
        sizes.append(float(np.sum(masses * functions[channel if len(functions) > 1 else 0](centres) ** 2)))
    return max(math.sqrt(float(np.mean(sizes))), TINY)


def quadratic_fit(functions: Sequence[Function], histogram: Histogram) -> Fit:
    """The quadratic of leveled ResNets, stretched from [-2, 2] to the calibrated magnitude: s q(x / s) ~ relu(x)."""
    seen = histogram.range(None)
    half_width = seen.magnitude or 1.0
    c0, c1, c2 = QUADRATIC
    s = half_width / 2
    # In Chebyshev polynomials of x / half_width, where x^2 = half_width^2 (T_0 + T_2) / 2.
    square = c2 / s * half_width**2 / 2
    return measured(functions, histogram, np.array([[s * c0 + square, c1 * half_width, square]]), half_width, 1.0)


def measured(
    functions: Sequence[Function], histogram: Histogram, coefficients: Array, half_width: float, padding: float
) -> Fit:
    """A fit with its errors under a histogram: within the calibrated range, and on the padded range around it."""
    squared = size = 0.0
    inside = outside = 0.0
    lows, highs = [], []
    alike = len(functions) == 1 and len(coefficients) == 1
    for channel in [None] if alike else range(histogram.channels):
        function = functions[0 if channel is None or len(functions) == 1 else channel]
        row = coefficients[0 if channel is None or len(coefficients) == 1 else channel]
        centres, masses = _density(histogram, channel)
        exact = function(centres)
        squared += float(np.sum(masses * (chebyshev.chebval(centres / half_width, row) - exact) ** 2))
        size += float(np.sum(masses * exact**2))
        seen = histogram.range(channel)
        middle, half = (seen.low + seen.high) / 2, (seen.high - seen.low) / 2
        low, high = middle - padding * half, middle + padding * half
        grid = np.asarray(np.linspace(low, high, FLOOR_POINTS), dtype=np.float64)
        error = np.abs(chebyshev.chebval(grid / half_width, row) - function(grid))
        within = (grid >= seen.low) & (grid <= seen.high)
        inside = max(inside, float(error[within].max(initial=0.0)))
        outside = max(outside, float(error[~within].max(initial=0.0)))
        lows.append(low)
        highs.append(high)
    rmse = float(np.sqrt(squared / size)) if size > 0 else float(np.sqrt(squared))
    return Fit(coefficients, half_width, rmse, inside, outside, min(lows), max(highs))
