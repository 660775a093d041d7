"""Predictions for this machine: those of a table of costs, scaled by a short measurement."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from olac.analysis.estimate import Estimate
from olac.backends.session import Engine, Slowdown, available_engine, find_engine
from olac.costs.table import CostTable
from olac.errors import BackendError, ForkError, InfeasibleError
from olac.program.program import CompiledProgram
from olac.system.logs import warn
from olac.system.memory import check_room, return_freed
from olac.system.threads import usable_threads

log = logging.getLogger(__name__)

MEASURING_BYTES = 3e8
"""At the largest rings: a context, a few ciphertexts and the results of primitives."""


@dataclass(frozen=True)
class Forecast:
    """What a program will take.

    Attributes:
        estimate: of seconds and bytes.
        slowdown: of this machine against the table's, which the seconds are scaled by; None if it was not measured.
        costs: the table.
        unmeasured: why it was not measured.
    """

    estimate: Estimate
    slowdown: Slowdown | None
    costs: CostTable
    unmeasured: str = ""

    @property
    def where(self) -> str:
        """For which machine the seconds are, in words that follow a number of seconds."""
        return "on this machine" if self.slowdown is not None else f"on the machine of the table ({self.costs.machine})"


def forecast(
    program: CompiledProgram,
    engine: Engine | str | None = None,
    *,
    costs: CostTable | None = None,
    threads: int | None = None,
    measure: bool = True,
) -> Forecast:
    """Seconds and memory of a program, as this machine is now.

    The engine is used for it, so a process that forks later can't use the engine in its children. If the engine can't
    be measured, the seconds are those of the table.

    Args:
        program: the program.
        engine: that runs the program, or the name of its folder in `olac/backends`; None for the one that the program
            was planned for. If that one can't be used on this machine, a warning says so, and the prediction is for
            another; or, if no other takes the program, for the machine of the table.
        costs: prices of this engine; None for the shipped table.
        threads: that the engine uses in this process; None for those that it has.
        measure: without it, the seconds are those of the table.

    Raises:
        BackendError: there is no such engine.
        InfeasibleError: the engine does not take the program's parameters, or memory ran out.
        ValueError: the prices are of another engine.
    """
    used = _usual(program) if engine is None else find_engine(engine)
    used.check_takes(program.parameters)
    table = costs or CostTable.default(used.model)
    if table.engine is not used.model:
        raise ValueError(f"the costs are those of {table.engine.title}, not of {used.title}")
    factor, why = None, "that was not asked for"
    if measure:
        try:
            check_room(MEASURING_BYTES, "measuring this machine")
            factor = used.slowdown(program.parameters, table, threads or usable_threads())
        except ForkError:
            raise
        except (BackendError, InfeasibleError, RuntimeError, MemoryError) as error:
            why = f"{type(error).__name__}: {error}"
        finally:
            return_freed()
    return Forecast(program.estimate(threads, factor, table), factor, table, "" if factor else why)


def _usual(program: CompiledProgram) -> Engine:
    """The engine that runs a program here if nobody names one; if none does, the one that it was planned for."""
    try:
        return available_engine(program.engine, program.parameters)
    except BackendError as error:
        warn(log, str(error), stacklevel=3)
        return find_engine(program.engine)
