"""Pooling, means and sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import along_axes, in_batch
from olac.frontend.handlers.windows import Windows, from_lines, lines, pair, register_each, sizes_of
from olac.frontend.lifter import (
    FunctionHandler,
    Lifter,
    ModuleHandler,
    Unsupported,
    Value,
    any_order,
    register_function,
)
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


def _pool(lifter: Lifter, x: Value, rows: Array, columns: Array, stride: tuple[int, int]) -> Value:
    if all(np.array_equal(m, np.eye(len(m))) for m in (rows, columns)):
        return x
    return lifter.add(AveragePool(lifter.constant("rows", rows), lifter.constant("columns", columns), stride), x)


# Average pooling ------------------------------------------------------------------------------------------------------


def _by_axes(lifter: Lifter, x: Value, matrices: Sequence[Array], steps: Sequence[int]) -> Value:
    """A matrix on each axis after the channels, of lines, planes or volumes.

    Args:
        steps: the distance of neighbouring windows on each axis, with a 0 if they have none in common.
    """
    if len(matrices) == 1:
        rows = lines(lifter, x, "pooling")
        return from_lines(lifter, _by_axes(lifter, rows, [np.eye(1), *matrices], [1, *steps]))
    if len(matrices) == 2:
        return _pool(lifter, x, matrices[0], matrices[1], pair(steps) if all(steps) else (0, 0))
    c, d, h, w = x.shape
    planes = _pool(lifter, lifter.reshape(x, (c * d, h, w)), matrices[1], matrices[2], (0, 0))
    _, h, w = planes.shape
    columns = _pool(lifter, lifter.reshape(planes, (c, d, h * w)), matrices[0], np.eye(h * w), (0, 0))
    return lifter.reshape(columns, (c, len(matrices[0]), h, w))


def _avg_pool(count: int) -> FunctionHandler:
    """The handler of average pooling over `count` axes. Over one, torch's function has no `divisor_override`."""

    def handler(
        lifter: Lifter,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        windows = Windows.of(count, kernel_size, stride, padding)
        sizes = sizes_of(input, count, "average pooling")
        matrices = [
            _windows(size, kernel, step, pad, ceil_mode, count_include_pad, divisor_override is None)
            for size, kernel, step, (pad, _) in zip(sizes, windows.kernel, windows.stride, windows.sides, strict=True)
        ]
        if divisor_override is not None:
            matrices[0] = matrices[0] / divisor_override
        return _by_axes(lifter, input, matrices, windows.stride)

    return in_batch(handler) if count == 2 else handler


def _module_avg_pool(pool: FunctionHandler) -> ModuleHandler:
    def handler(lifter: Lifter, m: Any, x: Value) -> Any:
        divisor = getattr(m, "divisor_override", None)
        return pool(lifter, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)

    return handler


register_each(
    _avg_pool,
    _module_avg_pool,
    (1, (F.avg_pool1d,), nn.AvgPool1d),
    (2, (F.avg_pool2d,), nn.AvgPool2d),
    (3, (F.avg_pool3d,), nn.AvgPool3d),
)


def _adaptive(size: int, count: int) -> Array:
    """The matrix of adaptive pooling on one axis."""
    matrix = np.zeros((count, size))
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        matrix[i, start:end] = 1.0 / (end - start)
    return matrix


def _wanted(output_size: Any, sizes: Sequence[int]) -> list[int]:
    """The sizes after adaptive pooling: None keeps that of an axis."""
    one = output_size is None or isinstance(output_size, int)
    outputs = (output_size,) * len(sizes) if one else output_size
    return [size if out is None else int(out) for size, out in zip(sizes, outputs, strict=True)]


def _adaptive_avg_pool(count: int) -> FunctionHandler:
    """The handler of adaptive average pooling over `count` axes."""

    def handler(lifter: Lifter, input: Value, output_size: Any) -> Any:
        sizes = sizes_of(input, count, "adaptive pooling")
        both = list(zip(sizes, _wanted(output_size, sizes), strict=True))
        steps = [size // out if size % out == 0 else 0 for size, out in both]
        return _by_axes(lifter, input, [_adaptive(size, out) for size, out in both], steps)

    return in_batch(handler) if count == 2 else handler


def _module_adaptive_avg_pool(pool: FunctionHandler) -> ModuleHandler:
    def handler(lifter: Lifter, m: Any, x: Value) -> Any:
        return pool(lifter, x, m.output_size)

    return handler


register_each(
    _adaptive_avg_pool,
    _module_adaptive_avg_pool,
    (1, (F.adaptive_avg_pool1d,), nn.AdaptiveAvgPool1d),
    (2, (F.adaptive_avg_pool2d,), nn.AdaptiveAvgPool2d),
    (3, (F.adaptive_avg_pool3d,), nn.AdaptiveAvgPool3d),
)


# Max-pooling ----------------------------------------------------------------------------------------------------------


def _largest(lifter: Lifter, x: Value, windows: Windows, ceil_mode: bool) -> Value:
    """The largest element of each window over lines, planes or volumes."""
    sizes = sizes_of(x, len(windows.kernel), "max-pooling")
    if len(sizes) == 1:
        rows = lines(lifter, x, "max-pooling")
        return from_lines(lifter, _largest(lifter, rows, windows.on_planes, ceil_mode))
    if len(sizes) == 2:
        if windows.kernel == windows.stride == (1, 1):
            return x
        padding = windows.sides[0][0], windows.sides[1][0]
        op = MaxPool2d(pair(windows.kernel), pair(windows.stride), padding, pair(windows.dilation), bool(ceil_mode))
        return lifter.add(op, x)
    c, (d, h, w) = x.shape[0], sizes
    planes = _largest(lifter, lifter.reshape(x, (c * d, h, w)), windows.of_planes, ceil_mode)
    _, h, w = planes.shape
    columns = _largest(lifter, lifter.reshape(planes, (c, d, h * w)), windows.of_columns, ceil_mode)
    return lifter.reshape(columns, (c, columns.shape[1], h, w))


def _require_no_indices(return_indices: bool) -> None:
    if return_indices:
        raise Unsupported("max-pooling that returns indices", "Leave return_indices out: indices are not polynomial")


def _max_pool(count: int) -> FunctionHandler:
    """The handler of max-pooling over `count` axes."""

    def handler(
        lifter: Lifter,
        input: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        _require_no_indices(return_indices)
        return _largest(lifter, input, Windows.of(count, kernel_size, stride, padding, dilation), ceil_mode)

    return in_batch(handler) if count == 2 else handler


def _module_max_pool(pool: FunctionHandler) -> ModuleHandler:
    def handler(lifter: Lifter, m: Any, x: Value) -> Any:
        return pool(lifter, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)

    return handler


register_each(
    _max_pool,
    _module_max_pool,
    (1, (F.max_pool1d, torch.max_pool1d), nn.MaxPool1d),
    (2, (F.max_pool2d, torch.max_pool2d), nn.MaxPool2d),
    (3, (F.max_pool3d,), nn.MaxPool3d),
)


def _adaptive_max_pool(count: int) -> FunctionHandler:
    """The handler of adaptive max-pooling over `count` axes."""

    def handler(lifter: Lifter, input: Value, output_size: Any, return_indices: bool = False) -> Any:
        _require_no_indices(return_indices)
        sizes = sizes_of(input, count, "adaptive max-pooling")
        wanted = _wanted(output_size, sizes)
        if any(size % out for size, out in zip(sizes, wanted, strict=True)):
            old, new = ("x".join(map(str, one)) for one in (sizes, wanted))
            raise Unsupported(
                f"adaptive max-pooling of {old} to {new}, by windows of several sizes",
                f"Use MaxPool{count}d, or an output size that divides the input's",
            )
        kernel = tuple(size // out for size, out in zip(sizes, wanted, strict=True))
        return _largest(lifter, input, Windows.of(count, kernel), False)

    return in_batch(handler) if count == 2 else handler


def _module_adaptive_max_pool(pool: FunctionHandler) -> ModuleHandler:
    def handler(lifter: Lifter, m: Any, x: Value) -> Any:
        return pool(lifter, x, m.output_size, m.return_indices)

    return handler


register_each(
    _adaptive_max_pool,
    _module_adaptive_max_pool,
    (1, (F.adaptive_max_pool1d, torch.adaptive_max_pool1d), nn.AdaptiveMaxPool1d),
    (2, (F.adaptive_max_pool2d,), nn.AdaptiveMaxPool2d),
)


# Means and sums -------------------------------------------------------------------------------------------------------


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
