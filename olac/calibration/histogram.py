"""Histograms of values by channel, whose range grows with the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from olac.ir.types import Range
from olac.system.arrays import Array, Index

BINS = 2048

_HALF = BINS // 2

# Ranges are powers of two, 2^exponent; an empty channel starts with this one, which any real value exceeds.
_SMALLEST = -126

# Values that are binned at once: it bounds the memory that `add` takes, and keeps the values in the caches.
_CHUNK = 1 << 18

# Up to here a bin's number is exact in single precision: the scale is at least 1, so no product underflows.
_LARGEST_SINGLE = 10

_SMALLEST_SINGLE = -100


class Histogram:
    """A streaming histogram per channel, with exact extremes and moments.

    Each channel has `BINS` bins over [-R, R), where R is the least power of two above all magnitudes seen. When R
    doubles, pairs of bins merge. As R is a power of two, the counts do not depend on the order of the values or on how
    they were divided into batches. Memory depends on the number of channels only.

    Attributes:
        channels: number of channels.
        counts: (channels, BINS), values in each bin.
        exponents: (channels,), log2 of R.
        low, high: (channels,), exact extremes; +inf and -inf if nothing was seen.
        sums, squares: (channels,), sums of x and of x^2.
    """

    def __init__(self, channels: int) -> None:
        if channels < 1:
            raise ValueError("a histogram has at least one channel")
        self.channels = channels
        self.counts: Index = np.zeros((channels, BINS), dtype=np.int64)
        self.low: Array = np.full(channels, np.inf)
        self.high: Array = np.full(channels, -np.inf)
        self.sums: Array = np.zeros(channels)
        self.squares: Array = np.zeros(channels)
        self.exponents: Index = np.full(channels, _SMALLEST, dtype=np.int64)

    @property
    def count(self) -> int:
        """Values seen, over all channels."""
        return int(self.counts.sum())

    @property
    def half_widths(self) -> Array:
        """R of each channel, shape (channels,)."""
        return np.ldexp(1.0, self.exponents)

    def add(self, values: npt.ArrayLike) -> None:
        """Count values of shape (n, channels, ...). ValueError for another number of channels, NaN or inf."""
        array = np.asarray(values)
        if array.ndim < 2 or array.shape[1] != self.channels:
            raise ValueError(f"values of shape {array.shape} in a histogram of {self.channels} channels")
        if array.size == 0:
            return
        dtype = np.float32 if array.dtype == np.float32 else np.float64
        images = max(1, _CHUNK // max(1, array[0].size))
        for start in range(0, len(array), images):
            part: Array = np.ascontiguousarray(array[start : start + images], dtype=dtype)
            self._add(part.reshape(len(part), self.channels, -1))

    def _add(self, x: npt.NDArray[np.floating[Any]]) -> None:
        low, high = x.min(axis=(0, 2)).astype(np.float64), x.max(axis=(0, 2)).astype(np.float64)
        # Minima and maxima pass NaN on.
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError("values that aren't finite in a histogram")
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        double = x.astype(np.float64, copy=False)
        self.sums += double.sum(axis=(0, 2))
        self.squares += np.einsum("ncx,ncx->c", double, double)
        # frexp gives |x| < 2^exponent strictly, so no value lies on the outer edge; 0 needs no range of its own.
        magnitude = np.maximum(np.abs(low), np.abs(high))
        needed = np.where(magnitude > 0, np.frexp(magnitude)[1], _SMALLEST).astype(np.int64)
        self._grow(np.maximum(self.exponents, needed))
        # Scales are powers of two, so products are exact, in single precision too if nothing under- or overflows.
        if self.exponents.max() > _LARGEST_SINGLE or self.exponents.min() < _SMALLEST_SINGLE:
            x = double
        scale = np.ldexp(float(_HALF), -self.exponents)
        bins: npt.NDArray[np.floating[Any]] = x * scale.astype(x.dtype)[None, :, None]
        np.floor(bins, out=bins)
        flat = bins.astype(np.int64)
        flat += (np.arange(self.channels) * BINS + _HALF)[None, :, None]
        # As fast as bincount, but without passes over all bins, of which there may be more than values.
        np.add.at(self.counts.reshape(-1), flat.reshape(-1), 1)

    def _grow(self, exponents: Index) -> None:
        for channel in np.flatnonzero(exponents > self.exponents):
            self.counts[channel] = _merged(self.counts[channel], int(exponents[channel] - self.exponents[channel]))
        self.exponents = exponents.copy()

    @staticmethod
    def of(counts: Index, exponents: Index, low: Array, high: Array, sums: Array, squares: Array) -> Histogram:
        """A histogram with the given attributes; ValueError if they don't fit together."""
        histogram = Histogram(len(counts))
        if counts.shape != histogram.counts.shape or any(
            part.shape != (len(counts),) for part in (exponents, low, high, sums, squares)
        ):
            raise ValueError("the parts of a histogram have different numbers of channels")
        if (counts < 0).any() or (counts > 1 << 52).any() or (counts.sum(axis=1) == 0).any():
            raise ValueError("a histogram's counts are negative, too large or all zero")
        if not all(np.isfinite(part).all() for part in (low, high, sums, squares)) or (low > high).any():
            raise ValueError("a histogram's range or moments are not finite")
        if (exponents < _SMALLEST).any() or (exponents > 1023).any():
            raise ValueError("a histogram's width is out of range")
        scale = np.ldexp(float(_HALF), -exponents)
        bounds = np.stack([np.floor(low * scale), np.floor(high * scale)]) + _HALF
        filled = counts > 0
        first, last = filled.argmax(axis=1), BINS - 1 - filled[:, ::-1].argmax(axis=1)
        if (bounds != np.stack([first, last])).any():
            raise ValueError("a histogram's counts lie outside its range")
        count = counts.sum(axis=1)
        slack = 1e-6 * count * np.maximum(np.abs(low), np.abs(high))
        if (sums < count * low - slack).any() or (sums > count * high + slack).any() or (squares < 0).any():
            raise ValueError("a histogram's moments don't fit its range")
        histogram.counts[:] = counts
        histogram.low, histogram.high, histogram.sums, histogram.squares = (
            np.array(part, dtype=np.float64) for part in (low, high, sums, squares)
        )
        histogram.exponents = np.array(exponents, dtype=np.int64)
        return histogram

    def copy(self) -> Histogram:
        """An independent copy."""
        return Histogram(self.channels).merge(self)

    def merge(self, other: Histogram) -> Histogram:
        """Add what `other` counted, as if this histogram had seen all values; returns self. ValueError for other
        channels.
        """
        if other.channels != self.channels:
            raise ValueError(f"histograms of {self.channels} and {other.channels} channels can't merge")
        theirs = other.exponents
        self._grow(np.maximum(self.exponents, theirs))
        for channel, exponent in enumerate(theirs):
            self.counts[channel] += _merged(other.counts[channel], int(self.exponents[channel] - exponent))
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.sums += other.sums
        self.squares += other.squares
        return self

    def _one(self, channel: int | None) -> tuple[Index, float]:
        """Counts and R of one channel, or of all together at the widest range."""
        if channel is not None:
            return self.counts[channel], float(self.half_widths[channel])
        widest = int(self.exponents.max())
        total = np.zeros(BINS, dtype=np.int64)
        for exponent in np.unique(self.exponents):
            total += _merged(self.counts[self.exponents == exponent].sum(axis=0), int(widest - exponent))
        return total, float(np.ldexp(1.0, widest))

    def density(self, channel: int | None = None) -> tuple[Array, Array]:
        """Bin centres and the share of values in each bin, both (BINS,); of all channels together for None.

        The shares sum to 1. ValueError if nothing was counted.
        """
        counts, half_width = self._one(channel)
        total = counts.sum()
        if total == 0:
            raise ValueError("an empty histogram has no density")
        centres = (np.arange(BINS) + 0.5 - _HALF) * (half_width / _HALF)
        return centres.astype(np.float64), np.asarray(counts / total, dtype=np.float64)

    def range(self, channel: int | None = None) -> Range:
        """The exact range seen in a channel, or in all. ValueError if nothing was counted."""
        low = self.low.min() if channel is None else self.low[channel]
        high = self.high.max() if channel is None else self.high[channel]
        return Range(float(low), float(high))

    def mean(self, channel: int | None = None) -> float:
        """The mean of the values in a channel, or in all. ValueError if nothing was counted."""
        return self._moments(channel)[0]

    def deviation(self, channel: int | None = None) -> float:
        """The standard deviation of the values in a channel, or in all. ValueError if nothing was counted."""
        return self._moments(channel)[1]

    def _moments(self, channel: int | None) -> tuple[float, float]:
        where = slice(None) if channel is None else slice(channel, channel + 1)
        count = int(self.counts[where].sum())
        if count == 0:
            raise ValueError("an empty histogram has no moments")
        mean = float(self.sums[where].sum()) / count
        variance = max(0.0, float(self.squares[where].sum()) / count - mean**2)
        return mean, variance**0.5

    def quantile(self, q: float, channel: int | None = None) -> float:
        """The value below which a share q of the values lies, to one bin's width; exact for 0 and 1.

        ValueError for q outside [0, 1], and if nothing was counted.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"{q} is not a share")
        seen = self.range(channel)
        if q in (0, 1):
            return seen.high if q else seen.low
        counts, half_width = self._one(channel)
        edges = (np.arange(BINS + 1) - _HALF) * (half_width / _HALF)
        upto = np.concatenate([[0], np.cumsum(counts)])
        target = q * upto[-1]
        index = int(np.searchsorted(upto, target, side="left"))
        index = max(1, index)
        share = (target - upto[index - 1]) / max(1, counts[index - 1])
        value = edges[index - 1] + share * (edges[index] - edges[index - 1])
        return float(min(max(value, seen.low), seen.high))


def _merged(counts: Index, doublings: int) -> Index:
    """The counts over a range that is 2^doublings times as wide."""
    for _ in range(min(doublings, BINS.bit_length())):
        wider = np.zeros_like(counts)
        wider[_HALF // 2 : _HALF // 2 + _HALF] = counts[0::2] + counts[1::2]
        counts = wider
    return counts
