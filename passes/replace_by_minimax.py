"""Replace ReLU and its relatives by compositions of minimax polynomials."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.polynomial import chebyshev

from olac.analysis.units import sharing_units
from olac.calibration.histogram import Histogram
from olac.errors import CalibrationError, UnsupportedModelError, UnsupportedNode
from olac.ir.functions import Function, activation
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation, Array, Polynomial, PolynomialProduct
from olac.ir.types import Range, Stage
from olac.kernels.polynomial import depth_of
from olac.passes.base import FitReport, Pass, PassContext
from olac.polynomials.curves import Curve, curve
from olac.polynomials.minimax import Composition, check_precision, sign_composition

RELATIVES = ("relu", "leaky_relu", "prelu")
"""Functions that are x above 0, and have a slope below 0."""
REPORT_POINTS = 4001
TINY = 1e-6


@dataclass(frozen=True)
class ReplaceByMinimax(Pass):
    """Given: %r = activation(%x) relu.
    Result: %s = polynomial(%x); ... %r = polynomial_product(%x, %s), so that |r - relu(x)| <= B 2^-alpha on [-B, B].

    ReLU, leaky ReLU and PReLU are x (1 + s) / 2 + x sign(x) (1 - s) / 2 for a slope s below 0. The sign becomes a
    composition of minimax polynomials; if that has a single stage, the result is one polynomial, of a degree one
    higher. B is `padding` times the largest calibrated magnitude of x and of the values that share its unit.

    Options:
        alpha: precision in bits, 4 ... 14.
        padding: factor for the calibrated magnitude. Beyond B the composition grows without bound.
    """

    alpha: int = 8
    padding: float = 1.3
    name: ClassVar[str] = "replace_by_minimax"
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def __post_init__(self) -> None:
        check_minimax_options(self.alpha, self.padding)

    def run(self, graph: Graph, context: PassContext) -> Graph:
        calibration = context.need_calibration()
        refused = [
            UnsupportedNode(
                node.origin.path,
                node.origin.source,
                f"{node.id}: {node.op.function} can't be composed of minimax polynomials of the sign",
                "Use ReLU, LeakyReLU or PReLU, or fit this model's activations",
            )
            for node in graph.nodes
            if isinstance(node.op, Activation) and node.op.function not in RELATIVES
        ]
        if refused:
            raise UnsupportedModelError(refused)
        groups = sharing_units(graph)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, Activation):
                return None
            if node.id not in calibration.histograms:
                raise CalibrationError(f"calibration never reached the activation {node.id} ({node.origin.path})")
            histogram = calibration.histograms[node.id]
            seen = [calibration.ranges[i].magnitude for i in groups[node.inputs[0]] if i in calibration.ranges]
            half_width = self.padding * max(histogram.range(None).magnitude, *seen, TINY)
            slope = slopes(node.op)
            context.fits.append(report(node, node.op, histogram, self.alpha, half_width))
            context.curves.append(_curve(node, node.op, histogram, self.alpha, half_width))
            return times_sign(builder, node, inputs[0], self.alpha, half_width, (1 + slope) / 2, (1 - slope) / 2)

        return graph.rewrite(step, by=self.name, stage=Stage.POLYNOMIAL)


def _curve(node: Node, op: Activation, histogram: Histogram, alpha: int, half_width: float) -> Curve:
    composition = sign_composition(alpha)

    def fitted(slope: float) -> Function:
        return lambda x: x * ((1 + slope) / 2 + (1 - slope) / 2 * composition(x / half_width))

    found = [float(one) for one in slopes(op)]
    exact = [activation("leaky_relu", (slope,)) for slope in found]
    ranges = np.tile([-half_width, half_width], (histogram.channels, 1))
    rows = [fitted(slope) for slope in found]
    return curve(node.id, op.function, composition.degree + 1, histogram, exact, rows, ranges)


def check_minimax_options(alpha: int, padding: float) -> None:
    """Raise ValueError for a precision without a composition, and for a padding below 1."""
    check_precision(alpha)
    if not padding >= 1:
        raise ValueError(f"padding {padding} is below 1")


def slopes(op: Activation) -> Array:
    """The slopes below 0 of one of the `RELATIVES`, one or one per channel."""
    return np.zeros(1) if op.function == "relu" else np.array(op.parameters, dtype=np.float64)


def times_sign(
    builder: GraphBuilder, node: Node, x: str, alpha: int, half_width: float, constant: Array, factor: Array
) -> str:
    """Add x (constant + factor sign(x)) to a builder, with the id, type and origin of `node`; returns the id.

    Args:
        builder: gets the nodes.
        node: the node that is replaced.
        x: the operand's id.
        alpha: the error is at most |factor| 2^(1 - alpha) half_width on [-half_width, half_width].
        half_width: the largest magnitude of the operand.
        constant, factor: one, or one per channel, of shape (1,) or (channels,).
    """
    composition = sign_composition(alpha)
    last = composition.stages[-1]
    coefficients = factor[:, None] * np.array(last.coefficients)[None, :]
    coefficients[:, 0] += constant

    def constants(array: Array, suffix: str) -> str:
        return builder.constant(f"{node.id}.{suffix}", array)

    if len(composition.stages) == 1:
        # x p(x) is itself a polynomial, and takes no level more.
        product = np.stack([half_width * chebyshev.chebmulx(row) for row in coefficients])
        op = Polynomial(constants(product, "coefficients"), half_width)
        return builder.add(op, [x], name=node.id, origin=node.origin, type=node.type)
    value, scale = x, half_width
    for count, (stage, after) in enumerate(itertools.pairwise(composition.stages), 1):
        # Names with a dot differ from all names that lifting gives.
        value = builder.add(
            Polynomial(constants(np.array([stage.coefficients]), f"sign{count}.coefficients"), scale),
            [value],
            name=f"{node.id}.sign{count}",
            origin=node.origin,
            type=replace(node.type, bound=Range(-after.half_width, after.half_width)),
        )
        scale = after.half_width
    op_product = PolynomialProduct(constants(coefficients, "coefficients"), scale)
    return builder.add(op_product, [x, value], name=node.id, origin=node.origin, type=node.type)


def depth_of_product(composition: Composition) -> int:
    """Levels of x p(x)."""
    if len(composition.stages) == 1:
        return depth_of(composition.degree + 1)
    return sum(depth_of(stage.degree) for stage in composition.stages) + 1


def report(node: Node, op: Activation, histogram: Histogram, alpha: int, half_width: float) -> FitReport:
    """The errors of the approximation of one of the `RELATIVES`; the degree is that of x p(x) as one polynomial."""
    composition, slope = sign_composition(alpha), slopes(op)
    error = size = 0.0
    for channel, one in enumerate(slope):
        centres, masses = histogram.density(channel if len(slope) > 1 else None)
        centres, masses = centres[masses > 0], masses[masses > 0]
        exact = activation("leaky_relu", (float(one),))(centres)
        made = centres * ((1 + one) / 2 + (1 - one) / 2 * composition(centres / half_width))
        error += float(np.sum(masses * (made - exact) ** 2))
        size += float(np.sum(masses * exact**2))
    t = np.linspace(0.0, 1.0, REPORT_POINTS)
    t = np.concatenate([t, composition.threshold * t])
    largest = float(np.max(t * np.abs(1 - composition(t)))) * half_width * float(np.max(np.abs(1 - slope))) / 2
    return FitReport(
        node.id,
        op.function,
        composition.degree + 1,
        depth_of_product(composition),
        float(np.sqrt(error / size)) if size else 0.0,
        largest,
        -half_width,
        half_width,
    )
