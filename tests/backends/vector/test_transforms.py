"""Transforms, bit for bit, against values of polynomials in whole numbers, and the sizes that docstrings state."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from olac.backends.vector import available
from olac.backends.vector.ring import Tables
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
from olac.system.arrays import Array
from tests.backends.vector.reference import values as values_by_definition
from tests.backends.vector.whole import (
    BITS,
    Whole,
    check,
    coefficient_order,
    extremes,
    growing,
    largest,
    least_root,
    powers,
    prime_below,
    reversed_bits,
    shape,
    tables,
    times,
    value_order,
    values,
    whole,
)

pytestmark = pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")

CASES = [(log_ring, bits) for log_ring in (7, 8, 9, 10, 11) for bits in BITS if bits > log_ring + 2]
CASES += [(12, 46), (12, 50), (13, 30), (13, 50), (14, 46), (14, 49), (15, 46), (15, 50), (16, 46), (16, 50)]
CASES += [(17, 46)]
TIGHT = [47, 49, 50]


def few(log_ring: int) -> int:
    """How many kinds of operands: less for large rings."""
    return 7 if log_ring <= 9 else 3 if log_ring <= 12 else 2 if log_ring <= 14 else 1


def forward(t: Tables, given: Array, tight: bool | None = None) -> Array:
    out, s = np.full(t.N, np.nan), np.empty(8 * t.R)
    own = t.p[0], t.pinv[0], t.tight[0] if tight is None else tight
    forward_transform(given, 0, s, 0, out, 0, t.R, t.C, t.w0, 0, t.w1[0], 0, *own)
    return out


def inverse(t: Tables, given: Array, factor: int = 1) -> Array:
    out, s = np.full(t.N, np.nan), np.empty(8 * t.R)
    first, second = t.inverse_factors([factor], [0])[0]
    own = t.p[0], t.pinv[0], t.tight[0]
    inverse_transform(given, 0, s, 0, out, 0, t.R, t.C, t.i0, 0, t.i1[0], 0, first, second, *own)
    return out


def most_after(stages: int) -> float:
    """Most that loose residues are after so many stages, in units of p."""
    most = AT_REST
    for _ in range(stages):
        most += 0.5 + most / 127
    return most


def operands(log_ring: int, p: int, most: int) -> Iterator[Array]:
    """In coefficient order, or in any other."""
    place = np.empty(1 << log_ring)
    place[coefficient_order(log_ring)] = growing(log_ring, p, most)
    yield place
    kinds = extremes(most, 1 << log_ring, seed=log_ring)
    for kind in list(kinds)[: few(log_ring)]:
        yield kinds[kind]


# The reference itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [20, 37, 46, 50])
def test_products_in_whole_numbers_are_those_of_python(bits: int) -> None:
    p = prime_below(bits, 8)
    random = np.random.default_rng(bits)
    a, b = random.integers(-p, p, (2, 1000), endpoint=True)
    a[:4], b[:4] = (p - 1, p - 1, 1 - p, p), (p - 1, 1 - p, 1 - p, p - 1)
    assert [int(x) for x in times(a, b, p)] == [int(x) * int(y) % p for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("log_ring", [7, 8])
def test_the_reference_is_the_values_of_a_polynomial(log_ring: int) -> None:
    n, p = 1 << log_ring, prime_below(50, log_ring)
    a = np.random.default_rng(0).integers(-p, p, n)
    root, found = least_root(log_ring, p), values(a, log_ring, p)
    assert pow(root, n, p) == p - 1 and root == min(pow(root, k, p) for k in range(1, 2 * n, 2))
    _, C = shape(log_ring)
    for k in range(0, n, 3):
        point = pow(root, 2 * int(f"{k:0{log_ring}b}"[::-1], 2) + 1, p)
        r, c = divmod(k, C)
        at = (r // 8 * C + c) * 8 + r % 8
        assert int(found[at]) == sum(int(x) * pow(point, i, p) for i, x in enumerate(a)) % p
    natural = np.empty(n, dtype=object)
    natural[reversed_bits(log_ring)] = found[value_order(log_ring)]
    assert np.array_equal(natural, values_by_definition(a.astype(object), root, p))


# Tables --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log_ring", "bits"), [(7, 20), (8, 50), (9, 46), (11, 50), (13, 46)])
def test_roots_are_centred_and_right(log_ring: int, bits: int) -> None:
    t, p, n = tables(log_ring, bits), prime_below(bits, log_ring), 1 << log_ring
    R, C = shape(log_ring)
    root = least_root(log_ring, p)
    for first, second, w in ((t.w0, t.w1, root), (t.i0, t.i1, pow(root, -1, p))):
        expected = powers(w, n, p)[reversed_bits(log_ring)]
        check(first, expected[:R], p, p // 2)
        check(second[0, :C], expected[:C], p, p // 2)
        twists = second[0, C:].reshape(R // 8, log_ring // 2, 8)
        for stage in range(log_ring // 2):
            size = 1 << stage
            of_stage = expected[R * size : 2 * R * size].reshape(R, size)
            check(twists[:, stage].reshape(R), of_stage[:, 0], p, p // 2)
            assert np.array_equal(times(of_stage[:, :1], expected[:size], p), of_stage)
    assert np.array_equal(t.order, value_order(log_ring))
    assert not t.tight[0] if bits <= 46 else t.tight[0]


def test_what_no_tables_are_made_for() -> None:
    with pytest.raises(ValueError, match="a prime of 51 bits; the vector engine takes at most 50"):
        Tables(8, [prime_below(46, 8), prime_below(51, 8)])
    with pytest.raises(ValueError, match=r"a dimension of 2\^6; the vector engine takes at least 2\^7"):
        Tables(6, [prime_below(46, 8)])


# Transforms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("log_ring", "bits"), CASES)
def test_forward(log_ring: int, bits: int) -> None:
    t, p = tables(log_ring, bits), prime_below(bits, log_ring)
    order = coefficient_order(log_ring)
    most = p // 2 if t.tight[0] else min(LAZY, most_after(log_ring)) * p
    for given in operands(log_ring, p, int(AT_REST * p)):
        check(forward(t, given), values(whole(given)[order], log_ring, p), p, most)


@pytest.mark.parametrize(("log_ring", "bits"), [(8, 46), (11, 37), (14, 46), (16, 46), (17, 46)])
def test_growth_is_nearly_as_large_as_the_bound(log_ring: int, bits: int) -> None:
    t, p = tables(log_ring, bits), prime_below(bits, log_ring)
    given = next(operands(log_ring, p, int(AT_REST * p)))
    found = largest(forward(t, given)) / p
    assert AT_REST + 0.499 * log_ring <= found <= most_after(log_ring) <= LAZY


@pytest.mark.parametrize(("log_ring", "bits"), [(8, 46), (9, 50), (12, 46), (13, 50), (17, 46)])
def test_halves_of_forward_transforms(log_ring: int, bits: int) -> None:
    t, p = tables(log_ring, bits), prime_below(bits, log_ring)
    R, C = shape(log_ring)
    own = t.p[0], t.pinv[0], t.tight[0]
    for given in operands(log_ring, p, int(AT_REST * p)):
        out, s = np.empty(t.N), np.empty(8 * R)
        for column in range(C // 8):
            forward_columns(given, 8 * R * column, 8, s, 0, out, 0, column, R, C, t.w0, 0, *own, False)
        assert largest(out) <= (1.7 * p if t.tight[0] else min(6.0, most_after(R.bit_length() - 1)) * p)
        forward_rows(out, 0, R, C, C, t.w1[0], 0, *own)
        assert np.array_equal(out, forward(t, given))


@pytest.mark.parametrize(
    ("log_ring", "bits", "repeat"), [(8, 46, 1), (9, 49, 1), (10, 50, 2), (11, 37, 2), (12, 47, 1), (12, 46, 3)]
)
def test_forward_transforms_of_a_smaller_ring(log_ring: int, bits: int, repeat: int) -> None:
    """With the tables of the larger one: values of polynomials in a power of X."""
    t, p, small = tables(log_ring, bits), prime_below(bits, log_ring), log_ring - repeat
    R, C = shape(log_ring)
    columns, k = C >> repeat, np.arange(1 << small)
    own = t.p[0], t.pinv[0], t.tight[0]
    for given in operands(small, p, int(AT_REST * p)):
        out, s = np.empty(1 << small), np.empty(8 * R)
        for column in range(columns // 8):
            forward_columns(given, 8 * R * column, 8, s, 0, out, 0, column, R, columns, t.w0, 0, *own, False)
        forward_rows(out, 0, R, columns, C, t.w1[0], 0, *own)
        power = np.zeros(t.N, dtype=np.int64)
        power[:: 1 << repeat] = whole(given)[((k % columns // 8) * R + k // columns) * 8 + k % 8]
        rows = values(power, log_ring, p).reshape(-1, 1 << repeat, 8)
        assert np.all(rows == rows[:, :1])
        check(out, rows[:, 0].reshape(-1), p, p // 2 if t.tight[0] else LAZY * p)


@pytest.mark.parametrize(("log_ring", "bits"), [case for case in CASES if case[0] < 17])
def test_inverse(log_ring: int, bits: int) -> None:
    t, p = tables(log_ring, bits), prime_below(bits, log_ring)
    order = coefficient_order(log_ring)
    factor = p // 3
    for given in operands(log_ring, p, int(AT_REST * p)):
        out = inverse(t, given, factor)
        assert largest(out) <= (p // 2 if t.tight[0] else INVERTED * p)
        back = values(whole(out)[order], log_ring, p)
        assert np.array_equal(back, times(whole(given), factor, p))


@pytest.mark.parametrize(("log_ring", "bits"), [(8, 46), (9, 50), (10, 45), (13, 46), (12, 49)])
def test_halves_of_inverse_transforms(log_ring: int, bits: int) -> None:
    t, p = tables(log_ring, bits), prime_below(bits, log_ring)
    R, C = shape(log_ring)
    own = t.p[0], t.pinv[0], t.tight[0]
    first, second = t.inverse_factors([5], [0])[0]
    for given in operands(log_ring, p, int(AT_REST * p)):
        out, s = np.empty(t.N), np.empty(8 * C)
        inverse_rows(given, 0, s, 0, out, 0, R, C, t.i1[0], 0, *own)
        assert largest(out) <= (p // 2 if t.tight[0] else 1.04 * p)
        for column in range(C // 8):
            inverse_columns(out, 0, column, R, t.i0, 0, first, second, *own)
        assert np.array_equal(out, inverse(t, given, 5))


@pytest.mark.parametrize("bits", TIGHT)
def test_tight_primes_take_all_below_52_bits(bits: int) -> None:
    log_ring = 8
    t, p = tables(log_ring, bits), prime_below(bits, log_ring)
    order = coefficient_order(log_ring)
    for given in operands(log_ring, p, (1 << 52) - 1):
        check(forward(t, given), values(whole(given)[order], log_ring, p), p, p // 2)
        out = inverse(t, given)
        assert largest(out) <= p // 2
        assert np.array_equal(values(whole(out)[order], log_ring, p), np.mod(whole(given), p))


@pytest.mark.parametrize(("log_ring", "bits"), [(7, 46), (8, 50), (11, 46), (13, 50)])
def test_back_and_forth(log_ring: int, bits: int) -> None:
    t, p = tables(log_ring, bits), prime_below(bits, log_ring)
    for given in operands(log_ring, p, p // 2):
        assert np.array_equal(
            np.mod(inverse(t, forward(t, given)[:]) if t.tight[0] else lazy_back(t, given), p), given % p
        )


def lazy_back(t: Tables, given: Array) -> Array:
    """Values are brought to rest before they go back."""
    p, found = t.p[0], whole(forward(t, given))
    return inverse(t, np.mod(found, int(p)).astype(np.float64))


# What the bounds are for ---------------------------------------------------------------------------------------------


def wrong(found: Array, expected: Whole, p: int) -> bool:
    """Whether a result is not an integer, or another one."""
    if not np.array_equal(found, np.rint(found)):
        return True
    return bool(np.any(np.mod([int(x) - int(e) for x, e in zip(found, expected, strict=True)], p)))


def test_a_prime_of_50_bits_needs_reductions() -> None:
    log_ring = 16
    t, p = tables(log_ring, 50), prime_below(50, log_ring)
    given = next(operands(log_ring, p, int(AT_REST * p)))
    expected = values(whole(given)[coefficient_order(log_ring)], log_ring, p)
    assert not wrong(forward(t, given, tight=True), expected, p)
    assert wrong(forward(t, given, tight=False), expected, p)
