"""Lifting of what the client computes if it is one of the last steps: softmax, argmax and the like.

Within a network most of these are computed on encrypted values, by fitted functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import (
    activate,
    add,
    along_axes,
    drop,
    encrypted_softmax,
    joined,
    larger,
    multiply,
    negative,
    number,
    plus,
    square,
    take_slices,
)
from olac.frontend.lifter import ABSENT, Lifter, Unsupported, Value, any_order, register_function, register_module
from olac.ir.head import ArgMax, Elementwise, LogSoftmax, Max, Normalize, Softmax
from olac.ir.ops import Shape


def _axis(lifter: Lifter, x: Value, dim: Any) -> int:
    if not isinstance(dim, int):
        raise Unsupported(f"{lifter.called} over the whole batch", "Give the axis, dim=1 for classes")
    return lifter.axes(dim, x)[0]


def _class_axis(lifter: Lifter, x: Value, dim: Any) -> int:
    """The axis of a softmax; if it is not given, torch has a rule of its own."""
    return _axis(lifter, x, (0 if x.rank in (1, 3) else 1) if dim is None else dim)


def _reduced(
    lifter: Lifter, x: Value, kind: type[ArgMax] | type[Max], dim: Any, keepdim: Any, suffix: str = ""
) -> Value:
    """One element for all along an axis. One number an image keeps its axis in the graph, as everywhere."""
    axis, vector = _axis(lifter, x, dim), len(x.shape) == 1
    made = lifter.at_client(x, kind(axis, bool(keepdim) or vector), suffix)
    return Value(made.id, ()) if vector and not keepdim else made


@register_module(nn.Softmax)
def _module_softmax(lifter: Lifter, m: nn.Softmax, x: Value) -> Any:
    return _softmax(lifter, x, m.dim)


@register_module(nn.Softmax2d)
def _module_softmax2d(lifter: Lifter, m: nn.Softmax2d, x: Value) -> Any:
    return _softmax(lifter, x, -3)


@register_module(nn.LogSoftmax)
def _module_log_softmax(lifter: Lifter, m: nn.LogSoftmax, x: Value) -> Any:
    return _log_softmax(lifter, x, m.dim)


@register_module(nn.Softmin)
def _module_softmin(lifter: Lifter, m: nn.Softmin, x: Value) -> Any:
    return _softmin(lifter, x, m.dim)


@register_function(F.softmax, torch.softmax, torch.special.softmax, "softmax")
def _softmax(lifter: Lifter, input: Value, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    axis = _class_axis(lifter, input, dim)
    return encrypted_softmax(lifter, input, axis) if lifter.encrypted else lifter.at_client(input, Softmax(axis))


@register_function(F.log_softmax, torch.log_softmax, torch.special.log_softmax, "log_softmax")
def _log_softmax(lifter: Lifter, input: Value, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    axis = _class_axis(lifter, input, dim)
    if not lifter.encrypted:
        return lifter.at_client(input, LogSoftmax(axis))
    total = along_axes(lifter, activate(lifter, input, "exp"), [axis], 1.0)
    return add(lifter, input, negative(lifter, activate(lifter, total, "log")), "log_softmax")


@register_function(F.softmin)
def _softmin(lifter: Lifter, input: Value, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return _softmax(lifter, negative(lifter, input), dim)


@register_function(torch.argmax, "argmax")
def _argmax(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
    return _reduced(lifter, input, ArgMax, dim, keepdim)


@register_function(torch.argmin, "argmin")
def _argmin(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
    return _reduced(lifter, lifter.affine(input, scale=-1.0, suffix="negative"), ArgMax, dim, keepdim)


@register_function(torch.amax, "amax")
def _amax(lifter: Lifter, input: Value, dim: Any = (), keepdim: bool = False) -> Any:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if dims and (lifter.encrypted or len(dims) > 1):
        return _largest(lifter, input, lifter.axes(dims, input), keepdim)
    if len(dims) != 1:
        raise Unsupported(f"{lifter.called} over {len(dims)} axes", "Take it over one axis, or use MaxPool2d")
    return _reduced(lifter, input, Max, dims[0], keepdim)


def _largest(lifter: Lifter, x: Value, axes: Sequence[int], keepdim: bool) -> Value:
    """The largest element over axes, by a tree of comparisons of two."""
    for axis in axes:
        while (size := x.shape[axis]) > 1:
            half = size // 2
            parts = [
                take_slices(lifter, x, _window(x, axis, start, stop), _with(x.shape, axis, stop - start))
                for start, stop in ((0, half), (half, 2 * half), (2 * half, size))
                if stop > start
            ]
            made = larger(lifter, parts[0], parts[1])
            x = made if len(parts) == 2 else joined(lifter, [made, parts[2]], axis)
    return x if keepdim else drop(lifter, x, axes)


def _window(x: Value, axis: int, start: int, stop: int) -> list[tuple[int, int, int]]:
    return [(start, stop, 1) if a == axis else (0, n, 1) for a, n in enumerate(x.shape)]


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


@register_function(torch.amin, "amin")
def _amin(lifter: Lifter, input: Value, dim: Any = (), keepdim: bool = False) -> Any:
    return negative(lifter, _amax(lifter, negative(lifter, input), dim, keepdim))


@register_function(torch.maximum, torch.fmax, "maximum", "fmax")
@any_order
def _maximum(lifter: Lifter, a: Any, b: Any) -> Any:
    if isinstance(a, Value) and isinstance(b, Value):
        return larger(lifter, a, b)
    x, constant = (a, number(b)) if isinstance(a, Value) else (b, number(a))
    return plus(lifter, activate(lifter, plus(lifter, x, -constant), "relu"), constant)


@register_function(torch.minimum, torch.fmin, "minimum", "fmin")
@any_order
def _minimum(lifter: Lifter, a: Any, b: Any) -> Any:
    return negative(
        lifter, _maximum(lifter, *(negative(lifter, x) if isinstance(x, Value) else -number(x) for x in (a, b)))
    )


@register_function(torch.min, "min")
def _min(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(dim, (Value, torch.Tensor)):
        return _minimum(lifter, input, dim)
    values, indices = _max(lifter, negative(lifter, input), dim, keepdim)
    return negative(lifter, values), indices


@register_function(torch.max, "max")
def _max(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
    if isinstance(dim, (Value, torch.Tensor)):
        return _maximum(lifter, input, dim)
    if lifter.encrypted and isinstance(dim, int):
        return _largest(lifter, input, lifter.axes(dim, input), keepdim), ABSENT
    values = _reduced(lifter, input, Max, dim, keepdim, "values")
    return values, _reduced(lifter, input, ArgMax, dim, keepdim, "indices")


@register_function(F.normalize)
def _normalize(lifter: Lifter, input: Value, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Any:
    if not (isinstance(p, (int, float)) and 1 <= p < math.inf):
        raise Unsupported(f"normalises by a {p}-norm", "Use p=2 or p=1")
    axis = _axis(lifter, input, dim)
    if not lifter.encrypted:
        return lifter.at_client(input, Normalize(axis, float(p), float(eps)))
    if p == 2:
        size = along_axes(lifter, square(lifter, input), [axis], 1.0)
        return multiply(lifter, input, activate(lifter, size, "rsqrt", float(eps) ** 2), "normalised")
    if p == 1:
        size = along_axes(lifter, activate(lifter, input, "abs"), [axis], 1.0)
        return multiply(lifter, input, activate(lifter, size, "reciprocal"), "normalised")
    raise Unsupported(f"normalises by a {p}-norm within the network", "Use p=2 or p=1")


@register_function(torch.exp, "exp")
def _exp(lifter: Lifter, input: Value) -> Any:
    return activate(lifter, input, "exp") if lifter.encrypted else lifter.at_client(input, Elementwise("exp"))


@register_function(torch.expm1, torch.special.expm1, "expm1")
def _expm1(lifter: Lifter, input: Value) -> Any:
    return activate(lifter, input, "expm1") if lifter.encrypted else lifter.at_client(input, Elementwise("expm1"))
