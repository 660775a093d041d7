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

    Only where nothing else reads %c and s and t have one number per output channel.
    """

    name: ClassVar[str] = "fold_affine"

    def run(self, graph: Graph, context: PassContext) -> Graph:
        users = graph.users()

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, Affine):
                return None
            producer = builder[inputs[0]]
            if not isinstance(producer.op, Conv2d | Linear) or len(users[node.inputs[0]]) != 1:
                return None
            channels = producer.type.shape[0]
            scale = _per_channel(graph.constants[node.op.scale], producer.type.shape)
            shift = _per_channel(graph.constants[node.op.shift], producer.type.shape)
            if scale is None or shift is None:
                return None
            weight = builder.constants[producer.op.weight]
            bias = np.zeros(channels) if producer.op.bias is None else builder.constants[producer.op.bias]
            op = replace(
                producer.op,
                weight=builder.constant(f"{node.id}.weight", weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))),
                bias=builder.constant(f"{node.id}.bias", bias * scale + shift),
            )
            return builder.add(op, producer.inputs, name=node.id, origin=producer.origin, type=node.type)

        return graph.rewrite(step, by=self.name)


def _per_channel(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:  # type: ignore[type-arg]
    """One number per channel, or None where values differ within a channel."""
    full = np.broadcast_to(values, shape).reshape(shape[0], -1)
    return full[:, 0].copy() if np.all(full == full[:, :1]) else None
