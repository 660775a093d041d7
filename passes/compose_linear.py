"""Compose linear ops that follow one another, so that pooling, padding and slicing cost no level of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Conv2d, LinearMap, LinearOp, Pad, SparseLinear
from olac.ir.types import Stage
from olac.passes.base import Pass, PassContext

MOST_ENTRIES = 20_000_000
"""Most entries of a matrix that is made of several ops."""


@dataclass(frozen=True)
class ComposeLinear(Pass):
    """Given: %p = average_pool(%x); %f = reshape(%p); %y = linear(%f).  Result: %y = sparse_linear(%x).

    Two linear ops, with or without reshapes between, become one if one of them is structural (pooling, padding,
    slicing, an affine map by element) and nothing else reads the value between. Zero padding before a convolution is
    added to the convolution's own. Convolutions are not composed with each other: the result would be dense.

    Options:
        max_entries: two ops stay apart if their composition may have more entries.
    """

    max_entries: int = MOST_ENTRIES
    name: ClassVar[str] = "compose_linear"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        alone = graph.read_once()

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, LinearOp):
                return None
            old, new = node.inputs[0], inputs[0]
            while graph[old].op.same_ciphertexts and old in alone:
                old, new = graph[old].inputs[0], builder[new].inputs[0]
            first = builder[new]
            if not isinstance(first.op, LinearOp) or old not in alone:
                return None
            if not first.op.structural and not node.op.structural:
                return None
            padded = _pad_into_convolution(first, node) if old == node.inputs[0] else None
            if padded is not None:
                return builder.add(padded, first.inputs, name=node.id, origin=node.origin, type=node.type)
            shape, between = builder[first.inputs[0]].type.shape, graph[node.inputs[0]].type.shape
            each = first.op.entry_count(shape, builder.constants) // math.prod(between)
            if node.op.entry_count(between, graph.constants) * max(1, each) > self.max_entries:
                return None
            one = first.op.linear_map(shape, builder.constants)
            two = node.op.linear_map(between, graph.constants)
            op = sparse_linear(builder, node.id, two.after(one), node.type.shape)
            return builder.add(op, first.inputs, name=node.id, origin=node.origin, type=node.type)

        return graph.rewrite(step, by=self.name)


def sparse_linear(builder: GraphBuilder, name: str, linear: LinearMap, shape: tuple[int, ...]) -> SparseLinear:
    """An op for a linear map, its arrays added to the builder's constants."""
    return SparseLinear(
        rows=builder.constant(f"{name}.rows", linear.rows),
        columns=builder.constant(f"{name}.columns", linear.columns),
        values=builder.constant(f"{name}.values", linear.values),
        bias=builder.constant(f"{name}.bias", linear.bias),
        shape=shape,
    )


def _pad_into_convolution(first: Node, second: Node) -> Conv2d | None:
    """The convolution with the zero padding before it added to its own, if the two ops are such."""
    if not isinstance(first.op, Pad) or not isinstance(second.op, Conv2d) or first.op.value != 0:
        return None
    channels, rows, columns = first.op.amounts
    if channels != (0, 0) or min(*rows, *columns) < 0:
        return None
    top, bottom, left, right = second.op.padding
    return replace(second.op, padding=(top + rows[0], bottom + rows[1], left + columns[0], right + columns[1]))
