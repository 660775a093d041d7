"""Fold batch normalisation and other channelwise affine maps into the convolution or linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Affine, Conv2d, Linear
from olac.passes.base import Pass, PassContext


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Given: %c = conv2d(%x) W, b;  %n = affine(%c) s, t.  Result: %n = conv2d(%x) s W, s b + t.

    This is done only if nothing else reads %c, and s and t have one number per output channel.
    """

    name: ClassVar[str] = "fold_affine"

    def run(self, graph: Graph, context: PassContext) -> Graph:
        alone = graph.read_once()

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, Affine):
                return None
            producer = builder[inputs[0]]
            if not isinstance(producer.op, Conv2d | Linear) or node.inputs[0] not in alone:
                return None
            rows = [
                np.broadcast_to(graph.constants[name], producer.type.shape) for name in (node.op.scale, node.op.shift)
            ]
            operand = builder[producer.inputs[0]].type.shape
            made = producer.op.with_factors(operand, builder.constants, (rows[0], rows[1]))
            if made is None:
                return None
            bias = made.get("bias", np.zeros(producer.type.shape[0]))
            op = replace(
                producer.op,
                weight=builder.constant(f"{node.id}.weight", made["weight"]),
                bias=builder.constant(f"{node.id}.bias", bias),
            )
            return builder.add(op, producer.inputs, name=node.id, origin=producer.origin, type=node.type)

        return graph.rewrite(step, by=self.name)
