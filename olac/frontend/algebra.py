"""What many handlers are made of: matrices on an axis, sums over axes, products of encrypted tensors.

All of these take values in any order of axes (see `olac.frontend.lifter.Value`) and leave their results in the order
that costs no move.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from olac.frontend.lifter import Handler, Lifter, Unsupported, Value
from olac.ir.ops import (
    Activation,
    Add,
    Array,
    Contract,
    Conv2d,
    Linear,
    Multiply,
    Pad,
    Shape,
    Slice,
    SparseLinear,
)

DENSE = 256
"""Means over longer axes are subtracted; over shorter ones a matrix subtracts them at once."""
SQUARINGS = 1
"""How often softmax squares and divides. Each halves exponents, takes a level more than a reciprocal, and multiplies
noise by up to as many as there are elements.
"""
MOST_ENTRIES = 50_000_000
"""Most entries of a matrix that is written out."""


def constant_array(lifter: Lifter, constant: Any, x: Value) -> Array:
    """A constant operand as an array that broadcasts against the value's shape for one image."""
    if not isinstance(constant, torch.Tensor):
        return np.asarray(float(constant))
    if constant.is_complex():
        raise Unsupported("uses a complex constant", "Use real tensors")
    array = np.asarray(constant.detach().cpu().double().numpy())
    if array.ndim > x.rank:
        raise Unsupported(
            f"a constant of shape {array.shape} has more axes than the value", "Give constants the value's rank"
        )
    at = array.ndim - (x.rank - x.frame.at)
    if at < 0:
        return array
    images = array.shape[at]
    if images == 1:
        return array if x.frame.merged > 1 else array.squeeze(at)
    parts = np.moveaxis(array, at, 0).reshape(-1, x.frame.merged, *np.delete(array.shape, at))
    same = not np.isfinite(array).all() or bool((parts == parts[:1]).all())
    if not same or len(parts) != lifter.batch or images % x.frame.merged:
        raise Unsupported("a constant differs between the inputs of a batch", "Use one constant for all inputs")
    return np.moveaxis(parts[0], 0, at) if x.frame.merged > 1 else parts[0, 0]


def common(lifter: Lifter, a: Value, b: Value) -> tuple[Value, Value]:
    """Two values with the shape to which both broadcast, and with one order of axes."""
    known = a.placed and b.placed
    if known and (a.rank - a.frame.at != b.rank - b.frame.at or a.frame.merged != b.frame.merged):
        # Torch would align one operand's batch axis with another axis of the other.
        raise Unsupported(
            f"combines values of shapes {a.shape} and {b.shape}", "Give both operands the same number of axes"
        )
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise Unsupported(
            f"combines values of shapes {a.shape} and {b.shape}", "Give both operands the same shape"
        ) from error
    # The larger one stays where it is.
    like = b if a.order is None or a.shape != shape else a
    axes = like.axes if like.shape == shape else tuple(range(len(shape)))
    return lifter.broadcast(a, shape, axes), lifter.broadcast(b, shape, axes)


def add(lifter: Lifter, a: Value, b: Value, suffix: str = "") -> Value:
    """The sum of two values whose shapes broadcast."""
    return lifter.elementwise(Add(), *common(lifter, a, b), suffix=suffix)


def multiply(lifter: Lifter, a: Value, b: Value, suffix: str = "") -> Value:
    """The product of two values whose shapes broadcast."""
    return lifter.elementwise(Multiply(), *common(lifter, a, b), suffix=suffix)


def take_slices(lifter: Lifter, x: Value, slices: Sequence[tuple[int, int, int]], shape: Shape) -> Value:
    """The elements of one slice for each axis, in a shape that may have less or more axes of length 1."""
    sizes = tuple(len(range(*slice(*s).indices(n))) for s, n in zip(slices, x.shape, strict=True))
    if sizes != x.shape or any(step < 0 for _, _, step in slices):
        op = Slice(tuple(slices[a] for a in x.axes))
        x = lifter.along(op, x, sizes, x.order)
    return lifter.reshape(x, shape)


def take(lifter: Lifter, x: Value, axis: int, numbers: Sequence[int]) -> Value:
    """The elements with these numbers on an axis of one image, -1 for zeros."""
    indices = np.take(np.arange(math.prod(x.shape)).reshape(x.shape), np.maximum(numbers, 0), axis=axis)
    absent = np.asarray(numbers) < 0
    if absent.any():
        indices = np.where(absent.reshape(-1, *(1,) * (len(x.shape) - 1 - axis)), -1, indices)
    return lifter.gather(x, indices)


def pad_by_elements(lifter: Lifter, x: Value, pad: Sequence[int], mode: str) -> Value:
    """Padding of the last axes by elements of the value: mode "reflect", "replicate" or "circular", as `F.pad`."""
    rest = len(x.shape) - len(pad) // 2
    numbers = torch.arange(math.prod(x.shape), dtype=torch.float64).reshape(1, -1, *x.shape[rest:])
    made = torch.nn.functional.pad(numbers, list(pad), mode=mode)[0]
    shape = (*x.shape[:rest], *made.shape[1:])
    return lifter.gather(x, made.numpy().round().astype(np.int64).reshape(shape), "pad")


def in_batch(operation: Handler) -> Handler:
    """An operation on pictures (channels, height, width) that also takes several pictures of an image.

    They lie in the batch axis, and each has channels of its own.
    """

    @functools.wraps(operation)
    def each(lifter: Lifter, input: Value, *args: Any, **kwargs: Any) -> Any:
        if len(input.shape) != 4 or input.frame.merged == 1:
            return operation(lifter, input, *args, **kwargs)
        many, channels = input.shape[:2]
        made = operation(lifter, lifter.reshape(input, (many * channels, *input.shape[2:])), *args, **kwargs)
        return lifter.reshape(made, (many, made.shape[0] // many, *made.shape[1:]))

    return each  # type: ignore[return-value]


def number(constant: Any) -> Any:
    """A constant operand in double precision; small integers would wrap around when they are negated."""
    return constant.double() if isinstance(constant, torch.Tensor) else constant


def contract(lifter: Lifter, x: Value, axis: int, weight: Any, bias: Any = None, suffix: str = "") -> Value:
    """sum_i weight[o, i] x[..., i, ...] + bias[o] on an axis of one image, which keeps its place.

    Args:
        weight: (out, in), an array or a tensor.
        bias: (out,) or None.
    """
    names = lifter.constant("weight", weight), None if bias is None else lifter.constant("bias", bias)
    out = lifter.builder.constants[names[0]].shape[0]
    shape = (*x.shape[:axis], out, *x.shape[axis + 1 :])
    if len(x.shape) == 1:
        return lifter.along(Linear(*names), x, shape, None, suffix)
    at = x.axes.index(axis)
    order = (axis, *(a for a in x.axes if a != axis))
    if at:
        return lifter.along(Contract(*names, at), x, shape, order, suffix)
    # The channels of planes: convolutions are what packing knows best.
    laid = x.laid
    planes = (laid[0], math.prod(laid[1:-1]), laid[-1]) if len(laid) > 2 else (*laid, 1)
    flat = lifter.reshape(Value(x.id, laid), planes)
    kernel = lifter.constant("kernel", lifter.builder.constants[names[0]][:, :, None, None])
    made = lifter.add(Conv2d(kernel, names[1]), flat, suffix=suffix)
    made = lifter.reshape(made, (out, *laid[1:]))
    return Value(made.id, shape, order)


def linear_of(lifter: Lifter, x: Value, weight: Any, bias: Any) -> Value:
    """W x + b of a vector."""
    return contract(lifter, x, 0, weight, bias, "linear")


def along_axes(lifter: Lifter, x: Value, axes: Sequence[int], weight: float | None) -> Value:
    """The sum over axes of one image times a weight, or the mean if that is None; the axes keep a length of 1."""
    factor = 1 / math.prod(x.shape[a] for a in axes) if weight is None else weight
    kept = tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    run = [x.axes.index(a) for a in axes]
    if len(axes) > 1 and max(run) - min(run) == len(run) - 1:
        # Axes that lie together are one.
        laid, first = x.laid, min(run)
        merged = (*laid[:first], math.prod(laid[p] for p in run), *laid[max(run) + 1 :])
        one = contract(lifter, lifter.reshape(Value(x.id, laid), merged), first, _row(merged[first], factor))
        made = lifter.reshape(one, tuple(kept[a] for a in x.axes))
        return Value(made.id, kept, tuple(x.axes[place] for place in made.axes))
    for number, axis in enumerate(axes):
        x = contract(lifter, x, axis, _row(x.shape[axis], factor if not number else 1.0), suffix="sum")
    return x


def _row(size: int, factor: float) -> Array:
    return np.full((1, size), factor)


def drop(lifter: Lifter, x: Value, axes: Sequence[int]) -> Value:
    """The value without axes of length 1."""
    return lifter.reshape(x, tuple(size for a, size in enumerate(x.shape) if a not in axes))


def activate(lifter: Lifter, x: Value, function: str, *parameters: float) -> Value:
    """A function of each element, by its name in `olac.ir.functions`."""
    return lifter.elementwise(Activation(function, tuple(float(p) for p in parameters)), x, suffix=function)


def times(lifter: Lifter, x: Value, constant: Any) -> Value:
    """The product of a value and a constant operand, a number or a tensor, whose shapes broadcast."""
    array = constant_array(lifter, constant, x)
    shape = _both(x.shape, array.shape)
    return lifter.affine(x if x.shape == shape else lifter.broadcast(x, shape), scale=array)


def plus(lifter: Lifter, x: Value, constant: Any) -> Value:
    """The sum of a value and a constant operand, a number or a tensor, whose shapes broadcast."""
    array = constant_array(lifter, constant, x)
    shape = _both(x.shape, array.shape)
    return lifter.affine(x if x.shape == shape else lifter.broadcast(x, shape), shift=array)


def _both(shape: Shape, other: Shape) -> Shape:
    try:
        return np.broadcast_shapes(shape, other)
    except ValueError as error:
        raise Unsupported(f"a constant of shape {other} on {shape}", "Make the shapes broadcast") from error


def square(lifter: Lifter, x: Value) -> Value:
    """Each element times itself."""
    return multiply(lifter, x, x, suffix="square")


def negative(lifter: Lifter, x: Value) -> Value:
    """Each element times -1."""
    return lifter.affine(x, scale=-1.0, suffix="negative")


def larger(lifter: Lifter, a: Value, b: Value) -> Value:
    """The larger of two elements, b + relu(a - b)."""
    return add(lifter, b, activate(lifter, add(lifter, a, negative(lifter, b), "difference"), "relu"), "larger")


def centred(lifter: Lifter, x: Value, axes: Sequence[int]) -> Value:
    """x less its mean over axes of one image."""
    if len(axes) == 1 and x.shape[axes[0]] <= DENSE:
        # One matrix takes a level less than a mean that is repeated and subtracted.
        size = x.shape[axes[0]]
        return contract(lifter, x, axes[0], np.eye(size) - 1 / size, suffix="centred")
    return add(lifter, x, negative(lifter, along_axes(lifter, x, axes, None)), "centred")


def encrypted_softmax(lifter: Lifter, x: Value, axis: int, kept: Any = None) -> Value:
    """The softmax over an axis of one image; `kept`, a constant of zeros and ones, takes elements out.

    softmax(x) = exp(x) / sum(exp(x)), and squares of softmax(x / 2), divided by their sum, are softmax(x) (Cho, Hanrot,
    Kim, Park and Stehlé, "Fast and Accurate Homomorphic Softmax Evaluation", CCS 2024). So exponentials are taken of a
    narrow range, and the sums of squares lie between 1 / n and 1 for all inputs, also unseen ones.
    """
    powers = activate(lifter, lifter.affine(x, scale=0.5**SQUARINGS, suffix="part"), "exp")
    if kept is not None:
        powers = times(lifter, powers, kept.double())
    made = _over_sum(lifter, powers, axis)
    for _ in range(SQUARINGS):
        made = _over_sum(lifter, square(lifter, made), axis)
    return made


def _over_sum(lifter: Lifter, x: Value, axis: int) -> Value:
    return multiply(lifter, x, activate(lifter, along_axes(lifter, x, [axis], 1.0), "reciprocal"), "softmax")


def joined(lifter: Lifter, parts: Sequence[Any], axis: int) -> Value:
    """Values and constant arrays one after the other on an axis of one image. Constants have the image's axes."""
    values = [part for part in parts if isinstance(part, Value)]
    axes = values[0].axes
    sizes = [part.shape[axis] for part in parts]
    total, at = sum(sizes), 0
    result: Value | None = None
    shift: Array = np.zeros(tuple(total if a == axis else n for a, n in enumerate(values[0].shape)))
    for part, size in zip(parts, sizes, strict=True):
        sides = [(at, total - at - size) if a == axis else (0, 0) for a in range(shift.ndim)]
        at += size
        if not isinstance(part, Value):
            shift = shift + np.pad(part, sides)
            continue
        part = lifter.settle(part, axes)
        padded = part
        if size < total:
            padded = lifter.along(Pad(tuple(sides[a] for a in axes)), part, shift.shape, axes, "part")
        result = padded if result is None else add(lifter, result, padded)
    assert result is not None
    return lifter.affine(result, shift=shift, suffix="constants") if shift.any() else result


def einsum(lifter: Lifter, operands: Sequence[Any], subscripts: Sequence[str], result: str) -> Value:
    """A sum of products, as `torch.einsum`, of one or two values and constants (arrays), over the axes of one image.

    The product of two encrypted tensors is an elementwise one of both, repeated to all axes.
    """
    terms = list(zip(operands, subscripts, strict=True))
    sizes = {letter: n for one, text in terms for letter, n in zip(text, one.shape, strict=True)}
    for _, text in terms:
        if len(set(text)) < len(text):
            raise Unsupported("takes a diagonal", "Multiply by a constant mask and sum")
    constants = [(one, text) for one, text in terms if not isinstance(one, Value)]
    values = [(one, text) for one, text in terms if isinstance(one, Value)]
    if constants:
        letters = "".join(dict.fromkeys("".join(text for _, text in constants)))
        array = np.einsum(",".join(text for _, text in constants) + "->" + letters, *(one for one, _ in constants))
        x, text = values.pop(0)
        later = set("".join(text for _, text in values)) | set(result)
        kept = "".join(dict.fromkeys(c for c in text + letters if c in later))
        values.insert(0, (_by_constant(lifter, x, text, array, letters, kept), kept))
    x, text = values[0]
    if len(values) == 2:
        y, other = values[1]
        summed = [c for c in text if c in other and c not in result]
        joint = "".join([*summed, *(c for c in dict.fromkeys(text + other) if c not in summed)])
        x, y = (_spread(lifter, one, at, joint, sizes) for one, at in ((x, text), (y, other)))
        x, text = multiply(lifter, x, y, "products"), joint
    elif len(values) > 2:
        raise Unsupported(f"an einsum of {len(values)} encrypted tensors", "Multiply two at a time")
    gone = [a for a, c in enumerate(text) if c not in result]
    if gone:
        x = drop(lifter, along_axes(lifter, x, gone, 1.0), gone)
        text = "".join(c for c in text if c in result)
    if missing := [c for c in result if c not in text]:
        raise Unsupported(f"an einsum whose result has the new axes {''.join(missing)}", "Use expand")
    return lifter.permute(x, [text.index(c) for c in result])


def _spread(lifter: Lifter, x: Value, text: str, joint: str, sizes: dict[str, int]) -> Value:
    """A value with axes `text` repeated to the axes `joint`, whose order it gets."""
    here = [c for c in joint if c in text]
    x = lifter.permute(x, [text.index(c) for c in here])
    x = lifter.reshape(x, tuple(sizes[c] if c in text else 1 for c in joint))
    shape = tuple(sizes[c] for c in joint)
    return lifter.broadcast(x, shape, tuple(range(len(shape))))


def _by_constant(lifter: Lifter, x: Value, text: str, array: Array, letters: str, kept: str) -> Value:
    """The product of a value with a constant, summed over all axes that are not kept."""
    summed = [c for c in letters if c in text and c not in kept]
    new = [c for c in letters if c not in text]
    if set(letters) <= set(text) and not summed:
        full = array.transpose([letters.index(c) for c in text if c in letters])
        full = full.reshape([x.shape[a] if c in letters else 1 for a, c in enumerate(text)])
        x = lifter.affine(x, scale=full, suffix="scaled")
        gone = [a for a, c in enumerate(text) if c not in kept]
        x = drop(lifter, along_axes(lifter, x, gone, 1.0), gone) if gone else x
        left = [c for c in text if c in kept]
        return lifter.permute(x, [left.index(c) for c in kept])
    if len(summed) == 1 and len(new) <= 1 and len(summed) + len(new) == len(letters):
        matrix = array.reshape(1, -1) if not new else array.transpose([letters.index(new[0]), letters.index(summed[0])])
        axis = text.index(summed[0])
        x = contract(lifter, x, axis, matrix)
        after = list(text)
        if new:
            after[axis] = new[0]
        else:
            x = drop(lifter, x, [axis])
            del after[axis]
        gone = [a for a, c in enumerate(after) if c not in kept]
        x = drop(lifter, along_axes(lifter, x, gone, 1.0), gone) if gone else x
        left = [c for c in after if c in kept]
        return lifter.permute(x, [left.index(c) for c in kept])
    return _written_out(lifter, x, text, array, letters, kept)


def _written_out(lifter: Lifter, x: Value, text: str, array: Array, letters: str, kept: str) -> Value:
    """The same by a matrix with all its entries."""
    sizes = dict(zip(text, x.shape, strict=True)) | dict(zip(letters, array.shape, strict=True))
    every = "".join(dict.fromkeys(text + letters))
    if math.prod(sizes[c] for c in every) > MOST_ENTRIES:
        raise Unsupported(
            f"a product with a constant of shape {array.shape}, with {math.prod(sizes[c] for c in every)} entries",
            "Split it into products with smaller constants",
        )
    x = lifter.settle(x)
    full = tuple(sizes[c] for c in every)
    columns = _numbers(text, every, sizes)
    rows = _numbers(kept, every, sizes)
    values = array.transpose([letters.index(c) for c in every if c in letters])
    values = values.reshape([sizes[c] if c in letters else 1 for c in every])
    shape: Shape = tuple(sizes[c] for c in kept)
    entries = (np.broadcast_to(one, full).reshape(-1) for one in (rows, columns, values))
    names = [lifter.constant(name, one) for name, one in zip(("rows", "columns", "values"), entries, strict=True)]
    bias = lifter.constant("bias", np.zeros(math.prod(shape)))
    made = lifter.add(SparseLinear(names[0], names[1], names[2], bias, shape or (1,)), x)
    return Value(made.id, shape)


def _numbers(text: str, every: str, sizes: dict[str, int]) -> npt.NDArray[np.int64]:
    """The number of the element with axes `text`, row-major, for each index over the axes `every`."""
    flat: npt.NDArray[np.int64] = np.arange(math.prod(sizes[c] for c in text), dtype=np.int64)
    numbers = flat.reshape([sizes[c] for c in text]).transpose([text.index(c) for c in every if c in text])
    return numbers.reshape([sizes[c] if c in text else 1 for c in every])
