"""Convolutions and batch normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import pad_by_elements
from olac.frontend.lifter import Lifter, Unsupported, Value, register_function, register_module
from olac.ir.ops import (
    Array,
    Conv2d,
    Pad,
)


def pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _conv2d(
    lifter: Lifter,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not isinstance(weight, torch.Tensor) or isinstance(bias, Value):
        raise Unsupported("a convolution whose weights are encrypted", "Use constant weights")
    if len(x.shape) == 4 and x.frame.merged > 1:
        # Several pictures of an image, which lie in the batch axis: each has a group of channels.
        many, channels = x.shape[:2]
        flat = lifter.reshape(x, (many * channels, *x.shape[2:]))
        each = bias if bias is None else bias.repeat(many)
        made = _conv2d(lifter, flat, weight.repeat(many, 1, 1, 1), each, stride, padding, dilation, many * groups)
        return lifter.reshape(made, (many, made.shape[0] // many, *made.shape[1:]))
    if len(x.shape) != 3:
        raise Unsupported(f"a convolution of a value of shape {x.shape}", "Reshape to (channels, height, width)")
    dilation, stride = pair(dilation), pair(stride)
    kernel = weight.shape[2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    elif padding == "valid":
        sides = (0, 0, 0, 0)
    else:
        vertical, horizontal = pair(padding)
        sides = (vertical, vertical, horizontal, horizontal)
    op = Conv2d(
        lifter.constant("weight", weight),
        None if bias is None else lifter.constant("bias", bias),
        stride,
        sides,
        dilation,
        int(groups),
    )
    return lifter.add(op, x)


@register_function(F.conv2d)
def _function_conv2d(
    lifter: Lifter,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    return _conv2d(lifter, input, weight, bias, stride, padding, dilation, groups)


@register_module(nn.Conv2d)
def _module_conv2d(lifter: Lifter, m: nn.Conv2d, x: Value) -> Any:
    padding: Any = m.padding
    if m.padding_mode != "zeros":
        x, padding = pad_by_elements(lifter, x, m._reversed_padding_repeated_twice, m.padding_mode), 0
    return _conv2d(lifter, x, m.weight, m.bias, m.stride, padding, m.dilation, m.groups)


def _over_channels(lifter: Lifter, array: Array, x: Value) -> Array:
    """Numbers for the channels, torch's axis 1, as an array that broadcasts to the value."""
    (channels,) = lifter.axes(1, x)
    return array.reshape([-1 if a == channels else 1 for a in range(len(x.shape))])


def _normalise(lifter: Lifter, x: Value, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Any:
    if mean is None or variance is None:
        raise Unsupported(
            "batch normalisation without running statistics",
            "Use track_running_stats=True and train, so that evaluation doesn't depend on the batch",
        )
    scale = 1.0 / torch.sqrt(variance.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    factors, shifts = (_over_channels(lifter, one.detach().numpy(), x) for one in (scale, shift))
    return lifter.affine(x, factors, shifts)


@register_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def _batch_norm(lifter: Lifter, m: nn.BatchNorm2d, x: Value) -> Any:
    return _normalise(lifter, x, m.running_mean, m.running_var, m.weight, m.bias, m.eps)


@register_function(F.batch_norm)
def _function_batch_norm(
    lifter: Lifter,
    input: Value,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training:
        running_mean = None
    return _normalise(lifter, input, running_mean, running_var, weight, bias, eps)


def _lines(lifter: Lifter, x: Value) -> Value:
    if len(x.shape) != 2:
        raise Unsupported(f"a convolution of a value of shape {x.shape}", "Reshape to (channels, length)")
    return lifter.reshape(x, (x.shape[0], 1, x.shape[1]))


def _one(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else int(value[0])


@register_function(F.conv1d, torch.conv1d)
def _conv1d(
    lifter: Lifter,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    _require_constant(weight, bias)
    sides = padding if isinstance(padding, str) else (0, _one(padding))
    made = _conv2d(
        lifter,
        _lines(lifter, input),
        weight[:, :, None],
        bias,
        (1, _one(stride)),
        sides,
        (1, _one(dilation)),
        groups,
    )
    return lifter.reshape(made, (made.shape[0], made.shape[2]))


@register_module(nn.Conv1d)
def _module_conv1d(lifter: Lifter, m: nn.Conv1d, x: Value) -> Any:
    padding: Any = m.padding
    if m.padding_mode != "zeros":
        x, padding = pad_by_elements(lifter, x, m._reversed_padding_repeated_twice, m.padding_mode), 0
    return _conv1d(lifter, x, m.weight, m.bias, m.stride, padding, m.dilation, m.groups)


def _require_constant(weight: Any, bias: Any) -> None:
    if not isinstance(weight, torch.Tensor) or isinstance(bias, Value):
        raise Unsupported("a convolution whose weights are encrypted", "Use constant weights")


@register_function(F.conv3d, torch.conv3d)
def _conv3d(
    lifter: Lifter,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution of volumes as one of planes: each plane of the result reads the planes of its taps."""
    _require_constant(weight, bias)
    if len(input.shape) != 4:
        raise Unsupported(f"a convolution of a value of shape {input.shape}", "Reshape to (channels, d, h, w)")
    strides, apart = (_three(one) for one in (stride, dilation))
    reach = [a * (k - 1) for a, k in zip(apart, weight.shape[2:], strict=True)]
    if padding == "same":
        sides = [(total // 2, total - total // 2) for total in reach]
    else:
        sides = [(n, n) for n in (_three(0) if padding == "valid" else _three(padding))]
    c, d, h, w = input.shape
    out, per_group, depth = weight.shape[:3]
    planes = (d + sum(sides[0]) - reach[0] - 1) // strides[0] + 1
    made = torch.zeros(out, planes, per_group, d, *weight.shape[3:], dtype=torch.float64)
    for to in range(planes):
        for tap in range(depth):
            source = to * strides[0] + tap * apart[0] - sides[0][0]
            if 0 <= source < d:
                made[:, to, :, source] += weight[:, :, tap].double()
    op = Conv2d(
        lifter.constant("weight", made.reshape(out * planes, per_group * d, *weight.shape[3:])),
        None if bias is None else lifter.constant("bias", bias.repeat_interleave(planes)),
        (strides[1], strides[2]),
        (*sides[1], *sides[2]),
        (apart[1], apart[2]),
        int(groups),
    )
    flat = lifter.add(op, lifter.reshape(input, (c * d, h, w)))
    return lifter.reshape(flat, (out, planes, *flat.shape[1:]))


def _three(value: Any) -> tuple[int, int, int]:
    values = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    values = values * 3 if len(values) == 1 else values
    return values[0], values[1], values[2]


@register_module(nn.Conv3d)
def _module_conv3d(lifter: Lifter, m: nn.Conv3d, x: Value) -> Any:
    if m.padding_mode != "zeros":
        raise Unsupported(f"Conv3d with padding_mode {m.padding_mode!r}", "Pad by zeros, or pad before it by F.pad")
    return _conv3d(lifter, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


@register_function(F.conv_transpose2d, torch.conv_transpose2d)
def _conv_transpose2d(
    lifter: Lifter,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Zeros between the elements, then a convolution with the mirrored kernel."""
    _require_constant(weight, bias)
    if len(input.shape) != 3:
        raise Unsupported(f"a convolution of a value of shape {input.shape}", "Reshape to (channels, height, width)")
    strides, pads, extra, apart = (pair(one) for one in (stride, padding, output_padding, dilation))
    c, *sizes = input.shape
    spread = np.full((c, *((n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True))), -1)
    spread[:, :: strides[0], :: strides[1]] = np.arange(math.prod(input.shape)).reshape(input.shape)
    x = input if strides == (1, 1) else lifter.gather(input, spread, "spread")
    per_group, kernel = weight.shape[1], weight.shape[2:]
    mirrored = weight.flip(2, 3).reshape(groups, c // groups, per_group, *kernel).transpose(1, 2)
    sides = [(a * (k - 1) - p, a * (k - 1) - p + e) for a, k, p, e in zip(apart, kernel, pads, extra, strict=True)]
    if min(*sides[0], *sides[1]) < 0:
        x = lifter.add(Pad(((0, 0), *((min(a, 0), min(b, 0)) for a, b in sides))), x, suffix="cut")
    op = Conv2d(
        lifter.constant("weight", mirrored.reshape(groups * per_group, c // groups, *kernel)),
        None if bias is None else lifter.constant("bias", bias),
        (1, 1),
        (max(0, sides[0][0]), max(0, sides[0][1]), max(0, sides[1][0]), max(0, sides[1][1])),
        apart,
        int(groups),
    )
    return lifter.add(op, x)


@register_module(nn.ConvTranspose2d)
def _module_conv_transpose2d(lifter: Lifter, m: nn.ConvTranspose2d, x: Value) -> Any:
    return _conv_transpose2d(lifter, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)


@register_function(F.conv_transpose1d, torch.conv_transpose1d)
def _conv_transpose1d(
    lifter: Lifter,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    _require_constant(weight, bias)
    made = _conv_transpose2d(
        lifter,
        _lines(lifter, input),
        weight[:, :, None],
        bias,
        (1, _one(stride)),
        (0, _one(padding)),
        (0, _one(output_padding)),
        groups,
        (1, _one(dilation)),
    )
    return lifter.reshape(made, (made.shape[0], made.shape[2]))


@register_module(nn.ConvTranspose1d)
def _module_conv_transpose1d(lifter: Lifter, m: nn.ConvTranspose1d, x: Value) -> Any:
    return _conv_transpose1d(lifter, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)
