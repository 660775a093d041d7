"""One failing graph for each invariant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir import CipherState, Graph, Node, Stage
from olac.ir.lowerings import Diagonals, Multiplexed
from olac.ir.ops import Activation, Add, MaxPool2d
from olac.ir.verify import verify
from olac.passes.base import PassContext, PassManager
from olac.passes.fold_squares import FoldSquares
from olac.passes.pipeline import lowering_pipeline
from tests.networks import images_for, normalized, residual_network, residual_quadratics


def levelled() -> Graph:
    graph = residual_network()
    graph, calibration = normalized(graph, images_for(graph, 4))
    context = PassContext(calibration=calibration, parameters=Parameters(11, 7, 30, 36, 4, security=0))
    return PassManager(lowering_pipeline("plain")).run(graph, context)


def change(graph: Graph, node_id: str, **changes: object) -> Graph:
    nodes = tuple(replace(n, **changes) if n.id == node_id else n for n in graph.nodes)  # type: ignore[arg-type]
    return Graph(nodes, graph.outputs, graph.constants, graph.stage)


def change_type(graph: Graph, node_id: str, **changes: object) -> Graph:
    return change(graph, node_id, type=replace(graph[node_id].type, **changes))  # type: ignore[arg-type]


def state(graph: Graph, node_id: str) -> CipherState:
    found = graph[node_id].type.state
    assert found is not None
    return found


def without(graph: Graph, node_id: str) -> Graph:
    return Graph(tuple(n for n in graph.nodes if n.id != node_id), graph.outputs, graph.constants, graph.stage)


def twice(graph: Graph) -> Graph:
    return Graph((*graph.nodes, graph.nodes[-1]), graph.outputs, graph.constants, graph.stage)


def other_slots(graph: Graph) -> Graph:
    layout = graph["head"].type.layout
    assert layout is not None
    return change_type(graph, "head", layout=replace(layout, slots=4 * layout.slots))


def shifted(graph: Graph, node_id: str, step: int = 8) -> Graph:
    layout = graph[node_id].type.layout
    assert layout is not None
    return change_type(graph, node_id, layout=layout.with_step(step))


def moved_reshape(graph: Graph) -> Graph:
    layout = graph["flat"].type.layout
    assert layout is not None
    return change_type(graph, "flat", layout=replace(layout, plane=layout.plane * 2))


BROKEN: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "an id twice": (twice, "given twice"),
    "an operand that is not defined": (lambda g: without(g, "act1"), "not defined before"),
    "a constant that does not exist": (
        lambda g: Graph(
            g.nodes, g.outputs, {k: v for k, v in g.constants.items() if "w1" not in k and "conv1" not in k}
        ),
        "do not exist",
    ),
    "too many operands": (lambda g: change(g, "act1", inputs=("conv1", "conv1")), "operands"),
    "a shape that the op does not give": (lambda g: change_type(g, "head", shape=(4,)), "the op gives"),
    "operands of different shapes": (lambda g: change(g, "sum", inputs=("conv2", "x")), "add of"),
    "a unit of zero": (lambda g: change_type(g, "head", unit=0.0), "not a positive number"),
    "an output that does not exist": (lambda g: Graph(g.nodes, ("nothing",), g.constants, g.stage), "does not exist"),
    "no output": (lambda g: Graph(g.nodes, (), g.constants, g.stage), "no output"),
    "a constant that is not finite": (
        lambda g: Graph(g.nodes, g.outputs, {k: v * np.nan for k, v in g.constants.items()}, g.stage),
        "not finite",
    ),
    "an activation after its stage": (lambda g: change(g, "act1", op=Activation("relu")), "is left at stage"),
    "a max-pooling after its stage": (
        lambda g: change(g, "act1", op=MaxPool2d((1, 1), (1, 1))),
        "max-pooling is left at stage",
    ),
    "no layout": (lambda g: change_type(g, "head", layout=None), "no layout"),
    "different slot counts": (other_slots, "different slot counts"),
    "a layout of another shape": (lambda g: change_type(g, "head", layout=g["sum"].type.layout), "layout of"),
    "no lowering": (lambda g: change(g, "conv1", lowering=None), "no lowering"),
    "a linear layer that is multiplexed": (lambda g: change(g, "head", lowering=Multiplexed()), "can't be multiplexed"),
    "a grouped convolution that is": (lambda g: change(g, "conv2", lowering=Multiplexed()), "can't be multiplexed"),
    "a sum that is": (lambda g: change(g, "sum", lowering=Multiplexed()), "can't be multiplexed"),
    "shifted copies that are": (
        lambda g: change(shifted(g, "x"), "conv1", lowering=Multiplexed()),
        "can't be multiplexed",
    ),
    "a multiplexed convolution of one level": (
        lambda g: change(g, "conv1", lowering=Multiplexed()),
        "takes 2 levels",
    ),
    "a reshape that moves": (moved_reshape, "moves elements"),
    "a sum of different layouts": (
        lambda g: change_type(g, "conv2", layout=replace(g["conv2"].type.layout, plane=256)),  # type: ignore[type-var]
        "different layouts",
    ),
    "a sum of shifted copies": (
        lambda g: shifted(shifted(shifted(g, "conv2"), "shortcut"), "sum"),
        "add reads shifted copies",
    ),
    "a linear op that gives shifted copies": (lambda g: shifted(g, "head", 1), "result of a linear op has shifted"),
    "shifted copies under too small a modulus": (
        lambda g: change(shifted(g, "x"), "conv1", lowering=Diagonals(64, 8)),
        "can't be read with",
    ),
    "a reshape that shifts": (lambda g: shifted(g, "flat"), "moves elements"),
    "a polynomial of shifted copies": (lambda g: shifted(shifted(g, "conv1"), "act1"), "polynomial reads shifted"),
    "a sum of different units": (lambda g: change_type(g, "sum", unit=77.0), "units"),
    "no level": (lambda g: change_type(g, "sum", state=None), "no level"),
    "a level below zero": (lambda g: change_type(g, "head", state=replace(state(g, "head"), level=-1)), "below zero"),
    "a level that rises": (lambda g: change_type(g, "act1", state=replace(state(g, "act1"), level=7)), "rises"),
    "a noise degree of 2 between nodes": (
        lambda g: change_type(g, "sum", state=replace(state(g, "sum"), noise_degree=2)),
        "noise degree 2",
    ),
    "a product without its level": (
        lambda g: change_type(g, "conv1", state=state(g, "x")),
        "takes a level",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_graph_is_refused(name: str) -> None:
    break_it, message = BROKEN[name]
    with pytest.raises(VerificationError, match=message):
        verify(break_it(levelled()))


def test_a_product_of_wrong_unit_is_refused() -> None:
    graph = residual_network(square=True)
    graph, calibration = normalized(graph, images_for(graph, 4))
    context = PassContext(calibration=calibration, parameters=Parameters(11, 6, 30, 36, 7, security=0))
    done = PassManager(lowering_pipeline()).run(graph, context)
    verify(done)
    product = next(n.id for n in done.nodes if n.op.name == "multiply")
    with pytest.raises(VerificationError, match="do not multiply"):
        verify(change_type(done, product, unit=3.0))


def test_a_square_of_wrong_unit_is_refused() -> None:
    graph = PassManager([FoldSquares()]).run(residual_quadratics(blocks=1), PassContext())
    graph, calibration = normalized(graph, images_for(graph, 4))
    context = PassContext(calibration=calibration, parameters=Parameters(11, 8, 30, 36, 1, security=0))
    done = PassManager(lowering_pipeline()).run(graph, context)
    verify(done)
    square = next(n.id for n in done.nodes if n.op.name == "square")
    with pytest.raises(VerificationError, match="do not multiply"):
        verify(change_type(done, square, unit=3.0))


def test_the_sound_graph_passes() -> None:
    verify(levelled())


def test_the_error_names_node_and_origin() -> None:
    graph = levelled()
    node: Node = replace(graph["head"], type=replace(graph["head"].type, unit=-1.0))
    with pytest.raises(VerificationError, match=r"%head: .*\n.*from \(model\)"):
        verify(change(graph, "head", type=node.type))


def test_stage_is_what_is_checked() -> None:
    graph = levelled()
    assert graph.stage == Stage.LEVELLED
    assert isinstance(graph["sum"].op, Add)
