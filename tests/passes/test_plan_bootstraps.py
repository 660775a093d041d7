"""Degrees and bootstraps in one plan: against brute force over all degrees."""

import itertools
import math

import numpy as np
import pytest

from olac.errors import InfeasibleError
from olac.ir.graph import Graph, GraphBuilder
from olac.ir.ops import Activation, Add, Affine, Input
from olac.ir.types import Stage, ValueType
from olac.parameters import FLEXIBLE, Bootstrapping, Parameters
from olac.passes.place_bootstraps import Option, solve
from olac.passes.plan_bootstraps import NODE_PRICE, _Unscaled, degrees_within, usual_bootstrapping

SMALL = Parameters(11, 22, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(6))


def residual(blocks: int) -> Graph:
    """Linear, activation, linear, sum, activation; again and again."""
    builder = GraphBuilder({}, by="test")
    kind = ValueType((4,))
    one, zero = builder.constant("one", np.ones(())), builder.constant("zero", np.zeros(()))

    def linear(x: str) -> str:
        return builder.add(Affine(one, zero), [x], name=f"{x}_linear", type=kind)

    def relu(x: str) -> str:
        return builder.add(Activation("relu"), [x], name=f"{x}_relu", type=kind)

    x = relu(linear(builder.add(Input((4,)), [], name="x", type=kind)))
    for block in range(blocks):
        y = linear(relu(linear(x)))
        x = relu(builder.add(Add(), [y, x], name=f"sum{block}", type=kind))
    return builder.build([linear(x)], stage=Stage.TRACED)


def bootstraps(graph: Graph, levels: dict[str, int]) -> float:
    boots = SMALL.bootstrapping
    assert boots is not None
    problem = _Unscaled(graph, boots, SMALL.depth, lambda node, level: level * NODE_PRICE)
    problem.options.update({name: (Option(taken),) for name, taken in levels.items()})
    try:
        return solve(problem, 1.0).bootstraps
    except InfeasibleError:
        return math.inf


def activations(graph: Graph) -> list[str]:
    return [node.id for node in graph.nodes if isinstance(node.op, Activation)]


@pytest.mark.parametrize("seed", range(4))
def test_plans_keep_the_limit_and_are_about_as_good_as_the_best(seed: int) -> None:
    graph = residual(3)
    names, random = activations(graph), np.random.default_rng(seed)
    costs = {name: sorted(random.exponential(1.0, 2), reverse=True) for name in names}
    depths = dict.fromkeys(names, (2, 3))
    counts = {
        picks: bootstraps(graph, {n: depths[n][k] for n, k in zip(names, picks, strict=True)})
        for picks in itertools.product((0, 1), repeat=len(names))
    }

    def cost(picks: tuple[int, ...]) -> float:
        return float(sum(costs[name][k] for name, k in zip(names, picks, strict=True)))

    least = int(counts[(0,) * len(names)])
    for most in range(least, least + 3):
        chosen, plan = degrees_within(graph, depths, costs, most, SMALL)
        picks = tuple(chosen[name] for name in names)
        best = min(cost(p) for p, count in counts.items() if count <= most)
        assert plan.bootstraps <= most and counts[picks] <= most
        assert cost(picks) <= best + 0.35 * (cost((0,) * len(names)) - best)


def test_too_few_bootstraps_are_refused_with_the_number_that_would_do() -> None:
    graph = residual(4)
    depths = dict.fromkeys(activations(graph), (3, 4))
    costs = dict.fromkeys(depths, (1.0, 0.5))
    with pytest.raises(InfeasibleError, match=r"take (\d+) bootstraps, and 0 are allowed. Allow \1"):
        degrees_within(graph, depths, costs, 0, SMALL)


def test_the_usual_bootstrapping_is_secure_and_has_the_smallest_keys() -> None:
    usual = usual_bootstrapping()
    usual.check_security()
    assert usual.security == 128 and usual.digits == 2
