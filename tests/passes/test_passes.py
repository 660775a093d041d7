"""Each pass on a small graph: golden text, unchanged reference numerics, and graphs that it must not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from olac.analysis.levels import multiplicative_depth
from olac.calibration.histogram import Histogram
from olac.calibration.statistics import Calibration
from olac.ckks.parameters import Parameters
from olac.errors import CalibrationError, VerificationError
from olac.frontend import lift, trace
from olac.ir import Graph, GraphBuilder, Stage
from olac.ir.ops import (
    Activation,
    Add,
    Affine,
    AveragePool,
    Conv2d,
    Input,
    Linear,
    Multiply,
    Op,
    Pad,
    Polynomial,
    Reshape,
    Slice,
    SparseLinear,
)
from olac.passes.base import Pass, PassContext, PassManager
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fit_activations import FitActivations
from olac.passes.fold_affine import FoldAffine
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.pipeline import approximation_pipeline, lowering_pipeline
from olac.polynomials.modes import Degrees, Empirical, Fixed, Tolerance
from tests.networks import calibration_of, images_for, normalized, residual_network

RANDOM = np.random.default_rng(5)


def chain(shape: tuple[int, ...], *ops: tuple[str, Op], constants: Mapping[str, object] | None = None) -> Graph:
    """A graph of unary ops in a row."""
    b = GraphBuilder(by="test")
    for name, value in (constants or {}).items():
        b.constant(name, value)
    last = b.add(Input(shape), name="x")
    for name, op in ops:
        last = b.add(op, [last], name=name)
    return b.build([last])


def apply(item: Pass, graph: Graph, context: PassContext | None = None) -> Graph:
    """Run one pass through the manager and check that the reference numerics stay the same."""
    graph = replace(graph, stage=item.requires)
    before = graph.text()
    result = PassManager([item]).run(graph, context or PassContext())
    images = images_for(graph, 3)
    assert np.allclose(result.evaluate(images), graph.evaluate(images), atol=1e-9)
    assert graph.text() == before
    return result


def kinds(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


CONV = {"w": RANDOM.normal(size=(3, 2, 3, 3)), "s": RANDOM.normal(size=(3, 1, 1)), "t": RANDOM.normal(size=(3, 1, 1))}


def test_fold_affine_into_a_convolution() -> None:
    graph = chain((2, 4, 5), ("conv", Conv2d("w")), ("bn", Affine("s", "t")), constants=CONV)
    result = apply(FoldAffine(), graph)
    assert result.text() == (
        "graph at stage TRACED\n"
        "  %x: 2x4x5 = input() shape=(2, 4, 5)\n"
        "  %bn: 3x2x3 = conv2d(%x) weight=<3x2x3x3> bias=<3> "
        "stride=(1, 1) padding=(0, 0, 0, 0) dilation=(1, 1) groups=1\n"
        "  return %bn\n"
    )


def test_fold_affine_leaves_a_shared_convolution_alone() -> None:
    b = GraphBuilder(by="test")
    for name, value in CONV.items():
        b.constant(name, value)
    conv = b.add(Conv2d("w"), [b.add(Input((2, 4, 5)), name="x")], name="conv")
    bn = b.add(Affine("s", "t"), [conv], name="bn")
    graph = b.build([b.add(Add(), [bn, conv], name="sum")])
    assert kinds(apply(FoldAffine(), graph)) == ["input", "conv2d", "affine", "add"]


def test_fold_affine_leaves_maps_within_a_channel_alone() -> None:
    constants = {**CONV, "s": RANDOM.normal(size=(1, 2, 3))}
    graph = chain((2, 4, 5), ("conv", Conv2d("w")), ("scale", Affine("s", "t")), constants=constants)
    assert kinds(apply(FoldAffine(), graph)) == ["input", "conv2d", "affine"]


POOL = {
    "r": np.kron(np.eye(2), [[0.5, 0.5]]),
    "c": np.kron(np.eye(3), [[0.5, 0.5]]),
    "head": RANDOM.normal(size=(4, 12)),
}


def test_compose_pool_reshape_and_linear() -> None:
    graph = chain(
        (2, 4, 6),
        ("pool", AveragePool("r", "c", (2, 2))),
        ("flat", Reshape((12,))),
        ("head", Linear("head")),
        constants=POOL,
    )
    result = apply(ComposeLinear(), graph)
    assert kinds(result) == ["input", "sparse_linear"]
    assert multiplicative_depth(result) == 1


def test_a_composition_that_is_too_large_is_refused_before_it_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.add(Input((2, 6, 6)), name="x")
    y = b.add(Conv2d(b.constant("w", random.normal(size=(3, 2, 3, 3)))), [x], name="conv")
    halves = np.kron(np.eye(2), np.full((1, 2), 0.5))
    y = b.add(AveragePool(b.constant("r", halves), b.constant("c", halves)), [y], name="pool")
    graph = b.build([y], Stage.POLYNOMIAL)
    # 3 * 2 * 9 * 16 entries of the convolution, 18 for each of its results, and 48 of the pool.
    assert kinds(apply(ComposeLinear(max_entries=48 * 18), graph)) == ["input", "sparse_linear"]
    monkeypatch.setattr(Conv2d, "linear_map", None)
    assert kinds(apply(ComposeLinear(max_entries=48 * 18 - 1), graph)) == ["input", "conv2d", "average_pool"]


def test_compose_padding_into_the_convolution() -> None:
    graph = chain(
        (2, 4, 5), ("pad", Pad(((0, 0), (1, 0), (2, 1)))), ("conv", Conv2d("w", None, (2, 1))), constants=CONV
    )
    result = apply(ComposeLinear(), graph)
    assert kinds(result) == ["input", "conv2d"]
    assert isinstance(result["conv"].op, Conv2d)
    assert result["conv"].op.padding == (1, 0, 2, 1)


@pytest.mark.parametrize(
    ("conv", "pooling", "size"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), nn.AvgPool2d(2), (6, 8)),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.AvgPool2d((1, 3)), (4, 9)),
        (nn.Conv2d(4, 6, 2, stride=2, padding=1, dilation=2, bias=False), nn.AvgPool2d(2), (8, 6)),
        (nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d((2, 1)), (4, 4)),
    ],
)
def test_a_convolution_takes_in_the_pooling_before_it(
    conv: nn.Module, pooling: nn.Module, size: tuple[int, int]
) -> None:
    """It stays a convolution, of a larger kernel and stride, with the entries that the list had."""
    x = torch.randn(3, 4, *size)
    model = nn.Sequential(pooling, conv).eval()
    graph = replace(lift(trace(model, x)), stage=Stage.POLYNOMIAL)
    result = apply(ComposeLinear(), graph)
    assert kinds(result) == ["input", "conv2d"]
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.allclose(result.evaluate(x.double().numpy()), expected, atol=1e-5)
    made, (first, second) = result.nodes[-1], graph.nodes[1:]
    one = first.linear.linear_map((4, *size), graph.constants)
    two = second.linear.linear_map(first.type.shape, graph.constants)
    listed = made.linear.linear_map((4, *size), result.constants)
    assert np.allclose(listed.matrix().toarray(), two.after(one).matrix().toarray(), atol=1e-12)


@pytest.mark.parametrize(
    ("pooling", "size"),
    [
        (nn.AvgPool2d(2), (5, 6)),  # a row is left over
        (nn.AvgPool2d(3, 2), (7, 7)),  # windows overlap
        (nn.AvgPool2d(2, padding=1), (6, 6)),
        (nn.AdaptiveAvgPool2d(1), (6, 6)),  # the kernel would be as large as the picture
    ],
)
def test_other_poolings_before_a_convolution_are_listed(pooling: nn.Module, size: tuple[int, int]) -> None:
    x = torch.randn(3, 4, *size)
    model = nn.Sequential(pooling, nn.Conv2d(4, 6, 1)).eval()
    graph = replace(lift(trace(model, x)), stage=Stage.POLYNOMIAL)
    assert kinds(apply(ComposeLinear(), graph)) == ["input", "sparse_linear"]


def test_compose_slice_and_channel_padding() -> None:
    slices = Slice(((0, 2, 1), (0, 4, 2), (0, 5, 2)))
    graph = chain((2, 4, 5), ("slice", slices), ("pad", Pad(((1, 2), (0, 0), (0, 0)), 0.5)))
    result = apply(ComposeLinear(), graph)
    assert kinds(result) == ["input", "sparse_linear"]
    assert isinstance(result["pad"].op, SparseLinear)


def test_convolutions_are_not_composed_with_each_other() -> None:
    constants = {"w": RANDOM.normal(size=(2, 2, 3, 3)), "v": RANDOM.normal(size=(3, 2, 1, 1))}
    graph = chain((2, 5, 5), ("a", Conv2d("w")), ("b", Conv2d("v")), constants=constants)
    assert kinds(apply(ComposeLinear(), graph)) == ["input", "conv2d", "conv2d"]


def histogram(values: np.ndarray) -> Histogram:  # type: ignore[type-arg]
    made = Histogram(values.shape[1])
    made.add(values)
    return made


def test_fit_activations_replaces_and_reports() -> None:
    graph = chain((2, 3, 3), ("relu", Activation("relu")))
    images = RANDOM.normal(size=(200, 2, 3, 3))
    calibration = Calibration(200, {"relu": histogram(images)}, {}, images[:1], images[:1])
    context = PassContext(calibration=calibration)
    result = PassManager([FitActivations(Empirical(), Fixed(4))]).run(graph, context)
    assert result.stage == Stage.POLYNOMIAL
    assert kinds(result) == ["input", "polynomial"]
    (report,) = context.fits
    assert (report.node, report.function, report.degree, report.depth) == ("relu", "relu", 4, 3)
    error = result.evaluate(images) - np.maximum(images, 0)
    measured = np.sqrt(np.mean(error**2)) / np.sqrt(np.mean(np.maximum(images, 0) ** 2))
    assert report.rmse == pytest.approx(measured, rel=0.05)


def test_the_least_degree_that_meets_the_tolerance_is_taken() -> None:
    graph = chain((1, 3, 3), ("act", Activation("silu")))
    images = RANDOM.normal(size=(300, 1, 3, 3))
    calibration = Calibration(300, {"act": histogram(images)}, {}, images[:1], images[:1])

    def degree(choice: Degrees) -> tuple[int, float]:
        context = PassContext(calibration=calibration)
        PassManager([FitActivations(Empirical(), choice)]).run(graph, context)
        return context.fits[0].degree, context.fits[0].rmse

    loose, tight = degree(Tolerance(0.1)), degree(Tolerance(0.01))
    assert loose[1] <= 0.1
    assert tight[1] <= 0.01
    assert loose[0] < tight[0]
    assert degree(Fixed(tight[0] - 1))[1] > 0.01


def test_an_activation_that_calibration_never_reached_is_an_error() -> None:
    graph = chain((2, 3, 3), ("relu", Activation("relu")))
    images = np.zeros((1, 2, 3, 3))
    context = PassContext(calibration=Calibration(1, {}, {}, images, images))
    with pytest.raises(CalibrationError, match="never reached"):
        PassManager([FitActivations()]).run(graph, context)


@pytest.mark.parametrize("square", [False, True])
def test_normalize_units_keeps_slots_within_one(square: bool) -> None:
    graph = residual_network(square=square)
    images = images_for(graph, 50)
    calibration = calibration_of(graph, images)
    result = apply(NormalizeUnits(), graph, PassContext(calibration=calibration))
    largest = {}
    result.evaluate(images, lambda node, value: largest.update({node.id: float(np.max(np.abs(value)))}))
    assert max(largest.values()) <= 1.0
    assert min(largest.values()) > 0.02
    assert multiplicative_depth(result) == multiplicative_depth(graph)
    units = {node.id: node.type.unit for node in result.nodes}
    assert units["conv2"] == units["shortcut"] == units["sum"]
    for node in result.nodes:
        if isinstance(node.op, Polynomial):
            assert node.op.half_width == 1.0


def test_a_product_in_a_sum_gets_a_unit_of_its_own() -> None:
    b = GraphBuilder(by="test")
    x = b.add(Input((4,)), name="x")
    product = b.add(Multiply(), [x, x], name="square")
    total = b.add(Add(), [product, x], name="sum")
    graph = b.build([b.add(Multiply(), [product, total], name="cube")], Stage.POLYNOMIAL)
    calibration = calibration_of(graph, 3 * images_for(graph, 20))
    result = apply(NormalizeUnits(), graph, PassContext(calibration=calibration))
    assert kinds(result) == ["input", "multiply", "affine", "add", "multiply", "affine"]
    assert len({result[i].type.unit for i in ("x", "square_unit", "sum")}) == 1
    assert result["cube"].inputs == ("square", "sum"), "products of products need no unit of their own"
    assert result.outputs == ("cube_unit",), "outputs are sent at the canonical scale"
    largest = {}
    result.evaluate(3 * images_for(graph, 20), lambda n, v: largest.update({n.id: float(np.max(np.abs(v)))}))
    assert max(largest.values()) <= 1.0


def test_levels_fall_along_the_longest_path() -> None:
    graph = residual_network()
    graph, calibration = normalized(graph, images_for(graph, 4))
    assert multiplicative_depth(graph) == 7
    parameters = Parameters(11, 9, 30, 36, 5, security=0)
    context = PassContext(calibration=calibration, parameters=parameters)
    result = PassManager(lowering_pipeline()).run(graph, context)
    levels = {node.id: node.type.state.level for node in result.nodes if node.type.state is not None}
    expected = {"x": 9, "conv1": 8, "act1": 6, "conv2": 5, "shortcut": 5, "sum": 5, "act2": 3, "flat": 3, "head": 2}
    assert levels == expected


def test_too_few_levels_are_refused() -> None:
    graph = residual_network()
    graph, calibration = normalized(graph, images_for(graph, 4))
    context = PassContext(calibration=calibration, parameters=Parameters(11, 6, 30, 36, 7, security=0))
    with pytest.raises(VerificationError, match="more than the 6 levels"):
        PassManager(lowering_pipeline()).run(graph, context)


class Silent(Pass):
    """A pass that does nothing."""

    name: ClassVar[str] = "silent"

    def run(self, graph: Graph, context: PassContext) -> Graph:
        return graph


class WrongStage(Silent):
    """A pass that does not reach the stage that it ensures."""

    name: ClassVar[str] = "wrong_stage"
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL


class ChangesInputs(Silent):
    name: ClassVar[str] = "changes_inputs"

    def run(self, graph: Graph, context: PassContext) -> Graph:
        return chain((7,))


class Fails(Silent):
    name: ClassVar[str] = "fails"

    def run(self, graph: Graph, context: PassContext) -> Graph:
        raise KeyError("something")


def test_a_pipeline_whose_stages_do_not_chain_is_refused_when_built() -> None:
    with pytest.raises(ValueError, match=r"assign_levels ensures LEVELLED, expand_max_pool requires TRACED"):
        PassManager([*lowering_pipeline(), *approximation_pipeline()])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (WrongStage(), "in pass wrong_stage: it ensures POLYNOMIAL but gave TRACED"),
        (ChangesInputs(), "in pass changes_inputs: it changed the inputs"),
        (Fails(), "pass fails failed: KeyError"),
    ],
)
def test_a_bad_pass_is_named(item: Pass, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        PassManager([item]).run(chain((2,)), PassContext())


def test_a_graph_at_another_stage_is_refused() -> None:
    with pytest.raises(VerificationError, match="requires POLYNOMIAL"):
        PassManager([NormalizeUnits()]).run(chain((2,)), PassContext())


def test_dumps_and_timings() -> None:
    dumps: list[tuple[str, str]] = []
    manager = PassManager(
        [Silent(), FoldAffine()], dump_after=["fold_affine"], dump=lambda name, text: dumps.append((name, text))
    )
    manager.run(chain((2,)), PassContext())
    assert [name for name, _ in dumps] == ["fold_affine"]
    assert dumps[0][1].startswith("graph at stage TRACED")
    assert [timing.name for timing in manager.timings] == ["silent", "fold_affine"]
