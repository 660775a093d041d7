"""Pooling, means and sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.handlers.linear import pair
from olac.frontend.lifter import Lifter, Unsupported, Value, register_function, register_module
from olac.ir.ops import (
    Array,
    AveragePool,
    Conv2d,
    Linear,
    MaxPool2d,
)


def _windows(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, include_pad: bool, divide: bool
) -> Array:
    """The matrix (windows, size) of one axis of a pooling: the elements of each window hold 1 / divisor, or 1."""
    last = size + 2 * padding - kernel
    count = (-(-last // stride) if ceil_mode else last // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        # Torch omits a last window that would start in the padding on the right.
        count -= 1
    matrix = np.zeros((count, size))
    for i in range(count):
        start = i * stride - padding
        end = min(start + kernel, size + padding)
        inside = range(max(start, 0), min(end, size))
        divisor = end - start if include_pad else len(inside)
        matrix[i, inside.start : inside.stop] = 1.0 / divisor if divide else 1.0
    return matrix


def _pool(lifter: Lifter, x: Value, rows: Array, columns: Array, stride: tuple[int, int]) -> Any:
    if all(np.array_equal(m, np.eye(len(m))) for m in (rows, columns)):
        return x
    return lifter.add(AveragePool(lifter.constant("rows", rows), lifter.constant("columns", columns), stride), x)


def _planes(x: Value, what: str) -> tuple[int, int, int]:
    if len(x.shape) != 3:
        raise Unsupported(f"{what} of a value of shape {x.shape}", "Reshape to (channels, height, width)")
    return x.shape[0], x.shape[1], x.shape[2]


@register_function(F.avg_pool2d)
def _avg_pool2d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    sizes = _planes(input, "average pooling")[1:]
    kernels, paddings = pair(kernel_size), pair(padding)
    strides = kernels if stride is None or stride == [] else pair(stride)
    divide = divisor_override is None
    rows, columns = (
        _windows(size, kernel, step, pad, ceil_mode, count_include_pad, divide)
        for size, kernel, step, pad in zip(sizes, kernels, strides, paddings, strict=True)
    )
    if divisor_override is not None:
        rows = rows / divisor_override
    return _pool(lifter, input, rows, columns, strides)


@register_module(nn.AvgPool2d)
def _module_avg_pool2d(lifter: Lifter, m: nn.AvgPool2d, x: Value) -> Any:
    return _avg_pool2d(
        lifter, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    )


@register_function(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(lifter: Lifter, input: Value, output_size: Any) -> Any:
    sizes = _planes(input, "adaptive pooling")[1:]
    wanted = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
    matrices, steps = [], []
    for size, out in zip(sizes, wanted, strict=True):
        count = size if out is None else int(out)
        matrix = np.zeros((count, size))
        for i in range(count):
            start, end = i * size // count, -(-(i + 1) * size // count)
            matrix[i, start:end] = 1.0 / (end - start)
        matrices.append(matrix)
        steps.append(size // count if size % count == 0 else 0)
    return _pool(lifter, input, matrices[0], matrices[1], (steps[0], steps[1]) if all(steps) else (0, 0))


@register_module(nn.AdaptiveAvgPool2d)
def _module_adaptive_avg_pool2d(lifter: Lifter, m: nn.AdaptiveAvgPool2d, x: Value) -> Any:
    return _adaptive_avg_pool2d(lifter, x, m.output_size)


@register_function(F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices:
        raise Unsupported("max-pooling that returns indices", "Leave return_indices out: indices are not polynomial")
    _planes(input, "max-pooling")
    kernel = pair(kernel_size)
    strides = kernel if stride is None or stride in ((), []) else pair(stride)
    op = MaxPool2d(kernel, strides, pair(padding), pair(dilation), bool(ceil_mode))
    return input if (kernel, strides) == ((1, 1), (1, 1)) else lifter.add(op, input)


@register_module(nn.MaxPool2d)
def _module_max_pool2d(lifter: Lifter, m: nn.MaxPool2d, x: Value) -> Any:
    return _max_pool2d(lifter, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


@register_function(F.adaptive_max_pool2d)
def _adaptive_max_pool2d(lifter: Lifter, input: Value, output_size: Any, return_indices: bool = False) -> Any:
    sizes = _planes(input, "adaptive max-pooling")[1:]
    wanted = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
    counts = [size if out is None else int(out) for size, out in zip(sizes, wanted, strict=True)]
    if any(size % count for size, count in zip(sizes, counts, strict=True)):
        raise Unsupported(
            f"adaptive max-pooling of {sizes[0]}x{sizes[1]} to {counts[0]}x{counts[1]}, by windows of several sizes",
            "Use MaxPool2d, or an output size that divides the input's",
        )
    kernel = tuple(size // count for size, count in zip(sizes, counts, strict=True))
    return _max_pool2d(lifter, input, kernel, return_indices=return_indices)


@register_module(nn.AdaptiveMaxPool2d)
def _module_adaptive_max_pool2d(lifter: Lifter, m: nn.AdaptiveMaxPool2d, x: Value) -> Any:
    return _adaptive_max_pool2d(lifter, x, m.output_size, m.return_indices)


def _reduce(lifter: Lifter, x: Value, dim: Any, keepdim: bool, mean: bool) -> Any:
    if dim is None or dim == () or dim == []:
        raise Unsupported("reduces over the whole batch", "Give the axes to reduce over, without the batch axis")
    axes = sorted(lifter.axes(dim, x))
    kept = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
    weight = {s: 1.0 / s if mean else 1.0 for s in (*x.shape, 1)}
    shape = kept if keepdim else tuple(s for i, s in enumerate(x.shape) if i not in axes)
    if len(x.shape) == 2:
        x = lifter.reshape(x, (*x.shape, 1))
    y = x
    if len(x.shape) == 1:
        y = lifter.add(Linear(lifter.constant("weights", np.full((1, x.shape[0]), weight[x.shape[0]]))), y)
    else:
        _planes(x, "a mean" if mean else "a sum")
        if set(axes) & {1, 2}:
            rows, columns = (
                np.full((1, x.shape[i]), weight[x.shape[i]]) if i in axes else np.eye(x.shape[i]) for i in (1, 2)
            )
            stride = (x.shape[1] if 1 in axes else 1, x.shape[2] if 2 in axes else 1)
            y = _pool(lifter, y, rows, columns, stride)
        if 0 in axes:
            channels = np.full((1, x.shape[0], 1, 1), weight[x.shape[0]])
            y = lifter.add(Conv2d(lifter.constant("weights", channels)), y)
    return lifter.reshape(y, shape)


@register_function(torch.mean, "mean")
def _mean(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _reduce(lifter, input, dim, keepdim, mean=True)


@register_function(torch.sum, "sum")
def _sum(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _reduce(lifter, input, dim, keepdim, mean=False)
