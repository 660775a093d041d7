"""Seconds of the primitives of several engines, measured in turns in one process.

The load of a machine changes while it is measured. So each primitive is called on one engine after the other, several
times, and the fastest call of each counts. What comes out is decrypted and compared with what it should be.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from benchmarks.yardstick import Yardstick
from olac.backends.base import Array, Ciphertext, Evaluator
from olac.backends.session import Engine, PlaintextCache
from olac.ckks.parameters import Parameters
from olac.ir.types import CipherState

T = TypeVar("T")

STEPS = (1, 2, 3)
"""Rotations that there are keys for; a sum has a term for each."""
POOL_BYTES = 48 << 20
"""Operands take turns, as those of a program are rarely in the caches. Together they have about this size."""
FEWEST_OPERANDS, MOST_OPERANDS = 2, 8
SHORTEST = 2e-3
"""Seconds: quicker calls are repeated until they take so long together."""
MOST_REPEATS = 100
WRONG = 0.01
"""Errors of slots in [-1, 1] that only a wrong result has."""
HOISTED, HOIST, BOTH = "hoisted rotation", "hoist", "hoist, hoisted rotation"


class WrongResult(RuntimeError):
    """A primitive whose result does not decrypt to what it should be."""


@dataclass(frozen=True)
class Times:
    """Seconds of one call of each primitive by its name, and the largest error of each that can be decrypted."""

    cpu: dict[str, float]
    wall: dict[str, float]
    errors: dict[str, float]


class Bench:
    """One engine with its keys, in this process.

    Attributes:
        name, engine: as given.
        evaluator: of the server.
        keygen_seconds: wall seconds of making one key, the mean.
    """

    def __init__(self, name: str, engine: Engine, parameters: Parameters) -> None:
        self.name, self.engine, self._parameters = name, engine, parameters
        steps = dict.fromkeys(STEPS, parameters.depth)
        self._client = engine.client(parameters, f"primitives of {name}")
        start = time.perf_counter()
        keys = self._client.make_keys(steps, parameters.depth)
        self.keygen_seconds = (time.perf_counter() - start) / (len(STEPS) + 1)
        self.server = engine.server(parameters, keys, steps, PlaintextCache(0))
        self.evaluator: Evaluator[Any, Any] = self.server.uncached()

    def encrypted(self, slots: Array, level: int) -> Ciphertext[Any]:
        """A ciphertext of slots, shape (slots,), that the evaluator takes."""
        fresh = self.server.adopt(self._client.encrypt(slots, level))
        return Ciphertext(fresh, CipherState(level, 1, self._parameters.scale(level)))

    def decrypted(self, a: Ciphertext[Any]) -> Array:
        """The slots, shape (slots,), of a ciphertext of noise degree 1."""
        return self._client.decrypt(Ciphertext(self._client.adopt(a.payload), a.state))

    def key_bytes(self, level: int) -> tuple[int, int]:
        """Bytes of a rotation key that is used up to a level: in a file, and in a server's memory."""
        steps = {STEPS[0]: level}
        return (
            self.engine.key_sizes(self._parameters, steps, None)[0],
            self.engine.held_key_sizes(self._parameters, steps, None)[0],
        )


@dataclass(frozen=True)
class _Primitive:
    """A call, and the slots that its result should have; None if it is no ciphertext that can be decrypted."""

    call: Callable[[], Any]
    expected: Array | None = None


def _primitives(bench: Bench, level: int) -> dict[str, _Primitive]:
    """The primitives at a level, in the order of tables.

    An engine may put off work: the division by P until the rescale that follows, the lifting of digits until the first
    rotation that uses them. So there are primitives in pairs as well, which compare what programs pay.
    """
    ev, parameters = bench.evaluator, bench.evaluator.parameters
    scale, random = parameters.scale(level), np.random.default_rng(0)
    x, w = (random.uniform(-1, 1, parameters.slots) for _ in range(2))
    count = math.ceil(POOL_BYTES / (16 * (level + 1) << parameters.log_ring))
    count = min(MOST_OPERANDS, max(FEWEST_OPERANDS, count))

    def pool(make: Callable[[], T]) -> Iterator[T]:
        return itertools.cycle([make() for _ in range(count)])

    a, p = pool(lambda: bench.encrypted(x, level)), pool(lambda: ev.encode(lambda: w, level, scale))
    one = next(a)
    digits = ev._hoist(one.payload, one.state)

    def hoist_and_rotate() -> Ciphertext[Any]:
        given = next(a)
        return Ciphertext(
            ev._hoisted_rotate(given.payload, ev._hoist(given.payload, given.state), 1, given.state), given.state
        )

    rotated = np.roll(x, -1)
    found = {
        "encode": _Primitive(lambda: ev.encode(lambda: w, level, scale)),
        "add": _Primitive(lambda: ev.add(next(a), next(a)), 2 * x),
        "plaintext product": _Primitive(lambda: ev.multiply_plain(next(a), next(p))),
        "rotation": _Primitive(lambda: ev.rotate(next(a), 1), rotated),
        BOTH: _Primitive(hoist_and_rotate, rotated),
        HOISTED: _Primitive(
            lambda: Ciphertext(ev._hoisted_rotate(one.payload, digits, 1, one.state), one.state), rotated
        ),
        "ext rotation": _Primitive(lambda: ev._extended_rotate(one.payload, digits, 1, one.state)),
    }
    if level < 1:
        return found
    products = pool(lambda: ev.multiply_plain(next(a), next(p)))
    total: Array = np.sum([np.roll(x * w, -step) for step in STEPS], axis=0)

    def sum_of_rotations() -> Ciphertext[Any]:
        return ev.rotate_sum([(next(products), step) for step in STEPS])

    summed = f"sum of {len(STEPS)} rotations"
    return found | {
        "rescale": _Primitive(lambda: ev.rescale(next(products)), x * w),
        "plaintext product, rescale": _Primitive(lambda: ev.rescale(ev.multiply_plain(next(a), next(p))), x * w),
        "product": _Primitive(lambda: ev.multiply(next(a), next(a))),
        "product, rescale": _Primitive(lambda: ev.rescale(ev.multiply(next(a), next(a))), x * x),
        summed: _Primitive(sum_of_rotations),
        f"{summed}, rescale": _Primitive(lambda: ev.rescale(sum_of_rotations()), total),
    }


def measure(benches: Sequence[Bench], level: int, rounds: int, yardstick: Yardstick) -> dict[str, Times]:
    """The primitives at a level, by the name of the engine.

    Args:
        benches: the engines, of the same parameters.
        level: of the operands, which have level + 1 limbs.
        rounds: how often each primitive is measured on each engine.
        yardstick: takes its samples in between.

    Raises:
        WrongResult: a primitive gave something else than it should.
    """
    times = {bench.name: Times({}, {}, {}) for bench in benches}
    with ExitStack() as stack:
        for bench in benches:
            stack.enter_context(bench.server.running())
        made = {bench.name: _primitives(bench, level) for bench in benches}
        for name in made[benches[0].name]:
            repeats = {}
            for bench in benches:
                primitive = made[bench.name][name]
                result = primitive.call()
                if primitive.expected is not None:
                    times[bench.name].errors[name] = _error(bench, name, result, primitive.expected)
                cpu, wall = _timed(primitive.call, 1)
                repeats[bench.name] = min(MOST_REPEATS, max(1, math.ceil(SHORTEST / max(cpu, wall, 1e-9))))
            for _ in range(rounds):
                yardstick.sample()
                for bench in benches:
                    spent, once = times[bench.name], repeats[bench.name]
                    cpu, wall = _timed(made[bench.name][name].call, once)
                    spent.cpu[name] = min(cpu, spent.cpu.get(name, math.inf))
                    spent.wall[name] = min(wall, spent.wall.get(name, math.inf))
    return {name: _with_hoist(found) for name, found in times.items()}


def _error(bench: Bench, name: str, result: Ciphertext[Any], expected: Array) -> float:
    """The largest error of a result."""
    error = float(np.max(np.abs(bench.decrypted(result) - expected)))
    if not error < WRONG:
        raise WrongResult(f"{bench.engine.title}: {name} gave a result that is off by {error:.2g}")
    return error


def _timed(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """CPU seconds of all threads and wall seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats


def _with_hoist(times: Times) -> Times:
    """With the seconds of a hoist alone: those with a rotation less those of a rotation whose digits are there."""

    def added(seconds: dict[str, float]) -> dict[str, float]:
        out = {}
        for name, value in seconds.items():
            out[name] = value
            if name == HOISTED:
                out[HOIST] = max(0.0, seconds[BOTH] - value)
        return out

    return Times(added(times.cpu), added(times.wall), times.errors)
