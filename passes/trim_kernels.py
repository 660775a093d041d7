"""Cut off the rows and columns of convolutions' kernels that see nothing except padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Conv2d
from olac.passes.base import Pass, PassContext


@dataclass(frozen=True)
class TrimKernels(Pass):
    """Given: %y = conv2d(%x) W, where some outer rows or columns of W never meet a pixel.  Result: conv2d without them.

    Networks for large pictures have such kernels if they are given small ones: a 3x3 kernel with padding sees one pixel
    of a 1x1 map. The values are the same, and there is less to fit.
    """

    name: ClassVar[str] = "trim_kernels"

    def run(self, graph: Graph, context: PassContext) -> Graph:
        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            op = node.op
            if not isinstance(op, Conv2d):
                return None
            weight, (top, bottom, left, right) = graph.constants[op.weight], op.padding
            _, height, width = graph[node.inputs[0]].type.shape
            _, rows, columns = node.type.shape
            up, down = _unseen(weight.shape[2], height, rows, op.stride[0], op.dilation[0], (top, bottom))
            before, after = _unseen(weight.shape[3], width, columns, op.stride[1], op.dilation[1], (left, right))
            if not up + down + before + after:
                return None
            kept = weight[:, :, up : weight.shape[2] - down, before : weight.shape[3] - after]
            high, wide = op.dilation
            padding = (top - up * high, bottom - down * high, left - before * wide, right - after * wide)
            name = builder.constant(f"{node.id}.weight.trimmed", np.ascontiguousarray(kept))
            return builder.keep(node, inputs, op=replace(op, weight=name, padding=padding))

        return graph.rewrite(step, by=self.name)


def _unseen(taps: int, size: int, places: int, stride: int, dilation: int, padding: tuple[int, int]) -> tuple[int, int]:
    """How many of the first and of the last taps of one axis never meet a pixel, as far as there is padding to drop."""
    sources = np.arange(places)[:, None] * stride + np.arange(taps) * dilation - padding[0]
    seen = np.flatnonzero(((sources >= 0) & (sources < size)).any(0))
    if not len(seen):
        return 0, 0
    first, last = int(seen[0]), taps - 1 - int(seen[-1])
    return min(first, padding[0] // dilation), min(last, padding[1] // dilation)
