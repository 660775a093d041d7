"""Known answers of the kernels: what they give for random and extreme operands, by Python's integers.

They show that this machine multiplies, adds and rounds as the bounds in the docstrings of kernels assume, and that what
was compiled is what was meant. They take less than a second.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from olac.backends.vector.compiled import known_answer
from olac.backends.vector.conversion import PART, convert, convert_part, magic_of, overshoots
from olac.backends.vector.elementwise import (
    MOST_QUOTIENT,
    add_constant,
    add_limbs,
    tensor,
    times_constant,
    times_limbs,
    transform_integers,
)
from olac.backends.vector.exact import Integers, coefficient_places, integers, right, values
from olac.backends.vector.packed import split
from olac.backends.vector.ring import TIGHT_TERMS, Tables
from olac.backends.vector.switching import add_permuted, divide_limbs, finish_limbs, inner, inverse_limbs
from olac.backends.vector.transforms import (
    AT_REST,
    INVERTED,
    LAZY,
    forward_columns,
    forward_rows,
    forward_transform,
    inverse_columns,
    inverse_rows,
    inverse_transform,
)
from olac.ckks.primes import step_to_prime
from olac.system.arrays import Array

LOG_RING = 8
LOG_TRANSFORMS = (7, 9)
"""Transforms of 16 x 8 and 32 x 16 points: either half has an even number of stages once, and an odd one."""
BITS = (37, 46, 50)
"""The largest primes of so many bits: two are loose, one is tight. Parts of keys take one, two and four bytes."""
CENTRED, PRODUCT = 0.5, 0.81
"""Most that results are, in units of p: those of `reduced`, and those of products of two residues at rest."""


@functools.lru_cache(maxsize=4)
def tables(log_ring: int = LOG_RING) -> Tables:
    """Those that all answers take."""
    order = 2 << max(LOG_TRANSFORMS)
    return Tables(log_ring, [step_to_prime((1 << bits) + 1, -order) for bits in BITS])


class Operands:
    """Random and extreme numbers, the same in every process."""

    def __init__(self, own: Tables) -> None:
        self.own = own
        self._random = np.random.default_rng(own.N)

    def integers(self, most: int, count: int) -> Array:
        """Integers of at most `most`: half of them random, the others as large as can be, of random signs."""
        out = self._random.integers(-most, most, count, endpoint=True).astype(np.float64)
        extreme = self._random.permutation(count)[: count // 2]
        out[extreme] = most * self._random.choice((-1.0, 1.0), len(extreme))
        return out

    def limbs(self, count: int = len(BITS), bound: float = AT_REST) -> Array:
        """N residues modulo each prime, one after another, of at most bound p in size; flat."""
        primes = (self.own.primes * count)[:count]
        return np.concatenate([self.integers(int(bound * prime), self.own.N) for prime in primes])

    def constants(self, count: int = len(BITS)) -> Array:
        """The largest or least centred residue modulo each prime, one after another."""
        primes = (self.own.primes * count)[:count]
        return np.array([float((prime // 2) * (-1) ** e) for e, prime in enumerate(primes)])

    def order(self) -> Any:
        """Where each of N values goes."""
        return self._random.permutation(self.own.N).astype(np.int32)


def _limb(own: Tables, j: int) -> tuple[float, float, bool]:
    return own.p[j], own.pinv[j], own.tight[j]


def _rows(own: Tables, flat: Array) -> Integers:
    """Limbs as Python's integers, shape (limbs, N)."""
    return integers(flat).reshape(-1, own.N)


def _all_right(own: Tables, out: Array, expected: Sequence[Integers], bounds: Sequence[float] | float) -> bool:
    """Whether limbs, modulo one prime after another, are right; bounds are of all, or of each prime."""
    limbs, count = out.reshape(-1, own.N), len(own.primes)
    each = [bounds] * count if isinstance(bounds, float) else bounds
    return len(limbs) == len(expected) and all(
        right(limb, want, own.primes[e % count], each[e % count])
        for e, (limb, want) in enumerate(zip(limbs, expected, strict=True))
    )


def _tight(own: Tables, loose: float, tight: float = CENTRED) -> list[float]:
    return [tight if is_tight else loose for is_tight in own.tight]


@known_answer(forward_columns, forward_rows, forward_transform, inverse_rows, inverse_columns, inverse_transform)
def transforms_are_right() -> bool:
    """Forward ones are values of polynomials; inverse ones lead back to their operand, times a factor."""
    found = []
    for log_ring in LOG_TRANSFORMS:
        t = tables(log_ring)
        N, R, C, s = t.N, t.R, t.C, np.empty(8 * t.R)
        places, operands = coefficient_places(R, C), Operands(t).limbs().reshape(-1, N)
        for j, (given, prime) in enumerate(zip(operands, t.primes, strict=True)):
            out, halves = np.empty(N), np.empty(N)
            forward_transform(given, 0, s, 0, out, 0, R, C, t.w0, j * R, t.w1, j * N, *_limb(t, j))
            found.append(right(out, values(integers(given)[places], R, C, prime), prime, _tight(t, LAZY)[j]))
            for column in range(C // 8):
                forward_columns(given, 8 * R * column, 8, s, 0, halves, 0, column, R, C, t.w0, j * R, *_limb(t, j))
            forward_rows(halves, 0, R, C, t.w1, j * N, *_limb(t, j))
            found.append(np.array_equal(out, halves))

            factor, factor1 = t.inverse_factors([3], [j])[0]
            inverse_transform(given, 0, s, 0, out, 0, R, C, t.i0, j * R, t.i1, j * N, factor, factor1, *_limb(t, j))
            found.append(not np.any((values(integers(out)[places], R, C, prime) - 3 * integers(given)) % prime))
            found.append(bool(np.max(np.abs(out)) <= _tight(t, INVERTED)[j] * prime))
            inverse_rows(given, 0, s, 0, halves, 0, R, C, t.i1, j * N, *_limb(t, j))
            for column in range(C // 8):
                inverse_columns(halves, 0, column, R, t.i0, j * R, factor, factor1, *_limb(t, j))
            found.append(np.array_equal(out, halves))
    return all(found)


@known_answer(transform_integers)
def integers_are_transformed() -> bool:
    """Those of the largest size."""
    t = tables()
    count, R, C = len(t.primes), t.R, t.C
    given = Operands(t).integers(1 << 52, t.N) * (MOST_QUOTIENT * t.p.min() / 2.0**52)
    out, at = np.empty(count * t.N), np.arange(count)
    transform_integers(
        0, count, 0, given, out, at * t.N, at, np.empty((1, 16 * R)), R, C, t.w0, t.w1, t.p, t.pinv, t.tight
    )
    return _all_right(t, out, [values(integers(given), R, C, prime) for prime in t.primes], CENTRED)


@known_answer(add_limbs, add_constant, times_constant, times_limbs, tensor)
def sums_and_products_are_right() -> bool:
    """Of residues at rest; loose primes have lazy ones, too."""
    t, found = tables(), []
    N, count, make = t.N, len(t.primes), Operands(t)
    ids = np.arange(count)
    at = ids * N
    a, b, c, constants = make.limbs(), make.limbs(), make.limbs(), make.constants()
    A, B, D = _rows(t, a), _rows(t, b), _rows(t, c)
    K = integers(constants)[:, None]
    out: Array
    for minus in (False, True):
        out = np.empty(count * N)
        add_limbs(0, count, 0, a, at, b, at, out, at, ids, minus, N, t.p, t.pinv)
        found.append(_all_right(t, out, A - B if minus else A + B, CENTRED))
    out = np.empty(count * N)
    add_constant(0, count, 0, a, at, constants, out, at, ids, N, t.p, t.pinv)
    found.append(_all_right(t, out, A + K, CENTRED))
    for more in (False, True):
        bound = CENTRED if more else PRODUCT
        out = c.copy()
        times_constant(0, count, 0, a, at, constants, out, at, ids, more, N, t.p, t.pinv)
        found.append(_all_right(t, out, A * K + more * D, bound))
        out = c.copy()
        times_limbs(0, count, 0, a, at, b, at, out, at, ids, more, N, t.p, t.pinv)
        found.append(_all_right(t, out, A * B + more * D, bound))
    lazy, loose = make.limbs(bound=LAZY), int(np.sum(~t.tight))
    out = np.empty(loose * N)
    times_limbs(0, loose, 0, lazy, at, b, at, out, at, ids, False, N, t.p, t.pinv)
    found.append(_all_right(t, out, (_rows(t, lazy) * B)[:loose], PRODUCT))

    x, y, z = make.limbs(2 * count), make.limbs(2 * count), make.limbs(3 * count)
    X, Y, Z = (_rows(t, flat).reshape(-1, count, N) for flat in (x, y, z))
    for more in (False, True):
        out, stride = z.copy(), count * N
        tensor(0, count, 0, x, 0, stride, y, 0, stride, out, 0, stride, more, N, t.p, t.pinv)
        expected = np.array([X[0] * Y[0], X[0] * Y[1] + X[1] * Y[0], X[1] * Y[1]]) + more * Z
        bounds = [CENTRED if more else PRODUCT, CENTRED, CENTRED if more else PRODUCT]
        parts = zip(out.reshape(3, -1), expected, bounds, strict=True)
        found += [_all_right(t, part, want, bound) for part, want, bound in parts]
    return all(found)


@known_answer(convert_part)
def sums_of_products_are_right() -> bool:
    """As many products of centred residues as there may be, less a small multiple of another."""
    t, found, terms = tables(), [], TIGHT_TERMS
    make = Operands(t)
    for prime, p, pinv in zip(t.primes, t.p, t.pinv, strict=True):
        most = prime // 2
        y, c, u = make.integers(most, (terms + 1) * PART), make.integers(most, terms + 2), make.integers(terms, PART)
        start, out = magic_of(terms * (most + 1) * most, terms + 1, prime), np.empty(PART)
        convert_part(y, 0, PART, terms, c, 0, start, out, 0, p, pinv, False, u, 0, False)
        convert_part(y, terms * PART, PART, 1, c, terms, start, out, 0, p, pinv, True, u, 0, True)
        products = integers(y).reshape(-1, PART) * integers(c)[: terms + 1, None]
        expected = products.sum(axis=0) - integers(u) * int(c[-1])
        found.append(right(out, expected, prime, CENTRED + 1.0 / prime))
    return all(found)


@known_answer(overshoots, convert, inverse_limbs, finish_limbs)
def conversions_are_right() -> bool:
    """All steps of a conversion from two primes to a third, of residues of the least size, and of others."""
    t, found = tables(), []
    N, R, C, count, make = t.N, t.R, t.C, len(t.primes), Operands(t)
    given, ids, scratch = make.limbs(), np.arange(count), np.empty((1, 8 * R * (1 + 2)))
    at, (one, other, into) = ids * N, t.primes
    constants = t.conversion((0, 1), (2,))
    y, out, quotients = np.empty(2 * N), np.empty(N), np.empty(N)
    inverse_limbs(0, 2, 0, given, at, y, at, ids, constants.factors, scratch, R, C, t.i0, t.i1, t.p, t.pinv, t.tight)
    y0, y1 = _rows(t, y)[:, coefficient_places(R, C)]
    for limb, part, hat, prime in ((given[:N], y0, other, one), (given[N : 2 * N], y1, one, other)):
        found.append(not np.any((values(part, R, C, prime) * hat - integers(limb)) % prime))
        found.append(int(np.max(np.abs(part))) <= INVERTED * prime)
    whole = y0 * other + y1 * one  # a multiple of the product more or less than the residue
    least = (whole + one * other // 2) % (one * other) - one * other // 2
    overshoots(y, 0, N, 2, constants.quotients, quotients, 0, N)
    found.append(not np.any(whole - integers(quotients)[coefficient_places(R, C)] * one * other - least))
    for exact, expected in ((False, whole), (True, least)):
        sums = constants.c, 3, constants.starts, constants.quotients, exact, scratch
        convert(
            0, C // 8, 0, y, 0, 2, constants.group, constants.ids, *sums, out, at[:1], R, C, t.w0, t.p, t.pinv, t.tight
        )
        finish_limbs(0, 1, 0, out, at[:1], constants.ids, R, C, t.w1, t.p, t.pinv, t.tight)
        found.append(right(out, values(expected, R, C, into), into, CENTRED))
    return all(found)


@known_answer(split, inner)
def keys_are_applied() -> bool:
    """Sums over three digits, the first of which is the own one of the first prime, for all widths of keys."""
    t, found = tables(), []
    N, count, digits, make = t.N, len(t.primes), 3, Operands(t)
    own = make.limbs(1)
    lifted = np.concatenate([make.limbs(count, bound) for bound in (CENTRED, CENTRED, LAZY)])
    lifted[2 * count * N + (count - 1) * N :] = make.integers(t.primes[-1] // 2, N)  # tight: centred
    key = make.limbs(2 * digits * count, CENTRED).reshape(2 * digits, count, N)
    starts = t.inner_starts(digits)
    for wide, kind in ((1, np.int16), (2, np.int32)):
        # Modulo the first primes: high parts of one byte and of two; with the last one, of one byte and of four.
        ids = np.arange(1 + wide)
        low, high8 = np.empty(2 * digits * (1 + wide) * N, dtype=np.int32), np.empty(2 * digits * N, dtype=np.int8)
        high16 = np.empty(2 * digits * wide * N, dtype=kind)
        for which, limb in np.ndindex(2 * digits, 1 + wide):
            at = (which * (1 + wide) + limb) * N
            part = low[at : at + N]
            if limb == 0:
                split(key[which, limb], part, high8[which * N : (which + 1) * N])
            else:
                highat = (which * wide + limb - 1) * N
                split(key[which, limb], part, high16[highat : highat + N])
        out = np.empty(2 * (1 + wide) * N)
        small, place = ids == 0, np.maximum(ids - 1, 0)
        first = np.where(ids == 0, count, ids) * N  # the limb's own digit is not among those that were lifted
        inner(
            0, 1 + wide, 0, own, 0, lifted, first, np.full(1 + wide, count * N), digits, 1, low, high8, high16,
            1 + wide, place, small, 1, wide, ids, ids, starts, out, 0, 1, N, t.p, t.pinv,
        )  # fmt: skip
        X = _rows(t, lifted).reshape(digits, count, N)
        for half, j in np.ndindex(2, 1 + wide):
            terms = [integers(own) if j == 0 and g == 0 else X[g, j] for g in range(digits)]
            expected = sum(x * integers(key[2 * g + half, j]) for g, x in enumerate(terms))
            at = (half * (1 + wide) + j) * N
            found.append(right(out[at : at + N], expected, t.primes[j], CENTRED + 1.0 / t.primes[j]))
    return all(found)


@known_answer(add_permuted, divide_limbs)
def results_are_put_together() -> bool:
    """With and without an automorphism and what is added."""
    t, found = tables(), []
    N, R, C, count, make = t.N, t.R, t.C, len(t.primes), Operands(t)
    ids, order, plain = np.arange(count), make.order(), np.zeros(1, dtype=np.int32)
    at, room = ids * N, np.empty((1, N))
    source, c0, before, factors = make.limbs(2 * count), make.limbs(), make.limbs(2 * count), make.constants()
    S, C0, Z = _rows(t, source), _rows(t, c0), _rows(t, before)
    K = integers(factors)[:, None]
    limbs = count - 1  # the last prime is a special one
    lifted = S.copy()
    lifted[:limbs] += (C0 * K)[:limbs]
    for moves, adds, lifts in np.ndindex(2, 2, 2):
        out = before.copy()
        add_permuted(
            0, 2 * count, 0, source, 0, ids, c0, 0, bool(lifts), factors, out, 0, bool(adds),
            order if moves else plain, bool(moves), limbs, ids, room, N, t.p, t.pinv,
        )  # fmt: skip
        given = lifted if lifts else S
        found.append(_all_right(t, out, (given[:, order] if moves else given) + adds * Z, CENTRED if adds else AT_REST))

    halves = make.limbs()
    whole = halves.copy()
    finish_limbs(0, count, 0, whole, at, ids, R, C, t.w1, t.p, t.pinv, t.tight)
    W = _rows(t, whole)
    for moves, adds in np.ndindex(2, 2):
        out, rest = np.empty(count * N), halves.copy()
        divide_limbs(
            0, count, 0, source, at, rest, at, c0, at if adds else np.full(count, -1), out, at, ids, factors,
            order if moves else plain, bool(moves), R, C, t.w1, t.p, t.pinv, t.tight,
        )  # fmt: skip
        expected = (S[:count] - W) * K + adds * C0
        bound = CENTRED if adds else PRODUCT
        found.append(_all_right(t, out, expected[:, order] if moves else expected, bound))
    return all(found)
