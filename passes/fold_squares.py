"""Evaluate quadratics at one level: complete the square, and fold its factors into the linear ops around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Add, Affine, Array, AveragePool, Factors, LinearOp, Polynomial, Reshape, Square
from olac.ir.ops.base import by_channel, compact, of_elements
from olac.ir.types import Range, Stage
from olac.passes.base import Pass, PassContext
from olac.passes.compose_linear import sparse_linear


@dataclass(frozen=True)
class FoldSquares(Pass):
    """Given: %y = conv2d(%x) W, b;  %p = polynomial(%y) a y^2 + b y + c in each channel;  %z = conv2d(%p) V.
    Result: %y = conv2d(%x) alpha W, alpha b + beta;  %p = square(%y) + shift;  %z = conv2d(%p) s V.

    a y^2 + b y + c = s (alpha y + beta)^2 + gamma with s = sign(a), alpha = sqrt(|a|), beta = s b / (2 alpha) and
    gamma = c - s beta^2: two levels become one. alpha and beta are folded into the rows of the linear op before, also
    through sums, reshapes and pooling, if nothing else reads the values between. An operand of such a sum that can't
    take them, such as the identity of a residual block, gets an affine map of its own. s is folded into the columns of
    all readers.

    A quadratic stays a polynomial of two levels if
    - that affine map would cost the level that the square saves;
    - s is not 1 everywhere and a reader can't take it;
    - all its readers are sums or outputs that are not folded themselves: they would need the level that it saves,
      to bring the product to their unit;
    - a channel is nearly linear (see `max_cancellation`).

    Options:
        max_cancellation: largest (alpha y + beta)^2 over the padded range, divided by the layer's largest result there.
            The square and gamma cancel down to the result, so the noise of encryption grows by this factor. 16 costs
            four bits at this value, but a level has thirty bits or more; for a rectifier's quadratic it is near 1.
    """

    max_cancellation: float = 16.0
    name: ClassVar[str] = "fold_squares"
    requires: ClassVar[Stage] = Stage.POLYNOMIAL
    ensures: ClassVar[Stage] = Stage.POLYNOMIAL

    def __post_init__(self) -> None:
        if not self.max_cancellation >= 1:
            raise ValueError(f"max_cancellation {self.max_cancellation} is below 1")

    def run(self, graph: Graph, context: PassContext) -> Graph:
        plan = _Plan(graph, context, self.max_cancellation)
        polynomials = [node for node in graph.nodes if isinstance(node.op, Polynomial)]
        folded = -1
        while folded < len(plan.shifts):  # repeated, because a value may become foldable when its reader is folded
            folded = len(plan.shifts)
            for node in polynomials:
                plan.fold(node)
        context.fits[:] = [replace(fit, depth=1) if fit.node in plan.shifts else fit for fit in context.fits]
        return graph.rewrite(plan.rewritten, by=self.name)


@dataclass(frozen=True)
class _Completed:
    """s (alpha x + beta)^2 + gamma for each channel; no calibrated square or result is above `largest`^2."""

    sign: Array
    alpha: Array
    beta: Array
    gamma: Array
    largest: float


@dataclass
class _Changes:
    """The changes of a graph by folding. Arrays have the shape of the value.

    Attributes:
        rows: alpha and beta for the result of a linear op.
        edges: alpha and beta of an affine map before a reader's operand, by the reader and the number of the operand.
        signs: s for the operand of a linear op.
        flipped: values between a square and the linear ops that take its sign.
        scaled: values whose range changes.
    """

    rows: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    edges: dict[tuple[str, int], tuple[Array, Array]] = field(default_factory=dict)
    signs: dict[str, Array] = field(default_factory=dict)
    flipped: set[str] = field(default_factory=set)
    scaled: set[str] = field(default_factory=set)


class _Plan:
    """The polynomials that have been folded so far, and the changes of the graph for them."""

    def __init__(self, graph: Graph, context: PassContext, max_cancellation: float) -> None:
        self._graph, self._max_cancellation = graph, max_cancellation
        self._calibration = context.calibration
        self._users, self._alone = graph.users(), graph.read_once()
        self._levels = {node.id: node.op.levels(graph.constants) for node in graph.nodes}
        self._changes = _Changes()
        self._bounds: dict[str, Range] = {}
        self._edge_bounds: dict[tuple[str, int], Range] = {}
        self.shifts: dict[str, Array] = {}

    def fold(self, node: Node) -> None:
        """Fold a polynomial if that is possible and saves its level."""
        if node.id in self.shifts or not self._absorbed(node.id):
            return
        made = self._complete(node)
        if made is None:
            return
        changes, shape = _Changes(), node.type.shape
        alpha, beta, sign = (of_elements(a, shape) for a in (made.alpha, made.beta, made.sign))
        self._place(node.inputs[0], (node.id, 0), alpha, beta, changes)
        if np.any(made.sign < 0) and not self._push_sign(node.id, sign, changes):
            return
        if self._depth(node.id, changes, {node.id}) < self._depth(node.id, _Changes(), set()):
            self._commit(node, made, changes)

    # The quadratic ---------------------------------------------------------------------------------------------------

    def _complete(self, node: Node) -> _Completed | None:
        """The square; None if the polynomial is no quadratic, or is nearly linear in some channel."""
        assert isinstance(node.op, Polynomial)
        coefficients, h = self._graph.constants[node.op.coefficients], node.op.half_width
        if coefficients.shape[1] < 3 or np.any(coefficients[:, 3:]) or not np.any(coefficients[:, 2]):
            return None
        a, b, c = 2 * coefficients[:, 2] / h**2, coefficients[:, 1] / h, coefficients[:, 0] - coefficients[:, 2]
        if np.any((a == 0) & (b != 0)):
            return None
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            sign, alpha = np.where(a < 0, -1.0, 1.0), np.sqrt(np.abs(a))
            beta = np.where(a == 0, 0.0, sign * b / (2 * alpha))
            vertex, gamma = np.where(a == 0, 0.0, -b / (2 * a)), c - sign * beta**2

            def largest(widths: Array) -> tuple[float, float]:
                """The largest square and the largest result, over all channels."""
                points = (-widths, np.clip(vertex, -widths, widths), widths)
                result = max(float(np.max(np.abs((a * x + b) * x + c))) for x in points)
                return float(np.max((alpha * widths + np.abs(beta)) ** 2)), result

            seen = self._seen(node, h)
            square, result = largest(h * seen / seen.max())
            if not square <= self._max_cancellation * result:
                return None
            # The result shares the square's unit, so slots hold it only if the unit is large enough for both.
            return _Completed(sign, alpha, beta, gamma, math.sqrt(max(largest(seen))))

    def _seen(self, node: Node, half_width: float) -> Array:
        """The largest calibrated magnitude in each channel; without a histogram, that of the layer."""
        channels, bound = node.type.shape[0], self._bound(node.inputs[0])
        layer = half_width if bound is None or not bound.magnitude > 0 else bound.magnitude
        histogram = None if self._calibration is None else self._calibration.histograms.get(node.id)
        if histogram is None or histogram.channels != channels:
            return np.full(channels, layer)
        seen = np.minimum(np.maximum(np.abs(histogram.low), np.abs(histogram.high)), half_width)
        return np.asarray(seen) if seen.max() > 0 else np.full(channels, layer)

    # Before it -------------------------------------------------------------------------------------------------------

    def _place(self, value: str, reader: tuple[str, int], alpha: Array, beta: Array, out: _Changes) -> None:
        """Make `reader` see alpha * value + beta."""
        node = self._graph[value]
        if value in self._alone:
            if isinstance(node.op, Reshape | Add):
                out.scaled.add(value)
                for i, operand in enumerate(node.inputs):
                    shape = self._graph[operand].type.shape
                    shift = beta if i == 0 else np.zeros_like(beta)
                    self._place(operand, (value, i), alpha.reshape(shape), shift.reshape(shape), out)
                return
            if isinstance(node.op, LinearOp) and self._place_in_rows(node, alpha, beta, out):
                return
        out.edges[reader] = (alpha, beta)

    def _place_in_rows(self, node: Node, alpha: Array, beta: Array, out: _Changes) -> bool:
        """Scale the rows of a linear op, or of the linear op before a pooling; False if that would cost a level."""
        op, operand = node.linear, node.inputs[0]
        channels = by_channel(alpha) is not None and by_channel(beta) is not None
        if op.takes is Factors.BY_CHANNEL and not channels:
            return False
        if op.takes is Factors.NONE:
            before, alone = self._graph[operand], operand in self._alone
            total = _window_sum(op, self._graph.constants) if isinstance(op, AveragePool) else None
            if total and alone and isinstance(before.op, LinearOp) and channels:
                wide = [of_elements(a.reshape(len(a), -1)[:, 0], before.type.shape) for a in (alpha, beta / total)]
                if self._place_in_rows(before, wide[0], wide[1], out):
                    out.scaled.add(node.id)
                    return True
            while before.op.same_ciphertexts and before.id in self._alone:
                before = self._graph[before.inputs[0]]
            if op.structural and alone and isinstance(before.op, LinearOp):
                return False  # as a matrix of its own it could not be composed with the op before
        out.rows[node.id] = (alpha, beta)
        out.scaled.add(node.id)
        return True

    # After it --------------------------------------------------------------------------------------------------------

    def _absorbed(self, value: str) -> bool:
        """Whether some reader takes a product as it is."""
        for node in self._users[value]:
            places = [(node.id, i) for i, v in enumerate(node.inputs) if v == value]
            if not self._changes.edges.keys().isdisjoint(places):
                return True
            if self._absorbed(node.id) if node.op.same_ciphertexts else node.op.takes_products:
                return True
        return False

    def _push_sign(self, value: str, sign: Array, out: _Changes) -> bool:
        """Fold the sign of every element into all readers; False if one of them can't take it."""
        if value in self._graph.outputs:
            return False
        out.flipped.add(value)
        return all(self._push_sign_into(node, value, sign, out) for node in self._users[value])

    def _push_sign_into(self, node: Node, value: str, sign: Array, out: _Changes) -> bool:
        op = node.op
        places = [(node.id, i) for i, v in enumerate(node.inputs) if v == value]
        if all(place in self._changes.edges for place in places):
            for place in places:
                alpha, beta = self._changes.edges[place]
                out.edges[place] = (alpha * sign, beta)
            return True
        if op.same_ciphertexts:
            return self._push_sign(node.id, sign.reshape(node.type.shape), out)
        if not isinstance(op, LinearOp):
            return False
        wide = op.takes is Factors.BY_CHANNEL and by_channel(sign) is None
        if not wide and (op.takes is not Factors.NONE or node.id in self._changes.rows):
            out.signs[node.id] = sign
            return True
        after = None if wide else op.commuted(sign, self._graph.constants)
        return after is not None and self._push_sign(node.id, after, out)

    # Levels ----------------------------------------------------------------------------------------------------------

    def _depth(self, value: str, changes: _Changes, squares: set[str]) -> int:
        """Levels from the inputs to a value, with the changes so far and further ones."""
        edges = {**self._changes.edges, **changes.edges}
        folded = squares | self.shifts.keys()
        used: dict[str, int] = {}
        products: set[str] = set()
        for node in self._graph.nodes:
            takes_products = node.op.takes_products or node.id in folded
            used[node.id] = 1 if node.id in folded else self._levels[node.id]
            used[node.id] += max(
                # One more for an affine map of this pass, or for that which brings a product to the unit of a sum.
                (
                    used[v] + ((node.id, i) in edges or (v in products and not takes_products))
                    for i, v in enumerate(node.inputs)
                ),
                default=0,
            )
            of_product = any(v in products and (node.id, i) not in edges for i, v in enumerate(node.inputs))
            if node.id in folded or node.op.is_product(of_product):
                products.add(node.id)
            if node.id == value:
                break
        return used[value]

    # The new graph ---------------------------------------------------------------------------------------------------

    def _bound(self, value: str) -> Range | None:
        known = self._graph[value].type.bound
        if known is None and self._calibration is not None:
            known = self._calibration.ranges.get(value)
        return known

    def _commit(self, node: Node, made: _Completed, changes: _Changes) -> None:
        self.shifts[node.id] = made.sign * made.gamma
        whole = self._bound(node.inputs[0])

        def scaled(value: str) -> Range:
            """The new range of a value. Operands of a sum are assumed to fill their channels as the sum does."""
            part, ratio = self._bound(value), 1.0
            if part is not None and whole is not None and whole.magnitude > 0:
                ratio = max(1.0, part.magnitude / whole.magnitude)
            return Range(-made.largest * ratio, made.largest * ratio)

        self._bounds.update({value: scaled(value) for value in changes.scaled})
        for (reader, i), (alpha, beta) in changes.edges.items():
            if (reader, i) not in self._changes.edges:
                self._edge_bounds[reader, i] = scaled(self._graph[reader].inputs[i])
            self._changes.edges[reader, i] = (alpha, beta)
        for value in changes.flipped:
            bound = self._bound(value)
            if bound is not None:
                self._bounds[value] = Range(-bound.magnitude, bound.magnitude)
        self._changes.rows.update(changes.rows)
        self._changes.signs.update(changes.signs)

    def rewritten(self, node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        """The step of `Graph.rewrite`."""
        operands = list(inputs)
        for i, operand in enumerate(inputs):
            if (node.id, i) in self._changes.edges:
                source = builder[operand]
                alpha, beta = self._changes.edges[node.id, i]
                name = f"{node.id}_operand{i}"
                op = Affine(
                    builder.constant(f"{name}.scale", compact(alpha)),
                    builder.constant(f"{name}.shift", compact(beta)),
                )
                kind = replace(source.type, bound=self._edge_bounds[node.id, i])
                operands[i] = builder.add(
                    op, [operand], name=self._graph.free_name(name), origin=node.origin, type=kind
                )
        changes: dict[str, object] = {}
        if node.id in self._bounds:
            changes["type"] = replace(node.type, bound=self._bounds[node.id])
        if node.id in self.shifts:
            changes["op"] = Square(builder.constant(f"{node.id}.shift", self.shifts[node.id]))
        elif node.id in self._changes.rows or node.id in self._changes.signs:
            changes["op"] = self._scaled(node, builder)
        return builder.keep(node, tuple(operands), **changes) if changes or tuple(operands) != inputs else None

    def _scaled(self, node: Node, builder: GraphBuilder) -> LinearOp:
        """diag(alpha) M diag(s) x + (alpha b + beta) for the op M x + b."""
        constants, op = self._graph.constants, node.linear
        operand = self._graph[node.inputs[0]].type.shape
        one, zero = np.ones(node.type.shape), np.zeros(node.type.shape)
        alpha, beta = self._changes.rows.get(node.id, (one, zero))
        sign = self._changes.signs.get(node.id, np.ones(operand))

        made = op.with_factors(operand, constants, (alpha, beta), (sign, np.zeros(operand)))
        if made is not None:
            return replace(op, **{name: builder.constant(f"{node.id}.{name}.folded", v) for name, v in made.items()})
        linear = op.linear_map(operand, constants).with_factors((alpha, beta), (sign, np.zeros(operand)))
        return sparse_linear(builder, f"{node.id}.folded", linear, node.type.shape)


def _window_sum(op: AveragePool, constants: Mapping[str, Array]) -> float | None:
    """The result of a pooling of ones, if it is the same everywhere and not 0; otherwise None."""
    rows, columns = constants[op.rows].sum(axis=1), constants[op.columns].sum(axis=1)
    total = float(rows[0] * columns[0])
    same = np.allclose(np.outer(rows, columns), total, rtol=1e-12, atol=0.0)
    return total if same and total else None
