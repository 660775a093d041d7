"""Numbers from their residues, for decryption.

A number of size less than half the product of some odd primes has exactly one form

    v_0 + v_1 q_0 + v_2 q_0 q_1 + ...    with whole v_i, each at most (q_i - 1) / 2 in size

(Garner's algorithm, with digits around zero). No comparison with half the product is needed, and a small number has
digits of zero behind the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from olac.backends.vector.residues import multiply, subtract
from olac.ckks.words import Words
from olac.system.arrays import Array

Integers = npt.NDArray[np.int64]


def digits(residues: Words, primes: Sequence[int]) -> Integers:
    """The v_i, shape (limbs, N), of the numbers with these residues, shape (limbs, N), in [0, p)."""
    out = np.empty(residues.shape, dtype=np.int64)
    for i, prime in enumerate(primes):
        rest = residues[i].copy()
        for j in range(i):
            less = subtract(rest, _residues(out[j], prime), prime)
            inverse = pow(primes[j], -1, prime)
            rest = multiply(less, np.full(len(rest), inverse, dtype=np.uint64), prime)
        out[i] = np.where(rest > prime // 2, rest.astype(np.int64) - prime, rest.astype(np.int64))
    return out


def numbers(residues: Words, primes: Sequence[int]) -> Array:
    """The numbers with these residues, as doubles, shape (N,); not finite if they are beyond the range of a double.

    The digits are exact, and summed from the last to the first: x becomes x q + v. A digit v is at most half as large
    as x q, unless x is zero, so |x q| <= 2 |x q + v|. Hence a number below 2^52 is exact, with all sums before it. The
    two roundings of a step are at most 3 units of 2^-53 of its result together. The relative error of x is carried on
    by a factor of at most 1 + 2^-50, because x has one only beyond 2^51.
    """
    found = digits(residues, primes)
    out: Array = found[-1].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for digit, prime in zip(found[-2::-1], primes[-2::-1], strict=True):
            out *= float(prime)
            out += digit
    return out


def _residues(digit: Integers, prime: int) -> Words:
    return np.mod(digit, prime).astype(np.uint64)
