"""Depth counted from the circuit: every kernel runs on the recorder, and the levels that it used are read off.

Nothing is derived from degrees, so what an op claims (`Op.levels`) can be held against it. Kernels run on the smallest
layout that has all that decides their depth: one element for sums, products and polynomials, one element a channel for
ops of plugins.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from olac.backends.recorder import RecorderEvaluator
from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals
from olac.ir.ops import (
    Add,
    Array,
    Constants,
    Input,
    LinearMap,
    LinearOp,
    Multiply,
    Op,
    Polynomial,
    Reshape,
    Shape,
    ShapeError,
)
from olac.ir.types import Stage
from olac.kernels.base import Kernel, Value
from olac.kernels.execute import KERNELS, build_kernel
from olac.kernels.linear import DiagonalKernel
from olac.kernels.polynomial import PolynomialKernel

PARAMETERS = Parameters(log_ring=10, depth=40, scale_bits=40, first_bits=46, digits=1, security=0)
"""Of the recorder: no key is made and nothing is encrypted. One op may take 40 levels."""


def node_levels(graph: Graph) -> dict[str, int]:
    """The levels that each node's kernel uses, by id; a graph at stage POLYNOMIAL, normalized or not."""
    return {node.id: _levels(graph, node) for node in graph.nodes}


def circuit_depth(graph: Graph) -> int:
    """Levels from the inputs to the outputs on the longest path."""
    return _longest(graph, node_levels(graph))


def activation_depth(graph: Graph, activations: Collection[str] | None = None) -> int:
    """How much of `circuit_depth` the activations take: the depth less that of the graph in which they take none.

    Args:
        graph: at stage POLYNOMIAL.
        activations: ids of the nodes that implement them; by default all whose op is not linear, products of the
            model's own included. Affine maps that a pass put beside a square are linear.
    """
    levels = node_levels(graph)
    if activations is None:
        activations = [node.id for node in graph.nodes if not isinstance(node.op, LinearOp)]
    return _longest(graph, levels) - _longest(graph, {**levels, **dict.fromkeys(activations, 0)})


def _longest(graph: Graph, levels: dict[str, int]) -> int:
    used: dict[str, int] = {}
    for node in graph.nodes:
        used[node.id] = levels[node.id] + max((used[i] for i in node.inputs), default=0)
    return max(used[output] for output in graph.outputs)


def _levels(graph: Graph, node: Node) -> int:
    op = node.op
    if isinstance(op, Input):
        return 0
    # An op from elsewhere may have a kernel of its own although its class derives from one of these.
    by = next((base for base in type(op).__mro__ if base in KERNELS), None)
    if by is LinearOp:
        return _of_linear()
    if by is Polynomial and isinstance(op, Polynomial):
        return _of_polynomial(tuple(bool(np.any(column)) for column in graph.constants[op.coefficients].T))
    if type(op) in (Add, Multiply, Reshape):
        return _of_elementwise(Reshape((1,)) if isinstance(op, Reshape) else op)
    return _of_any(op, [graph[i].type.shape for i in node.inputs], graph.constants)


def _measured(kernel: Kernel, operands: Sequence[TensorLayout]) -> int:
    recorder = RecorderEvaluator(PARAMETERS)
    fresh: list[Value] = [(recorder.fresh(PARAMETERS.depth),) * layout.ciphertexts for layout in operands]
    return PARAMETERS.depth - min(part.state.level for part in kernel.run(recorder, fresh))


def _layout(shape: Shape) -> TensorLayout:
    return TensorLayout.dense(shape, PARAMETERS.slots)


@functools.lru_cache(maxsize=1)
def _of_linear() -> int:
    """All linear ops are sums of diagonals, so one diagonal stands for them."""
    index, layout = np.zeros(1, dtype=np.int64), _layout((1,))
    one = LinearMap(index, index, np.ones(1), np.ones(1), 1)
    return _measured(DiagonalKernel.listed(one, layout, layout, Diagonals(1, 1)), [layout])


@functools.lru_cache(maxsize=1024)
def _of_polynomial(used: tuple[bool, ...]) -> int:
    """One polynomial with all the terms that some channel's has; its values are such that no two cancel."""
    coefficients: Array = np.array([used]) * np.sqrt(np.arange(2, len(used) + 2))
    layout = _layout((1,))
    return _measured(PolynomialKernel(coefficients, layout), [layout])


@functools.lru_cache(maxsize=16)
def _of_elementwise(op: Op) -> int:
    return _of_any(op, [(1,)] * op.arity, {})


def _of_any(op: Op, shapes: Sequence[Shape], constants: Constants) -> int:
    """By the op's own kernel, on one element a channel where the op allows that."""
    small = [(shape[0], *(1,) * (len(shape) - 1)) for shape in shapes]
    try:
        return _of_one(op, small, constants)
    except (ShapeError, VerificationError):
        return _of_one(op, shapes, constants)


def _of_one(op: Op, shapes: Sequence[Shape], constants: Constants) -> int:
    builder = GraphBuilder({name: constants[name] for name in op.constant_names()})
    inputs = [builder.add(Input(shape), name="operand") for shape in shapes]
    output = builder.add(op, inputs, name="result")
    graph = builder.build([output], Stage.POLYNOMIAL, inputs)
    layouts = [_layout(shape) for shape in shapes]
    result = layouts[0].reshaped(graph[output].type.shape)
    node = replace(graph[output], type=replace(graph[output].type, layout=result))
    laid_out = [
        replace(graph[i], type=replace(graph[i].type, layout=layout)) for i, layout in zip(inputs, layouts, strict=True)
    ]
    whole = Graph((*laid_out, node), (output,), graph.constants, graph.stage)
    return _measured(build_kernel(whole, whole[output]), layouts)
