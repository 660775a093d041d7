"""Primes, tables and operands for tests of kernels, and products modulo primes in whole numbers.

References work on arrays of int64, without a floating-point operation: a factor is taken 13 bits at a time, so that
nothing exceeds 63 bits. That they agree with Python's integers is tested, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from olac.backends.vector.ring import Tables
from olac.ckks.primes import step_to_prime
from olac.system.arrays import Array, Index

BITS = (20, 30, 37, 41, 44, 45, 46, 47, 49, 50)
"""Of primes: up to 46 they are loose, beyond they are tight."""

Integers = Any
"""An array of Python's integers."""
Whole = npt.NDArray[np.int64]


def prime_below(bits: int, log_ring: int, count: int = 1) -> int:
    """The largest prime below 2^bits that is 1 modulo 2N, or one of the next."""
    p = (1 << bits) + 1
    for _ in range(count):
        p = step_to_prime(p, -2 << log_ring)
    return p


@lru_cache(maxsize=64)
def tables(log_ring: int, *bits: int) -> Tables:
    """Of primes of so many bits, each as large as can be; equal numbers of bits stand for one prime after another."""
    return Tables(log_ring, [prime_below(b, log_ring, bits[: e + 1].count(b)) for e, b in enumerate(bits)])


def times(a: Whole, b: Whole | int, p: int) -> Whole:
    """a b mod p, for a prime below 2^50."""
    a, b = np.mod(a, p), np.mod(b, p)
    out: Whole = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b)), dtype=np.int64)
    for shift in (39, 26, 13, 0):
        out = ((out << 13) % p + a * ((b >> shift) & 8191) % p) % p
    return out


def whole(a: Array) -> Whole:
    """The same numbers, which have to be integers."""
    out = a.astype(np.int64)
    assert np.array_equal(out.astype(np.float64), a)
    return out


def exact(a: Array) -> Integers:
    """The same numbers, which have to be integers of any size."""
    assert np.array_equal(a, np.rint(a))
    return np.array([int(x) for x in a.reshape(-1)], dtype=object).reshape(a.shape)


def largest(a: Array) -> int:
    return int(np.max(np.abs(a)))


def check(found: Array, expected: Any, p: int, most: float) -> None:
    """Results are integers, congruent to what they should be, and at most so large."""
    assert not np.any(np.mod(whole(found) - np.mod(expected, p).astype(np.int64), p))
    assert largest(found) <= most


def centred(value: int, p: int) -> int:
    value %= p
    return value - p if value > p // 2 else value


@lru_cache(maxsize=16)
def powers(root: int, count: int, p: int) -> Whole:
    out: Whole = np.ones(1, dtype=np.int64)
    while len(out) < count:
        out = np.concatenate([out, times(out, pow(root, len(out), p), p)])
    return out[:count]


@lru_cache(maxsize=64)
def least_root(log_ring: int, p: int) -> int:
    """The least primitive root of unity of order 2N, as OpenFHE takes it."""
    base = next(g for g in range(2, p) if pow(g, (p - 1) // 2, p) == p - 1)
    return int(powers(pow(base, (p - 1) >> (log_ring + 1), p), 2 << log_ring, p)[1::2].min())


def reversed_bits(log_n: int) -> Index:
    """Each number below 2^log_n with its bits in reverse."""
    k = np.arange(1 << log_n)
    out = np.zeros_like(k)
    for bit in range(log_n):
        out |= (k >> bit & 1) << (log_n - 1 - bit)
    return out


def shape(log_ring: int) -> tuple[int, int]:
    """R and C."""
    return 1 << (log_ring + 1) // 2, 1 << log_ring // 2


def coefficient_order(log_ring: int) -> Index:
    """Where coefficient n lies: columns of eight."""
    R, C = shape(log_ring)
    n = np.arange(R * C)
    r, c = n // C, n % C
    out: Index = ((c // 8) * R + r) * 8 + c % 8
    return out


def value_order(log_ring: int) -> Index:
    """Where the k-th value in bit-reversed order lies: rows of eight."""
    R, C = shape(log_ring)
    k = np.arange(R * C)
    r, c = k // C, k % C
    out: Index = ((r // 8) * C + c) * 8 + r % 8
    return out


def values(coefficients: Whole, log_ring: int, p: int) -> Whole:
    """The values in value order of a polynomial, given its coefficients in their natural order."""
    root = least_root(log_ring, p)
    natural = _cyclic(times(coefficients, powers(root, 1 << log_ring, p), p), root * root % p, p)
    out = np.empty_like(natural)
    out[value_order(log_ring)] = natural[reversed_bits(log_ring)]
    return out


def _cyclic(a: Whole, root: int, p: int) -> Whole:
    """Values at the powers of a root of order len(a), by sums over halves that do not overlap."""
    n, at = len(a), a.reshape(1, -1)
    while at.shape[1] > 1:
        half = at.shape[1] // 2
        low, high = at[:, :half], at[:, half:]
        twiddle = powers(pow(root, n // (2 * half), p), half, p)
        at = np.stack([(low + high) % p, times(low - high, twiddle, p)], axis=1).reshape(-1, half)
    out = np.empty(n, dtype=np.int64)
    out[reversed_bits(n.bit_length() - 1)] = at[:, 0]
    return out


# Operands --------------------------------------------------------------------------------------------------------


def extremes(most: int, n: int, seed: int = 0) -> dict[str, Array]:
    """Operands of n integers of at most `most` in size."""
    random = np.random.default_rng(seed)
    k = np.arange(n)
    one = np.full(n, float(most))
    return {
        "random": random.integers(-most, most, n, endpoint=True).astype(np.float64),
        "most": one,
        "least": -one,
        "alternating": one * (1 - 2 * (k % 2)),
        "halves": one * np.where(k < n // 2, 1, -1),
        "signs": one * random.choice((-1.0, 1.0), n),
        "almost": np.where(k % 3 == 0, one, 1 - one) * random.choice((-1.0, 1.0), n),
    }


def modelled(x: int, w: int, p: int) -> int:
    """What `arithmetic.product` gives, from the definition of its roundings."""
    h = int(float(x * w))
    q = round(Fraction(h) * Fraction(1.0 / p))  # to even, as M is
    return x * w - q * p


def largest_product(w: int, p: int, most: int, seed: int = 0) -> int:
    """An x of at most `most` in size with as large a product with w as can be found: above p / 2, by what q is off."""
    random, inverse = np.random.default_rng(seed), pow(w, -1, p)
    found = []
    for part in random.uniform(-1.0, 1.0, 64):
        x = centred(int(p * (0.5 + part * 2.0**-52 * p)) * inverse, p)
        found += [x + k * p for k in range(-(most // p) - 1, most // p + 2) if abs(x + k * p) <= most]
    return max(found, key=lambda x: modelled(x, w, p))


def growing(log_ring: int, p: int, most: int) -> Whole:
    """Coefficients, of at most `most` in size, with which the first value grows by p / 2 and more at each stage.

    A stage adds w x to the first value, where x is a coefficient that no stage has changed: the others that it would be
    summed with are zero.
    """
    out = np.zeros(1 << log_ring, dtype=np.int64)
    out[0] = most
    root = least_root(log_ring, p)
    for stage in range(log_ring):
        place = 1 << (log_ring - 1 - stage)
        w = centred(pow(root, place, p), p)  # the power that is 2^stage with its bits in reverse
        out[place] = largest_product(w, p, most, stage)
    return out


def flat(limbs: Sequence[Array]) -> Array:
    return np.concatenate(limbs)
