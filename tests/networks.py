"""Small graphs at stage POLYNOMIAL, made by hand, for tests that need no torch."""

from __future__ import annotations

import numpy as np

from olac.ir import Graph, GraphBuilder, Range, Stage
from olac.ir.ops import Add, Array, Conv2d, Input, Linear, Multiply, Polynomial, PolynomialProduct, Reshape
from olac.passes.base import PassContext, PassManager
from olac.passes.normalize_units import NormalizeUnits
from olac.polynomials.statistics import Calibration


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


def normalized(graph: Graph, images: Array) -> tuple[Graph, Calibration]:
    """The graph with units, and the calibration that they came from."""
    calibration = calibration_of(graph, images)
    return PassManager([NormalizeUnits()]).run(graph, PassContext(calibration=calibration)), calibration


def images_for(graph: Graph, count: int, seed: int = 1) -> Array:
    """Uniform images in [-1, 1] of the graph's input shape."""
    return np.random.default_rng(seed).uniform(-1, 1, size=(count, *graph.inputs[0].type.shape))
