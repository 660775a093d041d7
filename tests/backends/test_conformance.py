"""One suite for all backends: the same primitives, the same rules, the same programs, in both scaling techniques."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from olac.backends.base import Array, Ciphertext, Evaluator, Slots, without_negligible
from olac.backends.cost import CostEvaluator, Slowdown
from olac.backends.openfhe.context import make_context
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.keys import make_keys, new_secret_key
from olac.backends.openfhe.library import load
from olac.backends.openfhe.wire import wire
from olac.backends.recorder import Encoder, RecorderEvaluator
from olac.backends.session import PlaintextCache, ServerSession
from olac.backends.simulator import SimulatorEvaluator
from olac.backends.vector.session import ENGINE as VECTOR
from olac.backends.vector.session import VectorClient
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import MissingKeyError, VerificationError
from olac.ir import Graph, Node
from olac.ir.types import CipherState
from olac.kernels.base import Value
from olac.kernels.elementwise import BootstrapKernel
from olac.kernels.execute import build_kernels, execute
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import Copies, Halving
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_squares import FoldSquares
from olac.passes.pipeline import lowering_pipeline
from olac.system.threads import Workers
from tests.backends.plain_engine import PlainEvaluator
from tests.networks import comparing_network, images_for, normalized, residual_network, residual_quadratics

LOG_RING = 12
SLOTS = 1 << (LOG_RING - 1)
STEPS = (1, 2, 5, 17, SLOTS)
"""The last one is conjugation."""


OPENFHE: dict[str, type[OpenFHEEvaluator]] = {"openfhe": OpenFHEEvaluator, "plain": PlainEvaluator}
"""Backends that encrypt: one with hooks for all that its library has, and one with as few as there can be."""


@dataclass
class Backend:
    """An evaluator, how to encrypt for it, and how to decrypt (None where it holds no values)."""

    evaluator: Evaluator[Any, Any]
    encrypt: Callable[[Array, int], Ciphertext[Any]]
    decrypt: Callable[[Ciphertext[Any]], Array] | None
    tolerance: float

    def close(self, a: Ciphertext[Any], expected: Array) -> bool:
        return self.decrypt is None or bool(np.max(np.abs(self.decrypt(a) - expected)) < self.tolerance)


def parameters_for(technique: str, depth: int = 7) -> Parameters:
    return Parameters(LOG_RING, depth, 35, 42, 4, technique, security=0)


@functools.lru_cache(maxsize=2)
def openfhe_keys(technique: str) -> tuple[Any, Any]:
    context = make_context(parameters_for(technique))
    keys = context.KeyGen()
    context.EvalMultKeyGen(keys.secretKey)
    return context, keys


def make_rotation_keys(context: Any, secret: Any, parameters: Parameters, steps: tuple[int, ...]) -> None:
    indices = [wire(parameters).automorphism_index(step) for step in steps]
    load().CryptoContext.InsertEvalAutomorphismKey(context.EvalAutomorphismKeyGen(secret, indices), secret.GetKeyTag())


@functools.lru_cache(maxsize=4)
def vector_client(parameters: Parameters) -> VectorClient:
    return VECTOR.client(parameters, "a test")


@functools.lru_cache(maxsize=32)
def vector_server(parameters: Parameters, steps: tuple[int, ...]) -> ServerSession:
    wanted = dict.fromkeys(steps, parameters.depth)
    keys = vector_client(parameters).make_keys(wanted, parameters.depth)
    return VECTOR.server(parameters, keys, wanted, PlaintextCache(0))


def vector_backend(parameters: Parameters, steps: tuple[int, ...], tolerance: float) -> Backend:
    client = vector_client(parameters)
    return Backend(
        vector_server(parameters, steps).evaluator,
        lambda slots, level: Ciphertext(client.encrypt(slots, level), CipherState(level, 1, parameters.scale(level))),
        client.decrypt,
        tolerance,
    )


def make_backend(name: str, technique: str, steps: tuple[int, ...] = STEPS) -> Backend:
    parameters = parameters_for(technique)
    if name == "simulator":
        simulator = SimulatorEvaluator(parameters, steps)
        return Backend(simulator, simulator.encrypt, simulator.decrypt, 1e-9)
    if name in OPENFHE:
        context, keys = openfhe_keys(technique)
        make_rotation_keys(context, keys.secretKey, parameters, steps)
        evaluator = OPENFHE[name](context, parameters, steps)
        return Backend(
            evaluator,
            lambda slots, level: evaluator.encrypt(keys.secretKey, slots, level),
            lambda a: evaluator.decrypt(keys.secretKey, a),
            1e-3,
        )
    if name == "vector":
        return vector_backend(parameters, tuple(steps), 1e-3)
    recorder = (
        RecorderEvaluator(parameters, steps)
        if name == "recorder"
        else CostEvaluator(parameters, CostTable.default(), 1, rotations=steps)
    )
    return Backend(recorder, lambda slots, level: recorder.fresh(level), None, 0.0)


@pytest.fixture(params=["simulator", *OPENFHE, "vector", "cost", "recorder"])
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@pytest.fixture(params=[FIXED, FLEXIBLE])
def backend(name: str, request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield make_backend(name, request.param)


def slots(seed: int) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, SLOTS)


def plain(backend: Backend, values: Slots, level: int, scale: float | None = None) -> Any:
    chosen = backend.evaluator.parameters.scale(level) if scale is None else scale
    return backend.evaluator.encode(lambda: values, level, chosen)


def test_encrypt_and_decrypt(backend: Backend) -> None:
    for level in (7, 3, 0):
        a = backend.encrypt(slots(0), level)
        assert a.state.level == level
        assert a.state.noise_degree == 1
        assert backend.close(a, slots(0))


def test_sums(backend: Backend) -> None:
    ev = backend.evaluator
    a, b = backend.encrypt(slots(0), 5), backend.encrypt(slots(1), 5)
    assert backend.close(ev.add(a, b), slots(0) + slots(1))
    assert backend.close(ev.add_scalar(a, -0.75), slots(0) - 0.75)
    assert backend.close(ev.add_plain(a, plain(backend, slots(2), 5)), slots(0) + slots(2))


def one_slot(size: float) -> Array:
    return np.where(np.arange(SLOTS) == 3, size, 0.0)


@pytest.mark.parametrize("values", [slots(0) * 1e-12, one_slot(1e-8), slots(1) * 1e-300, np.zeros(SLOTS)])
def test_plaintexts_that_round_to_zero_are_zero(backend: Backend, values: Array) -> None:
    """OpenFHE refuses them."""
    ev = backend.evaluator
    a = backend.encrypt(slots(0), 5)
    assert backend.close(ev.add_plain(a, plain(backend, values, 5)), slots(0))
    product = ev.rescale(ev.multiply_plain(a, plain(backend, values, 5)))
    assert backend.close(ev.add_plain(product, plain(backend, slots(1), 4, product.state.scale)), slots(1))
    assert backend.close(backend.encrypt(values, 5), np.zeros(SLOTS))
    of_complex = ev.add_conjugate(ev.multiply_plain(a, plain(backend, (1 + 1j) * values, 5)))
    assert backend.close(ev.rescale(of_complex), np.zeros(SLOTS))


def test_the_smallest_plaintexts_that_are_kept() -> None:
    """Whatever is not taken for zero, OpenFHE encodes: in all slots, in one, and at random."""
    ev = make_backend("openfhe", FIXED).evaluator
    scale = ev.parameters.scale(2)
    for shape in (np.ones(SLOTS), one_slot(1.0), slots(3), slots(3) * (slots(4) > 0.9)):
        edge = 0.5 * np.sqrt(2.0) * SLOTS / (scale * np.linalg.norm(shape))
        assert not np.any(without_negligible(0.999 * edge * shape, scale))
        assert np.array_equal(without_negligible(1.001 * edge * shape, scale), 1.001 * edge * shape)
        ev.encode(lambda edge=edge, shape=shape: 1.001 * edge * shape, 2, scale)  # type: ignore[misc]


def test_plaintexts_beyond_the_modulus_wrap_around_with_what_they_are_added_to(backend: Backend) -> None:
    ev = backend.evaluator
    a = backend.encrypt(slots(0), 1)
    large = np.full(SLOTS, 2.0**60)
    there = ev.add_plain(a, plain(backend, large, 1))
    back = ev.add_plain(there, plain(backend, -large, 1))
    assert isinstance(ev, SimulatorEvaluator) or backend.close(back, slots(0))


def test_fresh_ciphertexts_hold_no_more_than_their_modulus(name: str) -> None:
    if name in ("simulator", "vector", *OPENFHE):
        backend = make_backend(name, FIXED)
        for size in (2.0**45, 1e300, np.inf):
            with pytest.raises(VerificationError, match="do not fit"):
                backend.encrypt(np.full(SLOTS, size), 1)


def test_products_and_normalize(backend: Backend) -> None:
    ev = backend.evaluator
    a, b = backend.encrypt(slots(0), 5), backend.encrypt(slots(1), 5)
    for product, expected in (
        (ev.multiply(a, b), slots(0) * slots(1)),
        (ev.multiply(a, a), slots(0) ** 2),
        (ev.multiply_plain(a, plain(backend, slots(2), 5)), slots(0) * slots(2)),
    ):
        assert product.state.noise_degree == 2
        result = ev.rescale(product)
        assert (result.state.level, result.state.noise_degree) == (4, 1)
        assert backend.close(result, expected)


def test_complex_slots(backend: Backend) -> None:
    """The real part of (x + i rotate(x)) (a - i b) is a x + b rotate(x)."""
    ev = backend.evaluator
    x = backend.encrypt(slots(0), 5)
    both = ev.add(x, ev.multiply_i(ev.rotate(x, 5)))
    assert both.state == x.state
    product = ev.multiply_plain(both, plain(backend, (slots(1) - 1j * slots(2)) / 2, 5))
    expected = slots(1) * slots(0) + slots(2) * np.roll(slots(0), -5)
    for early in (True, False):
        real = ev.rescale(ev.add_conjugate(product)) if early else ev.add_conjugate(ev.rescale(product))
        assert (real.state.level, real.state.noise_degree) == (4, 1)
        assert backend.close(real, expected)


def test_the_imaginary_unit_is_exact(backend: Backend) -> None:
    """It takes no level, and four of them leave what was there."""
    ev = backend.evaluator
    x = backend.encrypt(slots(0), 2)
    once = ev.multiply_i(x)
    back = functools.reduce(lambda a, _: ev.multiply_i(a), range(3), once)
    assert once.state == back.state == x.state
    assert backend.close(ev.add_conjugate(back), 2 * slots(0))
    if backend.decrypt is not None:
        assert np.max(np.abs(backend.decrypt(ev.add_conjugate(once)))) < backend.tolerance
    with pytest.raises(VerificationError, match="noise degree 2"):
        ev.multiply_i(ev.multiply(x, x))


def test_conjugation_takes_a_key(name: str) -> None:
    backend = make_backend(name, FIXED, steps=(1, 2))
    with pytest.raises(MissingKeyError, match="conjugation"):
        backend.evaluator.add_conjugate(backend.encrypt(slots(0), 2))


def test_the_simulator_wants_real_slots_at_the_end() -> None:
    backend = make_backend("simulator", FIXED)
    assert backend.decrypt is not None
    with pytest.raises(VerificationError, match="complex slots"):
        backend.decrypt(backend.evaluator.multiply_i(backend.encrypt(slots(0), 2)))


def test_sums_of_products_are_normalized_once(backend: Backend) -> None:
    ev = backend.evaluator
    a = backend.encrypt(slots(0), 4)
    terms = [ev.multiply_plain(a, plain(backend, slots(i), 4)) for i in range(1, 5)]
    total = functools.reduce(ev.add, terms)
    assert backend.close(ev.rescale(total), slots(0) * sum(slots(i) for i in range(1, 5)))


def test_sums_of_products_of_ciphertexts(backend: Backend) -> None:
    ev = backend.evaluator
    values = [backend.encrypt(slots(i), 4) for i in range(5)]
    for pairs in ([(0, 1)], [(0, 1), (2, 3)], [(0, 1), (2, 2), (1, 0), (3, 4)]):
        total = ev.multiply_sum([(values[i], values[k]) for i, k in pairs])
        assert total.state.noise_degree == 2
        result = ev.rescale(total)
        assert (result.state.level, result.state.noise_degree) == (3, 1)
        expected = np.sum([slots(i) * slots(k) for i, k in pairs], axis=0)
        assert backend.close(result, expected)
        assert backend.close(ev.rotate(result, 5), np.roll(expected, -5))  # two polynomials again


def test_an_exact_scale_is_kept(backend: Backend) -> None:
    """The plaintext's scale brings the product to the canonical scale, also after a square that drifted from it."""
    ev = backend.evaluator
    square = ev.rescale(ev.multiply(*[backend.encrypt(slots(0), 5)] * 2))
    scale = ev.parameters.scale(3) * ev.parameters.primes[4] / square.state.scale
    result = ev.rescale(ev.multiply_plain(square, plain(backend, slots(1), 4, scale)))
    assert abs(result.state.scale / ev.parameters.scale(3) - 1) < 1e-12
    assert backend.close(ev.add(result, backend.encrypt(slots(2), 3)), slots(0) ** 2 * slots(1) + slots(2))


def test_drop_keeps_the_value(backend: Backend) -> None:
    ev = backend.evaluator
    a = backend.encrypt(slots(0), 7)
    for level in (6, 4, 1):
        low = ev.level_reduce(a, level)
        assert low.state.level == level
        assert backend.close(low, slots(0))
        assert backend.close(ev.add(low, backend.encrypt(slots(1), level)), slots(0) + slots(1))
        product = ev.rescale(ev.multiply(low, backend.encrypt(slots(1), level)))
        assert backend.close(product, slots(0) * slots(1))


def test_rotations(backend: Backend) -> None:
    ev = backend.evaluator
    a, b = backend.encrypt(slots(0), 5), backend.encrypt(slots(1), 5)
    assert backend.close(ev.rotate(a, 5), np.roll(slots(0), -5))
    assert backend.close(ev.rotate(a, 5 - SLOTS), np.roll(slots(0), -5))
    for steps in ((0, 1, 5), (2,), (0,)):
        moved = ev.rotate_hoisted(a, steps)
        assert set(moved) == set(steps)
        assert all(backend.close(moved[step], np.roll(slots(0), -step)) for step in steps)
    for terms in ([(a, 1), (b, 17), (a, 0)], [(a, 0)], [(b, 2)], [(a, 1), (b, 2)]):
        expected = sum(np.roll(slots(0 if part is a else 1), -step) for part, step in terms)
        assert backend.close(ev.rotate_sum(terms), np.asarray(expected))


def test_rotations_at_noise_degree_two(backend: Backend) -> None:
    ev = backend.evaluator
    product = ev.multiply_plain(backend.encrypt(slots(0), 5), plain(backend, slots(1), 5))
    total = ev.rescale(ev.rotate_sum([(product, 1), (product, 2), (product, 0)]))
    value = slots(0) * slots(1)
    assert backend.close(total, value + np.roll(value, -1) + np.roll(value, -2))


def test_rotations_without_a_key_are_composed(backend: Backend) -> None:
    """7 = 2 + 5, 19 = 2 + 17, 23 = 1 + 5 + 17 and 39 = 5 + 17 + 17: what keys for them would give."""
    ev = backend.evaluator
    a, b = backend.encrypt(slots(0), 5), backend.encrypt(slots(1), 5)
    for step in (3, 7, 39, 39 - SLOTS):
        turned = ev.rotate(a, step)
        assert turned.state == a.state
        assert backend.close(turned, np.roll(slots(0), -step))
    for steps in ((0, 1, 3, 7, 39), (3,), (3, 0), (6, 18), (3, 6)):
        moved = ev.rotate_hoisted(a, steps)
        assert set(moved) == set(steps)
        assert all(backend.close(moved[step], np.roll(slots(0), -step)) for step in steps)
    for terms in ([(a, 7), (b, 17), (a, 0)], [(a, 39)], [(a, 19), (b, 23)]):
        expected = sum(np.roll(slots(0 if part is a else 1), -step) for part, step in terms)
        assert backend.close(ev.rotate_sum(terms), np.asarray(expected))
    product = ev.multiply_plain(a, plain(backend, slots(1), 5))
    total = ev.rescale(ev.rotate_sum([(product, 7), (product, 1)]))
    value = slots(0) * slots(1)
    assert backend.close(total, np.roll(value, -7) + np.roll(value, -1))


def test_composed_rotations_are_counted_as_they_are_taken() -> None:
    steps = (1, 2, 5)

    def taken(call: Callable[[RecorderEvaluator, Ciphertext[None]], object]) -> list[tuple[str, int]]:
        recorder = RecorderEvaluator(parameters_for(FIXED), steps)
        call(recorder, recorder.fresh(5))
        assert set(recorder.rotations) <= set(steps)
        return [(event.primitive, event.step) for event in recorder.events]

    assert taken(lambda ev, a: ev.rotate(a, 8)) == [("rotate", 1), ("rotate", 2), ("rotate", 5)]
    # The first steps share their digits; 1 itself is wanted and is the first of 3, too.
    assert taken(lambda ev, a: ev.rotate_hoisted(a, (1, 3, 7))) == [
        ("hoist", 0),
        ("hoisted_rotate", 1),
        ("rotate", 2),
        ("hoisted_rotate", 2),
        ("rotate", 5),
    ]
    assert taken(lambda ev, a: ev.rotate_hoisted(a, (3, 6))) == [("rotate", 1), ("rotate", 2), ("rotate", 5)]
    assert taken(lambda ev, a: ev.rotate_sum([(a, 7), (a, 1)])) == [
        ("rotate", 2),
        ("hoist", 0),
        ("ext_rotate", 5),
        ("hoist", 0),
        ("ext_rotate", 1),
        ("ext_add", 0),
        ("key_switch_down", 0),
    ]


def test_mistakes_are_refused_alike(backend: Backend) -> None:
    ev = backend.evaluator
    a, low = backend.encrypt(slots(0), 5), backend.encrypt(slots(1), 4)
    product = ev.multiply(a, a)
    drifted = ev.rescale(product)
    bottom = backend.encrypt(slots(0), 0)
    mistakes: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (VerificationError, "add of", lambda: ev.add(a, low)),
        (VerificationError, "add of", lambda: ev.add(a, product)),
        (VerificationError, "multiply at levels", lambda: ev.multiply(a, low)),
        (VerificationError, "noise degree 2", lambda: ev.multiply(product, a)),
        (VerificationError, "noise degree 2", lambda: ev.multiply_plain(product, plain(backend, slots(0), 5))),
        (VerificationError, "plaintext for level", lambda: ev.multiply_plain(a, plain(backend, slots(0), 4))),
        (VerificationError, "multiply_sum at levels", lambda: ev.multiply_sum([(a, a), (a, low)])),
        (VerificationError, "multiply_sum of", lambda: ev.multiply_sum([(a, a), (low, low)])),
        (VerificationError, "noise degree 2", lambda: ev.multiply_sum([(a, a), (a, product)])),
        (VerificationError, "noise degree 2", lambda: ev.add_scalar(product, 1.0)),
        (VerificationError, "add_plain", lambda: ev.add_plain(a, plain(backend, slots(0), 4))),
        (VerificationError, "noise degree 1", lambda: ev.rescale(a)),
        (VerificationError, "level 0", lambda: ev.rescale(ev.multiply(bottom, bottom))),
        (VerificationError, "level_reduce from level", lambda: ev.level_reduce(low, 5)),
        (VerificationError, "encode for level", lambda: plain(backend, slots(0), 8, 1.0)),
        (MissingKeyError, "step 999", lambda: ev.rotate(a, 999)),
        (MissingKeyError, "step 999", lambda: ev.rotate_hoisted(a, [1, 999])),
        (MissingKeyError, "step 999", lambda: ev.rotate_sum([(a, 1), (a, 999)])),
        (VerificationError, "rotate_sum of", lambda: ev.rotate_sum([(a, 1), (low, 2)])),
    ]
    if ev.parameters.technique == FIXED:
        mistakes.append((VerificationError, "different scales", lambda: ev.add(drifted, low)))
        pairs = [(drifted, low), (low, low)]
        mistakes.append((VerificationError, "different scales", lambda: ev.multiply_sum(pairs)))
    for error, message, mistake in mistakes:
        with pytest.raises(error, match=message):
            mistake()


# Bootstraps ----------------------------------------------------------------------------------------------------------

BOOTSTRAPPED = Parameters(LOG_RING, 20, 40, 44, 3, FLEXIBLE, 0, Bootstrapping(4, correction=4))
BOOTSTRAP_ERROR = 2.0**-10
"""Far below what the sine does to slots of 1, which is 2.5 %."""


PERIODS = {
    log_slots: Parameters(
        LOG_RING, 16 + rest, 40, 44, 3, FLEXIBLE, 0, Bootstrapping(rest, correction=4, log_slots=log_slots)
    )
    for rest, log_slots in ((5, LOG_RING - 2), (6, 6))
}
"""Set-ups of bootstraps on a part of the slots, on chains of their own."""


def bootstrapped_backend(name: str, parameters: Parameters = BOOTSTRAPPED) -> Backend:
    if name == "simulator":
        simulator = SimulatorEvaluator(parameters, STEPS)
        return Backend(simulator, simulator.encrypt, simulator.decrypt, 1e-9)
    if name == "vector":
        return vector_backend(
            parameters, tuple(sorted({*STEPS[:-1], *bootstrap_model(parameters).steps})), BOOTSTRAP_ERROR
        )
    if name in OPENFHE:
        evaluator, secret = bootstrapped_openfhe(parameters, name)
        return Backend(
            evaluator,
            lambda slots, level: evaluator.encrypt(secret, slots, level),
            lambda a: evaluator.decrypt(secret, a),
            BOOTSTRAP_ERROR,
        )
    recorder = (
        RecorderEvaluator(parameters) if name == "recorder" else CostEvaluator(parameters, CostTable.default(), 1)
    )
    return Backend(recorder, lambda slots, level: recorder.fresh(level), None, 0.0)


@functools.lru_cache(maxsize=6)
def bootstrapped_openfhe(parameters: Parameters, name: str) -> tuple[OpenFHEEvaluator, Any]:
    if name != "openfhe":  # under the same keys
        first, secret = bootstrapped_openfhe(parameters, "openfhe")
        return OPENFHE[name](wire(parameters).context, parameters, first.rotation_steps), secret
    ready = wire(parameters)
    prepared = ready.prepare_bootstraps()
    secret = new_secret_key(parameters)
    steps = tuple(sorted({*STEPS, *bootstrap_model(parameters).steps}))
    keys = make_keys(parameters, secret, steps, True)
    evaluator = OpenFHEEvaluator(ready.context, parameters, steps)
    evaluator.keys = keys, prepared  # type: ignore[attr-defined]  # alive as long as they are needed
    return evaluator, secret


def test_conjugates_come_with_bootstraps(name: str) -> None:
    """Their keys hold that of conjugation: programs don't list it."""
    backend = bootstrapped_backend(name)
    a = backend.encrypt(slots(3), 6)
    assert backend.close(backend.evaluator.add_conjugate(a), 2 * slots(3))


def sine(values: Array) -> Array:
    """What a bootstrap makes of values, noise aside."""
    assert BOOTSTRAPPED.bootstrapping is not None
    width = 2.0**BOOTSTRAPPED.bootstrapping.correction / (2 * np.pi)
    return width * np.sin(values / width)


def test_a_bootstrap_gives_levels_and_keeps_the_value(name: str) -> None:
    backend, setup = bootstrapped_backend(name), BOOTSTRAPPED.bootstrapping
    assert setup is not None
    ev = backend.evaluator
    for level in (setup.input_level, setup.output_level):
        made = ev.bootstrap(backend.encrypt(slots(3), level))
        assert made.state == CipherState(setup.output_level, 1, BOOTSTRAPPED.scale(setup.output_level))
        assert backend.close(made, sine(slots(3)))
        product = ev.rescale(ev.multiply_plain(made, plain(backend, slots(4), setup.output_level)))
        assert product.state.level == setup.output_level - 1
        assert backend.close(product, sine(slots(3)) * slots(4))
        low = ev.level_reduce(made, 1)
        assert backend.close(ev.add(low, backend.encrypt(slots(5), 1)), sine(slots(3)) + slots(5))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_several_ciphertexts_are_bootstrapped_in_order(name: str, count: int) -> None:
    backend, setup = bootstrapped_backend(name), BOOTSTRAPPED.bootstrapping
    assert setup is not None
    given = [backend.encrypt(slots(seed), setup.input_level) for seed in range(count)]
    made = backend.evaluator.bootstrap_all(given)
    assert len(made) == count
    for seed, one in enumerate(made):
        assert one.state == CipherState(setup.output_level, 1, BOOTSTRAPPED.scale(setup.output_level))
        assert backend.close(one, sine(slots(seed)))
    if count > 1:
        lower = backend.evaluator.level_reduce(given[-1], setup.input_level - 1)
        with pytest.raises(VerificationError, match="bootstrap"):
            backend.evaluator.bootstrap_all([*given[:-1], lower])


@pytest.mark.parametrize("log_slots", PERIODS)
def test_a_bootstrap_of_slots_that_repeat(name: str, log_slots: int) -> None:
    """The same sine and precision; its operand stays what it was, and the result is one of all slots."""
    parameters = PERIODS[log_slots]
    backend, setup, period = bootstrapped_backend(name, parameters), parameters.bootstrapping, 1 << log_slots
    assert setup is not None
    ev, values = backend.evaluator, np.tile(slots(3)[:period], SLOTS // period)
    a = backend.encrypt(values, setup.input_level)
    made = ev.bootstrap(a)
    assert made.state == CipherState(setup.output_level, 1, parameters.scale(setup.output_level))
    assert backend.close(made, sine(values))
    product = ev.rescale(ev.multiply_plain(made, plain(backend, slots(4), setup.output_level)))
    assert backend.close(product, sine(values) * slots(4))
    assert backend.close(ev.rotate(product, 5), np.roll(sine(values) * slots(4), -5))
    assert backend.close(a, values)
    assert backend.close(
        ev.rotate(ev.add_plain(a, plain(backend, slots(5), setup.input_level)), 1), np.roll(values + slots(5), -1)
    )


def test_the_simulator_refuses_slots_that_do_not_repeat() -> None:
    """OpenFHE sees no slots, and gives nonsense."""
    parameters = PERIODS[LOG_RING - 2]
    nearly = np.tile(slots(3)[: SLOTS // 2], 2)
    nearly[7] += 1e-3
    simulator = SimulatorEvaluator(parameters)
    for values in (slots(3), nearly):
        with pytest.raises(VerificationError, match=f"do not repeat every {SLOTS // 2}"):
            simulator.bootstrap(simulator.encrypt(values, 5))
    simulator = SimulatorEvaluator(parameters, bootstrap_bits=12)
    made = simulator.decrypt(simulator.bootstrap(simulator.encrypt(nearly, 5)))
    assert np.allclose(made, sine(np.tile(slots(3)[: SLOTS // 2], 2)), atol=2e-3)


def test_bootstraps_that_would_go_wrong_are_refused_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = bootstrapped_backend(name)
    ev = backend.evaluator

    def touched(*_: object) -> None:
        raise AssertionError("OpenFHE saw it")

    monkeypatch.setattr(OpenFHEEvaluator, "_bootstrap", touched)  # it must not see what olac refuses
    drifted = backend.encrypt(slots(0), 5)
    drifted = replace(drifted, state=replace(drifted.state, scale=drifted.state.scale * 1.001))
    product = ev.multiply_plain(backend.encrypt(slots(0), 5), plain(backend, slots(0), 5))
    for message, wrong in (
        ("level 3, outside 4 ... 7", backend.encrypt(slots(0), 3)),
        ("level 8, outside 4 ... 7", backend.encrypt(slots(0), 8)),
        ("noise degree 2", product),
        ("different scales", drifted),
    ):
        with pytest.raises(VerificationError, match=message):
            ev.bootstrap(wrong)


def test_without_a_set_up_nothing_is_bootstrapped(backend: Backend) -> None:
    with pytest.raises(VerificationError, match="parameters without bootstrapping"):
        backend.evaluator.bootstrap(backend.encrypt(slots(0), 5))


def test_the_kernel_drops_what_is_above_the_least_level(name: str) -> None:
    """Above the level of its result, OpenFHE gives an input back as it is."""
    backend = bootstrapped_backend(name)
    (made,) = BootstrapKernel(5).run(backend.evaluator, [(backend.encrypt(slots(3), 20),)])
    assert made.state == CipherState(5, 1, BOOTSTRAPPED.scale(5))
    assert backend.close(made, sine(slots(3)))


@pytest.mark.parametrize("bits", [8.0, 12.5])
def test_simulated_bootstraps_have_the_error_that_was_asked_for(bits: float) -> None:
    simulator = SimulatorEvaluator(BOOTSTRAPPED, bootstrap_bits=bits)
    made = simulator.decrypt(simulator.bootstrap(simulator.encrypt(slots(0), 5)))
    assert np.mean(np.abs(made - sine(slots(0)))) == pytest.approx(2.0**-bits, rel=0.05)


def test_a_bootstrap_costs_as_much_at_any_level() -> None:
    cost = CostEvaluator(BOOTSTRAPPED, CostTable.default(), 1)
    assert cost.price("bootstrap", 4) == cost.price("bootstrap", 7) > 20 * cost.price("rotate", 20)
    cost.bootstrap(cost.fresh(5))
    assert cost.counts() == {("bootstrap", 5): 1}
    assert cost.seconds == cost.price("bootstrap", 5)


def test_the_table_says_what_a_bootstrap_costs() -> None:
    table = CostTable.default()
    shipped = CostEvaluator(BOOTSTRAPPED, table, 1)
    other = CostEvaluator(BOOTSTRAPPED, replace(table, bootstrap_factor=table.bootstrap_factor / 4), 1)
    assert other.price("rotate", 20) == shipped.price("rotate", 20)
    assert other.price("bootstrap", 5) == pytest.approx(shipped.price("bootstrap", 5) / 4)
    primitives = sum(times * shipped.price(name, level) for name, level, times in bootstrap_model(BOOTSTRAPPED).work)
    assert shipped.price("bootstrap", 5) == pytest.approx(table.bootstrap_factor * primitives)


def _squares() -> Graph:
    graph = PassManager([FoldSquares()]).run(residual_quadratics(blocks=1), PassContext())
    return ComposeLinear().run(graph, PassContext())


NETWORKS: dict[str, Callable[[], Graph]] = {
    "residual": residual_network,
    "residual, square": lambda: residual_network(square=True),
    "comparing": comparing_network,
    "squares": _squares,
}


@functools.lru_cache(maxsize=len(NETWORKS) * 6)
def program(technique: str, network: str, copies: Copies, halving: Halving) -> tuple[Graph, Array, tuple[int, ...]]:
    graph = NETWORKS[network]()
    graph, calibration = normalized(graph, images_for(graph, 6))
    parameters = parameters_for(technique)
    lowered = PassManager(lowering_pipeline(copies, halving)).run(
        graph, PassContext(calibration=calibration, parameters=parameters)
    )
    recorder = RecorderEvaluator(parameters)
    run(lowered, Backend(recorder, lambda slots, level: recorder.fresh(level), None, 0.0), images_for(graph, 1))
    return lowered, images_for(graph, 1), recorder.rotations


def run(graph: Graph, backend: Backend, images: Array) -> tuple[Value, dict[str, Value]]:
    source = graph.inputs[0].type
    assert source.layout is not None and source.state is not None
    level = source.state.level
    value = tuple(backend.encrypt(page, level) for page in source.layout.pack(images / source.unit))
    seen: dict[str, Value] = {}

    def keep(node: Node, result: Value) -> None:
        seen[node.id] = result

    (output,) = execute(graph, build_kernels(graph), backend.evaluator, {graph.inputs[0].id: value}, keep)
    return output, seen


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
@pytest.mark.parametrize(("copies", "halving"), [("plain", "never"), ("shifted", "never"), ("shifted", "always")])
def test_a_network(name: str, technique: str, network: str, copies: str, halving: str) -> None:
    """Every value of the program, in every slot, against the reference semantics of the graph."""
    graph, images, rotations = program(technique, network, copies, halving)
    assert (SLOTS in rotations) is (halving == "always")
    backend = make_backend(name, technique, rotations)
    _, seen = run(graph, backend, images)
    expected: dict[str, Array] = {}
    graph.evaluate(images, lambda node, value: expected.update({node.id: value}))
    for node in graph.nodes:
        layout = node.type.layout
        assert layout is not None
        assert all(part.state.level == node.type.state.level for part in seen[node.id])  # type: ignore[union-attr]
        for part, page in zip(seen[node.id], layout.pack(expected[node.id]), strict=True):
            assert backend.close(part, page), node.id


def test_cost_and_recorder_count_the_same() -> None:
    graph, images, rotations = program(FIXED, "residual", "shifted", "always")
    cost, recorder = make_backend("cost", FIXED, rotations), make_backend("recorder", FIXED, rotations)
    for backend in (cost, recorder):
        run(graph, backend, images)
    assert isinstance(cost.evaluator, CostEvaluator)
    assert isinstance(recorder.evaluator, RecorderEvaluator)
    assert cost.evaluator.events == recorder.evaluator.events
    total = sum(cost.evaluator.price(primitive, level) * n for (primitive, level), n in cost.evaluator.counts().items())
    assert cost.evaluator.seconds == pytest.approx(total)


def test_a_slower_machine_is_priced_by_its_factors() -> None:
    parameters, table = parameters_for(FIXED), CostTable.default()
    plain = CostEvaluator(parameters, table, 1)
    slow = CostEvaluator(parameters, table, 1, slowdown=Slowdown(light=3.0, heavy=2.0))
    for level in (1, 5):
        for primitive in ("add", "multiply_plain", "drop"):
            assert slow.price(primitive, level) == pytest.approx(3 * plain.price(primitive, level))
        for primitive in ("multiply", "normalize", "hoist"):
            assert slow.price(primitive, level) == pytest.approx(2 * plain.price(primitive, level))


def test_weights_encoded_before_a_run_are_found_where_rotations_are_composed() -> None:
    """A step that begins with another one's shares its decomposition: what is asked for in one go is not the same."""
    backend = make_backend("openfhe", FIXED, (1,))
    context, _ = openfhe_keys(FIXED)
    cache = PlaintextCache(10**9)
    evaluator = OpenFHEEvaluator(context, parameters_for(FIXED), (1,), cache, Workers(0))
    encoder = Encoder(evaluator)

    def program(ev: Evaluator[Any, Any], a: Ciphertext[Any]) -> Ciphertext[Any]:
        rotated = ev.rotate_hoisted(a, [1, 2])
        plains = [ev.encode(lambda i=i: slots(i), 5, ev.parameters.scale(5)) for i in (1, 2)]  # type: ignore[misc]
        return ev.rescale(ev.add(*(ev.multiply_plain(rotated[i], plains[i - 1]) for i in (1, 2))))

    evaluator.restart()
    program(encoder, encoder.fresh(5))
    held = cache.bytes
    evaluator.restart()
    found = program(evaluator, backend.encrypt(slots(0), 5))
    assert cache.bytes == held > 0
    expected = np.roll(slots(0), -1) * slots(1) + np.roll(slots(0), -2) * slots(2)
    assert backend.close(found, expected)


def test_the_plaintext_cache_gives_the_same_result() -> None:
    graph, images, rotations = program(FIXED, "residual", "shifted", "always")
    backend = make_backend("openfhe", FIXED, rotations)
    context, _ = openfhe_keys(FIXED)
    for budget in (10**9, 10**6):
        cache = PlaintextCache(budget)
        cached = OpenFHEEvaluator(context, parameters_for(FIXED), rotations, cache)
        results = []
        for _ in range(2):
            cached.restart()
            (out,) = run(graph, Backend(cached, backend.encrypt, backend.decrypt, 1e-3), images)[0]
            assert backend.decrypt is not None
            results.append(backend.decrypt(out))
        assert np.max(np.abs(results[0] - results[1])) < 1e-3
        assert 0 < cache.bytes <= budget


@pytest.mark.parametrize("network", ["residual", "squares"])
@pytest.mark.parametrize("budget", [None, 10**9, 10**6])
def test_threads_change_no_bit(network: str, budget: int | None) -> None:
    """Sums are exact modulo the chain, in any order; and a plaintext that was kept is that of its place."""
    graph, images, rotations = program(FLEXIBLE, network, "shifted", "always")
    backend = make_backend("openfhe", FLEXIBLE, rotations)
    parameters = parameters_for(FLEXIBLE)
    context, _ = openfhe_keys(FLEXIBLE)
    source = graph.inputs[0].type
    assert source.layout is not None and source.state is not None
    level = source.state.level
    value = tuple(backend.encrypt(page, level) for page in source.layout.pack(images / source.unit))
    cache = None if budget is None else PlaintextCache(budget)
    found = []
    for threads in (0, 3, 0, 2):
        evaluator = OpenFHEEvaluator(context, parameters, rotations, cache, Workers(threads))
        evaluator.restart()
        ((out,),) = execute(graph, build_kernels(graph), evaluator, {graph.inputs[0].id: value})
        found.append(wire(parameters).ciphertext_words(out.payload, out.state.level))
    assert all(np.array_equal(found[0], one) for one in found[1:])
    assert cache is None or 0 < cache.bytes <= cache.budget


def test_the_plain_backend_has_no_hook_that_has_a_default() -> None:
    hooks = {name for name in vars(Evaluator) if name.startswith("_") and inspect.isfunction(vars(Evaluator)[name])}
    defaults = {name for name in hooks - Evaluator.__abstractmethods__ if name in vars(SimulatorEvaluator)}
    defaults.discard("__init__")
    assert len(defaults) == 9
    for hook in defaults:
        assert getattr(PlainEvaluator, hook) is getattr(Evaluator, hook)
        assert hook == "_add_conjugate" or getattr(OpenFHEEvaluator, hook) is not getattr(Evaluator, hook)


def test_simulated_noise_reaches_the_result() -> None:
    graph, images, rotations = program(FIXED, "residual", "shifted", "always")
    quiet = SimulatorEvaluator(parameters_for(FIXED), rotations)
    noisy = SimulatorEvaluator(parameters_for(FIXED), rotations, noise=3000.0)
    (a,), _ = run(graph, Backend(quiet, quiet.encrypt, quiet.decrypt, 0.0), images)
    (b,), _ = run(graph, Backend(noisy, noisy.encrypt, noisy.decrypt, 0.0), images)
    difference = np.max(np.abs(quiet.decrypt(a) - noisy.decrypt(b)))
    assert 1e-9 < difference < 1e-4


def test_earlier_names_work_where_other_hooks_are_left_at_their_defaults() -> None:
    with pytest.warns(DeprecationWarning, match="call it _"):

        class Earlier(PlainEvaluator):
            def _normalize(self, a: Any, state: CipherState) -> Any:
                return super()._normalize(a, state)  # type: ignore[misc]

            def _drop(self, a: Any, state: CipherState, level: int) -> Any:
                return super()._drop(a, state, level)  # type: ignore[misc]

    backend = make_backend("plain", FIXED)
    context, _ = openfhe_keys(FIXED)
    evaluator = Earlier(context, parameters_for(FIXED), STEPS)
    a = backend.encrypt(slots(0), 4)
    total = evaluator.rescale(evaluator.multiply_sum([(a, a), (a, a)]))
    low = evaluator.level_reduce(total, 1)
    moved = evaluator.rotate_sum([(low, 1), (low, 5)])
    assert backend.close(moved, 2 * (np.roll(slots(0), -1) ** 2 + np.roll(slots(0), -5) ** 2))


def test_earlier_names_work_and_warn() -> None:
    with pytest.warns(DeprecationWarning, match="call it _rescale"):

        class Earlier(SimulatorEvaluator):
            def _normalize(self, a: Any, state: CipherState) -> Any:
                return super()._normalize(a, state)  # type: ignore[misc]

    parameters = Parameters(log_ring=12, depth=2, scale_bits=30, first_bits=36, digits=1, security=0)
    evaluator = Earlier(parameters)
    a = evaluator.encrypt(np.full(parameters.slots, 0.5), 2)
    with pytest.warns(DeprecationWarning, match="rescale"):
        square = evaluator.normalize(evaluator.multiply(a, a))
    with pytest.warns(DeprecationWarning, match="level_reduce"):
        low = evaluator.drop(square, 0)
    np.testing.assert_allclose(evaluator.decrypt(low), 0.25)
