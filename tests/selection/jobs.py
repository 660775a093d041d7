"""Lowerings of small graphs by hand-made sets of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from olac.analysis.estimate import Estimate, estimate
from olac.calibration.statistics import Calibration
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.ir.graph import Graph
from olac.options import CompileOptions
from olac.passes.base import PassContext, PassManager
from olac.passes.pipeline import lowering_pipeline
from olac.program.program import CompiledProgram
from olac.selection.job import Job
from olac.selection.price import Candidate, Draft
from tests.networks import key_steps

TABLE = CostTable.default()


@dataclass(frozen=True)
class Watched(Job):
    """Remembers what graphs were packed for."""

    packs: list[Parameters] = field(default_factory=list)

    def packed(self, parameters: Parameters) -> Draft:
        self.packs.append(parameters)
        return super().packed(parameters)


def job_of(graph: Graph, calibration: Calibration, options: CompileOptions | None = None, **choices: Any) -> Watched:
    """Of the usual passes, for one thread; choices are fields of `CompileOptions`."""
    chosen = replace(options or CompileOptions(threads=1, costs=TABLE), **choices)
    return Watched(graph, calibration, chosen, lowering_pipeline())


def lowered(graph: Graph, parameters: Parameters) -> tuple[CompiledProgram, Estimate]:
    """By all passes, with keys for all steps; and what it takes."""
    context = PassContext(parameters=parameters, costs=TABLE, threads=1)
    made = PassManager(lowering_pipeline()).run(graph, context)
    program = CompiledProgram(made, parameters, key_steps(made, parameters))
    return program, estimate(program, 1, TABLE)


def finished(job: Job, one: Candidate) -> tuple[CompiledProgram, Estimate]:
    """A candidate after all passes, with keys for all steps; and what it takes."""
    graph = job.finished(one).graph
    program = CompiledProgram(graph, one.parameters, key_steps(graph, one.parameters))
    return program, estimate(program, 1, TABLE)
