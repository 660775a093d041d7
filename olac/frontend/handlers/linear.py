"""Convolutions, linear layers and batch normalisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.lifter import Lifter, Unsupported, Value, register_function, register_module
from olac.ir.ops import (
    Array,
    Conv2d,
    Linear,
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
    if m.padding_mode != "zeros":
        raise Unsupported(
            f"Conv2d with padding_mode {m.padding_mode!r}", "Use padding_mode='zeros' and train the model with it"
        )
    return _conv2d(lifter, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


@register_function(F.linear)
def _linear(lifter: Lifter, input: Value, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, torch.Tensor) or isinstance(bias, Value):
        raise Unsupported("a linear layer whose weights are encrypted", "Use constant weights")
    if len(input.shape) != 1:
        raise Unsupported(
            f"Linear on values of shape {input.shape}, along their last axis only",
            "Flatten first (torch.flatten(x, 1)), or use Conv2d with a 1x1 kernel over channels",
        )
    bias_name = None if bias is None else lifter.constant("bias", bias)
    return lifter.add(Linear(lifter.constant("weight", weight), bias_name), input)


@register_module(nn.Linear)
def _module_linear(lifter: Lifter, m: nn.Linear, x: Value) -> Any:
    return _linear(lifter, x, m.weight, m.bias)


def _over_channels(array: Array, x: Value) -> Array:
    return array.reshape(-1, *(1,) * (len(x.shape) - 1))


def _normalise(lifter: Lifter, x: Value, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Any:
    if mean is None or variance is None:
        raise Unsupported(
            "batch normalisation without running statistics",
            "Use track_running_stats=True and train, so that evaluation doesn't depend on the batch",
        )
    if len(x.shape) not in (1, 3):
        raise Unsupported(
            f"batch normalisation of values of shape {x.shape}", "Use shape (f,) or (channels, height, width)"
        )
    scale = 1.0 / torch.sqrt(variance.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return lifter.affine(x, _over_channels(scale.detach().numpy(), x), _over_channels(shift.detach().numpy(), x))


@register_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
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
