"""What the kernels of transforms compute, by Python's integers and by the definition: slow, for known answers alone."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from olac.system.arrays import Array, Index

Integers = Any
"""An array of Python's integers."""


def integers(a: Array) -> Integers:
    """The same numbers; ValueError if they are not all integers."""
    if not np.array_equal(a, np.rint(a)):
        raise ValueError("a result is not an integer")
    return np.array([int(x) for x in a], dtype=object)


def right(found: Array, expected: Integers, prime: int, bound: float) -> bool:
    """Whether residues are congruent to integers, and at most bound p in size."""
    given = integers(found)
    return not np.any((given - expected) % prime) and int(np.max(np.abs(given))) <= bound * prime


def coefficient_places(R: int, C: int) -> Index:
    """Where each coefficient lies in coefficient order, see `olac.backends.vector.transforms`."""
    n = np.arange(R * C)
    places: Index = ((n % C // 8) * R + n // C) * 8 + n % 8
    return places


def values(coefficients: Integers, R: int, C: int, prime: int) -> Integers:
    """The values in value order of a polynomial, given its N = R C coefficients in their natural order.

    The k-th value in bit-reversed order is that at the least primitive root of unity of order 2N, to the power
    2 reversed(k) + 1.
    """
    n = R * C
    root = least_root(n, prime)
    twisted = coefficients * _powers(root, n, prime) % prime
    natural = _cyclic(twisted, root * root % prime, prime)
    bits, out = n.bit_length() - 1, np.empty(n, dtype=object)
    for k in range(n):
        r, c = divmod(k, C)
        out[(r // 8 * C + c) * 8 + r % 8] = natural[int(f"{k:0{bits}b}"[::-1], 2)]
    return out


@functools.lru_cache(maxsize=32)
def least_root(n: int, prime: int) -> int:
    """The least primitive root of unity of order 2n."""
    base = next(g for g in range(2, prime) if pow(g, (prime - 1) // 2, prime) == prime - 1)
    return int(min(_powers(pow(base, (prime - 1) // (2 * n), prime), 2 * n, prime)[1::2]))


@functools.lru_cache(maxsize=64)
def _powers(root: int, count: int, prime: int) -> Integers:
    out = np.ones(count, dtype=object)
    for k in range(1, count):
        out[k] = out[k - 1] * root % prime
    return out


def _cyclic(a: Integers, root: int, prime: int) -> Integers:
    """Values at the powers of a root of order len(a)."""
    if len(a) == 1:
        return a
    square = root * root % prime
    even, odd = _cyclic(a[::2], square, prime), _cyclic(a[1::2], square, prime)
    odd = odd * _powers(root, len(odd), prime) % prime
    return np.concatenate([even + odd, even - odd]) % prime
