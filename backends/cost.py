"""Prices a program: the recorder's stream of primitives times the cost table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from olac.backends.recorder import RecorderEvaluator
from olac.ckks.engines import OPENFHE, EngineModel
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.costs.work import CiphertextShape

Floats = npt.NDArray[np.float64]

LIGHT = frozenset(
    {"add", "add_plain", "add_scalar", "multiply_plain", "multiply_scalar", "multiply_no_relin", "ext_add", "drop"}
)
"""Primitives without a transform: short, so that waking a second thread is most of what they take."""


@dataclass(frozen=True)
class Slowdown:
    """Seconds on a machine over those of the table, for light primitives and for all others."""

    light: float = 1.0
    heavy: float = 1.0

    def of(self, primitive: str) -> float:
        """The factor of one primitive."""
        return self.light if primitive in LIGHT else self.heavy


class CostEvaluator(RecorderEvaluator):
    """Adds up predicted seconds as a program runs on no data.

    Additions of products that are not relinearised yet, which have three polynomials, are priced like all others.

    Args:
        parameters: of the program.
        table: seconds of each primitive.
        threads: the threads that the engine may use.
        encoded: whether plaintexts were encoded before, so that encoding is free.
        slowdown: of this machine against that of the table.
        rotations: steps that there are keys for; None if all steps have keys.

    Attributes:
        engine: whose prices the table has.
    """

    def __init__(
        self,
        parameters: Parameters,
        table: CostTable,
        threads: int = 2,
        encoded: bool = False,
        slowdown: Slowdown | None = None,
        rotations: Iterable[int] | None = None,
    ) -> None:
        super().__init__(parameters, rotations)
        self.table, self.engine = table, table.engine
        self.threads = threads
        self.encoded = encoded
        self.slowdown = slowdown or Slowdown()
        self.seconds = 0.0
        self._known: dict[tuple[str, int], float] = {}
        self._rows: dict[str, Floats] = {}
        self._shapes: dict[int, CiphertextShape] = {}
        self._threads = _measured_threads(table, threads)
        self._ring, self._larger = _measured_ring(table, parameters.log_ring)

    def price(self, primitive: str, level: int) -> float:
        """Seconds of one primitive on an operand at a level."""
        key = (primitive, level)
        if key not in self._known:
            if primitive == "bootstrap":
                return self._bootstrap_price
            tabled = self.table.seconds(primitive, self._shape(level), self._threads) * self._larger
            seconds = tabled * self.slowdown.of(primitive)
            self._known[key] = seconds + sum(self.price(one, level) for one in self.engine.also.get(primitive, ()))
        return self._known[key]

    def prices(self, primitive: str) -> Floats:
        """Seconds of one primitive at all levels, from 0 to the top of the chain."""
        found = self._rows.get(primitive)
        if found is None:
            depth = self.parameters.depth
            key = primitive, self._shape(depth), depth, self._threads, self._larger, self.slowdown
            found = self.table.by_level.get(key)
            if found is None:
                found = np.array([self.price(primitive, level) for level in range(depth + 1)])
                found.setflags(write=False)
                self.table.by_level[key] = found
            self._rows[primitive] = found
        return found

    def _shape(self, level: int) -> CiphertextShape:
        if level not in self._shapes:
            self._shapes[level] = shape(self.parameters, level, self.engine, self._ring)
        return self._shapes[level]

    @cached_property
    def _bootstrap_price(self) -> float:
        """It is the same at every level, because every ciphertext is raised to the whole chain."""
        key = self.parameters, self.threads, self.slowdown
        if key not in self.table.bootstraps:
            work = self.engine.bootstraps(self.parameters).work
            primitives = sum(times * self.price(name, at) for name, at, times in work)
            self.table.bootstraps[key] = self.table.bootstrap_factor * primitives
        return self.table.bootstraps[key]

    def _record(self, primitive: str, level: int, step: int = 0) -> None:
        super()._record(primitive, level, step)
        if not (self.encoded and primitive == "encode"):
            self.seconds += self.price(primitive, level)


def predicted_seconds(table: CostTable, primitive: str, parameters: Parameters, level: int, threads: int) -> float:
    """Seconds of one primitive. The nearest measured ring and number of threads stand for those that were not measured.

    It is assumed that more threads than measured gain nothing, and that work is proportional to the ring dimension.
    """
    ring, larger = _measured_ring(table, parameters.log_ring)
    at = shape(parameters, level, table.engine, ring)
    return table.seconds(primitive, at, _measured_threads(table, threads)) * larger


def _measured_threads(table: CostTable, threads: int) -> int:
    return max((count for count in table.threads if count <= threads), default=table.threads[0])


def _measured_ring(table: CostTable, log_ring: int) -> tuple[int, float]:
    """The nearest ring that was measured, and how many times as large the other is."""
    ring = min(max(log_ring, table.log_rings[0]), table.log_rings[-1])
    return ring, 2.0 ** (log_ring - ring)


def shape(
    parameters: Parameters, level: int, engine: EngineModel = OPENFHE, log_ring: int | None = None
) -> CiphertextShape:
    """The shape of a ciphertext at a level, by which the cost table of an engine prices primitives.

    Args:
        log_ring: the ring in place of the parameters' own.
    """
    special = len(engine.special_primes(parameters))
    log_ring = parameters.log_ring if log_ring is None else log_ring
    return CiphertextShape(log_ring, level + 1, parameters.digit_limbs, special, parameters.technique)
