"""Expand max-pooling into rounds of pairwise maxima, for the values that it gets in the approximated network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.polynomial import chebyshev

from olac.calibration.histogram import Histogram
from olac.errors import CalibrationError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Add, Constants, LinearMap, MaxPool2d, Polynomial, Shape, SparseLinear
from olac.ir.types import Range, Stage, ValueType
from olac.passes.base import FitReport, Pass, PassContext
from olac.passes.compose_linear import sparse_linear
from olac.passes.replace_by_minimax import check_minimax_options, depth_of_product, times_sign
from olac.polynomials.minimax import Composition, sign_composition
from olac.system.arrays import Index

REPORT_POINTS = 4001
REACH_POINTS = 257
TINY = 1e-6
DIFFERENCE, EXCESS = ".difference", ".excess"
"""Ends of the names of nodes; names of lifted nodes never have them."""


@dataclass(frozen=True)
class Round:
    """One round of maxima: element i of the result is the larger of elements first[i] and second[i] of the operand.

    Both are flat indices; if they are equal, the result is the element itself. `shape` is that of the result.
    """

    first: Index
    second: Index
    shape: Shape


@dataclass(frozen=True)
class ExpandMaxPool(Pass):
    """Given: %y = max_pool2d(%x).
    Result: for each round %h = sparse_linear(%x), (a + b) / 2; %d = sparse_linear(%x), a - b; a composition of minimax
    polynomials that gives %m, d sign(d) / 2; %y = add(%h, %m).

    Maxima are taken along rows first and then along columns, of k elements in ceil(log2 k) rounds. Each round has an
    error of at most B 2^-alpha if |d| <= B. B is `padding` times the width of the calibrated range of x, and grows from
    round to round by the errors that may be added. All rounds but the last leave elements in their places; the last one
    selects elements by the stride.

    Options:
        alpha: precision in bits, 4 ... 14.
        padding: factor for the calibrated width. Beyond B the composition grows without bound.
    """

    alpha: int = 7
    padding: float = 1.3
    name: ClassVar[str] = "expand_max_pool"

    def __post_init__(self) -> None:
        check_minimax_options(self.alpha, self.padding)

    def run(self, graph: Graph, context: PassContext) -> Graph:
        if not any(isinstance(node.op, MaxPool2d) for node in graph.nodes):
            return graph
        ranges = context.need_calibration().ranges

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, MaxPool2d):
                return None
            bound = ranges.get(node.inputs[0]) or graph[node.inputs[0]].type.bound
            if bound is None:
                raise CalibrationError(f"calibration never reached the max-pooling {node.id} ({node.origin.path})")
            rounds = list(rounds_of(node.op, graph[node.inputs[0]].type.shape))
            value, width = inputs[0], self.padding * max(bound.high - bound.low, TINY)
            for count, item in enumerate(rounds, 1):
                last = count == len(rounds)
                value = self._round(builder, node, value, item, width, bound, "" if last else f".round{count}")
                width *= 1 + 2.0 ** (1 - self.alpha)
            compared = sum(not np.array_equal(item.first, item.second) for item in rounds)
            if compared:
                context.fits.append(_report(node, sign_composition(self.alpha), compared, width))
            return value

        return graph.rewrite(step, by=self.name)

    def _round(
        self, builder: GraphBuilder, node: Node, x: str, item: Round, width: float, bound: Range, suffix: str
    ) -> str:
        kind = replace(node.type, bound=bound)
        name, size = f"{node.id}{suffix}", builder[x].type.size

        def linear(what: str, first: float, second: float, bound: Range) -> str:
            rows = np.arange(len(item.first))
            entries = LinearMap(
                np.concatenate([rows, rows]),
                np.concatenate([item.first, item.second]),
                np.repeat([first, second], len(rows)),
                np.zeros(len(rows)),
                size,
            )
            # A matrix adds up the two entries of an element that is compared with itself.
            merged = LinearMap.from_sparse(entries.matrix(), entries.bias)
            op = sparse_linear(builder, f"{name}{what}", merged, item.shape)
            return builder.add(op, [x], name=f"{name}{what}", origin=node.origin, type=replace(kind, bound=bound))

        if np.array_equal(item.first, item.second):
            return linear("", 0.5, 0.5, bound)
        half = linear(".mean", 0.5, 0.5, bound)
        difference = linear(DIFFERENCE, 1.0, -1.0, Range(-width, width))
        # A node with the name, shape and bound of the summand d sign(d) / 2.
        like = replace(
            node, id=f"{name}{EXCESS}", type=replace(kind, shape=item.shape, bound=Range(-width / 2, width / 2))
        )
        excess = times_sign(builder, like, difference, self.alpha, width, np.zeros(1), np.full(1, 0.5))
        return builder.add(Add(), [half, excess], name=name, origin=node.origin, type=kind)


@dataclass(frozen=True)
class WidenMaxPool(Pass):
    """Given: a composition for the sign on [-B, B], B from the values of the model itself.
    Result: the same on [-g B, g B], if the values of fitted polynomials before it may spread g times as far.

    ExpandMaxPool comes before activations are fitted. A fitted polynomial has values that its activation doesn't have,
    especially beyond the calibrated range, and beyond B the composition grows without bound. g is the width of the
    polynomial's values over somewhat more than the calibrated range of its argument, divided by the calibrated width of
    the activation's values. A value that is computed from several of them has the largest g.

    Options:
        padding: factor for the calibrated range of a polynomial's argument.
        most: largest g. The error of the maximum grows by g.
    """

    padding: float = 1.3
    most: float = 4.0
    name: ClassVar[str] = "widen_max_pool"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def run(self, graph: Graph, context: PassContext) -> Graph:
        if not any(fit.function == MaxPool2d.name for fit in context.fits):
            return graph
        ranges, histograms = context.need_calibration().ranges, context.need_calibration().histograms
        growth: dict[str, float] = {}
        for node in graph.nodes:
            grown = max((growth[i] for i in node.inputs), default=1.0)
            if isinstance(node.op, Polynomial) and node.id in histograms:
                clean, reach = ranges[node.id], _reach(node.op, graph.constants, histograms[node.id], self.padding)
                grown = reach / max(clean.high - clean.low, TINY)
            growth[node.id] = min(max(grown, 1.0), self.most)

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            if isinstance(node.op, SparseLinear) and DIFFERENCE in node.id:
                return builder.keep(node, inputs, type=_wider(node, growth[node.id]))
            before = graph[node.inputs[0]] if node.inputs else node
            if not isinstance(node.op, Polynomial) or DIFFERENCE not in before.id:
                return None
            factor, op = growth[before.id], node.op
            if node.id.endswith(EXCESS):  # x p(x / B) as one polynomial: its values are as wide as B
                name = builder.constant(op.coefficients, factor * graph.constants[op.coefficients])
                op = replace(op, coefficients=name)
            return builder.keep(node, inputs, op=replace(op, half_width=factor * op.half_width))

        context.fits[:] = [
            replace(fit, low=g * fit.low, high=g * fit.high, max_error=g * fit.max_error)
            if fit.function == MaxPool2d.name and (g := growth.get(fit.node, 1.0)) > 1
            else fit
            for fit in context.fits
        ]
        return graph.rewrite(step, by=self.name)


def _reach(op: Polynomial, constants: Constants, histogram: Histogram, padding: float) -> float:
    """The width of a polynomial's values over all channels, if each has `padding` times its calibrated range."""
    middle, half = (histogram.high + histogram.low) / 2, (histogram.high - histogram.low) / 2
    points = middle[:, None] + padding * half[:, None] * np.linspace(-1, 1, REACH_POINTS)
    rows = np.broadcast_to(constants[op.coefficients], (len(points), constants[op.coefficients].shape[1]))
    values = [chebyshev.chebval(x / op.half_width, row) for x, row in zip(points, rows, strict=True)]
    return float(np.max(values) - np.min(values))


def _wider(node: Node, factor: float) -> ValueType:
    bound = node.type.bound
    return node.type if bound is None else replace(node.type, bound=Range(factor * bound.low, factor * bound.high))


def rounds_of(op: MaxPool2d, shape: Shape) -> Iterator[Round]:
    """The rounds of maxima for a max-pooling of a value of that shape; one round if it only selects elements."""
    wanted = [np.arange(len(op.windows(size, axis))) * op.stride[axis] for axis, size in enumerate(shape[1:])]
    steps = [
        (axis, pair) for axis, size in enumerate(shape[1:]) for pair in _along(op, size, axis, int(wanted[axis][-1]))
    ]
    same = np.arange(shape[1])
    for number, (axis, pair) in enumerate(steps or [(0, (same, same))], 1):
        flat = []
        for along in pair:
            index: list[Index] = [np.arange(size) for size in shape]
            index[1 + axis] = along
            if number >= len(steps):
                index[1:] = [kept[at] for kept, at in zip(index[1:], wanted, strict=True)]
            flat.append(np.ravel_multi_index(np.ix_(*index), shape).astype(np.int64))
        shape = flat[0].shape
        yield Round(flat[0].reshape(-1), flat[1].reshape(-1), shape)


def _along(op: MaxPool2d, size: int, axis: int, last: int) -> Iterator[tuple[Index, Index]]:
    """For each round the pairs of positions whose maxima are taken, along one axis of that size.

    After each round but the last, position i has the maximum of n elements from i on, or of fewer at the border. n is 1
    at first; each n is half of the next, rounded up, and the last is the size of the kernel. In the last round position
    i gets the maximum of the window that starts at i - padding, for all i up to `last` at least. One run of n elements
    begins at the window's start, another ends at its end. They fill the window, since a window that begins in the
    padding still has at least half of the kernel's elements.
    """
    kernel, padding, dilation = op.kernel[axis], op.padding[axis], op.dilation[axis]
    counts = [kernel]
    while counts[0] > 1:
        counts.insert(0, -(-counts[0] // 2))
    positions = np.arange(size)
    for count, more in itertools.pairwise(counts[:-1]):
        ahead = positions + (more - count) * dilation
        yield positions, np.where(ahead < size, ahead, positions)
    if kernel > 1:
        start = np.arange(max(size, last + 1)) - padding
        first = np.where(start < 0, start % dilation, start)
        taps = kernel - (first - start) // dilation
        first = np.minimum(first, size - 1)  # only for positions that are not read
        length = np.minimum(taps, -(-(size - first) // dilation))
        yield first, first + np.maximum(length - counts[-2], 0) * dilation


def _report(node: Node, composition: Composition, rounds: int, width: float) -> FitReport:
    """The degree of one round, and the depth and the error of all rounds.

    `rmse` is that of one round, for differences that are spread evenly over [-width, width].
    """
    t = np.linspace(0.0, 1.0, REPORT_POINTS)
    error = t * np.abs(1 - composition(t)) / 2
    return FitReport(
        node.id,
        "max_pool2d",
        composition.degree + 1,
        rounds * (depth_of_product(composition) + 1),
        float(np.sqrt(np.mean(error**2) / np.mean(t**2))),
        rounds * width * float(np.max(error)),
        -width,
        width,
    )
