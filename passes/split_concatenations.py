"""Apply linear ops to the parts of a concatenation, so that the concatenation costs no level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.analysis.levels import required_levels
from olac.calibration.statistics import Calibration
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Add, Affine, Array, Conv2d, Gather, Linear, LinearOp, Pad, Slice, SparseLinear
from olac.ir.types import Range, Stage
from olac.passes.base import Pass, PassContext
from olac.system.arrays import Index

MOST_PARTS = 8
"""Most parts that a convolution or a linear layer is split for: each part takes rotations of its own."""
MOST_EACH = 4
"""Most entries, for each element of the result, of a matrix of listed entries that is split."""
MOVES = (Pad, Slice, Gather)
"""Ops that only move elements: any number of them are composed to one."""
IMAGES = 4
"""Images that tell how large summands are, compared with their sum."""
PART, SUMMAND, SUM = ".part", ".summand", ".sum"
"""Ends of the names of new nodes; names of lifted nodes never have them."""


@dataclass(frozen=True)
class SplitConcatenations(Pass):
    """Given: %p = pad(%x); %q = pad(%y); %c = add(%p, %q); %z = conv2d(%c) W, b.
    Result: %p = pad(%x); %q = pad(%y); %u = conv2d(%p) W, b; %v = conv2d(%q) W; %z = add(%u, %v).

    A concatenation is a sum of parts with zeros around them, and the pads take a level. A linear op of the sum is the
    sum of linear ops of the parts, and there each pad is composed with its op (see `ComposeLinear`, which follows): a
    convolution of a part has the part's channels of the weight, and no level is left for the concatenation.

    This is done where a concatenation lies on a longest path of the graph, for its readers on that path that take no
    more time for parts than for the whole: convolutions without groups, linear layers, and ops that move or weigh
    elements. Other readers keep the concatenation. The graph stays as it is if its depth would.

    A summand may be larger than the sum. Calibration has no range for it, so its size is measured on some images.
    """

    name: ClassVar[str] = "split_concatenations"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        result, like = graph, dict[str, str]()
        while found := _Paths(result).splits():
            result = _split(result, found, like, self.name)
        if result is graph or _Paths(result).depth >= _Paths(graph).depth:
            return graph
        return _bounded(graph, result, like, context.calibration, self.name)


class _Paths:
    """The longest paths of a graph, with the levels that will be left when linear ops are composed."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._users, self._alone = graph.users(), graph.read_once()
        self._waiting: dict[
            str, bool
        ] = {}  # ops that the next op takes in, and whether all they do is to move elements
        self._levels = {node.id: self._left(node) for node in graph.nodes}
        self._below = required_levels(graph, levels=lambda node: self._levels[node.id])
        self._above: dict[str, int] = {}
        for node in graph.nodes:
            self._above[node.id] = self._levels[node.id] + max((self._above[i] for i in node.inputs), default=0)
        self.depth = max(self._above[output] for output in graph.outputs)

    def _left(self, node: Node) -> int:
        """The levels of a node, none for an op that will be composed with the one before or after it."""
        own = node.levels(self._graph.constants)
        if not isinstance(node.op, LinearOp) or not node.op.structural:
            return own
        before = _source(self._graph, node.inputs[0])
        alone = isinstance(self._graph[before].op, LinearOp) and self._read_once(node.inputs[0], before)
        if alone and before not in self._waiting:
            return 0  # composed with the op before
        if alone and not (self._waiting[before] and isinstance(node.op, MOVES)):
            return own  # with the op before it is an entry for each element, and waits for no other
        if not self._read_by_linear(node.id):
            return own
        self._waiting[node.id] = isinstance(node.op, MOVES)
        return 0

    def _read_by_linear(self, value: str) -> bool:
        while value in self._alone:
            (user,) = self._users[value]
            if not user.op.same_ciphertexts:
                return isinstance(user.op, LinearOp)
            value = user.id
        return False

    def _read_once(self, value: str, source: str) -> bool:
        """Whether a value and those that it has the ciphertexts of, up to a source, have one reader each."""
        while value != source and value in self._alone:
            value = self._graph[value].inputs[0]
        return value == source and value in self._alone

    def splits(self) -> dict[str, list[str]]:
        """By reader the parts of the concatenations to split, those of one reader in order."""
        return {node.id: parts for node in self._graph.nodes if (parts := self._parts(node))}

    def _parts(self, reader: Node) -> list[str]:
        if not isinstance(reader.op, LinearOp):
            return []
        parts = []
        for part in _summands(self._graph, _source(self._graph, reader.inputs[0])):
            op = self._graph[part].op
            if not isinstance(op, LinearOp) or not op.structural:
                return []
            parts.append(part)
        longest = max((self._above[part] for part in parts if self._levels[part]), default=-1)
        on_path = longest + self._levels[reader.id] + self._below[reader.id] == self.depth
        if len(parts) < 2 or longest < 0 or not on_path or not _splits(self._graph, reader, len(parts)):
            return []
        return [] if any(_taken(self._graph, part) is None for part in parts) else parts


def _source(graph: Graph, value: str) -> str:
    """The value whose ciphertexts a value has under another shape."""
    while graph[value].op.same_ciphertexts:
        (value,) = graph[value].inputs
    return value


def _summands(graph: Graph, value: str) -> Iterator[str]:
    """The values that a value is the sum of, in order; itself if it is no sum."""
    node = graph[value]
    if not isinstance(node.op, Add):
        yield value
        return
    for operand in node.inputs:
        yield from _summands(graph, operand)


def _taken(graph: Graph, value: str) -> Index | None:
    """For each element of a value the element of its operand that it is, if its op only moves elements."""
    node = graph[value]
    if not isinstance(node.op, LinearOp):
        return None
    return node.op.taken(graph[node.inputs[0]].type.shape, graph.constants)


def _splits(graph: Graph, reader: Node, parts: int) -> bool:
    """Whether an op takes no more time for the parts of its operand than for the whole."""
    op, shape = reader.linear, graph[reader.inputs[0]].type.shape
    if isinstance(op, Affine) or op.taken(shape, graph.constants) is not None:
        return True
    if isinstance(op, SparseLinear):
        return len(graph.constants[op.values]) <= MOST_EACH * reader.type.size
    return parts <= MOST_PARTS and (isinstance(op, Linear) or (isinstance(op, Conv2d) and op.groups == 1))


def _split(graph: Graph, found: Mapping[str, list[str]], like: dict[str, str], by: str) -> Graph:
    """The graph with these readers split. `like` gets, for each new value, the one that it is a part of."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if node.id not in found:
            return None
        made: list[str] = []
        parts = _parts_read(graph, node, found[node.id])
        for part in parts:
            operand = _copied(graph, builder, part, node.id, like)
            operand = _reshaped(graph, builder, node, operand, like)
            name = node.id if len(parts) == 1 else f"{node.id}{SUMMAND}"
            op = _without_shift(builder, node) if made else node.op
            made.append(builder.add(op, [operand], name=name, origin=node.origin, type=node.type))
        total = made[0]
        for number, one in enumerate(made[1:], 2):
            name = node.id if number == len(made) else f"{node.id}{SUM}"
            total = builder.add(Add(), [total, one], name=name, origin=node.origin, type=node.type)
            like[total] = node.id
        like.update((one, node.id) for one in made)
        del like[node.id]
        return total

    return graph.rewrite(step, by=by)


def _copied(graph: Graph, builder: GraphBuilder, value: str, reader: str, like: dict[str, str]) -> str:
    """A copy of a value, and of all before it that only moves elements, for one reader: so that they are composed."""
    node = graph[value]
    operand = node.inputs[0]
    if _taken(graph, operand) is not None:
        operand = _copied(graph, builder, operand, reader, like)
    made = builder.add(node.op, [operand], name=f"{reader}{PART}", origin=node.origin, type=node.type)
    like[made] = value
    return made


def _reshaped(graph: Graph, builder: GraphBuilder, reader: Node, value: str, like: dict[str, str]) -> str:
    """A part in the shapes that the concatenation has on its way to the reader."""
    shapes, at = [], reader.inputs[0]
    while graph[at].op.same_ciphertexts:
        shapes.append(graph[at])
        (at,) = graph[at].inputs
    for node in reversed(shapes):
        value = builder.add(node.op, [value], name=f"{reader.id}{PART}", origin=node.origin, type=node.type)
        like[value] = node.id
    return value


def _parts_read(graph: Graph, reader: Node, parts: list[str]) -> list[str]:
    """The parts of which the reader reads something; one at least."""
    wanted = reader.linear.taken(graph[reader.inputs[0]].type.shape, graph.constants)
    if wanted is None:
        return parts
    places = wanted[wanted >= 0]
    read = [part for part in parts if (taken := _taken(graph, part)) is not None and np.any(taken[places] >= 0)]
    return read or parts[:1]


def _without_shift(builder: GraphBuilder, node: Node) -> LinearOp:
    """M x for an op M x + b."""
    op = node.linear
    if isinstance(op, Conv2d | Linear):
        return replace(op, bias=None)
    if isinstance(op, Affine):
        return replace(op, shift=builder.constant("zero", np.zeros(())))
    if isinstance(op, SparseLinear):
        return replace(op, bias=builder.constant(f"{node.id}.bias.none", np.zeros(node.type.size)))
    return op  # it moves elements, and has no b


def _bounded(before: Graph, graph: Graph, like: Mapping[str, str], calibration: Calibration | None, by: str) -> Graph:
    """The graph with ranges for its new values: that of what they are parts of, times how much larger they are."""
    images = () if calibration is None else calibration.sample if len(calibration.sample) else calibration.held_out
    if calibration is None or not len(images):
        return graph
    known: dict[str, float] = {}
    found: dict[str, float] = {}
    for one, sizes in ((before, known), (graph, found)):

        def observe(node: Node, value: Array, sizes: dict[str, float] = sizes) -> None:
            sizes[node.id] = float(np.max(np.abs(value)))

        one.evaluate(np.asarray(images[:IMAGES]), observe)

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        whole = node.id
        while whole in like:
            whole = like[whole]
        bound = before[whole].type.bound or calibration.ranges.get(whole)
        if whole == node.id or bound is None:
            return None
        size = bound.magnitude * max(1.0, found[node.id] / known[whole] if known[whole] else 1.0)
        return builder.keep(node, inputs, type=replace(node.type, bound=Range(-size, size)))

    return graph.rewrite(step, by=by)
