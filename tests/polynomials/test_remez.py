from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import chebyshev
from scipy.optimize import linprog

from olac.polynomials.remez import approximate_sign

Intervals = list[tuple[float, float]]

DOMAINS: list[tuple[int, Intervals]] = [
    (1, [(0.5, 1.0)]),
    (3, [(0.1, 1.0)]),
    (5, [(0.3, 2.0)]),
    (7, [(0.02, 1.0)]),
    (13, [(0.2, 1.0)]),
    (15, [(1e-3, 1.0)]),
    (27, [(0.1, 1.9)]),
    (31, [(1e-4, 1.0)]),
    (31, [(0.4, 1.6)]),
    (5, [(0.1, 0.2), (0.7, 1.0)]),
    (9, [(0.05, 0.3), (0.31, 0.4), (0.9, 1.5)]),
]


def dense(intervals: Intervals, count: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate([(a + b) / 2 - (b - a) / 2 * np.cos(np.linspace(0, np.pi, count)) for a, b in intervals])


@pytest.mark.parametrize(("degree", "intervals"), DOMAINS)
def test_the_error_equioscillates(degree: int, intervals: Intervals) -> None:
    """With n coefficients the error takes its largest size n + 1 times, with alternating signs."""
    coefficients, error = approximate_sign(degree, intervals)
    assert coefficients.shape == (degree + 1,)
    assert not coefficients[0::2].any()
    x = dense(intervals, 20001)
    errors = chebyshev.chebval(x / intervals[-1][1], coefficients) - 1
    assert np.max(np.abs(errors)) == pytest.approx(error, rel=1e-6, abs=1e-13)
    # Runs of one sign among the points where the error is nearly the largest.
    signs = np.sign(errors[np.abs(errors) > (1 - 1e-4) * error])
    assert 1 + np.count_nonzero(np.diff(signs)) >= (degree + 1) // 2 + 1


@pytest.mark.parametrize(("degree", "intervals"), [case for case in DOMAINS if case[0] <= 13])
def test_no_polynomial_is_better_by_linear_programming(degree: int, intervals: Intervals) -> None:
    x = dense(intervals, 800)
    basis = chebyshev.chebvander(x / intervals[-1][1], degree)[:, 1::2]
    ones = np.ones((len(x), 1))
    found = linprog(
        [0.0] * basis.shape[1] + [1.0],
        A_ub=np.block([[basis, -ones], [-basis, -ones]]),
        b_ub=np.concatenate([ones[:, 0], -ones[:, 0]]),
        bounds=[(None, None)] * basis.shape[1] + [(0, None)],
    )
    coefficients, error = approximate_sign(degree, intervals)
    # The program sees grid points only, so its optimum is a little below the true one.
    assert found.fun <= error * (1 + 1e-7)
    assert error == pytest.approx(found.fun, rel=1e-3)
    assert np.allclose(coefficients[1::2], found.x[:-1], atol=3e-2 * np.abs(coefficients).max())


def test_the_order_of_the_intervals_and_a_common_factor_do_not_matter() -> None:
    coefficients, error = approximate_sign(7, [(0.1, 0.3), (0.5, 1.0)])
    again, same = approximate_sign(7, [(5.0, 10.0), (1.0, 3.0)])
    assert np.allclose(coefficients, again)
    assert error == pytest.approx(same)


@pytest.mark.parametrize(
    ("degree", "intervals"),
    [
        (4, [(0.1, 1.0)]),
        (-1, [(0.1, 1.0)]),
        (3, []),
        (3, [(0.0, 1.0)]),
        (3, [(0.5, 0.5)]),
        (3, [(0.1, 0.6), (0.5, 1.0)]),
    ],
)
def test_other_degrees_and_intervals_are_refused(degree: int, intervals: Intervals) -> None:
    with pytest.raises(ValueError, match=r"degree|intervals"):
        approximate_sign(degree, intervals)
