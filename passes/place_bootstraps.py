"""Decide where ciphertexts get their levels back, and the level of everything between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from olac.analysis.bootstrap_problem import Placements
from olac.analysis.bootstraps import Profiles, place_bootstraps
from olac.backends.cost import CostEvaluator
from olac.costs.table import CostTable
from olac.ir.graph import Graph, GraphBuilder
from olac.ir.ops import Bootstrap
from olac.ir.types import Stage
from olac.passes.base import Pass, PassContext


@dataclass(frozen=True)
class PlaceBootstraps(Pass):
    """Given: a packed graph.  Result: the same with %b = bootstrap(%x) where levels run out; nothing else changes.

    Levels are as low as what follows allows, because everything is cheaper there. A dynamic program over the graph's
    order, from its end, finds the plan of least predicted time. If the parameters have no bootstrapping, the graph
    stays as it is.

    Options:
        placements: what is bootstrapped and where; None to find it.
    """

    placements: Placements | None = None
    name: ClassVar[str] = "place_bootstraps"
    requires: ClassVar[Stage] = Stage.PACKED
    ensures: ClassVar[Stage] = Stage.PACKED

    def run(self, graph: Graph, context: PassContext) -> Graph:
        parameters = context.need_parameters()
        if parameters.bootstrapping is None:
            return graph
        placements = self.placements
        if placements is None:
            pricer = CostEvaluator(parameters, context.costs or CostTable.default(), context.threads)
            placements = place_bootstraps(graph, Profiles(graph, parameters), pricer).placements
        return insert(graph, placements, parameters.bootstrapping.correction, self.name)


def insert(graph: Graph, placements: Placements, correction: int, by: str) -> Graph:
    """The graph with bootstraps at these placements."""
    if not placements:
        return graph
    builder = GraphBuilder(graph.constants, by=by)
    taken = {node.id for node in graph.nodes}
    new: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        new[node.id] = builder.keep(node, tuple(new[i] for i in node.inputs))
        for value in (name for position, name in placements if position == index):
            count = 1
            while (name := f"{value}_boot{count if count > 1 else ''}") in taken:
                count += 1
            taken.add(name)
            old = graph[value]
            new[value] = builder.add(Bootstrap(correction), [new[value]], name=name, origin=old.origin, type=old.type)
    return builder.build(
        [new[output] for output in graph.outputs], stage=graph.stage, inputs=[i.id for i in graph.inputs]
    )
