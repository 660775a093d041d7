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

from olac.frontend.algebra import pad_by_elements, take, take_slices
from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_function, register_module
from olac.ir.ops import Pad


@register_function("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze", "ravel")
@register_function(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze, torch.ravel)
@any_order
def _reshape(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    # Torch's own shape is the result's: all of these keep the elements in row-major order.
    shape = lifter.shape
    if shape is None or math.prod(shape) != math.prod(x.shape):
        raise Unsupported(
            "splits the batch axis, or merges it with an axis before it",
            "Put the batch axis first and keep it whole, e.g. x.movedim(1, 0).flatten(1)",
        )
    return lifter.reshape(x, shape)


@register_module(nn.Flatten, nn.Unflatten)
@any_order
def _module_reshape(lifter: Lifter, m: nn.Module, x: Value) -> Any:
    return _reshape(lifter, x)


def _pad_amounts(lifter: Lifter, x: Value, pad: Sequence[int]) -> tuple[tuple[int, int], ...]:
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)][::-1]
    missing = x.rank - len(pairs)
    pairs = [(0, 0)] * missing + pairs
    if pairs[x.frame.at] != (0, 0):
        raise Unsupported("pads the batch axis", "Treat each input alone")
    at = x.frame.at
    return (*pairs[:at], *([(0, 0)] if x.frame.merged > 1 else []), *pairs[at + 1 :])


@register_function(F.pad)
def _pad(lifter: Lifter, input: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant":
        return pad_by_elements(lifter, input, pad, mode)
    amounts = _pad_amounts(lifter, input, pad)
    if not any(any(pair) for pair in amounts):
        return input
    return lifter.add(Pad(amounts, float(value or 0.0)), input)


@register_module(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
def _module_reflection_pad(lifter: Lifter, m: nn.ReflectionPad2d, x: Value) -> Any:
    return pad_by_elements(lifter, x, m.padding, "reflect")


@register_module(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
def _module_replication_pad(lifter: Lifter, m: nn.ReplicationPad2d, x: Value) -> Any:
    return pad_by_elements(lifter, x, m.padding, "replicate")


@register_module(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
def _module_circular_pad(lifter: Lifter, m: nn.CircularPad2d, x: Value) -> Any:
    return pad_by_elements(lifter, x, m.padding, "circular")


@register_module(nn.ConstantPad1d, nn.ZeroPad1d, nn.ConstantPad3d, nn.ZeroPad3d, nn.ConstantPad2d, nn.ZeroPad2d)
def _module_pad(lifter: Lifter, m: nn.ConstantPad2d, x: Value) -> Any:
    return _pad(lifter, x, m.padding, value=m.value)


def _bounds(item: slice, size: int) -> tuple[int, int, int]:
    start, stop, step = item.indices(size)
    return start, max(start, stop), step


@register_function(operator.getitem, "__getitem__")
@any_order
def _getitem(lifter: Lifter, x: Any, index: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return x[index]
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in items):
        raise Unsupported("indexes by a mask", "Use slices, or multiply by the mask")
    items = [_as_list(i) for i in items]
    if not all(i is None or i is Ellipsis or type(i) in (int, slice, list) for i in items):
        raise Unsupported("indexes by encrypted values", "Use slices, or lists and tensors of constants")
    if not any(i is Ellipsis for i in items):
        items.append(Ellipsis)
    at = next(n for n, i in enumerate(items) if i is Ellipsis)
    used = sum(i is not None and i is not Ellipsis for i in items)
    items[at : at + 1] = [slice(None)] * (x.rank - used)
    if sum(type(i) is list for i in items) > 1:
        raise Unsupported("indexes several axes by lists", "Index one axis after the other")
    if _apart(items):
        raise Unsupported("indexes an axis by a list and another by a number", "Index one axis after the other")
    slices = [(0, n, 1) for n in x.shape]
    listed: tuple[int, list[int]] | None = None
    shape: list[int] = []
    dim = 0
    for item in items:
        if item is None:
            shape.append(1)
            continue
        axis = x.frame.axis(dim)
        dim += 1
        if axis is None:
            if not isinstance(item, slice) or item.indices(1 << 30) != (0, 1 << 30, 1):
                raise Unsupported("takes single inputs of the batch", "Treat each input alone: x[:, ...]")
            shape += [x.frame.merged] if x.frame.merged > 1 else []
            continue
        size = x.shape[axis]
        if isinstance(item, list):
            numbers = np.asarray(item) % size
            listed = axis, numbers.reshape(-1).tolist()
            shape += numbers.shape
        elif isinstance(item, slice):
            slices[axis] = _bounds(item, size)
            shape.append(len(range(*slices[axis])))
        else:
            slices[axis] = (item % size, item % size + 1, 1)
    if listed is not None:
        x = take(lifter, x, *listed)
        slices[listed[0]] = (0, len(listed[1]), 1)
    return take_slices(lifter, x, slices, tuple(shape))


def _apart(items: list[Any]) -> bool:
    """Whether a list and a number are apart: the axes of the list come first in torch then."""
    picked = [n for n, i in enumerate(items) if type(i) in (int, list)]
    return any(type(items[n]) is list for n in picked) and picked[-1] - picked[0] >= len(picked)


def _as_list(item: Any) -> Any:
    """Constant numbers of elements as a list, in lists if they have several axes, or as one number."""
    if isinstance(item, (torch.Tensor, np.ndarray, list, tuple)) and not isinstance(item, Value):
        if any(isinstance(one, Value) for one in (item if isinstance(item, (list, tuple)) else ())):
            return item
        array = np.asarray(item)
        if array.dtype.kind in "iu":
            return array.tolist()
    return item


def _along(lifter: Lifter, x: Value, dim: int, start: int, stop: int, drop: bool = False) -> Any:
    axis = lifter.axes(dim, x)[0]
    slices = [(0, n, 1) for n in x.shape]
    slices[axis] = (start, stop, 1)
    shape = list(x.shape)
    shape[axis] = stop - start
    if drop:
        del shape[axis]
    return take_slices(lifter, x, slices, tuple(shape))


@register_function(torch.narrow, "narrow")
@any_order
def _narrow(lifter: Lifter, input: Value, dim: int, start: int, length: int) -> Any:
    start = int(start) % input.shape[lifter.axes(dim, input)[0]]
    return _along(lifter, input, dim, start, start + length)


@register_function(torch.select, "select")
@any_order
def _select(lifter: Lifter, input: Value, dim: int, index: int) -> Any:
    index = index % input.shape[lifter.axes(dim, input)[0]]
    return _along(lifter, input, dim, index, index + 1, drop=True)


@register_function(torch.split, "split")
@any_order
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
@any_order
def _chunk(lifter: Lifter, input: Value, chunks: int, dim: int = 0) -> Any:
    size = input.shape[lifter.axes(dim, input)[0]]
    return _split(lifter, input, -(-size // chunks), dim)


# Operations that change nothing


@register_module(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
@register_module(nn.FeatureAlphaDropout)
@any_order
def _nothing(lifter: Lifter, m: nn.Module, x: Value) -> Any:
    return x


@register_function("contiguous", "clone", "detach", "cpu", "requires_grad_", "double", "float")
@register_function(torch.clone, torch.detach)
@any_order
def _same(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    return x


@register_function("to", "type", "type_as")
@any_order
def _to(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.dtype) and not argument.is_floating_point:
            raise Unsupported(f"converts to {argument}", "Leave conversions to integers out")
    return x


@register_function("half", "bfloat16")
@any_order
def _half(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    return x


@register_function("expand", "expand_as")
@register_function("broadcast_to", torch.broadcast_to)
@any_order
def _expand(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    shape = lifter.shape
    if shape is None:
        raise Unsupported("repeats the batch axis", "Keep one row for each input")
    return lifter.broadcast(x, shape)


@register_function(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
@register_function(torch.dropout)
@any_order
def _dropout(lifter: Lifter, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise Unsupported("dropout that stays on in evaluation", "Pass training=self.training")
    return input
