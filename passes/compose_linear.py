"""Compose linear ops that follow one another, so that pooling, padding and slicing cost no level of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import (
    Array,
    AveragePool,
    Conv2d,
    Gather,
    Linear,
    LinearMap,
    LinearOp,
    Op,
    Pad,
    Reshape,
    Shape,
    SparseLinear,
)
from olac.ir.types import Stage
from olac.passes.base import Pass, PassContext
from olac.system.arrays import Index

MOST_ENTRIES = 20_000_000
"""Most entries of a matrix that is made of several ops."""


@dataclass(frozen=True)
class ComposeLinear(Pass):
    """Given: %p = average_pool(%x); %f = reshape(%p); %y = linear(%f).  Result: %y = sparse_linear(%x).

    Two linear ops, with or without reshapes between, become one if one of them is structural (pooling, padding,
    slicing, an affine map by element) and nothing else reads the value between. Zero padding before a convolution is
    added to the convolution's own. Convolutions are not composed with each other: the result would be dense.

    Ops that have weights stay what they are if they can, because a list of entries takes memory. A pooling of even
    windows before a convolution gives it a larger kernel and stride: its taps are spread over the windows. So do a
    convolution before or after an op that takes whole channels, in another order or with zeros between, and a linear
    layer that reads some elements. Two ops that only move elements become a gather.

    Options:
        max_entries: two ops stay apart if their composition may have more entries.
    """

    max_entries: int = MOST_ENTRIES
    name: ClassVar[str] = "compose_linear"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        alone = graph.read_once()

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, LinearOp):
                return None
            old, new = node.inputs[0], inputs[0]
            while graph[old].op.same_ciphertexts and old in alone:
                old, new = graph[old].inputs[0], builder[new].inputs[0]
            first = builder[new]
            if not isinstance(first.op, LinearOp) or old not in alone:
                return None
            if not first.op.structural and not node.op.structural:
                return None
            shape, between = builder[first.inputs[0]].type.shape, graph[node.inputs[0]].type.shape
            kept: Op | None = _pad_into_convolution(first, node) if old == node.inputs[0] else None
            kept = kept or _reading_elements(builder, first.op, shape, node, between)
            if kept is None and old == node.inputs[0]:
                kept = _taking_channels(builder, first.op, node, between)
            if kept is not None:
                operands = first.inputs
                if isinstance(kept, Linear) and len(shape) > 1:
                    flat, like = Reshape((math.prod(shape),)), builder[first.inputs[0]].type
                    operands = (builder.add(flat, operands, name=f"{node.id}.flat", origin=node.origin, type=like),)
                return builder.add(kept, operands, name=node.id, origin=node.origin, type=node.type)
            each = first.op.entry_count(shape, builder.constants) // math.prod(between)
            if node.op.entry_count(between, graph.constants) * max(1, each) > self.max_entries:
                return None
            if old == node.inputs[0]:
                pooled = _pool_into_convolution(builder, first.op, shape, node, between)
                if pooled is not None:
                    return builder.add(pooled, first.inputs, name=node.id, origin=node.origin, type=node.type)
            one = first.op.linear_map(shape, builder.constants)
            two = node.op.linear_map(between, graph.constants)
            op = sparse_linear(builder, node.id, two.after(one), node.type.shape)
            return builder.add(op, first.inputs, name=node.id, origin=node.origin, type=node.type)

        return graph.rewrite(step, by=self.name)


def sparse_linear(builder: GraphBuilder, name: str, linear: LinearMap, shape: tuple[int, ...]) -> SparseLinear:
    """An op for a linear map, its arrays added to the builder's constants."""
    return SparseLinear(
        rows=builder.constant(f"{name}.rows", linear.rows),
        columns=builder.constant(f"{name}.columns", linear.columns),
        values=builder.constant(f"{name}.values", linear.values),
        bias=builder.constant(f"{name}.bias", linear.bias),
        shape=shape,
    )


def _pad_into_convolution(first: Node, second: Node) -> Conv2d | None:
    """The convolution with the zero padding before it added to its own, if the two ops are such."""
    if not isinstance(first.op, Pad) or not isinstance(second.op, Conv2d) or first.op.value != 0:
        return None
    channels, rows, columns = first.op.amounts
    if channels != (0, 0) or min(*rows, *columns) < 0:
        return None
    top, bottom, left, right = second.op.padding
    return replace(second.op, padding=(top + rows[0], bottom + rows[1], left + columns[0], right + columns[1]))


def _pool_into_convolution(
    builder: GraphBuilder, first: LinearOp, shape: Shape, node: Node, between: Shape
) -> Conv2d | None:
    """The convolution of a kernel and a stride so many times as large that it reads windows in place of their means.

    None unless the pooling takes means of windows side by side, without rows or columns that are left over, and has
    more than one: for a single one, a mean over all of a picture, the kernel would be as large as the picture.
    """
    op = node.op
    if not isinstance(first, AveragePool) or not isinstance(op, Conv2d) or math.prod(between[1:]) == 1:
        return None
    sides = [
        _even_windows(builder.constants[name], size, count)
        for name, size, count in zip((first.rows, first.columns), shape[1:], between[1:], strict=True)
    ]
    if None in sides:
        return None
    (high, by_row), (wide, by_column) = (side for side in sides if side is not None)
    weight = builder.constants[op.weight]
    taps = [(n - 1) * apart + 1 for n, apart in zip(weight.shape[2:], op.dilation, strict=True)]
    spread = np.zeros((*weight.shape[:2], *taps))
    spread[:, :, :: op.dilation[0], :: op.dilation[1]] = weight * (by_row * by_column)
    spread = spread.repeat(high, axis=2).repeat(wide, axis=3)
    top, bottom, left, right = op.padding
    return replace(
        op,
        weight=builder.constant(f"{node.id}.weight.pooled", spread),
        stride=(op.stride[0] * high, op.stride[1] * wide),
        padding=(top * high, bottom * high, left * wide, right * wide),
        dilation=(1, 1),
    )


def _even_windows(matrix: Array, size: int, count: int) -> tuple[int, float] | None:
    """The length of windows side by side and the weight of their elements; None for other pooling of an axis.

    Args:
        matrix: of the pooling, (count, size).
    """
    each, left = divmod(size, count)
    weight = float(matrix[0, 0])
    even = np.kron(np.eye(count), np.full((1, each), weight)) if not left else None
    return (each, weight) if even is not None and np.array_equal(matrix, even) else None


def _reading_elements(builder: GraphBuilder, first: LinearOp, shape: Shape, node: Node, between: Shape) -> Op | None:
    """The op after one that only moves elements, without a list of entries; None if it would need one.

    Args:
        shape: of the operand of the first op.
        node: with the second op, whose constants are in the builder.
        between: the shape of the second op's operand.
    """
    source = first.taken(shape, builder.constants)
    if source is None:
        return None
    op = node.linear
    own = op.taken(between, builder.constants)
    if own is not None:
        taken = np.where(own >= 0, source[np.maximum(own, 0)], -1)
        return Gather(builder.constant(f"{node.id}.indices", taken), node.type.shape)
    if isinstance(op, Linear):
        if math.prod(shape) > len(source):
            return None  # most columns of the matrix would be zero
        return replace(op, weight=_summed(builder, node.id, op.weight, source, math.prod(shape)))
    if isinstance(op, Conv2d) and op.groups == 1 and (channels := whole_channels(source, shape, between)) is not None:
        return replace(op, weight=_summed(builder, node.id, op.weight, channels, shape[0]))
    return None


def _taking_channels(builder: GraphBuilder, first: LinearOp, node: Node, between: Shape) -> Conv2d | None:
    """A convolution of which an op after it only takes whole channels, or puts channels of zeros beside them."""
    if not isinstance(first, Conv2d) or first.groups != 1:
        return None
    source = node.linear.taken(between, builder.constants)
    channels = None if source is None else whole_channels(source, between, node.type.shape)
    if channels is None:
        return None
    weight = _taken_rows(builder, f"{node.id}.weight.taken", first.weight, channels)
    bias = None if first.bias is None else _taken_rows(builder, f"{node.id}.bias.taken", first.bias, channels)
    return replace(first, weight=weight, bias=bias)


def _taken_rows(builder: GraphBuilder, name: str, array: str, rows: Index) -> str:
    """The rows of an array, and zeros for -1."""
    given = builder.constants[array]
    made = np.zeros((len(rows), *given.shape[1:]))
    there = np.flatnonzero(rows >= 0)
    made[there] = given[rows[there]]
    return builder.constant(name, made)


def whole_channels(source: Index, shape: Shape, result: Shape) -> Index | None:
    """For each channel of a result the channel of the operand that it is, or -1 if it is zero.

    None if channels are not taken as a whole.

    Args:
        source: for each element of the result that of the operand, or -1.
        shape, result: (channels, height, width) of the operand and of the result.
    """
    if len(shape) != 3 or len(result) != 3 or shape[1:] != result[1:]:
        return None
    size = math.prod(shape[1:])
    each = source.reshape(result[0], size)
    channels = np.where(each[:, 0] < 0, -1, each[:, 0] // size)
    expected = np.where(channels[:, None] < 0, -1, channels[:, None] * size + np.arange(size))
    return channels if np.array_equal(each, expected) else None


def _summed(builder: GraphBuilder, name: str, weight: str, source: Index, inputs: int) -> str:
    """A weight (out, in, ...) whose input i is input source[i] of `inputs`, or zero if that is -1, as one for these."""
    given = builder.constants[weight]
    made = np.zeros((given.shape[0], inputs, *given.shape[2:]))
    there = np.flatnonzero(source >= 0)
    np.add.at(made.swapaxes(0, 1), source[there], given[:, there].swapaxes(0, 1))
    return builder.constant(f"{name}.weight.taken", made)
