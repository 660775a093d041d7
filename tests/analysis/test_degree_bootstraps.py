"""Degrees and bootstraps in one plan, compared with brute force over all degrees and with lowered graphs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import olac
from olac.analysis import degree_bootstraps
from olac.analysis.bootstrap_problem import Option
from olac.analysis.bootstraps import solve
from olac.analysis.degree_bootstraps import (
    COUNTED,
    NODE_PRICE,
    Chosen,
    _Unscaled,
    cheapest_first,
    degrees_within,
    least_bootstraps,
    usual_bootstrapping,
)
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import InfeasibleError
from olac.ir.graph import Graph, GraphBuilder
from olac.ir.ops import Activation, Add, Affine, Bootstrap, Input, Square
from olac.ir.types import Stage, ValueType
from olac.passes.base import PassContext, PassManager
from olac.passes.insert_placeholders import circuit_pipeline
from olac.polynomials.degrees import Solution
from tests.approximation.nets import Residual, activations, folded, images

SMALL = Parameters(11, 22, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(6))
SHALLOW = Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))
Costs = Mapping[str, Mapping[int, float]]


def lowered(graph: Graph, degrees: Mapping[str, int]) -> Graph:
    return PassManager(circuit_pipeline(degrees)).run(graph, PassContext())


def plan_degrees(graph: Graph, costs: Costs, most: int, parameters: Parameters) -> Chosen:
    return degree_bootstraps.plan_degrees(graph, costs, most, lambda degrees: lowered(graph, degrees), parameters)


class Drawing:
    """A graph at stage TRACED of affine maps, activations and sums, on vectors of four elements."""

    def __init__(self) -> None:
        self.builder = GraphBuilder({}, by="test")
        self.one, self.zero = (self.builder.constant(n, v) for n, v in (("one", np.ones(())), ("zero", np.zeros(()))))
        self.kind = ValueType((4,))
        self.values = [self.builder.add(Input((4,)), [], name="x", type=self.kind)]

    def linear(self, x: str) -> str:
        return self._keep(self.builder.add(Affine(self.one, self.zero), [x], name="linear", type=self.kind))

    def relu(self, x: str) -> str:
        return self._keep(self.builder.add(Activation("relu"), [x], name="relu", type=self.kind))

    def add(self, x: str, y: str) -> str:
        return self._keep(self.builder.add(Add(), [x, y], name="add", type=self.kind))

    def _keep(self, value: str) -> str:
        self.values.append(value)
        return value

    def graph(self) -> Graph:
        return self.builder.build([self.values[-1]], stage=Stage.TRACED)


def residual(blocks: int) -> Graph:
    """Blocks of linear op, activation, linear op, sum and activation."""
    g = Drawing()
    x = g.relu(g.linear("x"))
    for _ in range(blocks):
        x = g.relu(g.add(g.linear(g.relu(g.linear(x))), x))
    g.linear(x)
    return g.graph()


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    g = Drawing()
    g.relu("x")
    for _ in range(draw(st.integers(3, 12))):
        kind = draw(st.sampled_from(["linear", "relu", "relu", "add"]))
        a, b = (draw(st.sampled_from(g.values[-3:])) for _ in range(2))
        if kind == "add":
            g.add(a, b)
        else:
            (g.linear if kind == "linear" else g.relu)(a)
    g.linear(g.values[-1])
    return g.graph()


def bootstraps(graph: Graph, levels: dict[str, int]) -> float:
    problem = _Unscaled(graph, bootstrap_model(SMALL), SMALL.depth, lambda node, level: level * NODE_PRICE)
    problem.options.update({name: (Option(taken),) for name, taken in levels.items()})
    try:
        return solve(problem, 1.0).bootstraps
    except InfeasibleError:
        return math.inf


def counted(graph: Graph, degrees: Mapping[str, int], parameters: Parameters) -> float:
    """Bootstraps of the circuit of these degrees."""
    try:
        return least_bootstraps(lowered(graph, degrees), parameters).bootstraps
    except InfeasibleError:
        return math.inf


def random_costs(names: Sequence[str], seed: int, degrees: Sequence[int] = (2, 3, 7)) -> dict[str, dict[int, float]]:
    """Costs that fall with the degree and differ between activations."""
    random = np.random.default_rng(seed)
    return {
        name: dict(zip(degrees, sorted(random.exponential(1.0, len(degrees)), reverse=True), strict=True))
        for name in names
    }


def total(costs: Costs, degrees: Mapping[str, int]) -> float:
    return sum(costs[name][d] for name, d in degrees.items())


# Depths that do not depend on each other ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_plans_keep_the_limit_and_are_the_best(seed: int) -> None:
    graph = residual(3)
    names, random = activations(graph), np.random.default_rng(seed)
    costs = {name: dict(enumerate(sorted(random.exponential(1.0, 2), reverse=True))) for name in names}
    depths = {name: {0: 2, 1: 3} for name in names}
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
        assert plan.bootstraps <= most and counts[picks] <= most
        assert cost(picks) == pytest.approx(min(cost(p) for p, count in counts.items() if count <= most))


def test_too_few_bootstraps_are_refused_with_the_number_that_would_do() -> None:
    graph = residual(4)
    depths = {name: {0: 3, 1: 4} for name in activations(graph)}
    costs = {name: {0: 1.0, 1: 0.5} for name in depths}
    with pytest.raises(InfeasibleError, match=r"take (\d+) bootstraps, and 0 are allowed. Allow \1"):
        degrees_within(graph, depths, costs, 0, SMALL)


def test_bootstraps_are_fewest_whatever_levels_they_would_save() -> None:
    """A hundred sums could run lower after a bootstrap, but the chain holds the whole without one."""
    builder = GraphBuilder(by="test")
    value = builder.add(Input((4,)), name="x", type=ValueType((4,)))
    for _ in range(100):
        value = builder.add(Add(), [value, value], name="sum")
    one = builder.constant("one", np.ones(()))
    for _ in range(12):
        value = builder.add(Affine(one, one), [value], name="affine")
    assert least_bootstraps(builder.build([value], Stage.POLYNOMIAL), SMALL).bootstraps == 0


def test_the_usual_bootstrapping_is_secure_and_has_the_smallest_keys() -> None:
    usual = usual_bootstrapping()
    usual.check_security()
    assert usual.security == 128 and usual.digits == 2


# Squares --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_plans_with_squares_are_the_best_of_all(seed: int) -> None:
    """Each circuit is built and counted, with the affine maps that squares in sums need."""
    graph = residual(2)
    names = activations(graph)
    costs = random_costs(names, seed)
    plans = [dict(zip(names, one, strict=True)) for one in itertools.product((2, 3, 7), repeat=len(names))]
    counts = [counted(graph, plan, SHALLOW) for plan in plans]
    least = int(min(counts))
    for most in range(least, least + 4):
        chosen = plan_degrees(graph, costs, most, SHALLOW)
        best = min(total(costs, plan) for plan, count in zip(plans, counts, strict=True) if count <= most)
        assert counted(graph, chosen.degrees, SHALLOW) == chosen.plan.bootstraps <= most
        assert chosen.cost == pytest.approx(total(costs, chosen.degrees)) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 1000), st.integers(0, 2))
def test_the_bootstraps_promised_are_those_of_the_circuit(graph: Graph, seed: int, more: int) -> None:
    names = activations(graph)
    costs = random_costs(names, seed)
    least = counted(graph, dict.fromkeys(names, 2), SHALLOW)
    if least == math.inf:
        with pytest.raises(InfeasibleError):
            plan_degrees(graph, costs, 9, SHALLOW)
        return
    most = int(least) + more
    chosen = plan_degrees(graph, costs, most, SHALLOW)
    assert counted(graph, chosen.degrees, SHALLOW) == chosen.plan.bootstraps <= most
    try:
        without = plan_degrees(
            graph, {n: {d: c for d, c in row.items() if d > 2} for n, row in costs.items()}, most, SHALLOW
        )
    except InfeasibleError:
        return
    assert chosen.cost <= without.cost + 1e-9


@pytest.mark.parametrize("more", [0, 1, 3])
def test_the_bootstraps_promised_are_those_that_lowering_finds(more: int) -> None:
    x = images(64)
    model = Residual(3).eval()
    graph = folded(model, x[:2])
    names = activations(graph)
    costs = random_costs(names, 3)
    least = counted(graph, dict.fromkeys(names, 2), SHALLOW)
    chosen = plan_degrees(graph, costs, int(least) + more, SHALLOW)
    plan = tuple(chosen.degrees[name] for name in names)
    program = olac.compile(model, [x], method="channel", plan=plan, parameters=SHALLOW, insecure=True, threads=1)
    found = [node for node in program.graph.nodes if isinstance(node.op, Bootstrap)]
    assert len(found) == chosen.plan.bootstraps <= least + more
    assert sum(isinstance(node.op, Square) for node in program.graph.nodes) == plan.count(2)


def test_squares_save_bootstraps() -> None:
    graph = residual(4)
    names = activations(graph)
    cubics = {name: {3: 1.0} for name in names}
    least = int(counted(graph, dict.fromkeys(names, 3), SHALLOW))
    assert plan_degrees(graph, cubics, least, SHALLOW).plan.bootstraps == least
    with pytest.raises(InfeasibleError, match=f"take {least} bootstraps, and {least - 1} are allowed"):
        plan_degrees(graph, cubics, least - 1, SHALLOW)
    chosen = plan_degrees(graph, {name: {2: 2.0, 3: 1.0} for name in names}, least - 1, SHALLOW)
    assert chosen.plan.bootstraps < least and 0 < list(chosen.degrees.values()).count(2) < len(names)


# The row of plans, from the cheapest to the most accurate ------------------------------------------------------------


def plan(levels: int, cost: float) -> Solution:
    return Solution((levels,), float(levels), cost)


@pytest.mark.parametrize(("free", "each"), [(0, 3), (7, 3), (9, 2), (12, 100), (40, 5)])
def test_plans_come_by_levels_and_then_by_bootstraps(free: int, each: int) -> None:
    """`free` levels need no bootstrap, and one is needed for each `each` further ones."""
    by_levels = [plan(levels, 1 / levels) for levels in range(5, 31)]
    asked: list[int] = []

    def bootstraps(one: Solution) -> int:
        return max(0, -(-(int(one.price) - free) // each))

    def within(most: int) -> Solution:
        asked.append(most)
        levels = min(30, free + most * each)
        return plan(levels, 1 / levels)

    row = cheapest_first(by_levels, bootstraps, within)
    assert row[: len([p for p in by_levels if p.price <= free])] == [p for p in by_levels if p.price <= free]
    assert [bootstraps(p) for p in row] == sorted(bootstraps(p) for p in row)
    assert all(a.cost > b.cost for a, b in itertools.pairwise(row))
    assert row[-1] == by_levels[-1]
    counts = {bootstraps(p) for p in row} - {0}
    assert counts == ({bootstraps(p) for p in by_levels} - {0} if len(counts) < COUNTED else set(asked))
    assert len(asked) <= COUNTED


def test_a_program_that_cannot_be_bootstrapped_is_planned_by_levels() -> None:
    by_levels = [plan(levels, 1 / levels) for levels in range(5, 31)]

    def bootstraps(one: Solution) -> int:
        raise InfeasibleError("too far apart")

    assert cheapest_first(by_levels, bootstraps, lambda most: by_levels[0]) == by_levels
