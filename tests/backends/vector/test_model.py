"""What planners are told of the vector engine, against what the engine makes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from olac.backends.vector.bootstrap.plan import plan_bootstrap
from olac.backends.vector.keys import check_security, encapsulation_form, from_sparse_form, key_forms, switching_form
from olac.backends.vector.packed import packed_bytes
from olac.ckks.bootstrapping import BOOTSTRAP_NOISE, bootstrap_model
from olac.ckks.candidates import BUDGETS
from olac.ckks.engines import OPENFHE, VECTOR, VECTOR_PRIME_BITS
from olac.ckks.parameters import OPENFHE_RECIPE, VECTOR_RECIPE, Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ckks.sizes import plaintext_bytes
from olac.ckks.special import from_sparse_shape, key_shape
from olac.ckks.vector_bootstrapping import SINE_LEVELS, SINE_PRODUCTS, VECTOR_BOOTSTRAP_NOISE, vector_bootstrap_model
from olac.errors import SecurityError

PLAIN = Parameters(12, 7, 37, 41, 3, FIXED, security=0)


def chain(
    log_ring: int = 16, log_slots: int | None = 14, budget: tuple[int, int] = (4, 3), **changes: Any
) -> Parameters:
    setup = Bootstrapping(4, budget, 4, log_slots)
    return replace(Parameters(log_ring, setup.depth, 37, 41, 3, FLEXIBLE, 0, setup), **changes)


DEEP = [
    *(chain(budget=budget) for budget in BUDGETS),
    chain(log_slots=None),
    chain(log_slots=6),
    chain(11, None, (3, 3)),
    chain(10, 5, (1, 2)),
    chain(10, 8, (2, 4)),
]


def own(parameters: Parameters) -> Parameters:
    """As many levels between bootstraps, by the engine's own recipe."""
    assert parameters.bootstrapping is not None
    setup = replace(parameters.bootstrapping, recipe=VECTOR_RECIPE)
    return replace(parameters, depth=setup.depth, bootstrapping=setup)


@pytest.mark.parametrize("parameters", [PLAIN, *DEEP[-3:]])
def test_sizes_of_keys_are_those_of_the_engine(parameters: Parameters) -> None:
    for level in range(parameters.limbs):
        form = switching_form(parameters, level)
        held = packed_bytes(form.primes, form.digits, form.length, parameters)
        assert VECTOR.key_bytes(parameters, level) == held and VECTOR.key_file_bytes(parameters, level) == form.bytes
        assert VECTOR.key_level(parameters, level) == level
    whole = VECTOR.key_bytes(parameters, parameters.depth)
    assert whole > 2 * VECTOR.key_bytes(parameters, 0) and whole < OPENFHE.key_bytes(parameters, 0)


def test_ciphertexts_and_plaintexts_are_doubles() -> None:
    ring = PLAIN.log_ring
    assert VECTOR.ciphertext_bytes(PLAIN, 3) == 2 * plaintext_bytes(ring, 4)
    assert VECTOR.plaintext_bytes(PLAIN, 3) == VECTOR.kept_plaintext_bytes(PLAIN, 3) == plaintext_bytes(ring, 4)
    # Three digits of three limbs: at five limbs two of them, and as many special primes as a full one needs.
    assert VECTOR.digits_bytes(PLAIN, 4) == 2 * plaintext_bytes(ring, 5 + len(VECTOR.special_primes(PLAIN)))


@pytest.mark.parametrize("parameters", [*DEEP, *map(own, DEEP)])
def test_bootstraps_take_the_steps_of_their_plan_up_to_its_levels(parameters: Parameters) -> None:
    plan, model = plan_bootstrap(parameters), vector_bootstrap_model(parameters)
    special = {parameters.conjugation_step}
    assert dict(model.step_levels) == plan.rotation_levels()
    assert plan.rotation_levels()[parameters.conjugation_step] == plan.summing_level
    assert model.steps == set(plan.rotation_levels()) - special and model.special_steps == special
    first, *others = plan.to_slots
    assert first.raised and not any(one.raised for one in (*plan.to_coefficients, *others))
    assert model.from_sparse_steps == first.linear.baby_steps and model.raised_level == first.level == plan.top
    assert (model.special_keys, model.large_special_keys) == (2 + len(first.linear.baby_steps), 1)
    assert model.steps <= bootstrap_model(parameters).steps  # it runs programs that were planned for OpenFHE
    assert model.product_level == plan.sine.level and plan.sine.levels == SINE_LEVELS
    assert plan.sine.relinearisations <= SINE_PRODUCTS
    setup, other = parameters.bootstrapping, bootstrap_model(parameters)
    assert setup is not None
    for name in ("input_level", "output_level", "log_slots"):
        assert getattr(model, name) == getattr(other, name)
    assert (model.noise < other.noise) == (setup.recipe == VECTOR_RECIPE)
    assert max(level for name, level, _ in model.work if name == "hoist") == plan.top
    assert model.input_level == plan.to_coefficients[0].level + (setup.recipe != VECTOR_RECIPE)
    transforms = [*plan.to_coefficients, *plan.to_slots]
    counted = [one for one in model.work if one[0] == "multiply_plain"]
    specials = [(from_sparse_shape if one.raised else key_shape)(parameters, one.level).specials for one in transforms]
    assert counted == [
        ("multiply_plain", one.level + special, one.linear.diagonals)
        for one, special in zip(transforms, specials, strict=True)
    ]


def test_without_bootstraps_there_is_nothing() -> None:
    assert VECTOR.bootstraps(PLAIN).work == () and not VECTOR.bootstraps(PLAIN).step_levels


@pytest.mark.parametrize(("scale", "first"), BOOTSTRAP_NOISE)
def test_the_sine_takes_as_many_levels_at_all_scales_that_the_engine_takes(scale: int, first: int) -> None:
    parameters = chain(scale_bits=scale, first_bits=first, bootstrapping=Bootstrapping(4, (4, 3), first - scale, 14))
    if VECTOR.takes(parameters):
        assert plan_bootstrap(parameters).sine.levels == SINE_LEVELS
    else:
        assert first > VECTOR_PRIME_BITS


@pytest.mark.parametrize("log_slots", [None, 14])
def test_its_own_recipe_gives_the_same_chain_more_levels(log_slots: int | None) -> None:
    usual, ours = (
        Parameters(16, 26, 37, 41, 2, FLEXIBLE, 128, Bootstrapping(rest, (4, 3), 4, log_slots, recipe))
        for rest, recipe in ((9, OPENFHE_RECIPE), (11, VECTOR_RECIPE))
    )
    before, after = VECTOR.bootstraps(usual), VECTOR.bootstraps(ours)
    assert (before.input_level, before.output_level) == (4, 12) and (after.input_level, after.output_level) == (3, 14)
    assert after.steps == before.steps and VECTOR.takes(usual) and VECTOR.takes(ours) and OPENFHE.takes(usual)
    assert OPENFHE.refuses(ours) == "its bootstraps do not follow the vector engine's recipe"
    assert after.raised_level == 26 == before.raised_level + 2
    assert usual.primes == ours.primes and usual.log_qp == ours.log_qp
    assert "by the vector engine's recipe" in ours.describe() and "recipe" not in usual.describe()


@pytest.mark.parametrize(("scale", "first"), VECTOR_BOOTSTRAP_NOISE)
def test_the_noise_was_measured_where_the_engine_takes_the_primes(scale: int, first: int) -> None:
    parameters = own(chain(scale_bits=scale, first_bits=first))
    assert VECTOR.takes(parameters) and VECTOR.bootstrap_noise is VECTOR_BOOTSTRAP_NOISE
    assert VECTOR.bootstraps(parameters).noise == VECTOR_BOOTSTRAP_NOISE[scale, first]
    assert plan_bootstrap(parameters).sine.error < VECTOR_BOOTSTRAP_NOISE[scale, first] / 2


def test_keys_of_a_program_are_counted_as_the_engine_makes_them() -> None:
    from olac.analysis.key_levels import key_levels

    parameters = DEEP[-3]
    model = VECTOR.bootstraps(parameters)
    kernels = {3: 5, min(model.steps): parameters.depth, 777: 0}
    steps = model.keys_for(kernels)
    found = key_levels(kernels.items(), [("multiply", 2)], model).of(steps, parameters, model)
    wanted = {step: kernels.get(step, 0) for step in sorted(steps)}
    forms = key_forms(parameters, wanted, 2)
    (short,) = (place for place, form in enumerate(forms) if form == encapsulation_form(parameters))
    assert found.total() == len(forms) - 1 - len(model.from_sparse_steps)
    held = [packed_bytes(form.primes, form.digits, form.length, parameters) for form in forms]
    assert VECTOR.keys_bytes(parameters, found) == sum(held) - held[short]
    assert VECTOR.keys_file_bytes(parameters, found) == sum(form.bytes for form in forms) - forms[short].bytes
    assert forms[short + 1 : -1] == [from_sparse_form(parameters, model.raised_level)] * len(model.from_sparse_steps)


@pytest.mark.parametrize("scale", [37, 44])
def test_primes_of_fifty_bits_are_refused(scale: int) -> None:
    below = Parameters(13, 5, scale, 49, 2, FIXED, security=0)
    assert VECTOR.refuses(below) is None
    above = replace(below, first_bits=51)
    assert VECTOR.refuses(above) == f"q_0 = {above.primes[0]} is not below 2^50"
    large = Parameters(13, 5, 52, 60, 2, FLEXIBLE, security=0)
    assert "is not below 2^50" in str(VECTOR.refuses(large)) and OPENFHE.takes(large)


def test_keys_keep_the_security() -> None:
    """The special primes are others than OpenFHE's, and together may be a little larger."""
    over = Parameters(15, 19, 28, 35, 2, FIXED, 128)
    assert over.secure and over.log_qp < over.security_bound < VECTOR.log_qp(over)
    assert VECTOR.refuses(over) == (
        f"its keys have a modulus of {VECTOR.log_qp(over):.2f} bits, and 128-bit security allows 868.00"
    )
    with pytest.raises(SecurityError):  # and the engine makes none
        check_security(over)
    for taken in (replace(over, digits=3), replace(over, security=0), replace(over, scale_bits=27)):
        assert VECTOR.takes(taken)
        check_security(taken)
    used = math.log2(math.prod(over.primes) * math.prod(VECTOR.special_primes(over)))
    assert VECTOR.log_qp(over) == pytest.approx(used)
