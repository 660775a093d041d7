"""Graphs in torch, in single precision and with gradients, for fits and searches over degrees.

The reference semantics are the ops' own `evaluate` in numpy; a test compares the two. An op that is unknown here is
computed by its `evaluate`. It still has gradients: an activation by the derivative of its function, a `LinearOp` by its
matrix. Any other op (a plugin's) needs a form in torch in `TORCH_OPS`: without one, a gradient through it is an error,
because a gradient that stops there would make all activations before it look unimportant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from olac.approximation import compiled
from olac.errors import VerificationError
from olac.ir.functions import derivative, registered
from olac.ir.graph import Graph, Node, last_reads
from olac.ir.ops import (
    Activation,
    Add,
    Affine,
    Array,
    AveragePool,
    Contract,
    Conv2d,
    Gather,
    Input,
    Linear,
    LinearOp,
    MaxPool2d,
    Multiply,
    Op,
    Pad,
    Polynomial,
    PolynomialProduct,
    Repeat,
    Reshape,
    Slice,
    SparseLinear,
    Square,
)

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]
LARGE = 1 << 15
"""Polynomials of as many values are computed by kernels, if there are any."""
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
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if plain and x.numel() >= LARGE and compiled.compiler():
        return compiled.polynomial(x, coefficients, half_width)
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


def channels_last(x: Tensor) -> Tensor:
    """The same, with the channels of pictures last in memory: convolutions keep that, and are faster."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


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


def _gather(op: Gather, x: Sequence[Tensor], weights: Weights) -> Tensor:
    indices = weights[op.indices].long()
    taken = x[0].reshape(len(x[0]), -1)[:, indices.clamp_min(0)]
    return (taken if bool((indices >= 0).all()) else taken * (indices >= 0)).reshape(len(taken), *op.shape)


def _contract(op: Contract, x: Sequence[Tensor], weights: Weights) -> Tensor:
    moved = x[0].movedim(1 + op.axis, 1)
    y = (weights[op.weight] @ moved.reshape(*moved.shape[:2], -1)).reshape(len(moved), -1, *moved.shape[2:])
    return y if op.bias is None else y + weights[op.bias].reshape(-1, *(1,) * (y.ndim - 2))


def _average_pool(op: AveragePool, x: Sequence[Tensor], weights: Weights) -> Tensor:
    return weights[op.rows] @ x[0] @ weights[op.columns].T


def _max_pool2d(op: MaxPool2d, x: Sequence[Tensor], weights: Weights) -> Tensor:
    return F.max_pool2d(x[0], op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)


TORCH_OPS: dict[type[Op], Callable[[Any, Sequence[Tensor], Weights], Tensor]] = {
    Conv2d: _conv2d,
    Contract: _contract,
    Gather: _gather,
    Linear: _linear,
    SparseLinear: _sparse_linear,
    Affine: lambda op, x, weights: x[0] * weights[op.scale] + weights[op.shift],
    AveragePool: _average_pool,
    MaxPool2d: _max_pool2d,
    Pad: _pad,
    Slice: _slice,
    Repeat: lambda op, x, weights: x[0].expand(len(x[0]), *op.shape),
    Reshape: lambda op, x, weights: x[0].reshape(len(x[0]), *op.shape),
    Add: lambda op, x, weights: x[0] + x[1],
    Multiply: lambda op, x, weights: x[0] * x[1],
    Polynomial: _polynomial,
    PolynomialProduct: _polynomial_product,
    Square: _square,
}
"""By class of op: its value in torch for operands and constants."""


class _Evaluated(torch.autograd.Function):
    """The value of an op by its own `evaluate`, in double precision, with gradients."""

    @staticmethod
    def forward(ctx: Any, op: Op, constants: Mapping[str, Array], *operands: Tensor) -> Tensor:
        ctx.op, ctx.constants = op, constants
        ctx.save_for_backward(*operands)
        return _tensor(op.evaluate([_array(x) for x in operands], constants), operands[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,), operands = gradients, ctx.saved_tensors
        found = _pulled_back(ctx.op, _array(operands[0]), ctx.constants, _array(gradient))
        return None, None, _tensor(found, operands[0])


def _pulled_back(op: Op, x: Array, constants: Mapping[str, Array], gradient: Array) -> Array:
    """The gradient with respect to the operand of an op, from that with respect to its result."""
    if isinstance(op, Activation):
        return gradient * derivative(op.function, op.parameters)(x)
    if isinstance(op, LinearOp):
        matrix = op.linear_map(x.shape[1:], constants).matrix()
        return np.asarray((matrix.T @ gradient.reshape(len(x), -1).T).T).reshape(x.shape)
    raise VerificationError(
        f"the op {op.name} has no gradient: it is not a LinearOp and has no form in torch. "
        "Add one to olac.approximation.tensors.TORCH_OPS"
    )


def _array(x: Tensor) -> Array:
    return np.asarray(x.detach().cpu().double().numpy())


def _tensor(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like)


def has_form(op: Op) -> bool:
    """Whether torch computes an op by itself, and its `evaluate` is not needed."""
    family = registered(op.function) if isinstance(op, Activation) else None
    return type(op) in TORCH_OPS or (family is not None and family.torch is not None)


def apply_op(op: Op, operands: Sequence[Tensor], weights: Weights, constants: Mapping[str, Any]) -> Tensor:
    """The value of an op; `weights` holds its constants as tensors, `constants` as arrays, for ops without a form."""
    if isinstance(op, Activation) and (family := registered(op.function)) is not None and family.torch is not None:
        function = getattr(F, family.torch, None) or getattr(torch, family.torch)
        fast: Tensor = function(operands[0], *op.parameters, **family.options)
        return fast
    if type(op) in TORCH_OPS:
        return TORCH_OPS[type(op)](op, operands, weights)
    value: Tensor = _Evaluated.apply(op, constants, *operands)
    return value


def apply(node: Node, operands: Sequence[Tensor], weights: Weights, constants: Mapping[str, Any]) -> Tensor:
    """The value of one node; `weights` holds its constants as tensors, `constants` as the graph has them."""
    return apply_op(node.op, operands, weights, constants)


def tensors(graph: Graph) -> dict[str, Tensor]:
    """All constants of a graph in single precision."""
    return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in graph.constants.items()}


def run(
    graph: Graph,
    weights: Weights,
    values: Tensor | Mapping[str, Tensor],
    nodes: Sequence[Node] | None = None,
    keep: frozenset[str] = frozenset(),
    instead: Mapping[str, Callable[[Sequence[Tensor], Weights], Tensor]] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Evaluate nodes (all by default); returns the values of `keep` and of the graph's outputs.

    Values are slot values if units differ from 1.

    Args:
        values: the input, or values by node id from which the nodes can be evaluated.
        instead: by node id, what computes a node's value from its operands and the weights in place of its op.
    """
    live = {graph.inputs[0].id: values} if isinstance(values, Tensor) else dict(values)
    todo = [n for n in (graph.nodes if nodes is None else nodes) if n.id not in live and not isinstance(n.op, Input)]
    done = last_reads(todo)
    wanted = keep | set(graph.outputs)
    for node in todo:
        operands = [live[i] for i in node.inputs]
        other = instead.get(node.id)
        made = apply(node, operands, weights, graph.constants) if other is None else other(operands, weights)
        live[node.id] = made
        for operand in done[node.id]:
            if operand not in wanted:
                del live[operand]
    return {name: value for name, value in live.items() if name in wanted}


def outputs_of(graph: Graph, weights: Weights, values: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The outputs of `run`."""
    return run(graph, weights, values)[graph.outputs[0]]


def real_outputs(graph: Graph, weights: Weights, images: Tensor) -> Tensor:
    """The outputs for images as the client has them, of a graph whose inputs and values may have units of their own."""
    source, target = graph.inputs[0], graph[graph.outputs[0]]
    assert isinstance(source.op, Input)
    given = torch.from_numpy(source.op.encode(images.double().numpy()) / source.type.unit).float()
    return outputs_of(graph, weights, channels_last(given)) * float(target.type.unit)
