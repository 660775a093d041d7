"""Choose how each linear op is evaluated, and which operands get shifted copies, by predicted time."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.backends.cost import predicted_seconds
from olac.backends.recorder import RecorderEvaluator
from olac.ir.graph import Diagonals, Graph, GraphBuilder, Node
from olac.ir.layout import TensorLayout
from olac.ir.ops import Input, LinearOp, Polynomial
from olac.ir.types import Stage
from olac.kernels.execute import build_kernel
from olac.kernels.linear import (
    Distinct,
    StepCounts,
    baby_choices,
    can_shift,
    count,
    fold_steps,
    modulus_choices,
    place,
    shift_of,
)
from olac.passes.base import Pass, PassContext

COPIES = ("auto", "plain", "shifted")
MOST_SHIFTS = 32
"""Distinct copies that are tried; each is a rotation and a few products in the activation."""

RATIOS = {
    "encode": 2.0,
    "multiply_plain": 0.3,
    "multiply_no_relin": 0.6,
    "add": 0.2,
    "normalize": 2.0,
    "hoist": 6.0,
    "hoisted_rotate": 7.0,
    "ext_rotate": 6.0,
    "rotate": 14.0,
    "multiply": 14.0,
    "relinearize": 13.0,
}
"""Prices without a table: ring 2^14 at 8 limbs; what is missing costs little."""


@dataclass(frozen=True)
class ChooseLowerings(Pass):
    """Given: a linear op with layouts.  Result: the same with the modulus and baby step of least predicted time.

    Given: act = polynomial(t); conv(act); add(act, ...).  Result: act_shifted = polynomial(t), the same with shifted
    copies; conv(act_shifted); add(act, ...). Where only linear ops read the value, act itself gets shifted copies, and so
    do inputs, which the client packs.

    Attributes:
        copies: "auto" shifts where that is predicted to be faster, "shifted" wherever it can be, "plain" nowhere.
    """

    copies: str = "auto"
    name: ClassVar[str] = "choose_lowerings"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.PACKED

    def __post_init__(self) -> None:
        if self.copies not in COPIES:
            raise ValueError(f"copies {self.copies!r} is not one of {', '.join(COPIES)}")

    def run(self, graph: Graph, context: PassContext) -> Graph:
        choice = _Chooser(graph, context)
        lowerings = {node.id: choice.lowering(node, 0) for node in graph.nodes if isinstance(node.op, LinearOp)}
        shifts: dict[str, _Shift] = {}
        if self.copies != "plain":
            for node in graph.nodes:
                shift = choice.shift(node, always=self.copies == "shifted")
                if shift is not None:
                    shifts[node.id] = shift
                    lowerings.update({reader: choice.lowering(graph[reader], shift.step) for reader in shift.readers})
        taken = {node.id for node in graph.nodes}
        twins: dict[str, str] = {}
        source = {reader: value for value, shift in shifts.items() for reader in shift.readers}

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if node.id in lowerings:
                operand = twins[source[node.id]] if node.id in source else inputs[0]
                return builder.keep(node, (operand,), lowering=lowerings[node.id][1])
            if node.id not in shifts:
                return None
            shift, layout = shifts[node.id], node.type.layout
            assert layout is not None
            kind = replace(node.type, layout=layout.with_step(shift.step))
            if not shift.twin:
                twins[node.id] = builder.keep(node, inputs, type=kind)
                return twins[node.id]
            name = f"{node.id}_shifted"
            while name in taken:
                name += "_"
            taken.add(name)
            twins[node.id] = builder.add(node.op, inputs, name=name, origin=node.origin, type=kind)
            return None

        return graph.rewrite(step, by=self.name, stage=Stage.PACKED)


@dataclass(frozen=True)
class _Shift:
    """A value of which these linear ops read shifted copies; `twin` where others read plain ones beside."""

    step: int
    readers: tuple[str, ...]
    twin: bool


class _Chooser:
    """Predicted seconds of a graph's nodes, with the operand's copies shifted by some step (0: plain)."""

    def __init__(self, graph: Graph, context: PassContext) -> None:
        self._graph, self._context = graph, context
        self._users = graph.users()
        self._distinct: dict[tuple[str, int], Distinct] = {}
        self._lowerings: dict[tuple[str, int], tuple[float, Diagonals]] = {}

    @functools.cache  # noqa: B019 (a chooser lives as long as one run of the pass)
    def price(self, primitive: str) -> float:
        """Half-way down the chain: levels are not known yet, and ratios change little with them."""
        context = self._context
        if context.costs is None:
            return RATIOS.get(primitive, 0.2)
        parameters = context.need_parameters()
        level = max(1, parameters.depth // 2)
        return predicted_seconds(context.costs, primitive, parameters, level, context.threads)

    def lowering(self, node: Node, step: int) -> tuple[float, Diagonals]:
        """The cheapest lowering of a linear op and its seconds."""
        key = (node.id, step)
        if key not in self._lowerings:
            plain, result = self._layout(node.inputs[0]), self._layout(node.id)
            operand = plain.with_step(step)
            self._lowerings[key] = min(
                (
                    (self._seconds(count(*distinct, baby, len(fold_steps(operand, modulus)))), Diagonals(modulus, baby))
                    for modulus in modulus_choices(plain, result)
                    for distinct in (self._products(node, modulus, operand),)
                    for baby in baby_choices(plain, modulus)
                ),
                key=lambda choice: choice[0],
            )
        return self._lowerings[key]

    def shift(self, node: Node, always: bool) -> _Shift | None:
        """Whether and how to shift the copies of a node's result."""
        users = self._users[node.id]
        readers = [user for user in users if isinstance(user.op, LinearOp) and can_shift(*self._layouts(user))]
        plain_too = len(readers) < len(users) or node.id in self._graph.outputs
        if not readers or not isinstance(node.op, Input | Polynomial) or (plain_too and isinstance(node.op, Input)):
            return None
        layout = self._layout(node.id)
        plain = self._activation(node, 1)
        best, least = None, float("inf") if always else plain + sum(self.lowering(user, 0)[0] for user in readers)
        for step in _steps(layout):
            gains = {user.id: self.lowering(user, 0)[0] - self.lowering(user, step)[0] for user in readers}
            total = sum(self.lowering(user, step)[0] for user in readers)
            made = self._activation(node, layout.with_step(step).distinct_copies)
            choices = [(made + total + plain_too * plain, tuple(gains), plain_too)]
            some = tuple(user for user, gain in gains.items() if gain > 0)
            if not always and not isinstance(node.op, Input) and 0 < len(some) < len(gains):
                kept = sum(max(0.0, -gain) for gain in gains.values())
                choices.append((made + total - kept + plain, some, True))
            for seconds, chosen, twin in choices:
                if seconds < least:
                    best, least = _Shift(step, chosen, twin), seconds
        return best

    def _layout(self, node_id: str) -> TensorLayout:
        layout = self._graph[node_id].type.layout
        assert layout is not None
        return layout

    def _layouts(self, node: Node) -> tuple[TensorLayout, TensorLayout]:
        return self._layout(node.inputs[0]), self._layout(node.id)

    def _products(self, node: Node, modulus: int, operand: TensorLayout) -> Distinct:
        """What distinguishes products; those of shifted copies follow from the diagonals."""
        key = (node.id, modulus)
        if key not in self._distinct:
            assert isinstance(node.op, LinearOp)
            shape = self._graph[node.inputs[0]].type.shape
            linear = node.op.linear_map(shape, self._graph.constants)
            self._distinct[key] = place(linear, *self._layouts(node), modulus).distinct
        target, source, diagonal = self._distinct[key]
        if not operand.step:
            return target, source, diagonal
        diagonal = np.unique(diagonal - operand.step * shift_of(diagonal, modulus, operand))
        return np.zeros_like(diagonal), np.zeros_like(diagonal), diagonal

    def _seconds(self, counts: StepCounts) -> float:
        giant = self.price("hoist") + self.price("ext_rotate") + self.price("ext_add")
        return (
            counts.products * (self.price("encode") + self.price("multiply_plain") + self.price("add"))
            + (counts.sources * self.price("hoist") if counts.babies else 0.0)
            + counts.babies * self.price("hoisted_rotate")
            + counts.giants * giant
            + counts.folds * self.price("rotate")
        )

    @functools.cache  # noqa: B019
    def _activation_of(self, node_id: str, copies: int) -> float:
        node, layout = self._graph[node_id], self._layout(node_id)
        step = layout.period // copies if copies > 1 else 0
        made = replace(node, type=replace(node.type, layout=layout.with_step(step)))
        recorder = RecorderEvaluator(self._context.need_parameters())
        fresh = (recorder.fresh(recorder.parameters.depth),) * layout.ciphertexts
        build_kernel(self._graph, made).run(recorder, [fresh])
        return sum(self.price(event.primitive) for event in recorder.events)

    def _activation(self, node: Node, copies: int) -> float:
        """A polynomial with so many distinct copies; the client packs inputs for nothing."""
        return 0.0 if isinstance(node.op, Input) else self._activation_of(node.id, copies)


def _steps(layout: TensorLayout) -> Iterable[int]:
    """Steps worth trying, largest first: fewer distinct copies among equals."""
    step = layout.period // 2
    while step >= 1 and layout.with_step(step).distinct_copies <= MOST_SHIFTS:
        yield step
        step //= 2
