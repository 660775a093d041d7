"""Placement of bootstraps: the solver against brute force and an integer program, and what the pass makes of it."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from olac.analysis.bootstrap_problem import BootstrapPlan, PlacementProblem
from olac.analysis.bootstraps import solve
from olac.analysis.levels import required_levels
from olac.ckks.bootstrapping import BootstrapModel
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import InfeasibleError, VerificationError
from olac.ir import Graph, GraphBuilder, Range, Stage
from olac.ir.graph import Node
from olac.ir.ops import Add, Affine, Array, Bootstrap, Input, Polynomial, Reshape
from olac.ir.types import ValueType
from olac.ir.verify import verify
from olac.kernels.record import record
from olac.passes.assign_layouts import AssignLayouts
from olac.passes.assign_levels import AssignLevels
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import ChooseLowerings
from olac.passes.pipeline import lowering_pipeline
from olac.passes.place_bootstraps import PlaceBootstraps, insert
from tests.golden import check_golden
from tests.networks import Growing, normalized

REST = 3
SETUP = Bootstrapping(REST, (1, 1))  # bootstraps from level 2 to level 4
CUBIC = [[0.1, 0.5, 0.2, 0.05]]
DEEP = Parameters(11, 16 + 4, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(4))


class Drawing:
    """A graph of ops that take 0, 1 and 2 levels, on vectors of one element."""

    def __init__(self) -> None:
        self.builder = GraphBuilder(by="test")
        self.one = self.builder.constant("one", np.ones(1))
        self.cubic = self.builder.constant("cubic", CUBIC)
        self.values = [self.builder.add(Input((1,)), name="x")]

    def affine(self, value: str) -> str:
        return self._keep(self.builder.add(Affine(self.one, self.one), [value], name="affine"))

    def polynomial(self, value: str) -> str:
        return self._keep(self.builder.add(Polynomial(self.cubic), [value], name="poly"))

    def add(self, a: str, b: str) -> str:
        return self._keep(self.builder.add(Add(), [a, b], name="add"))

    def _keep(self, value: str) -> str:
        self.values.append(value)
        return value

    def graph(self) -> Graph:
        return self.builder.build([self.values[-1]], Stage.POLYNOMIAL)


def residual(blocks: int, branch: int = 2, projections: tuple[int, ...] = ()) -> Graph:
    """Blocks of `branch` pairs of linear op and polynomial with a skip connection around; some skips are projected."""
    g = Drawing()
    y = g.affine("x")
    for block in range(blocks):
        z = y
        for _ in range(branch):
            z = g.affine(g.polynomial(z))
        y = g.add(g.affine(y) if block in projections else y, z)
    g.affine(y)
    return g.graph()


def chain(length: int) -> Graph:
    g = Drawing()
    for i in range(length):
        (g.polynomial if i % 2 else g.affine)(g.values[-1])
    return g.graph()


@st.composite
def graphs(draw: st.DrawFn, most: int = 8) -> Graph:
    g = Drawing()
    for _ in range(draw(st.integers(2, most))):
        recent = g.values[-3:]
        kind = draw(st.sampled_from(["affine", "poly", "add"]))
        a = draw(st.sampled_from(recent))
        if kind == "add":
            g.add(a, draw(st.sampled_from(recent)))
        else:
            (g.affine if kind == "affine" else g.polynomial)(a)
    return g.graph()


def problem(graph: Graph, depth: int, seed: int = 0, setup: Bootstrapping = SETUP) -> PlacementProblem:
    """Costs that grow with the level, another one for each node."""
    random = np.random.default_rng(seed)
    costs = {node.id: np.cumsum(random.uniform(0, 1, depth + 1)) for node in graph.nodes}
    model = BootstrapModel(setup.input_level, setup.output_level)
    return PlacementProblem(graph, model, depth, lambda node, level: float(costs[node.id][level]))


def brute_force(p: PlacementProblem, one_bootstrap: float, most: float = math.inf) -> float:
    """Every subset of bootstrapped values, and every choice of readers that stay with the old value; or infinity."""
    nodes = p.graph.nodes
    edges = sorted({(name, i) for i, node in enumerate(nodes) for name in node.inputs})
    best = math.inf
    for count in range(len(edges) + 1):
        for moved in itertools.combinations(edges, count):
            if len({name for name, _ in moved}) <= most:
                best = min(best, _price(p, frozenset(moved), one_bootstrap))
    return best


def _price(p: PlacementProblem, moved: frozenset[tuple[str, int]], one_bootstrap: float) -> float:
    """Seconds if these pairs (value, reader) read the bootstrapped value."""
    raw: dict[str, int] = dict.fromkeys(p.graph.outputs, 0)
    seconds = one_bootstrap * len({name for name, _ in moved})
    for index in range(len(p.graph.nodes) - 1, -1, -1):
        node = p.graph.nodes[index]
        if isinstance(node.op, Input):
            return seconds if raw[node.id] <= p.depth else math.inf
        operand = raw[node.id] + p.least(node.id)
        if operand > p.depth:
            return math.inf
        seconds += p.seconds(node, operand)
        for name in node.inputs:
            need = operand
            if (name, index) in moved:
                if operand > p.bootstraps.output_level:
                    return math.inf
                need = p.bootstraps.input_level
            raw[name] = max(raw.get(name, 0), need)
    raise AssertionError("no input")


def optimum(p: PlacementProblem, one_bootstrap: float) -> float:
    """The same by an integer program: one-hot levels, and whether each value is bootstrapped for all that read it."""
    nodes = p.graph.nodes
    tops = p.depth + 1
    width = tops + 2  # one-hot level, bootstrapped, level for readers
    at = {node.id: i * width for i, node in enumerate(nodes)}
    cost, integral = np.zeros(len(nodes) * width), np.ones(len(nodes) * width)
    upper = np.ones(len(nodes) * width)
    rows: list[tuple[dict[int, float], float, float]] = []
    for node in nodes:
        start = at[node.id]
        boot, given_level = start + tops, start + tops + 1
        upper[given_level], integral[given_level] = p.depth, 0
        cost[boot] = one_bootstrap * p.ciphertexts(node.id)
        if not p.fits(node.id):
            upper[boot] = 0
        level = {start + i: float(i) for i in range(tops)}
        rows.append(({start + i: 1.0 for i in range(tops)}, 1, 1))
        rows.append((level | {boot: -float(p.bootstraps.input_level)}, 0, math.inf))
        rows.append(({given_level: 1.0, boot: -float(p.depth)} | {k: -v for k, v in level.items()}, -math.inf, 0))
        rows.append(({given_level: 1.0, boot: float(p.depth)}, -math.inf, p.bootstraps.output_level + p.depth))
        if not isinstance(node.op, Input):
            taken = p.least(node.id)
            for i in range(tops):
                if i + taken <= p.depth:
                    cost[start + i] = p.seconds(node, i + taken)
                else:
                    upper[start + i] = 0
            for name in set(node.inputs):
                rows.append((level | {at[name] + tops + 1: -1.0}, -math.inf, -taken))
    matrix = lil_matrix((len(rows), len(cost)))
    for i, (entries, _, _) in enumerate(rows):
        for j, value in entries.items():
            matrix[i, j] = value
    found = milp(
        cost,
        constraints=LinearConstraint(matrix.tocsr(), [r[1] for r in rows], [r[2] for r in rows]),
        integrality=integral,
        bounds=Bounds(0, upper),
        options={"mip_rel_gap": 1e-9},
    )
    return math.inf if found.x is None else float(found.fun)


def planned(p: PlacementProblem, one_bootstrap: float) -> float:
    """Seconds of the solver's plan, which must be what its levels cost; infinity if there is none."""
    try:
        plan = solve(p, one_bootstrap)
    except InfeasibleError:
        return math.inf
    assert _plan_seconds(p, plan, one_bootstrap) == pytest.approx(plan.seconds)
    return plan.seconds


def _plan_seconds(p: PlacementProblem, plan: BootstrapPlan, one_bootstrap: float) -> float:
    """From the graph with bootstraps alone."""
    graph = insert(p.graph, plan.placements, 8, "test")
    needed = required_levels(graph, p.bootstraps.input_level)
    assert needed[graph.inputs[0].id] == plan.fresh_level <= p.depth
    seconds = 0.0
    for node in graph.nodes:
        if isinstance(node.op, Bootstrap):
            assert needed[node.id] <= p.bootstraps.output_level
            seconds += one_bootstrap
        elif not isinstance(node.op, Input):
            seconds += p.seconds(p.graph[node.id], needed[node.id] + p.least(node.id))
    return seconds


# The solver ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(graphs(6), st.integers(0, 1000), st.sampled_from([0.1, 2.0, 20.0]))
def test_against_brute_force(graph: Graph, seed: int, one_bootstrap: float) -> None:
    p = problem(graph, SETUP.output_level, seed)
    assert planned(p, one_bootstrap) == pytest.approx(brute_force(p, one_bootstrap))


@settings(max_examples=60, deadline=None)
@given(graphs(6), st.integers(0, 1000), st.sampled_from([0.0, 0.1, 2.0]), st.integers(0, 3))
def test_the_best_of_few_bootstraps_against_brute_force(
    graph: Graph, seed: int, one_bootstrap: float, most: int
) -> None:
    p = problem(graph, SETUP.output_level, seed)
    expected = brute_force(p, one_bootstrap, most)
    if expected == math.inf:
        with pytest.raises(InfeasibleError):
            solve(p, one_bootstrap, most)
        return
    plan = solve(p, one_bootstrap, most)
    assert plan.bootstraps <= most and plan.seconds == pytest.approx(expected)
    assert _plan_seconds(p, plan, one_bootstrap) == pytest.approx(plan.seconds)


@settings(max_examples=60, deadline=None)
@given(graphs(12), st.integers(0, 1000), st.sampled_from([0.1, 2.0, 20.0]), st.sampled_from([4, 7]))
def test_against_an_integer_program(graph: Graph, seed: int, one_bootstrap: float, depth: int) -> None:
    p = problem(graph, depth, seed)
    expected, found = optimum(p, one_bootstrap), planned(p, one_bootstrap)
    if depth == SETUP.output_level:
        assert found == pytest.approx(expected, rel=1e-6)
    else:  # Early readers may keep a value above what bootstraps give, which the integer program does not consider.
        assert found <= expected * (1 + 1e-6)


@pytest.mark.parametrize("branch", [1, 2])
@pytest.mark.parametrize("rest", [4, 5, 9])
@pytest.mark.parametrize("projections", [(), (1,)])
def test_residual_networks_against_an_integer_program(branch: int, rest: int, projections: tuple[int, ...]) -> None:
    """Blocks that are longer than the levels between bootstraps take one on a branch, which the skip bypasses."""
    setup = Bootstrapping(rest, (1, 1))
    for one_bootstrap in (1.0, 20.0):
        p = problem(residual(3, branch, projections), setup.output_level, rest, setup)
        assert planned(p, one_bootstrap) == pytest.approx(optimum(p, one_bootstrap), rel=1e-6)


def test_a_skip_connection_bypasses_a_bootstrap_of_its_branch() -> None:
    g = Drawing()
    y = g.affine(g.polynomial("x"))
    g.add(y, g.polynomial(y))
    p = problem(g.graph(), 5)
    assert solve(p, 1000.0).placements == ()
    g = Drawing()
    z = y = g.affine("x")
    for _ in range(3):
        z = g.polynomial(z)
    g.add(y, z)
    plan = solve(problem(g.graph(), 5), 1.0)
    assert plan.bootstraps == len(plan.placements) >= 1
    assert all(name != y for _, name in plan.placements[1:])
    assert planned(problem(g.graph(), 5), 1.0) == pytest.approx(optimum(problem(g.graph(), 5), 1.0))


def test_values_beyond_one_are_not_bootstrapped() -> None:
    graph = chain(9)
    wide = {node.id: replace(node.type, bound=Range(-3, 3), unit=2.0) for node in graph.nodes[2:]}
    marked = graph.rewrite(
        lambda node, builder, inputs: builder.keep(node, inputs, type=wide.get(node.id, node.type)), by="test"
    )
    assert solve(problem(graph, 4), 1.0).placements
    with pytest.raises(InfeasibleError, match=r"levels run out at poly_\d from .*Lower the degrees"):
        solve(problem(marked, 4), 1.0)


def test_what_no_bootstraps_reach_is_named() -> None:
    """A bootstrap takes level 2 and gives level 4: two polynomials in a row after it have no place between them."""
    setup = Bootstrapping(1, (1, 1))  # from level 2 to level 2: nothing is gained
    with pytest.raises(
        InfeasibleError, match=r"(?s)levels run out at poly.*bootstraps leave 0 levels.*Lower the degrees"
    ):
        solve(problem(chain(6), 4, setup=setup), 1.0)


def test_as_many_nodes_as_resnet_110_has_take_little_time() -> None:
    graph = residual(66, projections=(22, 44))
    assert len(graph.nodes) > 330
    start = time.perf_counter()
    plan = solve(problem(graph, 26, setup=Bootstrapping(10)), 50.0)
    assert time.perf_counter() - start < 20
    assert plan.bootstraps > 30


# The pass ------------------------------------------------------------------------------------------------------------


def residual_net(blocks: int = 3) -> tuple[Graph, Array]:
    """Basic blocks with cubics, one of them with a strided shortcut, and a linear layer."""
    g = Growing(3, (2, 4, 4))
    p = np.array([[0.1, 0.5, 0.15, 0.03]])
    y = g.polynomial(g.conv(g.input, 2), p)
    for block in range(blocks):
        c, stride = g.shape(y)[0], 2 if block == blocks - 1 else 1
        z = g.conv(g.polynomial(g.conv(y, c * stride, stride), p), c * stride)
        y = g.polynomial(g.add(Add(), z, g.conv(y, c * stride, stride, kernel=1) if stride > 1 else y), p)
    return g.graph(y), g.images


def lowered(graph: Graph, images: Array, parameters: Parameters = DEEP) -> Graph:
    graph, calibration = normalized(graph, images)
    context = PassContext(calibration=calibration, parameters=parameters)
    return PassManager(lowering_pipeline()).run(graph, context)


def test_a_residual_network_as_text() -> None:
    check_golden("residual_bootstrapped.txt", lowered(*residual_net()).text())


def test_bootstraps_bend_values_a_little() -> None:
    """By the sine that they apply; everything else stays as it was."""
    graph, images = residual_net()
    made = lowered(graph, images)
    seen: dict[str, Array] = {}
    outputs = made.evaluate(images, lambda node, value: seen.update({node.id: value}))
    bootstraps = [node for node in made.nodes if isinstance(node.op, Bootstrap)]
    assert bootstraps
    for node in bootstraps:
        before = seen[node.inputs[0]]
        error = before - seen[node.id]
        assert np.allclose(error, (2 * np.pi / 2**8) ** 2 / 6 * before**3, atol=1e-7)
    assert not np.allclose(outputs, graph.evaluate(images), atol=1e-9)
    assert np.allclose(outputs, graph.evaluate(images), atol=1e-3)
    seen.clear()
    straight = made.evaluate(images, lambda node, value: _straight(node, value, seen))
    assert np.allclose(straight, graph.evaluate(images))


def _straight(node: Node, value: Array, seen: dict[str, Array]) -> Array | None:
    seen[node.id] = seen[node.inputs[0]] if isinstance(node.op, Bootstrap) else value
    return seen[node.id] if isinstance(node.op, Bootstrap) else None


def test_levels_are_as_low_as_what_follows_needs() -> None:
    graph = lowered(*residual_net())
    bootstraps = [node for node in graph.nodes if isinstance(node.op, Bootstrap)]
    assert bootstraps
    needed = dict.fromkeys((node.id for node in graph.nodes), 0)
    for node in reversed(graph.nodes):
        state = node.type.state
        assert state is not None
        assert state.level == needed[node.id], node.id
        operand = 4 if isinstance(node.op, Bootstrap) else state.level + node.op.levels(graph.constants)
        for name in node.inputs:
            needed[name] = max(needed[name], operand)


def test_kernels_run_where_the_plan_was_priced() -> None:
    """Bootstraps at the least level; a shortcut's own convolution as low as its sum, not as high as its operand."""
    graph = lowered(*residual_net())
    assert {e.level for e in record(graph, DEEP).events if e.primitive == "bootstrap"} == {4}
    convolutions = [node for node in graph.nodes if node.id.startswith("conv2d")]
    level = {node.id: node.type.state.level for node in graph.nodes if node.type.state}
    assert any(level[node.inputs[0]] > level[node.id] + 1 for node in convolutions)


def test_without_bootstrapping_nothing_changes() -> None:
    graph, images = residual_net(1)
    parameters = Parameters(11, 14, 40, 47, 3, FLEXIBLE, 0)
    made = lowered(graph, images, parameters)
    assert made.inputs[0].type.state is not None
    assert made.inputs[0].type.state.level == 14
    assert not any(isinstance(node.op, Bootstrap) for node in made.nodes)
    packed = packed_net(1)
    assert PlaceBootstraps(placements=((1, "x"),)).run(packed, PassContext(parameters=parameters)) is packed


def packed_net(blocks: int = 3, parameters: Parameters = DEEP) -> Graph:
    graph, calibration = normalized(*residual_net(blocks))
    context = PassContext(calibration=calibration, parameters=parameters)
    return PassManager([AssignLayouts(), ChooseLowerings("plain")]).run(graph, context)


def test_a_network_without_a_place_is_refused_by_the_pass() -> None:
    graph = packed_net()
    setup = Bootstrapping(1)
    with pytest.raises(InfeasibleError, match="levels run out at"):
        PlaceBootstraps().run(graph, PassContext(parameters=Parameters(11, 17, 40, 47, 3, FLEXIBLE, 0, setup)))


def test_only_values_that_repeat_are_bootstrapped_on_a_part_of_the_slots() -> None:
    """Fewer slots leave fewer places, and the error says so if none is left."""
    graph = packed_net()
    everywhere = PlaceBootstraps().run(graph, PassContext(parameters=DEEP))
    layouts = {node.type.layout for node in everywhere.nodes if isinstance(node.op, Bootstrap)}
    largest = max(layout.repeats_after for layout in layouts if layout is not None)
    assert largest < DEEP.slots and DEEP.bootstrapping is not None
    for log_slots in (largest.bit_length() - 1, 3):
        part = replace(DEEP, bootstrapping=replace(DEEP.bootstrapping, log_slots=log_slots))
        if log_slots > 3:
            assert PlaceBootstraps().run(graph, PassContext(parameters=part)) == everywhere
            continue
        with pytest.raises(InfeasibleError, match=rf"that repeats after 2\^{log_slots} slots"):
            PlaceBootstraps().run(graph, PassContext(parameters=part))


def test_given_bootstraps_are_taken_and_those_that_do_not_suffice_are_refused() -> None:
    graph, context = packed_net(), PassContext(parameters=DEEP)
    assert PlaceBootstraps(placements=()).run(graph, context) == graph
    half = Parameters(11, 17, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(1))
    with pytest.raises(VerificationError, match="needs more than the"):
        AssignLevels().run(
            PlaceBootstraps(placements=((2, "polynomial"),)).run(graph, PassContext(parameters=half)),
            PassContext(parameters=half),
        )


def test_a_value_above_what_bootstraps_give_is_dropped_before_one() -> None:
    """The fresh input has more levels than a bootstrap gives; one reader needs them, the other reads the new value."""
    g = Growing(1, (1, 2, 2))
    p = np.array([[0.1, 0.5, 0.15, 0.03]])
    y = z = g.conv(g.input, 1)
    for _ in range(5):
        z = g.conv(g.polynomial(z, p), 1)
    graph, calibration = normalized(g.graph(g.add(Add(), y, z)), g.images)
    context = PassContext(calibration=calibration, parameters=DEEP)
    packed = PassManager([AssignLayouts(), ChooseLowerings()]).run(graph, context)
    position = next(i for i, node in enumerate(packed.nodes) if node.id == graph.nodes[-2].id)
    made = AssignLevels().run(PlaceBootstraps(placements=((position, y),)).run(packed, context), context)
    state = made[y].type.state
    assert DEEP.bootstrapping is not None
    assert state is not None
    assert state.level > DEEP.bootstrapping.output_level


def test_a_reshape_below_its_operand_has_the_scale_of_its_own_level() -> None:
    """One reader needs the value high in the chain, and the other, after a reshape, at its end."""
    g = Growing(1, (2, 2, 2))
    p = np.array([[0.1, 0.5, 0.15, 0.03]])
    y = z = g.conv(g.input, 2)
    for _ in range(3):
        z = g.conv(g.polynomial(z, p), 2)
    flat, deep = (g.linear(g.add(Reshape((8,)), one), 3) for one in (y, z))
    graph, calibration = normalized(g.graph(g.add(Add(), flat, deep)), g.images)
    context = PassContext(calibration=calibration, parameters=DEEP)
    packed = PassManager([AssignLayouts(), ChooseLowerings(), PlaceBootstraps(placements=())]).run(graph, context)
    made = AssignLevels().run(packed, context)
    reshape = next(node for node in made.nodes if node.inputs == (y,) and isinstance(node.op, Reshape))
    assert reshape.state.level < made[y].state.level
    assert reshape.state.scale == DEEP.scale(reshape.state.level)


# The checker ---------------------------------------------------------------------------------------------------------


def changed(graph: Graph, wanted: str, level: int | None = None, bound: Range | None = None) -> Graph:
    """The graph with another level or bound on one node."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str:
        kind: ValueType = node.type
        if node.id == wanted:
            assert kind.state is not None
            kind = replace(kind, state=kind.state if level is None else replace(kind.state, level=level))
            kind = replace(kind, bound=bound or kind.bound)
        return builder.keep(node, inputs, type=kind)

    return graph.rewrite(step, by="test")


def test_the_checker_derives_levels_anew() -> None:
    graph = lowered(*residual_net())
    verify(graph, DEEP)
    boot = next(node for node in graph.nodes if isinstance(node.op, Bootstrap))
    output = graph.outputs[0]
    cases: list[tuple[str, Graph]] = [
        ("outside 0", changed(graph, output, -1)),
        ("outside 0 ... 20", changed(graph, "x", 21)),
        ("outside 0", changed(graph, output, 1 + graph[output].state.level)),
        ("outside 0 ... 7", changed(graph, boot.id, 8)),
        ("below the least one, 4", changed(graph, boot.inputs[0], 3)),
        (r"beyond \[-1, 1\]", changed(graph, boot.inputs[0], bound=Range(-1e3, 1e3))),
    ]
    for message, wrong in cases:
        with pytest.raises(VerificationError, match=message):
            verify(wrong, DEEP)
    assert DEEP.bootstrapping is not None
    log_slots = graph[boot.inputs[0]].layout.repeats_after.bit_length() - 1
    enough, fewer = (
        replace(DEEP, bootstrapping=replace(DEEP.bootstrapping, log_slots=n)) for n in (log_slots, log_slots - 1)
    )
    verify(graph, enough)
    with pytest.raises(VerificationError, match=rf"does not repeat after 2\^{log_slots - 1} slots"):
        verify(graph, fewer)
    with pytest.raises(VerificationError, match="without bootstrapping"):
        verify(graph, Parameters(11, 20, 40, 47, 3, FLEXIBLE, 0))
