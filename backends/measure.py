"""Measures an engine's primitives on this machine, for the table by which `olac.costs.table` prices programs.

Each setting runs in a process of its own, because engines read the number of threads when they are imported and keep
tables of transforms for the life of a process. The whole grid is measured `passes` times, and the fastest pass of each
primitive counts. What an engine brings is a `Measurer`, in a module that calls `answer` when it is run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from olac.backends.cost import CostEvaluator
from olac.ckks.engines import EngineModel
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.fit import fastest, fit
from olac.costs.table import CostTable, MeasuredRow
from olac.costs.work import CiphertextShape
from olac.errors import BackendError
from olac.progress import Event

CALL_BUDGET = 0.03  # seconds spent on one primitive in one pass, if a call is short
POOL_BYTES = 16 << 20  # weights are read once, so products cycle through plaintexts that don't stay in the cache
QUICK_BUDGET = 0.003
BOOTSTRAP_ROUNDS = 3
WORKER_TIMEOUT = 900


@dataclass(frozen=True)
class Setting:
    """One chain of primes: `limbs` primes of `scale_bits` bits, cut into `digits` digits."""

    log_ring: int
    limbs: int
    digits: int
    scale_bits: int

    @property
    def digit_limbs(self) -> int:
        return -(-self.limbs // self.digits)

    def describe(self) -> str:
        """For people."""
        return f"ring 2^{self.log_ring}, {self.limbs} limbs of {self.scale_bits} bits, {self.digits} digits"

    @property
    def levels(self) -> list[int]:
        """Numbers of limbs at which the primitives are measured."""
        return sorted({self.limbs, *(max(1, round(self.limbs * part)) for part in (0.65, 0.35)), 2, 1})


GRID = (
    Setting(12, 2, 1, 36),
    Setting(12, 4, 2, 30),
    Setting(12, 8, 3, 30),
    Setting(13, 3, 1, 32),
    Setting(13, 4, 2, 40),
    Setting(13, 6, 6, 33),
    Setting(13, 8, 3, 30),
    Setting(13, 12, 3, 45),
    Setting(14, 4, 1, 40),
    Setting(14, 6, 2, 40),
    Setting(14, 8, 8, 33),
    Setting(14, 8, 3, 30),
    Setting(14, 12, 3, 45),
    Setting(15, 6, 1, 50),
    Setting(15, 12, 3, 40),
    Setting(15, 16, 8, 33),
    Setting(15, 21, 3, 30),
    Setting(16, 10, 2, 50),
    Setting(16, 20, 3, 40),
    Setting(16, 27, 3, 40),
    Setting(16, 28, 4, 40),
)
RINGS = tuple(sorted({setting.log_ring for setting in GRID}))
BOOTSTRAPPED = Parameters(13, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))
"""The chain of the bootstrap that is measured for OpenFHE, whose bootstraps take as long as their primitives."""


def grid(rings: Sequence[int] = RINGS, quick: bool = False) -> tuple[Setting, ...]:
    """The settings of some rings; with `quick` the first and the last of each ring.

    Raises ValueError for a ring that has none.
    """
    unknown = sorted(set(rings) - set(RINGS))
    if unknown or not rings:
        raise ValueError(f"rings to measure are {', '.join(map(str, RINGS))} (log2), not {unknown or 'none'}")
    chosen = []
    for log_ring in sorted(set(rings)):
        same = [setting for setting in GRID if setting.log_ring == log_ring]
        chosen += [same[0], same[-1]] if quick else same
    return tuple(chosen)


def time_call(call: Callable[[], object], budget: float = CALL_BUDGET) -> float:
    """Seconds of one call: the lower quartile, which other work on the machine hardly changes."""
    call()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 300):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.quantiles(times, n=4)[0]


class Measurer(ABC):
    """How one engine is measured.

    Attributes:
        model: of the engine.
        module: that answers in a process of its own.
        bootstrapped: the chain of the one bootstrap that is measured; at ring 2^12 if it has to be quick.
    """

    model: ClassVar[EngineModel]
    module: ClassVar[str]
    bootstrapped: ClassVar[Parameters] = BOOTSTRAPPED

    @abstractmethod
    def load(self) -> str:
        """Load the engine's library; its version. Raises `BackendError` if that can't be done."""

    @abstractmethod
    def setting(self, setting: Setting, threads: int, budget: float) -> list[MeasuredRow]:
        """Measure one setting in this process, each primitive for about `budget` seconds."""

    @abstractmethod
    def bootstrap(self, parameters: Parameters, quick: bool) -> float:
        """Seconds of a bootstrap over those of a rotation of the whole chain, in this process."""

    def answer(self, request: Any) -> object:
        """A worker's answer: one setting, or the bootstrap."""
        if "bootstrap" in request:
            return self.bootstrap(replace(self.bootstrapped, log_ring=request["bootstrap"]), request["quick"])
        budget = QUICK_BUDGET if request["quick"] else CALL_BUDGET
        return [asdict(row) for row in self.setting(Setting(**request["setting"]), request["threads"], budget)]

    def main(self) -> None:
        """Answer the request on the command line."""
        json.dump(self.answer(json.loads(sys.argv[1])), sys.stdout)


def median_ratio(bootstrap: Callable[[], object], rotate: Callable[[], object], quick: bool) -> float:
    """Seconds of a bootstrap over those of a rotation, by turns, so that other work on the machine disturbs both."""
    ratios = []
    for _ in range(1 if quick else BOOTSTRAP_ROUNDS):
        seconds = time_call(bootstrap)
        ratios.append(seconds / time_call(rotate, seconds))
    return statistics.median(ratios)


def bootstrap_factor(rotations: float, parameters: Parameters, table: CostTable, threads: int) -> float:
    """The `CostTable.bootstrap_factor` of a bootstrap that takes as long as some rotations of the whole chain."""
    pricer = CostEvaluator(parameters, replace(table, bootstrap_factor=1.0), threads)
    return rotations * pricer.price("rotate", parameters.depth) / pricer.price("bootstrap", parameters.depth)


def measure_costs(
    measurer: Measurer,
    threads: Sequence[int] = (1, 2),
    rings: Sequence[int] = RINGS,
    quick: bool = False,
    passes: int = 1,
    progress: Callable[[str], None] | None = None,
) -> CostTable:
    """The cost table of an engine on this machine.

    Args:
        measurer: of the engine.
        threads: numbers of threads to measure.
        rings: log2 of the ring dimensions to measure; programs at other rings are priced by the nearest of these.
        quick: measure few settings and calls, for a rough table.
        passes: how often the whole grid is measured.
        progress: called with a line of text after each step.

    Raises:
        ValueError: no threads or passes, or a ring that isn't in `RINGS`.
        BackendError: the engine can't be loaded, or fails.
    """
    settings = grid(rings, quick)
    counts = sorted(set(threads))
    if not counts or counts[0] < 1 or passes < 1:
        raise ValueError(f"measuring needs threads and passes of at least 1, not {counts} and {passes}")
    version = measurer.load()
    say, done = progress or (lambda line: None), 0

    def timed(what: str, request: dict[str, object], count: int) -> Any:
        start = time.perf_counter()
        answer = _ask_worker(measurer.module, {**request, "quick": quick}, count)
        nonlocal done
        done += 1
        line = f"{what}, {count} thread{'s' if count > 1 else ''}: {time.perf_counter() - start:.1f} s"
        say(Event(line, "measuring", done, passes * len(settings) * len(counts) + 1))
        return answer

    rows: list[MeasuredRow] = []
    for _ in range(passes):
        for setting in settings:
            for count in counts:
                rows += [
                    MeasuredRow(row["primitive"], CiphertextShape(**row["shape"]), row["threads"], row["seconds"])
                    for row in timed(setting.describe(), {"setting": asdict(setting)}, count)
                ]
    bootstrapped = replace(measurer.bootstrapped, log_ring=12) if quick else measurer.bootstrapped
    log_ring = bootstrapped.log_ring
    rotations = timed(f"bootstrap at ring 2^{log_ring}", {"bootstrap": log_ring}, counts[-1])
    measured = fastest(rows)
    table = CostTable(
        machine=machine_name(),
        version=version,
        rows=measured,
        factors=fit(measured, measurer.model.fused),
        engine=measurer.model,
    )
    return replace(table, bootstrap_factor=bootstrap_factor(rotations, bootstrapped, table, counts[-1]))


def _ask_worker(module: str, request: dict[str, object], threads: int) -> Any:
    """The answer of a new process."""
    try:
        process = subprocess.run(
            [sys.executable, "-m", module, json.dumps({**request, "threads": threads})],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            timeout=WORKER_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"measuring {request} took more than {WORKER_TIMEOUT} s") from error
    if process.returncode:
        raise BackendError(f"measuring {request} failed: {process.stderr.strip()[-500:] or process.returncode}")
    return json.loads(process.stdout)


def machine_name() -> str:
    """The processor and how many of its cores this system has."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores"
