"""The kernels of bootstraps, limb by limb.

`multiply_rotations` computes one level of a transform modulo Q P. Value order (see `olac.backends.vector.transforms`)
consists of panels of 8 C values. An automorphism puts the values of a panel into one other panel, in some order. So a
panel of the result needs one panel of each rotation: the sums over digits of digit times key are computed there, put in
order, and multiplied by the plaintexts of all giant steps while they are in the caches. Keys and plaintexts are read
once, from the first to the last. If slots repeat, so do the values of plaintexts: 2^k rows of eight after one another
are the same. They are stored once.

`combine` makes one value of the sine before it is relinearised.

Bounds: polynomials of the ciphertext are at most 1.1 p in size, or as transforms leave them if baby step 0 has a key;
keys, plaintexts and constants are centred. `starts` are those of sums over digits (`Tables.inner_starts`). P c_0 is at
most 0.8 p, below 2^50, and is summed with the rests, which stay below 2^52. Rotations are at most 0.8 p: sums are
centred but for 1, and P c is at most 0.8 p. `plain_starts` have been checked for sums of `group` products of such
rotations and plaintexts; what was summed before is centred and is summed with the rests.
"""

from __future__ import annotations

from typing import Any

from olac.backends.vector.addresses import gather, int_at, load8, load16, load32, load64
from olac.backends.vector.arithmetic import MAGIC, product, reduced
from olac.backends.vector.compiled import inline, kernel, wide
from olac.backends.vector.conversion import finish
from olac.backends.vector.lanes import load, splat, store, store_ints, vadd, vfma, vmul, vneg, vsub
from olac.system.arrays import Array as Floats
from olac.system.arrays import Index

ONE_BYTE, TWO_BYTES, FOUR_BYTES = 0, 1, 2
"""Kinds of the high parts of a limb."""


@kernel(
    *(
        f"void(i8,i8,i8,f8[::1],i4[::1],i1[::1],{kind}[::1],i8[::1],i8[::1],i8[::1],i8,i8,i8,i8,i8,i8,i8)"
        for kind in ("i2", "i4")
    )
)
def pack_plaintext(
    lo: int,
    hi: int,
    worker: int,
    values: Floats,
    out: Any,
    high8: Any,
    high16: Any,
    lowat: Index,
    highat: Index,
    kinds: Index,
    width: int,
    begin: int,
    count: int,
    place: int,
    repeat: int,
    R: int,
    C: int,
) -> None:
    """Pack one plaintext for `sum_panel`, modulo the primes of limbs lo ... hi - 1.

    A value v is high 2^32 + low, where high is the integer next to v / 2^32, the larger one of two: next to
    (v + 1/4) / 2^32. So low is at least -2^31 and below 2^31. All steps are exact.

    Args:
        values: centred, limb after limb.
        out, high8, high16, lowat, highat: low parts, high parts of one byte and of more, and where each limb begins.
        kinds: of the high parts.
        width: values of a panel, of all plaintexts.
        begin, count, place: where those of a giant step begin in a panel, how many there are, and which this is.
        repeat: of 2^repeat rows of eight values, which are the same, one is packed.
    """
    wide()
    magic, down, up, quarter = splat(MAGIC), splat(2.0**-32), splat(4294967296.0), splat(0.25)
    N, rows = R * C, C >> repeat
    for e in range(lo, hi):
        for panel in range(R // 8):
            for row in range(rows):
                v = load(values, e * N + (panel * C + (row << repeat)) * 8)
                high = vsub(vfma(vadd(v, quarter), down, magic), magic)
                at = panel * width + begin + (row * count + place) * 8
                store_ints(out, lowat[e] + at, vfma(vneg(high), up, v))
                if kinds[e] == ONE_BYTE:
                    store_ints(high8, highat[e] + at, high)
                else:
                    store_ints(high16, highat[e] + at, high)


@inline
def _residues(low: Any, lowat: Any, high: Any, highat: Any, kind: Any, shift: Any) -> Any:
    """Eight packed residues, of arrays at addresses."""
    if kind == ONE_BYTE:
        return vfma(load8(high, highat), shift, load32(low, lowat))
    if kind == TWO_BYTES:
        return vfma(load16(high, highat), shift, load32(low, lowat))
    return vfma(load32(high, highat), shift, load32(low, lowat))


@kernel("void(f8[::1],i8,i8,i8,f8[::1],i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,i8,f8,b1,f8,f8[::1],i8,f8,f8)")
def switch_panel(
    source: Floats,
    ownat: int,
    c0at: int,
    owner: int,
    digits: Floats,
    digitat: int,
    stride: int,
    n: int,
    low: int,
    lowat: int,
    lowstride: int,
    high: int,
    highat: int,
    highstride: int,
    kind: int,
    size: int,
    special: float,
    with_c0: bool,
    start1: float,
    out: Floats,
    outat: int,
    p1: float,
    pinv1: float,
) -> None:
    """Both polynomials of the sum over digits of digit times key, plus (P c0, 0), for `size` values.

    Args:
        source, ownat, c0at: where the polynomial that was decomposed and c0 are.
        owner: the digit that is read at ownat; none if it is negative.
        digits, digitat, stride, n: where the first of the other digits is, how far they are apart, and the number of
            all.
        low, lowat, lowstride, high, highat, highstride, kind: of the key: addresses, where b of digit 0 begins, how far
            polynomials are apart, and the kind of the high parts.
        special, with_c0: P, and whether c0 is added.
        start1: of the sums.
        out, outat: the first polynomial; the second follows after `size`.
    """
    wide()
    p, pinv, magic, start, shift = splat(p1), splat(pinv1), splat(MAGIC), splat(start1), splat(4294967296.0)
    zero, factor = splat(0.0), splat(special)
    for k in range(0, size, 8):
        t0, t1, r0, r1 = start, start, zero, zero
        if with_c0:
            r0 = product(load(source, c0at + k), factor, pinv, p, magic)
        for g in range(n):
            if g == owner:
                x = load(source, ownat + k)
            elif 0 <= owner < g:
                x = load(digits, digitat + (g - 1) * stride + k)
            else:
                x = load(digits, digitat + g * stride + k)
            a, b = lowat + 2 * g * lowstride + k, highat + 2 * g * highstride + k
            w = _residues(low, a, high, b, kind, shift)
            t = vfma(x, w, t0)
            r0 = vadd(r0, vfma(x, w, vsub(t0, t)))
            t0 = t
            w = _residues(low, a + lowstride, high, b + highstride, kind, shift)
            t = vfma(x, w, t1)
            r1 = vadd(r1, vfma(x, w, vsub(t1, t)))
            t1 = t
        store(out, outat + k, finish(t0, r0, start, pinv, p, magic))
        store(out, outat + size + k, finish(t1, r1, start, pinv, p, magic))


@kernel("void(f8[::1],i8,i8,i8[:,::1],i8,i8,i8,i8,i8,i8,i8,i8,f8,f8[::1],i8,i8,f8,f8)")
def sum_panel(
    babies: Floats,
    babiesat: int,
    size: int,
    which: Index,
    giant: int,
    count: int,
    low: int,
    high: int,
    plainat: int,
    kind: int,
    repeat: int,
    group: int,
    start1: float,
    out: Floats,
    out0: int,
    out1: int,
    p1: float,
    pinv1: float,
) -> None:
    """The sum over some baby steps of rotation times plaintext: both polynomials, for one panel.

    Args:
        babies, babiesat, size: the panels of rotations, two polynomials of `size` values each.
        which, giant, count: the baby steps are which[giant, : count].
        low, high, plainat, kind: addresses of packed plaintexts, and where those of this panel begin in both: for each
            row of eight values, `count` rows.
        repeat: 2^repeat rows of eight values have the same plaintexts.
        group: most terms of a sum that is not reduced.
        out, out0, out1: the results, and where the two begin.
    """
    wide()
    p, pinv, magic, start, shift = splat(p1), splat(pinv1), splat(MAGIC), splat(start1), splat(4294967296.0)
    zero = splat(0.0)
    for k in range(0, size, 16):
        t0, t1, t2, t3 = start, start, start, start
        r0, r1, r2, r3 = zero, zero, zero, zero
        place0 = plainat + 8 * count * ((k >> 3) >> repeat)
        place1 = plainat + 8 * count * (((k >> 3) + 1) >> repeat)
        for first in range(0, count, group):
            if first:
                r0, r1 = finish(t0, r0, start, pinv, p, magic), finish(t1, r1, start, pinv, p, magic)
                r2, r3 = finish(t2, r2, start, pinv, p, magic), finish(t3, r3, start, pinv, p, magic)
                t0, t1, t2, t3 = start, start, start, start
            for i in range(first, min(count, first + group)):
                at = babiesat + 2 * which[giant, i] * size + k
                w = _residues(low, place0 + 8 * i, high, place0 + 8 * i, kind, shift)
                x = load(babies, at)
                t = vfma(x, w, t0)
                r0 = vadd(r0, vfma(x, w, vsub(t0, t)))
                t0 = t
                x = load(babies, at + size)
                t = vfma(x, w, t1)
                r1 = vadd(r1, vfma(x, w, vsub(t1, t)))
                t1 = t
                if not repeat:
                    w = _residues(low, place1 + 8 * i, high, place1 + 8 * i, kind, shift)
                x = load(babies, at + 8)
                t = vfma(x, w, t2)
                r2 = vadd(r2, vfma(x, w, vsub(t2, t)))
                t2 = t
                x = load(babies, at + size + 8)
                t = vfma(x, w, t3)
                r3 = vadd(r3, vfma(x, w, vsub(t3, t)))
                t3 = t
        store(out, out0 + k, finish(t0, r0, start, pinv, p, magic))
        store(out, out1 + k, finish(t1, r1, start, pinv, p, magic))
        store(out, out0 + k + 8, finish(t2, r2, start, pinv, p, magic))
        store(out, out1 + k + 8, finish(t3, r3, start, pinv, p, magic))


@kernel(
    "void(i8,i8,i8,f8[::1],i8,i8,f8[::1],i8[::1],i8[::1],i8,i8,i8,i8[:,::1],i8[:,::1],i8[:,::1],i8[:,::1],i8[:,::1],"
    "f8[::1],f8[::1],i8[:,::1],i8[::1],i8[::1],i8[::1],i8[::1],i8,f8[::1],i8,f8[::1],f8[:,::1],i8[::1],i8,"
    "i8,i8,f8[::1],f8[::1])"
)
def multiply_rotations(
    lo: int,
    hi: int,
    worker: int,
    source: Floats,
    c0at: int,
    c1at: int,
    digits: Floats,
    digitat: Index,
    strides: Index,
    n: int,
    alpha: int,
    bare: int,
    addresses: Index,
    lowat: Index,
    highat: Index,
    kinds: Index,
    polynomials: Index,
    special: Floats,
    starts: Floats,
    which: Index,
    counts: Index,
    plain_low: Index,
    plain_high: Index,
    plain_kinds: Index,
    repeat: int,
    plain_starts: Floats,
    group: int,
    out: Floats,
    scratch: Floats,
    ids: Index,
    limbs: int,
    R: int,
    C: int,
    p: Floats,
    pinv: Floats,
) -> None:
    """For each giant step the sum of its plaintexts times rotations by baby steps, for limbs lo ... hi - 1 modulo Q P.

    Args:
        source, c0at, c1at: the ciphertext's polynomials, limb after limb of the chain.
        digits, digitat, strides, n, alpha: c1 decomposed, see `switching.inner`.
        bare: how many of the first baby steps have no key: 1 if baby step 0 is the ciphertext itself, else 0.
        addresses: (babies, 4) of the low parts of the key of each baby step, its high parts of one byte, and of more,
            then of the order of its values.
        lowat, highat, kinds: (babies, limbs) of the keys: where the limb begins, and its kind.
        polynomials: (babies, 3): limbs of a polynomial of the key: all, of one byte, of more.
        special: P modulo the primes of the chain.
        starts: for each limb of sums over digits.
        which, counts: the baby steps of each giant step, (giants, babies) and (giants,).
        plain_low, plain_high, plain_kinds: for each limb the addresses of its plaintexts and the kind of their high
            parts: for each panel, giant step, row and baby step eight values.
        repeat: see `sum_panel`.
        plain_starts, group: for each limb of sums over at most `group` baby steps.
        out: for each giant step two polynomials, limb after limb.
        scratch: (workers, at least 2 (babies + 1) 8 C).
        ids, limbs: the primes, and how many of them belong to the chain.
    """
    wide()
    magic = splat(MAGIC)
    N, size, count, babies = R * C, 8 * C, len(ids), len(addresses)
    piece = size >> repeat
    room = scratch[worker]
    for e in range(lo, hi):
        j = ids[e]
        p1, pinv1 = splat(p[j]), splat(pinv[j])
        owner = e // alpha if e < limbs else -1
        plainat = 0
        for panel in range(R // 8):
            at = panel * size
            o = 2 * size
            if bare:
                if e < limbs:
                    f = splat(special[e])
                    for k in range(0, size, 8):
                        store(room, o + k, product(load(source, c0at + e * N + at + k), f, pinv1, p1, magic))
                        store(room, o + size + k, product(load(source, c1at + e * N + at + k), f, pinv1, p1, magic))
                else:
                    room[o : o + 2 * size] = 0.0
                o += 2 * size
            for b in range(bare, babies):
                kind = kinds[b, e]
                order = addresses[b, 3]
                given = int_at(order, at) // size * size
                at_e = e * N + given
                small = kind == ONE_BYTE
                switch_panel(
                    source,
                    c1at + at_e,
                    c0at + at_e,
                    owner,
                    digits,
                    digitat[e] + given,
                    strides[e],
                    n,
                    addresses[b, 0],
                    lowat[b, e] + given,
                    polynomials[b, 0] * N,
                    addresses[b, 1] if small else addresses[b, 2],
                    highat[b, e] + given,
                    (polynomials[b, 1] if small else polynomials[b, 2]) * N,
                    kind,
                    size,
                    special[e] if e < limbs else 0.0,
                    e < limbs,
                    starts[e],
                    room,
                    0,
                    p[j],
                    pinv[j],
                )
                for k in range(0, size, 8):
                    store(room, o + k, gather(room, -given, order, at + k))
                    store(room, o + size + k, gather(room, size - given, order, at + k))
                o += 2 * size
            for g in range(len(counts)):
                sum_panel(
                    room,
                    2 * size,
                    size,
                    which,
                    g,
                    counts[g],
                    plain_low[e],
                    plain_high[e],
                    plainat,
                    plain_kinds[e],
                    repeat,
                    group,
                    plain_starts[e],
                    out,
                    (2 * g * count + e) * N + at,
                    ((2 * g + 1) * count + e) * N + at,
                    p[j],
                    pinv[j],
                )
                plainat += counts[g] * piece


@kernel("void(i8,i8,i8,i8[:,::1],f8,i8[:,::1],f8[:,::1],f8[::1],f8[::1],f8[::1],i8,i8,f8[::1],f8[::1],b1[::1])")
def combine(
    lo: int,
    hi: int,
    worker: int,
    pairs: Index,
    factor: float,
    terms: Index,
    multipliers: Floats,
    constants: Floats,
    starts: Floats,
    out: Floats,
    outstride: int,
    N: int,
    p: Floats,
    pinv: Floats,
    tight: Any,
) -> None:
    """factor times a sum of products of ciphertexts, plus multiples of some and a constant, for primes lo ... hi - 1.

    Args:
        pairs: (products, 4): addresses of both ciphertexts, and how far the two polynomials of each are apart.
        factor: 1 or 2.
        terms: (terms, 2): address, and how far the two polynomials are apart.
        multipliers: (terms, primes).
        constants: for each prime.
        starts: of sums for loose primes: operands of 1.1 p, multipliers of p / 2.
        out, outstride: the polynomials of the result: three, or two if there are no products.
    """
    wide()
    magic, zero, two = splat(MAGIC), splat(0.0), splat(factor)
    for e in range(lo, hi):
        p1, pinv1, start = splat(p[e]), splat(pinv[e]), splat(starts[e])
        constant = splat(constants[e])
        for k in range(e * N, (e + 1) * N, 8):
            t0, t1, t2 = start, start, start
            r0, r1, r2 = constant, zero, zero
            for i in range(len(pairs)):
                a, b, x, y = pairs[i, 0], pairs[i, 1], pairs[i, 2], pairs[i, 3]
                a0, a1 = load64(a, k), load64(a, k + x)
                if tight[e]:
                    a0, a1 = product(a0, two, pinv1, p1, magic), product(a1, two, pinv1, p1, magic)
                    b0, b1 = load64(b, k), load64(b, k + y)
                    r0 = reduced(vadd(r0, product(a0, b0, pinv1, p1, magic)), pinv1, p1, magic)
                    r1 = reduced(vadd(r1, product(a0, b1, pinv1, p1, magic)), pinv1, p1, magic)
                    r1 = reduced(vadd(r1, product(a1, b0, pinv1, p1, magic)), pinv1, p1, magic)
                    r2 = reduced(vadd(r2, product(a1, b1, pinv1, p1, magic)), pinv1, p1, magic)
                else:
                    a0, a1 = vmul(a0, two), vmul(a1, two)
                    b0, b1 = load64(b, k), load64(b, k + y)
                    t = vfma(a0, b0, t0)
                    r0 = vadd(r0, vfma(a0, b0, vsub(t0, t)))
                    t0 = t
                    t = vfma(a1, b1, t2)
                    r2 = vadd(r2, vfma(a1, b1, vsub(t2, t)))
                    t2 = t
                    t = vfma(a0, b1, t1)
                    r1 = vadd(r1, vfma(a0, b1, vsub(t1, t)))
                    t1 = t
                    t = vfma(a1, b0, t1)
                    r1 = vadd(r1, vfma(a1, b0, vsub(t1, t)))
                    t1 = t
            for i in range(len(terms)):
                a, x, w = terms[i, 0], terms[i, 1], splat(multipliers[i, e])
                c0, c1 = load64(a, k), load64(a, k + x)
                if tight[e]:
                    r0 = reduced(vadd(r0, product(c0, w, pinv1, p1, magic)), pinv1, p1, magic)
                    r1 = reduced(vadd(r1, product(c1, w, pinv1, p1, magic)), pinv1, p1, magic)
                else:
                    t = vfma(c0, w, t0)
                    r0 = vadd(r0, vfma(c0, w, vsub(t0, t)))
                    t0 = t
                    t = vfma(c1, w, t1)
                    r1 = vadd(r1, vfma(c1, w, vsub(t1, t)))
                    t1 = t
            if tight[e]:
                store(out, k, reduced(r0, pinv1, p1, magic))
                store(out, outstride + k, r1)
                if len(pairs):
                    store(out, 2 * outstride + k, r2)
            else:
                store(out, k, finish(t0, r0, start, pinv1, p1, magic))
                store(out, outstride + k, finish(t1, r1, start, pinv1, p1, magic))
                if len(pairs):
                    store(out, 2 * outstride + k, finish(t2, r2, start, pinv1, p1, magic))
