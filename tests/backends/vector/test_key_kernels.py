"""Kernels of keys against whole numbers, bit for bit, on random and extreme operands."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from olac.backends.vector import available
from olac.backends.vector.key_kernels import in_word_order, join_words, masked, split_words, take_below
from olac.backends.vector.packed import split
from olac.ckks.special import ONE_BYTE, TWO_BYTES
from olac.ckks.words import Words
from tests.backends.vector.whole import BITS, prime_below, shape, tables, times, value_order

pytestmark = pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")

LIMITS = [(ONE_BYTE, np.int8), (TWO_BYTES, np.int16), (1 << 50, np.int32), (1 << 37, np.int8), (1 << 37, np.int32)]


def words(prime: int, count: int, seed: int = 0) -> Words:
    """Random ones, with those that round differently: at the ends, around the half, and around halves of 2^32."""
    half = prime // 2
    edges = [0, 1, half - 1, half, half + 1, prime - 2, prime - 1]
    edges += [(sign * ((1 << 31) + more)) % prime for sign in (1, -1, 3, -3) for more in (-1, 0, 1)]
    out = np.random.default_rng(seed).integers(0, prime, count, dtype=np.uint64)
    out[: len(edges)] = edges
    out[-len(edges) :] = edges
    return out


@pytest.mark.parametrize("log_ring", [8, 11, 16])
@pytest.mark.parametrize(("limit", "kind"), LIMITS)
def test_words_are_centred_and_split(log_ring: int, limit: int, kind: Any) -> None:
    p, n = limit - 1, 1 << log_ring
    given, own = words(p, n), shape(log_ring)
    low, high = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=kind)
    split_words(given, float(p), *own, low, high)
    signed = given.astype(np.int64)
    ordered = np.empty(n, dtype=np.int64)
    ordered[value_order(log_ring)] = np.where(signed > p // 2, signed - p, signed)
    assert np.array_equal(high.astype(np.int64) * (1 << 32) + low, ordered)
    back = np.zeros(n, dtype=np.uint64)
    join_words(low, high, float(p), *own, back)
    assert np.array_equal(back, given)
    plain = np.zeros(n, dtype=np.int32), np.zeros(n, dtype=kind)
    split(ordered.astype(np.float64), *plain)
    assert np.array_equal(plain[0], low) and np.array_equal(plain[1], high)


@pytest.mark.parametrize("log_ring", [8, 11, 16])
def test_the_order_of_words(log_ring: int) -> None:
    n = 1 << log_ring
    values, out = np.random.default_rng(0).normal(size=n), np.zeros(n)
    in_word_order(values, out, *shape(log_ring))
    assert np.array_equal(out, values[value_order(log_ring)])


@pytest.mark.parametrize("bits", BITS)
def test_masked_secrets(bits: int) -> None:
    """Words as large as they can be, and errors of nearly twice the prime."""
    p, n = prime_below(bits, 8), 256
    rest = words(p, n, 3)
    most, none = np.full(n, p - 1, dtype=np.uint64), np.zeros(n, dtype=np.uint64)
    for a, s, t in itertools.product((words(p, n, 1), most, none), (words(p, n, 2)[::-1].copy(), most), (rest, most)):
        for error, factor, has in itertools.product((2.0 * p - 1, 1.0 - 2 * p, 21.0), (p // 2, -(p // 2)), (0, 1)):
            out = np.full(n, 1 << 63, dtype=np.uint64)
            masked(a, np.full(n, error), s, t, float(factor), bool(has), float(p), 1.0 / p, out)
            signed = [x.astype(np.int64) for x in (a, s, t)]
            expected = int(error) % p - times(signed[0], signed[1], p) + has * times(signed[2], factor % p, p)
            assert np.array_equal(out, np.mod(expected, p).astype(np.uint64))


@pytest.mark.parametrize("prime", [97, (1 << 37) - 1, (1 << 37) + 1, (1 << 49) + 1, (1 << 50) - 1])
@pytest.mark.parametrize("size", [1, 7, 300, 1000])
def test_streams_that_end_before_and_after_the_residues(prime: int, size: int) -> None:
    random, count = np.random.default_rng(size), 300
    mask = (1 << prime.bit_length()) - 1
    out, there, expected = np.zeros(count, dtype=np.uint64), 0, []
    while there < count:
        stream = random.integers(0, 1 << 64, size, dtype=np.uint64)
        expected += [word for word in (int(word) & mask for word in stream) if word < prime]
        there = take_below(stream, np.uint64(mask), np.uint64(prime), out, there)
        assert there == min(count, len(expected))
    assert out.tolist() == expected[:count]
    assert take_below(stream, np.uint64(mask), np.uint64(prime), out, there) == count
    assert out.tolist() == expected[:count]


def test_transforms_for_keys_are_those_of_values() -> None:
    t = tables(9, 37, 46, 50)
    given = np.random.default_rng(0).integers(-21, 22, t.N).astype(np.int8)
    found = [row.copy() for row in t.transform(given, t.primes)]
    values = t.values(given.astype(np.float64), t.indices(t.primes))
    assert np.array_equal(np.array(found), values[:, t.order])
