"""One failing graph for each invariant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from olac.ckks.parameters import Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import VerificationError
from olac.ir import CipherState, Graph, Node, Stage
from olac.ir.head import ArgMax
from olac.ir.lowerings import Diagonals, Multiplexed
from olac.ir.ops import (
    Activation,
    Add,
    Array,
    AtClient,
    AveragePool,
    Conv2d,
    Input,
    Linear,
    MaxPool2d,
    Op,
    Polynomial,
    Shape,
    SparseLinear,
    Square,
)
from olac.ir.types import ValueType
from olac.ir.verify import verify
from olac.passes.base import PassContext, PassManager
from olac.passes.fold_squares import FoldSquares
from olac.passes.pipeline import lowering_pipeline
from tests.networks import images_for, normalized, residual_network, residual_quadratics

PARAMETERS = Parameters(11, 7, 30, 36, 4, security=0)


def levelled() -> Graph:
    graph = residual_network()
    graph, calibration = normalized(graph, images_for(graph, 4))
    context = PassContext(calibration=calibration, parameters=PARAMETERS)
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


def other_ring(graph: Graph) -> Graph:
    for node in graph.nodes:
        assert node.type.layout is not None
        graph = change_type(graph, node.id, layout=replace(node.type.layout, slots=512))
    return graph


def other_batch(graph: Graph) -> Graph:
    layout = graph["head"].type.layout
    assert layout is not None
    return change_type(graph, "head", batch=2, layout=replace(layout, batch=2))


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
    "an activation after its stage": (lambda g: change(g, "act1", op=Activation("relu")), "activation at stage"),
    "a step of the client after its stage": (lambda g: change(g, "head", op=AtClient(ArgMax())), "at_client at stage"),
    "a max-pooling after its stage": (
        lambda g: change(g, "act1", op=MaxPool2d((1, 1), (1, 1))),
        "max_pool2d at stage",
    ),
    "no layout": (lambda g: change_type(g, "head", layout=None), "no layout"),
    "different slot counts": (other_slots, "different slot counts"),
    "slots of another ring": (other_ring, "of 512 slots, the parameters have 1024"),
    "different numbers of images": (other_batch, "different numbers of images"),
    "a layout of another shape": (lambda g: change_type(g, "head", layout=g["sum"].type.layout), "layout of"),
    "no lowering": (lambda g: change(g, "conv1", lowering=None), "no lowering"),
    "a linear layer that is multiplexed": (
        lambda g: change(g, "head", lowering=Multiplexed()),
        "lowered by multiplexed",
    ),
    "a grouped convolution that is": (
        lambda g: change(g, "conv2", lowering=Multiplexed()),
        "lowered by multiplexed",
    ),
    "a sum that is": (lambda g: change(g, "sum", lowering=Multiplexed()), "lowered by multiplexed"),
    "shifted copies that are": (
        lambda g: change(shifted(g, "x"), "conv1", lowering=Multiplexed()),
        "lowered by multiplexed",
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
    "a linear op that gives shifted copies": (lambda g: shifted(g, "head", 1), "lowered by diagonals"),
    "shifted copies under too small a modulus": (
        lambda g: change(shifted(g, "x"), "conv1", lowering=Diagonals(64, 8)),
        "lowered by diagonals mod 64",
    ),
    "a reshape that shifts": (lambda g: shifted(g, "flat"), "moves elements"),
    "a polynomial of shifted copies": (lambda g: shifted(shifted(g, "conv1"), "act1"), "polynomial reads shifted"),
    "a sum of different units": (lambda g: change_type(g, "sum", unit=77.0), "units"),
    "no level": (lambda g: change_type(g, "sum", state=None), "no level"),
    "a level below zero": (
        lambda g: change_type(g, "head", state=replace(state(g, "head"), level=-1)),
        "level -1 is",
    ),
    "a level above the chain": (
        lambda g: change_type(g, "x", state=replace(state(g, "x"), level=8)),
        "level 8 is outside 0 ... 7",
    ),
    "another scale": (
        lambda g: change_type(g, "conv1", state=replace(state(g, "conv1"), scale=2.0**30 * (1 + 1e-6))),
        "the scale at level 6 is",
    ),
    "a reshape that changes the scale": (
        lambda g: change_type(g, "flat", state=replace(state(g, "flat"), scale=2.0**30 + 100)),
        "the scale at level 1 is",
    ),
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
        verify(break_it(levelled()), PARAMETERS)


def test_a_product_of_wrong_unit_is_refused() -> None:
    graph = residual_network(square=True)
    graph, calibration = normalized(graph, images_for(graph, 4))
    context = PassContext(calibration=calibration, parameters=Parameters(11, 6, 30, 36, 7, security=0))
    done = PassManager(lowering_pipeline()).run(graph, context)
    verify(done, context.parameters)
    product = next(n.id for n in done.nodes if n.op.name == "multiply")
    with pytest.raises(VerificationError, match="the product of the units"):
        verify(change_type(done, product, unit=3.0))


def test_a_product_has_the_scale_that_its_rescale_leaves() -> None:
    graph = residual_network(square=True)
    graph, calibration = normalized(graph, images_for(graph, 4))
    parameters = Parameters(11, 6, 30, 36, 7, security=0)
    done = PassManager(lowering_pipeline()).run(graph, PassContext(calibration=calibration, parameters=parameters))
    product = next(n for n in done.nodes if n.op.name == "multiply")
    left = state(done, product.id)
    assert left.scale != parameters.scale(left.level)
    canonical = replace(left, scale=parameters.scale(left.level))
    with pytest.raises(VerificationError, match=f"the scale at level {left.level} is"):
        verify(change_type(done, product.id, state=canonical), parameters)
    flexible = replace(parameters, technique=FLEXIBLE)
    with pytest.raises(VerificationError, match=f"the scale at level {left.level} is"):
        verify(done, flexible)


def test_levels_above_the_chain_are_refused_one_by_one() -> None:
    """Also behind each other, where only the first is above what its operands allow."""
    graph = residual_network(square=True)
    graph, calibration = normalized(graph, images_for(graph, 4))
    parameters = Parameters(11, 6, 30, 36, 7, security=0)
    done = PassManager(lowering_pipeline()).run(graph, PassContext(calibration=calibration, parameters=parameters))
    for node in done.nodes:
        high = state(done, node.id)
        done = change_type(done, node.id, state=replace(high, level=high.level + 7))
    with pytest.raises(VerificationError, match=r"level 13 is outside 0 \.\.\. 6(.|\n)*level 12 is outside 0 \.\.\. 5"):
        verify(done, parameters)


def test_without_parameters_levels_are_held_against_each_other_alone() -> None:
    graph = levelled()
    verify(change_type(graph, "x", state=replace(state(graph, "x"), level=8)))
    with pytest.raises(VerificationError, match="rises"):
        verify(change_type(graph, "act1", state=replace(state(graph, "act1"), level=7)))


# What ops say of their own fields and constants ----------------------------------------------------------------------

IMAGE = (2, 4, 4)
CONV = Conv2d("w", "b")
SPARSE = SparseLinear("r", "c", "v", "b", (3,))
ARRAYS: dict[str, Array] = {
    "w": np.ones((3, 2, 3, 3)),
    "b": np.zeros(3),
    "r": np.array([0.0, 1.0, 2.0]),
    "c": np.array([0.0, 5.0, 31.0]),
    "v": np.ones(3),
    "m": np.ones((3, 32)),
    "p": np.ones((1, 3)),
}
NONSENSE: dict[str, tuple[Op, dict[str, Array], Shape, str]] = {
    "a weight of three axes": (CONV, {"w": np.ones((3, 2, 9))}, IMAGE, "weight of conv2d with 3 axes, expected 4"),
    "a bias of two": (CONV, {"b": np.zeros((3, 1))}, IMAGE, "bias of conv2d with 2 axes"),
    "biases for other channels": (CONV, {"b": np.zeros(4)}, IMAGE, "4 biases for 3 outputs"),
    "a stride of 0": (replace(CONV, stride=(0, 1)), {}, IMAGE, "conv2d of 3 channels with stride"),
    "a dilation of 0": (replace(CONV, dilation=(1, 0)), {}, IMAGE, "conv2d of 3 channels"),
    "padding below 0": (replace(CONV, padding=(0, -1, 0, 0)), {}, IMAGE, "conv2d of 3 channels"),
    "groups that do not divide": (replace(CONV, groups=2), {}, IMAGE, "conv2d of 3 channels"),
    "a matrix of one axis": (Linear("m"), {"m": np.ones(32)}, (32,), "weight of linear with 1 axes"),
    "biases for other rows": (Linear("m", "b"), {"b": np.zeros(2)}, (32,), "2 biases for 3 outputs"),
    "entries without values": (SPARSE, {"v": np.ones(2)}, IMAGE, "3 rows, 3 columns and 2 values"),
    "a row beyond": (
        SPARSE,
        {"r": np.array([0.0, 1.0, 3.0])},
        IMAGE,
        "rows .* not all indices below 3",
    ),
    "a column beyond": (SPARSE, {"c": np.array([0.0, 1.0, 32.0])}, IMAGE, "columns .* below 32"),
    "half a row": (SPARSE, {"r": np.array([0.0, 0.5, 1.0])}, IMAGE, "rows .* not all indices"),
    "a pooling of one axis": (AveragePool("v", "m"), {}, IMAGE, "rows of average_pool with 1 axes"),
    "a shift of two axes": (Square("p"), {}, IMAGE, "shift of square with 2 axes"),
    "coefficients of one axis": (Polynomial("v"), {}, IMAGE, "coefficients of polynomial with 1 axes"),
    "no coefficients": (Polynomial("p"), {"p": np.ones((1, 0))}, IMAGE, "without coefficients"),
    "an interval of nothing": (Polynomial("p", 0.0), {}, IMAGE, "a polynomial on"),
    "too few offsets": (Input(IMAGE, (0.0,), (1.0,)), {}, IMAGE, "1 offsets and 1 factors for 2 channels"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_ops_check_what_they_rely_on(name: str) -> None:
    op, changed, shape, message = NONSENSE[name]
    x = Node("x", op, (), ValueType(shape)) if isinstance(op, Input) else Node("x", Input(shape), (), ValueType(shape))
    nodes = (x,) if isinstance(op, Input) else (x, Node("y", op, ("x",), ValueType((3,))))
    with pytest.raises(VerificationError, match=message):
        verify(Graph(nodes, (nodes[-1].id,), ARRAYS | changed))


def test_polynomials_of_slots_are_on_one_interval() -> None:
    graph = levelled()
    wide = change(graph, "act1", op=replace(graph["act1"].op, half_width=2.0))  # type: ignore[call-arg]
    with pytest.raises(VerificationError, match=r"a polynomial on \[-2.0, 2.0\], slots are for \[-1, 1\]"):
        verify(wide)
    verify(Graph(residual_network().nodes, ("head",), residual_network().constants, Stage.POLYNOMIAL))


def test_a_square_of_wrong_unit_is_refused() -> None:
    graph = PassManager([FoldSquares()]).run(residual_quadratics(blocks=1), PassContext())
    graph, calibration = normalized(graph, images_for(graph, 4))
    context = PassContext(calibration=calibration, parameters=Parameters(11, 8, 30, 36, 1, security=0))
    done = PassManager(lowering_pipeline()).run(graph, context)
    verify(done)
    square = next(n.id for n in done.nodes if n.op.name == "square")
    with pytest.raises(VerificationError, match="the product of the units"):
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
