"""Sums, products and powers, of values and constants."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch

from olac.frontend.lifter import Lifter, Unsupported, Value, register_function
from olac.ir.ops import (
    Add,
    Array,
    Multiply,
)


def _is_constant(value: Any) -> bool:
    return isinstance(value, (bool, int, float, torch.Tensor))


def _array(lifter: Lifter, constant: Any, rank: int) -> Array:
    """A constant operand as an array that broadcasts against values of that rank, without the batch axis."""
    if not isinstance(constant, torch.Tensor):
        return np.asarray(float(constant))
    if constant.is_complex():
        raise Unsupported("uses a complex constant", "Use real tensors")
    array = np.asarray(constant.detach().cpu().double().numpy())
    if array.ndim > rank + 1:
        raise Unsupported(
            f"a constant of shape {array.shape} has more axes than the value", "Give constants the value's rank"
        )
    if array.ndim == rank + 1:
        if (np.isfinite(array).all() and not (array == array[:1]).all()) or len(array) not in (1, lifter.batch):
            raise Unsupported("a constant differs between the images of a batch", "Use one constant for all images")
        array = array[0]
    return array


def _with_constant(lifter: Lifter, x: Value, constant: Any, scale: bool) -> Value:
    array = _array(lifter, constant, len(x.shape))
    try:
        shape = np.broadcast_shapes(x.shape, array.shape)
    except ValueError as error:
        raise Unsupported(f"a constant of shape {array.shape} on {x.shape}", "Make the shapes broadcast") from error
    x = lifter.broadcast(x, shape)
    return lifter.affine(x, scale=array) if scale else lifter.affine(x, shift=array)


def _common(lifter: Lifter, a: Value, b: Value) -> tuple[Value, Value]:
    if a.shape == b.shape:
        return a, b
    if len(a.shape) != len(b.shape):
        # Torch would align one operand's batch axis with another axis of the other.
        raise Unsupported(
            f"combines values of shapes {a.shape} and {b.shape}", "Give both operands the same number of axes"
        )
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise Unsupported(
            f"combines values of shapes {a.shape} and {b.shape}", "Give both operands the same shape"
        ) from error
    return lifter.broadcast(a, shape), lifter.broadcast(b, shape)


@register_function(operator.add, torch.add, "add", "__add__", "__radd__")
def _add(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if isinstance(a, Value) and isinstance(b, Value):
        a, b = _common(lifter, a, lifter.affine(b, scale=alpha, suffix="alpha"))
        return lifter.add(Add(), a, b)
    if isinstance(a, Value):
        return _with_constant(lifter, a, b * alpha, scale=False)
    return _with_constant(lifter, lifter.affine(b, scale=alpha, suffix="alpha"), a, scale=False)


@register_function(operator.sub, torch.sub, torch.subtract, "sub", "subtract", "__sub__")
def _sub(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if isinstance(b, Value):
        if not isinstance(a, Value):
            array = _array(lifter, a, len(b.shape))
            b = lifter.broadcast(b, np.broadcast_shapes(b.shape, array.shape))
            return lifter.affine(b, scale=-float(alpha), shift=array)
        a, b = _common(lifter, a, lifter.affine(b, scale=-float(alpha), suffix="negative"))
        return lifter.add(Add(), a, b)
    return _with_constant(lifter, a, b * -alpha, scale=False)


@register_function(torch.rsub, "rsub", "__rsub__")
def _rsub(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sub(lifter, b, a, alpha=alpha)


@register_function(operator.mul, torch.mul, torch.multiply, "mul", "multiply", "__mul__", "__rmul__")
def _mul(lifter: Lifter, a: Any, b: Any) -> Any:
    if isinstance(a, Value) and isinstance(b, Value):
        return lifter.add(Multiply(), *_common(lifter, a, b))
    return _with_constant(lifter, a, b, True) if isinstance(a, Value) else _with_constant(lifter, b, a, True)


@register_function(operator.truediv, torch.div, torch.divide, torch.true_divide)
@register_function("div", "divide", "true_divide", "__truediv__")
def _div(lifter: Lifter, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise Unsupported("rounds a division", "Leave rounding out")
    if isinstance(b, Value):
        raise Unsupported("divides by an encrypted value", "Multiply by a polynomial of it, or by a constant")
    with np.errstate(divide="ignore"):
        return _with_constant(
            lifter, a, b.double().reciprocal() if isinstance(b, torch.Tensor) else 1 / np.float64(b), True
        )


@register_function(operator.neg, torch.neg, torch.negative, "neg", "negative", "__neg__")
def _neg(lifter: Lifter, x: Value) -> Any:
    return lifter.affine(x, scale=-1.0)


@register_function(operator.pos, torch.positive, "positive")
def _pos(lifter: Lifter, x: Value) -> Any:
    return x


@register_function(torch.square, "square")
def _square(lifter: Lifter, x: Value) -> Any:
    return lifter.add(Multiply(), x, x)


@register_function(operator.pow, torch.pow, "pow", "__pow__")
def _pow(lifter: Lifter, x: Any, exponent: Any) -> Any:
    if isinstance(exponent, torch.Tensor) and exponent.numel() == 1:
        exponent = exponent.item()
    if not isinstance(x, Value) or not isinstance(exponent, (int, float)) or exponent not in range(1, 17):
        raise Unsupported(
            "a power whose exponent isn't an integer from 1 to 16", "Use small integer powers, such as x * x"
        )
    # Square and multiply: the depth is the least, ceil(log2(exponent)).
    remaining, power = int(exponent), x
    result: Value | None = None
    while True:
        if remaining & 1:
            result = power if result is None else lifter.add(Multiply(), result, power)
        remaining >>= 1
        if not remaining:
            return result
        power = lifter.add(Multiply(), power, power)
