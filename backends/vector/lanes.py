"""Eight doubles as one value in kernels: vectors that LLVM maps to AVX-512, AVX2 or NEON registers.

numba vectorises only what LLVM proves free of aliases, and prefers 256 bits on Intel's processors. Kernels that say
what is a vector run twice as fast. No operation here is reordered or contracted: each is one IEEE operation a lane, so
that the bounds in the docstrings of kernels hold on every processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from olac.backends.vector.compiled import inline, missing, numba
from olac.errors import BackendError

LANES = 8
"""Doubles in a vector."""
PAST = 1 << 19
"""Results of at least so many doubles are written past the caches: they do not stay there until they are read.

A store to memory that is not in a cache reads it first. A store past the caches does not.
"""

if TYPE_CHECKING or numba is None:

    def vfma(a: Any, b: Any, c: Any) -> Any:
        """a b + c, rounded once."""
        raise BackendError(missing)

    def vadd(a: Any, b: Any) -> Any:
        """a + b."""
        raise BackendError(missing)

    def vsub(a: Any, b: Any) -> Any:
        """a - b."""
        raise BackendError(missing)

    def vmul(a: Any, b: Any) -> Any:
        """a b, rounded."""
        raise BackendError(missing)

    def vneg(a: Any) -> Any:
        """-a."""
        raise BackendError(missing)

    def splat(a: Any) -> Any:
        """a in every lane."""
        raise BackendError(missing)

    def load(array: Any, index: Any) -> Any:
        """Elements index ... index + 7 of an array of float64 whose last axis is contiguous."""
        raise BackendError(missing)

    def load_ints(array: Any, index: Any) -> Any:
        """As `load`, of an array of integers of 64, 32, 16 or 8 bits, below 2^63, as doubles."""
        raise BackendError(missing)

    def gather(array: Any, at: Any, order: Any, index: Any) -> Any:
        """Elements at + order[index], ... at + order[index + 7] of an array of float64, for an array of int32."""
        raise BackendError(missing)

    def store(array: Any, index: Any, value: Any) -> None:
        """Write a vector to elements index ... index + 7."""
        raise BackendError(missing)

    def stream(array: Any, index: Any, value: Any) -> None:
        """As `store`, past the caches; only where `streams` is true. `fence` comes after the last one."""
        raise BackendError(missing)

    def streams(array: Any, index: Any) -> Any:
        """Whether `stream` can write to this element, and to those that are multiples of eight elements away."""
        raise BackendError(missing)

    def fence() -> None:
        """Other threads see all that was written, also by `stream`."""
        raise BackendError(missing)

    def store_ints(array: Any, index: Any, value: Any) -> None:
        """Write eight integers that are doubles to an array of int32, int16 or int8, which they have to fit."""
        raise BackendError(missing)

    def store_residues(array: Any, index: Any, value: Any, prime: Any) -> None:
        """Write eight integers that are doubles to an array of 64-bit integers, the prime added to negative ones."""
        raise BackendError(missing)

    def load_word(array: Any, index: Any) -> Any:
        """Elements index ... index + 7 of an array of bytes, as an integer whose lowest byte comes first."""
        raise BackendError(missing)

    def store_word(array: Any, index: Any, value: Any) -> None:
        """The inverse of `load_word`."""
        raise BackendError(missing)

    def transposed(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
        """The eight columns of the matrix whose rows are eight vectors."""
        raise BackendError(missing)

else:
    from olac.backends.vector.lanes_llvm import (
        fence,
        gather,
        load,
        load_ints,
        load_word,
        splat,
        store,
        store_ints,
        store_residues,
        store_word,
        stream,
        streams,
        transposed,
        vadd,
        vfma,
        vmul,
        vneg,
        vsub,
    )


@inline
def put(array: Any, index: Any, value: Any, past: Any) -> None:
    """`stream` or `store`."""
    if past:
        stream(array, index, value)
    else:
        store(array, index, value)


__all__ = [
    "LANES",
    "PAST",
    "fence",
    "gather",
    "load",
    "load_ints",
    "load_word",
    "put",
    "splat",
    "store",
    "store_ints",
    "store_residues",
    "store_word",
    "stream",
    "streams",
    "transposed",
    "vadd",
    "vfma",
    "vmul",
    "vneg",
    "vsub",
]
