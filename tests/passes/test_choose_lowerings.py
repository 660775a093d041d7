"""Shifted copies: which values get them, unchanged results, and fewer products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.costs.table import CostTable
from olac.ir import Graph, GraphBuilder, Node, Stage
from olac.ir.ops import Add, Array, Input, Linear, LinearOp, Multiply, Polynomial, Reshape
from olac.kernels.base import Value
from olac.kernels.execute import build_kernels, execute
from olac.kernels.record import record
from olac.passes.assign_layouts import AssignLayouts
from olac.passes.assign_levels import AssignLevels
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import ChooseLowerings, Copies, Halving
from tests.networks import Growing, images_for, normalized, random_network, residual_network, residual_quadratics

DEPTH = 40


def lowered(
    graph: Graph, copies: Copies, technique: str = FIXED, costs: CostTable | None = None, halving: Halving = "never"
) -> Graph:
    graph, calibration = normalized(graph, images_for(graph, 6))
    parameters = Parameters(12, DEPTH, 35, 42, 1, technique, security=0)
    context = PassContext(calibration=calibration, parameters=parameters, costs=costs)
    return PassManager([AssignLayouts(), ChooseLowerings(copies, halving), AssignLevels()]).run(graph, context)


def parameters_of(technique: str) -> Parameters:
    return Parameters(12, DEPTH, 35, 42, 1, technique, security=0)


def in_slots(graph: Graph, images: Array, technique: str) -> Array:
    """One image through the kernels, in true units."""
    evaluator = SimulatorEvaluator(parameters_of(technique))
    given, wanted = graph.inputs[0].type, graph[graph.outputs[0]].type
    assert given.layout is not None and wanted.layout is not None
    fresh = tuple(evaluator.encrypt(page, DEPTH) for page in given.layout.pack(images / given.unit))
    (result,) = execute(graph, build_kernels(graph), evaluator, {graph.inputs[0].id: fresh})
    return wanted.layout.unpack(np.stack([evaluator.decrypt(part) for part in result])) * wanted.unit


def step_of(graph: Graph, node_id: str) -> int:
    layout = graph[node_id].type.layout
    assert layout is not None
    return layout.step


def products(graph: Graph) -> int:
    return Counter(event.primitive for event in record(graph, parameters_of(FIXED)).events)["multiply_plain"]


def skip() -> Graph:
    """conv, polynomial, conv, polynomial, conv, and a sum with the first polynomial."""
    g = Growing(0, (2, 6, 6))
    first = g.polynomial(g.conv(g.input, 4), g.random.normal(size=(4, 4)))
    inner = g.polynomial(g.conv(first, 4), g.random.normal(size=(4, 4)))
    return g.graph(g.add(Add(), g.conv(inner, 4), first, name="sum"))


def test_a_value_with_a_skip_gets_a_twin() -> None:
    graph = lowered(skip(), "shifted")
    plain, twin, inner = (graph[i] for i in ("polynomial", "polynomial_shifted", "polynomial_2"))
    assert twin.op == plain.op and twin.inputs == plain.inputs
    assert twin.origin.path == plain.origin.path and twin.origin.passes[-2:] == ("choose_lowerings", "assign_levels")
    assert step_of(graph, plain.id) == 0 < step_of(graph, twin.id)
    assert plain.type.state == twin.type.state
    assert graph["sum"].inputs == ("conv2d_3", plain.id)
    assert graph["conv2d_2"].inputs == (twin.id,)
    assert step_of(graph, inner.id) > 0 and f"{inner.id}_shifted" not in graph.text()


def test_plain_copies_can_be_asked_for() -> None:
    graph = lowered(skip(), "plain")
    assert "shifted" not in graph.text()
    with pytest.raises(ValueError, match="not one of"):
        ChooseLowerings("some")  # type: ignore[arg-type]


def test_a_twin_does_not_take_the_id_of_another() -> None:
    b = GraphBuilder(by="test")
    y = b.add(Polynomial(b.constant("p", [[0.0, 0.3, 0.4]])), [b.add(Input((16,)), name="x")], name="act")
    z = b.add(Linear(b.constant("w", np.ones((16, 16)))), [y], name="act_shifted")
    b.add(Add(), [z, y], name="act_shifted_")
    graph = lowered(b.build(["act_shifted_"], Stage.POLYNOMIAL), "shifted")
    assert {node.id for node in graph.nodes} == {"x", "act", "act_shifted", "act_shifted_", "act_shifted__"}


def test_squares_and_products_keep_plain_copies() -> None:
    b = GraphBuilder(by="test")
    x = b.add(Input((16,)), name="x")
    y = b.add(Multiply(), [x, x], name="y")
    z = b.add(Linear(b.constant("w", np.ones((4, 16)))), [y], name="z")
    assert "shifted" not in lowered(b.build([z], Stage.POLYNOMIAL), "shifted").text()


def test_inputs_are_packed_shifted_where_only_linear_ops_read_them() -> None:
    for skipped in (False, True):
        g = Growing(0, (64,))
        y = g.linear(g.input, 64)
        graph = lowered(g.graph(g.add(Add(), y, g.input) if skipped else y), "auto")
        assert (step_of(graph, "x") > 0) is not skipped
        assert "polynomial" not in graph.text()
        images = images_for(graph, 1)
        assert np.allclose(in_slots(graph, images, FIXED), graph.evaluate(images), atol=1e-6)


@pytest.mark.parametrize("read_twice", [False, True])
def test_shifted_copies_pass_through_reshapes(read_twice: bool) -> None:
    g = Growing(0, (2, 6, 6))
    y = g.polynomial(g.conv(g.input, 4), g.random.normal(size=(4, 4)))
    z = g.linear(g.add(Reshape((144,)), y), 5)
    if read_twice:
        z = g.add(Add(), z, g.linear(g.add(Reshape((144,)), g.add(Multiply(), y, y)), 5))
    graph = lowered(g.graph(z), "shifted")
    linear = next(node for node in graph.nodes if node.op.name == "linear")
    assert step_of(graph, linear.inputs[0]) > 0
    images = images_for(graph, 1)
    assert np.allclose(in_slots(graph, images, FIXED), graph.evaluate(images), atol=1e-6)


def test_products_drop_by_the_number_of_copies() -> None:
    """Layers of 64 features in 2048 slots: 64 diagonals each. Four shifts at least pay."""
    g = Growing(0, (64,))
    y = g.linear(g.input, 64)
    for _ in range(2):
        y = g.linear(g.polynomial(y, g.random.normal(size=(1, 4))), 64)
    graphs = {copies: lowered(g.graph(y), copies, costs=CostTable.default()) for copies in ("plain", "auto")}
    assert products_of_linear_ops(graphs["plain"]) == [64, 64, 64]
    assert max(products_of_linear_ops(graphs["auto"])) <= 64 // 4
    assert products(graphs["auto"]) < products(graphs["plain"]) // 2


def test_products_are_halved_where_that_is_faster() -> None:
    g = Growing(0, (8, 8, 8))
    y = g.input
    for _ in range(2):
        y = g.polynomial(g.conv(y, 16), g.random.normal(size=(16, 4)))
    y = g.conv(y, 8)
    narrow = Growing(0, (2,))
    cheap = narrow.polynomial(narrow.linear(narrow.input, 1), np.array([[0.1, 0.2, 0.3]]))
    graphs = {
        halving: lowered(g.graph(y), "plain", costs=CostTable.default(), halving=halving)
        for halving in ("never", "auto", "always")
    }
    never, auto, always = (products_of_linear_ops(graphs[halving]) for halving in graphs)
    for before, after in zip(never[:-1], always[:-1], strict=True):
        assert after <= before * 5 // 8 + 1
    assert auto[1] < never[1]
    # Ops after the last activation keep the imaginary parts, by which a client detects wrong results.
    assert never[-1] == auto[-1] == always[-1] > 1
    small = lowered(narrow.graph(cheap), "plain", costs=CostTable.default(), halving="auto")
    assert "imaginary" not in small.text()
    images = images_for(graphs["never"], 1)
    for graph in graphs.values():
        assert np.allclose(in_slots(graph, images, FIXED), graph.evaluate(images), atol=1e-6)
    with pytest.raises(ValueError, match="halving"):
        ChooseLowerings(halving="some")  # type: ignore[arg-type]


def products_of_linear_ops(graph: Graph) -> list[int]:
    recorder = RecorderEvaluator(parameters_of(FIXED))
    until = {}

    def after(node: Node, value: Value) -> None:
        until[node.id] = sum(event.primitive == "multiply_plain" for event in recorder.events)

    record(graph, recorder.parameters, recorder=recorder, after=after)
    return [until[node.id] - until[node.inputs[0]] for node in graph.nodes if isinstance(node.op, LinearOp)]


NETWORKS: dict[str, Callable[[], Graph]] = {
    "skip": skip,
    "residual": residual_network,
    "quadratics": lambda: residual_quadratics(blocks=2),
}


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
@pytest.mark.parametrize("copies", ["plain", "auto", "shifted"])
@pytest.mark.parametrize("network", NETWORKS)
def test_values_stay_what_they_are(network: str, copies: Copies, technique: str) -> None:
    graph = NETWORKS[network]()
    images = images_for(graph, 1)
    result = lowered(graph, copies, technique)
    assert np.allclose(result.evaluate(images), graph.evaluate(images), atol=1e-9)
    assert np.allclose(in_slots(result, images, technique), graph.evaluate(images), atol=1e-6)
    assert products(result) <= products(lowered(graph, "plain"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_random_networks(seed: int) -> None:
    graph, images = random_network(seed)
    result = lowered(graph, "shifted")
    expected = graph.evaluate(images[:1])
    assert np.allclose(in_slots(result, images[:1], FIXED), expected, atol=1e-6 * max(1.0, np.abs(expected).max()))
