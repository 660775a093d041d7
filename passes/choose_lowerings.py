"""Choose how each linear op is evaluated, and which operands get shifted copies, by predicted time."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from olac.analysis.levels import required_levels
from olac.backends.cost import predicted_seconds
from olac.backends.recorder import RecorderEvaluator
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import LOWERINGS, Diagonals, Lowering
from olac.ir.ops import Add, Input, LinearOp, Op, Reshape
from olac.ir.types import Stage
from olac.kernels.execute import build_kernel
from olac.kernels.linear import (
    Distinct,
    StepCounts,
    baby_choices,
    can_shift,
    count,
    distinct_numbers,
    fold_steps,
    modulus_choices,
    products_of,
)
from olac.kernels.patterns import diagonals_of, entries_key
from olac.kernels.record import record_kernel
from olac.passes.base import Pass, PassContext
from olac.system.choices import require_one_of

Copies = Literal["auto", "plain", "shifted"]
Halving = Literal["auto", "never", "always"]
Convolutions = Literal["auto", "diagonals", "multiplexed"] | str
"""A string is a kind of lowering that was registered from outside."""
HALVED_BY = 2
"""Steps of the imaginary parts that are tried with all baby steps: those with the fewest products."""
AUTO = "auto"
MOST_SHIFTS = 32
"""Most distinct copies that are tried; each takes a rotation and a few products in the activation."""

SWEEPS = 2
"""All choices are made a second time, because the first ones do not know the rotation steps of later ones."""

RATIOS = {
    "encode": 2.0,
    "multiply_plain": 0.3,
    "multiply_no_relin": 0.6,
    "normalize": 2.0,
    "hoist": 6.0,
    "hoisted_rotate": 7.0,
    "ext_rotate": 5.8,
    "rotate": 14.0,
    "multiply": 14.0,
    "relinearize": 14.0,
    "rotation_keygen": 28.0,
}
"""Relative prices without a table of costs, for ring 2^14 at 8 limbs; other primitives cost 0.2, as an addition."""


@dataclass(frozen=True)
class ChooseLowerings(Pass):
    """Given: a linear op with layouts.  Result: the same with the modulus and baby step of least predicted time.

    Given: act = polynomial(t); conv(act); add(act, ...).  Result: act_shifted = polynomial(t), the same with shifted
    copies; conv(act_shifted); add(act, ...). If only linear ops read the value, act itself gets shifted copies, and so
    do inputs, which the client packs. The price of a rotation step that nothing else takes includes making its key.

    Given: an op that another kind of lowering can compute between its layouts (`Lowering.choices`).  Result: the same
    with a lowering of that kind, if convolutions=kind asks for it; the op then reads plain copies. With "auto", if the
    kind is automatic and predicted to be faster than diagonals.

    Attributes:
        copies: "auto" shifts copies if that is predicted to be faster, "shifted" if it is possible, "plain" never.
        halving: "auto" uses complex halving (see `olac.kernels.linear`) if that is predicted to be faster, "always" if
            there are diagonals to pair, "never" never. Ops after the last activation never use it: a client detects
            wrong results (such as overflows) by their imaginary parts, which halving removes.
        convolutions: a kind of lowering for all ops that it can compute, or "auto".
    """

    copies: Copies = "auto"
    halving: Halving = "auto"
    convolutions: Convolutions = "auto"
    name: ClassVar[str] = "choose_lowerings"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.PACKED

    def __post_init__(self) -> None:
        require_one_of("copies", self.copies, get_args(Copies))
        require_one_of("halving", self.halving, get_args(Halving))
        require_one_of("convolutions", self.convolutions, kinds())

    def run(self, graph: Graph, context: PassContext) -> Graph:
        chooser = _Chooser(graph, context, self.copies, self.halving, self.convolutions)
        choices = chooser.choices()
        lowerings = {name: candidate.lowering for name, candidate in chooser.given.items()}
        lowerings |= {reader: lowering for choice in choices.values() for reader, lowering in choice.lowerings.items()}
        shifted = {reader for choice in choices.values() for reader in choice.shifted}
        roots = _roots(graph)
        made: dict[str, str] = {}

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if node.id in lowerings:
                operands = (made[node.inputs[0]],) if node.id in shifted else inputs
                return builder.keep(node, operands, lowering=lowerings[node.id])
            root = roots[node.id]
            if root not in choices or not choices[root].shifted:
                return None
            kind = replace(node.type, layout=node.layout.with_step(choices[root].step))
            if not choices[root].twin:
                made[node.id] = builder.keep(node, inputs, type=kind)
                return made[node.id]
            operands, name = (
                inputs if root == node.id else (made[node.inputs[0]],),
                graph.free_name(f"{node.id}_shifted"),
            )
            made[node.id] = builder.add(node.op, operands, name=name, origin=node.origin, type=kind)
            return None

        return graph.rewrite(step, by=self.name, stage=Stage.PACKED)


def kinds() -> tuple[str, ...]:
    """The values that `convolutions` may have."""
    return (AUTO, *LOWERINGS)


def considered(convolutions: str) -> list[type[Lowering]]:
    """The kinds of lowerings other than diagonals that an op may get."""
    if convolutions == AUTO:
        return [one for one in LOWERINGS.values() if one.automatic and one is not Diagonals]
    return [one for kind, one in LOWERINGS.items() if kind == convolutions and one is not Diagonals]


@dataclass(frozen=True)
class _Candidate:
    """A lowering, its seconds, and the rotation steps that it takes."""

    seconds: float
    lowering: Lowering
    steps: frozenset[int]


@dataclass(frozen=True)
class _Choice:
    """The lowerings of the linear ops that read a value, or of a single linear op.

    The ops in `shifted` read copies that are shifted by `step`. With `twin` there is a second value with plain copies.
    """

    seconds: float
    steps: frozenset[int]
    lowerings: Mapping[str, Lowering]
    shifted: tuple[str, ...] = ()
    step: int = 0
    twin: bool = False


def _roots(graph: Graph) -> dict[str, str]:
    """For each node the value that it is a reshape of, or itself."""
    roots: dict[str, str] = {}
    for node in graph.nodes:
        roots[node.id] = roots[node.inputs[0]] if node.op.same_ciphertexts else node.id
    return roots


def _after_activations(graph: Graph) -> set[str]:
    """The outputs, and the values from which only linear ops, sums and reshapes lead to an output."""
    found = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.id in found and isinstance(node.op, LinearOp | Add | Reshape):
            found.update(node.inputs)
    return found


def lowered_depth(graph: Graph, passes: Sequence[Pass]) -> int:
    """The most levels that a fresh input can need after these passes have lowered a graph at stage POLYNOMIAL.

    Parameters are chosen by it before there are layouts. So an op for which a lowering with extra levels is considered
    counts with these, even if its layouts will rule the lowering out.
    """
    kinds = {kind for one in passes if isinstance(one, ChooseLowerings) for kind in considered(one.convolutions)}

    def extra(op: Op) -> int:
        return max((kind.extra_levels for kind in kinds if kind.may_lower(op)), default=0)

    levels = required_levels(graph, levels=lambda node: node.levels(graph.constants) + extra(node.op))
    return levels[graph.inputs[0].id]


class _Chooser:
    """Chooses by predicted seconds of a graph's nodes, for operands whose copies are shifted by some step (0: plain).

    `given` has the nodes whose lowering the options prescribe.
    """

    def __init__(
        self, graph: Graph, context: PassContext, copies: Copies, halving: Halving, convolutions: Convolutions
    ) -> None:
        self._graph, self._context = graph, context
        self._copies, self._halving = copies, halving
        parameters = context.need_parameters()
        self._conjugation = parameters.conjugation_step
        self._kinds = considered(convolutions)
        self._prices: dict[str, float] = {}
        self._distinct: dict[tuple[str, int], Distinct] = {}
        self._candidates: dict[tuple[str, int], list[_Candidate]] = {}
        self._alike: dict[Hashable, list[_Candidate]] = {}
        self._polynomials: dict[str, float] = {}
        self.given: dict[str, _Candidate] = {}
        if convolutions != AUTO:
            found = ((node.id, list(self._recorded(node, 0))) for node in graph.nodes)
            self.given = {name: min(made, key=lambda one: one.seconds) for name, made in found if made}
        bootstraps = context.engine.bootstraps(parameters)
        self._free = bootstraps.steps.union(bootstraps.special_steps, *(one.steps for one in self.given.values()))
        """Steps that have keys in any case."""
        self._users: dict[str, list[Node]] = {node.id: [] for node in graph.nodes}
        """The nodes that read a value or a reshape of it."""
        roots = _roots(graph)
        self._outputs = {roots[output] for output in graph.outputs}
        self._last = _after_activations(graph)
        for node in graph.nodes:
            for operand in node.inputs:
                if not node.op.same_ciphertexts:
                    self._users[roots[operand]].append(node)

    def choices(self) -> dict[str, _Choice]:
        """The choice for each value whose copies may be shifted, and for each linear op that reads another value."""
        readers = {node.id: self._readers(node) for node in self._graph.nodes}
        together = {reader.id for group in readers.values() for reader in group}
        chosen: dict[str, _Choice] = {}
        for _ in range(SWEEPS):
            for node in self._graph.nodes:
                lone = isinstance(node.op, LinearOp) and node.id not in together and node.id not in self.given
                if not readers[node.id] and not lone:
                    continue
                known = self._free.union(*(choice.steps for i, choice in chosen.items() if i != node.id))
                options = [self._choice([(node, 0)], known)] if lone else self._options(node, readers[node.id], known)
                chosen[node.id] = min(options, key=lambda choice: self._total(choice.seconds, choice.steps - known))
        return chosen

    def _readers(self, node: Node) -> list[Node]:
        """The linear ops that may read shifted copies of a value."""
        if self._copies == "plain" or not node.op.shifts_copies:
            return []
        linear = [u for u in self._users[node.id] if isinstance(u.op, LinearOp) and u.id not in self.given]
        readers = [u for u in linear if can_shift(node.layout, u.layout)]
        return [] if isinstance(node.op, Input) and self._read_plain(node, readers) else readers

    def _read_plain(self, node: Node, readers: list[Node]) -> bool:
        return len(readers) < len(self._users[node.id]) or node.id in self._outputs

    def _options(self, node: Node, readers: list[Node], known: frozenset[int]) -> Iterator[_Choice]:
        """Plain copies; and for each step shifted copies, for all readers or for those that become faster."""
        plain_too = self._read_plain(node, readers)
        plain = self._made(node)
        if self._copies == "auto":
            yield self._choice([(reader, 0) for reader in readers], known, plain)
        for step in _steps(node.layout):
            copies = range(1, node.layout.with_step(step).distinct_copies)
            shifts = frozenset(copy * step * node.layout.batch for copy in copies)
            shifts = frozenset() if isinstance(node.op, Input) else shifts
            parts = [(reader, step) for reader in readers]
            choice = self._choice(parts, known, plain + plain * plain_too, shifts)
            yield replace(choice, twin=plain_too)
            some = [
                (reader, step if self._best(reader, step, known).seconds < self._best(reader, 0, known).seconds else 0)
                for reader in readers
            ]
            mixed = len({taken for _, taken in some}) == 2
            if self._copies == "auto" and mixed and not isinstance(node.op, Input):
                yield replace(self._choice(some, known, plain + plain, shifts), twin=True)

    def _choice(
        self,
        parts: Iterable[tuple[Node, int]],
        known: frozenset[int],
        seconds: float = 0.0,
        steps: frozenset[int] = frozenset(),
    ) -> _Choice:
        """The best lowerings of linear ops, each with the step of its operand.

        `seconds` and `steps` are those of the nodes that make the operands.
        """
        lowerings, shifted, shift = {}, [], 0
        for reader, step in parts:
            best = self._best(reader, step, known | steps)
            lowerings[reader.id] = best.lowering
            seconds, steps, shift = seconds + best.seconds, steps | best.steps, max(shift, step)
            if step:
                shifted.append(reader.id)
        return _Choice(seconds, steps, lowerings, tuple(shifted), shift)

    def _best(self, node: Node, step: int, known: frozenset[int]) -> _Candidate:
        key = (node.id, step)
        if key not in self._candidates:
            self._candidates[key] = [*self._by_diagonals(node, step), *self._recorded(node, step)]
        return min(self._candidates[key], key=lambda made: self._total(made.seconds, made.steps - known))

    def _by_diagonals(self, node: Node, step: int) -> list[_Candidate]:
        """The choices of diagonals; they are the same for layers that are alike."""
        before, result = self._graph[node.inputs[0]], node.layout
        plain, operand = before.layout, before.layout.with_step(step)
        entries = entries_key(node.linear, before.type.shape, self._graph.constants)
        key = (entries, operand, result, node.id in self._last)
        if key in self._alike:
            return self._alike[key]
        found = self._alike[key] = []
        for modulus in modulus_choices(plain, result):
            whole, folds = self._products(node, modulus, operand), fold_steps(operand, modulus)
            for imaginary, distinct in self._halved(node, whole, modulus):
                halved = {imaginary, self._conjugation} if imaginary else set()
                for baby in baby_choices(plain, modulus):
                    counts = count(*distinct, baby, len(folds))
                    seconds = self._seconds(counts) + self._halving_seconds(counts) * bool(imaginary)
                    lowering = Diagonals(modulus, baby, imaginary)
                    steps = {step * result.batch for step in counts.steps.union(folds)}
                    found.append(_Candidate(seconds, lowering, frozenset(steps | halved)))
        return found

    def _recorded(self, node: Node, step: int) -> Iterator[_Candidate]:
        """The choices of kinds other than diagonals that the chain has levels for, priced by runs of their kernels."""
        depth = self._context.need_parameters().depth
        for kind in self._kinds if len(node.inputs) == 1 else ():
            operand = self._graph[node.inputs[0]].layout.with_step(step)
            if node.levels(self._graph.constants) + kind.extra_levels <= depth:
                for lowering in kind.choices(node.op, operand, node.layout):
                    recorder = self._record(replace(node, lowering=lowering), operand)
                    yield _Candidate(self._sum(recorder), lowering, frozenset(recorder.rotations))

    def _record(self, node: Node, operand: TensorLayout) -> RecorderEvaluator:
        """A run of the kernel of a node on an operand of that layout."""
        before = self._graph[node.inputs[0]]
        laid_out = replace(before, type=replace(before.type, layout=operand))
        whole = Graph((laid_out, node), (node.id,), self._graph.constants, self._graph.stage)
        return record_kernel(build_kernel(whole, node), self._context.need_parameters(), [operand])

    def _sum(self, recorder: RecorderEvaluator) -> float:
        return sum(self._price(event.primitive) for event in recorder.events)

    def _halved(self, node: Node, whole: Distinct, modulus: int) -> Iterator[tuple[int, Distinct]]:
        """For each step of the imaginary parts that is tried (0: none), the step and the products that it leaves."""
        fewer: list[tuple[int, Distinct]] = []
        if self._halving != "never" and node.id not in self._last:
            target, source, diagonal = whole
            pairs = (target * (int(source.max(initial=0)) + 1) + source) * modulus
            for bit in range(modulus.bit_length() - 1):
                left = distinct_numbers(pairs + (diagonal & ~(1 << bit)))
                if len(left) < len(diagonal):
                    pair, rest = np.divmod(left, modulus)
                    fewer.append((1 << bit, (*np.divmod(pair, int(source.max(initial=0)) + 1), rest)))
        if self._halving != "always" or not fewer:
            yield 0, whole
        yield from sorted(fewer, key=lambda made: len(made[1][2]))[:HALVED_BY]

    def _products(self, node: Node, modulus: int, operand: TensorLayout) -> Distinct:
        """Target, source and diagonal of each product; with shifted copies they follow from those of plain ones."""
        key = (node.id, modulus)
        if key not in self._distinct:
            shape, plain = self._graph[node.inputs[0]].type.shape, operand.with_step(0)
            self._distinct[key] = diagonals_of(node.linear, shape, self._graph.constants, plain, node.layout, modulus)
        return products_of(self._distinct[key], operand, modulus)

    # Prices ----------------------------------------------------------------------------------------------------------

    def _total(self, seconds: float, new_steps: frozenset[int]) -> float:
        return seconds + len(new_steps) * self._price("rotation_keygen")

    def _seconds(self, counts: StepCounts) -> float:
        return (
            counts.products * (self._price("encode") + self._price("multiply_plain") + self._price("add"))
            + (counts.sources * self._price("hoist") if counts.babies else 0.0)
            + counts.babies * self._price("hoisted_rotate")
            + counts.giants * (self._price("hoist") + self._price("ext_rotate") + self._price("ext_add"))
            + counts.folds * self._price("rotate")
        )

    def _halving_seconds(self, counts: StepCounts) -> float:
        """Seconds for the operand's imaginary parts and the sum with the conjugate."""
        once = ("rotate", "encode", "multiply_plain", "add")
        return counts.sources * sum(map(self._price, once)) + self._price("rotate") + self._price("add")

    def _made(self, node: Node) -> float:
        """Seconds of a polynomial, without those for shifting copies; 0 for inputs, which the client packs."""
        if isinstance(node.op, Input):
            return 0.0
        if node.id not in self._polynomials:
            self._polynomials[node.id] = self._sum(self._record(node, self._graph[node.inputs[0]].layout))
        return self._polynomials[node.id]

    def _price(self, primitive: str) -> float:
        """The price half-way down the chain: levels are not known yet, and change ratios little."""
        if primitive not in self._prices:
            parameters, costs = self._context.need_parameters(), self._context.costs
            level = max(1, parameters.depth // 2)
            if primitive == "rotation_keygen":
                level = self._context.engine.key_level(parameters, level)
            self._prices[primitive] = (
                RATIOS.get(primitive, 0.2)
                if costs is None
                else predicted_seconds(costs, primitive, parameters, level, self._context.threads)
            )
        return self._prices[primitive]


def _steps(layout: TensorLayout) -> Iterator[int]:
    """The steps to try, the largest first: with equal prices the one with the fewest distinct copies is chosen."""
    step = layout.period // 2
    while step >= 1 and layout.with_step(step).distinct_copies <= MOST_SHIFTS:
        yield step
        step //= 2
