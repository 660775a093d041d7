"""Give every value a unit, so that slots stay within [-1, 1], and fold the units into neighbouring weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation, Affine, LinearOp, Multiply, Polynomial, PolynomialProduct, Reshape
from olac.ir.types import Stage
from olac.passes.base import Pass, PassContext
from olac.passes.compose_linear import sparse_linear
from olac.polynomials.fit import rescaled


@dataclass(frozen=True)
class NormalizeUnits(Pass):
    """Given: %y = linear(%x) W, b;  %p = polynomial(%y) on [-B, B].
    Result: %y = linear(%x) (u_x / u_y) W, b / u_y;  %p = polynomial(%y) on [-1, 1]; types carry u_x, u_y, u_p.

    Values that are added share a unit, as do operands and result of every op that is neither linear nor a polynomial
    nor a product: such an op must commute with a common factor. It costs no level: linear ops and polynomials absorb
    any factor, the client divides its input and multiplies its output.

    A value that a polynomial reads gets the polynomial's half width as unit, unless it (or what it is added to) is
    larger: on a wider interval the coefficients of high degrees would grow without bound, and noise with them.

    Options:
        padding: other units are this much larger than the calibrated magnitudes.
    """

    padding: float = 1.25
    name: ClassVar[str] = "normalize_units"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        graph = _free_products(graph, self.name)
        units = self._units(graph, context)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            unit = units[node.id]
            kind = replace(node.type, unit=unit)
            if isinstance(node.op, LinearOp):
                ratio = units[node.inputs[0]] / unit
                constants = node.op.scaled(graph.constants, ratio, 1 / unit)
                if constants is None:
                    linear = node.op.linear_map(graph[node.inputs[0]].type.shape, graph.constants)
                    linear = replace(linear, values=linear.values * ratio, bias=linear.bias / unit)
                    op: LinearOp = sparse_linear(builder, f"{node.id}.scaled", linear, node.type.shape)
                else:
                    names = {field: builder.constant(f"{node.id}.{field}.scaled", v) for field, v in constants.items()}
                    op = replace(node.op, **names)
                return builder.keep(node, inputs, op=op, type=kind)
            if isinstance(node.op, Polynomial | PolynomialProduct):
                # A product's factor brings its own unit into the coefficients.
                out = unit / units[node.inputs[0]] if isinstance(node.op, PolynomialProduct) else unit
                made = rescaled(graph.constants[node.op.coefficients], node.op.half_width, units[node.inputs[-1]], out)
                name = builder.constant(f"{node.id}.coefficients.scaled", made)
                return builder.keep(node, inputs, op=replace(node.op, coefficients=name, half_width=1.0), type=kind)
            return builder.keep(node, inputs, type=kind)

        return graph.rewrite(step, by=self.name)

    def _units(self, graph: Graph, context: PassContext) -> dict[str, float]:
        ranges = context.need_calibration().ranges
        groups = sharing_units(graph)
        half_widths: dict[str, float] = {}
        for user in graph.nodes:
            if isinstance(user.op, Polynomial | PolynomialProduct):
                half_widths[user.inputs[-1]] = max(user.op.half_width, half_widths.get(user.inputs[-1], 0.0))
        units: dict[str, float] = {}
        for group in set(groups.values()):
            bounds = (ranges.get(i) or graph[i].type.bound for i in group)
            magnitude = max((bound.magnitude for bound in bounds if bound is not None), default=0.0)
            half_width = max((half_widths[i] for i in group if i in half_widths), default=0.0)
            unit = max(magnitude, half_width) if half_width else magnitude * self.padding
            units.update((i, unit if unit > 1e-12 else 1.0) for i in group)
        for node in graph.nodes:
            if isinstance(node.op, Multiply):
                product = units[node.inputs[0]] * units[node.inputs[1]]
                units.update((i, product) for i in groups[node.id])
        return units


def sharing_units(graph: Graph) -> dict[str, frozenset[str]]:
    """For each node the values that must have the same unit, itself included."""
    together: nx.Graph[str] = nx.Graph()
    for node in graph.nodes:
        together.add_node(node.id)
        if not isinstance(node.op, LinearOp | Activation | Polynomial | PolynomialProduct | Multiply):
            together.add_edges_from((node.id, operand) for operand in node.inputs)
    return {i: group for group in map(frozenset, nx.connected_components(together)) for i in group}


def _free_products(graph: Graph, by: str) -> Graph:
    """Put an affine identity behind a product whose unit must not be the product of its operands' units."""
    users = graph.users()
    taken = {node.id for node in graph.nodes}

    def absorbed(node: Node) -> bool:
        """Whether every reader can take any unit."""
        return node.id not in graph.outputs and all(
            isinstance(user.op, LinearOp | Polynomial | PolynomialProduct)
            or (isinstance(user.op, Reshape) and absorbed(user))
            for user in users[node.id]
        )

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Multiply):
            return None
        if absorbed(node):
            return None
        name = f"{node.id}_product"
        while name in taken:
            name += "_"
        product = builder.add(node.op, inputs, name=name, origin=node.origin, type=node.type)
        op = Affine(builder.constant("one", np.ones(())), builder.constant("zero", np.zeros(())))
        return builder.add(op, [product], name=node.id, origin=node.origin, type=node.type)

    return graph.rewrite(step, by=by)
