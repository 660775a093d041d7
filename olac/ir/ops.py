"""Every op of the IR, one small frozen dataclass each.

An op knows the shape of its result and its reference semantics in numpy (`evaluate`, over arrays with a leading batch
axis). A *linear* op also gives itself as a sparse affine map (`linear_map`), which is all that packing needs: a new
linear op is compiled as soon as it has that method. Arrays live in the graph's constants; an op names them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy import sparse

from olac.ir.functions import Definition, activation, channel_count
from olac.ir.head import Step

Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]
Constants = Mapping[str, Array]


class ShapeError(ValueError):
    """An op does not accept operands of these shapes."""


@dataclass(frozen=True)
class LinearMap:
    """y = M x + b over flattened elements, M in coordinate form.

    Attributes:
        rows, columns, values: entries of M; an entry may be given in several summands.
        bias: b, one per element of the result.
    """

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    values: Array
    bias: Array
    columns_count: int

    @staticmethod
    def from_sparse(matrix: Any, bias: Array) -> LinearMap:
        """From any scipy sparse matrix; explicit zeros are dropped."""
        coo = sparse.coo_array(sparse.csr_array(matrix))
        keep = coo.data != 0
        rows, columns = (np.asarray(axis)[keep].astype(np.int64) for axis in coo.coords)
        return LinearMap(rows, columns, coo.data[keep].astype(np.float64), bias, int(matrix.shape[1]))

    def matrix(self) -> Any:
        """M as a scipy CSR array of shape (elements out, elements in)."""
        return sparse.csr_array((self.values, (self.rows, self.columns)), shape=(len(self.bias), self.columns_count))

    def after(self, first: LinearMap) -> LinearMap:
        """The map that applies `first`, then this one."""
        m = self.matrix()
        return LinearMap.from_sparse(m @ first.matrix(), self.bias + m @ first.bias)


@dataclass(frozen=True)
class Op(ABC):
    """An operation on values. `name` is its name in texts and files, `arity` its number of operands."""

    name: ClassVar[str] = ""
    arity: ClassVar[int] = 1
    constant_fields: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        """The shape of the result, or `ShapeError`."""

    @abstractmethod
    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        """Reference semantics; operands and result have shape (images, *shape)."""

    def levels(self, constants: Constants) -> int:
        """Levels from the lowest operand to the result: the depth of the op's kernel."""
        return 0

    def constant_names(self) -> tuple[str, ...]:
        """Names of the graph's constants that this op reads."""
        names = (getattr(self, field) for field in self.constant_fields)
        return tuple(name for name in names if name is not None)

    def attributes(self) -> dict[str, Any]:
        """All fields by name, for texts and files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class LinearOp(Op):
    """An op whose result is an affine function of its one operand.

    A `structural` one only moves, drops or weighs elements: composed with another linear op it stays sparse.
    """

    structural: ClassVar[bool] = False

    def levels(self, constants: Constants) -> int:
        return 1

    @abstractmethod
    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        """The op as a sparse affine map over the flattened elements of one image."""

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x = operands[0]
        out_shape = self.infer([x.shape[1:]], constants)
        linear = self.linear_map(x.shape[1:], constants)
        flat = (linear.matrix() @ x.reshape(len(x), -1).T).T + linear.bias
        return np.asarray(flat).reshape(len(x), *out_shape)

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        """The constants of ratio * M x + bias_ratio * b, by field, or None where the op can't absorb a factor."""
        return None


OPS: dict[str, type[Op]] = {}


def register(op: type[Op]) -> type[Op]:
    """Add an op to the registry under its name; names are unique."""
    if not op.name or op.name in OPS:
        raise ValueError(f"op name {op.name!r} is empty or taken")
    OPS[op.name] = op
    return op


def _grid(shapes: Sequence[Shape], name: str) -> tuple[int, int, int]:
    if len(shapes[0]) != 3:
        raise ShapeError(f"{name} takes (channels, height, width), not {shapes[0]}")
    c, h, w = shapes[0]
    return c, h, w


@register
@dataclass(frozen=True)
class Input(Op):
    """A value that the client encrypts: (image - offset) / factor, with an offset and a factor for each channel.

    offsets, factors: one for each channel (the first axis), or none of them: nothing is taken away, and one factor, the
    unit, is for all. What reads the input has them in its weights.
    """

    shape: Shape = ()
    offsets: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    name: ClassVar[str] = "input"
    arity: ClassVar[int] = 0

    def encode(self, images: Array) -> Array:
        """What the graph computes with, for images (n, *shape)."""
        if not self.factors:
            return images
        tail = (1,) * (len(self.shape) - 1)
        offsets, factors = (np.array(each).reshape(-1, *tail) for each in (self.offsets, self.factors))
        return np.asarray((images - offsets) / factors)

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return self.shape

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        raise AssertionError("inputs are given, not evaluated")


@register
@dataclass(frozen=True)
class Conv2d(LinearOp):
    """Cross-correlation with zero padding, as torch.nn.functional.conv2d.

    weight: (out, in / groups, kh, kw); bias: (out,) or None; padding: top, bottom, left, right.
    """

    weight: str
    bias: str | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    name: ClassVar[str] = "conv2d"
    constant_fields: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        c, h, w = _grid(shapes, self.name)
        out, per_group, kh, kw = constants[self.weight].shape
        if c != per_group * self.groups:
            raise ShapeError(f"conv2d with weight {constants[self.weight].shape} on {c} channels")
        top, bottom, left, right = self.padding
        rows = (h + top + bottom - self.dilation[0] * (kh - 1) - 1) // self.stride[0] + 1
        columns = (w + left + right - self.dilation[1] * (kw - 1) - 1) // self.stride[1] + 1
        if rows < 1 or columns < 1:
            raise ShapeError(f"conv2d kernel {kh}x{kw} is larger than its padded input {h}x{w}")
        return out, rows, columns

    def _bias(self, constants: Constants) -> Array:
        return np.zeros(len(constants[self.weight])) if self.bias is None else constants[self.bias]

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
        weight = constants[self.weight]
        c, h, w = shape
        out, rows, columns = self.infer([shape], constants)
        per_group, kh, kw = weight.shape[1:]
        per_out = out // self.groups
        o, i, ky, kx, y, x = np.ogrid[:out, :per_group, :kh, :kw, :rows, :columns]
        source_y = y * self.stride[0] + ky * self.dilation[0] - self.padding[0]
        source_x = x * self.stride[1] + kx * self.dilation[1] - self.padding[2]
        source_c = (o // per_out) * per_group + i
        full = np.broadcast_shapes(o.shape, i.shape, ky.shape, kx.shape, y.shape, x.shape)
        values = np.broadcast_to(weight[..., None, None], full)
        keep = np.broadcast_to((source_y >= 0) & (source_y < h) & (source_x >= 0) & (source_x < w), full) & (
            values != 0
        )
        target = np.broadcast_to((o * rows + y) * columns + x, full)[keep]
        source = np.broadcast_to((source_c * h + source_y) * w + source_x, full)[keep]
        bias = np.repeat(self._bias(constants), rows * columns)
        return LinearMap(target.astype(np.int64), source.astype(np.int64), values[keep], bias, c * h * w)

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        out = {"weight": constants[self.weight] * ratio}
        if self.bias is not None:
            out["bias"] = constants[self.bias] * bias_ratio
        return out


@register
@dataclass(frozen=True)
class Linear(LinearOp):
    """y = W x + b on a vector. weight: (out, in); bias: (out,) or None."""

    weight: str
    bias: str | None = None
    name: ClassVar[str] = "linear"
    constant_fields: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        out, size = constants[self.weight].shape
        if shapes[0] != (size,):
            raise ShapeError(f"linear with weight {constants[self.weight].shape} on {shapes[0]}")
        return (out,)

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        y = operands[0] @ constants[self.weight].T
        return y if self.bias is None else y + constants[self.bias]

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        weight = constants[self.weight]
        bias = np.zeros(len(weight)) if self.bias is None else constants[self.bias]
        return LinearMap.from_sparse(sparse.csr_array(weight), bias)

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        out = {"weight": constants[self.weight] * ratio}
        if self.bias is not None:
            out["bias"] = constants[self.bias] * bias_ratio
        return out


@register
@dataclass(frozen=True)
class SparseLinear(LinearOp):
    """A composed linear op: entries (rows, columns, values) over flattened elements and a bias per element."""

    rows: str
    columns: str
    values: str
    bias: str
    shape: Shape
    name: ClassVar[str] = "sparse_linear"
    constant_fields: ClassVar[tuple[str, ...]] = ("rows", "columns", "values", "bias")

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


@register
@dataclass(frozen=True)
class AveragePool(LinearOp):
    """Every pooling by averages: y = R x C^T in each channel, R of shape (h_out, h) and C of shape (w_out, w).

    AvgPool2d with any stride, padding, ceil_mode and divisor, AdaptiveAvgPool2d and the mean over space are all
    separable in this way. `stride` tells the layout how far windows move; (0, 0) where they don't move evenly.
    """

    rows: str
    columns: str
    stride: tuple[int, int] = (0, 0)
    name: ClassVar[str] = "average_pool"
    structural: ClassVar[bool] = True
    constant_fields: ClassVar[tuple[str, ...]] = ("rows", "columns")

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        c, h, w = _grid(shapes, self.name)
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


@register
@dataclass(frozen=True)
class MaxPool2d(Op):
    """The largest element of each window in each channel, as torch.nn.functional.max_pool2d; stage TRACED only.

    All but `ceil_mode` are for rows and columns. Padding adds no elements: windows end at the borders.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    name: ClassVar[str] = "max_pool2d"

    def windows(self, size: int, axis: int) -> tuple[tuple[int, int], ...]:
        """The windows along an axis of that size (0 rows, 1 columns): first index and number of elements.

        Elements are `dilation` apart. ShapeError where there is no window.
        """
        kernel, stride, padding, dilation = (
            field[axis] for field in (self.kernel, self.stride, self.padding, self.dilation)
        )
        reach = dilation * (kernel - 1) + 1
        if min(kernel, stride, dilation) < 1 or not 0 <= padding <= reach // 2:
            raise ShapeError(f"max_pool2d of windows {kernel}, stride {stride}, padding {padding}, dilation {dilation}")
        last = size + 2 * padding - reach
        count = (-(-last // stride) if self.ceil_mode else last // stride) + 1
        if self.ceil_mode and (count - 1) * stride >= size + padding:
            count -= 1  # as torch: no window starts in the padding on the right
        if count < 1:
            raise ShapeError(f"max_pool2d window of {kernel} is larger than its padded input of {size}")
        found = []
        for start in range(-padding, -padding + count * stride, stride):
            first = start if start >= 0 else start % dilation
            taps = kernel - (first - start) // dilation
            found.append((first, min(taps, -(-(size - first) // dilation))))
        if min(length for _, length in found) < 1:
            raise ShapeError(f"max_pool2d with a window of padding only, on {size} elements")
        return tuple(found)

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        c, h, w = _grid(shapes, self.name)
        return c, len(self.windows(h, 0)), len(self.windows(w, 1))

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x = operands[0]
        for axis in (0, 1):
            windows = self.windows(x.shape[2 + axis], axis)
            first, count = (np.array(column)[:, None] for column in zip(*windows, strict=True))
            taps = first + np.minimum(np.arange(self.kernel[axis]), count - 1) * self.dilation[axis]
            x = np.take(x, taps, axis=2 + axis).max(axis=3 + axis)
        return x


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
        source = self._pad(np.arange(1, math.prod(shape) + 1, dtype=np.float64).reshape(shape), 0.0)
        flat = source.reshape(-1).astype(np.int64)
        rows = np.flatnonzero(flat)
        bias = np.where(flat == 0, self.value, 0.0)
        return LinearMap(rows, flat[rows] - 1, np.ones(len(rows)), bias, math.prod(shape))


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

    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        source = np.arange(math.prod(shape)).reshape(shape)[tuple(slice(*s) for s in self.slices)].reshape(-1)
        count = len(source)
        return LinearMap(np.arange(count), source.astype(np.int64), np.ones(count), np.zeros(count), math.prod(shape))


@register
@dataclass(frozen=True)
class Reshape(Op):
    """Another logical shape of the same elements in row-major order; nothing moves in the slots."""

    shape: Shape
    name: ClassVar[str] = "reshape"

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if math.prod(shapes[0]) != math.prod(self.shape):
            raise ShapeError(f"reshape of {shapes[0]} to {self.shape}")
        return self.shape

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0].reshape(len(operands[0]), *self.shape)


def bent(slots: Array, correction: int) -> Array:
    """What bootstrapping with a correction factor makes of slots, noise aside."""
    frequency = 2 * np.pi / 2**correction
    result: Array = np.sin(frequency * slots) / frequency
    return result


@register
@dataclass(frozen=True)
class Bootstrap(Op):
    """The same value with levels again, bent a little: sin(w x) / w, w = 2 pi / 2^correction; slots within [-1, 1].

    CKKS bootstrapping takes rests modulo the first prime by a sine (Cheon, Han, Kim, Kim and Song, "Bootstrapping for
    Approximate Homomorphic Encryption", EUROCRYPT 2018). What that does to values is no noise, so it is part of the op.

    Attributes:
        correction: bits by which values are scaled down within the sine.
    """

    name: ClassVar[str] = "bootstrap"
    correction: int

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return bent(operands[0], self.correction)


@register
@dataclass(frozen=True)
class Add(Op):
    """The sum of two values of the same shape: a residual connection."""

    name: ClassVar[str] = "add"
    arity: ClassVar[int] = 2

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if shapes[0] != shapes[1]:
            raise ShapeError(f"add of {shapes[0]} and {shapes[1]}")
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0] + operands[1]


@register
@dataclass(frozen=True)
class Multiply(Op):
    """The elementwise product of two values of the same shape; x * x is a square."""

    name: ClassVar[str] = "multiply"
    arity: ClassVar[int] = 2

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if shapes[0] != shapes[1]:
            raise ShapeError(f"multiply of {shapes[0]} and {shapes[1]}")
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0] * operands[1]

    def levels(self, constants: Constants) -> int:
        return 1


@register
@dataclass(frozen=True)
class Square(Op):
    """y = x^2 + shift: what is left of a quadratic whose other factors went into the linear ops around it.

    shift: (channels,), or (1,) for all channels alike.
    """

    shift: str
    name: ClassVar[str] = "square"
    constant_fields: ClassVar[tuple[str, ...]] = ("shift",)

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        channels = len(constants[self.shift])
        if channels not in (1, shapes[0][0]):
            raise ShapeError(f"shifts for {channels} channels on {shapes[0]}")
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x = operands[0]
        return np.asarray(x * x + constants[self.shift].reshape(-1, *(1,) * (x.ndim - 2)))

    def levels(self, constants: Constants) -> int:
        return 1


@register
@dataclass(frozen=True)
class Activation(Op):
    """A univariate function of each element, by its name in `olac.ir.functions`; stage TRACED only.

    Channels may have functions of their own: see `is_per_channel` and `channel_function` there. `definition` keeps a
    function that the caller gave; the name finds it as long as an op holds it.
    """

    function: str
    parameters: tuple[float, ...] = ()
    definition: Definition | None = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "activation"

    def attributes(self) -> dict[str, Any]:
        return {"function": self.function, "parameters": self.parameters}

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        count = channel_count(self.function, self.parameters)
        if count not in (None, shapes[0][0]):
            raise ShapeError(f"{self.function} for {count} channels on {shapes[0]}")
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return activation(self.function, self.parameters)(operands[0])


@register
@dataclass(frozen=True)
class AtClient(Op):
    """A step that no ciphertext takes: only a client does, on decrypted outputs; stage TRACED only.

    `olac.ir.split.split_head` moves it from the end of a graph into the head.
    """

    step: Step
    name: ClassVar[str] = "at_client"

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        try:
            return self.step.infer(shapes[0])
        except ValueError as error:
            raise ShapeError(f"{self.step.name}: {error}") from error

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return np.asarray(self.step.apply(operands[0]), dtype=np.float64)


@register
@dataclass(frozen=True)
class Polynomial(Op):
    """p(x) = sum_k c_k T_k(x / half_width), Chebyshev polynomials of the first kind.

    coefficients: (channels, degree + 1), or (1, degree + 1) for all channels alike.
    """

    coefficients: str
    half_width: float = 1.0
    name: ClassVar[str] = "polynomial"
    constant_fields: ClassVar[tuple[str, ...]] = ("coefficients",)

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        channels = len(constants[self.coefficients])
        if channels not in (1, shapes[0][0]):
            raise ShapeError(f"coefficients for {channels} channels on {shapes[0]}")
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return _chebyshev(operands[0] / self.half_width, constants[self.coefficients])

    def levels(self, constants: Constants) -> int:
        """ceil(log2(degree + 1)) for the true degree, at least 1."""
        return _depth(constants[self.coefficients])


@register
@dataclass(frozen=True)
class PolynomialProduct(Op):
    """x p(z) = x * sum_k c_k T_k(z / half_width) for operands x and z of the same shape, elementwise.

    As one op, because p(z) is then evaluated at the very scale that brings the product to the canonical one.

    coefficients: (channels, degree + 1), or (1, degree + 1) for all channels alike.
    """

    coefficients: str
    half_width: float = 1.0
    name: ClassVar[str] = "polynomial_product"
    arity: ClassVar[int] = 2
    constant_fields: ClassVar[tuple[str, ...]] = ("coefficients",)

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        channels = len(constants[self.coefficients])
        if shapes[0] != shapes[1]:
            raise ShapeError(f"polynomial_product of {shapes[0]} and {shapes[1]}")
        if channels not in (1, shapes[0][0]):
            raise ShapeError(f"coefficients for {channels} channels on {shapes[0]}")
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0] * _chebyshev(operands[1] / self.half_width, constants[self.coefficients])

    def levels(self, constants: Constants) -> int:
        """One more than the polynomial's."""
        return _depth(constants[self.coefficients]) + 1


def _chebyshev(x: Array, coefficients: Array) -> Array:
    """sum_k c_k T_k(x) with coefficients (channels or 1, degree + 1), for x of shape (images, channels, ...)."""
    c = coefficients.T.reshape(coefficients.shape[1], coefficients.shape[0], *(1,) * (x.ndim - 2))
    return np.asarray(chebyshev.chebval(x, c, tensor=False))


def _depth(coefficients: Array) -> int:
    return max(1, int(np.flatnonzero(coefficients.any(axis=0)).max(initial=0)).bit_length())
