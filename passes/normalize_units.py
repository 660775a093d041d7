"""Give every value a unit, so that slots stay within [-1, 1], and fold the units into neighbouring weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.analysis.units import sharing_units
from olac.errors import VerificationError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Affine, LinearOp, Polynomial, PolynomialProduct, Units
from olac.ir.types import Range, Stage
from olac.passes.base import Pass, PassContext
from olac.passes.compose_linear import sparse_linear

NOISE = 1e-6
"""If a sum is smaller than this share of its summands, it is noise: models compute in single precision."""
WASTE = 8.0
"""Three bits of precision may be lost by a product's unit before a level is spent on a better one."""
SMALLEST = 1e-30
"""Smaller values are zero."""


@dataclass(frozen=True)
class NormalizeUnits(Pass):
    """Given: %y = linear(%x) W, b;  %p = polynomial(%y) on [-B, B].
    Result: %y = linear(%x) (u_x / u_y) W, b / u_y;  %p = polynomial(%y) on [-1, 1]; types carry u_x, u_y, u_p.

    Values that are added share a unit, as do operands and result of every op whose units are shared: such an op must
    commute with a common factor. Units cost no level: linear ops and polynomials take any factor into their constants
    (`Op.in_units`), the client divides its input and multiplies its output.

    A value that a polynomial reads gets the polynomial's half width as unit, unless it (or a value that shares its
    unit) is larger: on a wider interval the coefficients of high degrees would grow without bound, and the noise too.

    A value that is tiny compared with its operands, such as the mean of values whose mean was subtracted, is rounding
    noise of the model. With a unit of its size, the noise of encryption would be large in it. So its unit is at least
    `NOISE` times its operands' size, and polynomials that read it become straight lines.

    Options:
        padding: all other units are the calibrated magnitudes times this factor.
    """

    padding: float = 1.25
    name: ClassVar[str] = "normalize_units"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        ranges = context.need_calibration().ranges
        graph = free_products(graph, ranges, self.name)
        floors = noise_floors(graph, {node.id: _magnitude(node, ranges) for node in graph.nodes})
        graph = straightened(graph, floors, self.name)
        units = self._units(graph, ranges, floors)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            unit, operands = units[node.id], [units[name] for name in node.inputs]
            changes, op = node.op.in_units(graph.constants, operands, unit), node.op
            if changes is not None:
                named = {
                    field: builder.constant(f"{node.id}.{field}.scaled", value)
                    if field in op.constant_fields
                    else value
                    for field, value in changes.items()
                }
                op = replace(op, **named)
            elif isinstance(op, LinearOp):
                linear = op.linear_map(graph[node.inputs[0]].type.shape, graph.constants)
                linear = replace(linear, values=linear.values * (operands[0] / unit), bias=linear.bias / unit)
                op = sparse_linear(builder, f"{node.id}.scaled", linear, node.type.shape)
            else:
                raise VerificationError(f"{node.place} takes no units, and it is no linear op")
            return builder.keep(node, inputs, op=op, type=replace(node.type, unit=unit))

        return graph.rewrite(step, by=self.name)

    def _units(self, graph: Graph, ranges: Mapping[str, Range], floors: Mapping[str, float]) -> dict[str, float]:
        groups = sharing_units(graph)
        magnitudes = {node.id: _magnitude(node, ranges) for node in graph.nodes}
        half_widths: dict[str, float] = {}
        for user in graph.nodes:
            if isinstance(user.op, Polynomial | PolynomialProduct):
                half_widths[user.inputs[-1]] = max(user.op.half_width, half_widths.get(user.inputs[-1], 0.0))
        units: dict[str, float] = {}
        for group in set(groups.values()):
            magnitude = max(magnitudes[i] for i in group)
            half_width = max((half_widths[i] for i in group if i in half_widths), default=0.0)
            unit = max(magnitude, half_width) if half_width else magnitude * self.padding
            unit = max(unit, *(floors[i] for i in group))
            units.update((i, unit if unit > SMALLEST else 1.0) for i in group)
        for node in graph.nodes:
            if node.op.units is Units.PRODUCT:
                product = units[node.inputs[0]] * units[node.inputs[-1]]
                units.update((i, product) for i in groups[node.id])
        return units


def free_products(graph: Graph, ranges: Mapping[str, Range], by: str) -> Graph:
    """Insert an affine identity between a product and its readers that can't take its unit: mostly sums and outputs.

    A product's unit is the product of its operands' units, and its scale is not the canonical one, on which sums and
    the client rely. Linear ops, polynomials and other products take any unit and scale.

    A product that a further product reads gets one as well if its unit is more than `WASTE` times its size: the units
    of several factors multiply, and the value would be lost in the noise of encryption.
    """
    builder = GraphBuilder(graph.constants, by=by)
    new: dict[str, str] = {}
    products: set[str] = set()
    freed: dict[str, str] = {}
    sizes = {node.id: _magnitude(node, ranges) for node in graph.nodes}
    units: dict[str, float] = {}

    def wasteful(value: str) -> bool:
        return value in products and 0 < WASTE * sizes[value] < units[value]

    def free(value: str) -> str:
        if value not in products:
            return new[value]
        if value not in freed:
            node, name = graph[value], graph.free_name(f"{value}_unit")
            op = Affine(builder.constant("one", np.ones(())), builder.constant("zero", np.zeros(())))
            kind = replace(node.type, bound=_bound(node, ranges))
            freed[value] = builder.add(op, [new[value]], name=name, origin=node.origin, type=kind)
        return freed[value]

    for node in graph.nodes:
        own = node.op.units is Units.PRODUCT
        taken = [node.op.takes_products and not (own and wasteful(i)) for i in node.inputs]
        units[node.id] = sizes[node.id]
        if node.op.is_product(any(i in products for i in node.inputs)):
            products.add(node.id)
            factors = [units[i] if kept else sizes[i] for i, kept in zip(node.inputs, taken, strict=True)]
            units[node.id] = factors[0] * factors[-1] if own else factors[0]
        new[node.id] = builder.keep(
            node, tuple(new[i] if kept else free(i) for i, kept in zip(node.inputs, taken, strict=True))
        )
    return builder.build(
        [free(output) for output in graph.outputs], stage=graph.stage, inputs=[new[i.id] for i in graph.inputs]
    )


def noise_floors(graph: Graph, magnitudes: Mapping[str, float]) -> dict[str, float]:
    """For each value the size below which it is noise, computed from the calibrated magnitudes of all values."""
    floors: dict[str, float] = {}
    for node in graph.nodes:
        op = node.op
        noise = max((floors[i] for i in node.inputs), default=0.0)
        floors[node.id] = 0.0
        if isinstance(op, LinearOp):
            (operand,) = node.inputs
            gain = float(op.gains(graph[operand].type.shape, graph.constants, 1).max())
            floors[node.id] = gain * (noise if noise > magnitudes[operand] else NOISE * magnitudes[operand])
        elif isinstance(op, Polynomial | PolynomialProduct):
            factor = magnitudes[node.inputs[0]] if isinstance(op, PolynomialProduct) else 1.0
            floors[node.id] = NOISE * factor * float(np.abs(graph.constants[op.coefficients]).sum(axis=1).max())
        elif op.units is not Units.PRODUCT:
            floors[node.id] = noise
    return floors


def straightened(graph: Graph, floors: Mapping[str, float], by: str) -> Graph:
    """The graph with straight lines, on an interval as wide as the noise, for polynomials whose argument is noise."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        op = node.op
        if not isinstance(op, Polynomial | PolynomialProduct) or floors[node.inputs[-1]] <= op.half_width:
            return None
        width = floors[node.inputs[-1]]
        c = graph.constants[op.coefficients]
        even, odd = c[:, 0::2], c[:, 1::2]
        middle = even @ np.cos(np.pi * np.arange(even.shape[1]))  # T_2k(0)
        line = np.stack([middle, odd.sum(axis=1) * width / op.half_width], axis=1)
        name = builder.constant(f"{node.id}.coefficients.straight", line)
        return builder.keep(node, inputs, op=replace(op, coefficients=name, half_width=width))

    return graph.rewrite(step, by=by)


def _magnitude(node: Node, ranges: Mapping[str, Range]) -> float:
    """The largest calibrated magnitude; 0 if it is unknown."""
    bound = _bound(node, ranges)
    return 0.0 if bound is None else bound.magnitude


def _bound(node: Node, ranges: Mapping[str, Range]) -> Range | None:
    """The range in the type, which passes set when they change a value; without one, the calibrated range."""
    return ranges.get(node.id) if node.type.bound is None else node.type.bound
