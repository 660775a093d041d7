"""Normalisations whose statistics are of the encrypted values themselves.

Variances are exact, and 1 / sqrt(variance + eps) is an activation: its polynomial is fitted to the variances that
calibration sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import activate, along_axes, centred, drop, multiply, square, times
from olac.frontend.lifter import (
    FunctionHandler,
    Lifter,
    Unsupported,
    Value,
    any_order,
    register_function,
    register_module,
)


def normalised(lifter: Lifter, x: Value, axes: Sequence[int], eps: float, centre: bool = True) -> Value:
    """(x - mean) / sqrt(variance + eps) over axes of one image; with `centre` False x / sqrt(mean of squares + eps)."""
    if centre:
        x = centred(lifter, x, axes)
    variance = along_axes(lifter, square(lifter, x), axes, None)
    return multiply(lifter, x, activate(lifter, variance, "rsqrt", eps), "normalised")


def _scaled(lifter: Lifter, x: Value, weight: Any, bias: Any, axes: Sequence[int]) -> Value:
    """weight * x + bias, with numbers for each element of these axes of one image."""
    made = []
    for one, neutral in ((weight, 1.0), (bias, 0.0)):
        if isinstance(one, Value):
            raise Unsupported("a normalisation whose weights are encrypted", "Use constant weights")
        full = [x.shape[a] if a in axes else 1 for a in range(len(x.shape))]
        made.append(neutral if one is None else one.detach().double().cpu().numpy().reshape(full))
    return lifter.affine(x, made[0], made[1], suffix="affine")


@register_function(F.layer_norm, torch.layer_norm)
@any_order
def _layer_norm(
    lifter: Lifter,
    input: Value,
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    axes = lifter.axes(range(-len(normalized_shape), 0), input)
    return _scaled(lifter, normalised(lifter, input, axes, eps), weight, bias, axes)


@register_module(nn.LayerNorm)
@any_order
def _module_layer_norm(lifter: Lifter, m: nn.LayerNorm, x: Value) -> Any:
    return _layer_norm(lifter, x, m.normalized_shape, m.weight, m.bias, m.eps)


@register_function(F.rms_norm, torch.rms_norm)
@any_order
def _rms_norm(
    lifter: Lifter, input: Value, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Any:
    axes = lifter.axes(range(-len(normalized_shape), 0), input)
    least = torch.finfo(torch.float32).eps if eps is None else eps
    return _scaled(lifter, normalised(lifter, input, axes, least, centre=False), weight, None, axes)


@register_module(nn.RMSNorm)
@any_order
def _module_rms_norm(lifter: Lifter, m: nn.RMSNorm, x: Value) -> Any:
    return _rms_norm(lifter, x, m.normalized_shape, m.weight, m.eps)


@register_function(F.group_norm, torch.group_norm)
@any_order
def _group_norm(
    lifter: Lifter,
    input: Value,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    _require_batch_first(input)
    (channels,) = lifter.axes(1, input)
    before, rest = input.shape[:channels], input.shape[channels:]
    split = lifter.reshape(input, (*before, num_groups, math.prod(rest) // num_groups))
    made = lifter.reshape(normalised(lifter, split, [channels + 1], eps), input.shape)
    return _scaled(lifter, made, weight, bias, [channels])


@register_module(nn.GroupNorm)
@any_order
def _module_group_norm(lifter: Lifter, m: nn.GroupNorm, x: Value) -> Any:
    return _group_norm(lifter, x, m.num_groups, m.weight, m.bias, m.eps)


@register_function(F.instance_norm, torch.instance_norm)
@any_order
def _instance_norm(
    lifter: Lifter,
    input: Value,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    _require_batch_first(input)
    channels = lifter.axes(1, input)
    if not use_input_stats:
        scale = 1 / torch.sqrt(running_var.double() + eps)
        x = _scaled(lifter, input, scale, -running_mean.double() * scale, channels)
    else:
        x = normalised(lifter, input, range(channels[0] + 1, len(input.shape)), eps)
    return _scaled(lifter, x, weight, bias, channels)


@register_module(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
@any_order
def _module_instance_norm(lifter: Lifter, m: nn.InstanceNorm2d, x: Value) -> Any:
    if x.rank != {nn.InstanceNorm1d: 3, nn.InstanceNorm2d: 4, nn.InstanceNorm3d: 5}[_kind(m)]:
        raise Unsupported(f"{type(m).__name__} on values of {x.rank} axes", "Give (batch, channels, ...)")
    own = not m.track_running_stats
    return _instance_norm(lifter, x, m.running_mean, m.running_var, m.weight, m.bias, own, m.momentum or 0.1, m.eps)


def _kind(m: nn.Module) -> Any:
    """The class of torch that an instance norm is of."""
    return next(cls for cls in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d) if isinstance(m, cls))


def _require_batch_first(x: Value) -> None:
    if x.frame.at:
        raise Unsupported("normalises with the batch axis elsewhere", "Keep the batch axis first")


def _moments(parts: Callable[[Lifter, Value, Value, list[int]], Iterable[Value]]) -> FunctionHandler:
    """The handler of a function of a variance, as `torch.var` takes its arguments.

    Args:
        parts: the results, from the value, its variance and the axes, which keep a length of 1.
    """

    @any_order
    def handler(
        lifter: Lifter,
        input: Value,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Any:
        if dim is None:
            raise Unsupported("reduces over the whole batch", "Give the axes to reduce over, without the batch axis")
        less = (1.0 if unbiased else 0.0) if correction is None else float(correction)
        axes = lifter.axes(dim, input)
        count = math.prod(input.shape[a] for a in axes)
        if count <= less:
            raise Unsupported(f"a variance of {count} elements with correction {less}", "Use correction=0")
        variance = along_axes(lifter, square(lifter, centred(lifter, input, axes)), axes, 1 / (count - less))
        made = tuple(one if keepdim else drop(lifter, one, axes) for one in parts(lifter, input, variance, axes))
        return made if len(made) > 1 else made[0]

    return handler


register_function(torch.var, "var")(_moments(lambda lifter, x, variance, axes: [variance]))
register_function(torch.std, "std")(_moments(lambda lifter, x, variance, axes: [activate(lifter, variance, "sqrt")]))
register_function(torch.var_mean)(
    _moments(lambda lifter, x, variance, axes: [variance, along_axes(lifter, x, axes, None)])
)


@register_function(torch.linalg.norm)
@any_order
def _linalg_norm(
    lifter: Lifter, x: Value, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    if isinstance(dim, (tuple, list)) and len(dim) == 2 and ord not in (None, "fro"):
        raise Unsupported(f"the matrix norm of order {ord}", "Use torch.linalg.vector_norm, or the Frobenius norm")
    return _norm(lifter, x, 2 if ord is None else ord, dim, keepdim)


@register_function(torch.linalg.vector_norm)
@any_order
def _vector_norm(
    lifter: Lifter, x: Value, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    return _norm(lifter, x, ord, dim, keepdim)


@register_function(torch.norm, "norm")
@any_order
def _norm(
    lifter: Lifter, input: Value, p: Any = 2, dim: Any = None, keepdim: bool = False, out: Any = None, dtype: Any = None
) -> Any:
    if dim is None:
        raise Unsupported("a norm over the whole batch", "Give the axes, without the batch axis")
    axes = lifter.axes(dim, input)
    made = sized(lifter, input, axes, p)
    return made if keepdim else drop(lifter, made, axes)


def sized(lifter: Lifter, x: Value, axes: Sequence[int], kind: Any) -> Value:
    """The norm over axes, which keep a length of 1."""
    if kind in (2, "fro", None):
        return activate(lifter, along_axes(lifter, square(lifter, x), axes, 1.0), "sqrt")
    if kind == 1:
        return along_axes(lifter, activate(lifter, x, "abs"), axes, 1.0)
    raise Unsupported(f"a {kind}-norm", "Use the 2-norm or the 1-norm")


@register_function(F.cosine_similarity)
@any_order
def _cosine_similarity(lifter: Lifter, x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    made: list[Any] = []
    axes = lifter.axes(dim, next(x for x in (x1, x2) if isinstance(x, Value)))
    for one in (x1, x2):
        if isinstance(one, Value):
            inverse = activate(lifter, along_axes(lifter, square(lifter, one), axes, 1.0), "rsqrt", eps * eps)
            made.append(multiply(lifter, one, inverse, "normalised"))
        else:
            made.append(F.normalize(one.double(), dim=dim, eps=eps))
    if not all(isinstance(one, Value) for one in made):
        value, constant = made if isinstance(made[0], Value) else made[::-1]
        product = times(lifter, value, constant)
    else:
        product = multiply(lifter, made[0], made[1])
    # A constant may have broadcast the value to more axes; the axis is counted from the end.
    at = product.frame.axis((dim - next(x for x in (x1, x2) if isinstance(x, Value)).rank) % product.rank)
    assert at is not None
    return drop(lifter, along_axes(lifter, product, [at], 1.0), [at])
