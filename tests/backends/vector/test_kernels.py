"""Kernels against whole numbers, bit for bit, on random and extreme operands, and the sizes that docstrings state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from olac.backends.vector import available
from olac.backends.vector.conversion import PART, convert, convert_part, magic_of, overshoots
from olac.backends.vector.elementwise import (
    MOST_QUOTIENT,
    add_constant,
    add_encoded,
    add_limbs,
    sum_of_products,
    tensor,
    times_constant,
    times_limbs,
    transform_integers,
)
from olac.backends.vector.packed import split
from olac.backends.vector.ring import TIGHT_TERMS, Tables
from olac.backends.vector.switching import add_permuted, divide_limbs, finish_limbs, inner, inverse_limbs
from olac.backends.vector.transforms import AT_REST, INVERTED, LAZY
from olac.ckks.parameters import MOST_DIGITS
from olac.ckks.special import ONE_BYTE, TWO_BYTES
from olac.errors import VerificationError
from olac.system.arrays import Array, Index
from tests.backends.vector.whole import (
    BITS,
    Integers,
    Whole,
    centred,
    check,
    coefficient_order,
    exact,
    extremes,
    largest,
    largest_product,
    modelled,
    prime_below,
    tables,
    times,
    values,
    whole,
)

pytestmark = pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")

LOG = 8
N = 1 << LOG
NONE = np.zeros(1, dtype=np.int32)
LOOSE = [bits for bits in BITS if bits <= 46]
TIGHT = [bits for bits in BITS if bits > 46]


def ids(count: int) -> Index:
    return np.arange(count)


def pairs(most: int, other: int | None = None, seed: int = 0) -> Iterator[tuple[Array, Array]]:
    """All pairs of kinds of operands of at most so much in size."""
    yield from itertools.product(extremes(most, N, seed).values(), extremes(other or most, N, seed + 1).values())


# Products and remainders ---------------------------------------------------------------------------------------------


def product(x: Array, w: Array, p: int, pinv: float | None = None) -> Array:
    """`arithmetic.product`, by the kernel that does nothing else."""
    out, at = np.full(len(x), np.nan), np.zeros(1, dtype=np.int64)
    times_limbs(0, 1, 0, x, at, w, at, out, at, at, False, len(x), np.array([float(p)]), np.array([pinv or 1.0 / p]))
    return out


def remainder(x: Array, p: int) -> Array:
    """`arithmetic.reduced`."""
    out, at = np.full(len(x), np.nan), np.zeros(1, dtype=np.int64)
    add_constant(0, 1, 0, x, at, np.zeros(1), out, at, at, len(x), np.array([float(p)]), np.array([1.0 / p]))
    return out


def check_product(x: Array, w: Array, p: int) -> None:
    found, size = product(x, w, p), [abs(int(a) * int(b)) for a, b in zip(x, w, strict=True)]
    assert np.array_equal(found, np.rint(found))
    for result, a, b, product_size in zip(found, x, w, size, strict=True):
        assert (int(result) - int(a) * int(b)) % p == 0
        assert abs(int(result)) <= Fraction(p, 2) + Fraction(product_size, 1 << 52)


@pytest.mark.parametrize("bits", BITS)
def test_products_of_residues_at_rest(bits: int) -> None:
    p = prime_below(bits, LOG)
    for x, w in pairs(int(AT_REST * p)):
        check(product(x, w, p), times(whole(x), whole(w), p), p, p / 2 + 2.0**-52 * (AT_REST * p) ** 2)


@pytest.mark.parametrize("bits", BITS)
def test_products_as_large_as_they_may_be(bits: int) -> None:
    p = prime_below(bits, LOG)
    random = np.random.default_rng(bits)
    # |x w| <= 0.99 * 2^51 p, shared between the two in several ways.
    most = 99 * p * (1 << 51) // 100
    for w_most in (p // 2, p // 2 - 1, math.isqrt(most), 3 * p):
        x_most = min(most // w_most, (1 << 53) - 1)
        for sign, other in itertools.product((1, -1), (1, -1)):
            x = float(sign * x_most) - sign * random.integers(0, 3, 64).astype(float)
            check_product(x, np.full(64, float(other * min(w_most, (1 << 53) - 1))), p)
        w = random.integers(-w_most, w_most, 256).astype(float)
        check_product(random.integers(-x_most, x_most, 256).astype(float), w, p)


@pytest.mark.parametrize("bits", BITS)
def test_products_next_to_half_a_prime(bits: int) -> None:
    """Where the quotient is as near to a half as can be, and for the largest result that a search finds."""
    p = prime_below(bits, LOG)
    random = np.random.default_rng(bits)
    w = random.integers(1, p // 2, 64)
    halves = [(p + 1 - 2 * (i % 2)) // 2 for i in range(64)]
    x = [centred(half * pow(int(b), -1, p), p) for half, b in zip(halves, w, strict=True)]
    check_product(np.array(x, dtype=float), w.astype(float), p)
    most = int((LAZY if bits <= 46 else 3.9) * p)
    one = p // 2
    hard = [largest_product(one, p, most, seed) for seed in range(16)]
    found = product(np.array(hard, dtype=float), np.full(16, float(one)), p)
    assert found.tolist() == [modelled(x, one, p) for x in hard]
    assert largest(found) <= p / 2 + most / 2.0**53 * p
    if bits >= 44:
        assert largest(found) > p / 2 + 0.1 * most / 2.0**53 * p  # the bound is not far from what happens


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_product(data: st.DataObject) -> None:
    p = prime_below(data.draw(st.sampled_from(BITS)), LOG)
    w = data.draw(st.lists(st.integers(-2 * p, 2 * p), min_size=8, max_size=8))
    most = [min((1 << 53) - 1, 99 * p * (1 << 51) // 100 // max(abs(b), 1)) for b in w]
    x = [data.draw(st.integers(-m, m)) for m in most]
    w = [min(max(b, -(1 << 53) + 1), (1 << 53) - 1) for b in w]
    check_product(np.array(x, dtype=float), np.array(w, dtype=float), p)


def test_a_product_beyond_the_bound_is_wrong() -> None:
    """The quotient of a negative product beyond 2^51 is a half, and the result no integer or another one."""
    p = prime_below(50, LOG)
    w, wrong = float(p // 2), 0
    for k in range(512):
        x = -float(int(4.2 * p) + 12345 * k)
        found = product(np.full(8, x), np.full(8, w), p)[0]
        wrong += not found.is_integer() or (int(found) - int(x) * int(w)) % p != 0
    assert wrong > 100


@pytest.mark.parametrize("bits", BITS)
def test_remainders(bits: int) -> None:
    p = prime_below(bits, LOG)
    random = np.random.default_rng(bits)
    for bound in (p // 2, p, 13 * p, 2**49, 2**51, 2**52 - 1):
        for x in extremes(min(bound, 2**52 - 1), N).values():
            check(remainder(x, p), whole(x), p, p // 2)
    multiples = random.integers(-(2**52) // p + 1, 2**52 // p, N) * p
    for near in (p // 2, p // 2 + 1, -(p // 2), 0):  # where the quotient is as near to a half as can be
        x = multiples + np.clip(near, -(2**52) + 1 - multiples.min(), 2**52 - 1 - multiples.max())
        check(remainder(x.astype(float), p), x, p, p // 2)
    # Beyond 2^52 the least residue need not be found, but one of at most p / 2 + 2^-53 |x|.
    x = random.uniform(-MOST_QUOTIENT, MOST_QUOTIENT, N) * p
    x[:2] = MOST_QUOTIENT * p, -MOST_QUOTIENT * p
    x = np.rint(x)
    found = remainder(x, p)
    assert not np.any((exact(found) - exact(x)) % p)
    assert np.all(np.abs(found) <= p / 2 + 2.0**-53 * np.abs(x))


def test_a_remainder_beyond_the_bound_is_wrong() -> None:
    p = prime_below(20, LOG)
    x = -np.rint((2.0**51 * 1.3 + np.arange(64.0)) * p + 12345 * np.arange(64.0))
    found = remainder(x, p)
    assert not np.array_equal(found, np.rint(found)) or np.any((exact(found) - exact(x)) % p)
    x /= 4
    found = remainder(np.rint(x), p)
    assert not np.any((exact(found) - exact(np.rint(x))) % p)


# Value by value ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_sums(bits: int) -> None:
    t, p, at = tables(LOG, bits), prime_below(bits, LOG), ids(1)
    for a, b in pairs(int(AT_REST * p)):
        for minus in (False, True):
            out: Array = np.full(N, np.nan)
            add_limbs(0, 1, 0, a, at, b, at, out, at, at, minus, N, t.p, t.pinv)
            check(out, whole(a) - whole(b) if minus else whole(a) + whole(b), p, p // 2)
    for a, constant in itertools.product(extremes(int(AT_REST * p), N).values(), (p // 2, -(p // 2), 1, 0)):
        out = a.copy()
        add_constant(0, 1, 0, out, at, np.array([float(constant)]), out, at, at, N, t.p, t.pinv)
        check(out, whole(a) + constant, p, p // 2)


@pytest.mark.parametrize("bits", BITS)
def test_products_that_are_added(bits: int) -> None:
    t, p, at = tables(LOG, bits), prime_below(bits, LOG), ids(1)
    most = int(AT_REST * p)
    for (a, b), before in zip(pairs(most), itertools.cycle(extremes(most, N, 9).values())):
        for more in (False, True):
            out = before.copy()
            times_limbs(0, 1, 0, a, at, b, at, out, at, at, more, N, t.p, t.pinv)
            expected = times(whole(a), whole(b), p) + more * whole(before)
            check(out, expected, p, p // 2 if more else 0.65 * p if t.tight[0] else p * (0.5 + 0.5625 / 64))
            constant = p // 2 * (1 if b[0] > 0 else -1)
            out = before.copy()
            times_constant(0, 1, 0, a, at, np.array([float(constant)]), out, at, at, more, N, t.p, t.pinv)
            expected = times(whole(a), constant, p) + more * whole(before)
            check(out, expected, p, p // 2 if more else 0.6 * p if t.tight[0] else p * (0.5 + 0.75 / 128))


@pytest.mark.parametrize("bits", LOOSE)
def test_products_of_lazy_residues(bits: int) -> None:
    t, p, at = tables(LOG, bits), prime_below(bits, LOG), ids(1)
    for a, b in pairs(LAZY * p, int(AT_REST * p)):
        out = np.full(N, np.nan)
        times_limbs(0, 1, 0, a, at, b, at, out, at, at, False, N, t.p, t.pinv)
        check(out, times(whole(a), whole(b), p), p, 0.63 * p)


@pytest.mark.parametrize("bits", BITS)
def test_products_of_ciphertexts(bits: int) -> None:
    t, p = tables(LOG, bits), prime_below(bits, LOG)
    kinds = list(extremes(int(AT_REST * p), N).values())
    for shift in range(len(kinds)):
        a0, a1, b0, b1, c0, c1, c2 = kinds[shift:] + kinds[:shift]
        a, b = np.concatenate([a0, a1]), np.concatenate([b0, b1])
        for more in (False, True):
            out = np.concatenate([c0, c1, c2])
            tensor(0, 1, 0, a, 0, N, b, 0, N, out, 0, N, more, N, t.p, t.pinv)
            first, second = times(whole(a0), whole(b0), p), times(whole(a1), whole(b1), p)
            cross = times(whole(a0), whole(b1), p) + times(whole(a1), whole(b0), p)
            bound = p // 2 if more else 0.65 * p
            check(out[:N], first + more * whole(c0), p, bound)
            check(out[N : 2 * N], cross + more * whole(c1), p, p // 2)
            check(out[2 * N :], second + more * whole(c2), p, bound)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("wanted", [1, 3, 100])
def test_sums_of_products_with_plaintexts(bits: int, wanted: int) -> None:
    t, p = tables(LOG, bits), prime_below(bits, LOG)
    terms, starts = t.product_starts(wanted)
    assert terms == wanted or (bits > 46 and terms >= 5)
    for kind, more in itertools.product(("random", "most", "least") if terms < 20 else ("least",), (False, True)):
        a = [extremes(int(AT_REST * p), 2 * N, i)[kind] for i in range(terms)]
        plain = [extremes(p // 2, N, i)["random" if kind == "random" else "most"] for i in range(terms)]
        base, repeats = extremes(int(AT_REST * p), 2 * N, 99)[kind], [i % 2 for i in range(terms)]
        of = [[x.ctypes.data, N, w.ctypes.data, r] for x, w, r in zip(a, plain, repeats, strict=True)]
        out = np.full(2 * N, np.nan)
        addresses = np.array(of, dtype=np.int64)
        sum_of_products(0, 1, 0, addresses, base, N, more, starts, out, N, t.R, t.C, t.p, t.pinv)
        for half in (slice(0, N), slice(N, 2 * N)):
            expected: Whole = more * whole(base[half])
            for x, w, r in zip(a, plain, repeats, strict=True):
                expected = (expected + times(whole(x[half]), repeated(w, r), p)) % p
            check(out[half], expected, p, p // 2 + 1)


def repeated(plain: Array, repeat: int) -> Whole:
    """All N values of a plaintext whose rows are there once."""
    out: Whole = np.repeat(whole(plain).reshape(-1, 8)[: N >> 3 >> repeat], 1 << repeat, axis=0).reshape(-1)
    return out


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("repeat", [0, 1])
def test_sums_with_plaintexts(bits: int, repeat: int) -> None:
    t, p, at = tables(LOG, bits), prime_below(bits, LOG), ids(1)
    for a, b in pairs(int(AT_REST * p), p // 2):
        out = np.full(N, np.nan)
        add_encoded(0, 1, 0, a, at, b, repeat, out, at, at, t.R, t.C, t.p, t.pinv)
        check(out, whole(a) + repeated(b, repeat), p, p // 2)


@pytest.mark.parametrize("bits", [(20, 50), (37, 46, 44), (30,)])
def test_integers_of_any_size_are_transformed(bits: tuple[int, ...]) -> None:
    t = tables(LOG, *bits)
    smallest = float(t.p.min())
    for scale in (1.0, 2.0**30, MOST_QUOTIENT * smallest, 2.0**90 * smallest, 2.0**1000):
        for kind in ("random", "most", "least", "signs"):
            given = extremes((1 << 52) - 1, N)[kind] / 2.0**52 * scale
            given = np.rint(given) if scale < 2.0**60 else given
            into = np.full(len(bits) * N, np.nan)
            found = t.values(given, ids(len(bits)), into=into)
            assert np.array_equal(found.reshape(-1), into)
            for limb, p in zip(found, t.primes, strict=True):
                check(limb, values((exact(given) % p).astype(np.int64), LOG, p), p, p // 2)


@pytest.mark.parametrize(("repeat", "scale"), [(1, 1.0), (2, 1.0), (1, 2.0**900)])
def test_polynomials_in_a_power_are_transformed(repeat: int, scale: float) -> None:
    t = tables(10, 37, 50)
    given = extremes((1 << 52) - 1, t.N >> repeat)["signs"] * scale
    power = np.zeros(t.N)
    power[:: 1 << repeat] = given
    for limb, p in zip(t.values(given, ids(2), repeat=repeat), t.primes, strict=True):
        rows = values((exact(power) % p).astype(np.int64), 10, p).reshape(-1, 1 << repeat, 8)
        check(limb, rows[:, 0].reshape(-1), p, p // 2)


def test_integers_that_the_kernel_takes() -> None:
    t = tables(LOG, 37, 50)
    given = extremes((1 << 53) - 1, N)["signs"] * (MOST_QUOTIENT * float(t.p.min()) / 2.0**53)
    out, at, room = np.full(2 * N, np.nan), ids(2), np.empty((1, 16 * t.R))
    size, roots = (t.R, t.C, t.C), (t.w0, t.w1)
    transform_integers(0, 2, 0, t.ordered(given), out, at * N, at, room, *size, *roots, t.p, t.pinv, t.tight)
    for limb, p in zip(out.reshape(2, N), t.primes, strict=True):
        check(limb, values((exact(given) % p).astype(np.int64), LOG, p), p, p // 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_coefficients_that_are_not_finite(value: float) -> None:
    given = np.zeros(N)
    given[7] = value
    with pytest.raises(VerificationError, match="not finite"):
        tables(LOG, 37).values(given, ids(1))


# Sums of products ----------------------------------------------------------------------------------------------------


def sums(y: Array, c: Sequence[int], p: int, start: float, before: Array | None = None) -> Array:
    """`convert_part` of y, shape (terms, PART)."""
    out = np.full(PART, np.nan) if before is None else before.copy()
    flat, factors = np.ascontiguousarray(y).reshape(-1), np.array([*c, 0], dtype=float)
    own = float(p), 1.0 / p, before is not None, np.zeros(PART), 0, False
    convert_part(flat, 0, PART, len(c), factors, 0, start, out, 0, *own)
    return out


def exact_sums(y: Array, c: Sequence[int]) -> Integers:
    return (exact(y) * np.array(c, dtype=object)[:, None]).sum(axis=0)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 105), st.integers(1, 200), st.sampled_from(BITS))
def test_what_sums_start_with(largest: int, terms: int, bits: int) -> None:
    p = prime_below(bits, LOG)
    try:
        start = magic_of(largest, terms, p)
    except OverflowError:
        # It would leave its place, or its quotient would, or the rests would, for any number of bits that is left out.
        for s in range(54):
            rests = terms << s >> 1
            fits = largest + rests < 1 << 51 + s
            assert not fits or largest + rests > ((1 << 52) - 1) * p or rests + 3 * p >= 1 << 53
        return
    s = (int(start) // 3).bit_length() - 52
    assert start == 1.5 * 2.0 ** (52 + s) and s >= 0
    rests = terms << s >> 1
    assert largest + rests < 1 << 51 + s
    assert Fraction(largest + rests) * Fraction(1.0 / p) <= 1 << 52
    assert rests + 3 * p < 1 << 53


@pytest.mark.parametrize(
    ("largest", "terms", "bits"),
    [
        (1 << 103, 1, 50),  # the quotient
        (1 << 99, 1, 46),
        (TIGHT_TERMS * 11 << 98, TIGHT_TERMS, 50),  # the rests
        (1 << 71, 1 << 35, 50),
    ],
)
def test_sums_that_do_not_fit(largest: int, terms: int, bits: int) -> None:
    with pytest.raises(OverflowError, match=f"a sum of {terms} products up to"):
        magic_of(largest, terms, prime_below(bits, LOG))


def most_terms(p: int, size: int) -> int:
    """How many products of residues of a size and centred ones fit."""
    terms = 1
    while terms < 200:
        try:
            magic_of((terms + 1) * size * (p // 2), terms + 1, p)
        except OverflowError:
            break
        terms += 1
    return terms


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("size", [0.5, AT_REST, 1.1, LAZY])
def test_sums_of_as_many_products_as_fit(bits: int, size: float) -> None:
    p = prime_below(bits, LOG)
    most, half = p // 2 if size == 0.5 else int(size * p), p // 2
    try:
        magic_of(most * half, 1, p)
    except OverflowError:
        assert bits == 50 and size == LAZY
        return
    terms = most_terms(p, most)
    start = magic_of(terms * most * half, terms, p)
    random = np.random.default_rng(bits)
    for signs in ((1, 1), (1, -1)):
        for kind in ("random", "most", "least", "signs", "almost"):
            y = np.array([extremes(most, PART, seed)[kind] * signs[seed % 2] for seed in range(terms)])
            c = [half * signs[(i // 2) % 2] for i in range(terms)]
            check_sum(sums(y, c, p, start), exact_sums(y, c), p)
            c = [int(random.integers(-half, half, endpoint=True)) for _ in range(terms)]
            before = extremes(int(AT_REST * p), PART)["signs"]
            check_sum(sums(y, c, p, start, before), exact_sums(y, c) + exact(before), p)


def check_sum(found: Array, expected: Integers, p: int) -> None:
    assert not np.any((exact(found) - expected) % p)
    assert largest(found) <= p // 2 + 1


@pytest.mark.parametrize(("bits", "terms"), [(44, 30), (46, 30), (47, 20), (49, 12), (50, 8)])
@pytest.mark.parametrize("sign", [1, -1])
def test_rests_that_add_up(bits: int, terms: int, sign: int) -> None:
    """Products that are rounded by nearly as much as can be, all in one direction."""
    p = prime_below(bits, LOG)
    half = p // 2
    start = magic_of(terms * half * half, terms, p)
    s = (int(start) // 3).bit_length() - 52
    y, c, random = np.empty((terms, PART)), [], np.random.default_rng(bits)
    for i in range(terms):
        factor = int(random.integers(half // 2, half // 2 + 1000)) * 2 + 1
        c.append(factor)
        inverse, low = pow(factor, -1, 1 << s), (1 << s >> 1) - 1
        row: list[int] = []
        while len(row) < PART:  # a number of s bits, of which those that are small enough are taken
            value = sign * low * inverse % (1 << s)
            value -= (1 << s) * (value >= 1 << s - 1)
            if abs(value) <= half:
                row.append(value)
            low -= 1
        y[i] = row
    lost = (exact_sums(y, [1] * terms) * 0) + sum(
        ((exact(row) * factor + (1 << s >> 1)) % (1 << s)) - (1 << s >> 1) for row, factor in zip(y, c, strict=True)
    )
    assert min(sign * lost) > 0.99 * terms * (1 << s >> 1)
    check_sum(sums(y, c, p, start), exact_sums(y, c), p)
    before = np.full(PART, float(sign * int(AT_REST * p)))
    check_sum(sums(y, c, p, start, before), exact_sums(y, c) + exact(before), p)


def test_a_sum_beyond_what_it_started_with_is_wrong() -> None:
    p, random = prime_below(50, LOG), np.random.default_rng(0)
    half, terms = p // 2, 40
    y = random.integers(half // 2, half, (terms, PART)).astype(float)
    c = [-int(x) for x in random.integers(half // 2, half, terms)]
    found, expected = sums(y, c, p, magic_of(half * half, 1, p)), exact_sums(y, c)
    assert not np.array_equal(found, np.rint(found)) or np.any((exact(found) - expected) % p)


# Conversions ---------------------------------------------------------------------------------------------------------


def convert_all(
    t: Tables, source: Sequence[int], target: Sequence[int], given: Array, least: bool
) -> tuple[Array, Array]:
    """The inverse transforms y, shape (source, N), of values, and the values that they are converted to."""
    n, count, at = t.N, len(source), ids(len(source)) * t.N
    constants = t.conversion(source, target)
    y, out, scratch = np.empty(count * n), np.empty(len(target) * n), np.empty((1, 8 * t.R * (len(target) + 2)))
    own = t.R, t.C, t.i0, t.i1, t.p, t.pinv, t.tight
    inverse_limbs(0, count, 0, given.reshape(-1), at, y, at, np.array(source), constants.factors, scratch, *own)
    outat = ids(len(target)) * n
    forward = t.R, t.C, t.w0, t.p, t.pinv, t.tight
    sums = constants.c, count + 1, constants.starts, constants.quotients, least, scratch
    convert(0, t.C // 8, 0, y, 0, count, constants.group, constants.ids, *sums, out, outat, *forward)
    finish_limbs(0, len(target), 0, out, outat, constants.ids, t.R, t.C, t.w1, t.p, t.pinv, t.tight)
    return y.reshape(count, n), out.reshape(len(target), n)


CHAINS: list[tuple[int, tuple[int, ...], int]] = [
    # log2 of N, bits of all primes, how many of them are converted from
    (7, (37, 37, 37, 46, 46), 3),
    (8, (50,) * 10, 8),  # the most that are summed at once
    (8, (50,) * 21, 20),  # three sums
    (8, (49, 37, 37, 37, 46, 46, 46), 4),
    (9, (46,) * 14, 12),
    (8, (20, 50, 46), 1),
    (8, (50, 20, 30), 1),
    (8, (46,) * 40, 38),
    (10, (47, 44, 50, 41, 45), 3),
    (13, (37, 37, 46), 2),
]


@pytest.mark.parametrize(("log_ring", "bits", "count"), CHAINS)
@pytest.mark.parametrize("kind", ["random", "signs"])
def test_conversions(log_ring: int, bits: tuple[int, ...], count: int, kind: str) -> None:
    t = tables(log_ring, *bits)
    source, target = range(count), range(count, len(bits))
    product = math.prod(t.primes[:count])
    given = np.array([extremes(int(AT_REST * t.primes[j]), t.N, j)[kind] for j in source])
    for least in (False, True) if count > 1 else (False,):
        y, out = convert_all(t, tuple(source), tuple(target), given, least)
        order = coefficient_order(log_ring)
        total = np.zeros(t.N, dtype=object)
        for j, row in enumerate(y):
            p = t.primes[j]
            assert largest(row) <= (p // 2 if t.tight[j] else INVERTED * p)
            hat = product // p
            assert np.array_equal(times(values(whole(row)[order], log_ring, p), hat % p, p), np.mod(given[j], p))
            total += exact(row)[order] * hat
        if least:
            total = (total + product // 2) % product - product // 2
        for limb, j in zip(out, target, strict=True):
            p = t.primes[j]
            check(limb, values((total % p).astype(np.int64), log_ring, p), p, p // 2 if t.tight[j] else LAZY * p)


@pytest.mark.parametrize("bits", [20, 37, 46, 50])
@pytest.mark.parametrize("terms", [2, 3, 12, 38])
def test_overshoots(bits: int, terms: int) -> None:
    """The sum of fractions, rounded, on operands that are far from halves; next to halves either integer will do."""
    t = tables(LOG, *[bits] * min(terms, 3)) if terms < 4 else Tables(LOG, [prime_below(bits, LOG)] * terms)
    bound = 0.5 if t.tight[0] else INVERTED
    for kind in ("random", "most", "least", "signs"):
        y = np.array([extremes(int(bound * p), N, j)[kind] for j, p in enumerate(t.primes)])
        out = np.full(N, np.nan)
        overshoots(y.reshape(-1), 0, N, terms, t.pinv, out, 0, N)
        product = math.prod(t.primes)
        total = sum(exact(row) * (product // p) for row, p in zip(y, t.primes, strict=True))
        off = total - exact(out) * product
        assert largest(off) <= product // 2 + product * terms * terms // (1 << 53)
        assert largest(out) <= terms


# Key switching -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [37, 41, 45, 46, 47, 49, 50])
@pytest.mark.parametrize("digits", [1, 2, 3, MOST_DIGITS])
def test_sums_over_digits(bits: int, digits: int) -> None:
    """Modulo one prime, whose own digit is the first, the last or none, as a limb of the chain or a special prime."""
    t, p = tables(LOG, bits), prime_below(bits, LOG)
    half, lifted = p // 2, p // 2 if bits > 46 else LAZY * p
    width = np.int8 if p < ONE_BYTE else np.int16 if p < TWO_BYTES else np.int32
    small = np.array([width == np.int8])
    starts = t.inner_starts(digits)
    for kind, other in (("random", "random"), ("most", "most"), ("most", "least"), ("signs", "almost")):
        own = extremes(int(AT_REST * p), N, 99)[kind]
        others = np.array([extremes(lifted, N, g)[kind] for g in range(digits)])
        key = np.array([extremes(half, N, g)[other] for g in range(2 * digits)])
        low, high = np.empty(2 * digits * N, dtype=np.int32), np.empty(2 * digits * N, dtype=width)
        split(key.reshape(-1), low, high)
        none = np.empty(0, dtype=np.int8), np.empty(0, dtype=np.int16)
        high8, high16 = (high, none[1]) if small[0] else (none[0], high)
        for limbs in (0, 1):  # a special prime; a limb of the chain, whose own digit is the first
            out = np.full(2 * N, np.nan)
            first = np.array([N * limbs])
            place, one = ids(1), ids(1)
            inner(
                0, 1, 0, own, 0, others.reshape(-1), first, np.array([N]), digits, 1, low, high8, high16,
                1, place, small, int(small[0]), int(~small[0]), one, one, starts, out, 0, limbs, N, t.p, t.pinv,
            )  # fmt: skip
            given = [whole(own) if limbs and g == 0 else whole(others[g]) for g in range(digits)]
            for h in range(2):
                total: Whole = np.zeros(N, dtype=np.int64)
                for g, x in enumerate(given):
                    total = (total + times(x, whole(key[2 * g + h]), p)) % p
                check(out[h * N : (h + 1) * N], total, p, p // 2 + 1)


@pytest.mark.parametrize("position", range(4))
def test_the_own_digit_is_found(position: int) -> None:
    """Four digits of two limbs: those of the limb itself are left out among the lifted ones."""
    t = tables(LOG, *[41] * 8)
    random, digits, limb = np.random.default_rng(position), 4, 2 * position + 1
    p = t.primes[limb]
    own = random.integers(-p, p, 8 * N).astype(float)
    others = random.integers(-p, p, (3, N)).astype(float)
    key = random.integers(-(p // 2), p // 2, (2 * digits, N)).astype(float)
    low, high = np.empty(2 * digits * N, dtype=np.int32), np.empty(2 * digits * N, dtype=np.int16)
    split(key.reshape(-1), low, high)
    out = np.full(16 * N, np.nan)
    places = np.zeros(8, dtype=np.int64)
    inner(
        limb, limb + 1, 0, own, 0, others.reshape(-1), places, np.full(8, N), digits, 2, low, np.empty(0, np.int8),
        high, 1, places, np.array([False] * 8), 0, 1, places, ids(8), t.inner_starts(digits), out, 0, 8, N, t.p, t.pinv,
    )  # fmt: skip
    given = [*others[:position], own[limb * N : (limb + 1) * N], *others[position:]]
    for h in range(2):
        total = sum(times(whole(x), whole(key[2 * g + h]), p) for g, x in enumerate(given))
        check(out[(8 * h + limb) * N :][:N], total, p, p // 2 + 1)
    assert np.count_nonzero(~np.isnan(out)) == 2 * N


def test_more_digits_than_fit() -> None:
    t = tables(LOG, 46, 50)
    for digits in range(1, MOST_DIGITS + 1):
        assert np.all(t.inner_starts(digits) <= t.inner_starts(digits, 1))
    with pytest.raises(OverflowError, match="a sum of 8 products"):
        t.inner_starts(MOST_DIGITS, 2)


@pytest.mark.parametrize("bits", [(37, 46, 50), (20, 45, 49)])
def test_results_are_moved_and_added(bits: tuple[int, ...]) -> None:
    t, count = tables(LOG, *bits), len(bits)
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    factors = np.array([float(p // 2) for p in t.primes])
    room, at = np.empty((1, N)), ids(count)
    names = list(extremes(1, 1))
    for shift, (moves, adds, lifts) in enumerate(itertools.product((False, True), repeat=3)):
        kinds = itertools.cycle(names[shift % len(names) :] + names[: shift % len(names)])
        source, c0, before = (
            np.array([extremes(int(AT_REST * t.primes[e % count]), N, e)[next(kinds)] for e in range(rows)])
            for rows in (2 * count, count, 2 * count)
        )
        out = before.copy()
        add_permuted(
            0, 2 * count, 0, source.reshape(-1), 0, at, c0.reshape(-1), 0, lifts, factors, out.reshape(-1), 0, adds,
            order if moves else NONE, moves, count - 1, at, room, N, t.p, t.pinv,
        )  # fmt: skip
        for e, limb in enumerate(out):
            p = t.primes[e % count]
            expected = whole(source[e])
            lifted = lifts and e < count - 1
            if lifted:
                expected = expected + times(whole(c0[e]), p // 2, p)
            expected = expected[order] if moves else expected
            expected = expected + adds * whole(before[e])
            check(limb, expected, p, p // 2 if adds or lifted else AT_REST * p)


@pytest.mark.parametrize("bits", [(37, 46, 50), (20, 45, 49)])
def test_quotients(bits: tuple[int, ...]) -> None:
    t, count = tables(LOG, *bits), len(bits)
    order = np.random.default_rng(1).permutation(N).astype(np.int32)
    factors, at = np.array([float(-(p // 2)) for p in t.primes]), ids(count) * N
    for kind, (moves, adds) in itertools.product(
        ("random", "most", "least", "signs"), itertools.product((0, 1), repeat=2)
    ):
        source = np.array([extremes(int(AT_REST * p), N, e)[kind] for e, p in enumerate(t.primes)])
        most = [p // 2 if tight else LAZY * p for p, tight in zip(t.primes, t.tight, strict=True)]
        extra = np.array([extremes(size, N, 9 + e)[kind] for e, size in enumerate(most)])
        # As the first halves of transforms leave them, the rests are at most 6 p, or 1.7 p for tight primes.
        sizes = [int((1.7 if tight else 6) * p) for p, tight in zip(t.primes, t.tight, strict=True)]
        rest = np.array([extremes(size, N, e)[kind] for e, size in enumerate(sizes)])
        whole_rest = rest.copy()
        finish_limbs(0, count, 0, whole_rest.reshape(-1), at, ids(count), t.R, t.C, t.w1, t.p, t.pinv, t.tight)
        out = np.full((count, N), np.nan)
        divide_limbs(
            0, count, 0, source.reshape(-1), at, rest.reshape(-1), at, extra.reshape(-1), at if adds else at * 0 - 1,
            out.reshape(-1), at, ids(count), factors, order if moves else NONE, bool(moves),
            t.R, t.C, t.w1, t.p, t.pinv, t.tight,
        )  # fmt: skip
        for e, (limb, p) in enumerate(zip(out, t.primes, strict=True)):
            assert largest(whole_rest[e]) <= most[e]
            expected = times(whole(source[e]) - whole(whole_rest[e]), -(p // 2), p) + adds * whole(extra[e])
            check(limb, expected[order] if moves else expected, p, p // 2 if adds else 0.66 * p)
