"""Multiplexed convolutions in networks: where they are used, the levels they cost, and unchanged values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.analysis.levels import multiplicative_depth
from olac.backends.cost import CostEvaluator
from olac.backends.recorder import RecorderEvaluator
from olac.backends.simulator import SimulatorEvaluator
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.costs.table import CostTable
from olac.ir import Graph
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals, Multiplexed
from olac.ir.ops import Add, Array, Bootstrap, Conv2d, LinearOp
from olac.kernels.base import Kernel
from olac.kernels.execute import build_kernels, execute
from olac.kernels.linear import DiagonalKernel
from olac.kernels.multiplexed import MultiplexedKernel
from olac.kernels.record import record
from olac.passes.assign_levels import AssignLevels
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import ChooseLowerings, Convolutions, Copies, kinds, lowered_depth
from olac.passes.pipeline import lowering_pipeline
from tests.networks import Growing, images_for, normalized, random_network, residual_network, residual_quadratics

DEEP = Parameters(11, 22, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(6))


def plain_parameters(technique: str = FIXED) -> Parameters:
    return Parameters(12, 40, 35, 42, 1, technique, security=0)


def lowered(
    graph: Graph, parameters: Parameters, lowering: Convolutions = "multiplexed", copies: Copies = "auto"
) -> Graph:
    graph, calibration = normalized(graph, images_for(graph, 6))
    context = PassContext(calibration=calibration, parameters=parameters)
    return PassManager(lowering_pipeline(copies, convolutions=lowering)).run(graph, context)


def in_slots(graph: Graph, images: Array, parameters: Parameters) -> Array:
    """One image through the kernels, with keys for the recorded steps only, in true units."""
    evaluator = SimulatorEvaluator(parameters, record(graph, parameters).rotations)
    given, wanted = graph.inputs[0].type, graph[graph.outputs[0]].type
    assert given.layout is not None and given.state is not None and wanted.layout is not None
    fresh = tuple(evaluator.encrypt(page, given.state.level) for page in given.layout.pack(images / given.unit))
    (result,) = execute(graph, build_kernels(graph), evaluator, {graph.inputs[0].id: fresh})
    return wanted.layout.unpack(np.stack([evaluator.decrypt(part) for part in result])) * wanted.unit


def layout_of(graph: Graph, node_id: str) -> TensorLayout:
    layout = graph[node_id].type.layout
    assert layout is not None
    return layout


def multiplexed(graph: Graph) -> list[str]:
    return [node.id for node in graph.nodes if node.lowering == Multiplexed()]


def blocks(count: int = 1) -> Graph:
    """A stem, basic blocks, a strided convolution and a grouped one."""
    g = Growing(0, (2, 6, 6))
    p = np.array([[0.1, 0.5, 0.2, 0.05]])
    y = g.polynomial(g.conv(g.input, 4), p)
    for _ in range(count):
        y = g.polynomial(g.add(Add(), g.conv(g.polynomial(g.conv(y, 4), p), 4), y), p)
    y = g.polynomial(g.conv(y, 6, stride=2), p)
    return g.graph(g.conv(y, 6, groups=2))


def test_every_convolution_that_can_be_is_multiplexed() -> None:
    graph = lowered(blocks(), plain_parameters())
    convolutions = [node for node in graph.nodes if isinstance(node.op, Conv2d)]
    assert len(convolutions) == 5
    assert multiplexed(graph) == [node.id for node in convolutions if node.op.groups == 1]  # type: ignore[attr-defined]
    for node in convolutions:
        operand, result = layout_of(graph, node.inputs[0]), layout_of(graph, node.id)
        assert Multiplexed().can_lower(node.op, operand, result) == (node.lowering == Multiplexed())
        states = [graph[name].type.state for name in (node.inputs[0], node.id)]
        assert states[0] is not None and states[1] is not None
        assert states[0].level - states[1].level == (2 if node.lowering == Multiplexed() else 1)


def test_layouts_let_strided_convolutions_be_multiplexed() -> None:
    """Dense planes take as few diagonals here as a gap, so without the preference they would be chosen."""
    g = Growing(0, (3, 4, 4))
    graph = g.graph(g.conv(g.input, 2, stride=2))
    gaps = {how: layout_of(made, made.outputs[0]).gap for how in kinds() for made in [lowered(graph, DEEP, how)]}
    assert gaps == {"auto": 1, "diagonals": 1, "multiplexed": 2}
    assert len(multiplexed(lowered(graph, DEEP))) == 1


@pytest.mark.parametrize("lowering", ["auto", "diagonals"])
def test_others_take_diagonals(lowering: Convolutions) -> None:
    graph = lowered(blocks(), plain_parameters(), lowering)
    assert all(isinstance(node.lowering, Diagonals) for node in graph.nodes if isinstance(node.op, LinearOp))
    assert graph.text() == lowered(blocks(), plain_parameters(), "diagonals").text()


@pytest.mark.parametrize("copies", ["auto", "shifted", "plain"])
def test_multiplexed_convolutions_read_plain_copies(copies: Copies) -> None:
    graph = lowered(blocks(), plain_parameters(), copies=copies)
    assert len(multiplexed(graph)) == 4
    assert all(layout_of(graph, graph[name].inputs[0]).step == 0 for name in multiplexed(graph))
    grouped = graph[graph.outputs[0]]
    if copies != "auto":
        assert (layout_of(graph, grouped.inputs[0]).step > 0) == (copies == "shifted")


def test_a_lowering_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="'fastest' is not one of auto, diagonals, multiplexed"):
        ChooseLowerings(convolutions="fastest")


NETWORKS: dict[str, Callable[[], Graph]] = {
    "blocks": blocks,
    "residual": residual_network,
    "quadratics": lambda: residual_quadratics(blocks=2),
}


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
@pytest.mark.parametrize("network", NETWORKS)
def test_values_stay_what_they_are(network: str, technique: str) -> None:
    graph, parameters = NETWORKS[network](), plain_parameters(technique)
    images = images_for(graph, 1)
    result = lowered(graph, parameters)
    assert multiplexed(result)
    assert np.allclose(result.evaluate(images), graph.evaluate(images), atol=1e-9)
    assert np.allclose(in_slots(result, images, parameters), graph.evaluate(images), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_random_networks(seed: int) -> None:
    graph, images = random_network(seed)
    parameters = plain_parameters()
    expected = graph.evaluate(images[:1])
    found = in_slots(lowered(graph, parameters), images[:1], parameters)
    assert np.allclose(found, expected, atol=1e-6 * max(1.0, np.abs(expected).max()))


def test_bootstraps_are_placed_by_the_levels_of_lowerings() -> None:
    deep = blocks(5)
    made = {lowering: lowered(deep, DEEP, lowering) for lowering in ("diagonals", "multiplexed")}
    images = images_for(deep, 1)
    bootstraps: dict[str, int] = {}
    for lowering, graph in made.items():
        recorder = RecorderEvaluator(DEEP)
        record(graph, DEEP, recorder=recorder)
        bootstraps[lowering] = sum(isinstance(node.op, Bootstrap) for node in graph.nodes)
        assert sum(event.primitive == "bootstrap" for event in recorder.events) == bootstraps[lowering]
        assert np.allclose(graph.evaluate(images), deep.evaluate(images), atol=1e-3)  # up to the sine of bootstraps
    assert len(multiplexed(made["multiplexed"])) == 12
    assert bootstraps["multiplexed"] > bootstraps["diagonals"] > 0


@pytest.mark.parametrize(
    ("size", "channels", "step", "baby"), [(32, 16, 8192, 1024), (16, 32, 32, 1024), (8, 64, 32, 32)]
)
def test_why_auto_takes_diagonals(size: int, channels: int, step: int, baby: int) -> None:
    """Convolutions of ResNet-20 at one level: diagonals are faster over shifted copies, not always over plain ones."""
    gap, parameters = 32 // size, Parameters(16, 10, 40, 47, 3, security=0)
    layout = TensorLayout.multiplexed((channels, size, size), (32, 32), gap, parameters.slots)
    weight = np.random.default_rng(0).normal(size=(channels, channels, 3, 3))
    op, table = Conv2d("w", None, (1, 1), (1, 1, 1, 1)), CostTable.default()

    def seconds(kernel: Kernel) -> float:
        evaluator = CostEvaluator(parameters, table, threads=1)
        kernel.run(evaluator, [(evaluator.fresh(9),)])
        return evaluator.seconds

    linear = op.linear_map(layout.shape, {"w": weight})

    def diagonals(step: int, baby: int) -> float:
        return seconds(DiagonalKernel.listed(linear, layout.with_step(step), layout, Diagonals(layout.period, baby)))

    multiplexed = seconds(MultiplexedKernel(op, {"w": weight}, layout, layout))
    assert 1.5 * diagonals(step, baby) < multiplexed
    assert (multiplexed < min(diagonals(0, baby) for baby in (32 * gap, 1024))) == (channels > 16)


# Depth before there are layouts --------------------------------------------------------------------------------------


def test_the_depth_of_what_will_be_lowered() -> None:
    graph, _ = normalized(blocks(), images_for(blocks(), 6))
    depth = multiplicative_depth(graph)
    assert lowered_depth(graph, lowering_pipeline()) == lowered_depth(graph, ()) == depth
    deeper = lowered_depth(graph, lowering_pipeline(convolutions="multiplexed"))
    assert deeper == depth + 4  # of the longest path; the grouped convolution takes one level as before
    result = lowered(blocks(), plain_parameters())
    assert multiplicative_depth(result) == deeper


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_depth_is_never_too_small(seed: int) -> None:
    graph, images = random_network(seed)
    graph, calibration = normalized(graph, images)
    passes = lowering_pipeline(convolutions="multiplexed")
    parameters = Parameters(12, lowered_depth(graph, passes), 35, 42, 1, security=0)
    made = PassManager(passes).run(graph, PassContext(calibration=calibration, parameters=parameters))
    assert multiplicative_depth(made) <= parameters.depth
    assert isinstance(passes[-1], AssignLevels)
