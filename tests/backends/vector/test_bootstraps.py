"""Bootstraps of the vector engine on ciphertexts, at small rings."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from olac.backends.base import Array, Ciphertext
from olac.backends.session import PlaintextCache
from olac.backends.vector import available
from olac.backends.vector.bootstrap.circuit import Bootstrap
from olac.backends.vector.bootstrap.kernels import ONE_BYTE
from olac.backends.vector.bootstrap.linear import EncodedLevel, Plaintexts, combination_start
from olac.backends.vector.bootstrap.plan import plan_bootstrap
from olac.backends.vector.bootstrap.short_keys import shortened
from olac.backends.vector.bootstrap.sine import RANGE, half_width
from olac.backends.vector.bootstrap.transforms import LinearLevel
from olac.backends.vector.ciphertext import Residues
from olac.backends.vector.encoding import coefficients, slots_of
from olac.backends.vector.evaluator import NO_ORDER, VectorEvaluator
from olac.backends.vector.key_making import KeyMaker, automorphism, automorphism_index
from olac.backends.vector.keys import switching_form
from olac.backends.vector.keyset import VectorKeys, packed_key
from olac.backends.vector.ring import ring
from olac.backends.vector.secret import secret_coefficients
from olac.backends.vector.session import ENGINE, VectorClient
from olac.backends.vector.team import Team
from olac.ckks.bootstrap_failure import MOST_FAILURE_BITS
from olac.ckks.parameters import OPENFHE_RECIPE, RECIPES, VECTOR_RECIPE, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.special import key_shape
from olac.ckks.vector_bootstrapping import vector_bootstrap_model
from olac.errors import MissingKeyError, VerificationError
from olac.ir.ops import scaled_sine
from olac.ir.types import CipherState
from tests.backends.vector.test_made_keys import errors_of

pytestmark = pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")


def chain(
    log_ring: int = 10,
    rest: int = 4,
    budget: tuple[int, int] = (3, 3),
    correction: int = 4,
    log_slots: int | None = None,
    scale: int = 40,
    digits: int = 3,
    recipe: str = OPENFHE_RECIPE,
) -> Parameters:
    setup = Bootstrapping(rest, budget, correction, log_slots, recipe)
    return Parameters(
        log_ring, setup.depth, scale, scale + min(4, correction), digits, FLEXIBLE, security=0, bootstrapping=setup
    )


FULL, SPARSE = chain(), chain(log_slots=6)
CHAINS = {
    "all slots": FULL,
    "all slots, other budgets": chain(11, 3, (5, 4), 2, scale=37),
    "half of the slots": chain(budget=(2, 2), log_slots=8),
    "an eighth of the slots": SPARSE,
    "one level to coefficients": chain(budget=(4, 1), log_slots=6),
    "one level each, one digit": chain(budget=(1, 1), log_slots=5, correction=1, digits=1),
    "five levels each, a large correction": chain(budget=(5, 5), log_slots=6, correction=8, scale=45),
    "fewer than a panel's columns": chain(budget=(2, 3), log_slots=3),
    "one period of two slots": chain(rest=2, budget=(1, 1), log_slots=1),
    "tight primes": chain(rest=2, budget=(2, 2), log_slots=6, scale=47, correction=2, digits=4),
    "its own recipe": chain(recipe=VECTOR_RECIPE),
    "its own recipe, part of the slots": chain(11, 2, (4, 3), log_slots=7, scale=37, recipe=VECTOR_RECIPE),
    "its own recipe, one level to coefficients": chain(budget=(3, 1), log_slots=6, digits=2, recipe=VECTOR_RECIPE),
    "ring 2^12": chain(12, 2, (4, 4), log_slots=10, scale=37, digits=2),
}
"""Each with chains of their own."""


class Pair:
    """A client, its keys, and an evaluator.

    Args:
        higher: levels of keys that a program uses at a higher level than bootstraps do.
    """

    def __init__(self, parameters: Parameters, higher: Mapping[int, int] | None = None, threads: int = 1) -> None:
        self.parameters, self.setup = parameters, parameters.bootstrapping
        self.client: VectorClient = ENGINE.client(parameters, "a test")
        steps = dict.fromkeys(vector_bootstrap_model(parameters).steps, 0) | dict(higher or {})
        self.keys: VectorKeys = self.client.make_keys(steps, 0)
        self.evaluator = VectorEvaluator(parameters, self.keys, steps, team=Team(threads))

    def encrypt(self, slots: Array, level: int) -> Ciphertext[Residues]:
        state = CipherState(level, 1, self.parameters.scale(level))
        return Ciphertext(self.client.encrypt(slots, level), state)

    def slots(self, seed: int) -> Array:
        """Random ones that repeat as bootstraps need it."""
        period = 1 << self.parameters.log_bootstrap_slots
        return np.tile(np.random.default_rng(seed).uniform(-1, 1, period), self.parameters.slots // period)

    def values(self, a: Residues) -> Array:
        """The coefficients of what a ciphertext decrypts to modulo q_0, centred."""
        own, prime = ring(self.parameters), self.parameters.primes[0]
        secret = own.from_words(self.client.secret_words()[:1], range(1))[0]
        n, room = own.N, a.room * own.N
        product = [int(x) * int(y) for x, y in zip(a.data[room : room + n], secret, strict=True)]
        total = [(int(x) + y) % prime for x, y in zip(a.data[:n], product, strict=True)]
        centred = np.array([float(x - prime if x > prime // 2 else x) for x in total])
        return np.asarray(own.coefficients(centred, 0), dtype=np.float64)


@functools.lru_cache(maxsize=4)
def pair(parameters: Parameters) -> Pair:
    return Pair(parameters)


def error_of(parameters: Parameters) -> float:
    """Far above the noise at these rings, far below what the sine does to slots of 1.

    A single level to slots has small plaintexts, so that they are less exact.
    """
    setup = parameters.bootstrapping
    assert setup is not None
    bits = 28 if setup.budget[0] == 1 else 24
    return 2.0 ** (bits + setup.correction - 4 - parameters.scale_bits) + plan_bootstrap(parameters).sine.error


@pytest.mark.parametrize("parameters", CHAINS.values(), ids=CHAINS)
def test_a_bootstrap_is_the_scaled_sine(parameters: Parameters) -> None:
    own, setup = pair(parameters), parameters.bootstrapping
    assert setup is not None
    for level in (setup.input_level, setup.output_level):
        values = own.slots(level)
        values[:2] = 1.0, -1.0
        values = np.tile(
            values[: 1 << parameters.log_bootstrap_slots], parameters.slots >> parameters.log_bootstrap_slots
        )
        a = own.encrypt(values, level)
        before = a.payload.data[: 2 * a.payload.room * parameters.ring_dimension].copy()
        made = own.evaluator.bootstrap(a)
        assert made.state == CipherState(setup.output_level, 1, parameters.scale(setup.output_level))
        assert made.payload.limbs == setup.output_level + 1
        assert np.array_equal(a.payload.data[: len(before)], before)  # the operand stays what it was
        wanted = scaled_sine(values, setup.correction)
        assert np.abs(own.client.decrypt(made) - wanted).max() < error_of(parameters)
        assert np.abs(wanted - values).max() > 4 * error_of(parameters)  # so it is known from the value itself


@pytest.mark.parametrize("parameters", CHAINS.values(), ids=CHAINS)
def test_two_ciphertexts_share_a_bootstrap(parameters: Parameters) -> None:
    own, setup = pair(parameters), parameters.bootstrapping
    assert setup is not None
    for level in (setup.input_level, setup.output_level):
        values = own.slots(level), own.slots(level + 1)
        a, b = (own.encrypt(one, level) for one in values)
        before = [one.payload.data[: 2 * one.payload.room * parameters.ring_dimension].copy() for one in (a, b)]
        found = own.evaluator._bootstrap_two(a.payload, b.payload, a.state)
        for one, slots, made, data in zip((a, b), values, found, before, strict=True):
            assert made.limbs == setup.output_level + 1 and made.degree == 1
            assert np.array_equal(one.payload.data[: len(data)], data)  # operands stay what they were
            state = CipherState(setup.output_level, 1, parameters.scale(setup.output_level))
            wanted = scaled_sine(slots, setup.correction)
            assert np.abs(own.client.decrypt(Ciphertext(made, state)) - wanted).max() < error_of(parameters)


def test_a_hundred_bootstraps_without_a_failure() -> None:
    own, worst = pair(SPARSE), 0.0
    for seed in range(100):
        values = own.slots(seed)
        made = own.evaluator.bootstrap(own.encrypt(values, 4))
        worst = max(worst, float(np.abs(own.client.decrypt(made) - scaled_sine(values, 4)).max()))
    assert worst < error_of(SPARSE)


def test_bootstraps_follow_one_another() -> None:
    """Sixty-four in a row: noise adds up, and nothing is lost."""
    own, values = pair(SPARSE), pair(SPARSE).slots(1) / 8
    a, wanted = own.encrypt(values, 4), values
    for _ in range(64):
        a, wanted = own.evaluator.bootstrap(a), scaled_sine(wanted, 4)
    assert np.abs(own.client.decrypt(a) - wanted).max() < 64 * error_of(SPARSE)


@pytest.mark.parametrize("parameters", [FULL, SPARSE], ids=["all slots", "an eighth"])
def test_parts_of_a_bootstrap(parameters: Parameters) -> None:
    """Coefficients at level 0, what is raised, and the angles that the sine gets."""
    own, setup, n = pair(parameters), parameters.bootstrapping, parameters.ring_dimension
    assert setup is not None
    boots, ev = own.keys.bootstraps(Team(1)), own.evaluator
    period = 1 << parameters.log_bootstrap_slots
    values = own.slots(3)
    a = own.encrypt(values, setup.input_level)
    low = boots.to_coefficients(ev, a.payload, a.state)
    assert low.limbs == 1
    scale, found = parameters.primes[0] / 2**setup.correction, own.values(low)
    # Rotated by one, they are the slots in bit-reversed order, and half of the coefficients of this subring are zero.
    moved = slots_of(found) / scale
    powers = np.rint(coefficients(np.roll(moved, 1), scale)) / scale
    gap = n // (2 * period)
    order = [int(f"{k:0{parameters.log_bootstrap_slots}b}"[::-1], 2) for k in range(period)]
    assert np.abs(powers[: n // 2 : gap] - values[:period][order]).max() < 2.0**-20
    assert np.abs(powers[n // 2 :: gap]).max() < 2.0**-20
    raised = boots.raised(ev, low)
    assert raised.limbs == boots.plan.top + 1
    # Under the usual secret, and without a rotation, it is what it was modulo q_0.
    again = own.values(ev.divided(switched_back(own, raised, 1.0), None, 0, NO_ORDER))
    assert np.abs(again - own.values(low)).max() < 2.0**12 < 2.0**-10 * scale
    turned = boots.to_slots(ev, raised)
    assert turned.limbs == boots.plan.sine.level + 1
    angles = slots_of(own.values(turned)) / parameters.scale(boots.plan.sine.level)
    assert np.abs(angles.imag).max() < 2.0**-24 and np.abs(angles.real).max() < 1.0
    ratio = angles.real * half_width() + 0.25
    periods = np.rint(ratio)
    assert np.abs((ratio - periods) * 2**setup.correction - values).max() < 2.0**-14
    assert 2 < np.abs(periods).max() < RANGE  # more are as good as impossible


def switched_back(own: Pair, raised: Residues, scale: float) -> Residues:
    """scale times what was raised, under the usual secret modulo Q P: a level that multiplies by 1."""
    identity = LinearLevel(1, 1, 1, ((np.ones(1, dtype=complex),),))
    level = EncodedLevel(ring(own.parameters), identity, raised.limbs, scale, own.keys.from_sparse, None)
    return level.apply(own.evaluator, raised)


@pytest.mark.parametrize("parameters", [FULL, SPARSE], ids=["all slots", "an eighth"])
def test_the_first_level_switches_from_the_sparser_secret(parameters: Parameters) -> None:
    """It is its matrix on all slots: periods are summed up later."""
    own, boots = pair(parameters), pair(parameters).keys.bootstraps(Team(1))
    ev, placed = own.evaluator, boots.plan.to_slots[0]
    prime = parameters.primes[placed.level]
    raised = boots.raised(ev, own.encrypt(own.slots(6), 0).payload)
    scale = prime / 64
    before = slots_of(own.values(ev.divided(switched_back(own, raised, scale), None, 0, NO_ORDER, last=True))) * 64
    after = slots_of(own.values(ev.divided(boots.upper[0].apply(ev, raised), None, 0, NO_ORDER, last=True)))
    times = parameters.slots // placed.linear.period
    blocks = tuple(tuple(None if d is None else np.tile(d, times) for d in block) for block in placed.linear.blocks)
    whole = replace(placed.linear, period=parameters.slots, blocks=blocks)
    wanted = whole.apply(before) * placed.scale / prime
    assert np.abs(after - wanted).max() < 2.0**-16 * np.abs(wanted).max()


@pytest.mark.parametrize("parameters", [FULL, SPARSE], ids=["all slots", "an eighth"])
def test_each_level_of_a_transform_is_its_matrix(parameters: Parameters) -> None:
    own, plan = pair(parameters), plan_bootstrap(parameters)
    ev, boots = own.evaluator, own.keys.bootstraps(Team(1))
    period, rng = 1 << parameters.log_bootstrap_slots, np.random.default_rng(4)
    for placed, level in zip((*plan.to_coefficients, *plan.to_slots), (*boots.lower, *boots.upper), strict=True):
        if placed.raised:
            continue
        slots = rng.uniform(-1, 1, period)
        a = own.encrypt(np.tile(slots, parameters.slots // period), placed.level)
        made = ev.divided(level.apply(ev, a.payload), None, 0, NO_ORDER, last=True)
        assert made.limbs == placed.level
        scale = parameters.scale(placed.level) * placed.scale / parameters.primes[placed.level]
        wanted = np.tile(placed.linear.apply(slots.astype(complex)), parameters.slots // period)
        error = np.abs(slots_of(own.values(made)) / scale - wanted).max()
        assert error < 2.0**-20 * max(1.0, parameters.scale(0) / scale)


def test_keys_for_a_higher_level_serve_as_well() -> None:
    """A program uses some steps of each transform at the top of the chain: their keys have more special primes."""
    parameters = chain(log_slots=7, digits=4)
    plan = plan_bootstrap(parameters)
    steps = sorted(plan.rotation_levels())
    mixed = Pair(parameters, dict.fromkeys(steps[::3], parameters.depth))
    shapes = {mixed.keys.rotation(step).shape for step in plan.to_coefficients[0].linear.steps}
    assert len({shape.specials for shape in shapes}) > 1
    values = mixed.slots(2)
    made = mixed.evaluator.bootstrap(mixed.encrypt(values, 4))
    assert np.abs(mixed.client.decrypt(made) - scaled_sine(values, 4)).max() < error_of(parameters)


def test_results_do_not_depend_on_threads() -> None:
    own = pair(FULL)
    a = own.encrypt(own.slots(5), 4)
    alone = own.evaluator.bootstrap(a).payload
    together = VectorEvaluator(FULL, own.keys, own.evaluator.rotation_steps, team=Team(3)).bootstrap(a).payload
    size = 2 * alone.room * FULL.ring_dimension
    assert np.array_equal(alone.data[:size], together.data[:size])


def test_servers_of_the_same_keys_share_the_plaintexts() -> None:
    own = pair(SPARSE)
    steps = dict.fromkeys(vector_bootstrap_model(SPARSE).steps, 0)
    first, second = (ENGINE.server(SPARSE, own.keys, steps, PlaintextCache(0)) for _ in range(2))
    assert first.evaluator.keys.bootstraps(Team(1)) is second.evaluator.keys.bootstraps(Team(1))  # type: ignore[attr-defined]


@pytest.mark.parametrize("log_slots", [3, 6, 8, 9])
def test_plaintexts_that_repeat_are_stored_once(log_slots: int) -> None:
    """They are unpacked to what the ring makes of the encoded diagonals."""
    parameters = chain(log_slots=None if log_slots == 9 else log_slots, budget=(2, 2))
    own, plan = ring(parameters), plan_bootstrap(parameters)
    (placed, *_) = plan.to_slots
    made = Plaintexts(own, placed.level + 1, 2, placed.linear, placed.scale)
    assert 1 << made.repeat == min(parameters.slots >> parameters.log_bootstrap_slots, own.C)
    panels, rows, seen = own.R // 8, own.C >> made.repeat, 0
    width = int(made.counts.sum()) * rows * 8
    for giant, block in enumerate(placed.linear.blocks):
        present = [one for one in block if one is not None]
        assert len(present) == made.counts[giant]
        end = seen + len(present)
        for place, diagonal in enumerate(present):
            whole = np.tile(diagonal, parameters.slots // placed.linear.period)
            values = own.values(coefficients(whole, placed.scale), made.ids)
            for limb, kind in enumerate(made.kinds):
                high: Any = made.high8 if kind == ONE_BYTE else made.high16
                low, above = (
                    one[at : at + panels * width].reshape(panels, width)[:, 8 * rows * seen : 8 * rows * end]
                    for one, at in ((made.low, made.lowat[limb]), (high, made.highat[limb]))
                )
                unpacked = (above.astype(np.float64) * 2.0**32 + low).reshape(panels, rows, len(present), 8)
                kept = np.repeat(unpacked[:, :, place], 1 << made.repeat, axis=1)
                assert np.array_equal(kept.reshape(-1), values[limb])
        seen = end
    assert made.nbytes == sum(one.nbytes for one in (made.low, made.high8, made.high16))


def test_what_is_missing_is_named() -> None:
    own, plan = pair(SPARSE), plan_bootstrap(SPARSE)
    bare = VectorKeys(SPARSE)
    with pytest.raises(MissingKeyError, match="sparser secret"):
        Bootstrap(SPARSE, bare)
    bare.into_sparse, bare.from_sparse = own.keys.into_sparse, own.keys.from_sparse
    with pytest.raises(MissingKeyError, match="rotation step"):
        Bootstrap(SPARSE, bare)
    (placed, *_) = plan.to_slots
    with pytest.raises(MissingKeyError, match="fewer than"):  # those of bootstraps do not reach to the end of the chain
        EncodedLevel(ring(SPARSE), placed.linear, SPARSE.limbs, placed.scale, own.keys.from_sparse, None)


def test_sums_that_do_not_fit_are_refused() -> None:
    loose = 2**45 + 1
    sizes = [combination_start(loose, products, factor, 4) for products, factor in ((0, 1), (1, 2), (2, 2), (8, 2))]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    with pytest.raises(VerificationError, match="64 products and 0 multiples of ciphertexts are too many"):
        combination_start(loose, 64, 1, 0)
    with pytest.raises(VerificationError, match="0 products and 500 multiples"):
        combination_start(loose, 0, 1, 500)
    assert combination_start(2**47 + 1, 64, 1, 0) == 0.0  # sums modulo tight primes are reduced after each product


@pytest.mark.parametrize("log_slots", [None, 7])
def test_what_is_kept_is_foreseen(log_slots: int | None) -> None:
    """If kernels take all steps at the top of the chain, keys for each lower level are shortened."""
    parameters = chain(rest=9, budget=(4, 3), log_slots=log_slots, scale=37, digits=2)
    model = vector_bootstrap_model(parameters)
    far = Pair(parameters, dict.fromkeys(model.steps, parameters.depth)).keys.bootstraps(Team(1)).nbytes
    near = Pair(parameters).keys.bootstraps(Team(1)).nbytes
    assert near < far == model.precomputed_bytes


@pytest.mark.parametrize("log_slots", [None, 7])
@pytest.mark.parametrize("recipe", [OPENFHE_RECIPE, VECTOR_RECIPE])
def test_memory_of_a_bootstrap_is_foreseen(log_slots: int | None, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = chain(rest=9, budget=(4, 3), log_slots=log_slots, scale=37, digits=2, recipe=recipe)
    own, held, most = Pair(parameters), 0, 0
    a = own.encrypt(own.slots(7), parameters.bootstrapping.input_level)  # type: ignore[union-attr]
    boots, buffers = own.keys.bootstraps(Team(1)), own.evaluator.buffers
    take, give = buffers.take, buffers.give

    def taken(size: int) -> Any:
        nonlocal held, most
        found = take(size)
        held += found.data.nbytes
        most = max(most, held)
        return found

    def given(array: Array) -> None:
        nonlocal held
        held -= array.nbytes
        give(array)

    monkeypatch.setattr(buffers, "take", taken)
    monkeypatch.setattr(buffers, "give", given)
    boots.run(own.evaluator, a.payload, a.state)
    foreseen = vector_bootstrap_model(parameters).working_bytes
    assert 0.9 * foreseen < most < 1.1 * foreseen


def test_keys_are_shortened_with_little_more_noise() -> None:
    """As keys are that are made short, but for the rounding."""
    parameters = chain(scale=37, digits=2)
    own, level, step = pair(parameters), 3, 5
    maker = KeyMaker(ring(parameters), parameters, secret_coefficients(ring(parameters), own.client.secret_words()))
    new = maker.rotation(step, parameters.depth)
    long = packed_key(ring(parameters), new.form, new.limbs)
    form, shape = switching_form(parameters, level), key_shape(parameters, level)
    assert shape.specials < long.shape.specials
    short = shortened(own.evaluator, long, shape)
    assert short.shape == shape and short.nbytes < long.nbytes / 4
    s = secret_coefficients(ring(parameters), own.client.secret_words())
    inverse = pow(automorphism_index(parameters, step), -1, 2 * parameters.ring_dimension)
    errors = errors_of(parameters, form, short, s, automorphism(s, inverse))
    assert np.all(errors == errors[:, :1])
    rounding = np.sqrt((1 + np.count_nonzero(s)) / 12)
    assert abs(np.std(errors[:, 0]) / rounding - 1) < 6 / np.sqrt(2 * parameters.ring_dimension)


def test_the_plan_is_what_the_parameters_promise() -> None:
    for parameters in CHAINS.values():
        plan, setup = plan_bootstrap(parameters), parameters.bootstrapping
        assert setup is not None
        assert (
            plan.to_coefficients[0].level == setup.input_level - RECIPES[setup.recipe].spare
            and plan.to_coefficients[-1].level == 1
        )
        assert plan.top <= parameters.depth and plan.failure_bits < MOST_FAILURE_BITS
        assert (plan.top == parameters.depth) == (setup.recipe == VECTOR_RECIPE)
        assert plan.to_slots[0].level == plan.top and plan.to_slots[-1].level == plan.sine.level + 1
        assert plan.sine.combinations[-1].level == setup.output_level
        assert max(plan.rotation_levels().values()) <= plan.top
        ratio = np.prod([one.scale / parameters.primes[one.level] for one in plan.to_coefficients])
        scale = parameters.scale(setup.budget[1]) * ratio
        assert scale == pytest.approx(parameters.primes[0] / 2**setup.correction, rel=1e-12)


def test_other_chains_are_other_plans() -> None:
    assert plan_bootstrap(FULL) is plan_bootstrap(replace(FULL))
    assert plan_bootstrap(FULL) is not plan_bootstrap(SPARSE)


def test_a_sine_of_too_few_periods_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olac.backends.vector.bootstrap.plan.RANGE", 12)
    with pytest.raises(VerificationError, match=r"a sine for 12 periods fails in one of 2\^37\.2 bootstraps"):
        plan_bootstrap.__wrapped__(FULL)
