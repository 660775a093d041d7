"""How fast this machine is now against the one of a table of costs: a few primitives that need no evaluation key.

They run on a short chain of the program's ring, so that this takes about a second at most, and on several operands in
turns, because those of a program are rarely in the caches.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from olac.backends.base import Array, Ciphertext, Evaluator
from olac.backends.cost import LIGHT, Slowdown, predicted_seconds
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable

T = TypeVar("T")


@dataclass(frozen=True)
class Bench:
    """What an engine brings to be measured.

    Attributes:
        evaluator: which needs no evaluation keys.
        fresh: makes a ciphertext of slots, shape (slots,), at a level.
        hoist: decomposes a ciphertext for key switching, the lift of all digits included.
    """

    evaluator: Evaluator[Any, Any]
    fresh: Callable[[Array, int], Ciphertext[Any]]
    hoist: Callable[[Ciphertext[Any]], object]


MEASURED = ("multiply_plain", "add", "normalize", "hoist", "encode")
MOST_DEPTH = 5
"""Levels of the chain. Longer ones take longer, and their factors are within what the load of a machine changes."""
SECONDS, FEWEST, MOST_CALLS = 0.1, 5, 40
"""Each primitive is called for this long, at least and at most this often."""
POOL_BYTES = 48 << 20
"""Ciphertexts that take turns have about this size together."""
FEWEST_OPERANDS, MOST_OPERANDS = 2, 12
LEAST, MOST = 0.1, 30.0


def short_chain(parameters: Parameters) -> Parameters:
    """The chain to measure on: the ring, scale, technique and size of digits of a program, but few levels."""
    depth = max(1, min(MOST_DEPTH, parameters.depth))
    digits = -(-(depth + 1) // parameters.digit_limbs)
    return Parameters(
        parameters.log_ring,
        depth,
        parameters.scale_bits,
        parameters.first_bits,
        digits,
        parameters.technique,
        security=0,
    )


def measured_level(chain: Parameters) -> int:
    """The level of the operands."""
    return -(-chain.depth // 2)


def measure(bench: Bench) -> dict[str, float]:
    """Mean wall seconds of one call of each primitive of `MEASURED`, at `measured_level`."""
    evaluator, parameters = bench.evaluator, bench.evaluator.parameters
    level = measured_level(parameters)
    slots: Array = np.linspace(-1.0, 1.0, parameters.slots, dtype=np.float64)
    one = 16 * (level + 1) << parameters.log_ring
    operands = min(MOST_OPERANDS, max(FEWEST_OPERANDS, math.ceil(POOL_BYTES / one)))

    def pool(make: Callable[[], T]) -> Iterator[T]:
        return itertools.cycle([make() for _ in range(operands)])

    def encode() -> Any:
        return evaluator.encode(lambda: slots, level, parameters.scale(level))

    a, p = pool(lambda: bench.fresh(slots, level)), pool(encode)
    products = pool(lambda: evaluator.multiply_plain(next(a), next(p)))

    calls: dict[str, Callable[[], object]] = {
        "multiply_plain": lambda: evaluator.multiply_plain(next(a), next(p)),
        "add": lambda: evaluator.add(next(a), next(a)),
        "normalize": lambda: evaluator.rescale(next(products)),
        "hoist": lambda: bench.hoist(next(a)),
        "encode": encode,
    }
    return {name: _seconds(calls[name]) for name in MEASURED}


def slowdown(seconds: Mapping[str, float], chain: Parameters, costs: CostTable, threads: int) -> Slowdown:
    """Measured over tabled seconds.

    Slow waking of threads affects light primitives more than heavy ones, so the two have factors of their own.
    """
    level = measured_level(chain)

    def factor(light: bool) -> float:
        names = [name for name in seconds if (name in LIGHT) == light]
        tabled = sum(predicted_seconds(costs, name, chain, level, threads) for name in names)
        return float(np.clip(sum(seconds[name] for name in names) / tabled, LEAST, MOST))

    return Slowdown(light=factor(True), heavy=factor(False))


def _seconds(call: Callable[[], object]) -> float:
    call()
    seconds: list[float] = []
    while len(seconds) < FEWEST or (sum(seconds) < SECONDS and len(seconds) < MOST_CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.fmean(seconds)
