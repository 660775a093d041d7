"""Decide where ciphertexts get their levels back, and the level of everything between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from olac.backends.cost import CostEvaluator
from olac.backends.recorder import RecorderEvaluator
from olac.costs import CostTable
from olac.errors import InfeasibleError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Bootstrap, Input
from olac.ir.types import Stage
from olac.kernels.base import Kernel
from olac.kernels.execute import build_kernels
from olac.parameters import Bootstrapping, Parameters
from olac.passes.base import Pass, PassContext

MOST_LIVE = 4
"""Values that may be bootstrapped together; beyond that a cut is not considered."""
WIDEST = 1.0 + 1e-9
"""Largest calibrated magnitude of a slot at a bootstrap."""


@dataclass(frozen=True)
class Plan:
    """Where bootstraps go.

    Attributes:
        cuts: positions in the graph's order: all values alive behind the node there are bootstrapped.
        seconds: predicted, for the program and its bootstraps.
        bootstraps: of single ciphertexts.
        fresh_level: level of the encrypted input.
    """

    cuts: tuple[int, ...]
    seconds: float
    bootstraps: int
    fresh_level: int


@dataclass(frozen=True)
class PlaceBootstraps(Pass):
    """Given: a packed graph.  Result: the same with %b = bootstrap(%x) where levels run out; nothing else changes.

    Bootstraps cut the graph into segments. Within a segment levels are as low as its end allows, for everything is
    cheaper there. A dynamic program over all cuts finds the least predicted time; without bootstrapping in the
    parameters the graph stays as it is.

    Options:
        cuts: positions in the graph's order behind which everything alive is bootstrapped; None to find them.
    """

    cuts: tuple[int, ...] | None = None
    name: ClassVar[str] = "place_bootstraps"
    requires: ClassVar[Stage] = Stage.PACKED
    ensures: ClassVar[Stage] = Stage.PACKED

    def run(self, graph: Graph, context: PassContext) -> Graph:
        parameters = context.need_parameters()
        if parameters.bootstrapping is None:
            return graph
        if self.cuts is not None:
            return insert(graph, self.cuts, self.name)
        table = context.costs or CostTable.default()
        plan = place_bootstraps(graph, parameters, Profiles(graph, parameters), table, context.threads)
        return insert(graph, plan.cuts, self.name)


class Profiles:
    """What each node's kernel takes, at any level of its operand: kernels run on no data once."""

    def __init__(self, graph: Graph, parameters: Parameters) -> None:
        self._top = parameters.depth
        self._events: dict[str, tuple[tuple[str, int, int], ...]] = {}
        kernels = build_kernels(graph)
        for node in graph.nodes:
            if not isinstance(node.op, Input | Bootstrap):
                self._events[node.id] = _events(graph, node, kernels[node.id], parameters)

    def seconds(self, node: Node, level: int, price: Callable[[str, int], float]) -> float:
        """Predicted seconds with operands at a level."""
        return sum(count * price(primitive, level - below) for primitive, below, count in self._events.get(node.id, ()))


def _events(graph: Graph, node: Node, kernel: Kernel, parameters: Parameters) -> tuple[tuple[str, int, int], ...]:
    """(primitive, levels below the operand, times)."""
    recorder = RecorderEvaluator(parameters)
    operands: list[Any] = []
    for name in node.inputs:
        layout = graph[name].type.layout
        assert layout is not None
        operands.append((recorder.fresh(parameters.depth),) * layout.ciphertexts)
    kernel.run(recorder, operands)
    return tuple(
        (primitive, parameters.depth - level, count) for (primitive, level), count in sorted(recorder.counts().items())
    )


def place_bootstraps(graph: Graph, parameters: Parameters, profiles: Profiles, table: CostTable, threads: int) -> Plan:
    """The plan of least predicted time.

    Raises:
        InfeasibleError: two neighbouring cuts are further apart than the levels between bootstraps.
    """
    boots = parameters.bootstrapping
    assert boots is not None
    pricer = CostEvaluator(parameters, table, threads)
    one_boot = pricer.price("bootstrap", boots.input_level)
    problem = _Problem(graph, boots, parameters.depth, lambda node, level: profiles.seconds(node, level, pricer.price))
    return solve(problem, one_boot)


class _Problem:
    """Segments between cuts: which are feasible, and what they cost."""

    def __init__(self, graph: Graph, boots: Bootstrapping, depth: int, seconds: Callable[[Node, int], float]) -> None:
        self.graph, self.boots, self.depth = graph, boots, depth
        self.nodes = graph.nodes
        self._seconds = seconds
        self._memo: dict[tuple[str, int], float] = {}
        self._taken = {node.id: node.op.levels(graph.constants) for node in graph.nodes}
        place = {node.id: index for index, node in enumerate(self.nodes)}
        last = dict.fromkeys(graph.outputs, len(self.nodes))
        for index, node in enumerate(self.nodes):
            for name in node.inputs:
                last[name] = max(index, last.get(name, 0))
        self.live = [
            tuple(name for name, until in last.items() if place[name] <= index < until)
            for index in range(len(self.nodes))
        ]

    def cuts(self) -> list[int]:
        """Positions where everything that is alive may be bootstrapped; not the last one."""
        return [
            index
            for index, names in enumerate(self.live[:-1])
            if 0 < len(names) <= MOST_LIVE and all(_fits(self.graph[name]) for name in names)
        ]

    def ciphertexts(self, cut: int) -> int:
        """How many ciphertexts are bootstrapped there."""
        layouts = [self.graph[name].type.layout for name in self.live[cut]]
        return sum(layout.ciphertexts for layout in layouts if layout is not None)

    def segment(self, start: int, end: int, last: bool) -> tuple[int, float]:
        """Levels that values need behind `start`, and seconds, up to and with `end`; (-1 is before the input)."""
        floor = 0 if last else self.boots.input_level
        needed: dict[str, int] = dict.fromkeys(self.live[end] if not last else self.graph.outputs, floor)
        seconds = 0.0
        for index in range(end, start, -1):
            node = self.nodes[index]
            level = needed.pop(node.id, floor)
            if isinstance(node.op, Input):
                return level, seconds
            operand = level + self._taken[node.id]
            seconds += self.seconds(node, operand)
            for name in node.inputs:
                needed[name] = max(needed.get(name, floor), operand)
        return max(needed.values()), seconds

    def seconds(self, node: Node, level: int) -> float:
        key = (node.id, level)
        if key not in self._memo:
            self._memo[key] = self._seconds(node, level)
        return self._memo[key]


def _fits(node: Node) -> bool:
    bound = node.type.bound
    return bound is None or bound.magnitude <= node.type.unit * WIDEST


def solve(problem: _Problem, one_boot: float) -> Plan:
    """Shortest path over cuts: from the fresh input to the end."""
    size = len(problem.nodes)
    stops = [*problem.cuts(), size - 1]
    best: dict[int, tuple[float, Plan]] = {}
    furthest = 0
    for end in stops:
        last = end == size - 1
        levels, seconds = problem.segment(-1, end, last)
        if levels <= problem.depth:
            best[end] = (seconds, Plan((), seconds, 0, levels))
        for start in reversed([stop for stop in stops if stop < end]):
            levels, seconds = problem.segment(start, end, last)
            if levels > problem.boots.output_level:
                break  # longer segments take more levels still
            if start not in best:
                continue
            before = best[start][1]
            count = problem.ciphertexts(start)
            total = before.seconds + count * one_boot + seconds
            if end not in best or total < best[end][0]:
                made = Plan((*before.cuts, start), total, before.bootstraps + count, before.fresh_level)
                best[end] = (total, made)
        furthest = end if end in best else furthest
    if size - 1 not in best:
        behind = problem.nodes[furthest]
        raise InfeasibleError(
            f"bootstraps leave {problem.boots.output_level - problem.boots.input_level} levels between them, which "
            f"does not reach from {behind.id} to the next place for one. Lower the degrees of the activations there."
        )
    return best[size - 1][1]


def insert(graph: Graph, cuts: Sequence[int], by: str) -> Graph:
    """The graph with bootstraps of all values that are alive at the cuts."""
    if not cuts:
        return graph
    live = _Problem(graph, _ANY, 0, lambda node, level: 0.0).live
    builder = GraphBuilder(graph.constants, by=by)
    taken = {node.id for node in graph.nodes}
    new: dict[str, str] = {}
    for index, node in enumerate(graph.nodes):
        new[node.id] = builder.keep(node, tuple(new[i] for i in node.inputs))
        if index not in cuts:
            continue
        for value in live[index]:
            count = 1
            while (name := f"{value}_boot{count if count > 1 else ''}") in taken:
                count += 1
            taken.add(name)
            kind = replace(graph[value].type)
            new[value] = builder.add(Bootstrap(), [new[value]], name=name, origin=graph[value].origin, type=kind)
    return builder.build(
        [new[output] for output in graph.outputs], stage=graph.stage, inputs=[new[i.id] for i in graph.inputs]
    )


_ANY = Bootstrapping(rest=1)


def describe(plan: Plan) -> str:
    """One line for people."""
    minutes = "" if not math.isfinite(plan.seconds) else f", {plan.seconds:.0f} s predicted"
    return f"{plan.bootstraps} bootstraps, fresh ciphertexts at level {plan.fresh_level}{minutes}"
