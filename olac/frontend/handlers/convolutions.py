"""Convolutions and batch normalisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import pad_by_elements
from olac.frontend.handlers.windows import Windows, from_lines, lines, pair, per_axis, register_each, sizes_of
from olac.frontend.lifter import (
    FunctionHandler,
    Lifter,
    ModuleHandler,
    Unsupported,
    Value,
    register_function,
    register_module,
)
from olac.ir.ops import (
    Array,
    Conv2d,
    Pad,
)

WHAT = "a convolution"

# Convolutions ---------------------------------------------------------------------------------------------------------


def _over_lines(lifter: Lifter, x: Value, weight: torch.Tensor, bias: Any, windows: Windows, groups: int) -> Value:
    rows = lines(lifter, x, WHAT)
    return from_lines(lifter, _over_planes(lifter, rows, weight[:, :, None], bias, windows.on_planes, groups))


def _over_planes(lifter: Lifter, x: Value, weight: torch.Tensor, bias: Any, windows: Windows, groups: int) -> Value:
    if len(x.shape) == 4 and x.frame.merged > 1:
        # Several pictures of an image, which lie in the batch axis: each has a group of channels.
        many, channels = x.shape[:2]
        flat = lifter.reshape(x, (many * channels, *x.shape[2:]))
        each = bias if bias is None else bias.repeat(many)
        made = _over_planes(lifter, flat, weight.repeat(many, 1, 1, 1), each, windows, many * groups)
        return lifter.reshape(made, (many, made.shape[0] // many, *made.shape[1:]))
    sizes_of(x, 2, WHAT)
    return _convolved(lifter, x, weight, bias, windows, groups)


def _over_volumes(lifter: Lifter, x: Value, weight: torch.Tensor, bias: Any, windows: Windows, groups: int) -> Value:
    """A convolution of volumes as one of planes: each plane of the result reads the planes of its taps."""
    d, h, w = sizes_of(x, 3, WHAT)
    (before, after), stride, apart = windows.sides[0], windows.stride[0], windows.dilation[0]
    out, per_group, depth = weight.shape[:3]
    planes = (d + before + after - windows.reach[0] - 1) // stride + 1
    made = torch.zeros(out, planes, per_group, d, *weight.shape[3:], dtype=torch.float64)
    for to in range(planes):
        for tap in range(depth):
            source = to * stride + tap * apart - before
            if 0 <= source < d:
                made[:, to, :, source] += weight[:, :, tap].double()
    made = made.reshape(out * planes, per_group * d, *weight.shape[3:])
    each = None if bias is None else bias.repeat_interleave(planes)
    flat = lifter.reshape(x, (x.shape[0] * d, h, w))
    flat = _convolved(lifter, flat, made, each, windows.of_planes, groups)
    return lifter.reshape(flat, (out, planes, *flat.shape[1:]))


def _convolved(lifter: Lifter, x: Value, weight: torch.Tensor, bias: Any, windows: Windows, groups: int) -> Value:
    op = Conv2d(
        lifter.constant("weight", weight),
        None if bias is None else lifter.constant("bias", bias),
        pair(windows.stride),
        (*windows.sides[0], *windows.sides[1]),
        pair(windows.dilation),
        int(groups),
    )
    return lifter.add(op, x)


def _require_constant(weight: Any, bias: Any) -> None:
    if not isinstance(weight, torch.Tensor) or isinstance(bias, Value):
        raise Unsupported("a convolution whose weights are encrypted", "Use constant weights")


_OVER = {1: _over_lines, 2: _over_planes, 3: _over_volumes}


def _conv(count: int) -> FunctionHandler:
    """The handler of a convolution over `count` axes."""

    def handler(
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
        windows = Windows.of(count, weight.shape[2:], stride, padding, dilation)
        return _OVER[count](lifter, input, weight, bias, windows, groups)

    return handler


def _module_conv(conv: FunctionHandler) -> ModuleHandler:
    def handler(lifter: Lifter, m: Any, x: Value) -> Any:
        padding = m.padding
        if m.padding_mode != "zeros":
            if m.weight.ndim == 5:
                raise Unsupported(
                    f"Conv3d with padding_mode {m.padding_mode!r}", "Pad by zeros, or pad before it by F.pad"
                )
            x, padding = pad_by_elements(lifter, x, m._reversed_padding_repeated_twice, m.padding_mode), 0
        return conv(lifter, x, m.weight, m.bias, m.stride, padding, m.dilation, m.groups)

    return handler


register_each(
    _conv,
    _module_conv,
    (1, (F.conv1d,), nn.Conv1d),
    (2, (F.conv2d,), nn.Conv2d),
    (3, (F.conv3d,), nn.Conv3d),
)


# Transposed convolutions ----------------------------------------------------------------------------------------------


def _transposed(
    lifter: Lifter, x: Value, weight: torch.Tensor, bias: Any, windows: Windows, extra: tuple[int, int], groups: int
) -> Value:
    """Zeros between the elements, then a convolution with the mirrored kernel."""
    sizes = sizes_of(x, 2, WHAT)
    c, strides = x.shape[0], windows.stride
    spread = np.full((c, *((n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True))), -1)
    spread[:, :: strides[0], :: strides[1]] = np.arange(math.prod(x.shape)).reshape(x.shape)
    if strides != (1, 1):
        x = lifter.gather(x, spread, "spread")
    per_group, kernel = weight.shape[1], weight.shape[2:]
    mirrored = weight.flip(2, 3).reshape(groups, c // groups, per_group, *kernel).transpose(1, 2)
    mirrored = mirrored.reshape(groups * per_group, c // groups, *kernel)
    sides = [(r - a, r - b + e) for r, (a, b), e in zip(windows.reach, windows.sides, extra, strict=True)]
    if min(*sides[0], *sides[1]) < 0:
        x = lifter.add(Pad(((0, 0), *((min(a, 0), min(b, 0)) for a, b in sides))), x, suffix="cut")
    around = tuple((max(0, a), max(0, b)) for a, b in sides)
    return _convolved(lifter, x, mirrored, bias, Windows(windows.kernel, (1, 1), around, windows.dilation), groups)


def _conv_transpose(count: int) -> FunctionHandler:
    """The handler of a transposed convolution over `count` axes, one or two."""

    def handler(
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
        windows = Windows.of(count, weight.shape[2:], stride, padding, dilation)
        extra = per_axis(output_padding, count)
        if count == 2:
            return _transposed(lifter, input, weight, bias, windows, pair(extra), groups)
        rows = lines(lifter, input, WHAT)
        made = _transposed(lifter, rows, weight[:, :, None], bias, windows.on_planes, (0, extra[0]), groups)
        return from_lines(lifter, made)

    return handler


def _module_conv_transpose(conv: FunctionHandler) -> ModuleHandler:
    def handler(lifter: Lifter, m: Any, x: Value) -> Any:
        return conv(lifter, x, m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)

    return handler


register_each(
    _conv_transpose,
    _module_conv_transpose,
    (1, (F.conv_transpose1d,), nn.ConvTranspose1d),
    (2, (F.conv_transpose2d,), nn.ConvTranspose2d),
)


# Batch normalisation --------------------------------------------------------------------------------------------------


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
