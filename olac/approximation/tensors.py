"""Graphs in torch, in single precision and with gradients: what fits and searches over degrees run on.

The reference semantics are the ops' own `evaluate` in numpy; a test holds the two together. An op that is unknown
here (a plugin's) is computed by its `evaluate`, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from olac.ir.graph import Graph, Node
from olac.ir.ops import (
    Activation,
    Add,
    Affine,
    AveragePool,
    Conv2d,
    Input,
    Linear,
    Multiply,
    Op,
    Pad,
    Polynomial,
    PolynomialProduct,
    Reshape,
    Slice,
    SparseLinear,
    Square,
)

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
CHUNK = 64
"""Images that are evaluated together: small enough for the cache, large enough for the cores."""


def chebyshev(x: Tensor, degree: int) -> list[Tensor]:
    """T_0 ... T_degree at x, each of x's shape."""
    basis = [torch.ones_like(x), x]
    while len(basis) <= degree:
        basis.append(2 * x * basis[-1] - basis[-2])
    return basis[: degree + 1]


def polynomial(x: Tensor, coefficients: Tensor, half_width: float) -> Tensor:
    """sum_k c_k T_k(x / half_width) by Clenshaw's recurrence; coefficients (channels or 1, degree + 1)."""
    c = coefficients.T.reshape(coefficients.shape[1], coefficients.shape[0], *(1,) * (x.ndim - 2))
    if len(c) == 1:
        return c[0].expand_as(x)
    t = x / half_width
    if len(c) == 2:
        return c[0] + c[1] * t
    if len(c) == 3:
        return (c[0] - c[2]) + t * (c[1] + 2 * c[2] * t)
    if len(c) == 4:
        return (c[0] - c[2]) + t * ((c[1] - 3 * c[3]) + t * (2 * c[2] + 4 * c[3] * t))
    last, before = c[-1].expand_as(x), c[-2].expand_as(x)
    twice = 2 * t
    for k in range(len(c) - 3, -1, -1):
        last, before = before + twice * last, c[k] - last
    return before + last * t


def _conv2d(op: Conv2d, x: Sequence[Tensor], weights: Weights) -> Tensor:
    top, bottom, left, right = op.padding
    bias = None if op.bias is None else weights[op.bias]
    operand, padding = x[0], (top, left)
    if top != bottom or left != right:
        operand, padding = F.pad(operand, (left, right, top, bottom)), (0, 0)
    return F.conv2d(operand, weights[op.weight], bias, op.stride, padding, op.dilation, op.groups)


def _linear(op: Linear, x: Sequence[Tensor], weights: Weights) -> Tensor:
    return F.linear(x[0], weights[op.weight], None if op.bias is None else weights[op.bias])


def _sparse_linear(op: SparseLinear, x: Sequence[Tensor], weights: Weights) -> Tensor:
    flat = x[0].reshape(len(x[0]), -1)
    index = torch.stack([weights[op.rows].long(), weights[op.columns].long()])
    matrix = torch.sparse_coo_tensor(
        index, weights[op.values], (len(weights[op.bias]), flat.shape[1]), check_invariants=False
    )
    out: Tensor = (matrix @ flat.T).T + weights[op.bias]
    return out.reshape(len(flat), *op.shape)


def _pad(op: Pad, x: Sequence[Tensor], weights: Weights) -> Tensor:
    sides = [side for pair in reversed(op.amounts) for side in pair]
    return F.pad(x[0], sides, value=op.value)


def _polynomial(op: Polynomial, x: Sequence[Tensor], weights: Weights) -> Tensor:
    return polynomial(x[0], weights[op.coefficients], op.half_width)


def _polynomial_product(op: PolynomialProduct, x: Sequence[Tensor], weights: Weights) -> Tensor:
    return x[0] * polynomial(x[1], weights[op.coefficients], op.half_width)


def _square(op: Square, x: Sequence[Tensor], weights: Weights) -> Tensor:
    return x[0].square() + weights[op.shift].reshape(-1, *(1,) * (x[0].ndim - 2))


def _slice(op: Slice, x: Sequence[Tensor], weights: Weights) -> Tensor:
    window = [slice(None), *(slice(*s) for s in op.slices)]
    return x[0][tuple(window)]


def _average_pool(op: AveragePool, x: Sequence[Tensor], weights: Weights) -> Tensor:
    return weights[op.rows] @ x[0] @ weights[op.columns].T


TORCH_OPS: dict[type[Op], Callable[[Any, Sequence[Tensor], Weights], Tensor]] = {
    Conv2d: _conv2d,
    Linear: _linear,
    SparseLinear: _sparse_linear,
    Affine: lambda op, x, weights: x[0] * weights[op.scale] + weights[op.shift],
    AveragePool: _average_pool,
    Pad: _pad,
    Slice: _slice,
    Reshape: lambda op, x, weights: x[0].reshape(len(x[0]), *op.shape),
    Add: lambda op, x, weights: x[0] + x[1],
    Multiply: lambda op, x, weights: x[0] * x[1],
    Polynomial: _polynomial,
    PolynomialProduct: _polynomial_product,
    Square: _square,
}
"""By class of op: its value in torch for operands and constants."""

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def apply(node: Node, operands: Sequence[Tensor], weights: Weights, constants: Mapping[str, Any]) -> Tensor:
    """The value of one node; `weights` holds its constants as tensors, `constants` as the graph has them."""
    op = node.op
    if isinstance(op, Activation) and op.function in _ACTIVATIONS:
        return _ACTIVATIONS[op.function](operands[0], *op.parameters)
    if type(op) in TORCH_OPS:
        return TORCH_OPS[type(op)](op, operands, weights)
    values = op.evaluate([x.detach().double().numpy() for x in operands], constants)
    return torch.from_numpy(np.ascontiguousarray(values)).to(operands[0].dtype)


def tensors(graph: Graph) -> dict[str, Tensor]:
    """All constants of a graph in single precision."""
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in graph.constants.items()}


def run(
    graph: Graph,
    weights: Weights,
    values: dict[str, Tensor],
    nodes: Sequence[Node] | None = None,
    keep: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """Evaluate nodes (all by default) from the values given; returns those of `keep` and of the graph's outputs.

    Units are left alone: values are slot values where units differ from 1.
    """
    todo = [n for n in (graph.nodes if nodes is None else nodes) if n.id not in values and not isinstance(n.op, Input)]
    last = {operand: node.id for node in todo for operand in node.inputs}
    wanted = keep | set(graph.outputs)
    live = dict(values)
    for node in todo:
        live[node.id] = apply(node, [live[i] for i in node.inputs], weights, graph.constants)
        for operand in set(node.inputs):
            if last[operand] == node.id and operand not in wanted:
                del live[operand]
    return {name: value for name, value in live.items() if name in wanted}
