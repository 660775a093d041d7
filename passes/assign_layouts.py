"""Decide where every value lies in its slots."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import LOWERINGS, Diagonals
from olac.ir.ops import Input, LinearOp
from olac.ir.types import Stage
from olac.kernels.linear import modulus_choices
from olac.kernels.patterns import diagonals_of
from olac.passes.base import Pass, PassContext


@dataclass(frozen=True)
class AssignLayouts(Pass):
    """Given: types without layouts.  Result: every type has a layout; values that are added have the same one.

    Inputs and linear ops may have a result of any layout; all other ops keep the layout. So values that meet in sums
    form groups, and each group takes the layout that its first producer computes with the fewest diagonals: dense
    planes, or the operand's planes with a larger gap, as a stride leaves them.

    Attributes:
        prefer: a kind of lowering; layouts with which it can compute the first producer are preferred.
    """

    prefer: str = Diagonals.kind
    name: ClassVar[str] = "assign_layouts"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        slots, batch = context.need_parameters().slots // context.batch, context.batch
        groups = graph.groups(lambda op: not op.chooses_layout)
        chosen: dict[frozenset[str], TensorLayout] = {}
        layouts: dict[str, TensorLayout] = {}
        for node in graph.nodes:
            group = groups[node.id]
            if group not in chosen:
                if isinstance(node.op, Input):
                    chosen[group] = _dense(node, slots, batch)
                else:
                    chosen[group] = _best(graph, node, layouts[node.inputs[0]], self.prefer)
            layouts[node.id] = chosen[group].reshaped(node.type.shape)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str:
            kind = replace(node.type, layout=layouts[node.id], batch=batch)
            return builder.keep(node, inputs, type=kind)

        return graph.rewrite(step, by=self.name)


def _dense(node: Node, slots: int, batch: int) -> TensorLayout:
    return TensorLayout.dense(node.type.shape, slots, batch)


def _best(graph: Graph, node: Node, operand: TensorLayout, prefer: str) -> TensorLayout:
    """The candidate with the fewest ciphertexts; of these one with which the preferred kind can lower the op; of these
    the one with the fewest products by diagonals. The dense candidate is the first among equals.
    """
    if not isinstance(node.op, LinearOp):
        return _dense(node, operand.slots, operand.batch)
    op, shape, kind = node.op, node.type.shape, LOWERINGS[prefer]
    taken = graph[node.inputs[0]].type.shape
    candidates = [_dense(node, operand.slots, operand.batch)]
    if len(shape) == 3 and operand.shape == operand.grid and min(shape[1:]) > 1:
        strides = {max(1, round(operand.grid[axis] / shape[axis])) for axis in (1, 2)}
        for stride in sorted(strides):
            gap = operand.gap * stride
            candidates.append(TensorLayout.multiplexed(shape, operand.padded, gap, operand.slots, operand.batch))

    def cost(layout: TensorLayout) -> tuple[int, bool, int]:
        counts = min(
            len(diagonals_of(op, taken, graph.constants, operand, layout, modulus)[2])
            for modulus in modulus_choices(operand, layout)
        )
        return layout.ciphertexts, kind is not Diagonals and not kind.choices(op, operand, layout), counts

    return min(candidates, key=cost)
