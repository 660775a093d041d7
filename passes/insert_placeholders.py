"""Circuits whose degrees are not fitted yet: polynomials that mean nothing stand in, for the levels that they take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from olac.analysis.depth import activation_depth
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation, Array, Polynomial, Square
from olac.ir.types import Stage
from olac.passes.base import PassContext
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_squares import FoldSquares
from olac.passes.normalize_units import free_products
from olac.polynomials.fit import QUADRATIC


def with_degrees(graph: Graph, degrees: Mapping[str, int]) -> Graph:
    """A stand-in at stage POLYNOMIAL, its polynomials of the degrees given and of no other meaning."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Activation):
            return None
        row: Array = np.zeros(max(2, degrees[node.id]) + 1)
        row[: len(QUADRATIC)] = (QUADRATIC[0] + QUADRATIC[2] / 2, QUADRATIC[1], QUADRATIC[2] / 2)
        row[degrees[node.id]] = row[degrees[node.id]] or 1e-3
        if degrees[node.id] < 2:
            row = row[:2]
        name = builder.constant(f"{node.id}.coefficients", row[None, :])
        return builder.add(Polynomial(name, 1.0), inputs, name=node.id, origin=node.origin, type=node.type)

    return graph.rewrite(step, by="choose_degrees", stage=Stage.POLYNOMIAL)


def folded_in(graph: Graph, context: PassContext, degrees: Mapping[str, int]) -> frozenset[str]:
    """The activations whose quadratic takes one level in a circuit of these degrees."""
    trial = FoldSquares().run(with_degrees(graph, degrees), PassContext())
    return frozenset(node.id for node in trial.nodes if isinstance(node.op, Square))


def foldable(graph: Graph, context: PassContext) -> frozenset[str]:
    """The activations whose quadratic takes one level where all are quadratics."""
    return folded_in(graph, context, {n.id: 2 for n in graph.nodes if isinstance(n.op, Activation)})


def circuit_levels(graph: Graph, degrees: Mapping[str, int], context: PassContext) -> int:
    """Levels that activations of these degrees take, counted from the circuit by the recorder."""
    return activation_depth(FoldSquares().run(with_degrees(graph, degrees), PassContext()))


def lowered(graph: Graph, degrees: Mapping[str, int]) -> Graph:
    """The circuit of these degrees as lowering will find it, node by node and level by level.

    Squares are folded, linear ops composed, and products brought to the units of sums.
    """
    folded = FoldSquares().run(with_degrees(graph, degrees), PassContext())
    composed = ComposeLinear().run(folded, PassContext())
    return free_products(composed, {}, "choose_degrees")
