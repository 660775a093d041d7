"""Plans of wide graphs: near the best that brute force and an integer program find, with bounded work on any graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.analysis import bootstrap_beam, bootstraps
from olac.analysis.bootstrap_beam import WIDER, WIDTH, beam
from olac.analysis.bootstrap_problem import BootstrapPlan, Option, PlacementProblem
from olac.analysis.bootstraps import MOST_STATES, solve
from olac.ckks.parameters import Bootstrapping
from olac.errors import InfeasibleError
from olac.ir import Graph, Range
from olac.ir.ops import Input
from tests.analysis.test_bootstraps import (
    SETUP,
    Drawing,
    _plan_seconds,
    brute_force,
    graphs,
    optimum,
    problem,
    residual,
)

NEAR = 1.01


def wide(nodes: int, width: int, seed: int) -> Graph:
    """Random ops on the last `width` values, some on any earlier one; the values that nothing reads are summed up."""
    random = np.random.default_rng(seed)
    g = Drawing()
    read: set[str] = set()
    for _ in range(nodes):
        pool = g.values if random.random() < 0.1 else g.values[-width:]
        kind = random.choice(3, p=[0.35, 0.35, 0.3])
        chosen = [str(random.choice(pool)) for _ in range(2 if kind == 2 else 1)]
        read.update(chosen)
        (g.affine, g.polynomial, g.add)[kind](*chosen)
    left = [value for value in g.values if value not in read]
    while len(left) > 1:
        left = [*left[2:], g.add(left[0], left[1])]
    return g.graph()


def narrowed(p: PlacementProblem, share: float, seed: int) -> PlacementProblem:
    """The problem without bootstraps of some values."""
    random = np.random.default_rng(seed)
    never = {node.id for node in p.graph.nodes if random.random() < share}
    usual = p.fits
    p.fits = lambda name: name not in never and usual(name)  # type: ignore[method-assign]
    return p


def cells(steps: int) -> Graph:
    """A recurrent cell written out: gates with products as polynomials, and all inputs cut out of x at the start."""
    g = Drawing()
    parts = [g.affine("x") for _ in range(steps)]
    h = g.polynomial(g.affine(parts[0]))
    for part in parts:
        r, z = (g.polynomial(g.add(g.affine(part), g.affine(h))) for _ in range(2))
        n = g.polynomial(g.add(g.affine(part), g.affine(g.add(r, g.affine(h)))))
        h = g.add(n, g.affine(g.add(z, g.add(h, g.affine(n)))))
    return g.graph()


def checked(p: PlacementProblem, plan: BootstrapPlan, one_bootstrap: float) -> float:
    """The cost of a plan, after a check that its graph has this cost."""
    assert _plan_seconds(p, plan, one_bootstrap) == pytest.approx(plan.seconds)
    return plan.seconds


@settings(max_examples=40, deadline=None)
@given(graphs(6), st.integers(0, 1000), st.sampled_from([0.1, 2.0, 20.0]))
def test_against_brute_force(graph: Graph, seed: int, one_bootstrap: float) -> None:
    p = problem(graph, SETUP.output_level, seed)
    expected = brute_force(p, one_bootstrap)
    if expected == math.inf:
        with pytest.raises(InfeasibleError):
            beam(p, one_bootstrap)
        return
    assert checked(p, beam(p, one_bootstrap), one_bootstrap) <= NEAR * expected


@settings(max_examples=40, deadline=None)
@given(graphs(6), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 2.0]), st.integers(0, 3))
def test_few_bootstraps_against_brute_force(graph: Graph, seed: int, one_bootstrap: float, most: int) -> None:
    p = problem(graph, SETUP.output_level, seed)
    expected = brute_force(p, one_bootstrap, most)
    if expected == math.inf:
        with pytest.raises(InfeasibleError):
            beam(p, one_bootstrap, most)
        return
    plan = beam(p, one_bootstrap, most)
    assert plan.bootstraps <= most
    assert checked(p, plan, one_bootstrap) <= NEAR * expected


@pytest.mark.parametrize("seed", range(8))
def test_wide_graphs_against_an_integer_program(seed: int) -> None:
    graph = wide(24, 9, seed)
    for one_bootstrap in (0.5, 10.0):
        p = problem(graph, SETUP.output_level, seed)
        expected = optimum(p, one_bootstrap)
        assert expected < math.inf
        for plan in (beam(p, one_bootstrap), solve(p, one_bootstrap)):
            assert checked(p, plan, one_bootstrap) <= NEAR * expected


class Counted:
    """Counts the states that a search looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.exact, self.children, self.most_kept = 0, 0, 0
        undominated, kept = bootstraps._undominated, bootstrap_beam.kept

        def exact(found: dict) -> dict | None:  # type: ignore[type-arg]
            self.exact += len(found)
            return undominated(found)

        def counted(states: bootstrap_beam._States, *rest: object) -> bootstrap_beam._States:
            made = kept(states, *rest)  # type: ignore[arg-type]
            self.children += len(states.seconds)
            self.most_kept = max(self.most_kept, len(made.seconds))
            return made

        monkeypatch.setattr(bootstraps, "_undominated", exact)
        monkeypatch.setattr(bootstrap_beam, "kept", counted)


def many() -> Iterator[tuple[Graph, int]]:
    """Graphs with many values alive at once, each with a depth of the chain."""
    yield cells(6), 21
    for seed in range(3):
        yield wide(150, 25, seed), 19 + seed


@pytest.mark.parametrize("which", range(4))
def test_work_is_bounded_by_the_number_of_nodes(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    graph, depth = list(many())[which]
    setup = Bootstrapping(4)
    p = problem(graph, depth, which, setup)
    work = Counted(monkeypatch)
    plan = solve(p, 10.0)
    checked(p, plan, 10.0)
    ways = 4  # of bootstrapping two operands
    assert work.children > 0, "the exact program alone would not end"
    assert work.most_kept <= max(WIDER) * WIDTH + 1
    assert work.children <= ways * (sum(WIDER) * WIDTH + len(WIDER)) * len(graph.nodes)
    assert work.exact <= ways * MOST_STATES * len(graph.nodes)


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_is_found_wherever_there_is_one(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Even if hardly any state may be kept: the one that bootstraps whatever it can is kept."""
    monkeypatch.setattr(bootstrap_beam, "WIDTH", 1)
    p = narrowed(problem(wide(60, 12, seed), 9, seed, Bootstrapping(5, (1, 1))), 0.25, seed)
    try:
        p.highest()
    except InfeasibleError:
        with pytest.raises(InfeasibleError, match="levels run out"):
            beam(p, 10.0)
        return
    checked(p, beam(p, 10.0), 10.0)


@pytest.mark.parametrize("seed", range(3))
def test_degrees_of_wide_graphs_are_planned(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """With as few bootstraps as possible, and with more, which never make a plan worse."""
    graph = wide(50, 12, seed)
    p = problem(graph, 6, seed, Bootstrapping(5, (1, 1)))
    for index, node in enumerate(graph.nodes):
        if node.op.name == "polynomial":
            p.options[node.id] = (Option(2, 9.0 + index), Option(3, 3.0))
    work = Counted(monkeypatch)
    fewest = solve(p, 1e6).bootstraps
    costs = []
    for most in (fewest, fewest + 2, fewest + 6):
        plan = solve(p, 0.1, most)
        assert plan.bootstraps <= most
        assert set(plan.picks) == {node.id for node in graph.nodes if len(p.options[node.id]) > 1}
        costs.append(plan.seconds)
    assert work.children > 0
    assert costs[1] <= NEAR * costs[0] and costs[2] <= NEAR * costs[1]
    assert fewest >= 2
    with pytest.raises(InfeasibleError, match=f"at most {fewest // 2}"):
        solve(p, 0.1, fewest // 2)


def test_networks_with_few_values_alive_are_planned_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> BootstrapPlan:
        raise AssertionError("the beam was taken")

    monkeypatch.setattr(bootstraps, "beam", never)
    for rest in (4, 10):
        p = problem(residual(9, projections=(3, 6)), rest + 16, setup=Bootstrapping(rest))
        for most in (None, 30):
            assert solve(p, 50.0, most).bootstraps > 3


def test_values_out_of_range_are_not_bootstrapped() -> None:
    graph = wide(30, 8, 2)
    beyond = {node.id for node in graph.nodes[::5] if not isinstance(node.op, Input)}
    marked = graph.rewrite(
        lambda node, builder, inputs: builder.keep(
            node, inputs, type=replace(node.type, bound=Range(-3, 3)) if node.id in beyond else node.type
        ),
        by="test",
    )
    p = problem(marked, 12, 0, Bootstrapping(5, (1, 1)))
    plan = beam(p, 1.0)
    assert plan.bootstraps and not beyond & {name for _, name in plan.placements}
    checked(p, plan, 1.0)
