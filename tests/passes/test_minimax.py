"""ReLU and max-pooling by compositions of minimax polynomials."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.analysis.levels import multiplicative_depth
from olac.calibration.histogram import Histogram
from olac.calibration.statistics import Calibration
from olac.errors import CalibrationError, UnsupportedModelError, VerificationError
from olac.ir import Graph, GraphBuilder, Origin, Range, Stage
from olac.ir.ops import Activation, Add, Array, Input, MaxPool2d, Polynomial, PolynomialProduct, ShapeError
from olac.passes.base import PassContext, PassManager
from olac.passes.expand_max_pool import ExpandMaxPool, rounds_of
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.pipeline import approximation_pipeline
from olac.passes.replace_by_minimax import ReplaceByMinimax, times_sign
from olac.polynomials.minimax import DEGREES, sign_composition
from olac.polynomials.modes import FitOptions
from tests.networks import calibration_of

RANDOM = np.random.default_rng(11)


def one(op: Activation | MaxPool2d, shape: tuple[int, ...]) -> Graph:
    b = GraphBuilder(by="test")
    x = b.add(Input(shape), name="x")
    return b.build([b.add(op, [x], name="y", origin=Origin("features.1", "net.py:7"))])


def calibrated(graph: Graph, images: Array) -> PassContext:
    """The ranges of all values; the images count as the input of each activation."""
    histograms: dict[str, Histogram] = {}
    for node in graph.nodes:
        if isinstance(node.op, Activation):
            histograms[node.id] = Histogram(images.shape[1])
            histograms[node.id].add(images)
    return PassContext(calibration=replace(calibration_of(graph, images), histograms=histograms))


def stage_depth(alpha: int) -> int:
    degrees = DEGREES[alpha]
    if len(degrees) == 1:
        return (degrees[0] + 1).bit_length()
    return sum(d.bit_length() for d in degrees) + 1


# ReLU ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [4, 5, 6, 8, 10, 14])
def test_relu_within_the_precision_on_the_padded_range(alpha: int) -> None:
    graph = one(Activation("relu"), (2, 3, 3))
    images = RANDOM.uniform(-3, 5, (400, 2, 3, 3))
    context = calibrated(graph, images)
    result = PassManager([ReplaceByMinimax(alpha, 1.5), NormalizeUnits()]).run(graph, context)
    half_width = 1.5 * float(np.abs(images).max())
    assert multiplicative_depth(result) == stage_depth(alpha)
    x: Array = np.linspace(-half_width, half_width, 18_000, dtype=np.float64).reshape(1000, 2, 3, 3)
    error = np.abs(result.evaluate(x) - np.maximum(x, 0))
    assert error.max() <= half_width * 2.0**-alpha
    (report,) = context.fits
    assert (report.node, report.function, report.depth) == ("y", "relu", stage_depth(alpha))
    assert report.degree == math.prod(DEGREES[alpha]) + 1
    assert (report.low, report.high) == (-half_width, half_width)
    assert error.max() * (1 - 1e-5) <= report.max_error <= half_width * 2.0**-alpha
    error = result.evaluate(images) - np.maximum(images, 0)
    size = np.sqrt(np.mean(np.maximum(images, 0) ** 2))
    assert report.rmse == pytest.approx(np.sqrt(np.mean(error**2)) / size, rel=0.1)


@pytest.mark.parametrize("alpha", [5, 7])
@pytest.mark.parametrize(
    ("function", "slopes"), [("leaky_relu", (0.3,)), ("prelu", (0.25,)), ("prelu", (0.25, 0.0, 1.5))]
)
def test_slopes_below_zero(alpha: int, function: str, slopes: tuple[float, ...]) -> None:
    graph = one(Activation(function, slopes), (3, 2, 2))
    images = RANDOM.normal(size=(300, 3, 2, 2))
    histogram = Histogram(3)
    histogram.add(images)
    ranges = {"x": histogram.range(), "y": histogram.range()}
    context = PassContext(calibration=Calibration(300, {"y": histogram}, ranges, images[:1], images[:1]))
    result = PassManager([ReplaceByMinimax(alpha), NormalizeUnits()]).run(graph, context)
    s = np.array(slopes).reshape(-1, 1, 1)
    expected = np.where(images > 0, images, s * images)
    error = np.abs(result.evaluate(images) - expected)
    assert np.all(error <= context.fits[0].high * 2.0**-alpha * np.abs(1 - s))
    assert error.max() * (1 - 1e-5) <= context.fits[0].max_error
    measured = np.sqrt(np.mean(error**2) / np.mean(expected**2))
    assert context.fits[0].rmse == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("alpha", [4, 7, 14])
def test_units_keep_slots_within_one_and_coefficients_small(alpha: int) -> None:
    """Each polynomial is evaluated on just its own interval: on a wider one its coefficients would explode."""
    graph = one(Activation("relu"), (1, 4, 4))
    images = RANDOM.normal(size=(100, 1, 4, 4))
    # With a padding below that of NormalizeUnits.
    result = PassManager([ReplaceByMinimax(alpha, 1.0), NormalizeUnits()]).run(graph, calibrated(graph, images))
    largest: dict[str, float] = {}
    result.evaluate(images, lambda node, value: largest.update({node.id: float(np.max(np.abs(value)))}))
    assert max(largest.values()) <= 1 + 1e-6
    for node in result.nodes:
        if isinstance(node.op, Polynomial | PolynomialProduct):
            assert np.abs(result.constants[node.op.coefficients]).sum() < 5


def test_the_range_covers_what_the_input_is_added_to() -> None:
    """The summands and the sum share a unit, so the composition is evaluated on the widest of their ranges."""
    b = GraphBuilder(by="test")
    x = b.add(Input((2,)), name="x")
    total = b.add(Add(), [x, x], name="total")
    graph = b.build([b.add(Activation("relu"), [total], name="relu")])
    images = RANDOM.uniform(-1, 1, (50, 2))
    histogram = Histogram(2)
    histogram.add(images)
    ranges = {"x": Range(-7.0, 7.0), "total": Range(-1.0, 1.0)}
    context = PassContext(calibration=Calibration(50, {"relu": histogram}, ranges, images[:1], images[:1]))
    result = PassManager([ReplaceByMinimax(6, 1.25), NormalizeUnits()]).run(graph, context)
    assert context.fits[0].high == 1.25 * 7
    assert result["x"].type.unit == result["total"].type.unit == 1.25 * 7


def test_other_functions_are_refused_all_at_once() -> None:
    b = GraphBuilder(by="test")
    x = b.add(Input((2,)), name="x")
    for path, function in (("a", "gelu"), ("b", "relu"), ("c.d", "tanh")):
        x = b.add(Activation(function), [x], name=f"act_{function}", origin=Origin(path))
    graph = b.build([x])
    with pytest.raises(UnsupportedModelError, match="act_gelu") as caught:
        PassManager([ReplaceByMinimax(5)]).run(graph, calibrated(graph, RANDOM.normal(size=(9, 2))))
    assert [node.path for node in caught.value.nodes] == ["a", "c.d"]
    assert "act_tanh" in caught.value.nodes[1].problem


def test_options_and_missing_calibration() -> None:
    with pytest.raises(ValueError, match=r"outside 4 \.\.\. 14"):
        ReplaceByMinimax(3)
    with pytest.raises(ValueError, match=r"padding 0\.9"):
        ExpandMaxPool(6, 0.9)
    images = np.zeros((1, 2, 4, 4))
    empty = PassContext(calibration=Calibration(1, {}, {}, images, images))
    with pytest.raises(CalibrationError, match="never reached the activation y"):
        PassManager([ReplaceByMinimax()]).run(one(Activation("relu"), (2, 4, 4)), empty)
    with pytest.raises(CalibrationError, match="never reached the max-pooling y"):
        PassManager([ExpandMaxPool()]).run(one(MaxPool2d((2, 2), (2, 2)), (2, 4, 4)), empty)


def test_a_single_layer_can_be_replaced() -> None:
    graph = one(Activation("relu"), (2,))

    def step(node: object, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        half = np.full(1, 0.5)
        return times_sign(builder, node, inputs[0], 7, 4.0, half, half) if node is graph["y"] else None

    result = graph.rewrite(step, by="mine", stage=Stage.POLYNOMIAL)
    assert result.text() == (
        "graph at stage POLYNOMIAL\n"
        "  %x: 2 = input() shape=(2,)\n"
        "  %y.sign1: 2 = polynomial(%x) coefficients=<1x8> half_width=4\n"
        f"  %y: 2 = polynomial_product(%x, %y.sign1) coefficients=<1x8> "
        f"half_width={sign_composition(7).stages[1].half_width:.6g}\n"
        "  return %y\n"
    )
    assert result["y.sign1"].type.bound is not None
    assert result["y"].origin == Origin("features.1", "net.py:7", ("test", "mine"))


# Max-pooling ---------------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_max_pooling_against_torch(data: st.DataObject) -> None:
    pair = st.tuples(st.integers(1, 5), st.integers(1, 5))
    kernel, stride, dilation = (data.draw(pair, name) for name in ("kernel", "stride", "dilation"))
    padding = (
        data.draw(st.integers(0, (dilation[0] * (kernel[0] - 1) + 1) // 2)),
        data.draw(st.integers(0, (dilation[1] * (kernel[1] - 1) + 1) // 2)),
    )
    ceil_mode, alpha = data.draw(st.booleans()), data.draw(st.sampled_from([4, 6, 8]))
    shape = (2, *data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9))))
    images = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(-1, 4, (5, *shape))
    try:
        expected = F.max_pool2d(torch.from_numpy(images), kernel, stride, padding, dilation, ceil_mode).numpy()
    except RuntimeError:
        return  # torch refuses it
    op = MaxPool2d(kernel, stride, padding, dilation, ceil_mode)
    if not np.isfinite(expected).all():
        with pytest.raises(ShapeError, match="padding only"):
            op.infer([shape], {})
        return
    graph = one(op, shape)
    assert np.array_equal(graph.evaluate(images), expected)
    context = calibrated(graph, images)
    result = PassManager([ExpandMaxPool(alpha)]).run(graph, context)
    rounds = math.ceil(math.log2(kernel[0])) + math.ceil(math.log2(kernel[1]))
    assert len(list(rounds_of(op, shape))) == max(1, rounds)
    assert not any(isinstance(node.op, MaxPool2d) for node in result.nodes)
    if not rounds:
        assert np.array_equal(result.evaluate(images), expected)
        assert multiplicative_depth(result) == 1
        return
    # If a border leaves one element of each window, a round compares nothing.
    compared = sum(isinstance(node.op, Add) for node in result.nodes)
    assert compared <= rounds
    width = max((report.high for report in context.fits), default=0.0)
    assert np.abs(result.evaluate(images) - expected).max() <= compared * width * 2.0**-alpha + 1e-12
    assert multiplicative_depth(result) == compared * (1 + stage_depth(alpha)) + rounds - compared
    if compared:
        assert context.fits[0].max_error <= compared * width * 2.0**-alpha


def test_the_expanded_graph() -> None:
    graph = one(MaxPool2d((3, 2), (2, 2), (1, 0)), (1, 5, 4))
    context = calibrated(graph, RANDOM.uniform(0, 1, (9, 1, 5, 4)))
    result = PassManager([ExpandMaxPool(7)]).run(graph, context)
    shapes = {node.id: node.type.shape for node in result.nodes if isinstance(node.op, Add)}
    assert shapes == {"y.round1": (1, 5, 4), "y.round2": (1, 5, 4), "y": (1, 3, 2)}
    assert [node.id for node in result.nodes if node.id.startswith("y.round1")] == [
        "y.round1.mean",
        "y.round1.difference",
        "y.round1.excess.sign1",
        "y.round1.excess",
        "y.round1",
    ]
    (report,) = context.fits
    assert (report.node, report.function, report.degree) == ("y", "max_pool2d", 7 * 7 + 1)
    assert report.depth == multiplicative_depth(result) == 3 * 8


def test_units_of_an_expanded_pooling() -> None:
    graph = one(MaxPool2d((3, 3), (2, 2), (1, 1)), (2, 6, 6))
    images = RANDOM.uniform(-1, 9, (20, 2, 6, 6))
    pipeline = approximation_pipeline(FitOptions(method="minimax", alpha=6, padding=1.0))
    result = PassManager(pipeline).run(graph, calibrated(graph, images))
    largest: dict[str, float] = {}
    result.evaluate(images, lambda node, value: largest.update({node.id: float(np.max(np.abs(value)))}))
    assert max(largest.values()) <= 1.0
    for node in result.nodes:
        if isinstance(node.op, Polynomial | PolynomialProduct):
            assert np.abs(result.constants[node.op.coefficients]).sum() < 5


def test_without_max_pooling_nothing_changes() -> None:
    graph = one(Activation("relu"), (2, 3, 3))
    assert PassManager([ExpandMaxPool()]).run(graph, PassContext()) is graph


def test_a_pipeline_without_the_expansion_is_stopped() -> None:
    graph = one(MaxPool2d((2, 2), (2, 2)), (1, 4, 4))
    with pytest.raises(VerificationError, match="max_pool2d at stage POLYNOMIAL"):
        PassManager(approximation_pipeline()[1:]).run(graph, calibrated(graph, RANDOM.normal(size=(5, 1, 4, 4))))
