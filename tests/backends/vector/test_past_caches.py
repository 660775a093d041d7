"""Large results are written past the caches if addresses allow it, and are the same to the bit as if they were not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from olac.backends.vector import available
from olac.backends.vector.buffers import ALIGNED, aligned
from olac.backends.vector.conversion import convert
from olac.backends.vector.elementwise import sum_of_products, tensor
from olac.backends.vector.lanes import PAST
from olac.backends.vector.packed import split
from olac.backends.vector.ring import Tables
from olac.backends.vector.switching import add_permuted, divide_limbs, inner
from olac.backends.vector.transforms import AT_REST
from olac.system.arrays import Array
from tests.backends.vector.whole import extremes, prime_below

pytestmark = pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")

LOG, N, LIMBS = 16, 1 << 16, 8
PRIMES = [prime_below(46, LOG), prime_below(50, LOG)]


@pytest.fixture(scope="module")
def made() -> Tables:
    return Tables(LOG, PRIMES)


def limbs(count: int, seed: int) -> Array:
    return np.concatenate([extremes(int(AT_REST * PRIMES[0]), N, seed + e)["random"] for e in range(count)])


def same(size: int, run: Callable[[Array], None]) -> None:
    """The kernel writes the same to an array that starts with a line of the caches and to one that does not."""
    assert size >= PAST
    whole = aligned(size + 1)
    assert whole.ctypes.data % ALIGNED == 0
    found = []
    for first in (0, 1):
        out = whole[first : first + size]
        out[:] = np.nan
        run(out)
        assert not np.any(np.isnan(out))
        found.append(out.copy())
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("exact", [False, True])
def test_conversions(made: Tables, exact: bool) -> None:
    t, at, ids = made, np.arange(LIMBS) * N, np.arange(LIMBS) % 2
    constants = t.conversion((0, 1), (0, 1))
    c, starts = np.tile(constants.c, LIMBS // 2), np.tile(constants.starts, LIMBS // 2)
    y, scratch = limbs(2, 0), np.empty((1, 8 * t.R * (LIMBS + 2)))
    y *= 0.5
    np.rint(y, out=y)
    sums = constants.group, ids, c, 3, starts, constants.quotients, exact, scratch
    tables = t.R, t.C, t.w0, t.p, t.pinv, t.tight
    same(LIMBS * N, lambda out: convert(0, t.C // 8, 0, y, 0, 2, *sums, out, at, *tables))


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_quotients(made: Tables, moves: bool, adds: bool) -> None:
    t, at, ids = made, np.arange(LIMBS) * N, np.arange(LIMBS) % 2
    source, rest, extra = (limbs(LIMBS, 10 * k) for k in range(3))
    order = np.random.default_rng(0).permutation(N).astype(np.int32)
    own = ids, np.full(LIMBS, 3.0), order, moves, t.R, t.C, t.w1, t.p, t.pinv, t.tight
    extraat = at if adds else np.full(LIMBS, -1)
    same(LIMBS * N, lambda out: divide_limbs(0, LIMBS, 0, source, at, rest.copy(), at, extra, extraat, out, at, *own))


def test_sums_over_digits(made: Tables) -> None:
    t, count = made, LIMBS // 2
    at, ids, keyids = np.arange(count) * N, np.arange(count) % 2, np.arange(count)
    key = np.concatenate([extremes(PRIMES[0] // 2, N, 20 + e)["random"] for e in range(2 * count)])
    low, high = np.empty(2 * count * N, dtype=np.int32), np.empty(2 * count * N, dtype=np.int32)
    split(key, low, high)
    own, starts = limbs(count, 30), t.inner_starts(1)[ids]
    nothing, large = np.empty(0, dtype=np.int8), np.zeros(count, dtype=bool)

    def run(out: Array) -> None:
        inner(
            0, count, 0, own, 0, own, at, np.full(count, N), 1, 1, low, nothing, high, count, keyids, large, 0, count,
            keyids, ids, starts, out, 0, 1, N, t.p, t.pinv,
        )  # fmt: skip

    same(2 * count * N, run)


def test_products_of_ciphertexts(made: Tables) -> None:
    t, stride = made, 2 * N
    x, y = limbs(4, 40), limbs(4, 50)
    size = 3 * stride + PAST

    def run(out: Array) -> None:
        out[:] = 0.0
        tensor(0, 2, 0, x, 0, stride, y, 0, stride, out, 0, PAST // 2, False, N, t.p, t.pinv)

    same(size, run)


def test_sums_of_products(made: Tables) -> None:
    t, stride = made, PAST // 2
    x, y, base = limbs(4, 60), limbs(2, 70), np.zeros(1)
    y *= 0.5
    np.rint(y, out=y)
    terms = np.array([[x.ctypes.data, 2 * N, y.ctypes.data, 0]] * 2, dtype=np.int64)
    _, starts = t.product_starts(2)

    def run(out: Array) -> None:
        out[:] = 0.0
        sum_of_products(0, 2, 0, terms, base, 0, False, starts, out, stride, t.R, t.C, t.p, t.pinv)

    same(2 * stride, run)


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("lifts", [False, True])
def test_rotations(made: Tables, moves: bool, lifts: bool) -> None:
    t, count = made, LIMBS // 2
    ids, places = np.arange(count) % 2, np.arange(count)
    source, c0, special = limbs(2 * count, 80), limbs(count, 90), np.full(count, 5.0)
    order = np.random.default_rng(0).permutation(N).astype(np.int32)
    scratch = np.empty((1, N))

    def run(out: Array) -> None:
        add_permuted(
            0, 2 * count, 0, source, 0, ids, c0, 0, lifts, special, out, 0, False, order, moves, count, places,
            scratch, N, t.p, t.pinv,
        )  # fmt: skip

    same(2 * count * N, run)
