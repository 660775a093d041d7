"""What the kernels of bootstraps have to give on every machine: residues by Python's integers, at a small ring.

Operands are random and, half of them, as large as the kernels allow. Primes of 37, 46 and 50 bits have packed residues
of all kinds, and the last is a tight one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from olac.backends.vector.bootstrap.kernels import (
    FOUR_BYTES,
    ONE_BYTE,
    TWO_BYTES,
    combine,
    multiply_rotations,
    pack_plaintext,
    sum_panel,
    switch_panel,
)
from olac.backends.vector.bootstrap.linear import combination_start, sums_of_plaintexts
from olac.backends.vector.compiled import known_answer
from olac.backends.vector.packed import split
from olac.backends.vector.ring import Tables
from olac.backends.vector.transforms import AT_REST, LAZY
from olac.ckks.primes import step_to_prime
from olac.system.arrays import Array, Order

LOG_RING = 7
BITS = (37, 50, 46)
"""Of two primes of the chain and of a special one."""
CENTRED, PRODUCT = 0.5, 0.8
KINDS = (ONE_BYTE, FOUR_BYTES, TWO_BYTES)
TYPES = {ONE_BYTE: np.int8, TWO_BYTES: np.int16, FOUR_BYTES: np.int32}

Integers = Any
"""An array of Python's integers."""


@functools.lru_cache(maxsize=1)
def _tables() -> Tables:
    return Tables(LOG_RING, [step_to_prime((1 << bits) + 1, -2 << LOG_RING) for bits in BITS])


def _integers(values: Array) -> Integers:
    return np.array([int(value) for value in values.reshape(-1)], dtype=object).reshape(values.shape)


def _right(found: Array, expected: Integers, prime: int, bound: float = CENTRED) -> bool:
    """Whether residues are congruent to integers and at most bound p in size, but for 1."""
    if not np.array_equal(found, np.rint(found)):
        return False
    given = _integers(found)
    return not np.any((given - expected) % prime) and int(np.max(np.abs(given))) <= bound * prime + 1


class _Operands:
    """Random and extreme integers as doubles, the same in every process."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def residues(self, prime: int, count: int, bound: float = CENTRED) -> Array:
        """At most bound p in size: half of them random, the others as large as can be."""
        most = int(bound * prime)
        out = self._random.integers(-most, most, count, endpoint=True).astype(np.float64)
        extreme = self._random.random(count) < 0.5
        out[extreme] = most * self._random.choice((-1.0, 1.0), int(extreme.sum()))
        return out

    def order(self, panels: int, size: int) -> Order:
        """Where each value comes from, those of a panel from one panel."""
        moved = self._random.permutation(panels)
        places = [panel * size + self._random.permutation(size) for panel in moved]
        found: Order = np.concatenate(places).astype(np.int32)
        return found


@dataclass(frozen=True, eq=False)
class _Packed:
    """Packed residues modulo one prime after another, each of them `size` values, and the same as integers."""

    low: Any
    highs: tuple[Any, ...]
    values: Integers


def _packed(make: _Operands, polynomials: int, size: int) -> tuple[_Packed, ...]:
    """For each prime."""
    found = []
    for prime, kind in zip(_tables().primes, KINDS, strict=True):
        values = make.residues(prime, polynomials * size)
        low, high = np.empty(values.size, dtype=np.int32), np.empty(values.size, dtype=TYPES[kind])
        split(values, low, high)
        found.append(_Packed(low, (high,), _integers(values).reshape(polynomials, size)))
    return tuple(found)


@known_answer(pack_plaintext)
def _plaintexts_are_packed() -> bool:
    """The second of three plaintexts, with parts at the ends of their ranges, for rows that repeat and others."""
    t, found = _tables(), []
    C, panels, count = t.C, t.N // (8 * t.C), 3
    for repeat, wide in ((0, np.int32), (1, np.int16)):
        make, ids = _Operands(repeat), [0, 1 if wide is np.int32 else 2]  # high parts of one byte, and of four or two
        rows = C >> repeat
        limbs = [make.residues(t.primes[j], panels * rows * 8).reshape(panels, rows, 8) for j in ids]
        limbs[0][0, 0, :4] = 2.0**31, -(2.0**31), 2.0**31 - 1, -(2.0**31) - 1
        values = np.stack([np.repeat(limb, 1 << repeat, axis=1) for limb in limbs])
        width = (1 + count) * rows * 8  # one plaintext of another giant step comes first
        size = panels * width
        out, high8, high16 = np.zeros(2 * size, np.int32), np.zeros(size, np.int8), np.zeros(size, wide)
        kinds = np.array([KINDS[j] for j in ids])
        pack_plaintext(
            0, 2, 0, values.reshape(-1), out, high8, high16, np.array([0, size]), np.zeros(2, dtype=np.int64), kinds,
            width, rows * 8, count, 1, repeat, t.R, C,
        )  # fmt: skip
        for limb, low, high in zip(limbs, out.reshape(2, size), (high8, high16), strict=True):
            whole = high.astype(np.int64) * 2**32 + low
            pieces = whole.reshape(panels, width)[:, rows * 8 :].reshape(panels, rows, count, 8)
            found.append(np.array_equal(pieces[:, :, 1], limb) and not np.any(pieces[:, :, ::2]))
            found.append(not np.any(whole.reshape(panels, width)[:, : rows * 8]))
    return all(found)


@known_answer(switch_panel)
def _panels_are_switched() -> bool:
    """With three digits, the limb's own among them or not, with and without P c_0."""
    t, found = _tables(), []
    size, n = 64, 3
    for j, (prime, kind) in enumerate(zip(t.primes, KINDS, strict=True)):
        for owner, with_c0 in ((1, True), (-1, False)):
            make = _Operands(2 * j + with_c0)
            source = make.residues(prime, 2 * size, AT_REST)
            digits = make.residues(prime, n * size, CENTRED if t.tight[j] else LAZY - 1)
            key, special = _packed(make, 2 * n, size)[j], make.residues(prime, 1)[0]
            out = np.empty(2 * size)
            addresses = key.low.ctypes.data, 0, size, key.highs[0].ctypes.data, 0, size
            switch_panel(
                source, 0, size, owner, digits, 0, size, n, *addresses, kind, size, special, with_c0,
                t.inner_starts(n)[j], out, 0, t.p[j], t.pinv[j],
            )  # fmt: skip
            given = [digits[g * size : (g + 1) * size] for g in range(n)]
            if owner >= 0:
                given = [given[0], source[:size], given[1]]
            for half in range(2):
                expected = sum(_integers(x) * key.values[2 * g + half] for g, x in enumerate(given))
                if with_c0 and not half:
                    expected = expected + _integers(source[size:]) * int(special)
                found.append(_right(out[half * size : (half + 1) * size], expected, prime))
    return all(found)


@known_answer(sum_panel)
def _panels_are_summed() -> bool:
    """More products than may be summed at once, for plaintexts whose rows repeat and others."""
    t, found = _tables(), []
    size, babies = 64, 11
    group, starts = sums_of_plaintexts(t.primes)
    for j, (prime, kind) in enumerate(zip(t.primes, KINDS, strict=True)):
        for repeat in (0, 1, 2):
            make = _Operands(10 * j + repeat)
            count, rows = babies - 2, size // 8 >> repeat
            rotations = make.residues(prime, 2 * babies * size, PRODUCT)
            plain = _packed(make, 1, rows * count * 8)[j]
            which, out = np.array([np.arange(count), np.arange(count)[::-1] + 2]), np.empty(2 * size)
            addresses = plain.low.ctypes.data, plain.highs[0].ctypes.data
            sum_panel(
                rotations, 0, size, which, 1, count, *addresses, 0, kind, repeat, group, starts[j], out, 0, size,
                t.p[j], t.pinv[j],
            )  # fmt: skip
            given = _integers(rotations).reshape(babies, 2, size)[which[1]]
            values = np.repeat(plain.values.reshape(rows, count, 8), 1 << repeat, axis=0)
            factors = values.transpose(1, 0, 2).reshape(count, 1, size)
            for half, expected in enumerate((given * factors).sum(axis=0)):
                found.append(_right(out[half * size : (half + 1) * size], expected, prime))
    return all(found)


@known_answer(multiply_rotations)
def _rotations_are_multiplied() -> bool:
    """Three baby steps and two giant steps; the first baby step has a key or not."""
    t, found = _tables(), []
    for bare in (0, 1):
        make = _Operands(3)
        N, C, size = t.N, t.C, 8 * t.C
        limbs, count, babies, n, panels = 2, 3, 3, 2, t.N // (8 * t.C)
        ids = np.arange(count)
        bounds = [CENTRED if tight else LAZY - 1 for tight in t.tight]
        sizes = 2 * [(p, AT_REST if bare else bound) for p, bound in zip(t.primes[:limbs], bounds[:limbs], strict=True)]
        source = np.concatenate([make.residues(p, N, size) for p, size in sizes])
        digits = np.concatenate([make.residues(p, n * N, bound) for p, bound in zip(t.primes, bounds, strict=True)])
        keys = [_packed(make, 2 * n, N) for _ in range(bare, babies)]
        orders = [make.order(panels, size) for _ in range(bare, babies)]
        # Each key as one array of low parts; those of a limb are 2 n polynomials after one another.
        lows = [np.concatenate([limb.low for limb in key]) for key in keys]
        wides = [np.concatenate([key[1].highs[0], key[2].highs[0].astype(np.int32)]) for key in keys]
        addresses = np.array(
            [[0] * 4] * bare
            + [
                [low.ctypes.data, key[0].highs[0].ctypes.data, wide.ctypes.data, order.ctypes.data]
                for low, key, wide, order in zip(lows, keys, wides, orders, strict=True)
            ]
        )
        lowat = np.tile(ids * 2 * n * N, (babies, 1))
        highat = np.tile(np.array([0, 0, 1]) * 2 * n * N, (babies, 1))
        kinds = np.tile(np.array([ONE_BYTE, FOUR_BYTES, FOUR_BYTES]), (babies, 1))
        polynomials = np.tile(np.array([1, 1, 1]), (babies, 1))
        special = np.array([make.residues(p, 1)[0] for p in t.primes[:limbs]])
        counts = np.array([3, 2])
        which = np.array([[0, 1, 2], [2, 1, 0]])
        repeat, rows = 1, C >> 1
        plain = _packed(make, panels, int(counts.sum()) * rows * 8)
        group, starts = sums_of_plaintexts(t.primes)
        out = np.empty(len(counts) * 2 * count * N)
        multiply_rotations(
            0, count, 0, source, 0, limbs * N, digits, ids * n * N, np.full(count, N), n, 1, bare, addresses, lowat,
            highat, kinds, polynomials, special, t.inner_starts(n), which, counts,
            np.array([one.low.ctypes.data for one in plain]), np.array([one.highs[0].ctypes.data for one in plain]),
            np.array(KINDS), repeat, starts, group, out, np.empty((1, 2 * (babies + 1) * size)), ids, limbs, t.R, C,
            t.p, t.pinv,
        )  # fmt: skip
        C0, D = _integers(source).reshape(2, limbs, N), _integers(digits).reshape(count, n, N)
        for e, prime in enumerate(t.primes):
            zero = np.zeros(N, dtype=object)
            own = [C0[half, e] * int(special[e]) if e < limbs else zero for half in range(2)]
            rotations = [own] * bare
            for b in range(bare, babies):
                given = [C0[1, e] if g == e else D[e, g if g < e or e >= limbs else g - 1] for g in range(n)]
                key, one = keys[b - bare][e], []
                for half in range(2):
                    total = sum(x * key.values[2 * g + half] for g, x in enumerate(given))
                    if e < limbs and not half:
                        total = total + C0[0, e] * int(special[e])
                    one.append(total[orders[b - bare]])
                rotations.append(one)
            at = 0
            for g, terms in enumerate(counts):
                pieces = plain[e].values[:, at : at + terms * rows * 8].reshape(panels, rows, terms, 8)
                at += terms * rows * 8
                for half in range(2):
                    expected = zero
                    for i in range(terms):
                        factor = np.repeat(pieces[:, :, i], 1 << repeat, axis=1).reshape(-1)
                        expected = expected + rotations[which[g, i]][half] * factor
                    place = ((2 * g + half) * count + e) * N
                    found.append(_right(out[place : place + N], expected, prime))
    return all(found)


@known_answer(combine)
def _values_are_combined() -> bool:
    """Two products, twice one product, multiples alone."""
    t, found = _tables(), []
    N, count, make = t.N, len(t.primes), _Operands(5)
    values = [np.concatenate([make.residues(p, N, AT_REST) for p in (*t.primes, *t.primes)]) for _ in range(4)]
    X = [_integers(one).reshape(2, count, N) for one in values]
    constants = np.array([make.residues(p, 1)[0] for p in t.primes])
    multipliers = np.array([[make.residues(p, 1)[0] for p in t.primes] for _ in range(3)])
    for pairs, factor, terms in ((((0, 1), (2, 3)), 1, (0, 1, 2)), (((1, 1),), 2, (3,)), ((), 1, (1, 2, 0))):
        parts = 3 if pairs else 2
        starts = np.array([combination_start(prime, len(pairs), factor, len(terms)) for prime in t.primes])
        out = np.empty(parts * count * N)
        of_pairs = [[values[a].ctypes.data, values[b].ctypes.data, count * N, count * N] for a, b in pairs]
        of_terms = [[values[a].ctypes.data, count * N] for a in terms]
        combine(
            0, count, 0, np.array(of_pairs, dtype=np.int64).reshape(-1, 4), float(factor),
            np.array(of_terms, dtype=np.int64), multipliers[: len(terms)].copy(), constants, starts, out, count * N, N,
            t.p, t.pinv, t.tight,
        )  # fmt: skip
        for e, prime in enumerate(t.primes):
            expected = [sum(X[a][half, e] * int(multipliers[i, e]) for i, a in enumerate(terms)) for half in range(2)]
            expected[0] = expected[0] + int(constants[e])
            if pairs:
                expected.append(np.zeros(N, dtype=object))
                for a, b in pairs:
                    (a0, a1), (b0, b1) = (X[a][half, e] for half in range(2)), (X[b][half, e] for half in range(2))
                    for part, term in enumerate((a0 * b0, a0 * b1 + a1 * b0, a1 * b1)):
                        expected[part] = expected[part] + factor * term
            for part, want in enumerate(expected):
                place = (part * count + e) * N
                found.append(_right(out[place : place + N], want, prime))
    return all(found)
