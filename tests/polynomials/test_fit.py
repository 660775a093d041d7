"""Fits from histograms: optimal for their weights, measured correctly, safe in the tails and on narrow channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from olac.calibration.histogram import Histogram
from olac.ir.functions import Function, activation, channel_functions
from olac.polynomials.fit import (
    CHANNEL_RIDGE,
    FLOOR_POINTS,
    NORMAL_RIDGE,
    RIDGE,
    SQUARE,
    Fit,
    centred,
    fit,
    least_fit,
    quadratic,
)
from olac.polynomials.modes import (
    Channel,
    Compensated,
    Empirical,
    FitOptions,
    FromHistograms,
    MethodName,
    Minimax,
    Normal,
)
from olac.system.arrays import Array

RANDOM = np.random.default_rng(11)
MEANS, DEVIATIONS = np.array([0.0, -1.0, 0.5, 2.0]), np.array([1.0, 0.7, 2.0, 1.5])
VALUES: Array = MEANS[:, None] + DEVIATIONS[:, None] * RANDOM.normal(size=(500, 4, 40))
SLOPES = (0.25, -0.1, 0.0, 0.6)
ACTIVATIONS = [("relu", ()), ("gelu", ()), ("silu", ()), ("prelu", SLOPES), ("sigmoid", ())]
RELU = channel_functions("relu", (), 1)


def by(method: MethodName = "compensated", **options: Any) -> FromHistograms:
    made = FitOptions(method=method, **options).fitting
    assert not isinstance(made, Minimax)
    return made


def histogram(values: Array) -> Histogram:
    made = Histogram(values.shape[1])
    made.add(values)
    return made


HISTOGRAM = histogram(VALUES)


def value(made: Fit, x: npt.NDArray[Any], channel: int = 0) -> Array:
    return np.asarray(chebyshev.chebval(x / made.half_width, made.coefficients[channel % len(made.coefficients)]))


def of(functions: list[Function], channel: int) -> Function:
    return functions[channel % len(functions)]


def solved(points: Array, weights: Array, target: Array, half_width: float, degree: int, ridge: float) -> Array:
    """Coefficients of least sum of w (p - y)^2 + ridge |c|^2, by one dense system in the basis of the result."""
    root = np.sqrt(weights)
    rows = np.vstack(
        [chebyshev.chebvander(points / half_width, degree) * root[:, None], math.sqrt(ridge) * np.eye(degree + 1)]
    )
    return np.asarray(np.linalg.lstsq(rows, np.append(target * root, np.zeros(degree + 1)), rcond=None)[0])


def with_floor(
    centres: Array, masses: Array, low: float, high: float, floor: float, padding: float
) -> tuple[Array, Array]:
    middle, half = (low + high) / 2, (high - low) / 2
    points = np.append(centres, np.linspace(middle - padding * half, middle + padding * half, FLOOR_POINTS))
    return points, np.append((1 - floor) * masses, np.full(FLOOR_POINTS, floor / FLOOR_POINTS))


@pytest.mark.parametrize("degree", [1, 2, 3, 6, 7, 15])
@pytest.mark.parametrize(("name", "parameters"), ACTIVATIONS)
def test_fits_by_channel_are_least_squares(name: str, parameters: tuple[float, ...], degree: int) -> None:
    functions = channel_functions(name, parameters, 4)
    made = fit(functions, HISTOGRAM, by("channel", floor=2e-3, padding=1.3), degree)
    assert made.coefficients.shape == (4, degree + 1) and made.degree == degree
    exact = [of(functions, c)(VALUES[:, c]) for c in range(4)]
    lows, highs = VALUES.min(axis=(0, 2)), VALUES.max(axis=(0, 2))
    middles, halves = centred(lows, highs, degree)
    checked = 0
    for c in range(4):
        low, high = middles[c] - halves[c], middles[c] + halves[c]
        points, weights = with_floor(*HISTOGRAM.density(c), low, high, 2e-3, 1.3)
        row = solved(points, weights, of(functions, c)(points), made.half_width, degree, CHANNEL_RIDGE)
        if degree == 2 and row[1] ** 2 > 8 * abs(row[2]) * SQUARE * 0.99 * np.abs(exact[c]).max():
            continue  # it has more curvature than fits best
        checked += 1
        inside = np.linspace(lows[c], highs[c], 100)
        found, wanted = value(made, inside, c), chebyshev.chebval(inside / made.half_width, row)
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(exact[c]).max()
    assert checked == 4 or degree == 2
    assert checked or name == "sigmoid"


@pytest.mark.parametrize("degree", [1, 2, 3, 7, 15])
@pytest.mark.parametrize("method", ["empirical", "normal"])
@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "sigmoid"])
def test_one_fit_for_a_layer_is_least_squares(name: str, method: MethodName, degree: int) -> None:
    functions = channel_functions(name, (), 4)
    made = fit(functions, HISTOGRAM, by(method, floor=2e-3, padding=1.3, r=1.7), degree)
    assert made.coefficients.shape == (1, degree + 1)
    low, high = float(VALUES.min()), float(VALUES.max())
    if method == "normal":
        z = np.linspace(-8, 8, 20001)
        points, weights = VALUES.mean() + 1.7 * VALUES.std() * z, np.exp(-0.5 * z**2)
        weights /= weights.sum()
    else:
        points, weights = with_floor(*HISTOGRAM.density(None), low, high, 2e-3, 1.3)
    ridge = NORMAL_RIDGE if method == "normal" else RIDGE
    row = solved(points, weights, functions[0](points), made.half_width, degree, ridge)
    inside = np.linspace(low, high, 100)
    wanted = chebyshev.chebval(inside / made.half_width, row)
    assert np.abs(value(made, inside) - wanted).max() < 1e-4 * np.abs(wanted).max()
    middle, half = (low + high) / 2, 1.3 * (high - low) / 2
    assert made.half_width == pytest.approx(max(abs(middle - half), abs(middle + half)))


@pytest.mark.parametrize("method", ["empirical", "normal"])
def test_functions_that_differ_are_fitted_by_channel_whatever_the_method(method: MethodName) -> None:
    functions = channel_functions("prelu", SLOPES, 4)
    made = fit(functions, HISTOGRAM, by(method), 7)
    again = fit(functions, HISTOGRAM, by("channel"), 7)
    assert np.array_equal(made.coefficients, again.coefficients)
    left = np.mean(value(made, VALUES[:, 0], 0) - of(functions, 0)(VALUES[:, 0]))
    assert abs(left) < 0.05
    assert np.mean(np.abs(value(made, VALUES[:, 0], 3) - of(functions, 0)(VALUES[:, 0]))) > 0.1


@pytest.mark.parametrize("method", ["channel", "empirical", "normal", "quadratic"])
@pytest.mark.parametrize(("name", "parameters"), ACTIVATIONS)
def test_errors_are_those_of_the_values(name: str, parameters: tuple[float, ...], method: MethodName) -> None:
    functions = channel_functions(name, parameters, 4)
    padding = 1.0 if method == "quadratic" else 1.5
    made = fit(functions, HISTOGRAM, by(method, padding=1.5), 5)
    squared = size = inside = outside = 0.0
    shared = len(made.coefficients) == len(functions) == 1
    for c in range(4):
        x, function = VALUES[:, c], of(functions, c)
        squared += float(np.sum((value(made, x, c) - function(x)) ** 2))
        size += float(np.sum(function(x) ** 2))
        low, high = (VALUES.min(), VALUES.max()) if shared else (x.min(), x.max())
        middle, half = (low + high) / 2, padding * (high - low) / 2
        grid = np.linspace(middle - half, middle + half, 20001)
        error = np.abs(value(made, grid, c) - function(grid))
        within = (grid >= low) & (grid <= high)
        inside = max(inside, float(error[within].max()))
        outside = max(outside, float(error[~within].max(initial=0.0)))
        assert made.low <= grid[0] + 1e-9 and made.high >= grid[-1] - 1e-9
    assert made.rmse == pytest.approx(math.sqrt(squared / size), rel=0.01)
    assert 0.9 * inside <= made.max_error <= inside * (1 + 1e-6)
    assert 0.9 * outside <= made.outer_error <= outside * (1 + 1e-6)


def test_the_quadratic_of_leveled_resnets_is_stretched_to_the_calibrated_magnitude() -> None:
    made = fit(RELU, HISTOGRAM, by("quadratic"), 7)
    largest = np.abs(VALUES).max()
    x = np.linspace(-largest, largest, 50)
    s = largest / 2
    assert np.allclose(value(made, x), s * (0.1875 + 0.5 * (x / s) + 0.234375 * (x / s) ** 2))
    assert made.degree == 2


def test_a_fit_scales_with_its_layer() -> None:
    """ReLU of 1e-3 x is 1e-3 of ReLU: this holds for the fits, too, and their relative errors are the same."""
    methods: tuple[MethodName, ...] = ("channel", "empirical", "normal", "quadratic")
    for method in methods:
        made = [fit(RELU, histogram(VALUES * 2.0**k), by(method), 7) for k in (-12, 0, 12)]
        for one, k in zip(made, (-12, 0, 12), strict=True):
            assert one.rmse == pytest.approx(made[1].rmse, rel=1e-6), method
            assert np.allclose(one.coefficients / 2.0**k, made[1].coefficients, rtol=1e-5, atol=1e-7), method


# OLA's r -------------------------------------------------------------------------------------------------------------

STANDARD = histogram(np.random.default_rng(0).normal(size=(1000, 1, 1000)))


def absolute(made: Fit) -> float:
    """Root mean square error of ReLU under a standard normal density."""
    z = np.linspace(-8, 8, 20001)
    weights = np.exp(-0.5 * z**2)
    return math.sqrt(float(np.sum(weights * (value(made, z) - np.maximum(z, 0)) ** 2) / weights.sum()))


@pytest.mark.parametrize(("r", "bits"), [(1.0, -4.28), (2.0, -3.19)])
def test_errors_under_a_normal_density(r: float, bits: float) -> None:
    made = fit(RELU, STANDARD, by("normal", r=r), 7)
    assert made.rmse * math.sqrt(0.5) == pytest.approx(2**bits, rel=0.1)
    assert absolute(made) == pytest.approx(2**bits, rel=0.1)


def test_a_larger_r_is_safer_in_the_tails_and_worse_in_the_middle() -> None:
    made = [fit(RELU, STANDARD, by("normal", r=r), 7) for r in (1.0, 1.5, 2.0)]
    tail = np.append(np.linspace(-8, -6, 50), np.linspace(6, 8, 50))
    far = [float(np.abs(value(one, tail) - np.maximum(tail, 0)).max()) for one in made]
    assert far[0] > 2 * far[1] > 4 * far[2]
    assert made[0].rmse < made[1].rmse < made[2].rmse


def test_the_empirical_fit_is_the_best_where_the_data_are_not_normal() -> None:
    two = np.where(RANDOM.random((400, 1, 100)) < 0.5, -2.0, 3.0) + 0.3 * RANDOM.normal(size=(400, 1, 100))
    errors = {method: fit(RELU, histogram(two), by(method, r=1.0), 3).rmse for method in ("empirical", "normal")}
    assert errors["empirical"] < 0.5 * errors["normal"]


def test_channels_of_their_own_are_better_than_one_for_all() -> None:
    methods: tuple[MethodName, ...] = ("channel", "empirical", "normal")
    errors = {method: fit(RELU, HISTOGRAM, by(method), 3).rmse for method in methods}
    assert errors["channel"] < errors["empirical"] < errors["normal"]


@pytest.mark.parametrize("tolerance", [0.2, 0.05, 0.02])
def test_the_least_degree_within_the_tolerance(tolerance: float) -> None:
    found = least_fit(RELU, HISTOGRAM, Channel(), tolerance, 15)
    errors = [fit(RELU, HISTOGRAM, Channel(), d).rmse for d in range(1, 16)]
    assert found.degree == next((d for d, error in enumerate(errors, 1) if error <= tolerance), 15)


# Narrow channels -----------------------------------------------------------------------------------------------------

NARROW = [(0.0, 0.0), (3.0, 0.0), (-3.0, 0.0), (3.0, 1e-3), (2.9, 1e-6), (-1.0, 1e-2), (0.0, 1e-9), (0.0, 0.2)]


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 7, 9, 12, 15])
@pytest.mark.parametrize("name", ["relu", "gelu", "sigmoid"])
@pytest.mark.parametrize("method", ["channel", "empirical", "normal"])
def test_narrow_and_constant_channels_keep_small_coefficients(method: MethodName, name: str, degree: int) -> None:
    functions = channel_functions(name, (), 1)
    normal = RANDOM.normal(size=(100, len(NARROW), 9))
    x = np.array([m for m, _ in NARROW])[:, None] + np.array([d for _, d in NARROW])[:, None] * normal
    for values in (np.concatenate([x, 2 * normal[:, :1]], axis=1), x[:, 1:2], x[:, :1], x[:, 4:5]):
        made = fit(functions, histogram(values), by(method), degree)
        largest = max(float(np.abs(functions[0](values)).max()), 1e-6)
        assert np.isfinite(made.coefficients).all()
        assert np.abs(made.coefficients).max() <= 1e4 * largest
        if method == "channel" and degree != 2:
            assert made.rmse < 0.7 or largest == 1e-6
        assert math.isfinite(made.rmse) and math.isfinite(made.outer_error)


@pytest.mark.parametrize("constant", [0.7, -0.7, 12.0, 1e-3])
@pytest.mark.parametrize("degree", [2, 7, 15])
def test_a_constant_channel_gets_its_value(constant: float, degree: int) -> None:
    made = fit(channel_functions("sigmoid", (), 1), histogram(np.full((10, 1, 4), constant)), by(), degree)
    assert value(made, np.array([constant]))[0] == pytest.approx(1 / (1 + math.exp(-constant)), rel=0.02)


# Quadratics ----------------------------------------------------------------------------------------------------------


def moments(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[Array, Array]:
    basis = chebyshev.chebvander(x, 2)
    return basis.T @ basis / len(x), basis.T @ y / len(x)


@settings(max_examples=300, deadline=None)
@given(
    st.floats(-0.9, 0.9), st.floats(0.02, 0.5), st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 99)
)
def test_quadratics_keep_the_bound_of_their_square(
    middle: float, width: float, constant: float, slope: float, curvature: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = np.clip(middle + width * random.normal(size=60), -1, 1)
    y = constant + slope * x + curvature * x**2 + 0.1 * random.normal(size=60)
    second, first = moments(x, y)
    largest = float(np.abs(y).max())
    found = quadratic(second + 1e-6 * np.eye(3), first, largest)
    assert np.isfinite(found).all() and found[2] != 0
    assert found[1] ** 2 / (8 * abs(found[2])) <= SQUARE * largest * (1 + 1e-6)
    plain = np.linalg.solve(second + 1e-6 * np.eye(3), first)
    if plain[1] ** 2 / (8 * abs(plain[2])) < 0.999 * SQUARE * largest and abs(plain[2]) > 1e-8 * largest:
        assert np.allclose(found, plain)


@pytest.mark.parametrize(("slope", "constant"), [(3.0, 1.0), (-2.0, 0.0), (1.0, -0.5), (0.3, 4.0)])
def test_a_line_gets_the_least_bend_that_folds(slope: float, constant: float) -> None:
    """Near the best of all quadratics within the bound, which is found by trying them."""
    x = np.linspace(-1, 1, 201)
    y = constant + slope * x + 0.01 * x**2
    second, first = moments(x, y)
    largest = float(np.abs(y).max())

    def mean_square(c: Array) -> float:
        return float(np.mean((chebyshev.chebval(x, c) - y) ** 2))

    best = math.inf
    for c1 in np.linspace(0.5 * slope, 1.1 * slope, 241):
        least = c1**2 / (8 * SQUARE * largest)
        for c2 in (0.005, least, -least, 1.02 * least):
            if abs(c2) >= least:
                c0 = float(np.mean(y - chebyshev.chebval(x, [0.0, c1, c2])))
                best = min(best, mean_square(np.array([c0, c1, c2])))
    assert mean_square(quadratic(second, first, largest)) <= 1.05 * best + 1e-9


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0, 6.0, -6.0])
def test_channels_of_degree_two_keep_the_bound(mean: float) -> None:
    """A channel far from ReLU's corner is nearly linear, and its quadratic still folds."""
    values = mean + RANDOM.normal(size=(200, 1, 20))
    made = fit(RELU, histogram(values), by("channel"), 2)
    _, c1, c2 = made.coefficients[0]
    largest = max(float(np.maximum(values, 0).max()), 1e-6)
    assert c1**2 / (8 * abs(c2)) <= SQUARE * largest * (1 + 1e-5)
    assert made.rmse < 0.5 or mean < 0


@pytest.mark.parametrize("method", [Empirical(), Normal(), Compensated()], ids=lambda m: type(m).__name__)
def test_functions_need_no_values_where_nothing_was_seen(method: FromHistograms) -> None:
    """Bins of a histogram lie on both sides of 0; the logarithm is not defined on one of them."""
    histogram = Histogram(1)
    histogram.add(np.full((9, 1), 1.0))
    made = fit([activation("log")], histogram, method, 3)
    assert np.isfinite(made.coefficients).all()
    assert abs(float(np.polynomial.chebyshev.chebval(1.0 / made.half_width, made.coefficients[0]))) < 0.1
