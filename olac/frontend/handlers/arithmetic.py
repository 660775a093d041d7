"""Sums, products and powers, of values and constants."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch

from olac.frontend.algebra import (
    activate,
    common,
    constant_array,
    contract,
    drop,
    multiply,
    number,
    plus,
    take_slices,
    times,
)
from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_function
from olac.ir.ops import (
    Add,
    Multiply,
)


def _is_constant(value: Any) -> bool:
    return isinstance(value, (bool, int, float, torch.Tensor))


def _is_truth(value: Any) -> bool:
    if isinstance(value, Value):
        return value.truth
    return isinstance(value, bool) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool)


def _with_constant(lifter: Lifter, x: Value, constant: Any, scale: bool) -> Value:
    return times(lifter, x, constant) if scale else plus(lifter, x, constant)


@register_function(operator.add, torch.add, "add", "__add__", "__radd__")
@any_order
def _add(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if _is_truth(a) and _is_truth(b):
        raise Unsupported(
            "adds truth values, and torch means or by that", "Write a | b, or add numbers: a.float() + b.float()"
        )
    a, b = number(a), number(b)
    if isinstance(a, Value) and isinstance(b, Value):
        a, b = common(lifter, a, b)
        return lifter.elementwise(Add(), a, lifter.affine(b, scale=alpha, suffix="alpha"))
    if isinstance(a, Value):
        return _with_constant(lifter, a, b * alpha, scale=False)
    return _with_constant(lifter, lifter.affine(b, scale=alpha, suffix="alpha"), a, scale=False)


@register_function(operator.sub, torch.sub, torch.subtract, "sub", "subtract", "__sub__")
@any_order
def _sub(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    a, b = number(a), number(b)
    if isinstance(b, Value):
        if not isinstance(a, Value):
            array = constant_array(lifter, a, b)
            if b.shape != (shape := np.broadcast_shapes(b.shape, array.shape)):
                b = lifter.broadcast(b, shape)
            return lifter.affine(b, scale=-float(alpha), shift=array)
        a, b = common(lifter, a, b)
        return lifter.elementwise(Add(), a, lifter.affine(b, scale=-float(alpha), suffix="negative"))
    return _with_constant(lifter, a, b * -alpha, scale=False)


@register_function(torch.rsub, "rsub", "__rsub__")
@any_order
def _rsub(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sub(lifter, b, a, alpha=alpha)


@register_function(operator.mul, torch.mul, torch.multiply, "mul", "multiply", "__mul__", "__rmul__")
@any_order
def _mul(lifter: Lifter, a: Any, b: Any) -> Any:
    if isinstance(a, Value) and isinstance(b, Value):
        return multiply(lifter, a, b)
    return _with_constant(lifter, a, b, True) if isinstance(a, Value) else _with_constant(lifter, b, a, True)


@register_function(operator.truediv, torch.div, torch.divide, torch.true_divide)
@register_function("div", "divide", "true_divide", "__truediv__")
@any_order
def _div(lifter: Lifter, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise Unsupported("rounds a division", "Leave rounding out")
    if isinstance(b, Value):
        inverse = activate(lifter, b, "reciprocal")
        return multiply(lifter, a, inverse) if isinstance(a, Value) else _with_constant(lifter, inverse, a, True)
    with np.errstate(divide="ignore"):
        return _with_constant(
            lifter, a, b.double().reciprocal() if isinstance(b, torch.Tensor) else 1 / np.float64(b), True
        )


@register_function(operator.neg, torch.neg, torch.negative, "neg", "negative", "__neg__")
@any_order
def _neg(lifter: Lifter, x: Value) -> Any:
    return lifter.affine(x, scale=-1.0)


@register_function(operator.pos, torch.positive, "positive")
@any_order
def _pos(lifter: Lifter, x: Value) -> Any:
    return x


@register_function(torch.reciprocal, "reciprocal")
@any_order
def _reciprocal(lifter: Lifter, x: Value) -> Any:
    return activate(lifter, x, "reciprocal")


@register_function(torch.addcmul, "addcmul")
@any_order
def _addcmul(lifter: Lifter, input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    if isinstance(tensor1, Value) or isinstance(tensor2, Value):
        product = _mul(lifter, tensor1, tensor2)
        return _add(lifter, input, lifter.affine(product, scale=float(value)))
    return _add(lifter, input, value * tensor1 * tensor2)


@register_function(torch.addcdiv, "addcdiv")
@any_order
def _addcdiv(lifter: Lifter, input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    if isinstance(tensor1, Value) or isinstance(tensor2, Value):
        quotient = _div(lifter, tensor1, tensor2)
        return _add(lifter, input, lifter.affine(quotient, scale=float(value)))
    return _add(lifter, input, value * tensor1 / tensor2)


@register_function(torch.lerp, "lerp")
@any_order
def _lerp(lifter: Lifter, input: Any, end: Any, weight: Any) -> Any:
    return _add(lifter, input, _mul(lifter, weight, _sub(lifter, end, input)))


@register_function(torch.prod, "prod")
@any_order
def _prod(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if dim is None:
        raise Unsupported("multiplies the whole batch", "Give the axis, dim=...")
    axis = lifter.axes(dim, input)[0]
    shape = tuple(1 if a == axis else n for a, n in enumerate(input.shape))
    whole = [(0, n, 1) for n in input.shape]
    parts = [
        take_slices(lifter, input, [*whole[:axis], (i, i + 1, 1), *whole[axis + 1 :]], shape)
        for i in range(input.shape[axis])
    ]
    while len(parts) > 1:  # a tree has the least depth
        pairs = [multiply(lifter, a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(parts) & ~1 :]
    return parts[0] if keepdim else drop(lifter, parts[0], [axis])


@register_function(torch.cumsum, "cumsum")
@any_order
def _cumsum(lifter: Lifter, input: Value, dim: int, *, dtype: Any = None) -> Any:
    axis = lifter.axes(dim, input)[0]
    return contract(lifter, input, axis, np.tril(np.ones((input.shape[axis],) * 2)))


@register_function(torch.square, "square")
@any_order
def _square(lifter: Lifter, x: Value) -> Any:
    return lifter.elementwise(Multiply(), x, x)


@register_function(operator.pow, torch.pow, "pow", "__pow__")
@any_order
def _pow(lifter: Lifter, x: Any, exponent: Any) -> Any:
    if isinstance(exponent, torch.Tensor) and exponent.numel() == 1:
        exponent = exponent.item()
    if isinstance(exponent, Value):
        if isinstance(x, Value):
            raise Unsupported("a power whose exponent is encrypted", "Use a constant exponent, or exp(y * log(x))")
        base = constant_array(lifter, x, exponent)
        if not (base > 0).all():
            raise Unsupported("a power of a number that isn't positive", "Use a positive base")
        return activate(lifter, _with_constant(lifter, exponent, torch.as_tensor(np.log(base)), True), "exp")
    if not isinstance(exponent, (int, float)):
        raise Unsupported("a power with several exponents", "Use one number as exponent")
    if exponent == 0:
        return lifter.affine(x, scale=0.0, shift=1.0)
    if exponent not in range(1, 17):
        return activate(lifter, x, "power", float(exponent))
    # Square and multiply: the depth is the least, ceil(log2(exponent)).
    remaining, power = int(exponent), x
    result: Value | None = None
    while True:
        if remaining & 1:
            result = power if result is None else lifter.elementwise(Multiply(), result, power)
        remaining >>= 1
        if not remaining:
            return result
        power = lifter.elementwise(Multiply(), power, power)
