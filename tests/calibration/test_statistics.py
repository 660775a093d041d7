"""Histograms: exact, independent of order and batches, and mergeable."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from olac.calibration.histogram import BINS, Histogram
from olac.system.arrays import Array

FLOATS = st.floats(-1e6, 1e6, width=32)
ARRAYS = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(2), st.integers(1, 4)), elements=FLOATS)


def of(*parts: npt.NDArray[Any], channels: int = 2) -> Histogram:
    histogram = Histogram(channels)
    for part in parts:
        histogram.add(part)
    return histogram


def assert_same(a: Histogram, b: Histogram) -> None:
    assert np.array_equal(a.counts, b.counts)
    assert np.array_equal(a.half_widths, b.half_widths)
    assert np.array_equal(a.low, b.low) and np.array_equal(a.high, b.high)
    assert np.allclose(a.sums, b.sums) and np.allclose(a.squares, b.squares)


@given(first=ARRAYS, second=ARRAYS)
def test_order_batches_and_merging_do_not_matter(first: Array, second: Array) -> None:
    whole = of(first, second)
    assert_same(whole, of(second, first))
    assert_same(whole, of(*[row[None] for row in first], second))
    assert_same(whole, of(first).merge(of(second)))
    assert_same(whole, of(second).merge(of(first)))


@given(values=ARRAYS)
def test_against_numpy(values: Array) -> None:
    histogram = of(values)
    x = values.astype(np.float64)
    assert histogram.count == x.size
    seen = histogram.range()
    assert (seen.low, seen.high) == (x.min(), x.max())
    for channel in range(2):
        seen = histogram.range(channel)
        assert (seen.low, seen.high) == (x[:, channel].min(), x[:, channel].max())
        assert seen.magnitude < histogram.half_widths[channel]
        edges = np.linspace(-1, 1, BINS + 1) * histogram.half_widths[channel]
        assert np.array_equal(histogram.counts[channel], np.histogram(x[:, channel], edges)[0])
        assert histogram.mean(channel) == pytest.approx(x[:, channel].mean(), abs=1e-6)
    centres, masses = histogram.density()
    width = centres[1] - centres[0]
    assert len(centres) == len(masses) == BINS
    assert masses.sum() == pytest.approx(1)
    assert abs(centres @ masses - x.mean()) <= width
    assert histogram.quantile(0) == x.min() and histogram.quantile(1) == x.max()


def test_moments_and_quantiles_of_a_normal_distribution() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(1000, 4, 10))
    histogram = of(x, channels=4)
    assert histogram.mean() == pytest.approx(x.mean())
    assert histogram.deviation() == pytest.approx(x.std())
    assert histogram.deviation(1) == pytest.approx(x[:, 1].std())
    for q in (0.001, 0.25, 0.5, 0.99):
        assert histogram.quantile(q) == pytest.approx(np.quantile(x, q, method="inverted_cdf"), abs=0.05)
        assert histogram.quantile(q, 2) == pytest.approx(np.quantile(x[:, 2], q, method="inverted_cdf"), abs=0.05)


def test_channels_have_ranges_of_their_own() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, size=(100, 2, 5)) * np.array([1e-3, 1e3])[None, :, None]
    histogram = of(x)
    assert histogram.half_widths.tolist() == [2.0**-9, 2.0**10]
    assert (histogram.counts > 0).sum(axis=1).min() > 200


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 2.0, -0.5])
def test_powers_of_two_and_zero(value: float) -> None:
    histogram = of(np.full((3, 2), value))
    assert histogram.counts.sum() == 6 and histogram.range().magnitude == abs(value)
    assert_same(of(np.full((3, 2), value), np.full((1, 2), 64.0)), of(np.full((1, 2), 64.0), np.full((3, 2), value)))


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-3, 1.0, 1e3, 1e30])
def test_single_precision_is_binned_as_double(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(50, 2, 30)).astype(np.float32) * np.float32(scale)
    x[0, 0, :4] = [-1e-45, 1e-45, -1e-38, 0.0]
    x[1, 1, 0] = -7 * np.float32(scale)
    assert x.dtype == np.float32
    assert_same(of(x), of(x.astype(np.float64)))
    assert_same(of(x, x[:, ::-1]), of(x.astype(np.float64), x[:, ::-1].astype(np.float64)))


def test_from_parts_and_copies() -> None:
    histogram = of(np.random.default_rng(0).normal(size=(9, 2, 5)))
    names = ("counts", "exponents", "low", "high", "sums", "squares")
    assert_same(Histogram.of(*(getattr(histogram, name) for name in names)), histogram)
    other = histogram.copy()
    other.add(np.full((1, 2), 99.0))
    assert histogram.high.max() < 99 and other.count == histogram.count + 2


def test_errors() -> None:
    histogram = Histogram(2)
    for bad in (np.zeros(2), np.zeros((1, 3)), np.array([[np.nan, 0.0]]), np.array([[np.inf, 0.0]])):
        with pytest.raises(ValueError):
            histogram.add(bad)
    for method in (histogram.density, histogram.range, histogram.mean, lambda: histogram.quantile(0.5)):
        with pytest.raises(ValueError):
            method()
    with pytest.raises(ValueError):
        histogram.merge(Histogram(3))
    with pytest.raises(ValueError):
        of(np.zeros((1, 2))).quantile(1.5)
    with pytest.raises(ValueError):
        Histogram(0)
    histogram.add(np.zeros((0, 2)))
    assert histogram.count == 0
