"""What a drawing of one activation needs: a histogram of its inputs, its function and its polynomials, as few numbers.

Curves tell of calibration data. They are for people, and no program holds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from olac.calibration.histogram import Histogram
from olac.ir.functions import Function
from olac.system.arrays import Array

BINS = 48
"""Of the histogram."""
POINTS = 73
"""At which functions are evaluated, evenly over the padded range."""
DIGITS = 4
"""That numbers are rounded to: a drawing shows fewer, and a curve then takes about 3 kB."""
MOST_VALUE = 1e30
"""Larger results of polynomials are drawn as this."""


@dataclass(frozen=True)
class Curve:
    """One activation, all channels together.

    Attributes:
        node: its id.
        function: its name.
        channels: their number.
        degree: of its polynomials.
        low, high: the padded range, on which the polynomials are fitted and drawn.
        seen_low, seen_high: the range that the calibration saw, which the histogram covers.
        shares: of the inputs in each of `BINS` bins of the same width; they sum to 1.
        exact_low, exact_high: the function at `POINTS` evenly spaced points of the padded range: the least and the
            largest over the channels, which differ only for functions with parameters of each channel.
        fitted_low, fitted_high: the same for the polynomials, over the channels in whose padded range a point lies, or
            over all where there is none.
        outside: the share of inputs from images that no fit saw that lie outside their channel's padded range when all
            activations are polynomials; None if it was not measured.
        effect: the mean change of the outputs if this activation alone is a polynomial, in the units of
            `olac.approximation.effects`; None if it was not measured, as only a search of degrees measures it.
    """

    node: str
    function: str
    channels: int
    degree: int
    low: float
    high: float
    seen_low: float
    seen_high: float
    shares: tuple[float, ...]
    exact_low: tuple[float, ...]
    exact_high: tuple[float, ...]
    fitted_low: tuple[float, ...]
    fitted_high: tuple[float, ...]
    outside: float | None = None
    effect: float | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.high or not self.seen_low <= self.seen_high:
            raise ValueError(f"{self.node}: a range that ends before it begins")
        if len(self.shares) != BINS:
            raise ValueError(f"{self.node}: {len(self.shares)} bins, expected {BINS}")
        for row in (self.exact_low, self.exact_high, self.fitted_low, self.fitted_high):
            if len(row) != POINTS:
                raise ValueError(f"{self.node}: {len(row)} points, expected {POINTS}")
        numbers = (*self.shares, *self.exact_low, *self.exact_high, *self.fitted_low, *self.fitted_high)
        if not all(math.isfinite(number) for number in (*numbers, self.low, self.high, self.seen_low, self.seen_high)):
            raise ValueError(f"{self.node}: numbers that are not finite")


def padded_ranges(histogram: Histogram, padding: float) -> Array:
    """Ranges (channels, 2) of the channels, `padding` times as wide as those that were seen."""
    middle, half = (histogram.low + histogram.high) / 2, padding * (histogram.high - histogram.low) / 2
    return np.stack([middle - half, middle + half], 1)


def curve(
    node: str,
    function: str,
    degree: int,
    histogram: Histogram,
    exact: Sequence[Function],
    fitted: Sequence[Function],
    ranges: Array,
) -> Curve:
    """The curve of one activation.

    Args:
        node, function, degree: as in `Curve`.
        histogram: of its inputs.
        exact, fitted: the function and the polynomial of each channel, or one for all.
        ranges: padded ranges of the channels, shape (channels, 2).
    """
    seen = histogram.range(None)
    low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
    points: Array = np.linspace(low, high, POINTS).astype(np.float64)
    exact_values, fitted_values = _values(exact, points), _values(fitted, points)
    if len(fitted) > 1:
        reach = 1e-9 * max(high - low, abs(low), abs(high))
        there = (points >= ranges[:, :1] - reach) & (points <= ranges[:, 1:] + reach)
        there |= ~there.any(axis=0)
    else:
        there = np.ones((1, POINTS), dtype=np.bool_)
    return Curve(
        node,
        function,
        histogram.channels,
        degree,
        _rounded(low),
        _rounded(high),
        _rounded(seen.low),
        _rounded(seen.high),
        _shares(histogram, seen.low, seen.high),
        _row(exact_values.min(0)),
        _row(exact_values.max(0)),
        _row(np.where(there, fitted_values, np.inf).min(0)),
        _row(np.where(there, fitted_values, -np.inf).max(0)),
    )


def _values(functions: Sequence[Function], points: Array) -> Array:
    """Values (functions, points), all of which can be drawn."""
    with np.errstate(all="ignore"):
        found = np.array([one(points) for one in functions], dtype=np.float64)
    return np.asarray(np.nan_to_num(found, nan=MOST_VALUE).clip(-MOST_VALUE, MOST_VALUE))


def _row(values: Array) -> tuple[float, ...]:
    return tuple(_rounded(float(value)) for value in values)


def _shares(histogram: Histogram, low: float, high: float) -> tuple[float, ...]:
    """Shares of the values in `BINS` bins over what was seen; a bin of the histogram counts where its centre lies."""
    centres, masses = histogram.density(None)
    width = (high - low) or 1.0
    places = np.clip(((centres - low) / width * BINS).astype(np.int64), 0, BINS - 1)
    found = np.bincount(places, weights=masses, minlength=BINS)
    return tuple(_rounded(float(share)) for share in found)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
