"""Where ciphertexts get their levels back: the plan of least predicted time."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from olac.analysis.bootstrap_beam import beam, dearest_path
from olac.analysis.bootstrap_problem import BootstrapPlan, PlacementProblem
from olac.analysis.levels import required_levels
from olac.backends.cost import CostEvaluator
from olac.ckks.parameters import Parameters
from olac.errors import InfeasibleError
from olac.ir.graph import Graph, Node
from olac.ir.ops import Bootstrap, Input
from olac.kernels.execute import build_weightless_kernels
from olac.kernels.record import record_kernel

MOST_STATES = 64
"""Most states that the exact dynamic program keeps at one place (if bootstraps are limited: for each number of them).
Networks with few values alive at once have far fewer. A graph with more is left to `olac.analysis.bootstrap_beam`."""

Floats = npt.NDArray[np.float64]

_Record: TypeAlias = tuple[tuple[tuple[str, int, int], ...], tuple[tuple[int, int, int], ...], list[int]]
"""Of one kernel: its primitives, its rotations, and the steps of these in their order."""


class Profiles:
    """What each node's kernel takes, at any level of its operand: each kernel runs once, on no data.

    Attributes:
        kernels: of the nodes, without weights if these don't matter.
        steps: rotation steps of all kernels.
        order: all rotation steps in the order in which they are taken.
    """

    def __init__(self, graph: Graph, parameters: Parameters) -> None:
        self._events: dict[str, tuple[tuple[str, int, int], ...]] = {}
        self._uses: dict[str, tuple[tuple[int, int, int], ...]] = {}
        order: list[int] = []
        self.kernels = build_weightless_kernels(graph)
        found: dict[tuple[int, tuple[int, ...]], _Record] = {}  # layers that are alike share a kernel
        for node in graph.nodes:
            if not isinstance(node.op, Input | Bootstrap):
                kernel, layouts = self.kernels[node.id], [graph[i].layout for i in node.inputs]
                key = id(kernel), tuple(layout.ciphertexts for layout in layouts)
                if key not in found:
                    recorder = record_kernel(kernel, parameters, layouts)
                    found[key] = (
                        _below(parameters.depth, recorder.counts()),
                        _below(parameters.depth, recorder.uses()),
                        [event.step for event in recorder.events if event.step],
                    )
                self._events[node.id], self._uses[node.id], steps = found[key]
                order += steps
        self.order = tuple(order)
        self.steps = frozenset(order)

    def uses(self, levels: Mapping[str, int]) -> Counter[tuple[int, int]]:
        """How often each (rotation step, level) is taken, with the operands of each node at its level in `levels`."""
        return _at(self._uses, levels)

    def counts(self, levels: Mapping[str, int]) -> Counter[tuple[str, int]]:
        """How often each (primitive, level) is taken, by the same levels."""
        return _at(self._events, levels)

    def kind(self, node: Node) -> int:
        """A number that is the same for nodes that take the same."""
        return id(self._events.get(node.id))

    def seconds(self, node: Node, pricer: CostEvaluator, encoding: float = 1.0) -> Floats:
        """Predicted seconds with operands at each level from 0 to the top; infinite at levels that are too low.

        Args:
            encoding: the share of the time to encode weights that counts.
        """
        top = pricer.parameters.depth
        found = np.zeros(top + 1)
        for primitive, below, count in self._events.get(node.id, ()):
            prices = pricer.prices(primitive)[: top + 1 - below]
            found[below:] += count * (encoding * prices if primitive == "encode" else prices)
            found[:below] = np.inf
        return found


Counted = TypeVar("Counted", int, str)


def _below(top: int, counts: Mapping[tuple[Counted, int], int]) -> tuple[tuple[Counted, int, int], ...]:
    """Each (thing, level) that occurs, with the level as its distance from the top, and how often it occurs."""
    return tuple((thing, top - level, count) for (thing, level), count in sorted(counts.items()))


def _at(
    found: Mapping[str, Sequence[tuple[Counted, int, int]]], levels: Mapping[str, int]
) -> Counter[tuple[Counted, int]]:
    """How often each (thing, level) occurs, from how far below its operands' level it does at each node."""
    counts: Counter[tuple[Counted, int]] = Counter()
    for name, rows in found.items():
        for thing, below, count in rows:
            counts[thing, levels[name] - below] += count
    return counts


def place_bootstraps(graph: Graph, profiles: Profiles, pricer: CostEvaluator, most: int | None = None) -> BootstrapPlan:
    """The plan of least predicted time, among those of at most `most` bootstraps if that is given.

    Raises:
        InfeasibleError: as `solve`.
    """
    return solve(*_problem(graph, profiles, pricer), most)


def least_seconds(
    graph: Graph, profiles: Profiles, pricer: CostEvaluator, encoding: float = 1.0, some: bool = False
) -> float:
    """A lower bound on the predicted time of every plan, in a small part of the time that a plan takes.

    Args:
        encoding: the share of the time to encode weights that counts.
        some: whether plans without bootstraps are left out.

    Raises:
        InfeasibleError: places for bootstraps are further apart than the levels between two reach.
    """
    return dearest_path(*_problem(graph, profiles, pricer, encoding), some)


def bootstraps_may_pay(graph: Graph, profiles: Profiles, pricer: CostEvaluator) -> bool:
    """Whether the plan of least predicted time may have bootstraps; if not, the chain holds the graph without any.

    Raises:
        InfeasibleError: as `least_seconds`.
    """
    levels = required_levels(graph)
    if max(levels.values()) > pricer.parameters.depth:
        return True
    problem, one_bootstrap = _problem(graph, profiles, pricer)
    without = sum(
        problem.seconds(node, levels[node.id] + problem.least(node.id))
        for node in graph.nodes
        if not isinstance(node.op, Input)
    )
    return dearest_path(problem, one_bootstrap, some=True) < without


def _problem(
    graph: Graph, profiles: Profiles, pricer: CostEvaluator, encoding: float = 1.0
) -> tuple[PlacementProblem, float]:
    """The problem in predicted seconds, and the price of one bootstrap."""
    bootstraps = pricer.engine.bootstraps(pricer.parameters)
    alike: dict[int, list[float]] = {}

    def row(node: Node) -> list[float]:
        kind = profiles.kind(node)
        if kind not in alike:
            alike[kind] = profiles.seconds(node, pricer, encoding).tolist()
        return alike[kind]

    problem = PlacementProblem(
        graph, bootstraps, pricer.parameters.depth, lambda node, level: row(node)[level], rows=row
    )
    return problem, pricer.price("bootstrap", bootstraps.input_level)


State = tuple[tuple[str, int], ...]
"""Of each value that is alive at a place the level that later nodes need; under COUNT, if bootstraps are limited, the
number of those that come later."""

COUNT = ""


@dataclass(frozen=True)
class _Way:
    """The cheapest way that was found from a state to the end of the graph."""

    seconds: float
    placement: tuple[int, str] | None = None
    pick: tuple[str, int] | None = None
    then: _Way | None = None


def solve(problem: PlacementProblem, one_bootstrap: float, most: int | None = None) -> BootstrapPlan:
    """Dynamic program from the last node to the first, over the levels that live values need.

    A value may be bootstrapped before any node that reads it, on its own; that node and all later ones read the new
    one. A state that needs no less than another and costs no less is dropped, so the best plan is found. A graph in
    which too many states are left is planned by a search that keeps a bounded number of them; its plans cost up to 1 %
    more than the best, if the best is known (`olac.analysis.bootstrap_beam`).

    Args:
        problem: see `PlacementProblem`.
        one_bootstrap: the price of a bootstrap of one ciphertext.
        most: bootstraps of single ciphertexts; None for any number.

    Raises:
        InfeasibleError: places for bootstraps are further apart than the levels between two reach, or every plan takes
            more than `most` bootstraps.
    """
    bootstraps, nodes = problem.bootstraps, problem.graph.nodes
    highest = problem.highest()
    start = dict.fromkeys(problem.graph.outputs, 0)
    if most is not None:
        highest[COUNT], start[COUNT] = most, 0
    ways: dict[State, _Way] = {tuple(sorted(start.items())): _Way(0.0)}
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        if isinstance(node.op, Input):
            continue
        found: dict[State, _Way] = {}
        for state, way in ways.items():
            rest = dict(state)
            level = rest.pop(node.id, 0)
            for pick, option in enumerate(problem.options[node.id]):
                operand = level + option.levels
                if any(operand > highest[name] for name in node.inputs):
                    continue  # Only a bootstrap of the node itself could give what is needed.
                needs = rest | {name: max(rest.get(name, 0), operand) for name in node.inputs}
                picked = way
                if len(problem.options[node.id]) > 1:
                    picked = _Way(way.seconds, pick=(node.id, pick), then=way)
                seconds = way.seconds + option.price + problem.seconds(node, operand)
                choices = [
                    name
                    for name in dict.fromkeys(node.inputs)
                    if bootstraps.input_level < needs[name] <= bootstraps.output_level and problem.fits(name)
                ]
                for count in range(len(choices) + 1):
                    for chosen in itertools.combinations(choices, count):
                        _extend(found, needs, chosen, picked, seconds, index - 1, problem, one_bootstrap, highest)
        undominated = _undominated(found)
        if undominated is None:
            return beam(problem, one_bootstrap, most)
        ways = undominated
        if not ways:
            raise InfeasibleError(f"no plan takes at most {most} bootstraps")
    best_state, best = min(ways.items(), key=lambda item: (item[1].seconds, item[0]))
    placements = tuple(way.placement for way in _steps(best) if way.placement is not None)
    return BootstrapPlan(
        placements,
        best.seconds,
        sum(problem.ciphertexts(name) for _, name in placements),
        max(n for name, n in best_state if name != COUNT),
        dict(way.pick for way in _steps(best) if way.pick is not None),
    )


def _extend(
    found: dict[State, _Way],
    needs: Mapping[str, int],
    chosen: Sequence[str],
    way: _Way,
    seconds: float,
    position: int,
    problem: PlacementProblem,
    one_bootstrap: float,
    highest: Mapping[str, int],
) -> None:
    """Enter the state before a node, with some of its operands bootstrapped, if it can be reached."""
    before = dict(needs) | dict.fromkeys(chosen, problem.bootstraps.input_level)
    if COUNT in before:
        before[COUNT] += sum(problem.ciphertexts(name) for name in chosen)
    if any(level > highest[name] for name, level in before.items()):
        return
    extended = way if chosen else _Way(seconds, then=way)
    for name in chosen:
        seconds += one_bootstrap * problem.ciphertexts(name)
        extended = _Way(seconds, (position, name), then=extended)
    state = tuple(sorted(before.items()))
    if state not in found or seconds < found[state].seconds:
        found[state] = extended


def _undominated(found: Mapping[State, _Way]) -> dict[State, _Way] | None:
    """States of one place that no other beats in every level and in cost; None if there are too many."""
    kept: dict[State, _Way] = {}
    needs: list[tuple[int, ...]] = []
    of_count: dict[int, int] = {}
    for state, way in sorted(found.items(), key=lambda item: (item[1].seconds, item[0])):
        count = state[0][1] if state and state[0][0] == COUNT else 0
        mine = tuple(level for _, level in state)
        if not any(all(map(operator.le, one, mine)) for one in needs):
            kept[state] = way
            needs.append(mine)
            of_count[count] = of_count.get(count, 0) + 1
            if of_count[count] > MOST_STATES:
                return None
    return kept


def _steps(way: _Way) -> Iterator[_Way]:
    following: _Way | None = way
    while following is not None:
        yield following
        following = following.then
