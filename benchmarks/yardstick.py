"""A yardstick: CPU seconds of a number-theoretic transform that is the same whatever is measured beside it.

The speed of a machine that others use, too, changes from minute to minute. A row that has the seconds of the yardstick,
taken in the same process at the same time, can be compared with another by its ratio to them. The transform is numpy's
work alone, in one thread, so that engines and their improvements do not change it.
"""

from __future__ import annotations

import statistics
import time
from functools import cache

import numpy as np
import numpy.typing as npt

Residues = npt.NDArray[np.uint64]

PRIME = 15 * 2**27 + 1
"""Below 2^31, so that products of residues fit in 64 bits."""
GENERATOR = 31
"""Of the multiplicative group modulo PRIME."""
POINTS = 1 << 16
EVERY_SECONDS = 0.5
FEWEST = 5
"""Samples."""


@cache
def _factors(points: int) -> tuple[Residues, ...]:
    """The powers of the root of unity that each pass multiplies by, as a column."""
    root, found = pow(GENERATOR, (PRIME - 1) // points, PRIME), []
    while points > 1:
        powers = np.ones(points // 2, dtype=np.uint64)
        for i in range(1, len(powers)):
            powers[i] = int(powers[i - 1]) * root % PRIME
        found.append(powers[:, None])
        points, root = points // 2, root * root % PRIME
    return tuple(found)


def transform(values: Residues) -> Residues:
    """The transform of residues modulo PRIME, shape (2^k,), by passes of Stockham's: sum over i of v_i r^(i j).

    r is GENERATOR to the power of (PRIME - 1) / 2^k. The order is the natural one.
    """
    prime, block = np.uint64(PRIME), 1
    for factors in _factors(len(values)):
        first, second = values.reshape(2, -1, block)
        passed = np.empty((len(factors), 2, block), dtype=np.uint64)
        np.mod(first + second, prime, out=passed[:, 0])
        np.mod((first + (prime - second)) * factors, prime, out=passed[:, 1])
        values, block = passed.reshape(-1), 2 * block
    return values


class Yardstick:
    """Takes samples from time to time.

    Attributes:
        wall, cpu: seconds that all samples took, to be left out of what is measured around them.
    """

    def __init__(self) -> None:
        self._values = np.random.default_rng(0).integers(0, PRIME, POINTS, dtype=np.uint64)
        self._samples: list[float] = []
        self._next = 0.0
        self.wall = self.cpu = 0.0
        transform(self._values)

    def sample(self) -> None:
        """Measure one transform, unless one was measured just before."""
        wall = time.perf_counter()
        if wall < self._next:
            return
        cpu = time.process_time()
        start = time.thread_time()
        transform(self._values)
        self._samples.append(time.thread_time() - start)
        self.cpu += time.process_time() - cpu
        end = time.perf_counter()
        self.wall += end - wall
        self._next = end + EVERY_SECONDS

    @property
    def seconds(self) -> float:
        """CPU seconds of one transform of 2^16 points: the median of the samples."""
        while len(self._samples) < FEWEST:
            self._next = 0.0
            self.sample()
        return statistics.median(self._samples)
