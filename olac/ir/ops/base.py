"""Every op of the IR, one small frozen dataclass each.

An op knows the shape of its result and its reference semantics in numpy (`evaluate`, over arrays with a leading batch
axis). A *linear* op also gives itself as a sparse affine map (`linear_map`). Packing needs nothing else: a new linear
op can be compiled as soon as it has that method. Arrays are constants of the graph, and an op holds their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from olac.ir.types import Stage
from olac.system.arrays import Array as Array
from olac.system.arrays import Index

Shape = tuple[int, ...]
Constants = Mapping[str, Array]
Scaling = tuple[Array, Array]
"""Factors and shifts of elements, in this order."""


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

    def with_factors(self, rows: Scaling | None = None, columns: Scaling | None = None) -> LinearMap:
        """s (M (f x + o) + b) + t for rows (s, t) and columns (f, o), each with a number for every element."""
        values, bias = self.values, self.bias
        if columns is not None:
            factors, offsets = (part.reshape(-1) for part in columns)
            values = values * factors[self.columns]
            bias = bias + self.matrix() @ offsets
        if rows is not None:
            factors, shifts = (part.reshape(-1) for part in rows)
            values, bias = values * factors[self.rows], bias * factors + shifts
        return replace(self, values=values, bias=bias)

    def after(self, first: LinearMap) -> LinearMap:
        """The map that applies `first`, then this one."""
        m = self.matrix()
        return LinearMap.from_sparse(m @ first.matrix(), self.bias + m @ first.bias)


@dataclass(frozen=True)
class Span:
    """Neighbours along an axis of the result, and what each of them reads along the same axis of the operand.

    Result first + i reads operand source + i * step, for 0 <= i < count.
    """

    first: int
    count: int
    source: int
    step: int


@dataclass(frozen=True)
class Tap:
    """Places of a map between images (c, h, w) where M is not zero.

    Channel outputs[n] of the result reads channel inputs[n] of the operand, at all rows and columns of the spans.
    """

    outputs: Index
    inputs: Index
    rows: Span
    columns: Span


@dataclass(frozen=True)
class ComputedMap:
    """y = M x + b over flattened elements, with M and b computed only where they are asked for.

    Attributes:
        values: for rows and columns, two arrays of indices of the same shape, the entries of M there.
        shifts: for rows, the elements of b there.
        shifted: whether b is not zero.
        bytes: of the arrays that both are computed from.
    """

    values: Callable[[Index, Index], Array]
    shifts: Callable[[Index], Array]
    shifted: bool
    bytes: int


class Units(Enum):
    """How the unit of an op's result follows from those of its operands."""

    SHARED = "shared"
    """Operands and result have the same unit: the op commutes with a common factor."""
    FREE = "free"
    """Any unit: the op takes factors of operands and result into its constants (see `Op.in_units`)."""
    PRODUCT = "product"
    """The product of the units of the two operands, or the square of a single operand's unit."""


@dataclass(frozen=True)
class Op(ABC):
    """An operation on values.

    Attributes:
        name: in texts and files.
        arity: number of operands.
        constant_fields: the fields that name constants of the graph.
        ranks: numbers of axes of these constants; one that is not listed may have any number.
        last_stage: the last stage at which a graph may hold the op.
        units: how the unit of the result follows from those of the operands.
        takes_products: whether operands may be products, of any unit and scale. Before an op for which this is False
            an affine map brings a product to the op's unit and to the canonical scale.
        same_ciphertexts: whether the result is the operand's ciphertexts under another shape.
        chooses_layout: whether the result may have another layout than the operands.
        reads_shifted: whether operands may have shifted copies.
        shifts_copies: whether the result may have shifted copies although no operand has.
    """

    name: ClassVar[str] = ""
    arity: ClassVar[int] = 1
    constant_fields: ClassVar[tuple[str, ...]] = ()
    ranks: ClassVar[Mapping[str, int]] = MappingProxyType({})
    last_stage: ClassVar[Stage] = Stage.LEVELLED
    units: ClassVar[Units] = Units.SHARED
    takes_products: ClassVar[bool] = False
    same_ciphertexts: ClassVar[bool] = False
    chooses_layout: ClassVar[bool] = False
    reads_shifted: ClassVar[bool] = False
    shifts_copies: ClassVar[bool] = False

    @abstractmethod
    def infer(self, shapes: Sequence[Shape], constants: Constants) -> Shape:
        """The shape of the result, or `ShapeError`."""

    @abstractmethod
    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        """Reference semantics; operands and result have shape (images, *shape)."""

    def levels(self, constants: Constants) -> int:
        """Levels from the lowest operand to the result: the depth of the op's kernel."""
        return 0

    def check(self, shapes: Sequence[Shape], constants: Constants, stage: Stage) -> None:
        """Raise `ShapeError` if the op's fields and constants are not what its other methods and its kernel rely on.

        It is called before `infer`, also on ops from files: it may rely on nothing but the types of the fields.
        """
        for field, rank in self.ranks.items():
            name = getattr(self, field)
            if name is not None and constants[name].ndim != rank:
                raise ShapeError(f"{field} of {self.name} with {constants[name].ndim} axes, expected {rank}")

    def in_units(self, constants: Constants, units: Sequence[float], unit: float) -> dict[str, Any] | None:
        """The fields that change if operands are given in `units` and the result is wanted in `unit`.

        A field that names a constant has the new array. None if only the op's matrix can be brought to these units.
        """
        return {}

    def is_product(self, of_product: bool) -> bool:
        """Whether the result has the unit and the scale of a product; `of_product` says it of the operand."""
        return self.units is Units.PRODUCT or (self.same_ciphertexts and of_product)

    def constant_names(self) -> tuple[str, ...]:
        """Names of the graph's constants that this op reads."""
        names = (getattr(self, field) for field in self.constant_fields)
        return tuple(name for name in names if name is not None)

    def attributes(self) -> dict[str, Any]:
        """All fields by name, for texts and files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Factors(Enum):
    """Factors and shifts of the elements of operand and result that a linear op can take into its constants."""

    NONE = "none"
    BY_CHANNEL = "by channel"
    """Only factors and shifts that are the same for all elements of a channel."""
    BY_ELEMENT = "by element"


class LinearOp(Op):
    """An op whose result is an affine function M x + b of its one operand.

    Attributes:
        structural: whether it only moves, drops or weighs elements, so that its composition with another linear op
            stays sparse.
        takes: the factors and shifts that its constants can take (see `with_factors`).
    """

    structural: ClassVar[bool] = False
    takes: ClassVar[Factors] = Factors.NONE
    units: ClassVar[Units] = Units.FREE
    takes_products: ClassVar[bool] = True
    chooses_layout: ClassVar[bool] = True
    reads_shifted: ClassVar[bool] = True

    def levels(self, constants: Constants) -> int:
        return 1

    @abstractmethod
    def linear_map(self, shape: Shape, constants: Constants) -> LinearMap:
        """The op as a sparse affine map over the flattened elements of one image."""

    # A large op should not write down all of its entries. With the next three methods it does without.

    def entries(self, shape: Shape, constants: Constants) -> Iterator[tuple[Index, Index, Array]]:
        """Rows, columns and values of the entries of M, as in `linear_map`, in parts of a bounded size."""
        linear = self.linear_map(shape, constants)
        yield linear.rows, linear.columns, linear.values

    def taps(self, shape: Shape, constants: Constants) -> Iterator[Tap] | None:
        """The places of all entries of `linear_map`, each once; None if they are not known without the entries."""
        return None

    def computed_map(self, shape: Shape, constants: Constants) -> ComputedMap | None:
        """The same map as `linear_map`, computed where it is asked for; None if only `linear_map` gives it."""
        return None

    def entry_count(self, shape: Shape, constants: Constants) -> int:
        """The number of entries of `linear_map`."""
        taps = self.taps(shape, constants)
        if taps is None:
            return sum(len(rows) for rows, _, _ in self.entries(shape, constants))
        return sum(len(tap.outputs) * tap.rows.count * tap.columns.count for tap in taps)

    def evaluate(self, operands: Sequence[Array], constants: Constants) -> Array:
        x = operands[0]
        out_shape = self.infer([x.shape[1:]], constants)
        linear = self.linear_map(x.shape[1:], constants)
        flat = (linear.matrix() @ x.reshape(len(x), -1).T).T + linear.bias
        return np.asarray(flat).reshape(len(x), *out_shape)

    def scaled(self, constants: Constants, ratio: float, bias_ratio: float) -> dict[str, Array] | None:
        """The constants of ratio * M x + bias_ratio * b, by field; None if the op can't absorb a factor."""
        return None

    def with_factors(
        self, shape: Shape, constants: Constants, rows: Scaling | None = None, columns: Scaling | None = None
    ) -> dict[str, Array] | None:
        """The constants, by field, of s (M (f x + o) + b) + t; None if the op can't take these factors and shifts.

        An op without a bias gets one only if the new bias is not zero.

        Args:
            shape: of the operand.
            rows: s and t, in the shape of the result.
            columns: f and o, in the shape of the operand.
        """
        return None

    def taken(self, shape: Shape, constants: Constants) -> Index | None:
        """For each element of the result the operand's element that it is, or -1 if it is zero, both by flat indices.

        None if the op does more than to move, drop and repeat elements.
        """
        return None

    def commuted(self, signs: Array, constants: Constants) -> Array | None:
        """The signs t, in the shape of the result, with op(signs * x) = t * op(x); None if there are no such signs."""
        return None

    def in_units(self, constants: Constants, units: Sequence[float], unit: float) -> dict[str, Any] | None:
        return self.scaled(constants, units[0] / unit, 1 / unit)

    def gains(self, shape: Shape, constants: Constants, inputs: int) -> Array:
        """The most that an element of each output channel changes if the elements of an input channel change by 1.

        Shape (output channels, inputs). The elements of an operand of `shape` are taken as `inputs` channels of equal
        size; if `inputs` is 1, the whole operand is one channel.
        """
        outputs = self.infer([shape], constants)[0]
        matrix = abs(self.linear_map(shape, constants).matrix())
        size = matrix.shape[1]
        collect = sparse.csr_array((np.ones(size), (np.arange(size), np.arange(size) // (size // inputs))))
        each = np.asarray((matrix @ collect).todense())
        return np.asarray(each.reshape(outputs, -1, inputs).max(axis=1))


OPS: dict[str, type[Op]] = {}


def register(op: type[Op]) -> type[Op]:
    """Add an op to the registry under its name; names are unique."""
    if not op.name or op.name in OPS:
        raise ValueError(f"op name {op.name!r} is empty or taken")
    OPS[op.name] = op
    return op


def by_channel(elements: Array) -> Array | None:
    """One number for each channel (the first axis) from one for each element; None if they differ in a channel."""
    flat = elements.reshape(len(elements), -1)
    return flat[:, 0] if np.all(flat == flat[:, :1]) else None


def compact(elements: Array) -> Array:
    """One number for each channel, in a shape that broadcasts; the array itself if numbers differ in a channel."""
    channels = by_channel(elements)
    return np.array(elements) if channels is None else channels.reshape(-1, *(1,) * (elements.ndim - 1))


def of_elements(channels: Array, shape: Shape) -> Array:
    """The inverse of `by_channel`; a single number is for all channels."""
    return np.broadcast_to(channels.reshape(-1, *(1,) * (len(shape) - 1)), shape)


def image_shape(shapes: Sequence[Shape], name: str) -> tuple[int, int, int]:
    if len(shapes[0]) != 3:
        raise ShapeError(f"{name} takes (channels, height, width), not {shapes[0]}")
    c, h, w = shapes[0]
    return c, h, w
