"""Inputs, activations, polynomials, products, sums, and what only changes shapes, levels or places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.polynomial import chebyshev

from olac.ir.functions import Definition, activation, channel_count
from olac.ir.head import Step
from olac.ir.ops.base import Array, Constants, Op, Shape, ShapeError, Units, image_shape, register
from olac.ir.types import Stage


@register
@dataclass(frozen=True)
class Input(Op):
    """A value that the client encrypts: (image - offset) / factor, with an offset and a factor for each channel.

    offsets, factors: one for each channel (the first axis). Without them nothing is subtracted, and the unit is the
    factor of all channels. The ops that read the input undo them by their weights.
    """

    shape: Shape = ()
    offsets: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()
    name: ClassVar[str] = "input"
    arity: ClassVar[int] = 0
    shifts_copies: ClassVar[bool] = True

    def encode(self, images: Array) -> Array:
        """The values with which the graph computes, for images (n, *shape)."""
        if not self.factors:
            return images
        tail = (1,) * (len(self.shape) - 1)
        offsets, factors = (np.array(each).reshape(-1, *tail) for each in (self.offsets, self.factors))
        return np.asarray((images - offsets) / factors)

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        count = self.shape[0] if self.shape else 0
        if len(self.offsets) != len(self.factors) or len(self.factors) not in (0, count):
            raise ShapeError(f"{len(self.offsets)} offsets and {len(self.factors)} factors for {count} channels")
        if not all(map(math.isfinite, (*self.offsets, *self.factors))) or min(self.factors, default=1.0) <= 0:
            raise ShapeError("offsets or factors are not finite, or factors not positive")

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return self.shape

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        raise AssertionError("inputs are given, not evaluated")


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
    last_stage: ClassVar[Stage] = Stage.TRACED

    def windows(self, size: int, axis: int) -> tuple[tuple[int, int], ...]:
        """The windows along an axis of that size (0 rows, 1 columns): first index and number of elements.

        Elements are `dilation` apart. ShapeError if there is no window.
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
        c, h, w = image_shape(shapes, self.name)
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
class Reshape(Op):
    """Another logical shape of the same elements in row-major order; nothing moves in the slots."""

    shape: Shape
    name: ClassVar[str] = "reshape"
    takes_products: ClassVar[bool] = True
    same_ciphertexts: ClassVar[bool] = True
    reads_shifted: ClassVar[bool] = True

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        if math.prod(shapes[0]) != math.prod(self.shape):
            raise ShapeError(f"reshape of {shapes[0]} to {self.shape}")
        return self.shape

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0].reshape(len(operands[0]), *self.shape)


def scaled_sine(slots: Array, correction: int) -> Array:
    """The result of bootstrapping slots with a correction factor, without noise."""
    frequency = 2 * np.pi / 2**correction
    result: Array = np.sin(frequency * slots) / frequency
    return result


@register
@dataclass(frozen=True)
class Bootstrap(Op):
    """The value at a higher level, bent a little: sin(w x) / w, w = 2 pi / 2^correction, for slots within [-1, 1].

    CKKS bootstrapping reduces modulo the first prime by a sine (Cheon, Han, Kim, Kim and Song, "Bootstrapping for
    Approximate Homomorphic Encryption", EUROCRYPT 2018). Its effect on values is no noise, so it is part of the op.

    Attributes:
        correction: bits by which values are scaled down within the sine.
    """

    name: ClassVar[str] = "bootstrap"
    reads_shifted: ClassVar[bool] = True
    correction: int

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return shapes[0]

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return scaled_sine(operands[0], self.correction)


@register
@dataclass(frozen=True)
class Add(Op):
    """The sum of two values of the same shape: a residual connection."""

    name: ClassVar[str] = "add"
    arity: ClassVar[int] = 2

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return _same_shape(self, shapes)

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0] + operands[1]


@register
@dataclass(frozen=True)
class Multiply(Op):
    """The elementwise product of two values of the same shape; x * x is a square."""

    name: ClassVar[str] = "multiply"
    arity: ClassVar[int] = 2
    units: ClassVar[Units] = Units.PRODUCT
    takes_products: ClassVar[bool] = True

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return _same_shape(self, shapes)

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0] * operands[1]

    def levels(self, constants: Constants) -> int:
        return 1


@register
@dataclass(frozen=True)
class Square(Op):
    """y = x^2 + shift: a quadratic after its other factors were folded into the linear ops around it.

    shift: (channels,), or (1,) for all channels alike.
    """

    shift: str
    name: ClassVar[str] = "square"
    constant_fields: ClassVar[tuple[str, ...]] = ("shift",)
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"shift": 1})
    units: ClassVar[Units] = Units.PRODUCT
    takes_products: ClassVar[bool] = True

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return _check_channels("shifts", len(constants[self.shift]), shapes[0])

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x = operands[0]
        return np.asarray(x * x + constants[self.shift].reshape(-1, *(1,) * (x.ndim - 2)))

    def in_units(self, constants: Constants, units: Sequence[float], unit: float) -> dict[str, Any] | None:
        return {"shift": constants[self.shift] / unit}

    def levels(self, constants: Constants) -> int:
        return 1


@register
@dataclass(frozen=True)
class Activation(Op):
    """A univariate function of each element, by its name in `olac.ir.functions`; stage TRACED only.

    Channels may have functions of their own: see `is_per_channel` and `channel_function` there. `definition` is set if
    the caller gave the function: its name is known as long as an op holds the definition.
    """

    function: str
    parameters: tuple[float, ...] = ()
    definition: Definition | None = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "activation"
    last_stage: ClassVar[Stage] = Stage.TRACED
    units: ClassVar[Units] = Units.FREE

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
    """A step that only a client can compute, on decrypted outputs; stage TRACED only.

    `olac.ir.split.split_head` moves it from the end of a graph into the head.
    """

    step: Step
    name: ClassVar[str] = "at_client"
    last_stage: ClassVar[Stage] = Stage.TRACED

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        try:
            return self.step.infer(shapes[0])
        except ValueError as error:
            raise ShapeError(f"{self.step.name}: {error}") from error

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return np.asarray(self.step.apply(operands[0]), dtype=np.float64)


@dataclass(frozen=True)
class _Chebyshev(Op):
    """An op with a polynomial sum_k c_k T_k(z / half_width) of its last operand z, elementwise.

    coefficients: (channels, degree + 1), or (1, degree + 1) for all channels alike.
    """

    coefficients: str
    half_width: float = 1.0
    constant_fields: ClassVar[tuple[str, ...]] = ("coefficients",)
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({"coefficients": 2})
    units: ClassVar[Units] = Units.FREE
    takes_products: ClassVar[bool] = True

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        super().check(shapes, constants, stage)
        if constants[self.coefficients].shape[1] < 1:
            raise ShapeError("a polynomial without coefficients")
        if not (math.isfinite(self.half_width) and self.half_width > 0):
            raise ShapeError(f"a polynomial on [-{self.half_width}, {self.half_width}]")
        if stage >= Stage.PACKED and self.half_width != 1.0:
            raise ShapeError(f"a polynomial on [-{self.half_width}, {self.half_width}], slots are for [-1, 1]")

    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        return _check_channels("coefficients", len(constants[self.coefficients]), _same_shape(self, shapes))

    def _value(self, z: Array, constants: Constants) -> Array:
        """The polynomial of z, of shape (images, channels, ...)."""
        c = constants[self.coefficients].T
        return np.asarray(
            chebyshev.chebval(z / self.half_width, c.reshape(*c.shape, *(1,) * (z.ndim - 2)), tensor=False)
        )

    def in_units(self, constants: Constants, units: Sequence[float], unit: float) -> dict[str, Any] | None:
        # The first operand of two brings its own unit into the product.
        made = rescaled(constants[self.coefficients], self.half_width, units[-1], unit / math.prod(units[:-1]))
        return {"coefficients": made, "half_width": 1.0}

    def levels(self, constants: Constants) -> int:
        """ceil(log2(degree + 1)) for the true degree, at least 1."""
        used = constants[self.coefficients].any(axis=0)
        return max(1, int(np.flatnonzero(used).max(initial=0)).bit_length())


@register
@dataclass(frozen=True)
class Polynomial(_Chebyshev):
    """p(x) = sum_k c_k T_k(x / half_width), Chebyshev polynomials of the first kind.

    coefficients: (channels, degree + 1), or (1, degree + 1) for all channels alike.
    """

    name: ClassVar[str] = "polynomial"
    shifts_copies: ClassVar[bool] = True

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return self._value(operands[0], constants)


@register
@dataclass(frozen=True)
class PolynomialProduct(_Chebyshev):
    """x p(z) for operands x and z of the same shape, elementwise, with p as in `Polynomial`.

    It is one op because p(z) is then evaluated at the very scale that brings the product to the canonical one.
    """

    name: ClassVar[str] = "polynomial_product"
    arity: ClassVar[int] = 2

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        return operands[0] * self._value(operands[1], constants)

    def levels(self, constants: Constants) -> int:
        """One more than the polynomial's."""
        return super().levels(constants) + 1


def _same_shape(op: Op, shapes: Sequence[Shape]) -> Shape:
    """The shape of an elementwise op's result."""
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(f"{op.name} of {' and '.join(map(str, shapes))}")
    return shapes[0]


def _check_channels(what: str, channels: int, shape: Shape) -> Shape:
    """The shape, if there is one constant for each of its channels, or one for all of them."""
    if channels not in (1, shape[0]):
        raise ShapeError(f"{what} for {channels} channels on {shape}")
    return shape


def rescaled(coefficients: Array, half_width: float, unit_in: float, unit_out: float) -> Array:
    """Coefficients of p(unit_in t) / unit_out on t in [-1, 1], for p given on [-half_width, half_width].

    Shape (channels, degree + 1) to the same; exact up to rounding, by interpolation at degree + 1 points. The degrees
    of the even and of the odd part stay what they are.
    """
    if unit_in == half_width:
        return coefficients / unit_out
    degree = coefficients.shape[1] - 1
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    values = chebyshev.chebval(nodes * unit_in / half_width, coefficients.T)
    basis = chebyshev.chebvander(nodes, degree)
    made = np.asarray(np.linalg.solve(basis, values.reshape(len(coefficients), -1).T).T) / unit_out
    for parity in (0, 1):
        used = np.flatnonzero(coefficients[:, parity::2].any(axis=0))
        made[:, parity + 2 * (int(used.max(initial=-1)) + 1) :: 2] = 0.0
    return made
