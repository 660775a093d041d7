"""An evaluator gives the same bits on one thread, two and three, and to callers that use it at the same time."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from olac.backends.base import Ciphertext
from olac.backends.vector import available
from olac.backends.vector import team as team_module
from olac.backends.vector.ciphertext import Products, Residues
from olac.backends.vector.evaluator import VectorEvaluator
from olac.backends.vector.key_making import KeyMaker
from olac.backends.vector.keys import switching_form
from olac.backends.vector.keyset import VectorKeys, packed_key
from olac.backends.vector.randomness import sparse_ternary
from olac.backends.vector.ring import ring
from olac.backends.vector.team import Team
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ir.types import CipherState

pytestmark = pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")

LOG_RING = 11
STEPS = (1, 5, 300)
PARAMETERS = {
    "loose": Parameters(LOG_RING, 5, 37, 41, 3, FLEXIBLE, security=0),
    "tight": Parameters(LOG_RING, 3, 48, 50, 2, FLEXIBLE, security=0),
}
Steps = Callable[[VectorEvaluator, Any, Any, Any], Any]

PRIMITIVES: dict[str, Steps] = {
    "add": lambda e, a, b, c: e.add(a, b),
    "add_plain": lambda e, a, b, c: e.add_plain(a, plain(e, a)),
    "add_scalar": lambda e, a, b, c: e.add_scalar(a, 0.37),
    "multiply_plain": lambda e, a, b, c: e.multiply_plain(a, plain(e, a)),
    "a sum of products": lambda e, a, b, c: sum_of(e, [e.multiply_plain(x, plain(e, x)) for x in [a, b, c] * 4]),
    "multiply_i": lambda e, a, b, c: e.multiply_i(a),
    "multiply": lambda e, a, b, c: e.multiply(a, b),
    "multiply_sum": lambda e, a, b, c: e.multiply_sum([(a, b), (b, b), (a, a)]),
    "rescale": lambda e, a, b, c: e.rescale(e.multiply_plain(a, plain(e, a))),
    "rescale a product": lambda e, a, b, c: e.rescale(e.multiply(a, b)),
    "level_reduce": lambda e, a, b, c: e.level_reduce(a, 1),
    "rotate": lambda e, a, b, c: e.rotate(a, 5),
    "rotate by a sum of steps": lambda e, a, b, c: e.rotate(a, 306),
    "rotate_hoisted": lambda e, a, b, c: list(e.rotate_hoisted(a, STEPS).values()),
    "rotate_sum": lambda e, a, b, c: e.rotate_sum([(a, 1), (b, 5), (a, 0), (b, 300)]),
    "rotate_sum of products": lambda e, a, b, c: e.rescale(
        e.rotate_sum([(e.multiply_plain(x, plain(e, x)), step) for x, step in ((a, 1), (b, 5))])
    ),
    "add_conjugate": lambda e, a, b, c: e.add_conjugate(a),
    "a lower level": lambda e, a, b, c: e.rotate(e.rescale(e.multiply(c, c)), 1),
}


def sum_of(evaluator: VectorEvaluator, terms: Sequence[Ciphertext[Any]]) -> Ciphertext[Any]:
    return functools.reduce(evaluator.add, terms)


def plain(evaluator: VectorEvaluator, a: Ciphertext[Any]) -> Any:
    slots = np.sin(np.arange(evaluator.slots) + 0.5)
    return evaluator.encode(lambda: slots, a.state.level, a.state.scale)


@lru_cache(maxsize=2)
def keys(name: str) -> VectorKeys:
    parameters, made = PARAMETERS[name], VectorKeys(PARAMETERS[name])
    own, level = ring(parameters), parameters.depth
    maker, form = KeyMaker(own, parameters, sparse_ternary(own.N, 64)), switching_form(parameters, level)
    new = maker.relinearisation(level)
    made.add("relinearise", form, packed_key(own, form, new.limbs, new.seed))
    for step in (*STEPS, parameters.conjugation_step):
        new = maker.rotation(step, level)
        made.add(step, form, packed_key(own, form, new.limbs, new.seed))
    return made


def evaluator_of(name: str, threads: int) -> VectorEvaluator:
    held = (*STEPS, PARAMETERS[name].conjugation_step)
    return VectorEvaluator(PARAMETERS[name], keys(name), held, team=Team(threads))


def operand(evaluator: VectorEvaluator, level: int, seed: int) -> Ciphertext[Residues]:
    """Uniform residues, half of them as large as they may be: whether it is an encryption makes no difference."""
    random, r = np.random.default_rng(seed), evaluator.ring
    scale = evaluator.parameters.scale(level)
    made = evaluator.make(2, level + 1, 1, scale)
    for place in range(2 * (level + 1)):
        most = int(0.75 * r.primes[place % (level + 1)])
        limb = random.integers(-most, most, r.N, endpoint=True).astype(float)
        limb[::2] = most * random.choice((-1.0, 1.0), r.N // 2)
        made.data[place * r.N : (place + 1) * r.N] = limb
    return Ciphertext(made, CipherState(level, 1, scale))


def limbs(evaluator: VectorEvaluator, found: Any) -> list[np.ndarray[Any, Any]]:
    """All residues, as they are."""
    if isinstance(found, list):
        return [part for one in found for part in limbs(evaluator, one)]
    a, n = found.payload, evaluator.ring.N
    a = evaluator.summed(a) if isinstance(a, Products) else a
    return [a.data[at : at + n].copy() for at in a.offsets(n)]


def results(name: str, threads: int, steps: Steps) -> list[np.ndarray[Any, Any]]:
    evaluator = evaluator_of(name, threads)
    top = PARAMETERS[name].depth
    return limbs(evaluator, steps(evaluator, *(operand(evaluator, top, seed) for seed in range(3))))


@pytest.fixture
def always_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is shared however small it is."""
    monkeypatch.setattr(team_module, "SMALL", 1)


@pytest.mark.usefixtures("always_shared")
@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_results_are_the_same_for_any_number_of_threads(name: str, primitive: str) -> None:
    one = results(name, 1, PRIMITIVES[primitive])
    assert len(one) >= 4 and all(np.any(limb) for limb in one)
    for threads in (2, 3):
        for _ in range(2):
            for found, expected in zip(results(name, threads, PRIMITIVES[primitive]), one, strict=True):
                assert np.array_equal(found, expected) and np.array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.usefixtures("always_shared")
def test_work_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it were not, the test above would hold whatever kernels do."""
    seen: set[int] = set()
    evaluator = evaluator_of("loose", 3)
    run = evaluator.team.run

    def spying(kernel: Callable[..., object], *args: Any, **named: Any) -> None:
        def spy(lo: int, hi: int, worker: int, *rest: Any) -> None:
            seen.add(worker)
            kernel(lo, hi, worker, *rest)

        run(spy, *args, **named)

    monkeypatch.setattr(evaluator.team, "run", spying)
    a = operand(evaluator, 5, 0)
    for _ in range(50):
        evaluator.rotate(a, 1)
        if seen == {0, 1, 2}:
            break
    assert seen == {0, 1, 2}


@pytest.mark.usefixtures("always_shared")
@pytest.mark.parametrize("threads", [1, 2])
def test_callers_at_the_same_time(threads: int) -> None:
    """Programs that run in several threads on one evaluator do not disturb each other."""
    shared = evaluator_of("loose", threads)
    chosen = ("rotate", "rescale a product", "multiply_plain", "rotate_sum")
    operands = [operand(shared, 5, seed) for seed in range(3)]
    expected = {primitive: results("loose", 1, PRIMITIVES[primitive]) for primitive in chosen}
    wrong: list[str] = []

    def call(primitive: str) -> None:
        for _ in range(6):
            found = limbs(shared, PRIMITIVES[primitive](shared, *operands))
            if not all(np.array_equal(x, y) for x, y in zip(found, expected[primitive], strict=True)):
                wrong.append(primitive)

    callers = [threading.Thread(target=call, args=(primitive,)) for primitive in chosen]
    for caller in callers:
        caller.start()
    end = time.monotonic() + 120
    while any(caller.is_alive() for caller in callers) and time.monotonic() < end:
        callers[0].join(0.1)
        callers = [caller for caller in callers if caller.is_alive()]
    assert not callers and wrong == []
