"""Insert placeholders for polynomials that are not fitted yet, with the levels that these will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Activation, Array, Polynomial
from olac.ir.types import Stage
from olac.passes.base import Pass, PassContext
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_squares import FoldSquares
from olac.passes.free_products import FreeProducts
from olac.passes.split_concatenations import SplitConcatenations
from olac.polynomials.fit import QUADRATIC


@dataclass(frozen=True)
class InsertPlaceholders(Pass):
    """Given: %r = activation(%x) relu.  Result: %r = polynomial(%x), of the given degree; its values mean nothing.

    Options:
        degrees: the degree for each activation.
    """

    degrees: Mapping[str, int] = field(default_factory=dict)
    name: ClassVar[str] = "insert_placeholders"
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, Activation):
                return None
            degree = self.degrees[node.id]
            row: Array = np.zeros(max(2, degree) + 1)
            row[: len(QUADRATIC)] = (QUADRATIC[0] + QUADRATIC[2] / 2, QUADRATIC[1], QUADRATIC[2] / 2)
            row[degree] = row[degree] or 1e-3
            name = builder.constant(f"{node.id}.coefficients", row[None, : max(1, degree) + 1])
            return builder.add(Polynomial(name, 1.0), inputs, name=node.id, origin=node.origin, type=node.type)

        return graph.rewrite(step, by=self.name, stage=Stage.POLYNOMIAL)


def circuit_pipeline(degrees: Mapping[str, int]) -> tuple[Pass, ...]:
    """TRACED to POLYNOMIAL: the circuit for these degrees, with the nodes and levels that lowering will find.

    Squares are folded, concatenations split, linear ops composed, and products brought to the units of sums.
    """
    return InsertPlaceholders(degrees), FoldSquares(), SplitConcatenations(), ComposeLinear(), FreeProducts()
