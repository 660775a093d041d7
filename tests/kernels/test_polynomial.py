from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ir.layout import TensorLayout
from olac.kernels.polynomial import PolynomialKernel, divide
from olac.parameters import FIXED, FLEXIBLE, Parameters


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.booleans(), st.sampled_from([FIXED, FLEXIBLE]), st.integers(0, 2), st.integers(0, 2**31))
def test_every_degree_at_minimal_depth(degree: int, per_channel: bool, technique: str, spare: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    depth = math.ceil(math.log2(degree + 1))
    parameters = Parameters(10, depth + spare, 35, 41, 1, technique, security=0)
    layout = TensorLayout.multiplexed((3, 2, 5), (4, 10), 2, 512)
    coefficients = random.normal(size=(3 if per_channel else 1, degree + 1))
    x = random.uniform(-1, 1, size=(1, 3, 2, 5))
    evaluator = SimulatorEvaluator(parameters)
    kernel = PolynomialKernel(coefficients, layout)
    (result,) = kernel.run(evaluator, [tuple(evaluator.encrypt(page, depth + spare) for page in layout.pack(x))])
    c = np.broadcast_to(coefficients, (3, degree + 1)).T[:, :, None, None]
    expected = chebyshev.chebval(x[0], c, tensor=False)[None]
    assert kernel.depth == depth
    assert result.state.level == spare
    assert math.isclose(result.state.scale, parameters.scale(spare), rel_tol=1e-12)
    # All slots: those that hold no element stay zero although p(0) is not.
    assert np.allclose(evaluator.decrypt(result), layout.pack(expected)[0], atol=1e-7)


@given(st.integers(1, 5), st.data())
def test_division_by_a_chebyshev_polynomial(log_n: int, data: st.DataObject) -> None:
    n = 1 << log_n
    degree = data.draw(st.integers(n, 2 * n - 1))
    p = np.random.default_rng(degree).normal(size=degree + 1)
    quotient, remainder = divide(p, n)
    t_n = np.eye(n + 1)[n]
    back = chebyshev.chebadd(chebyshev.chebmul(quotient, t_n), remainder)
    assert len(remainder) == n
    assert np.allclose(chebyshev.chebsub(back, p), 0)


@pytest.mark.parametrize(("degree", "products"), [(1, 0), (2, 1), (3, 2), (5, 4), (7, 5), (15, 10)])
def test_products_of_ciphertexts(degree: int, products: int) -> None:
    parameters = Parameters(10, 5, 35, 41, 1, security=0)
    recorder = RecorderEvaluator(parameters)
    layout = TensorLayout.dense((512,), 512)
    random = np.random.default_rng(0)
    PolynomialKernel(random.normal(size=(1, degree + 1)), layout).run(recorder, [(recorder.fresh(5),)])
    assert sum(event.primitive == "multiply" for event in recorder.events) == products


def test_a_leading_zero_costs_no_level() -> None:
    layout = TensorLayout.dense((4,), 512)
    assert PolynomialKernel(np.array([[1.0, 2.0, 3.0, 0.0, 0.0]]), layout).depth == 2
