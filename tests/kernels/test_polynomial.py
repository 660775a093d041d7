from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.errors import VerificationError
from olac.ir.layout import TensorLayout
from olac.kernels.polynomial import PolynomialKernel, PolynomialProductKernel, divide


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


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_shifted_copies_cost_no_level(data: st.DataObject) -> None:
    degree, spare = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 2))
    technique = data.draw(st.sampled_from([FIXED, FLEXIBLE]))
    random = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    depth = math.ceil(math.log2(degree + 1))
    parameters = Parameters(10, depth + spare, 35, 41, 1, technique, security=0)
    plain = TensorLayout.multiplexed((3, 2, 5), (4, 10), 2, 512)
    layout = plain.with_step(1 << data.draw(st.integers(0, 5)))
    coefficients = random.normal(size=(3 if data.draw(st.booleans()) else 1, degree + 1))
    coefficients *= random.random(degree + 1) < 0.7
    coefficients[:, -1] = 1.0
    x = random.uniform(-1, 1, size=(1, 3, 2, 5))
    evaluator = SimulatorEvaluator(parameters)
    kernel = PolynomialKernel(coefficients, layout)
    (result,) = kernel.run(evaluator, [tuple(evaluator.encrypt(page, depth + spare) for page in plain.pack(x))])
    c = np.broadcast_to(coefficients, (3, degree + 1)).T[:, :, None, None]
    expected = chebyshev.chebval(x[0], c, tensor=False)[None]
    assert result.state.level == spare
    assert math.isclose(result.state.scale, parameters.scale(spare), rel_tol=1e-12)
    assert np.allclose(evaluator.decrypt(result), layout.pack(expected)[0], atol=1e-7)


def test_a_cubic_is_relinearised_once_for_all_its_copies() -> None:
    recorder = RecorderEvaluator(Parameters(10, 3, 35, 41, 1, security=0))
    layout = TensorLayout.dense((64,), 512).with_step(8)
    PolynomialKernel(np.ones((1, 4)), layout).run(recorder, [(recorder.fresh(3),)])
    count = Counter(event.primitive for event in recorder.events)
    assert (count["multiply_no_relin"], count["relinearize"], count["multiply"]) == (8, 1, 1)
    assert (count["hoist"], count["hoisted_rotate"]) == (2, 14)
    assert recorder.rotations == tuple(range(8, 64, 8))


@pytest.mark.parametrize(("degree", "drops"), [(1, 0), (3, 1), (7, 3), (5, 3), (15, 6)])
@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
def test_powers_are_dropped_once_to_each_level(degree: int, drops: int, technique: str) -> None:
    recorder = RecorderEvaluator(Parameters(10, 4, 35, 41, 1, technique, security=0))
    layout = TensorLayout.dense((64,), 512)
    PolynomialKernel(np.arange(1, degree + 2, dtype=np.float64)[None], layout).run(recorder, [(recorder.fresh(4),)])
    assert sum(event.primitive == "drop" for event in recorder.events) == drops


@pytest.mark.parametrize(("degree", "drops", "rotated"), [(3, 0, 2), (5, 1, 2), (7, 1, 3), (15, 3, 4)])
def test_shifted_copies_drop_and_rotate_only_what_takes_all_levels(degree: int, drops: int, rotated: int) -> None:
    recorder = RecorderEvaluator(Parameters(10, 4, 35, 41, 1, security=0))
    layout = TensorLayout.dense((64,), 512).with_step(8)
    PolynomialKernel(np.arange(1, degree + 2, dtype=np.float64)[None], layout).run(recorder, [(recorder.fresh(4),)])
    count = Counter(event.primitive for event in recorder.events)
    assert count["drop"] == drops
    assert (count["hoist"], count["hoisted_rotate"]) == (rotated, 7 * rotated)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 31),
    st.booleans(),
    st.booleans(),
    st.sampled_from([FIXED, FLEXIBLE]),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.integers(0, 2**31),
)
def test_products_with_every_degree(
    degree: int, odd: bool, per_channel: bool, technique: str, spare: tuple[int, int], seed: int
) -> None:
    """x p(z) gets the canonical scale, whatever the levels of x and z, and although x's scale has drifted."""
    random = np.random.default_rng(seed)
    coefficients = random.normal(size=(3 if per_channel else 1, degree + 1))
    if odd:
        coefficients[:, 0::2] = 0
    true_degree = int(np.flatnonzero(coefficients.any(axis=0)).max(initial=0))
    depth = max(1, math.ceil(math.log2(true_degree + 1))) + 1
    parameters = Parameters(10, depth + max(spare) + 1, 35, 41, 1, technique, security=0)
    layout = TensorLayout.multiplexed((3, 2, 5), (4, 10), 2, 512)
    x, z = random.uniform(-1, 1, size=(2, 1, 3, 2, 5))
    evaluator = SimulatorEvaluator(parameters)
    kernel = PolynomialProductKernel(coefficients, layout)
    root = [evaluator.encrypt(page, depth + spare[0] + 1) for page in layout.pack(x)]
    drifted = [evaluator.rescale(evaluator.multiply(part, part)) for part in root]
    second = [evaluator.encrypt(page, depth + spare[1]) for page in layout.pack(z)]
    (result,) = kernel.run(evaluator, [tuple(drifted), tuple(second)])
    c = np.broadcast_to(coefficients, (3, degree + 1)).T[:, :, None, None]
    expected = x**2 * chebyshev.chebval(z[0], c, tensor=False)[None]
    assert kernel.depth == depth
    assert result.state.level == min(spare)
    assert result.state.noise_degree == 1
    assert math.isclose(result.state.scale, parameters.scale(min(spare)), rel_tol=1e-12)
    assert np.allclose(evaluator.decrypt(result), layout.pack(expected)[0], atol=1e-7)


def test_a_product_beyond_the_last_level_is_refused() -> None:
    recorder = RecorderEvaluator(Parameters(10, 2, 35, 41, 1, security=0))
    kernel = PolynomialProductKernel(np.ones((1, 4)), TensorLayout.dense((4,), 512))
    with pytest.raises(VerificationError, match="takes 3 levels, 2 are left"):
        kernel.run(recorder, [(recorder.fresh(2),), (recorder.fresh(2),)])


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
