"""The transforms of keys by Python's integers: slow, and right by their definition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from olac.backends.vector.key_making import NewKey
from olac.backends.vector.keys import Limbs
from olac.backends.vector.residues import Values
from olac.ckks.words import Words

Integers = Any
"""An array of Python's integers."""


class ReferenceRing:
    """Value i is that at the power 2i + 1 of a root of order 2N."""

    def transform(self, coefficients: Integers, primes: Sequence[int]) -> Values:
        n = len(coefficients)
        return np.array([centred(values(coefficients.astype(object), root(n, p), p), p) for p in primes], dtype=float)


@lru_cache(maxsize=256)
def root(n: int, p: int) -> int:
    base = next(g for g in range(2, p) if pow(g, (p - 1) // 2, p) == p - 1)
    return pow(base, (p - 1) // (2 * n), p)


@lru_cache(maxsize=1024)
def powers(w: int, n: int, p: int) -> Integers:
    out = np.ones(n, dtype=object)
    for k in range(1, n):
        out[k] = out[k - 1] * w % p
    return out


def values(coefficients: Integers, psi: int, p: int) -> Integers:
    n = len(coefficients)
    return cyclic(coefficients * powers(psi, n, p) % p, psi * psi % p, p)


def coefficients_of(residues: Words, p: int) -> Integers:
    """The centred coefficients of a polynomial from its values."""
    n = len(residues)
    inverse = pow(root(n, p), -1, p)
    out = cyclic(residues.astype(object), inverse * inverse % p, p)
    return centred(out * powers(inverse, n, p) % p * pow(n, -1, p), p)


def cyclic(a: Integers, w: int, p: int) -> Integers:
    """Values at the powers of w."""
    if len(a) == 1:
        return a
    even, odd = cyclic(a[::2], w * w % p, p), cyclic(a[1::2], w * w % p, p)
    odd = odd * powers(w, len(odd), p) % p
    return np.concatenate([(even + odd) % p, (even - odd) % p])


def centred(a: Integers, p: int) -> Integers:
    return (a + p // 2) % p - p // 2


class Listed:
    """A key with all its limbs."""

    def __init__(self, key: NewKey, limbs: Limbs | None = None) -> None:
        self.form, self.seed = key.form, key.seed
        self.a: dict[tuple[int, int], Words] = {}
        self.b: dict[tuple[int, int], Words] = {}
        for digit, limb, a, b in limbs or key.limbs:
            self.a[digit, limb], self.b[digit, limb] = a, b


def noise_of(key: Listed, target: Integers, secret: Integers) -> list[list[Integers]]:
    """For each digit and limb, the coefficients of b_g + a_g s - P s' [limb in digit g]: of the error, if it is right.

    Args:
        target, secret: coefficients of the old and of the new secret, as Python's integers.
    """
    form, out = key.form, []
    for digit in range(form.digits):
        limbs = []
        for limb, p in enumerate(form.primes):
            psi = root(form.length, p)
            total = key.b[digit, limb].astype(object) + key.a[digit, limb].astype(object) * values(secret, psi, p)
            if digit * form.digit_limbs <= limb < min(form.limbs, (digit + 1) * form.digit_limbs):
                total -= form.factor * values(target, psi, p)
            limbs.append(coefficients_of(total % p, p))
        out.append(limbs)
    return out


def product(a: Integers, b: Integers) -> Integers:
    """Of two polynomials modulo X^N + 1."""
    n = len(a)
    out = np.zeros(n, dtype=object)
    for k in np.flatnonzero(a):
        out += a[k] * np.concatenate([-b[n - k :], b[: n - k]])
    return out
