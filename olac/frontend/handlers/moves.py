"""Operations that put axes or elements elsewhere: permutations, joins, flips, repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.algebra import constant_array, in_batch, joined, take, take_slices
from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_function, register_module
from olac.frontend.tracer import for_each_image


def _permuted(lifter: Lifter, x: Value, dims: Sequence[int]) -> Value:
    """The value with torch's axes in another order; the batch axis goes with them."""
    given = [d % x.rank for d in dims]
    # The axis that is merged into the batch axis moves with it.
    merged = [x.frame.at] if x.frame.merged > 1 else []
    axes = [a for d in given for a in (merged if d == x.frame.at else [x.frame.axis(d)]) if a is not None]
    return lifter.permute(x, axes)


@register_function(torch.permute, "permute")
@any_order
def _permute(lifter: Lifter, input: Value, *dims: Any, **kwargs: Any) -> Any:
    given = kwargs.get("dims", dims)
    return _permuted(lifter, input, given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given)


@register_function(torch.transpose, torch.swapaxes, torch.swapdims, "transpose", "swapaxes", "swapdims")
@any_order
def _transpose(lifter: Lifter, input: Value, dim0: int, dim1: int) -> Any:
    dims = list(range(input.rank))
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return _permuted(lifter, input, dims)


@register_function(torch.t, "t", torch.adjoint, "adjoint")
@any_order
def _t(lifter: Lifter, input: Value) -> Any:
    return _transpose(lifter, input, -2, -1) if input.rank > 1 else input


@register_function(getattr)
@any_order
def _attribute(lifter: Lifter, x: Value, name: str) -> Any:
    if name in ("mT", "mH"):
        return _transpose(lifter, x, -2, -1)
    if name in ("T", "H"):
        return _permuted(lifter, x, range(x.rank)[::-1])
    raise Unsupported(f"reads the attribute {name} of a tensor", "Use the function of the same name")


@register_function(torch.movedim, torch.moveaxis, "movedim", "moveaxis")
@any_order
def _movedim(lifter: Lifter, input: Value, source: Any, destination: Any) -> Any:
    given = [[s] if isinstance(s, int) else list(s) for s in (source, destination)]
    sources, targets = ([d % input.rank for d in part] for part in given)
    dims = [d for d in range(input.rank) if d not in sources]
    for target, origin in sorted(zip(targets, sources, strict=True)):
        dims.insert(target, origin)
    return _permuted(lifter, input, dims)


@register_function(torch.unbind, "unbind")
@any_order
def _unbind(lifter: Lifter, input: Value, dim: int = 0) -> Any:
    axis = lifter.axes(dim, input)[0]
    shape = input.shape[:axis] + input.shape[axis + 1 :]
    whole = [(0, n, 1) for n in input.shape]
    return tuple(
        take_slices(lifter, input, [*whole[:axis], (i, i + 1, 1), *whole[axis + 1 :]], shape)
        for i in range(input.shape[axis])
    )


def _parts(lifter: Lifter, tensors: Sequence[Any]) -> list[Any]:
    """Values as they are, and constants as arrays with the axes of one image."""
    like = next(one for one in tensors if isinstance(one, Value))
    found: list[Any] = []
    for one in tensors:
        if isinstance(one, Value):
            if (one.frame, len(one.shape)) != (like.frame, len(like.shape)):
                raise Unsupported("joins values with different batch axes", "Keep the batch axis first in all of them")
            found.append(one)
        elif isinstance(one, torch.Tensor):
            array = constant_array(lifter, one, like)
            if array.ndim != len(like.shape):
                raise Unsupported(f"joins a constant of shape {tuple(one.shape)}", "Give it the axes of the others")
            found.append(array)
        else:
            raise Unsupported("joins what is no tensor", "Join tensors only")
    return found


@register_function(torch.cat, torch.concat, torch.concatenate)
@any_order
def _cat(lifter: Lifter, tensors: Sequence[Any], dim: int = 0, axis: int | None = None) -> Any:
    parts = _parts(lifter, tensors)
    parts = [part for part in parts if math.prod(part.shape)]
    if len(parts) == 1:
        return parts[0]
    like = next(part for part in parts if isinstance(part, Value))
    return joined(lifter, parts, lifter.axes(dim if axis is None else axis, like)[0])


@register_function(torch.stack)
@any_order
def _stack(lifter: Lifter, tensors: Sequence[Any], dim: int = 0) -> Any:
    parts = _parts(lifter, tensors)
    like = next(part for part in parts if isinstance(part, Value))
    dim %= like.rank + 1
    # The new axis, counted for one image: the batch axis before it does not count.
    axis = dim if dim <= like.frame.at else dim - (1 if like.frame.merged == 1 else 0)
    wide = [
        lifter.reshape(part, (*part.shape[:axis], 1, *part.shape[axis:]))
        if isinstance(part, Value)
        else np.expand_dims(part, axis)
        for part in parts
    ]
    return joined(lifter, wide, axis)


@register_function(torch.hstack)
@any_order
def _hstack(lifter: Lifter, tensors: Sequence[Any]) -> Any:
    return _cat(lifter, tensors, 1)


@register_function(torch.flip, "flip")
@any_order
def _flip(lifter: Lifter, input: Value, *dims: Any, **kwargs: Any) -> Any:
    given = kwargs.get("dims", dims)
    numbers = np.arange(math.prod(input.shape)).reshape(input.shape)
    axes = lifter.axes(given[0] if len(given) == 1 and not isinstance(given[0], int) else given, input)
    return lifter.gather(input, np.flip(numbers, axes))


@register_function(torch.roll, "roll")
@any_order
def _roll(lifter: Lifter, input: Value, shifts: Any, dims: Any = None) -> Any:
    if dims is None or dims == ():
        raise Unsupported("rolls over the whole batch", "Give the axes to roll over, dims=...")
    numbers = np.arange(math.prod(input.shape)).reshape(input.shape)
    return lifter.gather(input, np.roll(numbers, shifts, tuple(lifter.axes(dims, input))[: np.size(shifts)]))


@register_function(torch.index_select, "index_select")
@any_order
def _index_select(lifter: Lifter, input: Value, dim: int, index: Any) -> Any:
    if isinstance(index, Value):
        raise Unsupported("indexes by encrypted values", "Use constant indices")
    return take(lifter, input, lifter.axes(dim, input)[0], index.reshape(-1).tolist())


@register_function("repeat", torch.tile, "tile")
@any_order
def _repeat(lifter: Lifter, x: Value, *sizes: Any, **kwargs: Any) -> Any:
    given = next(iter(kwargs.values()), sizes)
    given = list(given[0]) if len(given) == 1 and not isinstance(given[0], int) else list(given)
    given = [1] * (x.rank - len(given)) + given
    shape = lifter.shape
    if shape is None or len(given) != x.rank or given[x.frame.at] != 1:
        raise Unsupported("repeats the batch axis", "Keep one row for each input")
    own = [given[d] for d in range(x.rank) if d != x.frame.at]
    if x.frame.merged > 1:
        own.insert(x.frame.at, 1)
    return lifter.gather(x, np.tile(np.arange(math.prod(x.shape)).reshape(x.shape), own))


@register_function(torch.repeat_interleave, "repeat_interleave")
@any_order
def _repeat_interleave(lifter: Lifter, input: Value, repeats: Any, dim: int | None = None, **kwargs: Any) -> Any:
    if dim is None or isinstance(repeats, Value):
        raise Unsupported("repeats over the whole batch", "Give the axis to repeat along, dim=...")
    axis = lifter.axes(dim, input)[0]
    count = repeats.tolist() if isinstance(repeats, torch.Tensor) else repeats
    return take(lifter, input, axis, np.repeat(np.arange(input.shape[axis]), count).tolist())


@register_function(F.unfold)
@in_batch
def _unfold(
    lifter: Lifter, input: Value, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Any:
    numbers = torch.arange(1, math.prod(input.shape) + 1, dtype=torch.float64).reshape(1, *input.shape)
    made = F.unfold(numbers, kernel_size, dilation, padding, stride)[0]
    return lifter.gather(input, made.numpy().round().astype(np.int64) - 1)


@register_module(nn.Unfold)
def _module_unfold(lifter: Lifter, m: nn.Unfold, x: Value) -> Any:
    return _unfold(lifter, x, m.kernel_size, m.dilation, m.padding, m.stride)


@register_function(F.pixel_shuffle, torch.pixel_shuffle)
@any_order
@in_batch
def _pixel_shuffle(lifter: Lifter, input: Value, upscale_factor: int) -> Any:
    r = upscale_factor
    c, h, w = input.shape
    split = lifter.permute(lifter.reshape(input, (c // (r * r), r, r, h, w)), (0, 3, 1, 4, 2))
    return lifter.reshape(split, (c // (r * r), h * r, w * r))


@register_module(nn.PixelShuffle)
@any_order
def _module_pixel_shuffle(lifter: Lifter, m: nn.PixelShuffle, x: Value) -> Any:
    return _pixel_shuffle(lifter, x, m.upscale_factor)


@register_function(F.pixel_unshuffle, torch.pixel_unshuffle)
@any_order
@in_batch
def _pixel_unshuffle(lifter: Lifter, input: Value, downscale_factor: int) -> Any:
    r = downscale_factor
    c, h, w = input.shape
    split = lifter.permute(lifter.reshape(input, (c, h // r, r, w // r, r)), (0, 2, 4, 1, 3))
    return lifter.reshape(split, (c * r * r, h // r, w // r))


@register_module(nn.PixelUnshuffle)
@any_order
def _module_pixel_unshuffle(lifter: Lifter, m: nn.PixelUnshuffle, x: Value) -> Any:
    return _pixel_unshuffle(lifter, x, m.downscale_factor)


@register_function(torch.channel_shuffle, F.channel_shuffle)
@any_order
@in_batch
def _channel_shuffle(lifter: Lifter, input: Value, groups: int) -> Any:
    c, *rest = input.shape
    split = lifter.permute(lifter.reshape(input, (groups, c // groups, *rest)), (1, 0, *range(2, 2 + len(rest))))
    return lifter.reshape(split, input.shape)


@register_module(nn.ChannelShuffle)
@any_order
def _module_channel_shuffle(lifter: Lifter, m: nn.ChannelShuffle, x: Value) -> Any:
    return _channel_shuffle(lifter, x, m.groups)


@register_function(for_each_image)
def _for_each_image(lifter: Lifter, constant: torch.Tensor, like: Value) -> Any:
    return constant
