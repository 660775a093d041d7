"""Give types the ranges of columns or channels of inputs and outputs, and uneven inputs a unit for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from olac.calibration.statistics import Calibration
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Array, Conv2d, Input, LinearOp, Shape, SparseLinear
from olac.ir.types import Range, Stage
from olac.passes.base import Pass, PassContext
from olac.passes.compose_linear import sparse_linear

FEW_VALUES = 16
"""Channels with fewer calibrated values have the range of all channels."""
UNEVEN = 4.0
"""Channels get units of their own if the magnitudes of two differ by a larger factor, or if one channel's magnitude is
more than this many half widths.
"""
HARMLESS = 1 / 8
"""A channel does no harm if it moves values of the first linear ops by less than this share of their half widths."""
CONSTANT = 1e-6
"""A channel was constant in calibration if its half width is less than this share of its values."""
REACH_IMAGES = 256
"""Images by which the half widths of the values of the first linear ops are found."""


@dataclass(frozen=True)
class ScaleInputs(Pass):
    """Given: %x = input();  %y = linear(%x) W, b.
    Result: %x = input() offsets o, factors f;  %y = linear(%x) W f, b + W o; types carry the ranges of channels.

    A column of a table, or a channel of an image, is trusted in its calibrated range. A range is widened, up to the
    usual width among the channels, as long as the channel alone moves no value of the first linear ops by more than a
    small share of the value's calibrated range. So pixels that were always black, and other constant channels, get a
    range, too.

    If channels differ much in size or are far from 0, and only linear ops read the input, the client subtracts an
    offset from each channel and divides it by a factor. The linear ops absorb both: it takes no level, and small
    channels keep their precision. Padded convolutions can't absorb offsets at their borders, so they get factors only.
    """

    name: ClassVar[str] = "scale_inputs"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        calibration = context.need_calibration()
        (source,) = graph.inputs
        same, readers = first_readers(graph, source.id)
        linear = [node for node in readers if isinstance(node.op, LinearOp)]
        trusted = _trusted(graph, source, linear, calibration)
        absorbs = bool(linear) and len(linear) == len(readers) and not same & set(graph.outputs)
        offsets, factors = _one_unit(len(trusted))
        if absorbs:
            padded = any(isinstance(node.op, Conv2d) and any(node.op.padding) for node in linear)
            offsets, factors = _units(trusted, padded)
        scaled = bool(np.any(factors != 1.0))
        # The ranges of what the client encrypts.
        ends = (trusted - offsets[:, None]) / factors[:, None]
        bound = Range(float(ends[:, 0].min()), float(ends[:, 1].max()))
        absorbing = {node.id for node in linear} if scaled else set()
        outputs = {i: seen for i in graph.outputs if (seen := calibration.channels.get(i)) is not None}
        elements = source.type.size // len(trusted)
        by_element = np.repeat(offsets, elements), np.repeat(factors, elements)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if node.id == source.id:
                # Without a calibration of channels, their ranges stay unknown.
                channels = _ranges(ends) if source.id in calibration.channels else ()
                kind = replace(node.type, channels=channels)
                if scaled:
                    kind = replace(kind, bound=bound)
                    made = Input(source.type.shape, tuple(offsets.tolist()), tuple(factors.tolist()))
                    return builder.keep(node, inputs, op=made, type=kind)
                return builder.keep(node, inputs, type=kind)
            kind = node.type
            if scaled and node.id in same:
                kind = replace(kind, bound=bound)
            if node.id in outputs and len(outputs[node.id]) == node.type.shape[0]:
                kind = replace(kind, channels=_ranges(outputs[node.id]))
            if node.id in absorbing:
                shape = graph[node.inputs[0]].type.shape
                return builder.keep(node, inputs, op=absorbed(node, shape, *by_element, builder), type=kind)
            return None if kind is node.type else builder.keep(node, inputs, type=kind)

        return graph.rewrite(step, by=self.name)


def _ranges(ends: Array) -> tuple[Range, ...]:
    return tuple(Range(float(low), float(high)) for low, high in ends)


def first_readers(graph: Graph, value: str) -> tuple[set[str], list[Node]]:
    """A value with its reshapes, and the other nodes that read any of these."""
    same = {value}
    for node in graph.nodes:
        if node.op.same_ciphertexts and node.inputs[0] in same:
            same.add(node.id)
    return same, [node for node in graph.nodes if node.id not in same and same & set(node.inputs)]


# Ranges --------------------------------------------------------------------------------------------------------------


def _trusted(graph: Graph, source: Node, linear: Sequence[Node], calibration: Calibration) -> Array:
    """The range of each channel, (channels, 2), none of them empty."""
    count = source.type.shape[0]
    whole = source.type.bound or calibration.ranges.get(source.id, Range(-1.0, 1.0))
    seen = calibration.channels.get(source.id)
    values = calibration.images * source.type.size // count
    if seen is None or len(seen) != count or values < FEW_VALUES:
        seen = np.tile([whole.low, whole.high], (count, 1))
    centre, half = seen.mean(axis=1), (seen[:, 1] - seen[:, 0]) / 2
    size = np.abs(seen).max(axis=1)
    varied = half > CONSTANT * size
    usual = float(np.median(half[varied])) if varied.any() else float(size.max())
    usual = usual or 1.0
    half = np.maximum(half, np.minimum(_harmless(graph, source, linear, calibration), usual))
    half = np.maximum(half, CONSTANT * np.maximum(size, usual))
    return np.stack([centre - half, centre + half], axis=1)


def _harmless(graph: Graph, source: Node, linear: Sequence[Node], calibration: Calibration) -> Array:
    """For each channel the half width up to which it alone does no harm; 0 if no linear op reads the input."""
    count = source.type.shape[0]
    if not linear:
        return np.zeros(count)
    images = (calibration.sample if len(calibration.sample) else calibration.choosing)[:REACH_IMAGES]
    x = np.asarray(images, dtype=np.float64).reshape(len(images), *source.type.shape)
    reach = np.full(count, np.inf)
    for node in linear:
        shape = graph[node.inputs[0]].type.shape
        y = node.op.evaluate([x.reshape(len(x), *shape)], graph.constants)
        y = y.reshape(len(y), node.type.shape[0], -1)
        half = (y.max(axis=(0, 2)) - y.min(axis=(0, 2))) / 2
        gain = node.linear.gains(shape, graph.constants, count)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.where(gain > 0, HARMLESS * half[:, None] / gain, np.inf)
        reach = np.minimum(reach, moved.min(axis=0))
    return reach


# Units ---------------------------------------------------------------------------------------------------------------


def _units(trusted: Array, padded: bool) -> tuple[Array, Array]:
    """Offsets and factors of the channels; 0 and 1 for all channels if one unit is as good."""
    centre, half = trusted.mean(axis=1), (trusted[:, 1] - trusted[:, 0]) / 2
    far = np.zeros(len(half), dtype=bool) if padded else np.abs(centre) > (UNEVEN - 1.0) * half
    offsets = np.where(far, centre, 0.0)
    factors = np.where(far, half, np.abs(centre) + half)
    if not far.any() and factors.max() <= UNEVEN * factors.min():
        return _one_unit(len(half))
    return offsets, factors


def _one_unit(channels: int) -> tuple[Array, Array]:
    return np.zeros(channels), np.ones(channels)


def absorbed(node: Node, shape: Shape, offsets: Array, factors: Array, builder: GraphBuilder) -> LinearOp:
    """The linear op of a node for an operand x in place of factors * x + offsets, which have its number of elements."""
    op = node.linear
    columns = factors.reshape(shape), offsets.reshape(shape)
    # The map of a sparse op gets new arrays altogether.
    made = None if isinstance(op, SparseLinear) else op.with_factors(shape, builder.constants, columns=columns)
    if made is not None:
        named = {field: builder.constant(f"{node.id}.{field}.from_inputs", value) for field, value in made.items()}
        return replace(op, **named)
    linear = op.linear_map(shape, builder.constants).with_factors(columns=columns)
    return sparse_linear(builder, f"{node.id}.from_inputs", linear, node.type.shape)
