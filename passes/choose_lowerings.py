"""Choose how each linear op is evaluated, by predicted time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from olac.backends.cost import predicted_seconds
from olac.ir.graph import Diagonals, Graph, GraphBuilder, Node
from olac.ir.layout import TensorLayout
from olac.ir.ops import LinearMap, LinearOp
from olac.ir.types import Stage
from olac.kernels.linear import StepCounts, baby_choices, count_steps, modulus_choices, place
from olac.passes.base import Pass, PassContext


@dataclass(frozen=True)
class ChooseLowerings(Pass):
    """Given: a linear op with layouts.  Result: the same with the modulus and baby step of least predicted time."""

    name: ClassVar[str] = "choose_lowerings"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.PACKED

    def run(self, graph: Graph, context: PassContext) -> Graph:
        price = _prices(context)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, LinearOp):
                return None
            operand, result = graph[node.inputs[0]].type.layout, node.type.layout
            assert operand is not None and result is not None
            linear = node.op.linear_map(graph[node.inputs[0]].type.shape, graph.constants)
            return builder.keep(node, inputs, lowering=_cheapest(linear, operand, result, price))

        return graph.rewrite(step, by=self.name, stage=Stage.PACKED)


@dataclass(frozen=True)
class _Prices:
    encode: float
    product: float
    hoist: float
    hoisted: float
    giant: float
    rotate: float

    def seconds(self, counts: StepCounts) -> float:
        return (
            counts.products * (self.encode + self.product)
            + (counts.sources * self.hoist if counts.babies else 0.0)
            + counts.babies * self.hoisted
            + counts.giants * self.giant
            + counts.folds * self.rotate
        )


def _prices(context: PassContext) -> _Prices:
    """Prices half-way down the chain: levels are not known yet, and ratios change little with them."""
    parameters = context.need_parameters()
    if context.costs is None:  # The ratios of ring 2^14 at 8 limbs.
        return _Prices(2.0, 0.5, 6.0, 7.0, 12.0, 14.0)
    level = max(1, parameters.depth // 2)

    def cost(primitive: str) -> float:
        assert context.costs is not None
        return predicted_seconds(context.costs, primitive, parameters, level, context.threads)

    return _Prices(
        cost("encode"),
        cost("multiply_plain") + cost("add"),
        cost("hoist"),
        cost("hoisted_rotate"),
        cost("hoist") + cost("ext_rotate") + cost("ext_add"),
        cost("rotate"),
    )


def _cheapest(linear: LinearMap, operand: TensorLayout, result: TensorLayout, prices: _Prices) -> Diagonals:
    best: tuple[float, Diagonals] | None = None
    for modulus in modulus_choices(operand, result):
        entries = place(linear, operand, result, modulus)
        folds = (operand.period // modulus).bit_length() - 1
        for baby in baby_choices(operand, modulus):
            seconds = prices.seconds(count_steps(entries, baby, folds))
            if best is None or seconds < best[0]:
                best = (seconds, Diagonals(modulus, baby))
    assert best is not None
    return best[1]
