from __future__ import annotations

import numpy as np
import pytest

from olac.errors import VerificationError
from olac.ir import Graph, GraphBuilder, Node, Origin
from olac.ir.ops import Activation, Add, Input, Linear, ShapeError
from tests.networks import images_for, residual_network


def small() -> Graph:
    b = GraphBuilder(by="test")
    x = b.add(Input((2,)), name="x")
    y = b.add(Linear(b.constant("w", [[1.0, 2.0], [0.0, -1.0]]), None), [x], name="fc", origin=Origin("fc", "m.py:3"))
    return b.build([b.add(Add(), [y, x], name="sum")])


def test_text_is_stable() -> None:
    assert small().text() == (
        "graph at stage TRACED\n"
        "  %x: 2 = input() shape=(2,)\n"
        "  %fc: 2 = linear(%x) weight=<2x2> bias=None\n"
        "  %sum: 2 = add(%fc, %x)\n"
        "  return %sum\n"
    )


def test_structural_equality_ignores_origins_and_sees_constants() -> None:
    a, b = small(), small()
    assert a == b
    constants = {"w": np.array([[1.0, 2.0], [0.0, -1.5]])}
    assert Graph(a.nodes, a.outputs, constants, a.stage) != b


def test_graphs_are_immutable() -> None:
    graph = small()
    with pytest.raises(AttributeError):
        graph.stage = graph.stage  # type: ignore[misc]
    with pytest.raises(TypeError):
        graph.constants["w"] = np.zeros(1)  # type: ignore[index]
    with pytest.raises(ValueError):
        graph.constants["w"][0, 0] = 5.0


def test_rewrite_drops_what_nothing_reads_and_keeps_the_rest() -> None:
    graph = small()

    def skip_linear(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        return inputs[0] if isinstance(node.op, Linear) else None

    after = graph.rewrite(skip_linear, by="skip")
    assert [n.id for n in after.nodes] == ["x", "sum"]
    assert not after.constants
    assert np.array_equal(after.evaluate(np.array([[1.0, 2.0]])), [[2.0, 4.0]])
    assert len(graph.nodes) == 3


def test_what_a_node_has_only_from_a_stage_on() -> None:
    node = small()["x"]
    with pytest.raises(VerificationError, match=r"node x \(input, .* has no layout: nodes get one by stage PACKED"):
        _ = node.layout
    with pytest.raises(VerificationError, match="has no state: nodes get one by stage LEVELLED"):
        _ = node.state
    with pytest.raises(VerificationError, match="is not linear"):
        _ = node.linear


def test_groups_readers_and_names() -> None:
    graph = small()
    assert graph.groups(lambda op: isinstance(op, Add))["x"] == frozenset(node.id for node in graph.nodes)
    assert all(len(group) == 1 for group in graph.groups(lambda op: False).values())
    assert graph.read_once() == {node.id for node in graph.nodes if isinstance(node.op, Linear)}
    assert graph.free_name("x") == "x_" and graph.free_name("new") == "new"


def test_evaluate_matches_numpy() -> None:
    x = np.array([[1.0, 2.0], [3.0, -1.0]])
    w = np.array([[1.0, 2.0], [0.0, -1.0]])
    assert np.allclose(small().evaluate(x), x @ w.T + x)


def test_evaluate_lets_an_observer_replace_values() -> None:
    out = small().evaluate(np.ones((1, 2)), lambda node, v: v * 0 if node.id == "fc" else None)
    assert np.array_equal(out, np.ones((1, 2)))


def test_ids_and_constants_stay_unique() -> None:
    b = GraphBuilder()
    x = b.add(Input((2,)), name="x")
    assert [b.add(Activation("relu"), [x], name="relu") for _ in range(2)] == ["relu", "relu_2"]
    assert b.constant("w", [1.0]) == b.constant("w", [1.0]) == "w"
    assert b.constant("w", [2.0]) == "w.2"


def test_builder_refuses_operands_that_do_not_fit() -> None:
    b = GraphBuilder()
    x = b.add(Input((2,)), name="x")
    y = b.add(Input((3,)), name="y")
    with pytest.raises(ShapeError):
        b.add(Add(), [x, y], name="sum")
    with pytest.raises(ShapeError):
        b.add(Add(), [x], name="sum")


def test_to_networkx_has_the_data_flow() -> None:
    graph = residual_network()
    flow = graph.to_networkx()
    assert set(flow.predecessors("sum")) == {"conv2", "shortcut"}
    assert flow.nodes["sum"]["node"] is graph["sum"]
    assert graph.evaluate(images_for(graph, 3)).shape == (3, 3)
