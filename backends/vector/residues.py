"""Residues modulo a prime below 2^50, in [0, p), as words, in numpy: exact, for keys."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from olac.ckks.words import Words

Values = npt.NDArray[np.float64]
"""Residues of a polynomial at the points of the transform, shape (limbs, N) or (N,), each less than 2p in size."""


def centred(value: int, prime: int) -> float:
    """The residue of least size, as a double."""
    value %= prime
    return float(value - prime if value > prime // 2 else value)


def multiply(a: Words, b: Words, prime: int) -> Words:
    """a b mod p.

    The quotient in float64 has three roundings of a number below 2^50, so truncated it is off by one at most. The
    remainder modulo 2^64 is then exact, and lies within [-p, 2p).
    """
    real = a.astype(np.float64)
    real *= b
    real /= float(prime)
    quotient = real.astype(np.uint64)
    quotient *= np.uint64(prime)
    rest = a * b
    rest -= quotient
    rest += np.uint64(prime)  # within [0, 3p)
    return _reduced(_reduced(rest, 2 * prime), prime)


def add(a: Words, b: Words, prime: int) -> Words:
    """a + b mod p."""
    return _reduced(a + b, prime)


def subtract(a: Words, b: Words, prime: int) -> Words:
    """a - b mod p."""
    return _reduced(a + (np.uint64(prime) - b), prime)


def _reduced(a: Words, prime: int) -> Words:
    """a mod p for a < 2p, and p below 2^63; a is spoilt."""
    less = a - np.uint64(prime)
    found: Words = np.minimum(a, less, out=a)  # what would be less than zero is huge
    return found


def residues(values: Values, prime: int) -> Words:
    """Integers within [-2p, 2p) as residues."""
    return _reduced(_reduced((values + 2.0 * prime).astype(np.uint64), 2 * prime), prime)
