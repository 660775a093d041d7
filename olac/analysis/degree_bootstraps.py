"""Chooses degrees and bootstraps together, before layouts and polynomials exist."""

from __future__ import annotations

import bisect
import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from olac.analysis.bootstrap_problem import BootstrapPlan, Option, PlacementProblem
from olac.analysis.bootstraps import solve
from olac.ckks.candidates import longest_chains
from olac.ckks.engines import OPENFHE, EngineModel
from olac.ckks.parameters import Parameters
from olac.errors import InfeasibleError
from olac.ir.graph import Graph
from olac.ir.ops import Square
from olac.polynomials.degrees import Solution

Circuit: TypeAlias = Callable[[Mapping[str, int]], Graph]
"""Builds the graph that lowering would have for given degrees, with the same nodes and levels."""

NODE_PRICE = 1e-6
"""Price of one level at one node, in bootstraps: it decides only between plans with equally many bootstraps."""
COUNTED = 12
"""For how many numbers of bootstraps a plan is made, at most."""
TIE = 1e-9
"""Price of a bootstrap, in units of the largest cost: it decides only between plans of the same cost."""


@functools.cache
def usual_bootstrapping(engine: EngineModel = OPENFHE) -> Parameters:
    """The parameters with the fewest digits, whose keys take the least memory."""
    return min(longest_chains(log_rings=(16,), takes=engine.takes, recipe=engine.recipe), key=lambda p: p.digits)


class _Unscaled(PlacementProblem):
    """A problem before units are chosen: every value is assumed to fit."""

    def fits(self, name: str) -> bool:
        return True


def _problem(graph: Graph, parameters: Parameters | None, engine: EngineModel) -> _Unscaled:
    used = parameters or usual_bootstrapping(engine)
    return _Unscaled(graph, engine.bootstraps(used), used.depth, lambda node, level: level * NODE_PRICE)


def least_bootstraps(
    graph: Graph, parameters: Parameters | None = None, engine: EngineModel = OPENFHE
) -> BootstrapPlan:
    """The plan of fewest bootstraps for a circuit.

    Raises:
        InfeasibleError: places for bootstraps are further apart than the levels between two bootstraps.
    """
    return solve(_problem(graph, parameters, engine), 1.0)


def degrees_within(
    graph: Graph,
    depths: Mapping[str, Mapping[int, int]],
    costs: Mapping[str, Mapping[int, float]],
    most: int,
    parameters: Parameters | None = None,
    engine: EngineModel = OPENFHE,
) -> tuple[dict[str, int], BootstrapPlan]:
    """The degrees of all activations with the least sum of costs that take at most `most` bootstraps.

    The dynamic program over levels (`olac.analysis.bootstraps.solve`) picks each activation's depth as it goes, and
    counts bootstraps. The plan is the best for costs that add up and for depths that do not depend on each other.

    Args:
        graph: a graph whose nodes have the keys of `depths` and `costs` among their ids; other nodes take the levels of
            their ops.
        depths: the levels of each degree that is allowed.
        costs: the effect of each degree on the outputs.
        most: the number of bootstraps that is allowed, each of one value.
        parameters: the parameters whose levels count; None for the usual ones.
        engine: whose bootstraps are counted.

    Raises:
        InfeasibleError: the lowest depths take more bootstraps; says how many.
    """
    problem = _problem(graph, parameters, engine)
    for name, row in depths.items():
        problem.options[name] = (Option(min(row.values())),)
    least = solve(problem, 1.0).bootstraps
    if least > most:
        raise InfeasibleError(_refusal(least, most))
    finite = [costs[name][d] for name, row in depths.items() for d in row if math.isfinite(costs[name][d])]
    tie = TIE * (max(finite, default=1.0) or 1.0)
    for name, row in depths.items():
        problem.options[name] = tuple(Option(depth, costs[name][d] / tie) for d, depth in row.items())
    plan = solve(problem, 1.0, most)
    return {name: list(row)[plan.picks.get(name, 0)] for name, row in depths.items()}, plan


def _refusal(least: int, most: int) -> str:
    return f"the lowest degrees take {least} bootstraps, and {most} are allowed. Allow {least}."


@dataclass(frozen=True)
class Chosen:
    """A degree for each activation, the sum of their costs, and the bootstraps of their circuit."""

    degrees: Mapping[str, int]
    cost: float
    plan: BootstrapPlan


def plan_degrees(
    graph: Graph,
    costs: Mapping[str, Mapping[int, float]],
    most: int,
    circuit: Circuit,
    parameters: Parameters | None = None,
    engine: EngineModel = OPENFHE,
) -> Chosen:
    """As `degrees_within`, for a graph with activations and with quadratics that take one level if they fold.

    The levels that a square saves, and those that it costs other values, depend on its neighbours. So the first
    plan is made on the circuit of the lowest degrees, which has every affine map that squares may need. Then the
    circuit of the plan is built as lowering will find it, and its levels are counted. Quadratics that do not fold in it
    take two levels from then on. If it takes more bootstraps than allowed, the square that gains least is given up. The
    next plan is made on that circuit, which has only the affine maps that it needs. This is repeated as long as it
    gains. No plan without squares is better than the result.

    Args:
        graph: at stage TRACED; its activations' ids are the keys of `costs`.
        costs: by degree, the effect of each choice on the outputs. Degree 2 counts as one level if it folds.
        circuit: builds the circuits.
        most, parameters, engine: as in `degrees_within`.

    Raises:
        InfeasibleError: the lowest degrees take more bootstraps; says how many.
    """
    choices = {name: {d: 1 if d == 2 else max(1, d.bit_length()) for d in row} for name, row in costs.items()}
    skeleton = circuit({name: min(row) for name, row in choices.items()})
    best: Chosen | None = None
    if any(2 in row for row in choices.values()) and all(max(row) > 2 for row in choices.values()):
        with contextlib.suppress(InfeasibleError):
            above = {name: {d: cost for d, cost in row.items() if d != 2} for name, row in costs.items()}
            best = plan_degrees(graph, above, most, circuit, parameters, engine)
    while True:
        try:
            degrees, _ = degrees_within(skeleton, choices, costs, most, parameters, engine)
        except InfeasibleError:
            if best is None:
                raise
            return best
        cost = sum(costs[name][d] for name, d in degrees.items())
        if best is not None and cost >= best.cost:
            return best
        built = circuit(degrees)
        squares = [name for name, d in degrees.items() if d == 2 and choices[name][d] == 1]
        unfolded = [name for name in squares if not isinstance(built[name].op, Square)]
        if unfolded:
            for name in unfolded:
                choices[name][2] = 2
            continue
        plan = least_bootstraps(built, parameters, engine)
        if plan.bootstraps <= most:
            best, skeleton = Chosen(degrees, cost, plan), built
            continue
        others = [name for name in squares if len(choices[name]) > 1]
        if not others:
            if best is None:
                raise InfeasibleError(_refusal(plan.bootstraps, most))
            return best
        del choices[_least_worth(others, costs, choices)][2]


def cheapest_first(
    by_levels: Sequence[Solution], bootstraps: Callable[[Solution], int], within: Callable[[int], Solution]
) -> list[Solution]:
    """Plans from the cheapest to the most accurate: with fewer bootstraps first, and without any by levels.

    A bootstrap takes longer than the multiplications of many levels. So if a program needs bootstraps, the plan for
    each number of them is the best that has no more, and takes the levels that they leave over.

    Args:
        by_levels: the front by levels, the cheapest first.
        bootstraps: of a plan's circuit.
        within: the plan of least cost that takes at most so many bootstraps.
    """
    try:
        least, most = bootstraps(by_levels[0]), bootstraps(by_levels[-1])
    except InfeasibleError:  # places for bootstraps are too far apart, so the program must do without
        return list(by_levels)
    if most == 0:
        return list(by_levels)
    without = 0 if least else bisect.bisect_left(by_levels, 1, key=bootstraps)
    found = list(by_levels[:without])
    counts = range(max(1, least), most + 1)
    for count in sorted({counts[k * (len(counts) - 1) // (COUNTED - 1)] for k in range(COUNTED)}):
        plan = within(count)
        if not found or plan.cost < found[-1].cost:
            found.append(plan)
    return found


def _least_worth(
    squares: Sequence[str], costs: Mapping[str, Mapping[int, float]], choices: Mapping[str, Mapping[int, int]]
) -> str:
    """The square that gains least: the next degree in its place reduces the cost most."""

    def gain(name: str) -> float:
        return costs[name][2] - min(costs[name][d] for d in choices[name] if d > 2)

    return max(squares, key=gain)
