"""What the engine's kernels have to give on every machine: residues that Python's integers compute, at small rings.

Operands are random and as large as the kernels allow. The first ring has a prime of 50 bits, the second has none above
46. In the first, the halves of transforms have an even number of stages and an odd one, in the second the reverse.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from olac.backends.vector.compiled import known_answer
from olac.backends.vector.conversion import convert, convert_part, magic_of, overshoots
from olac.backends.vector.elementwise import (
    add_constant,
    add_encoded,
    add_limbs,
    sum_of_products,
    tensor,
    times_constant,
    times_limbs,
    transform_integers,
)
from olac.backends.vector.ring import Tables
from olac.backends.vector.switching import add_permuted, divide_limbs, finish_limbs, inner, inverse_limbs
from olac.backends.vector.transforms import (
    AT_REST,
    LAZY,
    forward_columns,
    forward_rows,
    forward_transform,
    inverse_columns,
    inverse_rows,
    inverse_transform,
)
from olac.ckks.primes import step_to_prime
from olac.ckks.special import ONE_BYTE, TWO_BYTES
from olac.system.arrays import Array, Index

SHORT = 64
"""Values in a limb, for kernels that work value by value."""
LIMBS = 3
"""Primes of the chains; those after them are special primes."""

Integers = Any
"""An array of Python's integers."""


@functools.lru_cache(maxsize=1)
def _rings() -> tuple[Tables, Tables]:
    return tuple(  # type: ignore[return-value]
        Tables(log_ring, [step_to_prime((1 << bits) + 1, -2 << log_ring) for bits in sizes])
        for log_ring, sizes in ((7, (50, 37, 39, 46)), (9, (46, 37, 39, 45)))
    )


def integers(values: Array) -> Integers:
    """The same numbers, in the same shape."""
    return np.array([int(value) for value in values.reshape(-1)], dtype=object).reshape(values.shape)


def residues(rng: np.random.Generator, shape: int | tuple[int, ...], prime: int, most: float = AT_REST) -> Array:
    """Integers of at most `most` primes in size; some of them are as large as that."""
    largest = int(most * prime)
    out = rng.integers(-largest, largest, size=shape, endpoint=True).astype(np.float64)
    flat = out.reshape(-1)
    flat[::3] = largest
    flat[1::7] = -largest
    return out


def right(found: Array, expected: Integers, prime: int, most: float = AT_REST) -> bool:
    """Whether all residues are what they should be, and small enough."""
    if not np.all(np.abs(found) <= most * prime) or not np.array_equal(found, np.rint(found)):
        return False
    return not np.any((integers(found) - expected) % prime)


def _transform(coefficients: Integers, root: int, prime: int) -> Integers:
    """The values at root, root^3, root^5, ..., by the definition's halves."""
    return _cyclic(coefficients * _powers(root, len(coefficients), prime) % prime, root * root % prime, prime)


def _cyclic(a: Integers, root: int, prime: int) -> Integers:
    if len(a) == 1:
        return a
    even, odd = (_cyclic(half, root * root % prime, prime) for half in (a[::2], a[1::2]))
    odd = odd * _powers(root, len(odd), prime) % prime
    return np.concatenate([(even + odd) % prime, (even - odd) % prime])


@functools.lru_cache(maxsize=256)
def _powers(root: int, count: int, prime: int) -> Integers:
    out = [1]
    for _ in range(count - 1):
        out.append(out[-1] * root % prime)
    return np.array(out, dtype=object)


def _values(ring: Tables, coefficients: Integers, j: int) -> Integers:
    """Values in value order of a polynomial with integer coefficients, modulo the ring's prime j."""
    n, prime = ring.N, ring.primes[j]
    base = next(g for g in range(2, prime) if pow(g, (prime - 1) // 2, prime) == prime - 1)
    root = min(_powers(pow(base, (prime - 1) // (2 * n), prime), 2 * n, prime)[1::2])  # OpenFHE's choice
    bits = n.bit_length() - 1
    out = np.empty(n, dtype=object)
    out[ring.order] = _transform(coefficients, root, prime)[[int(f"{k:0{bits}b}"[::-1], 2) for k in range(n)]]
    return out


def _blank(shape: int | tuple[int, ...]) -> Array:
    """An array in which it shows what was not written."""
    return np.full(shape, np.nan)


def _coefficient_order(ring: Tables) -> Index:
    """Where each coefficient lies in coefficient order."""
    k = np.arange(ring.N)
    found: Index = ((k % ring.C // 8) * ring.R + k // ring.C) * 8 + k % 8
    return found


def _most(ring: Tables, j: int) -> float:
    """The largest that transforms leave, in primes."""
    return AT_REST if ring.tight[j] else LAZY


@known_answer(forward_columns, forward_rows, inverse_rows, inverse_columns, forward_transform, inverse_transform)
def _transforms_are_right() -> bool:
    rng = np.random.default_rng(1)
    for ring in _rings():
        R, C, N, place = ring.R, ring.C, ring.N, _coefficient_order(ring)
        room, out, back = _blank(16 * R), _blank(N), _blank(N)
        for j in range(len(ring.primes)):
            prime, p, pinv, tight = ring.primes[j], ring.p[j], ring.pinv[j], ring.tight[j]
            given = residues(rng, N, prime)
            source = _blank(N)
            source[place] = given
            forward_transform(source, 0, room, 0, out, 0, R, C, ring.w0, j * R, ring.w1[j], 0, p, pinv, tight)
            if not right(out, _values(ring, integers(given), j), prime, _most(ring, j)):
                return False
            rest = out - np.rint(out * pinv) * p
            factors = ring.inverse_factors([1], [j])[0]
            inverse_transform(
                rest, 0, room, 0, back, 0, R, C, ring.i0, j * R, ring.i1[j], 0, factors[0], factors[1], p, pinv, tight
            )
            if not right(back[place], integers(given), prime):
                return False
    return True


@known_answer(convert_part)
def _sums_of_products_are_right() -> bool:
    rng = np.random.default_rng(2)
    for ring in _rings():
        widest = ring.primes[LIMBS]
        for j, prime in enumerate(ring.primes):
            for terms in (1, 5, 8):
                y = np.stack([residues(rng, 128, widest, 0.55) for _ in range(terms)])
                c = residues(rng, terms + 1, prime, 0.5)
                over, out = np.rint(rng.uniform(-terms, terms, size=128)), residues(rng, 128, prime, 0.5)
                largest = (terms * (widest * 55 // 100) + terms) * (prime // 2 + 1)
                x, f, u, before = integers(y), integers(c), integers(over), integers(out)
                for more, exact in ((False, False), (False, True), (True, False), (True, True)):
                    arguments = y.reshape(-1), 0, 128, terms, c, 0, magic_of(largest, terms + 1, prime)
                    convert_part(*arguments, out, 0, ring.p[j], ring.pinv[j], more, over, 0, exact)
                    if not right(out, f[:terms] @ x - exact * f[terms] * u + more * before, prime):
                        return False
                    before = integers(out)
    return True


@known_answer(overshoots)
def _roundings_are_right() -> bool:
    rng = np.random.default_rng(11)
    for ring in _rings():
        y = np.stack([residues(rng, SHORT, prime, 0.55) for prime in ring.primes])
        out = _blank(SHORT)
        overshoots(y.reshape(-1), 0, SHORT, len(ring.primes), ring.pinv, out, 0, SHORT)
        whole = math.prod(ring.primes)
        sums = sum(integers(row) * (whole // prime) for row, prime in zip(y, ring.primes, strict=True))
        if any(abs(2 * (total - int(found) * whole)) > whole for total, found in zip(sums, out, strict=True)):
            return False
    return True


@known_answer(convert, finish_limbs)
def _conversions_are_right() -> bool:
    rng = np.random.default_rng(3)
    for ring in _rings():
        N, place = ring.N, _coefficient_order(ring)
        source, target = list(range(LIMBS)), [LIMBS, 0]
        conversion = ring.conversion(source, target)
        whole = math.prod(ring.primes[i] for i in source)
        given = [residues(rng, N, ring.primes[i], 0.5) for i in source]
        y = _blank((len(source), N))
        y[:, place] = given
        sums: Integers = sum(integers(g) * (whole // ring.primes[i]) for g, i in zip(given, source, strict=True))
        at, tables = np.array([N, 0]), (ring.p, ring.pinv, ring.tight)
        for exact in (False, True):
            out, scratch = _blank(2 * N), _blank((1, 8 * ring.R * 4))
            convert(
                0, ring.C // 8, 0, y.reshape(-1), 0, len(source), conversion.group, conversion.ids, conversion.c,
                len(source) + 1, conversion.starts, conversion.quotients, exact, scratch, out, at, ring.R, ring.C,
                ring.w0, *tables,
            )  # fmt: skip
            finish_limbs(0, 2, 0, out, at, conversion.ids, ring.R, ring.C, ring.w1, *tables)
            least = (sums + whole // 2) % whole - whole // 2 if exact else sums
            for start, j in zip(at, target, strict=True):
                expected = _values(ring, least % ring.primes[j], j)
                if not right(out[start : start + N], expected, ring.primes[j], _most(ring, j)):
                    return False
    return True


class _Limbs:
    """Short limbs for kernels that work value by value, one for each kind of prime, in reverse order in memory."""

    def __init__(self, ring: Tables, rng: np.random.Generator) -> None:
        self.ids = np.arange(len(ring.primes))
        self.primes = [ring.primes[j] for j in self.ids]
        self.count = len(self.ids)
        self.at = np.arange(self.count)[::-1] * SHORT
        self.end = ring.p, ring.pinv
        self._rng = rng

    def make(self, most: float = AT_REST) -> tuple[Array, Integers]:
        """Operands in memory, and limb by limb as integers."""
        values = np.stack([residues(self._rng, SHORT, prime, most) for prime in self.primes])
        return np.ascontiguousarray(values[::-1]).reshape(-1), integers(values)

    def right(self, out: Array, expected: Integers) -> bool:
        limbs = out.reshape(self.count, SHORT)[::-1]
        return all(right(limb, e, prime) for limb, e, prime in zip(limbs, expected, self.primes, strict=True))


@known_answer(add_limbs, add_constant, times_constant, times_limbs)
def _sums_and_products_are_right() -> bool:
    rng = np.random.default_rng(4)
    for ring in _rings():
        limbs = _Limbs(ring, rng)
        (a, x), (b, y), (before, z) = limbs.make(), limbs.make(0.5), limbs.make()
        constants = np.array([residues(rng, 1, prime, 0.5)[0] for prime in limbs.primes])
        f, at, count, (ids, end) = integers(constants)[:, None], limbs.at, limbs.count, (limbs.ids, limbs.end)
        found: list[tuple[Array, Integers]] = []
        for flag in (False, True):
            out = before.copy()
            add_limbs(0, count, 0, a, at, b, at, out, at, ids, flag, SHORT, *end)
            found.append((out, x - y if flag else x + y))
            out = before.copy()
            times_constant(0, count, 0, a, at, constants, out, at, ids, flag, SHORT, *end)
            found.append((out, x * f + flag * z))
            out = before.copy()
            times_limbs(0, count, 0, a, at, b, at, out, at, ids, flag, SHORT, *end)
            found.append((out, x * y + flag * z))
        out = before.copy()
        add_constant(0, count, 0, a, at, constants, out, at, ids, SHORT, *end)
        found.append((out, x + f))
        if not all(limbs.right(out, expected) for out, expected in found):
            return False
    return True


@known_answer(tensor)
def _products_of_ciphertexts_are_right() -> bool:
    rng = np.random.default_rng(5)
    for ring in _rings():
        first, last = 0, len(ring.primes)
        stride = last * SHORT
        primes = ring.primes[first:last]

        def operand(parts: int, primes: Sequence[int] = primes) -> Array:
            return np.stack([np.stack([residues(rng, SHORT, p) for p in primes]) for _ in range(parts)])

        a, b, out = operand(2), operand(2), operand(3)
        before, x, y = integers(out), integers(a), integers(b)
        expected = np.stack([x[0] * y[0], x[0] * y[1] + x[1] * y[0], x[1] * y[1]])
        for more in (False, True):
            flat = out.reshape(-1)
            tensor(
                first, last, 0, a.reshape(-1), 0, stride, b.reshape(-1), 0, stride, flat, 0, stride, more, SHORT,
                ring.p, ring.pinv,
            )  # fmt: skip
            for part in range(3):
                for j in range(first, last):
                    if not right(out[part, j], expected[part, j] + more * before[part, j], ring.primes[j]):
                        return False
            before = integers(out)
    return True


def _concatenated(ring: Tables, rng: np.random.Generator, most: float, repeat: int = 0, count: int = 1) -> Array:
    """Limbs of `count` polynomials, N >> repeat values each."""
    primes = ring.primes * count
    return np.concatenate([residues(rng, ring.N >> repeat, prime, most) for prime in primes])


def _whole(ring: Tables, values: Array, repeat: int = 0) -> Integers:
    """The same as integers, with all values, shape (polynomials, primes, N)."""
    rows = np.repeat(values.reshape(-1, ring.N // 8 >> repeat, 8), 1 << repeat, axis=1)
    return integers(rows.reshape(-1, len(ring.primes), ring.N))


def _same(ring: Tables, out: Array, expected: Integers) -> bool:
    """Whether all limbs of polynomials are right."""
    limbs = out.reshape(-1, ring.N), expected.reshape(-1, ring.N)
    return all(right(*one) for one in zip(*limbs, ring.primes * (len(limbs[0]) // len(ring.primes)), strict=True))


@known_answer(add_encoded, sum_of_products)
def _sums_with_plaintexts_are_right() -> bool:
    rng = np.random.default_rng(8)
    for ring in _rings():
        count, stride, size = len(ring.primes), len(ring.primes) * ring.N, (ring.R, ring.C)
        sources = [_concatenated(ring, rng, AT_REST, 0, 2) for _ in range(2)]
        plain = [_concatenated(ring, rng, 0.5, repeat) for repeat in range(2)]
        base, total = _concatenated(ring, rng, AT_REST, 0, 2), 0
        terms = np.zeros((2, 4), dtype=np.int64)
        for repeat, (a, w) in enumerate(zip(sources, plain, strict=True)):
            terms[repeat] = a.ctypes.data, stride, w.ctypes.data, repeat
            total = total + _whole(ring, a) * _whole(ring, w, repeat)
        (_, starts), end = ring.product_starts(2), (ring.p, ring.pinv)
        for more in (False, True):
            out = _blank(2 * stride)
            sum_of_products(0, count, 0, terms, base, stride, more, starts, out, stride, *size, *end)
            if not _same(ring, out, total + more * _whole(ring, base)):
                return False
        at, ids = np.arange(count) * ring.N, np.arange(count)
        for repeat, w in enumerate(plain):
            out = _blank(stride)
            add_encoded(0, count, 0, sources[0], at, w, repeat, out, at, ids, *size, *end)
            if not _same(ring, out, _whole(ring, sources[0])[:1] + _whole(ring, w, repeat)):
                return False
    return True


@known_answer(transform_integers, inverse_limbs)
def _transforms_of_integers_are_right() -> bool:
    rng = np.random.default_rng(6)
    for ring in _rings():
        N = ring.N
        given = np.rint(rng.uniform(-1, 1, size=N) * 2.0**86)
        given[::5], given[1::5] = 2.0**86, -(2.0**86)
        ids = np.arange(len(ring.primes))
        out, at = _blank(len(ids) * N), np.arange(len(ids))[::-1] * N
        room, tables = _blank((2, 16 * ring.R)), (ring.p, ring.pinv, ring.tight)
        transform_integers(
            0, len(ids), 1, ring.ordered(given), out, at, ids, room, ring.R, ring.C, ring.C, ring.w0, ring.w1, *tables
        )
        back = _blank(len(ids) * N)
        factors = ring.inverse_factors([3] * len(ids), ids)
        inverse_limbs(0, len(ids), 1, out, at, back, at, ids, factors, room, ring.R, ring.C, ring.i0, ring.i1, *tables)
        for start, j in zip(at, ids, strict=True):
            prime = ring.primes[j]
            if not right(out[start : start + N], _values(ring, integers(given) % prime, int(j)), prime):
                return False
            if not right(back[start : start + N][_coefficient_order(ring)], 3 * integers(given), prime):
                return False
    return True


@known_answer(inner)
def _inner_products_are_right() -> bool:
    rng = np.random.default_rng(8)
    n, alpha = 2, 2
    for ring in _rings():
        N, ids = ring.N, np.arange(len(ring.primes))
        count = len(ids)
        key = np.stack([[[residues(rng, N, p, 0.5) for p in ring.primes] for _ in range(2)] for _ in range(n)])
        small = np.array([prime < ONE_BYTE for prime in ring.primes])
        place = np.where(small, np.cumsum(small) - 1, np.cumsum(~small) - 1)
        top = np.floor(key / 2.0**32 + 0.5)
        high8 = top[:, :, small].astype(np.int8).reshape(-1)
        high16 = top[:, :, ~small].astype(np.int32 if max(ring.primes) >= TWO_BYTES else np.int16).reshape(-1)
        low = (key - top * 2.0**32).astype(np.int32).reshape(-1)
        own = np.stack([residues(rng, N, prime) for prime in ring.primes[:LIMBS]])
        digits = np.stack(
            [[residues(rng, N, ring.primes[j], 0.5 if ring.tight[j] else LAZY) for j in ids] for _ in range(n)]
        )
        out, at, stride = _blank((2, count, N)), ids * N, np.full(count, count * N)
        inner(
            0, count, 0, own.reshape(-1), 0, digits.reshape(-1), at, stride, n, alpha, low, high8, high16, count, place,
            small, int(small.sum()), int((~small).sum()), ids, ids, ring.inner_starts(n), out.reshape(-1), 0, LIMBS, N,
            ring.p, ring.pinv,
        )  # fmt: skip
        for e, prime in enumerate(ring.primes):
            owner = e // alpha if e < LIMBS else n
            # The digit that has this prime is read from the ciphertext, and those after it move up by one.
            read = [own[e] if g == owner else digits[g - (g > owner), e] for g in range(n)]
            for half in range(2):
                expected: Integers = sum(integers(read[g]) * integers(key[g, half, e]) for g in range(n))
                if not right(out[half, e], expected, prime):
                    return False
    return True


@known_answer(add_permuted)
def _automorphisms_are_right() -> bool:
    rng = np.random.default_rng(9)
    for ring in _rings():
        ids, limbs = np.array([0, 2, LIMBS]), 2
        count, N, order = len(ids), ring.N, ring.automorphism(5)
        primes, special = [ring.primes[j] for j in ids], ring.residues(ring.primes[LIMBS], ids[:limbs])
        places, room = np.arange(count), _blank((1, N))
        source = np.stack([[residues(rng, N, p) for p in primes] for _ in range(2)])
        c0, before = np.stack([residues(rng, N, p) for p in primes[:limbs]]), _blank((2, count, N))
        for h in range(2):
            for e, p in enumerate(primes):
                before[h, e] = residues(rng, N, p)
        for add, permute, lift in ((a, m, c) for a in (False, True) for m in (False, True) for c in (False, True)):
            out = before.copy()
            add_permuted(
                0, 2 * count, 0, source.reshape(-1), 0, ids, c0.reshape(-1), 0, lift, special, out.reshape(-1), 0,
                add, order, permute, limbs, places, room, N, ring.p, ring.pinv,
            )  # fmt: skip
            for h in range(2):
                for e, p in enumerate(primes):
                    expected = integers(source[h, e])
                    if lift and h == 0 and e < limbs:
                        expected = expected + integers(c0[e]) * int(special[e])
                    expected = (expected[order] if permute else expected) + add * integers(before[h, e])
                    if not right(out[h, e], expected, p):
                        return False
    return True


@known_answer(divide_limbs, forward_columns)
def _divisions_are_right() -> bool:
    rng = np.random.default_rng(10)
    for ring in _rings():
        N, R, C, place = ring.N, ring.R, ring.C, _coefficient_order(ring)
        ids, order = np.array([0, 1], dtype=np.int64), ring.automorphism(2 * N - 1)
        primes, at, nowhere = [ring.primes[j] for j in ids], np.arange(2) * N, np.full(2, -1)
        source, extra = (np.stack([residues(rng, N, p) for p in primes]) for _ in range(2))
        inverse = ring.residues_of_inverse(ring.primes[LIMBS], 2)
        tables = ring.p, ring.pinv, ring.tight
        polynomials = [residues(rng, N, p) for p in primes]
        room, half = _blank(8 * R), _blank((2, N))
        for row, polynomial, j in zip(half, polynomials, ids, strict=True):
            ordered = _blank(N)
            ordered[place] = polynomial
            for column in range(C // 8):
                p, pinv, tight = (table[j] for table in tables)
                forward_columns(
                    ordered, column * R * 8, 8, room, 0, row, 0, column, R, C, ring.w0, j * R, p, pinv, tight, False
                )
        for permute in (False, True):
            for extraat in (nowhere, at):
                rest, out = half.copy(), _blank((2, N))
                divide_limbs(
                    0, 2, 0, source.reshape(-1), at, rest.reshape(-1), at, extra.reshape(-1), extraat,
                    out.reshape(-1), at, ids, inverse, order, permute, R, C, ring.w1, *tables,
                )  # fmt: skip
                for e, j in enumerate(ids):
                    values = _values(ring, integers(polynomials[e]), int(j))
                    expected = (integers(source[e]) - values) * int(inverse[e])
                    if extraat[e] >= 0:
                        expected = expected + integers(extra[e])
                    if not right(out[e], expected[order] if permute else expected, primes[e]):
                        return False
    return True
