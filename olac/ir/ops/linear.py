"""Linear ops: each gives itself as a sparse affine map."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from scipy import sparse

from olac.ir.ops.base import (
    Array,
    ComputedMap,
    Constants,
    Factors,
    LinearMap,
    LinearOp,
    Scaling,
    Shape,
    ShapeError,
    Span,
    Tap,
    by_channel,
    compact,
    image_shape,
    of_elements,
    register,
)
from olac.ir.types import Stage
from olac.system.arrays import Index

ENTRIES = 1 << 22
"""Entries of a map that are listed together."""


@dataclass(frozen=True)
class _Weighted(LinearOp):
    """An op with a weight, whose first axis is that of its outputs, and a bias: (outputs,) or None."""

    weight: str
    bias: str | None = None
    constant_fields: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        super().check(shapes, constants, stage)
        if len(self._bias(constants)) != len(constants[self.weight]):
            raise ShapeError(f"{len(self._bias(constants))} biases for {len(constants[self.weight])} outputs")

    def _bias(self, constants: Constants) -> Array:
        return np.zeros(len(constants[self.weight])) if self.bias is None else constants[self.bias]

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        out = {"weight": constants[self.weight] * ratio}
        return out if self.bias is None else {**out, "bias": constants[self.bias] * bias_ratio}

    def _made(self, weight: Array, bias: Array) -> dict[str, Array]:
        """Constants by field; a bias of zeros is left out if the op has none."""
        return {"weight": weight} if self.bias is None and not np.any(bias) else {"weight": weight, "bias": bias}


@register
@dataclass(frozen=True)
class Conv2d(_Weighted):
    """Cross-correlation with zero padding, as torch.nn.functional.conv2d.

    weight: (out, in / groups, kh, kw); bias: (out,) or None; padding: top, bottom, left, right.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    name: ClassVar[str] = "conv2d"
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"weight": 4, "bias": 1})
    takes: ClassVar[Factors] = Factors.BY_CHANNEL

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        super().check(shapes, constants, stage)
        numbers = (*self.stride, *self.dilation, self.groups)
        if min(numbers) < 1 or min(self.padding) < 0 or len(constants[self.weight]) % self.groups:
            raise ShapeError(
                f"conv2d of {len(constants[self.weight])} channels with stride {self.stride}, dilation "
                f"{self.dilation}, padding {self.padding} and {self.groups} groups"
            )

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        c, h, w = image_shape(shapes, self.name)
        out, per_group, kh, kw = constants[self.weight].shape
        if c != per_group * self.groups:
            raise ShapeError(f"conv2d with weight {constants[self.weight].shape} on {c} channels")
        top, bottom, left, right = self.padding
        rows = (h + top + bottom - self.dilation[0] * (kh - 1) - 1) // self.stride[0] + 1
        columns = (w + left + right - self.dilation[1] * (kw - 1) - 1) // self.stride[1] + 1
        if rows < 1 or columns < 1:
            raise ShapeError(f"conv2d kernel {kh}x{kw} is larger than its padded input {h}x{w}")
        return out, rows, columns

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x, weight = operands[0], constants[self.weight]
        out, rows, columns = self.infer([x.shape[1:]], constants)
        per_group, kh, kw = weight.shape[1:]
        top, bottom, left, right = self.padding
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        n, per_out = len(x), out // self.groups
        result = np.empty((n, out, rows, columns))
        for g in range(self.groups):
            part = x[:, g * per_group : (g + 1) * per_group]
            patches = np.empty((per_group, kh, kw, n, rows, columns))
            for i in range(kh):
                for j in range(kw):
                    y0, x0 = i * self.dilation[0], j * self.dilation[1]
                    window = part[
                        :,
                        :,
                        y0 : y0 + (rows - 1) * self.stride[0] + 1 : self.stride[0],
                        x0 : x0 + (columns - 1) * self.stride[1] + 1 : self.stride[1],
                    ]
                    patches[:, i, j] = window.transpose(1, 0, 2, 3)
            filters = weight[g * per_out : (g + 1) * per_out].reshape(per_out, -1)
            product = filters @ patches.reshape(per_group * kh * kw, -1)
            result[:, g * per_out : (g + 1) * per_out] = product.reshape(per_out, n, rows, columns).transpose(
                1, 0, 2, 3
            )
        return result + self._bias(constants)[None, :, None, None]

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        out, rows, columns = self.infer([shape], constants)
        entries = self._entries(shape, constants, slice(0, out))
        return LinearMap(*entries, np.repeat(self._bias(constants), rows * columns), math.prod(shape))

    def entries(self, shape: Shape, constants: Constants) -> Iterator[tuple[Index, Index, Array]]:
        out, rows, columns = self.infer([shape], constants)
        together = max(1, ENTRIES // (math.prod(constants[self.weight].shape[1:]) * rows * columns))
        for first in range(0, out, together):
            yield self._entries(shape, constants, slice(first, min(first + together, out)))

    def _entries(self, shape: Shape, constants: Constants, channels: slice) -> tuple[Index, Index, Array]:
        """Rows, columns and values of the entries in the rows of some output channels."""
        weight = constants[self.weight]
        _, h, w = shape
        out, rows, columns = self.infer([shape], constants)
        per_group, kh, kw = weight.shape[1:]
        per_out = out // self.groups
        o, i, ky, kx, y, x = np.ogrid[channels, :per_group, :kh, :kw, :rows, :columns]
        source_y = y * self.stride[0] + ky * self.dilation[0] - self.padding[0]
        source_x = x * self.stride[1] + kx * self.dilation[1] - self.padding[2]
        source_c = (o // per_out) * per_group + i
        full = np.broadcast_shapes(o.shape, i.shape, ky.shape, kx.shape, y.shape, x.shape)
        values = np.broadcast_to(weight[channels, ..., None, None], full)
        keep = np.broadcast_to((source_y >= 0) & (source_y < h) & (source_x >= 0) & (source_x < w), full) & (
            values != 0
        )
        target = np.broadcast_to((o * rows + y) * columns + x, full)[keep]
        source = np.broadcast_to((source_c * h + source_y) * w + source_x, full)[keep]
        return target.astype(np.int64), source.astype(np.int64), values[keep]

    def taps(self, shape: Shape, constants: Constants) -> Iterator[Tap]:
        weight = constants[self.weight]
        out, *size = self.infer([shape], constants)
        per_group, kh, kw = weight.shape[1:]
        down, right = (
            [
                _inside(size[axis], self.stride[axis], k * self.dilation[axis] - before, shape[1 + axis])
                for k in range((kh, kw)[axis])
            ]
            for axis, before in ((0, self.padding[0]), (1, self.padding[2]))
        )
        for ky, rows in enumerate(down):
            for kx, columns in enumerate(right):
                if rows.count and columns.count:
                    outputs, inputs = np.nonzero(weight[:, :, ky, kx])
                    yield Tap(outputs, outputs // (out // self.groups) * per_group + inputs, rows, columns)

    def computed_map(self, shape: Shape, constants: Constants) -> ComputedMap:
        weight, bias = constants[self.weight], self._bias(constants)
        (_, h, w), (out, rows, columns) = shape, self.infer([shape], constants)
        per_group, kh, kw = weight.shape[1:]
        per_out, flat = out // self.groups, weight.reshape(-1)

        def values(targets: Index, sources: Index) -> Array:
            line, target_x = _divided(targets, columns)
            target_c, target_y = _divided(line, rows)
            line, source_x = _divided(sources, w)
            source_c, source_y = _divided(line, h)
            channel = source_c - target_c // per_out * per_group
            ky, y_left = _divided(source_y + self.padding[0] - target_y * self.stride[0], self.dilation[0])
            kx, x_left = _divided(source_x + self.padding[2] - target_x * self.stride[1], self.dilation[1])
            inside = (channel >= 0) & (channel < per_group) & (ky >= 0) & (ky < kh) & (kx >= 0) & (kx < kw)
            inside &= (y_left == 0) & (x_left == 0)
            place = ((target_c * per_group + channel) * kh + ky) * kw + kx
            return np.where(inside, flat[np.where(inside, place, 0)], 0.0)

        def shifts(targets: Index) -> Array:
            return bias[targets // (rows * columns)]

        return ComputedMap(values, shifts, bool(np.any(bias)), weight.nbytes + bias.nbytes)

    def with_factors(
        self, shape: Shape, constants: Constants, rows: Scaling | None = None, columns: Scaling | None = None
    ) -> dict[str, Array] | None:
        weight = constants[self.weight]
        scaled, bias, row = weight, self._bias(constants), None
        if rows is not None:
            if (row := _by_channel(rows)) is None:
                return None
            scaled = scaled * row[0][:, None, None, None]
        if columns is not None:
            column = _by_channel(columns)
            if column is None or (np.any(column[1]) and any(self.padding)):
                return None  # the padding's zeros would have to be shifted as well
            out, per_group = weight.shape[:2]
            # Row o has the factors and offsets of the input channels in the group of output o.
            first = np.arange(out) // (out // self.groups) * per_group
            factors, offsets = (values[first[:, None] + np.arange(per_group)] for values in column)
            scaled = scaled * factors[..., None, None]
            bias = np.einsum("oikl,oi->o", weight, offsets) + bias
        if row is not None:
            bias = row[0] * bias + row[1]
        return self._made(scaled, bias)

    def gains(self, shape: Shape, constants: Constants, inputs: int) -> Array:
        weight = np.abs(constants[self.weight])
        if inputs == shape[0]:
            taps = weight.sum(axis=(2, 3))
            found: Array = np.zeros((len(weight), inputs))
            for group, channels in enumerate(np.split(np.arange(len(weight)), self.groups)):
                start = group * taps.shape[1]
                found[channels, start : start + taps.shape[1]] = taps[channels]
            return found
        if inputs == 1:
            return np.asarray(weight.reshape(len(weight), 1, -1).sum(axis=2))
        return super().gains(shape, constants, inputs)


def _inside(count: int, stride: int, offset: int, size: int) -> Span:
    """The outputs along one axis for which the pixel at an offset is not padding."""
    first = max(0, -(offset // stride))
    last = min(count, (size - 1 - offset) // stride + 1)
    return Span(first, max(0, last - first), first * stride + offset, stride)


def _divided(numbers: Index, by: int) -> tuple[Index, Index]:
    """Quotients and remainders; numpy's own function for both takes several times as long."""
    if by == 1:
        return numbers, np.zeros_like(numbers)
    quotients: Index = numbers // by
    return quotients, numbers - quotients * by


def _by_channel(pair: Scaling) -> Scaling | None:
    first, second = by_channel(pair[0]), by_channel(pair[1])
    return None if first is None or second is None else (first, second)


@register
@dataclass(frozen=True)
class Linear(_Weighted):
    """y = W x + b on a vector. weight: (out, in); bias: (out,) or None."""

    name: ClassVar[str] = "linear"
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"weight": 2, "bias": 1})
    takes: ClassVar[Factors] = Factors.BY_ELEMENT

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        out, size = constants[self.weight].shape
        if shapes[0] != (size,):
            raise ShapeError(f"linear with weight {constants[self.weight].shape} on {shapes[0]}")
        return (out,)

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        y = operands[0] @ constants[self.weight].T
        return y if self.bias is None else y + constants[self.bias]

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        return LinearMap.from_sparse(sparse.csr_array(constants[self.weight]), self._bias(constants))

    def entries(self, shape: Shape, constants: Constants) -> Iterator[tuple[Index, Index, Array]]:
        weight = constants[self.weight]
        together = max(1, ENTRIES // weight.shape[1])
        for first in range(0, len(weight), together):
            part = weight[first : first + together]
            rows, columns = np.nonzero(part)
            yield rows + first, columns, part[rows, columns]

    def entry_count(self, shape: Shape, constants: Constants) -> int:
        return int(np.count_nonzero(constants[self.weight]))

    def computed_map(self, shape: Shape, constants: Constants) -> ComputedMap:
        weight, bias = constants[self.weight], self._bias(constants)
        return ComputedMap(
            lambda rows, columns: weight[rows, columns],
            lambda rows: bias[rows],
            bool(np.any(bias)),
            weight.nbytes + bias.nbytes,
        )

    def with_factors(
        self, shape: Shape, constants: Constants, rows: Scaling | None = None, columns: Scaling | None = None
    ) -> dict[str, Array] | None:
        weight = constants[self.weight]
        scaled, bias = weight, self._bias(constants)
        if rows is not None:
            scaled = scaled * rows[0][:, None]
        if columns is not None:
            scaled = scaled * columns[0]
            bias = weight @ columns[1] + bias
        if rows is not None:
            bias = rows[0] * bias + rows[1]
        return self._made(scaled, bias)

    def gains(self, shape: Shape, constants: Constants, inputs: int) -> Array:
        weight = np.abs(constants[self.weight])
        return np.asarray(weight.reshape(len(weight), inputs, -1).sum(axis=2))


@register
@dataclass(frozen=True)
class SparseLinear(LinearOp):
    """A composed linear op: entries (rows, columns, values) over flattened elements, and a bias for each element."""

    rows: str
    columns: str
    values: str
    bias: str
    shape: Shape
    name: ClassVar[str] = "sparse_linear"
    constant_fields: ClassVar[tuple[str, ...]] = ("rows", "columns", "values", "bias")
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"rows": 1, "columns": 1, "values": 1, "bias": 1})
    takes: ClassVar[Factors] = Factors.BY_ELEMENT

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        super().check(shapes, constants, stage)
        rows, columns, values, bias = (constants[name] for name in (self.rows, self.columns, self.values, self.bias))
        if not len(rows) == len(columns) == len(values):
            raise ShapeError(f"sparse_linear of {len(rows)} rows, {len(columns)} columns and {len(values)} values")
        for name, index, bound in (("rows", rows, len(bias)), ("columns", columns, math.prod(shapes[0]))):
            inside = index.min(initial=0) >= 0 and index.max(initial=-1) < bound
            if not inside or not np.array_equal(index, np.floor(index)):
                raise ShapeError(f"the {name} of sparse_linear are not all indices below {bound}")

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if math.prod(self.shape) != len(constants[self.bias]):
            raise ShapeError(f"sparse_linear gives {len(constants[self.bias])} elements, not {self.shape}")
        return self.shape

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        return LinearMap(
            constants[self.rows].astype(np.int64),
            constants[self.columns].astype(np.int64),
            constants[self.values],
            constants[self.bias],
            math.prod(shape),
        )

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        return {"values": constants[self.values] * ratio, "bias": constants[self.bias] * bias_ratio}

    def with_factors(
        self, shape: Shape, constants: Constants, rows: Scaling | None = None, columns: Scaling | None = None
    ) -> dict[str, Array] | None:
        made = self.linear_map(shape, constants).with_factors(rows, columns)
        return {"values": made.values, "bias": made.bias}


@register
@dataclass(frozen=True)
class Affine(LinearOp):
    """y = scale * x + shift, elementwise; both broadcast against the value's shape.

    Batch normalisation in evaluation mode, products and sums with constants, and the identity that changes a layout.
    """

    scale: str
    shift: str
    name: ClassVar[str] = "affine"
    structural: ClassVar[bool] = True
    constant_fields: ClassVar[tuple[str, ...]] = ("scale", "shift")
    takes: ClassVar[Factors] = Factors.BY_ELEMENT

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        for constant in (constants[self.scale], constants[self.shift]):
            try:
                same = np.broadcast_shapes(shapes[0], constant.shape) == shapes[0]
            except ValueError:
                same = False
            if not same:
                raise ShapeError(f"a constant of shape {constant.shape} does not broadcast to {shapes[0]}")
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0] * constants[self.scale] + constants[self.shift]

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        diagonal = np.broadcast_to(constants[self.scale], shape).reshape(-1)
        shift = np.broadcast_to(constants[self.shift], shape).reshape(-1).astype(np.float64)
        return LinearMap.from_sparse(sparse.diags_array(diagonal), shift)

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        return {"scale": constants[self.scale] * ratio, "shift": constants[self.shift] * bias_ratio}

    def with_factors(
        self, shape: Shape, constants: Constants, rows: Scaling | None = None, columns: Scaling | None = None
    ) -> dict[str, Array] | None:
        scale, shift = (np.broadcast_to(constants[name], shape) for name in (self.scale, self.shift))
        if columns is not None:
            scale, shift = scale * columns[0], shift + scale * columns[1]
        if rows is not None:
            scale, shift = scale * rows[0], shift * rows[0] + rows[1]
        return {"scale": compact(scale), "shift": compact(shift)}


@register
@dataclass(frozen=True)
class AveragePool(LinearOp):
    """Every pooling by averages: y = R x C^T in each channel, R of shape (h_out, h) and C of shape (w_out, w).

    AvgPool2d with any stride, padding, ceil_mode and divisor, AdaptiveAvgPool2d and the mean over space are all
    separable in this way. `stride` tells the layout how far windows move; (0, 0) if they don't move evenly.
    """

    rows: str
    columns: str
    stride: tuple[int, int] = (0, 0)
    name: ClassVar[str] = "average_pool"
    structural: ClassVar[bool] = True
    constant_fields: ClassVar[tuple[str, ...]] = ("rows", "columns")
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"rows": 2, "columns": 2})

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        c, h, w = image_shape(shapes, self.name)
        rows, columns = constants[self.rows], constants[self.columns]
        if rows.shape[1] != h or columns.shape[1] != w:
            raise ShapeError(f"average_pool for {rows.shape[1]}x{columns.shape[1]} on {h}x{w}")
        return c, rows.shape[0], columns.shape[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return np.asarray(constants[self.rows] @ operands[0] @ constants[self.columns].T)

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        plane = sparse.kron(constants[self.rows], constants[self.columns])
        matrix = sparse.kron(sparse.eye_array(shape[0]), plane)
        return LinearMap.from_sparse(matrix, np.zeros(matrix.shape[0]))

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        return {"rows": constants[self.rows] * ratio}

    def commuted(self, signs: Array, constants: Constants) -> Array | None:
        channels = by_channel(signs)
        return None if channels is None else of_elements(channels, self.infer([signs.shape], constants))


@register
@dataclass(frozen=True)
class Pad(LinearOp):
    """Constant padding: (before, after) elements on each axis of the shape."""

    amounts: tuple[tuple[int, int], ...]
    value: float = 0.0
    name: ClassVar[str] = "pad"
    structural: ClassVar[bool] = True

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if len(self.amounts) != len(shapes[0]):
            raise ShapeError(f"pad of {len(self.amounts)} axes on {shapes[0]}")
        shape = tuple(s + a + b for s, (a, b) in zip(shapes[0], self.amounts, strict=True))
        if min(shape) < 1:
            raise ShapeError(f"padding {self.amounts} leaves nothing of {shapes[0]}")
        return shape

    def _pad(self, x: Array, fill: float) -> Array:
        crop = tuple(slice(max(0, -a), s - max(0, -b)) for s, (a, b) in zip(x.shape, self.amounts, strict=True))
        return np.pad(x[crop], [(max(0, a), max(0, b)) for a, b in self.amounts], constant_values=fill)

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return np.stack([self._pad(x, self.value) for x in operands[0]])

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        source = self._sources(shape)
        rows = np.flatnonzero(source >= 0)
        bias = np.where(source < 0, self.value, 0.0)
        return LinearMap(rows, source[rows], np.ones(len(rows)), bias, math.prod(shape))

    def taken(self, shape: Shape, constants: Constants) -> Index | None:
        return None if self.value else self._sources(shape)

    def _sources(self, shape: Shape) -> Index:
        """For each element of the result that of the operand, or -1 in the padding."""
        numbers = np.arange(1, math.prod(shape) + 1, dtype=np.float64).reshape(shape)
        return self._pad(numbers, 0.0).reshape(-1).astype(np.int64) - 1

    def commuted(self, signs: Array, constants: Constants) -> Array | None:
        channels = by_channel(signs)
        if self.value or channels is None:
            return self._pad(signs, 1.0)
        # Zeros can have the sign of their channel.
        return of_elements(Pad(self.amounts[:1])._pad(channels, 1.0), self.infer([signs.shape], constants))


@register
@dataclass(frozen=True)
class Slice(LinearOp):
    """Strided slicing: (start, stop, step) on each axis, as Python slices with positive steps."""

    slices: tuple[tuple[int, int, int], ...]
    name: ClassVar[str] = "slice"
    structural: ClassVar[bool] = True

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if len(self.slices) != len(shapes[0]):
            raise ShapeError(f"slice of {len(self.slices)} axes on {shapes[0]}")
        shape = tuple(len(range(*slice(*s).indices(n))) for s, n in zip(self.slices, shapes[0], strict=True))
        if min(shape) < 1:
            raise ShapeError(f"slice {self.slices} leaves nothing of {shapes[0]}")
        return shape

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        window = (slice(None), *(slice(*s) for s in self.slices))
        return operands[0][window]

    def commuted(self, signs: Array, constants: Constants) -> Array | None:
        return np.asarray(self.evaluate([signs[None]], constants)[0])

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        source = self.taken(shape, constants)
        count = len(source)
        return LinearMap(np.arange(count), source, np.ones(count), np.zeros(count), math.prod(shape))

    def taken(self, shape: Shape, constants: Constants) -> Index:
        numbers = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        return numbers[tuple(slice(*s) for s in self.slices)].reshape(-1)


@register
@dataclass(frozen=True)
class Gather(LinearOp):
    """Element i of the result, in row-major order, is element indices[i] of the operand; 0 if the index is -1.

    Permutations of axes, flips, repetitions, unfolding, and paddings by elements of the operand are all such.
    """

    indices: str
    shape: Shape
    name: ClassVar[str] = "gather"
    structural: ClassVar[bool] = True
    constant_fields: ClassVar[tuple[str, ...]] = ("indices",)
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"indices": 1})

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        super().check(shapes, constants, stage)
        indices, size = constants[self.indices], math.prod(shapes[0])
        inside = indices.min(initial=0) >= -1 and indices.max(initial=-1) < size
        if not inside or not np.array_equal(indices, np.floor(indices)):
            raise ShapeError(f"the indices of gather are not all indices of {size} elements, or -1")

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if math.prod(self.shape) != len(constants[self.indices]) or min(self.shape, default=1) < 1:
            raise ShapeError(f"gather of {len(constants[self.indices])} elements, not {self.shape}")
        return self.shape

    def _taken(self, flat: Array, constants: Constants, fill: float) -> Array:
        """Elements of (images, elements), and `fill` where there is none."""
        indices = constants[self.indices].astype(np.int64)
        taken = np.take(flat, np.maximum(indices, 0), axis=1)
        return np.where(indices < 0, fill, taken)

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x = operands[0]
        return self._taken(x.reshape(len(x), -1), constants, 0.0).reshape(len(x), *self.shape)

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        indices = constants[self.indices].astype(np.int64)
        rows = np.flatnonzero(indices >= 0)
        return LinearMap(rows, indices[rows], np.ones(len(rows)), np.zeros(len(indices)), math.prod(shape))

    def taken(self, shape: Shape, constants: Constants) -> Index:
        return constants[self.indices].astype(np.int64)

    def commuted(self, signs: Array, constants: Constants) -> Array | None:
        return self._taken(signs.reshape(1, -1), constants, 1.0).reshape(self.shape)


@register
@dataclass(frozen=True)
class Repeat(LinearOp):
    """The operand repeated along its axes of length 1 to a shape with as many axes."""

    shape: Shape
    name: ClassVar[str] = "repeat"
    structural: ClassVar[bool] = True

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        fits = len(self.shape) == len(shapes[0]) and min(self.shape, default=1) > 0
        if not fits or any(a not in (1, b) for a, b in zip(shapes[0], self.shape, strict=True)):
            raise ShapeError(f"repeat of {shapes[0]} to {self.shape}")
        return self.shape

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return np.array(np.broadcast_to(operands[0], (len(operands[0]), *self.shape)))

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        columns = np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), self.shape).reshape(-1)
        count = len(columns)
        return LinearMap(np.arange(count), columns.astype(np.int64), np.ones(count), np.zeros(count), math.prod(shape))

    def commuted(self, signs: Array, constants: Constants) -> Array | None:
        return np.broadcast_to(signs, self.shape)


@register
@dataclass(frozen=True)
class Contract(_Weighted):
    """y[o, ...] = sum_i W[o, i] x[..., i, ...] + b[o]: a matrix on one axis, which becomes the first axis.

    weight: (out, in); bias: (out,) or None; axis: that of the operand which has `in` elements. The result's first axis
    is that of `out`, and the operand's other axes follow in their order: features become channels.
    """

    axis: int = 0
    name: ClassVar[str] = "contract"
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"weight": 2, "bias": 1})
    takes: ClassVar[Factors] = Factors.BY_ELEMENT

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        out, size = constants[self.weight].shape
        shape = shapes[0]
        if not 0 <= self.axis < len(shape) or shape[self.axis] != size:
            raise ShapeError(f"contract of {size} elements on axis {self.axis} of {shape}")
        return (out, *shape[: self.axis], *shape[self.axis + 1 :])

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x = np.moveaxis(operands[0], 1 + self.axis, 1)
        y = (constants[self.weight] @ x.reshape(*x.shape[:2], -1)).reshape(len(x), -1, *x.shape[2:])
        return np.asarray(y + self._bias(constants).reshape(-1, *(1,) * (y.ndim - 2)))

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        weight = constants[self.weight]
        before, after = math.prod(shape[: self.axis]), math.prod(shape[self.axis + 1 :])
        outputs, inputs = np.nonzero(weight)
        others = np.arange(before * after)
        rows = outputs[:, None] * (before * after) + others
        columns = (others // after * weight.shape[1] + inputs[:, None]) * after + others % after
        values = np.repeat(weight[outputs, inputs], before * after)
        bias = np.repeat(self._bias(constants), before * after)
        return LinearMap(rows.reshape(-1), columns.reshape(-1), values, bias, math.prod(shape))

    def with_factors(
        self, shape: Shape, constants: Constants, rows: Scaling | None = None, columns: Scaling | None = None
    ) -> dict[str, Array] | None:
        weight, bias = constants[self.weight], self._bias(constants)
        if columns is not None:
            # Only numbers that are the same for all elements of a row of the matrix can go into the weight.
            alike = [by_channel(np.moveaxis(part, self.axis, 0)) for part in columns]
            if alike[0] is None or alike[1] is None:
                return None
            bias, weight = weight @ alike[1] + bias, weight * alike[0]
        if rows is not None:
            channels = _by_channel(rows)
            if channels is None:
                return None
            weight, bias = weight * channels[0][:, None], channels[0] * bias + channels[1]
        return self._made(weight, bias)

    def gains(self, shape: Shape, constants: Constants, inputs: int) -> Array:
        weight = np.abs(constants[self.weight])
        if inputs == 1:
            return np.asarray(weight.sum(axis=1, keepdims=True))
        if self.axis == 0 and inputs == shape[0]:
            return weight
        return super().gains(shape, constants, inputs)
