"""Weighted least-squares polynomials under a layer's own input distribution, from histograms alone.

The distribution is a calibrated histogram, or the normal density of its moments, plus a small uniform *floor* over a
padded range, so that inputs which calibration never saw meet a polynomial that is still bounded there. Fits that look
at whole images, to make up for the errors of earlier layers, are in `olac.approximation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from olac.calibration.histogram import Histogram
from olac.ir.functions import Function

Array = npt.NDArray[np.float64]

FLOOR_POINTS = 512
RIDGE, NORMAL_RIDGE, CHANNEL_RIDGE = 1e-6, 1e-8, 1e-9
"""Weight of the squares of the coefficients against that of the errors.

Where the data fill a part of [-half_width, half_width] only, high degrees would else buy a little accuracy with
coefficients of 1e6, which amplify the noise of encryption as much. Polynomials of single channels have to be good on
ranges that are narrow against the layer's, so their weight is less: at degree 7 ResNet-20 loses 0.8 points with 1e-6.
OLA's fits have none; theirs only keeps coefficients within 1e4 times the function's values.
"""

METHODS = ("compensated", "channel", "empirical", "normal", "minimax", "quadratic")
DEGREES = ("measured", "ola")
MAX_DEGREE = 127
NARROWEST, LARGEST = 0.1, 1e8
"""A channel's range counts as at least this share of the layer's: a constant channel has a polynomial, too. And as so
much that no Chebyshev polynomial on it exceeds LARGEST within the layer's."""
TINY = 1e-6
BENDS = 160
"""Curvatures that are tried on either side of 0 where the best one does not fold."""
SQUARE = 5.0
"""What completing the square of a quadratic may add to it, in units of the layer's largest value."""
NORMAL_REACH = 8.0
"""Standard deviations, each stretched by r, up to which a normal density is integrated."""
QUADRATIC = (0.1875, 0.5, 0.234375)
"""The quadratic of leveled ResNets (Chielle et al., arXiv 2509.22857): least squares to ReLU on [-2, 2]."""


@dataclass(frozen=True)
class FitOptions:
    """How activations become polynomials: a method of fitting x a choice of degrees.

    Attributes:
        method: "compensated" (per channel, in network order, making up for the errors before; the default), "channel"
            (per channel, from histograms), "empirical" (one a layer, from histograms), "normal" (one a layer, under a
            normal density: OLA's), "minimax" (compositions of minimax polynomials; ReLU and its relatives) or
            "quadratic" (the fixed one of leveled ResNets, scaled to the layer; ReLU).
        degree: one degree for all activations; None lets `degrees` or `tolerance` choose.
        plan: one degree for each activation, in network order; nothing is chosen then.
        degrees: how degrees are chosen: "measured" (by what each does to the outputs) or "ola" (alpha_i E_i).
        max_depth: most levels that all activations may take together, the sum over them.
        max_bootstraps: of the whole program: the most accurate degrees that take no more of them. Lowering keeps to it,
            unless `max_memory` leaves it no choice.
        min_agreement: least share of unseen calibration images on which the largest output stays the same; the
            cheapest plan that has it is taken. 0.98 where neither this nor a limit is given.
        max_latency: most seconds that the polynomials may take together, by the table of costs.
        tolerance: instead, for each activation alone the least degree whose root mean square error, relative to that
            of the function's values, is within this.
        max_degree: largest degree that is considered; None for 7 where effects are measured (higher ones make more
            unseen images diverge than they gain in accuracy), 15 for `tolerance` and 31 for "ola".
        r: the normal density is r times as wide as the layer's own: larger is safer in the tails, smaller is closer
            in the middle.
        floor: share of the mass that is spread evenly over the padded range; None chooses.
        padding: the range is calibrated minimum to maximum, widened about its middle by this factor; None chooses.
        ridge: pull of re-fitted weights towards the trained ones, in units of the inputs' mean square; None chooses.
        alpha: precision of minimax compositions: errors within 2^-alpha of the range.
        refit: whether "compensated" also re-fits convolutions and linear layers, in closed form and without labels.
        reconstruct: passes over the calibration images in which "compensated" then improves all coefficients and
            weights together towards the model's own values; 0 for none.
    """

    method: str = "compensated"
    degree: int | None = None
    plan: tuple[int, ...] | None = None
    degrees: str = "measured"
    max_depth: int | None = None
    max_bootstraps: int | None = None
    min_agreement: float | None = None
    max_latency: float | None = None
    tolerance: float | None = None
    max_degree: int | None = None
    r: float = 2.0
    floor: float | None = None
    padding: float | None = None
    ridge: float | None = None
    alpha: int = 10
    refit: bool = True
    reconstruct: int = 16

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.degrees not in DEGREES:
            raise ValueError(f"degrees {self.degrees!r} is not one of {', '.join(DEGREES)}")
        for name in ("degree", "max_degree"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_DEGREE:
                raise ValueError(f"{name} {value} is outside 1 ... {MAX_DEGREE}")
        if self.plan is not None:
            if self.degree is not None:
                raise ValueError("give degree or plan, not both")
            wrong = [d for d in self.plan if not 1 <= d <= MAX_DEGREE]
            if wrong:
                raise ValueError(f"degrees {wrong} of the plan are outside 1 ... {MAX_DEGREE}")
        if self.max_depth is not None and self.max_depth < 1:
            raise ValueError(f"max_depth {self.max_depth} is below 1")
        limits = [n for n in ("max_depth", "max_latency", "max_bootstraps") if getattr(self, n) is not None]
        if len(limits) > 1:
            raise ValueError(f"give {' or '.join(limits)}, not both")
        if self.max_bootstraps is not None and self.max_bootstraps < 0:
            raise ValueError(f"max_bootstraps {self.max_bootstraps} is negative")
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise ValueError(f"min_agreement {self.min_agreement} is outside 0 ... 1")
        for name in ("tolerance", "max_latency", "r"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value} is not positive")
        if self.floor is not None and not 0 < self.floor < 1:
            raise ValueError(f"floor {self.floor} is outside 0 ... 1")
        if self.padding is not None and not self.padding >= 1:
            raise ValueError(f"padding {self.padding} is below 1")
        if self.ridge is not None and not self.ridge >= 0:
            raise ValueError(f"ridge {self.ridge} is negative")
        if not 4 <= self.alpha <= 14:
            raise ValueError(f"alpha {self.alpha} is outside 4 ... 14")
        if self.reconstruct < 0:
            raise ValueError(f"reconstruct {self.reconstruct} is negative")

    @property
    def most(self) -> int:
        """The largest degree that is considered."""
        if self.max_degree is not None:
            return self.max_degree
        return 15 if self.tolerance is not None else 31 if self.degrees == "ola" else 7

    def tails(self, degree: int) -> tuple[float, float]:
        """Floor and padding for a degree where nothing chooses them: higher degrees need more of both."""
        floor, padding = (1e-4, 1.2) if degree <= 3 else (1e-3, 1.4)
        return (floor if self.floor is None else self.floor, padding if self.padding is None else self.padding)


@dataclass(frozen=True)
class Fit:
    """Polynomials sum_k c_k T_k(x / half_width) of one activation and how good they are.

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


def fit(functions: Sequence[Function], histogram: Histogram, options: FitOptions, degree: int | None = None) -> Fit:
    """Fit one activation from its histogram.

    Args:
        functions: the function of each channel, or one for all.
        histogram: of the activation's input.
        options: `method` is "channel", "empirical", "normal" or "quadratic".
        degree: of the polynomials; None takes the least up to `max_degree` that meets `tolerance` (0.1 if not set).
    """
    if options.method == "quadratic":
        return quadratic_fit(functions, histogram)
    tolerance = 0.1 if options.tolerance is None else options.tolerance
    best: Fit | None = None
    for d in range(1, options.most + 1) if degree is None else (degree,):
        best = _per_channel(functions, histogram, options, d) if _by_channel(functions, options) else None
        best = best or _one_for_all(functions[0], histogram, options, d)
        if best.rmse <= tolerance:
            break
    assert best is not None
    return best


def _by_channel(functions: Sequence[Function], options: FitOptions) -> bool:
    # A function that differs between channels can't be one polynomial, whatever the fit.
    return options.method in ("channel", "compensated") or len(functions) > 1


def _one_for_all(function: Function, histogram: Histogram, options: FitOptions, degree: int) -> Fit:
    centres, masses = histogram.density(None)
    seen = histogram.range(None)
    floor, padding = options.tails(degree)
    middle, half = (seen.low + seen.high) / 2, max((seen.high - seen.low) / 2, 1e-6)
    low, high = middle - padding * half, middle + padding * half
    if options.method == "normal":
        mean, deviation = histogram.mean(None), max(histogram.deviation(None), 1e-6) * options.r
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
    ridge = NORMAL_RIDGE if options.method == "normal" else RIDGE
    rows = np.concatenate([basis * root, math.sqrt(ridge) * np.eye(degree + 1)])
    right = np.concatenate([target * root[:, 0], np.zeros(degree + 1)])
    coefficients = np.linalg.lstsq(rows, right, rcond=None)[0]
    return measured([function], histogram, coefficients[None, :], half_width, padding)


def _per_channel(functions: Sequence[Function], histogram: Histogram, options: FitOptions, degree: int) -> Fit:
    floor, padding = options.tails(degree)
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
        centres, masses = histogram.density(channel)
        t = np.concatenate([(centres[masses > 0] - middle[channel]) / half[channel], spread])
        weights = np.concatenate([(1 - floor) * masses[masses > 0], np.full(FLOOR_POINTS, floor / FLOOR_POINTS)])
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
    Where no curvature does that, the plain least squares are left, and take two levels.

    Args:
        second: (3, 3), mean of T_i T_j.
        first: (3,), mean of T_i y.
        largest: magnitude of the function's values.
    """
    found = np.linalg.solve(second, first)
    if abs(found[2]) >= least_curvature(float(found[1]), largest):
        return np.asarray(found, dtype=np.float64)
    # For each curvature the best line below it; of those that fold, the one that fits best, and what is just beside it.
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
    """Middle and half width of each channel's range, as wide as its polynomials may be taken apart from the layer's."""
    layer = max(float(np.maximum(np.abs(low), np.abs(high)).max(initial=0.0)), TINY)
    share = max(NARROWEST, 1 / math.cosh(math.acosh(LARGEST) / max(1, degree)))
    return (low + high) / 2, np.maximum((high - low) / 2, share * layer)


def widening(middle: Array, half: Array, half_width: float, degree: int) -> Array:
    """What takes Chebyshev coefficients on (x - middle) / half to those on x / half_width: a matrix for each channel.

    Shape (channels, degree + 1, degree + 1); exact up to rounding, by interpolation at degree + 1 points. Least squares
    penalise what comes out of it, as its size is what amplifies the noise of encryption.
    """
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    t = (half_width * nodes[None, :] - middle[:, None]) / half[:, None]
    return np.asarray(np.linalg.solve(chebyshev.chebvander(nodes, degree), chebyshev.chebvander(t, degree)))


def _root_mean_square(functions: Sequence[Function], histogram: Histogram) -> float:
    sizes = []
    for channel in range(histogram.channels):
        centres, masses = histogram.density(channel)
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
        centres, masses = histogram.density(channel)
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
