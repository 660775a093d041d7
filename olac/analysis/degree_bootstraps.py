"""Degrees and bootstraps together, before layouts and polynomials exist: which plan is the most accurate."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from olac.analysis.bootstrap_problem import BootstrapPlan, Option, PlacementProblem
from olac.analysis.bootstraps import solve
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.candidates import longest_chains
from olac.ckks.parameters import Parameters
from olac.errors import InfeasibleError
from olac.ir.graph import Graph
from olac.ir.ops import Square

Circuit: TypeAlias = Callable[[Mapping[str, int]], Graph]
"""Builds the graph that lowering would find for given degrees, node by node and level by level."""

NODE_PRICE = 1e-6
"""Of one level at one node, in bootstraps: it decides only between plans with as many bootstraps."""
TIE = 1e-9
"""Price of a bootstrap, in units of the largest cost: it decides only between plans of the same cost."""


@functools.cache
def usual_bootstrapping() -> Parameters:
    """The parameters with the fewest digits, whose keys take the least memory."""
    return min(longest_chains(log_rings=(16,)), key=lambda p: p.digits)


class _Unscaled(PlacementProblem):
    """Before units are chosen every value counts as one that will fit."""

    def fits(self, name: str) -> bool:
        return True


def _problem(graph: Graph, parameters: Parameters | None) -> _Unscaled:
    used = parameters or usual_bootstrapping()
    return _Unscaled(graph, bootstrap_model(used), used.depth, lambda node, level: level * NODE_PRICE)


def least_bootstraps(graph: Graph, parameters: Parameters | None = None) -> BootstrapPlan:
    """The plan of fewest bootstraps for a circuit as it is.

    Raises:
        InfeasibleError: places for bootstraps are further apart than the levels between two.
    """
    return solve(_problem(graph, parameters), 1.0)


def degrees_within(
    graph: Graph,
    depths: Mapping[str, Sequence[int]],
    costs: Mapping[str, Sequence[float]],
    most: int,
    parameters: Parameters | None = None,
) -> tuple[dict[str, int], BootstrapPlan]:
    """The choice for each activation of least cost in all that takes at most so many bootstraps.

    The dynamic program over levels (`olac.analysis.bootstraps.solve`) picks each activation's depth as it goes, and
    counts bootstraps. The plan is the best for costs that add up and for depths that do not depend on each other.

    Args:
        graph: any whose nodes have the keys of `depths` and `costs` among their ids; other nodes take the levels of
            their ops.
        depths: levels of each choice.
        costs: what each choice does to the outputs.
        most: bootstraps of single values.
        parameters: whose levels count; None for the usual ones.

    Raises:
        InfeasibleError: the lowest depths take more bootstraps; says how many.
    """
    problem = _problem(graph, parameters)
    for name, row in depths.items():
        problem.options[name] = (Option(min(row)),)
    least = solve(problem, 1.0).bootstraps
    if least > most:
        raise InfeasibleError(_refusal(least, most))
    tie = TIE * (max((cost for row in costs.values() for cost in row if math.isfinite(cost)), default=1.0) or 1.0)
    for name, row in depths.items():
        problem.options[name] = tuple(Option(d, cost / tie) for d, cost in zip(row, costs[name], strict=True))
    plan = solve(problem, 1.0, most)
    return {name: plan.picks.get(name, 0) for name in depths}, plan


def _refusal(least: int, most: int) -> str:
    return f"the lowest degrees take {least} bootstraps, and {most} are allowed. Allow {least}."


@dataclass(frozen=True)
class Chosen:
    """A degree for each activation, what they cost in all, and the bootstraps that their circuit takes."""

    degrees: Mapping[str, int]
    cost: float
    plan: BootstrapPlan


def plan_degrees(
    graph: Graph,
    costs: Mapping[str, Mapping[int, float]],
    most: int,
    circuit: Circuit,
    parameters: Parameters | None = None,
) -> Chosen:
    """As `degrees_within`, for a graph with activations and with quadratics that take one level where they fold.

    What a square saves, and what it costs the values beside it, depends on its neighbours. So the first plan is made on
    the circuit of the lowest degrees, in which every affine map stands that squares may need. Then the circuit of the
    plan is built, and counted as lowering will find it: quadratics that do not fold in it take two levels from there
    on, and where it takes more bootstraps than allowed, the square that is worth least is given up. The next plan is
    made on that circuit, which has only those affine maps that it needs; and so on while that gains. No plan without
    squares is better than the one found.

    Args:
        graph: at stage TRACED; its activations' ids are the keys of `costs`.
        costs: by degree, what each choice does to the outputs. Degree 2 counts as one level where it folds.
        circuit: builds what is counted.
        most, parameters: as in `degrees_within`.

    Raises:
        InfeasibleError: the lowest degrees take more bootstraps; says how many.
    """
    choices = {name: {d: 1 if d == 2 else max(1, d.bit_length()) for d in row} for name, row in costs.items()}
    skeleton = circuit({name: min(row) for name, row in choices.items()})
    best: Chosen | None = None
    if any(2 in row for row in choices.values()) and all(max(row) > 2 for row in choices.values()):
        with contextlib.suppress(InfeasibleError):
            above = {name: {d: cost for d, cost in row.items() if d != 2} for name, row in costs.items()}
            best = plan_degrees(graph, above, most, circuit, parameters)
    while True:
        try:
            degrees = _degrees_within(skeleton, choices, costs, most, parameters)
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
        plan = least_bootstraps(built, parameters)
        if plan.bootstraps <= most:
            best, skeleton = Chosen(degrees, cost, plan), built
            continue
        others = [name for name in squares if len(choices[name]) > 1]
        if not others:
            if best is None:
                raise InfeasibleError(_refusal(plan.bootstraps, most))
            return best
        del choices[_least_worth(others, costs, choices)][2]


def _degrees_within(
    skeleton: Graph,
    choices: Mapping[str, Mapping[int, int]],
    costs: Mapping[str, Mapping[int, float]],
    most: int,
    parameters: Parameters | None,
) -> dict[str, int]:
    """As `degrees_within`, by degree: `choices` has the levels of each."""
    depths = {name: list(row.values()) for name, row in choices.items()}
    prices = {name: [costs[name][d] for d in row] for name, row in choices.items()}
    picks, _ = degrees_within(skeleton, depths, prices, most, parameters)
    return {name: list(choices[name])[k] for name, k in picks.items()}


def _least_worth(
    squares: Sequence[str], costs: Mapping[str, Mapping[int, float]], choices: Mapping[str, Mapping[int, int]]
) -> str:
    """The square in whose place the next degree gains most."""

    def gain(name: str) -> float:
        return costs[name][2] - min(costs[name][d] for d in choices[name] if d > 2)

    return max(squares, key=gain)
