"""What bootstraps take, before any is made: OpenFHE's rotation steps, and memory."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from olac.backends.cost import CostEvaluator
from olac.backends.openfhe.context import Prepared, make_context, set_up_bootstrapping
from olac.backends.openfhe.library import load
from olac.ckks.bootstrapping import (
    BOOTSTRAP_NOISE,
    SINE_PRODUCTS,
    SPECIAL_KEYS,
    BootstrapModel,
    bootstrap_model,
    layers,
    trace_steps,
)
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import BackendError


def parameters_of(log_ring: int, budget: tuple[int, int], rest: int = 2, log_slots: int | None = None) -> Parameters:
    setup = Bootstrapping(rest, budget, log_slots=log_slots)
    return Parameters(log_ring, setup.depth, 41, 49, 3, FLEXIBLE, 0, setup)


def test_without_bootstrapping_the_model_is_empty() -> None:
    plain = bootstrap_model(Parameters(11, 18, 40, 47, 1, FLEXIBLE, 0))
    assert plain == BootstrapModel() and plain.keys_for([1, 1024]) == {1, 1024} and plain.keeps_plaintexts
    assert not any(getattr(plain, one.name) for one in fields(plain) if one.name != "keeps_plaintexts")


# Chains that no other test has, and different depths: otherwise OpenFHE would give one context for two set-ups.
BUDGETS = [(10, (3, 3), 2), (10, (2, 2), 2), (10, (4, 3), 3), (10, (1, 2), 4), (10, (5, 5), 4), (11, (3, 3), 2)]


# The same on a part of the slots, whose periods 1 to 9 rotations sum.
SPARSE = [
    (10, (3, 3), 6, 8),
    (10, (2, 2), 7, 7),
    (10, (4, 3), 6, 6),
    (10, (1, 2), 12, 5),
    (10, (5, 5), 6, 5),
    (11, (3, 3), 6, 4),
    (11, (3, 3), 7, 3),
    (12, (4, 3), 6, 10),
]


@pytest.mark.parametrize(
    ("log_ring", "budget", "rest", "log_slots"),
    [*((*one, None) for one in (*BUDGETS, (11, (4, 4), 2), (11, (2, 4), 3), (12, (3, 3), 2))), *SPARSE],
)
def test_steps_are_those_that_openfhe_makes_keys_for(
    log_ring: int, budget: tuple[int, int], rest: int, log_slots: int | None
) -> None:
    parameters = parameters_of(log_ring, budget, rest, log_slots)
    fhe: Any = load()
    context = make_context(parameters)
    set_up_bootstrapping(context, parameters, precompute=False)
    key = context.KeyGen().secretKey
    context.EvalBootstrapKeyGen(key, 1 << parameters.log_bootstrap_slots)
    held = set(fhe.CryptoContext.GetExistingEvalAutomorphismKeyIndices(key.GetKeyTag()))
    order = 2 * parameters.ring_dimension
    expected = {pow(5, step, order) for step in bootstrap_model(parameters).steps}
    assert held - expected == {order - 4, order - 2, order - 1}
    assert len(held - expected) == SPECIAL_KEYS
    assert expected <= held


@pytest.mark.parametrize("budget", [(3, 3), (2, 2), (4, 3), (1, 2), (5, 5)])
@pytest.mark.parametrize("log_slots", [9, 10, 14, 15])
def test_layers_hold_the_whole_transform(log_slots: int, budget: tuple[int, int]) -> None:
    for levels, inverse in zip(budget, (False, True), strict=True):
        made = layers(log_slots, levels, inverse)
        assert len(made) == levels
        assert sum((layer.diagonals + 1).bit_length() - 2 for layer in made) == log_slots
        assert len({layer.stride for layer in made}) == levels


def test_precomputed_bytes_are_about_what_was_measured() -> None:
    """At ring 2^16 and 2^14: gigabytes by which a process grew."""
    for log_ring, depth, scale, first, measured in (
        (16, 24, 50, 58, 4.2),
        (16, 26, 40, 47, 4.3),
        (14, 24, 50, 58, 0.8),
    ):
        parameters = Parameters(log_ring, depth, scale, first, 3, FLEXIBLE, 0, Bootstrapping(depth - 16))
        assert bootstrap_model(parameters).precomputed_bytes / 1e9 == pytest.approx(measured, rel=0.1)
    for setup, measured in (
        (Bootstrapping(4, (3, 3), 4, 12), 1.80),
        (Bootstrapping(3, (4, 3), 4, 13), 2.19),
    ):
        parameters = Parameters(16, setup.depth, 37, 41, 2, FLEXIBLE, 0, setup)
        assert bootstrap_model(parameters).precomputed_bytes / 1e9 == pytest.approx(measured, rel=0.05)
    by_hand = parameters_of(10, (1, 1))
    limbs, special = by_hand.limbs, len(by_hand.special_primes)
    diagonals = 2**10 - 1
    expected = diagonals * ((limbs + special) + (by_hand.bootstrapping.input_level + 1 + special)) * 1024 * 8  # type: ignore[union-attr]
    assert bootstrap_model(by_hand).precomputed_bytes == expected


@pytest.mark.parametrize("budget", [(3, 3), (4, 2), (1, 5)])
def test_what_is_counted_is_what_is_kept(budget: tuple[int, int]) -> None:
    """The products with plaintexts are those that memory is planned for, each at the level of its layer."""
    parameters = parameters_of(11, budget, 4)
    setup, special = parameters.bootstrapping, len(parameters.special_primes)
    assert setup is not None
    work = bootstrap_model(parameters).work
    products = [(level, times) for name, level, times in work if name == "multiply_plain"]
    limbs = sum(times * (level + 1) for level, times in products)
    assert bootstrap_model(parameters).precomputed_bytes == limbs * 8 * parameters.ring_dimension
    levels = [level - special for level, _ in products]
    assert levels[: budget[1]] == list(range(setup.input_level, 1, -1))
    assert levels[budget[1] :] == list(range(parameters.depth, parameters.depth - budget[0], -1))
    assert sum(times for name, _, times in work if name == "multiply") == SINE_PRODUCTS
    assert min(level for name, level, _ in work if name == "multiply") == setup.rest + budget[1] + 1


def test_the_sum_over_all_periods() -> None:
    assert trace_steps(parameters_of(10, (3, 3))) == ()
    assert trace_steps(parameters_of(10, (3, 3), log_slots=8)) == ((256,),)
    part = parameters_of(11, (3, 3), log_slots=7)
    assert trace_steps(part) == ((128, 256, 384), (512,))
    whole = parameters_of(11, (3, 3))
    for parameters in (part, parameters_of(11, (3, 3), log_slots=4)):  # a term for every period, once
        sums = {0}
        for steps in trace_steps(parameters):
            sums = {one + step for one in sums for step in (0, *steps)}
        assert sums == set(range(0, parameters.slots, 1 << parameters.log_bootstrap_slots))
        rotations = [n for name, level, n in bootstrap_model(parameters).work if name == "hoisted_rotate"]
        assert rotations == [len(steps) for steps in trace_steps(parameters)]
        assert bootstrap_model(parameters).precomputed_bytes < bootstrap_model(whole).precomputed_bytes
        assert bootstrap_model(parameters).working_bytes <= bootstrap_model(whole).working_bytes
        assert bootstrap_model(parameters).noise == bootstrap_model(whole).noise


MEASURED = [
    # rest, budget, digits, bits of the scale and of q_0, of slots; CPU seconds on one thread of the shipped table's
    # machine
    (8, (3, 3), 2, 40, 47, None, 17.2),
    (7, (4, 3), 2, 40, 47, None, 14.4),
    (6, (4, 4), 2, 40, 47, None, 13.8),
    (4, (3, 3), 2, 40, 47, None, 15.8),
    (10, (4, 3), 4, 40, 47, None, 19.4),
    (4, (5, 3), 2, 40, 46, None, 14.0),
    (6, (3, 3), 2, 38, 45, None, 15.5),
    (5, (3, 3), 3, 42, 50, None, 14.5),
    (4, (3, 3), 3, 45, 53, None, 14.7),
    (3, (3, 3), 3, 50, 58, None, 15.2),
    (4, (3, 3), 2, 37, 41, 12, 11.2),
    (3, (4, 3), 2, 37, 41, 13, 12.5),
]


@pytest.mark.parametrize(("rest", "budget", "digits", "scale", "first", "log_slots", "measured"), MEASURED)
def test_bootstraps_at_full_security_are_priced_about_as_measured(
    rest: int, budget: tuple[int, int], digits: int, scale: int, first: int, log_slots: int | None, measured: float
) -> None:
    setup = Bootstrapping(rest, budget, first - scale, log_slots)
    parameters = Parameters(16, setup.depth, scale, first, digits, FLEXIBLE, 128, setup)
    parameters.check_security()
    price = CostEvaluator(parameters, CostTable.default(), 1).price("bootstrap", setup.input_level)
    assert price == pytest.approx(measured, rel=0.12)


def test_the_noise_of_a_bootstrap() -> None:
    """The noise of the measured set-ups; other set-ups get that of the nearest, doubled for each further bit of
    correction.
    """
    usual, finer, between, corrected = (
        bootstrap_model(Parameters(16, 20, scale, first, 3, FLEXIBLE, 0, Bootstrapping(4, (3, 3), correction))).noise
        for scale, first, correction in ((37, 41, 4), (45, 53, 8), (39, 43, 4), (37, 41, 5))
    )
    assert usual == BOOTSTRAP_NOISE[37, 41] > 10 * finer
    assert between == usual
    assert corrected == 2 * usual


def test_working_bytes_are_about_what_was_measured() -> None:
    """Ring 2^13, 24 levels, 2 digits: a process grew by 87.7 MB in its first bootstrap."""
    parameters = Parameters(13, 24, 40, 47, 2, FLEXIBLE, 0, Bootstrapping(8))
    assert bootstrap_model(parameters).working_bytes == pytest.approx(87.7e6, rel=0.1)
    larger = Parameters(13, 24, 40, 47, 2, FLEXIBLE, 0, Bootstrapping(10, (2, 2)))
    assert bootstrap_model(larger).working_bytes > bootstrap_model(parameters).working_bytes


def test_two_set_ups_of_one_chain_are_refused_in_one_process() -> None:
    """OpenFHE would silently use the later one for both. If nobody has the first any more, it may replace it."""
    first = Parameters(10, 18, 41, 48, 3, FLEXIBLE, 0, Bootstrapping(3, (3, 2)))
    prepared = Prepared(make_context(first), first)
    for setup in (Bootstrapping(3, (2, 3)), Bootstrapping(3, (3, 2), 9)):
        other = Parameters(10, first.depth, 41, 48, 3, FLEXIBLE, 0, setup)
        with pytest.raises(BackendError, match="another process"):
            Prepared(make_context(other), other)
        with pytest.raises(BackendError, match="another process"):
            set_up_bootstrapping(make_context(other), other, precompute=False, slots=8)
    del prepared
    Prepared(make_context(other), other)
