"""How fast this machine is now against the one of a table of costs: a few primitives that need no evaluation key.

They run on a short chain of the program's ring, so that this takes about a second at most, and on several operands in
turns, because those of a program are rarely in the caches.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from olac.backends.base import Array, Ciphertext, Evaluator, Plaintext
from olac.backends.cost import LIGHT, Slowdown, predicted_seconds
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """Something that is measured.

    Attributes:
        primitives: what it is priced as: primitives of one kind, light or heavy, and how often each.
        call: does it.
    """

    primitives: Mapping[str, int]
    call: Callable[[], object]


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


class Operands:
    """What samples take, in turns.

    Args:
        evaluator: which needs no evaluation keys.
        fresh: makes a ciphertext of slots, shape (slots,), at a level.
    """

    def __init__(self, evaluator: Evaluator[Any, Any], fresh: Callable[[Array, int], Ciphertext[Any]]) -> None:
        self._evaluator, parameters = evaluator, evaluator.parameters
        self._level = measured_level(parameters)
        self._slots: Array = np.linspace(-1.0, 1.0, parameters.slots, dtype=np.float64)
        one = 16 * (self._level + 1) << parameters.log_ring
        self._count = min(MOST_OPERANDS, max(FEWEST_OPERANDS, math.ceil(POOL_BYTES / one)))
        self._ciphertexts = self.in_turns(lambda: fresh(self._slots, self._level))
        self._plaintexts = self.in_turns(self.encode)

    def in_turns(self, make: Callable[[], T]) -> Iterator[T]:
        """Several of what a function makes, over and over."""
        return itertools.cycle([make() for _ in range(self._count)])

    def encode(self) -> Plaintext[Any]:
        """A new plaintext."""
        return self._evaluator.encode(lambda: self._slots, self._level, self._evaluator.parameters.scale(self._level))

    def ciphertext(self) -> Ciphertext[Any]:
        """The next ciphertext."""
        return next(self._ciphertexts)

    def product(self) -> Ciphertext[Any]:
        """The product of the next ciphertext and the next plaintext."""
        return self._evaluator.multiply_plain(self.ciphertext(), next(self._plaintexts))


Measurement = tuple[Mapping[str, int], float]
"""What was measured, as `Sample.primitives`, and the mean wall seconds of one call."""


def measure(samples: Sequence[Sample]) -> tuple[Measurement, ...]:
    """Call each sample for a short time."""
    return tuple((sample.primitives, _seconds(sample.call)) for sample in samples)


def slowdown(measured: Sequence[Measurement], chain: Parameters, costs: CostTable, threads: int) -> Slowdown:
    """Measured over tabled seconds.

    Slow waking of threads affects light primitives more than heavy ones, so the two have factors of their own.
    """
    level = measured_level(chain)

    def price(primitives: Mapping[str, int]) -> float:
        return sum(n * predicted_seconds(costs, name, chain, level, threads) for name, n in primitives.items())

    def factor(light: bool) -> float:
        kind = [one for one in measured if all((name in LIGHT) == light for name in one[0])]
        seconds, tabled = sum(one for _, one in kind), sum(price(primitives) for primitives, _ in kind)
        return float(np.clip(seconds / tabled, LEAST, MOST))

    return Slowdown(light=factor(True), heavy=factor(False))


def _seconds(call: Callable[[], object]) -> float:
    call()
    seconds: list[float] = []
    while len(seconds) < FEWEST or (sum(seconds) < SECONDS and len(seconds) < MOST_CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.fmean(seconds)
