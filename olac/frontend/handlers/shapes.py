"""Operations that move, pad or keep elements."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.lifter import Lifter, Unsupported, Value, register_function, register_module
from olac.ir.ops import (
    Pad,
    Shape,
    Slice,
)


@register_function("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze", "ravel")
@register_function(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze, torch.ravel)
def _reshape(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    # Torch's own shape is the result's: all of these keep the elements in row-major order.
    shape = lifter.shape
    assert shape is not None
    if shape[:1] != (lifter.batch,) or math.prod(shape[1:]) != math.prod(x.shape):
        raise Unsupported("merges or moves the batch axis", "Keep the batch axis first, e.g. x.flatten(1)")
    return lifter.reshape(x, shape[1:])


@register_module(nn.Flatten, nn.Unflatten)
def _module_reshape(lifter: Lifter, m: nn.Module, x: Value) -> Any:
    return _reshape(lifter, x)


def _pad_amounts(lifter: Lifter, x: Value, pad: Sequence[int]) -> tuple[tuple[int, int], ...]:
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)][::-1]
    missing = len(x.shape) + 1 - len(pairs)
    pairs = [(0, 0)] * missing + pairs
    if pairs[0] != (0, 0):
        raise Unsupported("pads the batch axis", "Treat each image alone")
    return tuple(pairs[1:])


@register_function(F.pad)
def _pad(lifter: Lifter, input: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant":
        raise Unsupported(f"pads in mode {mode!r}", "Pad with a constant, e.g. zeros, and train the model with it")
    amounts = _pad_amounts(lifter, input, pad)
    if not any(any(pair) for pair in amounts):
        return input
    return lifter.add(Pad(amounts, float(value or 0.0)), input)


@register_module(nn.ConstantPad2d, nn.ZeroPad2d)
def _module_pad(lifter: Lifter, m: nn.ConstantPad2d, x: Value) -> Any:
    return _pad(lifter, x, m.padding, value=m.value)


def _slice(lifter: Lifter, x: Value, slices: Sequence[tuple[int, int, int]], shape: Shape) -> Any:
    whole = all(s == (0, n, 1) for s, n in zip(slices, x.shape, strict=True))
    y = x if whole else lifter.add(Slice(tuple(slices)), x)
    return lifter.reshape(y, shape)


def _bounds(item: slice, size: int) -> tuple[int, int, int]:
    start, stop, step = item.indices(size)
    return start, max(start, stop), step


@register_function(operator.getitem, "__getitem__")
def _getitem(lifter: Lifter, x: Any, index: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return x[index]
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(i is None or i is Ellipsis or type(i) in (int, slice) for i in items):
        raise Unsupported("indexes by a tensor or a list", "Use slices, or a constant matrix by F.linear")
    if not any(i is Ellipsis for i in items):
        items.append(Ellipsis)
    at = next(n for n, i in enumerate(items) if i is Ellipsis)
    used = sum(i is not None and i is not Ellipsis for i in items)
    items[at : at + 1] = [slice(None)] * (len(x.shape) + 1 - used)
    if items[0] != slice(None) and not (isinstance(items[0], slice) and items[0] == slice(0, None)):
        raise Unsupported("takes single images of the batch", "Treat each image alone: x[:, ...]")
    slices: list[tuple[int, int, int]] = []
    shape: list[int] = []
    axis = 0
    for item in items[1:]:
        if item is None:
            shape.append(1)
            continue
        size = x.shape[axis]
        axis += 1
        if isinstance(item, slice):
            bounds = _bounds(item, size)
            shape.append(len(range(*bounds)))
        else:
            bounds = (item % size, item % size + 1, 1)
        slices.append(bounds)
    return _slice(lifter, x, slices, tuple(shape))


def _along(lifter: Lifter, x: Value, dim: int, start: int, stop: int, drop: bool = False) -> Any:
    axis = lifter.axes(dim, x)[0]
    slices = [(0, n, 1) for n in x.shape]
    slices[axis] = (start, stop, 1)
    shape = list(x.shape)
    shape[axis] = stop - start
    if drop:
        del shape[axis]
    return _slice(lifter, x, slices, tuple(shape))


@register_function(torch.narrow, "narrow")
def _narrow(lifter: Lifter, input: Value, dim: int, start: int, length: int) -> Any:
    start = int(start) % input.shape[lifter.axes(dim, input)[0]]
    return _along(lifter, input, dim, start, start + length)


@register_function(torch.select, "select")
def _select(lifter: Lifter, input: Value, dim: int, index: int) -> Any:
    index = index % input.shape[lifter.axes(dim, input)[0]]
    return _along(lifter, input, dim, index, index + 1, drop=True)


@register_function(torch.split, "split")
def _split(lifter: Lifter, tensor: Value, split_size_or_sections: Any, dim: int = 0) -> Any:
    size = tensor.shape[lifter.axes(dim, tensor)[0]]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        sizes = [min(step, size - at) for at in range(0, size, step)]
    else:
        sizes = [int(s) for s in split_size_or_sections]
    ends = np.cumsum(sizes).tolist()
    return tuple(_along(lifter, tensor, dim, e - s, e) for s, e in zip(sizes, ends, strict=True))


@register_function(torch.chunk, "chunk")
def _chunk(lifter: Lifter, input: Value, chunks: int, dim: int = 0) -> Any:
    size = input.shape[lifter.axes(dim, input)[0]]
    return _split(lifter, input, -(-size // chunks), dim)


# Operations that change nothing


@register_module(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
@register_module(nn.FeatureAlphaDropout)
def _nothing(lifter: Lifter, m: nn.Module, x: Value) -> Any:
    return x


@register_function("contiguous", "clone", "detach", "cpu", "requires_grad_", "double", "float")
@register_function(torch.clone, torch.detach)
def _same(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    return x


@register_function("to", "type", "type_as")
def _to(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.dtype) and not argument.is_floating_point:
            raise Unsupported(f"converts to {argument}", "Leave conversions to integers out")
    return x


@register_function("half", "bfloat16")
def _half(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    return x


@register_function("expand", "expand_as")
@register_function("broadcast_to", torch.broadcast_to)
def _expand(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    shape = lifter.shape
    assert shape is not None
    if len(shape) != len(x.shape) + 1 or shape[0] != lifter.batch:
        raise Unsupported("adds an axis before the batch axis", "Keep the batch axis first")
    return lifter.broadcast(x, shape[1:])


@register_function(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
@register_function(torch.dropout)
def _dropout(lifter: Lifter, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise Unsupported("dropout that stays on in evaluation", "Pass training=self.training")
    return input
