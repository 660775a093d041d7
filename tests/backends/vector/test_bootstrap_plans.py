"""What a bootstrap of the vector engine is made of, in numpy: its transforms and its sine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from olac.backends.vector.arithmetic import MOST_BITS
from olac.backends.vector.bootstrap.sine import (
    DOUBLINGS,
    RANGE,
    SQUARES,
    Combination,
    chebyshev,
    half_width,
    plan_sine,
)
from olac.backends.vector.bootstrap.transforms import ChooseBabies, transform
from olac.ckks.bootstrap_failure import MOST_FAILURE_BITS, failure_bits
from olac.ckks.bootstrapping import BOOTSTRAP_NOISE, Layer, bootstrap_model, layers
from olac.ckks.parameters import ENCAPSULATION_WEIGHT, RECIPES, VECTOR_RECIPE, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.vector_bootstrapping import baby_steps
from olac.ir.ops import scaled_sine

Array = npt.NDArray[np.float64]


def matrix(log_slots: int) -> npt.NDArray[np.complex128]:
    """U, and with its columns in bit-reversed order."""
    n = 1 << log_slots
    order = 4 * n
    exponents = np.array([pow(5, k, order) for k in range(n)])
    columns = [int(format(j, f"0{log_slots}b")[::-1], 2) for j in range(n)]
    return np.asarray(np.exp(2j * np.pi / order * (exponents[:, None] * columns % order)))


def most_babies(layer: Layer, diagonals: int, raised: bool) -> int:
    return min(layer.giant, 1 << (diagonals - 1).bit_length())


def few_babies(layer: Layer, diagonals: int, raised: bool) -> int:
    return max(1, layer.giant // 4)


@pytest.mark.parametrize("babies", [baby_steps, most_babies, few_babies])
@pytest.mark.parametrize("rotated", [0, 1, 5])
@pytest.mark.parametrize(("log_slots", "budget"), [(1, 1), (2, 2), (5, 1), (5, 2), (6, 3), (7, 4), (8, 5), (9, 4)])
def test_the_levels_are_the_transform_of_a_rotated_operand(
    log_slots: int, budget: int, rotated: int, babies: ChooseBabies
) -> None:
    n, whole = 1 << log_slots, matrix(log_slots)
    rng = np.random.default_rng(log_slots)
    coefficients = rng.normal(size=n) + 1j * rng.normal(size=n)
    slots = whole @ coefficients
    for inverse, given, wanted in ((True, coefficients, slots), (False, slots, coefficients)):
        made, after = transform(log_slots, budget, inverse, rotated, babies)
        values = np.roll(given, -rotated)
        for level in made:
            values = level.apply(values)
        np.testing.assert_allclose(np.roll(values, after), wanted, atol=1e-10 * np.abs(wanted).max())
        assert after == (rotated - 1) % n  # so that both ways and a rotation by 2 between them end where they began
        assert len(made) == budget


@pytest.mark.parametrize("babies", [baby_steps, most_babies, few_babies])
@pytest.mark.parametrize(("log_slots", "budget"), [(5, 1), (8, 2), (9, 3), (10, 4), (11, 5)])
def test_levels_take_no_key_and_no_plaintext_that_is_not_planned_for(
    log_slots: int, budget: int, babies: ChooseBabies
) -> None:
    for inverse in (True, False):
        planned = sorted(layers(log_slots, budget, inverse), key=lambda layer: layer.stride, reverse=not inverse)
        made, _ = transform(log_slots, budget, inverse, babies=babies)
        for level, layer in zip(made, planned, strict=True):
            assert level.stride == layer.stride
            assert level.steps <= layer.steps(1 << log_slots)
            assert level.diagonals <= layer.diagonals
            assert all(one is None or one.shape == (1 << log_slots,) for block in level.blocks for one in block)
        top = max(made, key=lambda level: level.stride)  # both directions reach each slot: half of the diagonals
        assert top.diagonals == (1 << log_slots) // top.stride


def chain(scale: int, correction: int = 4, log_ring: int = 16, rest: int = 9) -> Parameters:
    setup = Bootstrapping(rest, (4, 3), correction)
    return Parameters(log_ring, setup.depth, scale, scale + min(4, correction), 2, FLEXIBLE, 0, setup)


CHAINS = [
    *(chain(37), chain(36), chain(40), chain(40, 8), chain(45), chain(49), chain(37, 1), chain(37, 12)),
    chain(30, 4, 10, 2),
]


def compute(parameters: Parameters, angles: Array, noise: float, seed: int) -> Array:
    """The plan on slots of t / q_0, each rescale with noise of a standard deviation."""
    setup = parameters.bootstrapping
    assert setup is not None
    plan = plan_sine(parameters)
    rng = np.random.default_rng(seed)

    def combine(one: Combination, values: Mapping[int, Array]) -> Array:
        total: Array = np.full(len(angles), float(one.constant))
        for a, b in one.products:
            total = total + one.factor * values[a] * values[b]
        for value, factor in one.terms:
            total = total + factor * values[value]
        return total / parameters.primes[one.level + 1] + rng.normal(0.0, noise, len(angles))

    operand = (angles - 0.25) / half_width() * parameters.scale(plan.level)
    return plan.run(operand, combine) / parameters.scale(setup.output_level)


@pytest.mark.parametrize("parameters", CHAINS)
def test_the_plan_is_the_scaled_sine_of_every_period(parameters: Parameters) -> None:
    setup, plan = parameters.bootstrapping, plan_sine(parameters)
    assert setup is not None
    values = np.asarray(np.linspace(-1.0, 1.0, 201), dtype=np.float64)
    worst = 0.0
    for period in range(-RANGE + 1, RANGE):
        made = compute(parameters, values / 2.0**setup.correction + period, 0.0, 0)
        worst = max(worst, float(np.abs(made - scaled_sine(values, setup.correction)).max()))
    assert worst <= plan.error + 2.0 ** (10 - parameters.scale_bits + setup.correction)
    assert worst >= plan.error / 50  # the bound is one, and not a number that nothing depends on


@pytest.mark.parametrize("parameters", CHAINS)
def test_the_plan_keeps_levels_and_scales(parameters: Parameters) -> None:
    setup, plan = parameters.bootstrapping, plan_sine(parameters)
    assert setup is not None
    assert plan.levels == SQUARES + DOUBLINGS == RECIPES[VECTOR_RECIPE].sine
    assert plan.level <= parameters.depth - setup.budget[0]
    last = plan.combinations[-1]
    gain = 2.0**setup.correction / (2 * np.pi)
    assert last.level == setup.output_level
    assert last.scale == pytest.approx(gain * parameters.scale(setup.output_level), rel=1e-12)
    states = [(plan.level, parameters.scale(plan.level))]
    for one in plan.combinations:
        whole = one.scale * parameters.primes[one.level + 1]
        for a, b in one.products:
            assert one.factor in (1, 2)
            assert min(states[a][0], states[b][0]) > one.level
            assert states[a][1] * states[b][1] == pytest.approx(whole, rel=1e-12)
        assert all(states[value][0] > one.level for value, _ in one.terms)
        assert all(abs(factor) < 2**63 for _, factor in one.terms)
        states.append((one.level, one.scale))
    used = {
        value for one in plan.combinations for pair in (*one.products, *((v,) for v, _ in one.terms)) for value in pair
    }
    assert used == set(range(len(plan.combinations)))  # nothing is computed in vain


def test_values_are_let_go_as_soon_as_nothing_needs_them() -> None:
    plan = plan_sine(chain(37))
    held = []

    def combine(one: Combination, values: Mapping[int, int]) -> int:
        held.append(len(values))
        return 0

    plan.run(0, combine)
    assert max(held) <= len(plan.combinations) - 4


def test_the_error_is_small_beside_the_noise() -> None:
    for (scale, first), noise in BOOTSTRAP_NOISE.items():
        setup = Bootstrapping(9, (4, 3), first - scale)
        parameters = Parameters(16, setup.depth, scale, first, 2, FLEXIBLE, 0, setup)
        if first <= MOST_BITS:  # or the engine does not take it
            assert plan_sine(parameters).error < noise / 20
    usual = plan_sine(chain(37))
    assert usual.levels == 8 and usual.relinearisations == 9 and usual.error < 2e-6


def test_no_smaller_range_fails_seldom_enough() -> None:
    failures = [failure_bits(ENCAPSULATION_WEIGHT, most, 1 << 17) for most in (RANGE, RANGE - 1)]
    assert failures[0] <= MOST_FAILURE_BITS < failures[1]


def test_noise_of_rescales_grows_as_the_sine_does() -> None:
    """A rescale at ring 2^16 leaves 4 sqrt(N / 2) in the real part of a slot, for a secret of weight 192."""
    parameters, rng = chain(37), np.random.default_rng(7)
    values: Array = rng.uniform(-1, 1, 4096)
    periods: Array = np.rint(rng.normal(0, 1.66, 4096))
    made = compute(parameters, values / 16 + periods, 4.0 * 2.0**7.5, 3)
    error = np.sqrt(np.mean((made - scaled_sine(values, 4)) ** 2))
    assert 1e-6 < error < BOOTSTRAP_NOISE[37, 41] / 4


@pytest.mark.parametrize("degree", [3, 10, 14, 20, 40])
def test_coefficients_are_those_of_the_cosine(degree: int) -> None:
    coefficients, bound = chebyshev(degree)
    u = np.linspace(-1, 1, 4001)
    made = np.polynomial.chebyshev.chebval(2 * u**2 - 1, coefficients)
    worst = np.abs(made - np.cos(2 * np.pi * half_width() * u / 8)).max()
    assert bound / 4 - 1e-13 < worst <= bound + 1e-12


def test_no_more_is_asked_for_than_is_planned() -> None:
    """The same program file has the keys."""
    for budget, log_slots in (((3, 3), None), ((4, 3), 6), ((1, 2), 5), ((5, 5), 7), ((2, 4), 8)):
        setup = Bootstrapping(2, budget, log_slots=log_slots)
        parameters = Parameters(10, setup.depth, 41, 49, 3, FLEXIBLE, 0, setup)
        planned = bootstrap_model(parameters).steps
        for levels, inverse in zip(budget, (False, True), strict=True):
            made, _ = transform(parameters.log_bootstrap_slots, levels, inverse)
            assert frozenset().union(*(level.steps for level in made)) <= planned
        assert 2 % (1 << parameters.log_bootstrap_slots) in planned | {0}
