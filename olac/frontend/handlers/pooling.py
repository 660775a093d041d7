"""Pooling, means and sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import along_axes, in_batch
from olac.frontend.handlers.linear import pair
from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_function, register_module
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
@in_batch
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


def _each(value: Any, count: int) -> tuple[int, ...]:
    """One number for each axis."""
    values = (value,) * count if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def lines(lifter: Lifter, x: Value, what: str) -> Value:
    """A value (channels, length) as planes of one row."""
    if len(x.shape) != 2:
        raise Unsupported(f"{what} of a value of shape {x.shape}", "Reshape to (channels, length)")
    return lifter.reshape(x, (x.shape[0], 1, x.shape[1]))


def from_lines(lifter: Lifter, x: Value) -> Value:
    """Planes of one row as (channels, length)."""
    return lifter.reshape(x, (x.shape[0], x.shape[2]))


@register_function(F.avg_pool1d, torch.avg_pool1d)
def _avg_pool1d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    kernel, pad = _each(kernel_size, 1), _each(padding, 1)
    step = kernel if stride in (None, (), []) else _each(stride, 1)
    made = _avg_pool2d(
        lifter,
        lines(lifter, input, "average pooling"),
        (1, *kernel),
        (1, *step),
        (0, *pad),
        ceil_mode,
        count_include_pad,
    )
    return from_lines(lifter, made)


@register_module(nn.AvgPool1d)
def _module_avg_pool1d(lifter: Lifter, m: nn.AvgPool1d, x: Value) -> Any:
    return _avg_pool1d(lifter, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)


@register_function(F.avg_pool3d)
def _avg_pool3d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if len(input.shape) != 4:
        raise Unsupported(f"average pooling of a value of shape {input.shape}", "Reshape to (channels, d, h, w)")
    kernels, paddings = _each(kernel_size, 3), _each(padding, 3)
    strides = kernels if stride in (None, (), []) else _each(stride, 3)
    sizes = input.shape[1:]
    matrices = [
        _windows(size, kernel, step, pad, ceil_mode, count_include_pad, divisor_override is None)
        for size, kernel, step, pad in zip(sizes, kernels, strides, paddings, strict=True)
    ]
    if divisor_override is not None:
        matrices[0] = matrices[0] / divisor_override
    return _separable(lifter, input, matrices)


def _separable(lifter: Lifter, x: Value, matrices: list[Array]) -> Value:
    """A matrix on each of the last axes of (channels, d, h, w)."""
    c, *sizes = x.shape
    planes = lifter.reshape(x, (c * sizes[0], sizes[1], sizes[2]))
    planes = _pool(lifter, planes, matrices[1], matrices[2], (0, 0))
    _, h, w = planes.shape
    columns = lifter.reshape(planes, (c, sizes[0], h * w))
    columns = _pool(lifter, columns, matrices[0], np.eye(h * w), (0, 0))
    return lifter.reshape(columns, (c, len(matrices[0]), h, w))


@register_module(nn.AvgPool3d)
def _module_avg_pool3d(lifter: Lifter, m: nn.AvgPool3d, x: Value) -> Any:
    return _avg_pool3d(
        lifter, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    )


@register_module(nn.AvgPool2d)
def _module_avg_pool2d(lifter: Lifter, m: nn.AvgPool2d, x: Value) -> Any:
    return _avg_pool2d(
        lifter, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    )


def _adaptive(size: int, count: int) -> Array:
    """The matrix of adaptive pooling on one axis."""
    matrix = np.zeros((count, size))
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix


@register_function(F.adaptive_avg_pool2d)
@in_batch
def _adaptive_avg_pool2d(lifter: Lifter, input: Value, output_size: Any) -> Any:
    sizes = _planes(input, "adaptive pooling")[1:]
    counts = [s if n is None else int(n) for s, n in zip(sizes, _wanted(output_size, 2), strict=True)]
    rows, columns = (_adaptive(size, count) for size, count in zip(sizes, counts, strict=True))
    steps = [size // count if size % count == 0 else 0 for size, count in zip(sizes, counts, strict=True)]
    return _pool(lifter, input, rows, columns, (steps[0], steps[1]) if all(steps) else (0, 0))


def _wanted(output_size: Any, count: int) -> tuple[Any, ...]:
    return (output_size,) * count if output_size is None or isinstance(output_size, int) else tuple(output_size)


@register_module(nn.AdaptiveAvgPool2d)
def _module_adaptive_avg_pool2d(lifter: Lifter, m: nn.AdaptiveAvgPool2d, x: Value) -> Any:
    return _adaptive_avg_pool2d(lifter, x, m.output_size)


@register_function(F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d)
def _adaptive_avg_pool1d(lifter: Lifter, input: Value, output_size: Any) -> Any:
    made = _adaptive_avg_pool2d(lifter, lines(lifter, input, "adaptive pooling"), (1, *_wanted(output_size, 1)))
    return from_lines(lifter, made)


@register_module(nn.AdaptiveAvgPool1d)
def _module_adaptive_avg_pool1d(lifter: Lifter, m: nn.AdaptiveAvgPool1d, x: Value) -> Any:
    return _adaptive_avg_pool1d(lifter, x, m.output_size)


@register_function(F.adaptive_avg_pool3d)
def _adaptive_avg_pool3d(lifter: Lifter, input: Value, output_size: Any) -> Any:
    if len(input.shape) != 4:
        raise Unsupported(f"adaptive pooling of a value of shape {input.shape}", "Reshape to (channels, d, h, w)")
    counts = [s if n is None else int(n) for s, n in zip(input.shape[1:], _wanted(output_size, 3), strict=True)]
    return _separable(lifter, input, [_adaptive(s, n) for s, n in zip(input.shape[1:], counts, strict=True)])


@register_module(nn.AdaptiveAvgPool3d)
def _module_adaptive_avg_pool3d(lifter: Lifter, m: nn.AdaptiveAvgPool3d, x: Value) -> Any:
    return _adaptive_avg_pool3d(lifter, x, m.output_size)


@register_function(F.max_pool1d, torch.max_pool1d)
def _max_pool1d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    kernel = _each(kernel_size, 1)
    step = kernel if stride in (None, (), []) else _each(stride, 1)
    made = _max_pool2d(
        lifter,
        lines(lifter, input, "max-pooling"),
        (1, *kernel),
        (1, *step),
        (0, *_each(padding, 1)),
        (1, *_each(dilation, 1)),
        ceil_mode,
        return_indices,
    )
    return from_lines(lifter, made)


@register_module(nn.MaxPool1d)
def _module_max_pool1d(lifter: Lifter, m: nn.MaxPool1d, x: Value) -> Any:
    return _max_pool1d(lifter, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


@register_function(F.max_pool3d)
def _max_pool3d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if len(input.shape) != 4:
        raise Unsupported(f"max-pooling of a value of shape {input.shape}", "Reshape to (channels, d, h, w)")
    kernel, pad, apart = (_each(one, 3) for one in (kernel_size, padding, dilation))
    step = kernel if stride in (None, (), []) else _each(stride, 3)
    c, d, h, w = input.shape
    planes = lifter.reshape(input, (c * d, h, w))
    planes = _max_pool2d(lifter, planes, kernel[1:], step[1:], pad[1:], apart[1:], ceil_mode, return_indices)
    _, h, w = planes.shape
    columns = lifter.reshape(planes, (c, d, h * w))
    columns = _max_pool2d(
        lifter, columns, (kernel[0], 1), (step[0], 1), (pad[0], 0), (apart[0], 1), ceil_mode, return_indices
    )
    return lifter.reshape(columns, (c, columns.shape[1], h, w))


@register_module(nn.MaxPool3d)
def _module_max_pool3d(lifter: Lifter, m: nn.MaxPool3d, x: Value) -> Any:
    return _max_pool3d(lifter, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


@register_function(F.adaptive_max_pool1d, torch.adaptive_max_pool1d)
def _adaptive_max_pool1d(lifter: Lifter, input: Value, output_size: Any, return_indices: bool = False) -> Any:
    made = _adaptive_max_pool2d(
        lifter, lines(lifter, input, "max-pooling"), (1, *_wanted(output_size, 1)), return_indices
    )
    return from_lines(lifter, made)


@register_module(nn.AdaptiveMaxPool1d)
def _module_adaptive_max_pool1d(lifter: Lifter, m: nn.AdaptiveMaxPool1d, x: Value) -> Any:
    return _adaptive_max_pool1d(lifter, x, m.output_size, m.return_indices)


@register_function(F.max_pool2d, torch.max_pool2d)
@in_batch
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
@in_batch
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


def reduction(lifter: Lifter, x: Value, dim: Any, keepdim: bool, mean: bool) -> Value:
    """The sum or the mean over torch's axes `dim`."""
    if dim is None or dim in ((), []):
        raise Unsupported("reduces over the whole batch", "Give the axes to reduce over, without the batch axis")
    axes = sorted(lifter.axes(dim, x))
    kept = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
    shape = kept if keepdim else tuple(s for i, s in enumerate(x.shape) if i not in axes)
    weight = {s: 1.0 / s if mean else 1.0 for s in (*x.shape, 1)}
    if x.order is not None or len(x.shape) not in (1, 2, 3):
        return lifter.reshape(along_axes(lifter, x, axes, None if mean else 1.0), shape)
    if len(x.shape) == 2:
        x = lifter.reshape(x, (*x.shape, 1))
    y = x
    if len(x.shape) == 1:
        y = lifter.add(Linear(lifter.constant("weights", np.full((1, x.shape[0]), weight[x.shape[0]]))), y)
    else:
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
@any_order
def _mean(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return reduction(lifter, input, dim, keepdim, mean=True)


@register_function(torch.sum, "sum")
@any_order
def _sum(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return reduction(lifter, input, dim, keepdim, mean=False)
