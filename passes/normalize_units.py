"""Give every value a unit, so that slots stay within [-1, 1], and fold the units into neighbouring weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import networkx as nx
import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Affine, LinearOp, Multiply, Polynomial, Reshape
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

    Options:
        padding: units are this much larger than the calibrated magnitudes.
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
            if isinstance(node.op, Polynomial):
                made = rescaled(graph.constants[node.op.coefficients], node.op.half_width, units[node.inputs[0]], unit)
                name = builder.constant(f"{node.id}.coefficients.scaled", made)
                return builder.keep(node, inputs, op=Polynomial(name, 1.0), type=kind)
            return builder.keep(node, inputs, type=kind)

        return graph.rewrite(step, by=self.name)

    def _units(self, graph: Graph, context: PassContext) -> dict[str, float]:
        ranges = context.need_calibration().ranges
        together: nx.Graph[str] = nx.Graph()
        for node in graph.nodes:
            together.add_node(node.id)
            if not isinstance(node.op, LinearOp | Polynomial | Multiply):
                together.add_edges_from((node.id, operand) for operand in node.inputs)
        units: dict[str, float] = {}
        for group in nx.connected_components(together):
            magnitude = max((ranges[i].magnitude for i in group if i in ranges), default=0.0) * self.padding
            for user in graph.nodes:
                if isinstance(user.op, Polynomial) and user.inputs[0] in group:
                    magnitude = max(magnitude, user.op.half_width)
            unit = magnitude if magnitude > 1e-12 else 1.0
            units.update((i, unit) for i in group)
        for node in graph.nodes:
            if isinstance(node.op, Multiply):
                product = units[node.inputs[0]] * units[node.inputs[1]]
                units.update((i, product) for i in nx.node_connected_component(together, node.id))
        return units


def _free_products(graph: Graph, by: str) -> Graph:
    """Put an affine identity behind a product whose unit must not be the product of its operands' units."""
    users = graph.users()
    taken = {node.id for node in graph.nodes}

    def absorbed(node: Node) -> bool:
        """Whether every reader can take any unit."""
        return node.id not in graph.outputs and all(
            isinstance(user.op, LinearOp | Polynomial) or (isinstance(user.op, Reshape) and absorbed(user))
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
