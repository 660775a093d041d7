"""Kernels of hybrid key switching (Han and Ki, ePrint 2019/688) and of rescaling, limb by limb.

All arrays are flat, and limbs of N doubles begin where the offsets say. Residues at rest are at most 3/4 p in size; the
transforms of `transforms` may leave 11 p for loose primes, which only the products below read. A sum of products of
digits and centred residues of keys has a `start` that `magic_of` has checked. Results are at most 0.66 p, or centred,
if nothing else is said. Results of at least `PAST` doubles are written past the caches.

Keys are packed (see `packed`): a residue is high 2^32 + low. Both parts are exact as doubles, and so is the sum, an
integer below 2^49.
"""

from __future__ import annotations

from typing import Any

from olac.backends.vector.arithmetic import MAGIC, product, reduced
from olac.backends.vector.compiled import inline, kernel, wide
from olac.backends.vector.conversion import finish
from olac.backends.vector.lanes import (
    PAST,
    fence,
    gather,
    load,
    load_ints,
    put,
    splat,
    store,
    streams,
    vadd,
    vfma,
    vsub,
)
from olac.backends.vector.transforms import forward_rows, inverse_transform
from olac.system.arrays import Array as Floats
from olac.system.arrays import Index


@kernel(
    "void(i8,i8,i8,f8[::1],i8[::1],f8[::1],i8[::1],i8[::1],f8[:,::1],f8[:,::1],i8,i8,f8[::1],f8[:,::1],f8[::1],f8[::1],b1[::1])"
)
def inverse_limbs(
    lo: int,
    hi: int,
    worker: int,
    source: Floats,
    sourceat: Index,
    out: Floats,
    outat: Index,
    ids: Index,
    factors: Floats,
    scratch: Floats,
    R: int,
    C: int,
    w0: Floats,
    w1: Floats,
    p: Floats,
    pinv: Floats,
    tight: Any,
) -> None:
    """Values to coefficients, times N and a factor, for limbs lo ... hi - 1; see `transforms.inverse_transform`.

    Args:
        ids: the prime of each limb.
        factors: (limbs, 2): see `transforms.inverse_columns`.
    """
    room = scratch[worker]
    for e in range(lo, hi):
        j = ids[e]
        inverse_transform(
            source,
            sourceat[e],
            room,
            0,
            out,
            outat[e],
            R,
            C,
            w0,
            j * R,
            w1[j],
            0,
            factors[e, 0],
            factors[e, 1],
            p[j],
            pinv[j],
            tight[j],
        )


@kernel("void(i8,i8,i8,f8[::1],i8[::1],i8[::1],i8,i8,f8[:,::1],f8[::1],f8[::1],b1[::1])")
def finish_limbs(
    lo: int,
    hi: int,
    worker: int,
    out: Floats,
    outat: Index,
    ids: Index,
    R: int,
    C: int,
    w1: Floats,
    p: Floats,
    pinv: Floats,
    tight: Any,
) -> None:
    """The second halves of transforms, in place, for limbs lo ... hi - 1; see `transforms.forward_rows`."""
    for e in range(lo, hi):
        j = ids[e]
        forward_rows(out, outat[e], R, C, C, w1[j], 0, p[j], pinv[j], tight[j])


@inline
def unpacked(low: Any, high: Any, at: int, highat: int, shift: Any) -> Any:
    """Eight residues of a key."""
    return vfma(load_ints(high, highat), shift, load_ints(low, at))


@inline
def inner_limb(
    own: Any,
    ownat: int,
    owner: int,
    digits: Any,
    digitat: int,
    stride: int,
    n: int,
    low: Any,
    lowat: int,
    lowstride: int,
    high: Any,
    highat: int,
    highstride: int,
    start1: float,
    out: Any,
    out0: int,
    out1: int,
    N: int,
    p1: float,
    pinv1: float,
    past: Any,
) -> None:
    """Both polynomials of the sum over digits of digit times key, for one limb; at most p / 2 + 1 in size.

    Args:
        own, ownat, owner: the digit `owner`, if it is not negative, is read there: the ciphertext itself.
        digits, digitat, stride: where the first of the others is, and how far they are apart.
        n: digits.
        low, lowat, lowstride, high, highat, highstride: of a polynomial of the key; the second polynomial of a digit
            follows the first.
    """
    p, pinv, magic, start, shift = splat(p1), splat(pinv1), splat(MAGIC), splat(start1), splat(4294967296.0)
    zero = splat(0.0)
    for k in range(0, N, 8):
        t0, t1, r0, r1 = start, start, zero, zero
        for g in range(n):
            if g == owner:
                x = load(own, ownat + k)
            elif 0 <= owner < g:
                x = load(digits, digitat + (g - 1) * stride + k)
            else:
                x = load(digits, digitat + g * stride + k)
            a, b = lowat + 2 * g * lowstride + k, highat + 2 * g * highstride + k
            w = unpacked(low, high, a, b, shift)
            t = vfma(x, w, t0)
            r0 = vadd(r0, vfma(x, w, vsub(t0, t)))
            t0 = t
            w = unpacked(low, high, a + lowstride, b + highstride, shift)
            t = vfma(x, w, t1)
            r1 = vadd(r1, vfma(x, w, vsub(t1, t)))
            t1 = t
        put(out, out0 + k, finish(t0, r0, start, pinv, p, magic), past)
        put(out, out1 + k, finish(t1, r1, start, pinv, p, magic), past)


@kernel(
    "void(i8,i8,i8,f8[::1],i8,f8[::1],i8[::1],i8[::1],i8,i8,i4[::1],i1[::1],i2[::1],i8,i8[::1],b1[::1],i8,i8,i8[::1],i8[::1],f8[::1],f8[::1],i8,i8,i8,f8[::1],f8[::1])",
    "void(i8,i8,i8,f8[::1],i8,f8[::1],i8[::1],i8[::1],i8,i8,i4[::1],i1[::1],i4[::1],i8,i8[::1],b1[::1],i8,i8,i8[::1],i8[::1],f8[::1],f8[::1],i8,i8,i8,f8[::1],f8[::1])",
)
def inner(
    lo: int,
    hi: int,
    worker: int,
    own: Floats,
    ownat: int,
    digits: Floats,
    digitat: Index,
    stride: Index,
    n: int,
    alpha: int,
    low: Any,
    high8: Any,
    high16: Any,
    keylimbs: int,
    place: Index,
    small: Any,
    count8: int,
    count16: int,
    keyids: Index,
    ids: Index,
    starts: Floats,
    out: Floats,
    outat: int,
    limbs: int,
    N: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """The sum over digits of digit times key, for limbs lo ... hi - 1; at most p / 2 + 1 in size.

    A limb's own digit is at most 3/4 p, others are as `transforms.forward_rows` leaves them, and keys are centred.

    Args:
        own, ownat: the ciphertext's polynomial that was decomposed, limb after limb.
        digits, digitat, stride: where, for each limb, the first digit that is not its own is, and how far they are
            apart.
        n, alpha: digits, and limbs of each.
        low, high8, high16: of the key.
        keylimbs, place, small, count8, count16: of the key: primes, the place of each among those of its kind, whether
            its high part is one byte, the number of primes of each kind.
        keyids: for each limb its place in the key.
        ids: for each limb its prime.
        starts: for each limb what `magic_of` made for sums as large as these.
        out, outat: two polynomials, limb after limb.
        limbs: of the ciphertext; those after them are special primes.
    """
    wide()
    count = len(ids)
    past = 2 * count * N >= PAST and streams(out, outat)
    for e in range(lo, hi):
        j, x = ids[e], keyids[e]
        owner = e // alpha if e < limbs else -1
        out0, out1 = outat + e * N, outat + (count + e) * N
        if small[x]:
            inner_limb(
                own,
                ownat + e * N,
                owner,
                digits,
                digitat[e],
                stride[e],
                n,
                low,
                x * N,
                keylimbs * N,
                high8,
                place[x] * N,
                count8 * N,
                starts[e],
                out,
                out0,
                out1,
                N,
                p[j],
                pinv[j],
                past,
            )
        else:
            inner_limb(
                own,
                ownat + e * N,
                owner,
                digits,
                digitat[e],
                stride[e],
                n,
                low,
                x * N,
                keylimbs * N,
                high16,
                place[x] * N,
                count16 * N,
                starts[e],
                out,
                out0,
                out1,
                N,
                p[j],
                pinv[j],
                past,
            )
    if past:
        fence()


@kernel(
    "void(i8,i8,i8,f8[::1],i8,i8[::1],f8[::1],i8,b1,f8[::1],f8[::1],i8,b1,i4[::1],b1,i8,i8[::1],f8[:,::1],i8,f8[::1],f8[::1])"
)
def add_permuted(
    lo: int,
    hi: int,
    worker: int,
    source: Floats,
    sourceat: int,
    ids: Index,
    c0: Floats,
    c0at: int,
    with_c0: bool,
    special: Floats,
    out: Floats,
    outat: int,
    add: bool,
    order: Any,
    permute: bool,
    limbs: int,
    places: Index,
    scratch: Floats,
    N: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """out = out + automorphism of (source + (P c0, 0)), modulo the primes of both, for limbs lo ... hi - 1 of 2 count.

    All operands are at most 3/4 p. Sums are at most 1.4 p with P c0, and 1.5 p with out: reduced, they are centred.
    What is not added to anything is moved as it is.

    Args:
        source, sourceat: two polynomials, limb after limb, `ids` the primes of each.
        c0, c0at, with_c0: added to the first polynomial, times `special`, P modulo each prime.
        out, outat: two polynomials of the same primes.
        add: whether out is added to, or set.
        order, permute: where each value of the result comes from.
        limbs: those that c0 has.
        places: unused limbs of out are not written: the place of each limb in out.
    """
    wide()
    count = len(ids)
    magic = splat(MAGIC)
    room = scratch[worker]
    past = not add and 2 * count * N >= PAST and streams(out, outat)
    for item in range(lo, hi):
        h, e = item // count, item % count
        j = ids[e]
        p1, pinv1 = splat(p[j]), splat(pinv[j])
        a, o = sourceat + item * N, outat + (h * count + places[e]) * N
        lift = with_c0 and h == 0 and e < limbs
        if lift:
            f = splat(special[e])
            for k in range(0, N, 8):
                x = vadd(load(source, a + k), product(load(c0, c0at + e * N + k), f, pinv1, p1, magic))
                store(room, k, reduced(x, pinv1, p1, magic))
        given, b = (room, 0) if lift else (source, a)
        if not permute:
            if add:
                for k in range(0, N, 8):
                    store(out, o + k, reduced(vadd(load(out, o + k), load(given, b + k)), pinv1, p1, magic))
            else:
                for k in range(0, N, 8):
                    put(out, o + k, load(given, b + k), past)
        elif add:
            for k in range(0, N, 8):
                x = vadd(load(out, o + k), gather(given, b, order, k))
                store(out, o + k, reduced(x, pinv1, p1, magic))
        else:
            for k in range(0, N, 8):
                put(out, o + k, gather(given, b, order, k), past)
    if past:
        fence()


@kernel(
    "void(i8,i8,i8,f8[::1],i8[::1],f8[::1],i8[::1],f8[::1],i8[::1],f8[::1],i8[::1],i8[::1],f8[::1],i4[::1],b1,i8,i8,f8[:,::1],f8[::1],f8[::1],b1[::1])"
)
def divide_limbs(
    lo: int,
    hi: int,
    worker: int,
    source: Floats,
    sourceat: Index,
    rest: Floats,
    restat: Index,
    extra: Floats,
    extraat: Index,
    out: Floats,
    outat: Index,
    ids: Index,
    inverse: Floats,
    order: Any,
    permute: bool,
    R: int,
    C: int,
    w1: Floats,
    p: Floats,
    pinv: Floats,
    tight: Any,
) -> None:
    """out = automorphism of ((source - rest) inverse + extra), for limbs lo ... hi - 1; `rest` is half transformed.

    source is at most 3/4 p, rest is as `conversion.convert` leaves it, and extra is at most what a transform leaves.
    After the transform of rest, source - rest is at most 11.75 p for loose primes and 1.25 p for tight ones. Times a
    centred factor that is at most p (1/2 + 11.75 / 128) or p (1/2 + 1.25 / 8), below 0.66 p. With `extra` it is at most
    11.7 p for loose primes and 1.2 p for tight ones before it is reduced, and centred after.

    Args:
        extra, extraat: added; not if the offset is negative.
        inverse: for each limb the inverse of what is divided by, centred.
        order, permute: where each value of the result comes from.
    """
    wide()
    N = R * C
    magic = splat(MAGIC)
    large = len(ids) * N >= PAST
    for e in range(lo, hi):
        j = ids[e]
        b, a, c, o = restat[e], sourceat[e], extraat[e], outat[e]
        past = large and streams(out, o)
        forward_rows(rest, b, R, C, C, w1[j], 0, p[j], pinv[j], tight[j])
        p1, pinv1, f = splat(p[j]), splat(pinv[j]), splat(inverse[e])
        if permute:
            if c >= 0:
                for k in range(0, N, 8):
                    x = product(vsub(load(source, a + k), load(rest, b + k)), f, pinv1, p1, magic)
                    store(rest, b + k, reduced(vadd(x, load(extra, c + k)), pinv1, p1, magic))
            else:
                for k in range(0, N, 8):
                    store(rest, b + k, product(vsub(load(source, a + k), load(rest, b + k)), f, pinv1, p1, magic))
            for k in range(0, N, 8):
                put(out, o + k, gather(rest, b, order, k), past)
        elif c >= 0:
            for k in range(0, N, 8):
                x = product(vsub(load(source, a + k), load(rest, b + k)), f, pinv1, p1, magic)
                put(out, o + k, reduced(vadd(x, load(extra, c + k)), pinv1, p1, magic), past)
        else:
            for k in range(0, N, 8):
                x = product(vsub(load(source, a + k), load(rest, b + k)), f, pinv1, p1, magic)
                put(out, o + k, x, past)
    if large:
        fence()
