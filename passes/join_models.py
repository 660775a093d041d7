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
from olac.ir.ops.base import compact
from olac.ir.ops.nonlinear import rescaled
from olac.ir.types import Range, Stage, ValueType
from olac.passes.base import Pass, PassContext
from olac.passes.compose_linear import MOST_ENTRIES, sparse_linear

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
    Result: %ab = conv2d(%x) V over W; ...; %y = linear(%pq) A beside B.

    The values of models of the same structure lie beside each other in the channels of one value. Two models whose
    values fill half of the slots take hardly more time than one: each diagonal holds the weights of both. Their outputs
    must be linear ops that are summed, as in a mean of logits. If the models differ, or are read in another way, the
    graph stays as it is, and a note says why.
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
        first = group[0]
        shape = first.type.shape
        if any(type(node.op) is not type(first.op) or node.type.shape != shape for node in group):
            raise _Different(f"{first.id} and {group[-1].id} are different ops")
        operands = self._operands(group)
        shared = [of_all for _, of_all in operands]
        if all(shared) and self._moves_alike(group):
            self._common.add(self._place[first.id][0])
            return self._builder.keep(first, tuple(i for i, _ in operands))
        op = self._joined_op(group, all(shared))
        if op is None or (any(shared) and not isinstance(first.op, LinearOp)):
            raise _Different(f"{first.id} and {group[-1].id} can't be one {first.op.name}")
        return self._builder.add(
            op,
            [i for i, _ in operands],
            name=first.id,
            origin=first.origin,
            type=ValueType((self._count * shape[0], *shape[1:]), bound=_union(group)),
        )

    def _constants(self, group: Sequence[Node], field: str) -> list[Array | None]:
        names = [getattr(node.op, field) for node in group]
        return [None if name is None else self._graph.constants[name] for name in names]

    def _new(self, node: Node, field: str, value: Array) -> str:
        return self._builder.constant(f"{node.id}.{field}.joined", value)

    def _joined_op(self, group: Sequence[Node], shared: bool) -> Op | None:
        """One op for all, on operands beside each other or on one that all read; None if there is none."""
        first = group[0]
        op = first.op
        if isinstance(op, LinearOp):
            return self._plain(group, shared) or self._sparse(group, 0 if shared else None)
        if isinstance(op, Add | Multiply):
            return op
        if isinstance(op, Reshape):
            return Reshape((self._count * op.shape[0], *op.shape[1:]))
        channels = first.type.shape[0]
        if isinstance(op, Square):
            shifts = [np.broadcast_to(c, (channels,)) for c in self._constants(group, "shift") if c is not None]
            return Square(self._new(first, "shift", np.concatenate(shifts)))
        if isinstance(op, Polynomial | PolynomialProduct):
            ops = [node.op for node in group if isinstance(node.op, Polynomial | PolynomialProduct)]
            least, half = (choose(one.half_width for one in ops) for choose in (min, max))
            if (
                _growth(half / least, max(self._graph.constants[one.coefficients].shape[1] - 1 for one in ops))
                > MOST_GROWTH
            ):
                raise _Different(f"the ranges of {first.id} and {group[-1].id} differ by too much")
            made = [rescaled(self._graph.constants[one.coefficients], one.half_width, half, 1.0) for one in ops]
            most = max(c.shape[1] for c in made)
            rows = [np.pad(np.broadcast_to(c, (channels, c.shape[1])), ((0, 0), (0, most - c.shape[1]))) for c in made]
            return replace(op, coefficients=self._new(first, "coefficients", np.concatenate(rows)), half_width=half)
        return None

    def _plain(self, group: Sequence[Node], shared: bool) -> Op | None:
        """An op of the same kind; None if only its matrix can be joined."""
        first = group[0]
        op, count = first.op, self._count
        same = all(_without_constants(node.op) == _without_constants(op) for node in group)
        weights = (
            [w for w in self._constants(group, "weight") if w is not None] if isinstance(op, Conv2d | Linear) else []
        )
        if not same or len({w.shape for w in weights}) > 1:
            return None
        if isinstance(op, Conv2d) and (op.groups == 1 or not shared):
            groups = 1 if shared else count * op.groups
            weight = self._new(first, "weight", np.concatenate(weights))
            return replace(op, weight=weight, bias=self._bias(group, len(weights[0])), groups=groups)
        if isinstance(op, Linear):
            rows, columns = weights[0].shape
            whole = np.concatenate(weights) if shared else np.zeros((count * rows, count * columns))
            for k, weight_k in enumerate(weights if not shared else ()):
                whole[k * rows : (k + 1) * rows, k * columns : (k + 1) * columns] = weight_k
            return Linear(self._new(first, "weight", whole), self._bias(group, rows))
        if shared:
            return None
        if isinstance(op, AveragePool):
            alike = all(
                np.array_equal(c, self._graph.constants[getattr(op, field)])
                for field in op.constant_fields
                for c in self._constants(group, field)
                if c is not None
            )
            return op if alike else None
        if isinstance(op, Affine):
            shape = first.type.shape
            made = {
                field: compact(np.concatenate([np.broadcast_to(c, shape) for c in found if c is not None]))
                for field, found in ((f, self._constants(group, f)) for f in op.constant_fields)
            }
            return Affine(*(self._new(first, field, made[field]) for field in ("scale", "shift")))
        channels = self._graph[first.inputs[0]].type.shape[0]
        if isinstance(op, Slice) and op.slices[0] == (0, channels, 1):
            return Slice(((0, count * channels, 1), *op.slices[1:]))
        if isinstance(op, Pad) and op.amounts[0] == (0, 0):
            return op
        return None

    def _bias(self, group: Sequence[Node], rows: int) -> str | None:
        biases = self._constants(group, "bias")
        if all(b is None for b in biases):
            return None
        return self._new(group[0], "bias", np.concatenate([np.zeros(rows) if b is None else b for b in biases]))

    def _sparse(self, group: Sequence[Node], columns: int | None) -> Op:
        """The matrices of linear ops below each other; `columns` is 0 if they have the same, else they are apart."""
        maps = [self._map(node) for node in group]
        height, width = len(maps[0].bias), maps[0].columns_count
        if any(len(m.bias) != height or m.columns_count != width for m in maps):
            raise _Different(f"{group[0].id} and {group[-1].id} have matrices of different shapes")
        whole = LinearMap(
            np.concatenate([m.rows + k * height for k, m in enumerate(maps)]),
            np.concatenate([m.columns + (k * width if columns is None else 0) for k, m in enumerate(maps)]),
            np.concatenate([m.values for m in maps]),
            np.concatenate([m.bias for m in maps]),
            width if columns == 0 else self._count * width,
        )
        self._check_entries(maps, group)
        shape = group[0].type.shape
        return sparse_linear(self._builder, group[0].id, whole, (self._count * shape[0], *shape[1:]))

    def _check_entries(self, maps: Sequence[LinearMap], group: Sequence[Node]) -> None:
        if sum(len(m.values) for m in maps) > MOST_ENTRIES:
            raise _Different(f"the matrices of {group[0].id} and {group[-1].id} are large and have nothing in common")

    def _map(self, node: Node) -> LinearMap:
        return node.linear.linear_map(self._graph[node.inputs[0]].type.shape, self._graph.constants)

    def _collapsed(self, node: Node, group: Sequence[Node]) -> str:
        """The sum of the results of linear ops as one op."""
        first = group[0]
        if any(type(one.op) is not type(first.op) or not isinstance(one.op, LinearOp) for one in group):
            raise _Different(f"{first.id}, whose results are summed, is not linear")
        ((operand, shared),) = self._operands(group)
        if shared:
            raise _Different(f"{first.id} reads the same value in each model")
        op: Op
        if isinstance(first.op, Linear):
            weights = np.concatenate([w for w in self._constants(group, "weight") if w is not None], axis=1)
            biases = [b for b in self._constants(group, "bias") if b is not None]
            bias = self._new(first, "bias", np.sum(biases, axis=0)) if biases else None
            op = Linear(self._new(first, "weight", weights), bias)
        else:
            maps = [self._map(one) for one in group]
            self._check_entries(maps, group)
            width = maps[0].columns_count
            whole = LinearMap(
                np.concatenate([m.rows for m in maps]),
                np.concatenate([m.columns + k * width for k, m in enumerate(maps)]),
                np.concatenate([m.values for m in maps]),
                np.sum([m.bias for m in maps], axis=0),
                self._count * width,
            )
            op = sparse_linear(self._builder, first.id, whole, node.type.shape)
        return self._builder.add(op, [operand], name=node.id, origin=node.origin, type=node.type)


def _growth(ratio: float, degree: int) -> float:
    """The largest value of a Chebyshev polynomial of that degree on a range that is wider by a ratio."""
    return math.cosh(degree * math.acosh(max(1.0, ratio)))


def _without_constants(op: Op) -> Op:
    return replace(op, **{field: "" for field in op.constant_fields if getattr(op, field) is not None})


def _union(group: Sequence[Node]) -> Range | None:
    bounds = [node.type.bound for node in group if node.type.bound is not None]
    return functools.reduce(Range.union, bounds) if len(bounds) == len(group) else None
