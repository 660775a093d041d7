"""Degrees and bootstraps together, before layouts and polynomials exist: which plan is the most accurate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from olac.errors import InfeasibleError
from olac.ir.graph import Graph
from olac.parameters import Parameters, deep_candidates
from olac.passes.place_bootstraps import Option, Plan, Problem, solve

NODE_PRICE = 1 / 80
"""Of one level at one node, in bootstraps: it decides only between plans with as many bootstraps."""
WEIGHTS = (1e-9, 1e9)
HALVINGS = 40


def usual_bootstrapping() -> Parameters:
    """The parameters with the fewest digits, whose keys take the least memory."""
    return min(deep_candidates(log_rings=(16,)), key=lambda p: p.digits)


class _Unscaled(Problem):
    """Before units are chosen every value counts as one that will fit."""

    def fits(self, name: str) -> bool:
        return True


def degrees_within(
    graph: Graph,
    depths: Mapping[str, Sequence[int]],
    costs: Mapping[str, Sequence[float]],
    most: int,
    parameters: Parameters | None = None,
) -> tuple[dict[str, int], Plan]:
    """The choice for each activation of least cost in all that takes at most so many bootstraps.

    The dynamic program over levels (`olac.passes.place_bootstraps.solve`) picks each activation's depth as it goes, at
    a price of weight x cost; the weight is found by halving. That gives the plans on the convex hull; what levels they
    leave over goes to the activations that gain most, one at a time.

    Args:
        graph: with activations, their ids the keys of `depths` and `costs`.
        depths: levels of each choice, in increasing order.
        costs: what each choice does to the outputs.
        most: bootstraps of single values.
        parameters: whose levels count; None for the usual ones.

    Raises:
        InfeasibleError: the lowest depths take more bootstraps; says how many.
    """
    used = parameters or usual_bootstrapping()
    assert used.bootstrapping is not None
    boots = used.bootstrapping
    problem = _Unscaled(graph, boots, used.depth, lambda node, level: level * NODE_PRICE)

    def planned(weight: float, only: Mapping[str, int] | None = None) -> tuple[dict[str, int], Plan]:
        for name, row in depths.items():
            picks = range(len(row)) if only is None else (only[name],)
            problem.options[name] = tuple(Option(row[k], weight * costs[name][k]) for k in picks)
        plan = solve(problem, 1.0)
        return dict(only) if only is not None else {name: plan.picks.get(name, 0) for name in depths}, plan

    least = dict.fromkeys(depths, 0)
    best = planned(0.0, least)
    if best[1].bootstraps > most:
        raise InfeasibleError(
            f"the lowest degrees take {best[1].bootstraps} bootstraps, and {most} are allowed. "
            f"Allow {best[1].bootstraps}."
        )
    low, high = (math.log(weight) for weight in WEIGHTS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = planned(math.exp(middle))
        if found[1].bootstraps <= most:
            low, best = middle, found
        else:
            high = middle
    chosen, plan = best
    gained = True
    while gained:
        gained = False
        raises = [
            (costs[name][k] - costs[name][k + 1], name) for name, k in chosen.items() if k + 1 < len(depths[name])
        ]
        for gain, name in sorted(raises, reverse=True):
            if gain <= 0:
                break
            try:
                tried = planned(0.0, {**chosen, name: chosen[name] + 1})
            except InfeasibleError:
                continue
            if tried[1].bootstraps <= most:
                chosen, plan, gained = *tried, True
                break
    return chosen, plan
