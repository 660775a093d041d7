"""Join the models of an ensemble: what each computes by itself becomes one op on the channels of all."""

from __future__ import annotations

import functools
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import (
    Add,
    Affine,
    Array,
    AveragePool,
    Conv2d,
    Linear,
    LinearMap,
    LinearOp,
    Multiply,
    Op,
    Pad,
    Polynomial,
    PolynomialProduct,
    Reshape,
    Slice,
    Square,
)
from olac.ir.ops.base import Shape, compact
from olac.ir.ops.nonlinear import rescaled
from olac.ir.types import Range, Stage, ValueType
from olac.passes.base import Pass, PassContext
from olac.passes.compose_linear import MOST_ENTRIES, sparse_linear
from olac.system.arrays import Index

MODELS = "models"
"""The name of the list that holds an ensemble's models, with which the paths of their nodes begin."""


MOST_GROWTH = 1e4
"""Polynomials of one value share a half width. If the widest range would let coefficients of another model grow by more
than this, the models are not joined."""


class _Different(Exception):
    """The models differ, or values are read in a way that can't be joined; the message says where."""


@dataclass(frozen=True)
class JoinModels(Pass):
    """Given: %a = conv2d(%x) V; %b = conv2d(%x) W; ...; %y = add(linear(%p) A, linear(%q) B).
    Result: %ab = conv2d(%x) of the rows of V and W in turns; ...; %y = linear(%pq) of the columns of A and B in turns.

    The channels of models of the same structure lie in one value, in turns: the first channel of each, the second of
    each, and so on. Two models whose values fill half of the slots take hardly more time than one, because each
    diagonal holds the weights of both. Their outputs must be linear ops that are summed, as in a mean of logits. If the
    models differ, or are read in another way, the graph stays as it is, and a note says why.
    """

    name: ClassVar[str] = "join_models"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        try:
            return _Joining(graph).joined()
        except _Different as why:
            context.notes.append(f"the models of the ensemble run one after the other, because {why}")
            return graph


class _Joining:
    """The nodes that do the same in each model, and what becomes of them."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._builder = GraphBuilder(graph.constants, by=JoinModels.name)
        models: dict[int, list[Node]] = defaultdict(list)
        for node in graph.nodes:
            if found := re.match(rf"{MODELS}\.(\d+)(\.|$)", node.origin.path):
                models[int(found[1])].append(node)
        if len(models) < 2:
            raise _Different("there is only one")
        parts = [models[number] for number in sorted(models)]
        if len({len(part) for part in parts}) > 1:
            raise _Different("they have different numbers of ops")
        self._count = len(parts)
        self._groups = list(zip(*parts, strict=True))
        self._place = {node.id: (i, k) for i, group in enumerate(self._groups) for k, node in enumerate(group)}
        self._made: dict[int | str, str] = {}
        """The new id of a group, by its number, and of every other node."""
        self._blocks: dict[int, int] = {}
        """By group: the elements of one model that lie together in its value, before those of the next model."""
        self._common: set[int] = set()
        """The groups whose value is the same for all models, because they only move elements of the input."""
        self._sums: dict[str, tuple[int, frozenset[int]]] = {}
        """For a sum of values of one group, and for these, the group and the models that are in it."""

    def joined(self) -> Graph:
        """The new graph; `_Different` if the models can't be joined."""
        users = self._graph.users()
        for node in self._graph.nodes:
            if node.id in self._place:
                number, model = self._place[node.id]
                self._sums[node.id] = number, frozenset([model])
                if model + 1 == self._count:
                    last = all(reader.id not in self._place for one in self._groups[number] for reader in users[one.id])
                    if not last:
                        self._made[number] = self._together(self._groups[number])
                continue
            if isinstance(node.op, Add) and self._summed(node, users):
                continue
            if any(i in self._sums for i in node.inputs):
                raise _Different(f"{node.id} reads a value of one model alone")
            self._made[node.id] = self._builder.keep(node, tuple(self._made[i] for i in node.inputs))
        if any(output not in self._made for output in self._graph.outputs):
            raise _Different("an output is that of one model alone")
        return self._builder.build(
            [self._made[output] for output in self._graph.outputs],
            self._graph.stage,
            [node.id for node in self._graph.inputs],
        )

    def _summed(self, node: Node, users: dict[str, list[Node]]) -> bool:
        """Take a sum of values of one group into account; if it is complete, it is one op. False for another sum."""
        left, right = (self._sums.get(i) for i in node.inputs)
        if left is None or right is None:
            return False
        (group, some), (other, more) = left, right
        if group != other or some & more or any(len(users[i]) > 1 for i in node.inputs):
            return False
        if len(some | more) < self._count:
            self._sums[node.id] = group, some | more
        else:
            self._made[node.id] = self._collapsed(node, self._groups[group])
        return True

    # One op for several ----------------------------------------------------------------------------------------------

    def _operands(self, group: Sequence[Node]) -> list[tuple[str, bool]]:
        """For each operand its new id, and whether all models read the same value."""
        found = []
        for ids in zip(*(node.inputs for node in group), strict=True):
            places = [self._place.get(i) for i in ids]
            if places == [None] * self._count and len(set(ids)) == 1:
                found.append((self._made[ids[0]], True))
            elif self._of_one_group(places):
                (number,) = {place[0] for place in places if place is not None}
                found.append((self._made[number], number in self._common))
            else:
                raise _Different(f"{group[0].id} and {group[-1].id} read values of different kinds")
        return found

    def _of_one_group(self, places: Sequence[tuple[int, int] | None]) -> bool:
        """Whether each model reads its own value of one group."""
        known = [place for place in places if place is not None]
        return [k for _, k in known] == list(range(self._count)) and len({i for i, _ in known}) == 1

    def _moves_alike(self, group: Sequence[Node]) -> bool:
        """Whether these ops only move or weigh elements, and all do the same."""
        first = group[0]
        structural = isinstance(first.op, Reshape) or (isinstance(first.op, LinearOp) and first.op.structural)
        return structural and all(
            _without_constants(node.op) == _without_constants(first.op)
            and all(
                np.array_equal(self._graph.constants[a], self._graph.constants[b])
                for a, b in zip(node.op.constant_names(), first.op.constant_names(), strict=True)
            )
            for node in group
        )

    def _together(self, group: Sequence[Node]) -> str:
        first, number = group[0], self._place[group[0].id][0]
        shape = first.type.shape
        if any(type(node.op) is not type(first.op) or node.type.shape != shape for node in group):
            raise _Different(f"{first.id} and {group[-1].id} are different ops")
        operands = self._operands(group)
        shared = [of_all for _, of_all in operands]
        if all(shared) and self._moves_alike(group):
            self._common.add(number)
            return self._builder.keep(first, tuple(i for i, _ in operands))
        if any(shared) and not isinstance(first.op, LinearOp):
            raise _Different(f"{first.id} and {group[-1].id} can't be one {first.op.name}")
        blocks = {self._blocks[self._place[i][0]] for i in first.inputs if i in self._place and not all(shared)}
        if len(blocks) > 1:
            raise _Different(f"the operands of {first.id} are in different orders")
        block = blocks.pop() if blocks else 0
        if isinstance(first.op, LinearOp):
            op, self._blocks[number] = self._linear_op(group, block)
        else:
            op, self._blocks[number] = self._other_op(group, block), block
        return self._builder.add(
            op,
            [i for i, _ in operands],
            name=first.id,
            origin=first.origin,
            type=ValueType((self._count * shape[0], *shape[1:]), bound=_union(group)),
        )

    # Orders: models take turns, a block of elements each -------------------------------------------------------------

    def _positions(self, model: int, size: int, block: int) -> Index:
        """Where the elements of one model are among those of all; without a block models have the same elements."""
        own = np.arange(size)
        return own if not block else own // block * (self._count * block) + model * block + own % block

    def _turns(self, arrays: Sequence[Array], block: int) -> Array:
        """Arrays whose first axes lie in these blocks."""
        made = np.empty((self._count * len(arrays[0]), *arrays[0].shape[1:]))
        for model, array in enumerate(arrays):
            made[self._positions(model, len(array), block)] = array
        return made

    def _channels(self, node: Node, shape: Shape, block: int) -> int:
        """Channels in a block; `_Different` if a block is no number of whole channels."""
        size = math.prod(shape[1:])
        if block % size:
            raise _Different(f"{node.id} reads a value whose channels are not together")
        return block // size

    # Ops -------------------------------------------------------------------------------------------------------------

    def _constants(self, group: Sequence[Node], field: str) -> list[Array]:
        """Those of each model that has one."""
        names = [getattr(node.op, field) for node in group]
        return [self._graph.constants[name] for name in names if name is not None]

    def _new(self, node: Node, field: str, value: Array) -> str:
        return self._builder.constant(f"{node.id}.{field}.joined", value)

    def _other_op(self, group: Sequence[Node], block: int) -> Op:
        """One op for ops that are not linear."""
        first = group[0]
        op, shape = first.op, first.type.shape
        if isinstance(op, Add | Multiply):
            return op
        if isinstance(op, Reshape):
            return Reshape((self._count * op.shape[0], *op.shape[1:]))
        channels = self._channels(first, shape, block)
        if isinstance(op, Square):
            shifts = [np.broadcast_to(c, shape[:1]) for c in self._constants(group, "shift")]
            return Square(self._new(first, "shift", self._turns(shifts, channels)))
        if isinstance(op, Polynomial | PolynomialProduct):
            ops = [node.op for node in group if isinstance(node.op, Polynomial | PolynomialProduct)]
            given = [self._graph.constants[one.coefficients] for one in ops]
            least, half = (choose(one.half_width for one in ops) for choose in (min, max))
            most = max(c.shape[1] for c in given)
            if _growth(half / least, most - 1) > MOST_GROWTH:
                raise _Different(f"the ranges of {first.id} and {group[-1].id} differ by too much")
            made = [rescaled(c, one.half_width, half, 1.0) for c, one in zip(given, ops, strict=True)]
            rows = [np.pad(np.broadcast_to(c, (shape[0], c.shape[1])), ((0, 0), (0, most - c.shape[1]))) for c in made]
            coefficients = self._new(first, "coefficients", self._turns(rows, channels))
            return replace(op, coefficients=coefficients, half_width=half)
        raise _Different(f"{first.id} and {group[-1].id} can't be one {op.name}")

    def _linear_op(self, group: Sequence[Node], block: int) -> tuple[Op, int]:
        """One linear op on operands in blocks, or on one that all read if that is 0; and the block of its result."""
        first = group[0]
        op, size = first.op, math.prod(first.type.shape[1:])
        operand = self._graph[first.inputs[0]].type.shape
        same = all(_without_constants(node.op) == _without_constants(op) for node in group)
        if same and isinstance(op, Conv2d | Linear):
            made = self._weighted(group, self._channels(first, operand, block))
            if made is not None:
                return made, size
        if same and block and not isinstance(op, Conv2d | Linear) and block % math.prod(operand[1:]) == 0:
            channels = block // math.prod(operand[1:])
            plain = self._plain(group, channels)
            if plain is not None:
                return plain, channels * size
        maps = self._maps(group)
        rows, columns = len(maps[0].bias), maps[0].columns_count
        whole = LinearMap(
            np.concatenate([self._positions(k, rows, size)[m.rows] for k, m in enumerate(maps)]),
            np.concatenate([self._positions(k, columns, block)[m.columns] for k, m in enumerate(maps)]),
            np.concatenate([m.values for m in maps]),
            self._turns([m.bias for m in maps], size),
            self._count * columns if block else columns,
        )
        shape = (self._count * first.type.shape[0], *first.type.shape[1:])
        return sparse_linear(self._builder, first.id, whole, shape), size

    def _weighted(self, group: Sequence[Node], block: int) -> Op | None:
        """One convolution or linear layer; its weights between different models are zeros.

        Channels of the models take turns. Then a diagonal of one model is one of all, and holds the weights of all.
        """
        first, weights = group[0], self._constants(group, "weight")
        groups = first.op.groups if isinstance(first.op, Conv2d) else 1
        if len({w.shape for w in weights}) > 1 or (groups > 1 and block > 1):
            return None
        rows, columns, *kernel = weights[0].shape
        whole = np.zeros((self._count * rows, self._count * columns if block else columns, *kernel))
        for model, weight in enumerate(weights):
            places = np.ix_(self._positions(model, rows, 1), self._positions(model, columns, block))
            whole[places] = weight
        biases = [np.zeros(rows) if b is None else self._graph.constants[b] for b in (one.op.bias for one in group)]  # type: ignore[attr-defined]
        bias = self._new(first, "bias", self._turns(biases, 1)) if self._constants(group, "bias") else None
        return replace(first.op, weight=self._new(first, "weight", whole), bias=bias)  # type: ignore[call-arg]

    def _plain(self, group: Sequence[Node], channels: int) -> Op | None:
        """An op of the same kind for operands of so many channels in a block; None if there is none."""
        first = group[0]
        op, count = first.op, self._count
        if isinstance(op, AveragePool):
            alike = all(
                np.array_equal(c, self._constants(group, field)[0])
                for field in op.constant_fields
                for c in self._constants(group, field)
            )
            return op if alike else None
        if isinstance(op, Affine):
            made = {
                field: compact(self._turns([np.broadcast_to(c, first.type.shape) for c in found], channels))
                for field, found in ((f, self._constants(group, f)) for f in op.constant_fields)
            }
            return Affine(*(self._new(first, field, made[field]) for field in ("scale", "shift")))
        all_of_them = self._graph[first.inputs[0]].type.shape[0]
        if isinstance(op, Slice) and op.slices[0] == (0, all_of_them, 1):
            return Slice(((0, count * all_of_them, 1), *op.slices[1:]))
        if isinstance(op, Pad) and op.amounts[0] == (0, 0):
            return op
        return None

    def _maps(self, group: Sequence[Node]) -> list[LinearMap]:
        """The matrix of each model."""
        maps = [node.linear.linear_map(self._graph[node.inputs[0]].type.shape, self._graph.constants) for node in group]
        named = f"the matrices of {group[0].id} and {group[-1].id}"
        if len({(len(m.bias), m.columns_count) for m in maps}) > 1:
            raise _Different(f"{named} have different shapes")
        if sum(len(m.values) for m in maps) > MOST_ENTRIES:
            raise _Different(f"{named} are large and have nothing in common")
        return maps

    def _collapsed(self, node: Node, group: Sequence[Node]) -> str:
        """The sum of the results of linear ops as one op."""
        first = group[0]
        if any(type(one.op) is not type(first.op) or not isinstance(one.op, LinearOp) for one in group):
            raise _Different(f"{first.id}, whose results are summed, is not linear")
        ((operand, shared),) = self._operands(group)
        if shared:
            raise _Different(f"{first.id} reads the same value in each model")
        block = self._blocks[self._place[first.inputs[0]][0]]
        weights = self._constants(group, "weight") if isinstance(first.op, Linear) else []
        op: Op
        if weights and len({w.shape for w in weights}) == 1:
            whole = np.zeros((len(weights[0]), self._count * weights[0].shape[1]))
            for model, weight in enumerate(weights):
                whole[:, self._positions(model, weight.shape[1], block)] = weight
            biases = self._constants(group, "bias")
            bias = self._new(first, "bias", np.sum(biases, axis=0)) if biases else None
            op = Linear(self._new(first, "weight", whole), bias)
        else:
            maps = self._maps(group)
            columns = maps[0].columns_count
            linear = LinearMap(
                np.concatenate([m.rows for m in maps]),
                np.concatenate([self._positions(k, columns, block)[m.columns] for k, m in enumerate(maps)]),
                np.concatenate([m.values for m in maps]),
                np.sum([m.bias for m in maps], axis=0),
                self._count * columns,
            )
            op = sparse_linear(self._builder, first.id, linear, node.type.shape)
        return self._builder.add(op, [operand], name=node.id, origin=node.origin, type=node.type)


def _growth(ratio: float, degree: int) -> float:
    """The largest value of a Chebyshev polynomial of that degree on a range that is wider by a ratio."""
    return math.cosh(degree * math.acosh(max(1.0, ratio)))


def _without_constants(op: Op) -> Op:
    return replace(op, **{field: "" for field in op.constant_fields if getattr(op, field) is not None})


def _union(group: Sequence[Node]) -> Range | None:
    bounds = [node.type.bound for node in group if node.type.bound is not None]
    return functools.reduce(Range.union, bounds) if len(bounds) == len(group) else None
