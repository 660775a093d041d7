"""Small graphs at stage POLYNOMIAL, made by hand, for tests that need no torch."""

from __future__ import annotations

import numpy as np

from olac.calibration.statistics import Calibration
from olac.ckks.engines import OPENFHE, EngineModel
from olac.ckks.parameters import Parameters
from olac.ir import Graph, GraphBuilder, Range, Stage
from olac.ir.ops import (
    Add,
    Affine,
    Array,
    AveragePool,
    Conv2d,
    Input,
    Linear,
    Multiply,
    Op,
    Pad,
    Polynomial,
    PolynomialProduct,
    Reshape,
    Slice,
)
from olac.kernels.record import record
from olac.passes.base import PassContext, PassManager
from olac.passes.normalize_units import NormalizeUnits


def calibration_of(graph: Graph, images: Array) -> Calibration:
    """Ranges of every value of a graph on some images, without histograms."""
    ranges: dict[str, Range] = {}
    outputs = graph.evaluate(
        images, lambda node, value: ranges.update({node.id: Range(float(value.min()), float(value.max()))})
    )
    return Calibration(
        images=len(images), histograms={}, ranges=ranges, held_out=images[:2], held_out_outputs=outputs[:2]
    )


def residual_network(seed: int = 0, shape: tuple[int, int, int] = (2, 5, 7), square: bool = False) -> Graph:
    """conv, polynomial, strided conv + shortcut conv, polynomial, linear; units not normalized."""
    random = np.random.default_rng(seed)
    b = GraphBuilder(by="test")
    c = shape[0]

    def weight(name: str, *dims: int) -> str:
        return b.constant(name, random.normal(size=dims) / np.sqrt(np.prod(dims[1:]) if len(dims) > 1 else 4))

    x = b.add(Input(shape), name="x")
    y = b.add(Conv2d(weight("w1", 4, c, 3, 3), weight("b1", 4), (1, 1), (1, 1, 1, 1)), [x], name="conv1")
    y = b.add(Polynomial(weight("p1", 4, 4), 4.0), [y], name="act1")
    z = b.add(Conv2d(weight("w2", 6, 2, 3, 2), None, (2, 2), (1, 1, 0, 1), (1, 1), 2), [y], name="conv2")
    s = b.add(Conv2d(weight("w3", 6, 4, 1, 1), weight("b3", 6), (2, 2)), [y], name="shortcut")
    y = b.add(Add(), [z, s], name="sum")
    y = (
        b.add(Multiply(), [y, y], name="square")
        if square
        else b.add(Polynomial(weight("p2", 1, 3), 4.0), [y], name="act2")
    )
    size = int(np.prod(b[y].type.shape))
    y = b.add(Reshape((size,)), [y], name="flat")
    y = b.add(Linear(weight("w4", 3, size), weight("b4", 3)), [y], name="head")
    return b.build([y], Stage.POLYNOMIAL)


def comparing_network(seed: int = 0, shape: tuple[int, int, int] = (2, 4, 4)) -> Graph:
    """conv, two compositions of polynomials whose products are added to each other; units not normalized."""
    random = np.random.default_rng(seed)
    b = GraphBuilder(by="test")
    x = b.add(Input(shape), name="x")
    w = b.constant("w", random.normal(size=(3, shape[0], 3, 3)) / 4)
    y = b.add(Conv2d(w, None, (1, 1), (1, 1, 1, 1)), [x], name="conv")
    odd = random.normal(size=(2, 1, 4)) * np.array([0, 1, 0, 1])
    z = b.add(Polynomial(b.constant("odd", odd[0]), 4.0), [y], name="inner")
    left = b.add(PolynomialProduct(b.constant("p", odd[1]), 3.0), [y, z], name="left")
    right = b.add(PolynomialProduct(b.constant("q", random.normal(size=(3, 6))), 4.0), [z, y], name="right")
    return b.build([b.add(Add(), [left, right], name="sum")], Stage.POLYNOMIAL)


def key_steps(graph: Graph, parameters: Parameters, engine: EngineModel = OPENFHE) -> tuple[int, ...]:
    """Rotation steps that need keys if none is composed: of a levelled graph's kernels and of bootstraps."""
    return tuple(sorted(engine.bootstraps(parameters).keys_for(record(graph, parameters).rotations)))


def normalized(graph: Graph, images: Array) -> tuple[Graph, Calibration]:
    """The graph with units, and the calibration that they came from."""
    calibration = calibration_of(graph, images)
    return PassManager([NormalizeUnits()]).run(graph, PassContext(calibration=calibration)), calibration


def images_for(graph: Graph, count: int, seed: int = 1) -> Array:
    """Uniform images in [-1, 1] of the graph's input shape."""
    return np.random.default_rng(seed).uniform(-1, 1, size=(count, *graph.inputs[0].type.shape))


class Growing:
    """A graph at stage POLYNOMIAL that grows with the values that it has on some images."""

    def __init__(self, seed: int, shape: tuple[int, ...], images: int = 20) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = GraphBuilder(by="test")
        self.images: Array = self.random.uniform(-1, 1, size=(images, *shape))
        self.input = self.builder.add(Input(shape), name="x")
        self.values: dict[str, Array] = {self.input: self.images}

    def add(self, op: Op, *inputs: str, name: str = "") -> str:
        """Append a node; its id."""
        node = self.builder.add(op, inputs, name=name or op.name)
        self.values[node] = op.evaluate([self.values[i] for i in inputs], self.builder.constants)
        return node

    def constant(self, *shape: int, size: float = 1.0) -> str:
        """A random array of the graph's."""
        return self.builder.constant("c", size * self.random.normal(size=shape))

    def shape(self, value: str) -> tuple[int, ...]:
        """Of one image."""
        return self.values[value].shape[1:]

    def conv(self, value: str, out: int, stride: int = 1, groups: int = 1, kernel: int = 3, bias: bool = True) -> str:
        """A convolution that keeps the size but for its stride."""
        c, pad = self.shape(value)[0] // groups, kernel // 2
        weight = self.constant(out, c, kernel, kernel, size=(c * kernel * kernel) ** -0.5)
        shift = self.constant(out, size=0.3) if bias else None
        return self.add(Conv2d(weight, shift, (stride, stride), (pad, pad, pad, pad), groups=groups), value)

    def linear(self, value: str, out: int) -> str:
        """A linear layer."""
        (size,) = self.shape(value)
        return self.add(Linear(self.constant(out, size, size=size**-0.5), self.constant(out, size=0.3)), value)

    def polynomial(self, value: str, coefficients: Array) -> str:
        """A polynomial over a range that holds the value: shape (channels or 1, degree + 1), Chebyshev basis."""
        half_width = 1.2 * float(np.max(np.abs(self.values[value]))) + 1e-3
        return self.add(Polynomial(self.builder.constant("p", coefficients), half_width), value)

    def quadratic(self, value: str, per_channel: bool = False, signs: bool = False) -> str:
        """A quadratic like those that activations get; with signs, every other channel is concave."""
        channels = self.shape(value)[0] if per_channel else 1
        c = self.random.uniform([-0.2, 0.2, 0.15], [0.4, 0.6, 0.4], size=(channels, 3))
        if signs:
            c[::2] *= -1.0
        return self.polynomial(value, c)

    def graph(self, *outputs: str) -> Graph:
        """The graph so far."""
        return self.builder.build(outputs, Stage.POLYNOMIAL, [self.input])


def residual_quadratics(seed: int = 0, blocks: int = 2, per_channel: bool = True, shape: int = 6) -> Graph:
    """A residual network of basic blocks: strided ones with a convolution as shortcut, others with the identity."""
    g = Growing(seed, (2, shape, shape))
    y = g.quadratic(g.conv(g.input, 4), per_channel)
    for block in range(blocks):
        stride = 2 if block == blocks - 1 else 1
        channels = g.shape(y)[0]
        z = g.conv(g.quadratic(g.conv(y, channels * stride, stride), per_channel), channels * stride)
        shortcut = g.conv(y, channels * stride, stride, kernel=1) if stride > 1 else y
        y = g.quadratic(g.add(Add(), z, shortcut), per_channel)
    size = g.shape(y)[1]
    mean = g.builder.constant("mean", np.full((1, size), 1 / size))
    y = g.add(AveragePool(mean, mean), y)
    return g.graph(g.linear(g.add(Reshape((g.shape(y)[0],)), y), 3))


def random_network(seed: int) -> tuple[Graph, Array]:
    """Blocks of every kind that quadratics may meet, and the images that its ranges fit."""
    random = np.random.default_rng(seed)
    g = Growing(seed + 1, (int(random.choice([2, 4])), int(random.integers(3, 7)), int(random.integers(3, 7))))

    def activation(value: str) -> str:
        kind, per_channel = random.integers(6), bool(random.integers(2))
        if kind == 0:
            degree = int(random.integers(1, 4))
            return g.polynomial(value, random.normal(size=(g.shape(value)[0] if per_channel else 1, degree + 1)))
        if kind == 1 and per_channel:
            return g.add(Multiply(), value, value)
        return g.quadratic(value, per_channel, bool(random.integers(2)))

    def scaled(value: str) -> str:
        c = g.shape(value)[0]
        return g.add(Affine(g.constant(c, 1, 1), g.constant(*random.choice([1, c], size=1), 1, 1)), value)

    def pooled(value: str) -> str:
        _, h, w = g.shape(value)
        matrix = [np.clip(random.integers(0, 3, size=(max(1, n // 2), n)), 0, 1) / 2 for n in (h, w)]
        if random.integers(2):
            matrix = [np.full((max(1, n // 2), n), 1 / n) for n in (h, w)]
        return g.add(AveragePool(g.builder.constant("r", matrix[0]), g.builder.constant("r", matrix[1])), value)

    def moved(value: str) -> str:
        c, h, w = g.shape(value)
        value = g.add(Slice(((0, c, 1), (0, h, 2), (0, w, 1))), value)
        return g.add(Pad(((0, 2), (0, 1), (1, -1)), float(random.integers(2))), value)

    def linear(value: str) -> str:
        kind, c = random.integers(5), g.shape(value)[0]
        if kind == 0:
            return scaled(g.conv(value, c))
        if kind == 1:
            return pooled(g.conv(value, 4) if random.integers(2) else value)
        if kind == 2:
            return moved(g.conv(value, 2) if random.integers(2) else value)
        return g.conv(value, 4, groups=2 if c % 2 == 0 and random.integers(2) else 1, bias=bool(random.integers(2)))

    value = g.input if random.integers(4) == 0 else linear(g.input)
    for _ in range(int(random.integers(1, 5))):
        value = activation(value)
        if random.integers(2):
            c = g.shape(value)[0]
            branch = g.conv(activation(g.conv(value, 3)), c)
            operands = [branch, scaled(value) if random.integers(4) == 0 else value]
            value = g.add(Add(), *(operands if random.integers(2) else operands[::-1]))
            if random.integers(3) == 0:
                value = g.add(Add(), value, g.conv(branch, c))
        else:
            value = linear(value)
    if random.integers(2):
        value = g.add(Reshape((int(np.prod(g.shape(value))),)), activation(value))
        value = g.linear(value, 5)
        if random.integers(2):
            value = g.linear(activation(value), 3)
    return g.graph(value), g.images


def cubic_blocks(blocks: int) -> tuple[Graph, Calibration, Array]:
    """Basic blocks with cubics around skips, and a linear layer; the calibration, and images in its ranges."""
    g = Growing(3, (2, 4, 4))
    cubic = np.array([[0.1, 0.5, 0.15, 0.03]])
    y = g.polynomial(g.conv(g.input, 2), cubic)
    for _ in range(blocks):
        z = g.conv(g.polynomial(g.conv(y, 2), cubic), 2)
        y = g.polynomial(g.add(Add(), z, y), cubic)
    y = g.add(Reshape((int(np.prod(g.shape(y))),)), y)
    return *normalized(g.graph(g.linear(y, 3)), g.images), g.images
