"""Kernels that work value by value, on limbs that begin where offsets say.

Operands are at most 3/4 p in size if nothing else is said, and so are results: those of `reduced` are centred, as sums
here stay below 2^52, and for those of `product` see the table of `arithmetic`. For items lo ... hi - 1, `ids` is the
prime of each. New results of at least `PAST` doubles are written past the caches.
"""

from __future__ import annotations

from typing import Any

from olac.backends.vector.addresses import load64
from olac.backends.vector.arithmetic import MAGIC, product, reduced
from olac.backends.vector.compiled import kernel, wide
from olac.backends.vector.conversion import finish
from olac.backends.vector.lanes import LANES, PAST, fence, load, put, splat, store, streams, vadd, vfma, vsub
from olac.backends.vector.transforms import forward_columns, forward_rows
from olac.system.arrays import Array as Floats
from olac.system.arrays import Index

MOST_QUOTIENT = 2.0**50
"""Integers of at most so many times the prime are taken modulo it by one reduction."""


@kernel("void(i8,i8,i8,f8[::1],i8[::1],f8[::1],i8[::1],f8[::1],i8[::1],i8[::1],b1,i8,f8[::1],f8[::1])")
def add_limbs(
    lo: int,
    hi: int,
    worker: int,
    a: Floats,
    aat: Index,
    b: Floats,
    bat: Index,
    out: Floats,
    outat: Index,
    ids: Index,
    minus: bool,
    N: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """out = a + b, or a - b with `minus`, centred, if all sums are below 2^52 in size. out may be a or b."""
    wide()
    magic = splat(MAGIC)
    for e in range(lo, hi):
        j = ids[e]
        p1, pinv1 = splat(p[j]), splat(pinv[j])
        x, y, o = aat[e], bat[e], outat[e]
        if minus:
            for k in range(0, N, 8):
                store(out, o + k, reduced(vsub(load(a, x + k), load(b, y + k)), pinv1, p1, magic))
        else:
            for k in range(0, N, 8):
                store(out, o + k, reduced(vadd(load(a, x + k), load(b, y + k)), pinv1, p1, magic))


@kernel("void(i8,i8,i8,f8[::1],i8[::1],f8[::1],f8[::1],i8[::1],i8[::1],i8,f8[::1],f8[::1])")
def add_constant(
    lo: int,
    hi: int,
    worker: int,
    a: Floats,
    aat: Index,
    constants: Floats,
    out: Floats,
    outat: Index,
    ids: Index,
    N: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """out = a + a centred constant of each limb, centred. out may be a."""
    wide()
    magic = splat(MAGIC)
    for e in range(lo, hi):
        j = ids[e]
        p1, pinv1, f = splat(p[j]), splat(pinv[j]), splat(constants[e])
        x, o = aat[e], outat[e]
        for k in range(0, N, 8):
            store(out, o + k, reduced(vadd(load(a, x + k), f), pinv1, p1, magic))


@kernel("void(i8,i8,i8,f8[::1],i8[::1],f8[::1],f8[::1],i8[::1],i8[::1],b1,i8,f8[::1],f8[::1])")
def times_constant(
    lo: int,
    hi: int,
    worker: int,
    a: Floats,
    aat: Index,
    constants: Floats,
    out: Floats,
    outat: Index,
    ids: Index,
    more: bool,
    N: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """out = a times a centred constant of each limb, added to out with `more`. out may be a.

    Results are at most p (1/2 + 3 / 32), below 0.6 p; with `more` they are centred, as sums are at most 1.35 p.
    Without `more`, a may be as large as `product` takes it.
    """
    wide()
    magic = splat(MAGIC)
    for e in range(lo, hi):
        j = ids[e]
        p1, pinv1, f = splat(p[j]), splat(pinv[j]), splat(constants[e])
        x, o = aat[e], outat[e]
        if more:
            for k in range(0, N, 8):
                y = vadd(load(out, o + k), product(load(a, x + k), f, pinv1, p1, magic))
                store(out, o + k, reduced(y, pinv1, p1, magic))
        else:
            for k in range(0, N, 8):
                store(out, o + k, product(load(a, x + k), f, pinv1, p1, magic))


@kernel("void(i8,i8,i8,f8[::1],i8[::1],f8[::1],i8[::1],f8[::1],i8[::1],i8[::1],b1,i8,f8[::1],f8[::1])")
def times_limbs(
    lo: int,
    hi: int,
    worker: int,
    a: Floats,
    aat: Index,
    b: Floats,
    bat: Index,
    out: Floats,
    outat: Index,
    ids: Index,
    more: bool,
    N: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """out = a b, added to out with `more`. out may be a or b.

    Results are at most p (1/2 + 9 / 64), below 0.65 p; with `more` they are centred, as sums are at most 1.4 p. For
    loose primes a may be at most 11 p: results are then at most p (1/2 + 8.25 / 64), below 0.63 p.
    """
    wide()
    magic = splat(MAGIC)
    for e in range(lo, hi):
        j = ids[e]
        p1, pinv1 = splat(p[j]), splat(pinv[j])
        x, y, o = aat[e], bat[e], outat[e]
        if more:
            for k in range(0, N, 8):
                z = vadd(load(out, o + k), product(load(a, x + k), load(b, y + k), pinv1, p1, magic))
                store(out, o + k, reduced(z, pinv1, p1, magic))
        else:
            for k in range(0, N, 8):
                store(out, o + k, product(load(a, x + k), load(b, y + k), pinv1, p1, magic))


@kernel("void(i8,i8,i8,f8[::1],i8,i8,f8[::1],i8,i8,f8[::1],i8,i8,b1,i8,f8[::1],f8[::1])")
def tensor(
    lo: int,
    hi: int,
    worker: int,
    a: Floats,
    aat: int,
    astride: int,
    b: Floats,
    bat: int,
    bstride: int,
    out: Floats,
    outat: int,
    outstride: int,
    more: bool,
    N: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """The three polynomials a0 b0, a0 b1 + a1 b0, a1 b1, added to out with `more`, for primes lo ... hi - 1.

    Products are at most 0.65 p, as those of `times_limbs`. The sum of two and of what is added to, at most 2.1 p, is
    below 2^52, and so the second polynomial is centred. So are the others with `more`.
    """
    wide()
    magic = splat(MAGIC)
    past = not more and 3 * outstride >= PAST and outstride % LANES == 0 and streams(out, outat)
    for j in range(lo, hi):
        p1, pinv1 = splat(p[j]), splat(pinv[j])
        x, y, o = aat + j * N, bat + j * N, outat + j * N
        for k in range(0, N, 8):
            a0, a1 = load(a, x + k), load(a, x + astride + k)
            b0, b1 = load(b, y + k), load(b, y + bstride + k)
            d0 = product(a0, b0, pinv1, p1, magic)
            d1 = vadd(product(a0, b1, pinv1, p1, magic), product(a1, b0, pinv1, p1, magic))
            d2 = product(a1, b1, pinv1, p1, magic)
            if more:
                d0 = reduced(vadd(d0, load(out, o + k)), pinv1, p1, magic)
                d1 = vadd(d1, load(out, o + outstride + k))
                d2 = reduced(vadd(d2, load(out, o + 2 * outstride + k)), pinv1, p1, magic)
            put(out, o + k, d0, past)
            put(out, o + outstride + k, reduced(d1, pinv1, p1, magic), past)
            put(out, o + 2 * outstride + k, d2, past)
    if past:
        fence()


@kernel("void(i8,i8,i8,f8[::1],i8[::1],f8[::1],i8,f8[::1],i8[::1],i8[::1],i8,i8,f8[::1],f8[::1])")
def add_encoded(
    lo: int,
    hi: int,
    worker: int,
    a: Floats,
    aat: Index,
    b: Floats,
    repeat: int,
    out: Floats,
    outat: Index,
    ids: Index,
    R: int,
    C: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """out = a + b, centred, where 2^repeat rows of eight values of b after one another are the same, and there once."""
    wide()
    magic = splat(MAGIC)
    kept = R * C >> repeat
    for e in range(lo, hi):
        j = ids[e]
        p1, pinv1 = splat(p[j]), splat(pinv[j])
        x, y, o = aat[e], e * kept, outat[e]
        for row in range(R * C // 8):
            z = vadd(load(a, x + 8 * row), load(b, y + 8 * (row >> repeat)))
            store(out, o + 8 * row, reduced(z, pinv1, p1, magic))


@kernel("void(i8,i8,i8,i8[:,::1],f8[::1],i8,b1,f8[::1],f8[::1],i8,i8,i8,f8[::1],f8[::1])")
def sum_of_products(
    lo: int,
    hi: int,
    worker: int,
    terms: Index,
    base: Floats,
    basestride: int,
    more: bool,
    starts: Floats,
    out: Floats,
    outstride: int,
    R: int,
    C: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """Both polynomials of the sum of ciphertexts times plaintexts, for primes lo ... hi - 1.

    Ciphertexts and the base are at most 3/4 p, plaintexts are centred. Results are at most p / 2 + 1.

    Args:
        terms: (terms, 4): the address of a ciphertext, how far its polynomials are apart, the address of a plaintext,
            and its `repeat`: 2^repeat rows of eight values of it after one another are the same and are there once.
        base, basestride, more: with `more`, both polynomials of a sum that is added.
        starts: for each prime what the sums start with, see `Tables.product_starts`.
    """
    wide()
    magic, zero = splat(MAGIC), splat(0.0)
    N = R * C
    past = 2 * outstride >= PAST and outstride % LANES == 0 and streams(out, 0)
    for e in range(lo, hi):
        p1, pinv1, start = splat(p[e]), splat(pinv[e]), splat(starts[e])
        for row in range(N // 8):
            k = e * N + 8 * row
            t0, t1, r0, r1 = start, start, zero, zero
            if more:
                r0, r1 = load(base, k), load(base, basestride + k)
            for i in range(len(terms)):
                a, repeat = terms[i, 0], terms[i, 3]
                w = load64(terms[i, 2], (e * N >> repeat) + 8 * (row >> repeat))
                x = load64(a, k)
                t = vfma(x, w, t0)
                r0 = vadd(r0, vfma(x, w, vsub(t0, t)))
                t0 = t
                x = load64(a, terms[i, 1] + k)
                t = vfma(x, w, t1)
                r1 = vadd(r1, vfma(x, w, vsub(t1, t)))
                t1 = t
            put(out, k, finish(t0, r0, start, pinv1, p1, magic), past)
            put(out, outstride + k, finish(t1, r1, start, pinv1, p1, magic), past)
    if past:
        fence()


@kernel("void(i8,i8,i8,f8[::1],f8[::1],i8[::1],i8[::1],f8[:,::1],i8,i8,i8,f8[::1],f8[:,::1],f8[::1],f8[::1],b1[::1])")
def transform_integers(
    lo: int,
    hi: int,
    worker: int,
    coefficients: Floats,
    out: Floats,
    outat: Index,
    ids: Index,
    scratch: Floats,
    R: int,
    C: int,
    W: int,
    w0: Floats,
    w1: Floats,
    p: Floats,
    pinv: Floats,
    tight: Any,
) -> None:
    """A polynomial of integer coefficients in coefficient order, to values modulo the primes of limbs lo ... hi - 1.

    Coefficients are integers of at most 2^50 p: `reduced` leaves at most p (1/2 + 1/8). Results are reduced again after
    the transform, from at most 11 p, which is below 2^52, and so they are centred.

    Args:
        R, C, W: the polynomial has R C coefficients, and the roots are those of R W.
    """
    wide()
    N = R * C
    magic = splat(MAGIC)
    room = scratch[worker]
    for e in range(lo, hi):
        j = ids[e]
        p1, pinv1 = splat(p[j]), splat(pinv[j])
        for column in range(C // 8):
            for row in range(R):
                store(room, 8 * row, reduced(load(coefficients, 8 * (column * R + row)), pinv1, p1, magic))
            forward_columns(
                room, 0, 8, room, 8 * R, out, outat[e], column, R, C, w0, j * R, p[j], pinv[j], tight[j], False
            )
        forward_rows(out, outat[e], R, C, W, w1[j], 0, p[j], pinv[j], tight[j])
        o = outat[e]
        for k in range(0, N, 8):
            store(out, o + k, reduced(load(out, o + k), pinv1, p1, magic))
