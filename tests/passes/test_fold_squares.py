"""Which quadratics become squares at one level, which stay polynomials at two, and that nothing else changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.analysis.levels import multiplicative_depth
from olac.backends.simulator import SimulatorEvaluator
from olac.calibration.histogram import Histogram
from olac.calibration.statistics import Calibration
from olac.ckks.parameters import Parameters
from olac.ckks.primes import FIXED, FLEXIBLE
from olac.ir import Graph, Range
from olac.ir.ops import (
    Add,
    Affine,
    AveragePool,
    Conv2d,
    Input,
    Linear,
    Multiply,
    Pad,
    Polynomial,
    Reshape,
    Slice,
    SparseLinear,
    Square,
)
from olac.kernels.execute import build_kernels, execute
from olac.passes.base import FitReport, PassContext, PassManager
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_squares import FoldSquares
from olac.passes.normalize_units import NormalizeUnits
from olac.passes.pipeline import lowering_pipeline
from tests.networks import Growing, calibration_of, random_network, residual_quadratics

SHAPE = (4, 6, 5)


def fold(graph: Graph, calibration: Calibration | None = None, max_cancellation: float = 16.0) -> Graph:
    """Run the pass and check that the reference numerics stay the same."""
    before = graph.text()
    context = PassContext(calibration=calibration)
    result = PassManager([FoldSquares(max_cancellation)]).run(graph, context)
    images = np.random.default_rng(1).uniform(-1, 1, size=(4, *graph.inputs[0].type.shape))
    expected = graph.evaluate(images)
    assert np.allclose(result.evaluate(images), expected, rtol=0, atol=1e-9 * max(1.0, float(np.abs(expected).max())))
    assert graph.text() == before
    return result


def folded(graph: Graph) -> int:
    """How many squares there are."""
    return sum(isinstance(node.op, Square) for node in graph.nodes)


def kinds(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def test_between_two_convolutions() -> None:
    g = Growing(0, (2, 4, 4))
    y = g.quadratic(g.conv(g.input, 4, bias=False), per_channel=True)
    result = fold(g.graph(g.conv(y, 3)))
    assert result.text() == (
        "graph at stage POLYNOMIAL\n"
        "  %x: 2x4x4 = input() shape=(2, 4, 4)\n"
        "  %conv2d: 4x4x4 = conv2d(%x) weight=<4x2x3x3> bias=<4> "
        "stride=(1, 1) padding=(1, 1, 1, 1) dilation=(1, 1) groups=1\n"
        "  %polynomial: 4x4x4 = square(%conv2d) shift=<4>\n"
        "  %conv2d_2: 3x4x4 = conv2d(%polynomial) weight=<3x4x3x3> bias=<3> "
        "stride=(1, 1) padding=(1, 1, 1, 1) dilation=(1, 1) groups=1\n"
        "  return %conv2d_2\n"
    )
    assert result["polynomial"].origin.passes[-1] == result["conv2d"].origin.passes[-1] == "fold_squares"
    assert "fold_squares" not in result["conv2d_2"].origin.passes


def test_the_factors_of_a_known_quadratic() -> None:
    """-2 y^2 + 4 y + 1 = -(sqrt(2) y - sqrt(2))^2 + 3."""
    g = Growing(0, (1,))
    g.builder.constant("one", [[1.0]])
    y = g.add(Linear("one"), g.input)
    coefficients = g.builder.constant("p", [[0.0, 4.0, -1.0]])  # on [-1, 1]: -2 T_2 / 2 + 4 T_1
    y = g.add(Linear("one"), g.add(Polynomial(coefficients, 1.0), y))
    result = fold(g.graph(y))
    first, square, last = (result[i].op for i in ("linear", "polynomial", "linear_2"))
    assert isinstance(first, Linear)
    assert isinstance(square, Square)
    assert isinstance(last, Linear)
    assert first.bias is not None
    constants = result.constants
    np.testing.assert_allclose(constants[first.weight], [[2**0.5]])
    np.testing.assert_allclose(constants[first.bias], [-(2**0.5)])
    np.testing.assert_allclose(constants[square.shift], [-3.0])
    np.testing.assert_allclose(constants[last.weight], [[-1.0]])


BEFORE: dict[str, Callable[[Growing], str]] = {
    "convolution": lambda g: g.conv(g.input, 4, groups=2),
    "linear": lambda g: g.linear(g.add(Reshape((120,)), g.input), 7),
    "affine": lambda g: g.add(Affine(g.constant(4, 1, 5), g.constant(1, 6, 1)), g.input),
    "reshape": lambda g: g.add(Reshape((2, 60)), g.add(Reshape((8, 3, 5)), g.conv(g.input, 4))),
    "sum of convolutions": lambda g: g.add(Add(), g.conv(g.input, 3, 2), g.conv(g.input, 3, 2, kernel=1)),
    "sum of sums": lambda g: g.add(
        Add(), g.conv(g.input, 3), g.add(Add(), g.conv(g.input, 3), g.conv(g.input, 3, bias=False))
    ),
    "pooling of a convolution": lambda g: pool(g, g.conv(g.input, 4)),
    "pooling of the input": lambda g: pool(g, g.input, ones=False),
    "slice of the input": lambda g: g.add(Slice(((1, 3, 1), (0, 6, 2), (0, 5, 1))), g.input),
    "padding of the input": lambda g: g.add(Pad(((1, 0), (0, 2), (1, -1)), 0.5), g.input),
}


def pool(g: Growing, value: str, ones: bool = True) -> str:
    """2x2 averages; without `ones`, their windows hold different numbers of elements."""
    rows, columns = np.kron(np.eye(3), [[0.5, 0.5]]), np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0]])
    if not ones:
        rows[0] = [1.0, 0, 0, 0, 0, 0]
        columns[1] = 0.2
    return g.add(AveragePool(g.builder.constant("rows", rows), g.builder.constant("columns", columns), (2, 2)), value)


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("signs", [False, True])
def test_into_what_comes_before(name: str, signs: bool) -> None:
    g = Growing(1, SHAPE)
    y = g.quadratic(BEFORE[name](g), per_channel=True, signs=signs)
    y = g.linear(g.add(Reshape((int(np.prod(g.shape(y))),)), y), 3)
    graph = g.graph(y)
    result = fold(graph)
    assert folded(result) == 1
    assert multiplicative_depth(result) == multiplicative_depth(graph) - 1
    assert len(result.nodes) == len(graph.nodes)


def test_pooling_behind_a_convolution_stays_composable() -> None:
    g = Growing(1, SHAPE)
    graph = g.graph(g.conv(g.quadratic(pool(g, g.conv(g.input, 3))), 2))
    composed = ComposeLinear().run(fold(graph), PassContext())
    assert kinds(composed) == ["input", "sparse_linear", "square", "conv2d"]
    assert kinds(fold(ComposeLinear().run(graph, PassContext()))) == kinds(composed)


AFTER: dict[str, Callable[[Growing, str], str]] = {
    "convolution": lambda g, y: g.conv(y, 4, 2, groups=2),
    "linear": lambda g, y: g.linear(g.add(Reshape((120,)), y), 3),
    "affine": lambda g, y: g.add(Affine(g.constant(6, 5), g.constant(1)), y),
    "pooling and convolution": lambda g, y: g.conv(pool(g, y), 3),
    "slice, padding and convolution": lambda g, y: g.conv(
        g.add(Pad(((0, 2), (1, 0), (-1, 3))), g.add(Slice(((1, 3, 1), (0, 6, 2), (0, 5, 1))), y)), 2, groups=2
    ),
    "several": lambda g, y: g.add(Add(), g.conv(y, 3), g.conv(y, 3, kernel=1)),
}


@pytest.mark.parametrize("name", AFTER)
def test_signs_go_into_all_readers(name: str) -> None:
    g = Growing(2, SHAPE)
    y = g.quadratic(g.conv(g.input, 4), per_channel=True, signs=True)
    graph = g.graph(AFTER[name](g, y))
    coefficients = graph.constants["p"][:, 2]
    assert coefficients.min() < 0 < coefficients.max()
    assert folded(fold(graph)) == 1
    composed = fold(ComposeLinear().run(graph, PassContext()))
    assert folded(composed) == 1


def residual(signs: bool = False) -> Graph:
    """conv, quadratic, conv, quadratic, conv + identity, quadratic, conv."""
    g = Growing(3, SHAPE)
    y = g.quadratic(g.conv(g.input, 4), True, signs)
    z = g.conv(g.quadratic(g.conv(y, 3), True, signs), 4)
    y = g.quadratic(g.add(Add(), y, z), True, signs)
    return g.graph(g.conv(y, 2))


@pytest.mark.parametrize("signs", [False, True])
def test_the_identity_of_a_residual_block_gets_an_affine_map(signs: bool) -> None:
    graph = residual(signs)
    result = fold(graph)
    assert kinds(result) == [
        *("input", "conv2d", "square", "conv2d", "square", "conv2d", "affine", "add", "square", "conv2d")
    ]
    assert result["add"].inputs == ("add_operand0", "conv2d_3")
    assert multiplicative_depth(graph) == 4 + 3 * 2
    assert multiplicative_depth(result) == 4 + 3 * 1


def test_signs_that_only_the_affine_map_of_a_later_fold_can_take() -> None:
    """The first quadratic is concave; its reader, a sum, takes the sign only once the second one is folded."""
    graph = residual(signs=True)
    node = graph["polynomial_3"]
    assert isinstance(node.op, Polynomial)
    cubic = np.concatenate([graph.constants[node.op.coefficients], np.ones((4, 1))], axis=1)
    constants = {**graph.constants, node.op.coefficients: cubic}
    result = fold(Graph(graph.nodes, graph.outputs, constants, graph.stage))
    assert [result[i].op.name for i in ("polynomial", "polynomial_2", "polynomial_3")] == [
        *("polynomial", "square", "polynomial")
    ]
    assert folded(fold(graph)) == 3


def on_the_input(g: Growing) -> str:
    return g.conv(g.quadratic(g.input), 3)


def on_a_shared_convolution(g: Growing) -> str:
    y = g.conv(g.input, 4)
    return g.add(Add(), g.conv(g.quadratic(y), 4), y)


def at_the_output(g: Growing) -> str:
    return g.quadratic(g.conv(g.input, 4))


def only_in_sums(g: Growing) -> str:
    """Before the sum a product needs an affine map, so nothing is gained."""
    return g.add(Add(), g.quadratic(g.conv(g.input, 4)), g.quadratic(g.conv(g.input, 4)))


def nearly_linear(g: Growing) -> str:
    y = g.conv(g.input, 4)
    return g.conv(g.polynomial(y, np.array([[0.1, 1.0, 0.3]] * 3 + [[0.1, 1.0, 1e-3]])), 3)


def linear_in_a_channel(g: Growing) -> str:
    y = g.conv(g.input, 2)
    return g.conv(g.polynomial(y, np.array([[0.1, 1.0, 0.3], [0.1, 1.0, 0.0]])), 3)


def concave_before_a_polynomial(g: Growing) -> str:
    y = g.polynomial(g.conv(g.input, 4), np.array([[0.1, 0.5, -0.3]]))
    return g.polynomial(y, np.ones((1, 4)))


def cubic(g: Growing) -> str:
    return g.conv(g.polynomial(g.conv(g.input, 4), np.array([[0.1, 0.5, 0.3, 1e-3]])), 3)


def of_degree_one(g: Growing) -> str:
    return g.conv(g.polynomial(g.conv(g.input, 4), np.array([[0.1, 0.5, 0.0]])), 3)


def varying_within_a_channel(g: Growing) -> str:
    """Each row of the image has its own quadratic, which a convolution's weights can't follow."""
    y = g.add(Reshape((24, 5)), g.conv(g.input, 4))
    y = g.add(Reshape(SHAPE), g.quadratic(y, per_channel=True))
    return g.conv(y, 2)


def with_a_skip_as_deep(g: Growing) -> str:
    """The operands of the sum have the same depth, so an affine map in front of one costs a level."""
    y = g.conv(g.input, 4)
    z = g.add(Add(), g.conv(y, 4), g.polynomial(y, np.array([[0.1, 0.5]])))
    return g.conv(g.quadratic(z), 2)


@pytest.mark.parametrize(
    ("make", "levels"),
    [
        (on_the_input, 2 + 1),
        (on_a_shared_convolution, 1 + 2 + 1),
        (at_the_output, 1 + 2),
        (only_in_sums, 1 + 2),
        (nearly_linear, 1 + 2 + 1),
        (linear_in_a_channel, 1 + 2 + 1),
        (concave_before_a_polynomial, 1 + 2 + 2),
        (cubic, 1 + 2 + 1),
        (of_degree_one, 1 + 1 + 1),
        (varying_within_a_channel, 1 + 2 + 1),
        (with_a_skip_as_deep, 1 + 1 + 2 + 1),
    ],
)
def test_what_does_not_fold(make: Callable[[Growing], str], levels: int) -> None:
    g = Growing(4, SHAPE)
    graph = g.graph(make(g))
    assert fold(graph) == graph
    assert multiplicative_depth(graph) == levels


def test_a_constant_channel_and_leading_zeros() -> None:
    g = Growing(4, SHAPE)
    coefficients = np.array([[0.1, 1.0, 0.3, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0, 0.0]])
    assert folded(fold(g.graph(g.conv(g.polynomial(g.conv(g.input, 2), coefficients), 3)))) == 1


def test_cancellation_is_bounded_by_an_option() -> None:
    """With x0 the vertex, (h + |x0|)^2 and the largest value: for 100 t^2 / 100 + 9 t they are about 30 and 10."""
    g = Growing(5, SHAPE)
    graph = g.graph(g.conv(g.polynomial(g.conv(g.input, 4), np.array([[0.5, 9.0, 0.5]])), 3))
    a, b = 1.0, 9.0
    ratio = (1 + b / (2 * a)) ** 2 / (a + b)
    assert folded(fold(graph, max_cancellation=1.01 * ratio)) == 1
    assert folded(fold(graph, max_cancellation=0.99 * ratio)) == 0
    with pytest.raises(ValueError, match="below 1"):
        FoldSquares(0.5)


def test_the_range_of_a_channel_is_its_own() -> None:
    """A channel whose values are small does not count with the layer's half width."""
    g = Growing(6, (2, 3, 3))
    y = g.conv(g.input, 2)
    values = g.values[y] * np.array([1.0, 0.01])[:, None, None]
    y = g.polynomial(y, np.array([[0.0, 0.5, 0.3], [40.0, 0.5, 40.0]]))
    graph = g.graph(g.conv(y, 2))
    histogram = Histogram(2)
    histogram.add(values)
    calibration = calibration_of(graph, g.images)
    told = replace(calibration, histograms={y: histogram})
    bounds = [fold(graph, each)["conv2d"].type.bound for each in (calibration, told)]
    assert bounds[0] is not None
    assert bounds[1] is not None
    assert bounds[1].high < 0.2 * bounds[0].high


def test_reports_say_one_level() -> None:
    context = PassContext()
    for name in ("polynomial", "polynomial_2", "other"):
        context.fits.append(FitReport(name, "relu", 2, 2, 0.1, 0.1, -1, 1))
    g = Growing(0, SHAPE)
    y = g.quadratic(g.conv(g.quadratic(g.conv(g.input, 4)), 4))
    FoldSquares().run(g.graph(y), context)
    assert [fit.depth for fit in context.fits] == [1, 2, 2]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.booleans())
def test_random_networks(seed: int, composed_first: bool, calibrated: bool) -> None:
    """The function stays the same, it is not deeper even with the affine maps for units, and slots stay in [-1, 1]."""
    graph, images = random_network(seed)
    compose = functools.partial(ComposeLinear().run, context=PassContext())
    if composed_first:
        graph = compose(graph)
    calibration = calibration_of(graph, images)
    context = PassContext(calibration=calibration if calibrated else None)
    result = PassManager([FoldSquares()]).run(graph, context)
    expected = graph.evaluate(images)
    assert np.allclose(result.evaluate(images), expected, rtol=0, atol=1e-9 * max(1.0, float(np.abs(expected).max())))
    context = PassContext(calibration=calibration)
    plain, units = (PassManager([NormalizeUnits()]).run(each, context) for each in (graph, result))
    assert multiplicative_depth(units) <= multiplicative_depth(plain)
    assert multiplicative_depth(compose(units)) <= multiplicative_depth(compose(plain))
    assert np.allclose(units.evaluate(images), expected, rtol=0, atol=1e-9 * max(1.0, float(np.abs(expected).max())))
    largest: dict[str, float] = {}
    if calibrated:
        units.evaluate(images, lambda node, value: largest.update({node.id: float(np.max(np.abs(value)))}))
        assert max(largest.values()) <= 1.0 + 1e-12  # rounding


@pytest.mark.parametrize("technique", [FIXED, FLEXIBLE])
@pytest.mark.parametrize("make", [residual_quadratics, lambda: residual(signs=True)])
def test_in_slots(technique: str, make: Callable[[], Graph]) -> None:
    """Folded, packed and run by its kernels, at the depth of one level an activation."""
    graph = make()
    images = np.random.default_rng(7).uniform(-1, 1, size=(20, *graph.inputs[0].type.shape))
    context = PassContext(calibration=calibration_of(graph, images))
    units = ComposeLinear().run(PassManager([FoldSquares(), NormalizeUnits()]).run(graph, context), context)
    assert not any(isinstance(node.op, Polynomial) for node in units.nodes)
    parameters = Parameters(11, multiplicative_depth(units), 40, 47, 1, technique, security=0)
    context = PassContext(calibration=context.calibration, parameters=parameters)
    program = PassManager(lowering_pipeline()).run(units, context)
    evaluator = SimulatorEvaluator(parameters)
    source, target = program.inputs[0].type, program[program.outputs[0]].type
    assert source.layout is not None
    assert target.layout is not None
    assert target.state is not None
    assert target.state.level == 0
    value = tuple(evaluator.encrypt(p, parameters.depth) for p in source.layout.pack(images[:1] / source.unit))
    (out,) = execute(program, build_kernels(program), evaluator, {program.inputs[0].id: value})
    ours = target.layout.unpack(np.stack([evaluator.decrypt(part) for part in out])) * target.unit
    assert np.allclose(ours, graph.evaluate(images[:1]), atol=1e-7)


def test_bounds_of_what_was_scaled_are_kept_in_types() -> None:
    """Calibrated ranges are those of the old values; the new bounds hold, and the input keeps its own."""
    graph = residual()
    images = np.random.default_rng(8).uniform(-1, 1, size=(20, *SHAPE))
    calibration = calibration_of(graph, images)
    nodes = tuple(replace(n, type=replace(n.type, bound=calibration.ranges[n.id])) for n in graph.nodes)
    graph = Graph(nodes, graph.outputs, graph.constants, graph.stage)
    result = fold(graph, calibration)
    seen: dict[str, Range] = {}
    result.evaluate(images, lambda n, v: seen.update({n.id: Range(float(v.min()), float(v.max()))}))
    for node in result.nodes:
        assert node.type.bound is not None
        slack = 1e-9 * node.type.bound.magnitude
        assert node.type.bound.low - slack <= seen[node.id].low, node.id
        assert seen[node.id].high <= node.type.bound.high + slack, node.id
    assert result["x"].type == graph["x"].type


def test_products_and_other_kinds_are_left_alone() -> None:
    g = Growing(9, SHAPE)
    graph = g.graph(g.conv(g.add(Multiply(), *[g.conv(g.input, 3)] * 2), 2))
    result = fold(graph)
    assert result == graph
    assert {type(node.op) for node in result.nodes} == {Input, Conv2d, Multiply}


def test_a_sparse_matrix_takes_rows_and_columns() -> None:
    g = Growing(10, SHAPE)
    y = g.quadratic(pool(g, g.conv(g.input, 4)), True, True)
    y = g.quadratic(pool(g, g.conv(y, 4, 1, kernel=1)) if min(g.shape(y)[1:]) > 5 else g.conv(y, 4), True, True)
    graph = ComposeLinear().run(g.graph(g.conv(y, 2)), PassContext())
    assert any(isinstance(node.op, SparseLinear) for node in graph.nodes)
    assert folded(fold(graph)) == 2
