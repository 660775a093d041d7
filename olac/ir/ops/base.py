"""Every op of the IR, one small frozen dataclass each.

An op knows the shape of its result and its reference semantics in numpy (`evaluate`, over arrays with a leading batch
axis). A *linear* op also gives itself as a sparse affine map (`linear_map`), which is all that packing needs: a new
linear op is compiled as soon as it has that method. Arrays live in the graph's constants; an op names them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from olac.system.arrays import Array as Array

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


def image_shape(shapes: Sequence[Shape], name: str) -> tuple[int, int, int]:
    if len(shapes[0]) != 3:
        raise ShapeError(f"{name} takes (channels, height, width), not {shapes[0]}")
    c, h, w = shapes[0]
    return c, h, w
