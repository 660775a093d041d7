"""Linear ops whose matrices are not zero at the same places share what depends on these places only.

Networks repeat their layers with other weights. The diagonals of a layer, and the primitives that its kernel takes,
depend on where its matrix is not zero, but not on the values there.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable
from dataclasses import fields
from typing import Generic, TypeVar

import numpy as np

from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Diagonals
from olac.ir.ops import Affine, Array, AveragePool, Constants, Conv2d, Linear, LinearOp, Shape
from olac.kernels.linear import (
    ComputedWeights,
    DiagonalKernel,
    Distinct,
    counted_modulo,
    diagonals_of_taps,
    distinct_diagonals,
    plan_of,
    products_of,
)

MOST_KEPT = 256
BY_ZEROS = (Affine, AveragePool, Conv2d, Linear)
"""Ops whose matrix is not zero where products of their constants are not zero; keys of other ops cover the values."""

Found = TypeVar("Found")


class Kept(Generic[Found]):
    """The latest results by key. It holds none of the arrays that they were made from."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._found: dict[Hashable, Found] = {}

    def get(self, key: Hashable, make: Callable[[], Found]) -> Found:
        """The kept result for this key, or a new one, which is kept."""
        if key not in self._found:
            made = make()
            while len(self._found) >= self._most:
                self._found.pop(next(iter(self._found)), None)
            self._found[key] = made
            return made
        return self._found[key]


_DIAGONALS: Kept[Distinct] = Kept()
_KERNELS: Kept[DiagonalKernel] = Kept()


def entries_key(op: LinearOp, shape: Shape, constants: Constants) -> Hashable:
    """A key that is the same for ops on operands of `shape` whose matrices and biases are zero at the same places."""
    parts: list[Hashable] = [type(op), shape]
    for one in fields(op):
        value = getattr(op, one.name)
        if one.name not in op.constant_fields or value is None:
            parts.append((one.name, repr(value)))
            continue
        array = constants[value]
        parts.append((one.name, array.shape, array.dtype.str, _digest(array, type(op) in BY_ZEROS)))
    return tuple(parts)


_DIGESTS: dict[tuple[int, bool], tuple[weakref.ref[Array], bytes]] = {}


def _digest(array: Array, by_zeros: bool) -> bytes:
    """The hash of an array, or of where it is not zero, computed only once for an array that can't change."""
    key = (id(array), by_zeros)
    kept = _DIGESTS.get(key)
    if kept is not None and kept[0]() is array:
        return kept[1]
    content = np.packbits(array != 0) if by_zeros else np.ascontiguousarray(array)
    digest = hashlib.blake2b(content.tobytes(), digest_size=32).digest()
    if not array.flags.writeable:
        _DIGESTS[key] = (weakref.ref(array, lambda _: _DIGESTS.pop(key, None)), digest)
    return digest


def diagonals_of(
    op: LinearOp, shape: Shape, constants: Constants, operand: TensorLayout, result: TensorLayout, modulus: int
) -> Distinct:
    """The nonzero diagonals between two layouts, counted modulo `modulus`."""

    def find() -> Distinct:
        taps = op.taps(shape, constants)
        images = operand.grid == operand.shape == shape and result.grid == result.shape
        if taps is None or not images:
            return distinct_diagonals(op.entries(shape, constants), operand, result)
        return diagonals_of_taps(taps, operand, result)

    if operand.step:
        raise ValueError(f"diagonals of shifted copies ({operand}) follow from those of plain ones")
    key = (entries_key(op, shape, constants), operand, result)
    return counted_modulo(_DIAGONALS.get(key, find), operand, result, modulus)


def diagonal_kernel(
    op: LinearOp, shape: Shape, constants: Constants, operand: TensorLayout, result: TensorLayout, lowering: Diagonals
) -> DiagonalKernel:
    """The kernel of a linear op on operands of `shape`, between two layouts."""
    computed = op.computed_map(shape, constants)
    if computed is None or not ComputedWeights.can_count(operand, result, lowering.modulus):
        return DiagonalKernel.listed(op.linear_map(shape, constants), operand, result, lowering)
    weights = ComputedWeights(computed, operand, result, lowering)
    found = diagonals_of(op, shape, constants, operand.with_step(0), result, lowering.modulus)
    products = products_of(found, operand, lowering.modulus, lowering.imaginary)
    return DiagonalKernel(operand, lowering, plan_of(products, lowering.baby, result.ciphertexts), weights)


def weightless_kernel(
    op: LinearOp, shape: Shape, constants: Constants, operand: TensorLayout, result: TensorLayout, lowering: Diagonals
) -> DiagonalKernel:
    """A kernel for runs on no data: with the products of this op, but without its weights."""

    def make() -> DiagonalKernel:
        return diagonal_kernel(op, shape, constants, operand, result, lowering).weightless()

    return _KERNELS.get((entries_key(op, shape, constants), operand, result, lowering), make)
