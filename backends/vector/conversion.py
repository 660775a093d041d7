"""Sums of products of residues modulo one prime, and the basis conversion of key switching.

A sum of many products is not reduced term by term. T starts at 1.5 * 2^(52 + s), and each product is added to T by an
fma, which rounds to a multiple of 2^s as long as T stays within its binade. What the rounding lost is an integer of at
most 2^(s - 1): fma(x, w, T - T') is exact, and these rests are summed beside. That is four operations a term in place
of seven. (An error-free dot product in the manner of Ogita, Rump and Oishi, "Accurate sum and dot product", 2005, with
a fixed exponent.)

Bounds. Let `largest` be the largest sum of the sizes of the products, n their number and u = 2^-53.

* `magic_of` chooses s so that largest + n 2^(s-1) < 2^(51 + s). So T, which is off by at most n 2^(s-1) from the sum of
  the products so far, stays between 2^(52 + s) and 2^(53 + s). There doubles are the multiples of 2^s, T - T' is exact,
  and each rest is an integer of at most 2^(s-1).
* H = T - 1.5 * 2^(52 + s) is exact. Its quotient by p is rounded with 2 M in place of M (see `arithmetic`), to an even
  number q, so |H pinv| may be up to 2^52. `magic_of` checks largest + n 2^(s-1) <= (2^52 - 1) p. Then
  |q - H / p| <= 1 + u 2^52, and H - q p is an integer of at most 1.5 p in size, which fma gives exactly.
* The rests, of at most n 2^(s-1) together, are added to what is there already, at most 3/4 p, and to H - q p. All sums
  are integers of at most n 2^(s-1) + 3 p, and exact, as `magic_of` checks that to be below 2^53. `reduced` makes at
  most p / 2 + u 2^53 = p / 2 + 1 of it, as p is above 2^3.

So what fits modulo any prime below 2^50 is eight products of two centred residues and a ninth of one with an integer
of at most 8, or seven products if two of the fourteen residues are at most 3/4 p instead; and modulo primes below 2^46
eleven products of at most 11 p times p / 2, or 120 of 0.55 p times p / 2. (At 50 bits it is the rests that allow no
more, at 46 bits the quotient.)
"""

from __future__ import annotations

from typing import Any

from olac.backends.vector.arithmetic import MAGIC, reduced
from olac.backends.vector.compiled import inline, kernel, wide
from olac.backends.vector.lanes import PAST, fence, load, splat, store, vadd, vfma, vsub
from olac.backends.vector.transforms import forward_columns
from olac.system.arrays import Array as Floats
from olac.system.arrays import Index

PART = 128
"""Coefficients of each operand that are converted together, so that they stay in the first cache."""


def magic_of(largest: int, terms: int, prime: int) -> float:
    """What T starts with, for sums of `terms` products of sizes that sum up to at most `largest`.

    Raises:
        OverflowError: the sum does not fit, see the bounds of this module.
    """
    s = max(0, largest.bit_length() - 51)
    while largest + (terms << s >> 1) >= 1 << 51 + s:
        s += 1
    rests = terms << s >> 1
    if largest + rests > ((1 << 52) - 1) * prime or rests + 3 * prime >= 1 << 53:
        raise OverflowError(f"a sum of {terms} products up to 2^{largest.bit_length()} modulo {prime}")
    return 1.5 * 2.0 ** (52 + s)


@inline
def finish(total: Any, rest: Any, start: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """The sum mod p, at most p / 2 + 1 in size, from T, the sum of the rests and what T started with."""
    high = reduced(vsub(total, start), pinv, p, vadd(magic, magic))
    return reduced(vadd(high, rest), pinv, p, magic)


@kernel("void(f8[::1],i8,i8,i8,f8[::1],i8,f8,f8[::1],i8,f8,f8,b1,f8[::1],i8,b1)")
def convert_part(
    y: Floats,
    at: int,
    stride: int,
    terms: int,
    c: Floats,
    cat: int,
    start1: float,
    out: Floats,
    outat: int,
    p1: float,
    pinv1: float,
    more: bool,
    u: Floats,
    uat: int,
    exact: bool,
) -> None:
    """out[k] = sum over i < terms of y[at + stride i + k] c[cat + i] mod p, for k < 128; with `more` added to out.

    With `exact`, u[uat + k] c[cat + terms] is subtracted. `magic_of` made start1 for sums as large as these. Results
    are at most p / 2 + 1 in size, and what they are added to is at most 3/4 p. They are centred if the sums of the
    rests stay below 2^50.
    """
    wide()
    p, pinv, magic, start = splat(p1), splat(pinv1), splat(MAGIC), splat(start1)
    zero = splat(0.0)
    for k in range(0, PART, 32):
        a = at + k
        t0, t1, t2, t3 = start, start, start, start
        r0, r1, r2, r3 = zero, zero, zero, zero
        if more:
            o = outat + k
            r0, r1, r2, r3 = load(out, o), load(out, o + 8), load(out, o + 16), load(out, o + 24)
        for i in range(terms):
            w = splat(c[cat + i])
            x = load(y, a)
            t = vfma(x, w, t0)
            r0 = vadd(r0, vfma(x, w, vsub(t0, t)))
            t0 = t
            x = load(y, a + 8)
            t = vfma(x, w, t1)
            r1 = vadd(r1, vfma(x, w, vsub(t1, t)))
            t1 = t
            x = load(y, a + 16)
            t = vfma(x, w, t2)
            r2 = vadd(r2, vfma(x, w, vsub(t2, t)))
            t2 = t
            x = load(y, a + 24)
            t = vfma(x, w, t3)
            r3 = vadd(r3, vfma(x, w, vsub(t3, t)))
            t3 = t
            a += stride
        if exact:
            w, a = splat(-c[cat + terms]), uat + k
            x = load(u, a)
            t = vfma(x, w, t0)
            r0 = vadd(r0, vfma(x, w, vsub(t0, t)))
            t0 = t
            x = load(u, a + 8)
            t = vfma(x, w, t1)
            r1 = vadd(r1, vfma(x, w, vsub(t1, t)))
            t1 = t
            x = load(u, a + 16)
            t = vfma(x, w, t2)
            r2 = vadd(r2, vfma(x, w, vsub(t2, t)))
            t2 = t
            x = load(u, a + 24)
            t = vfma(x, w, t3)
            r3 = vadd(r3, vfma(x, w, vsub(t3, t)))
            t3 = t
        store(out, outat + k, finish(t0, r0, start, pinv, p, magic))
        store(out, outat + k + 8, finish(t1, r1, start, pinv, p, magic))
        store(out, outat + k + 16, finish(t2, r2, start, pinv, p, magic))
        store(out, outat + k + 24, finish(t3, r3, start, pinv, p, magic))


@kernel("void(f8[::1],i8,i8,i8,f8[::1],f8[::1],i8,i8)")
def overshoots(
    y: Floats, at: int, stride: int, terms: int, quotients: Floats, out: Floats, outat: int, count: int
) -> None:
    """out[k] = the integer next to the sum over i < terms of y[at + stride i + k] quotients[i], for k < count.

    Each y is at most 0.55 p in size and each quotient is 1 / p, rounded, so two terms or more have a sum with an error
    below terms^2 2^-53, and the integer is at most the number of terms. Where the sum is as near to a half as its
    error, either integer is right: the residue is then half of the product, in size.
    """
    wide()
    magic, zero = splat(MAGIC), splat(0.0)
    for k in range(0, count, 8):
        total = zero
        for i in range(terms):
            total = vfma(load(y, at + i * stride + k), splat(quotients[i]), total)
        store(out, outat + k, vsub(vadd(total, magic), magic))


@kernel(
    "void(i8,i8,i8,f8[::1],i8,i8,i8,i8[::1],f8[::1],i8,f8[::1],f8[::1],b1,f8[:,::1],f8[::1],i8[::1],i8,i8,f8[::1],f8[::1],f8[::1],b1[::1])"
)
def convert(
    lo: int,
    hi: int,
    worker: int,
    y: Floats,
    yat: int,
    terms: int,
    group: int,
    ids: Index,
    c: Floats,
    cstride: int,
    starts: Floats,
    quotients: Floats,
    exact: bool,
    scratch: Floats,
    out: Floats,
    outat: Index,
    R: int,
    C: int,
    w0: Floats,
    p: Floats,
    pinv: Floats,
    tight: Any,
) -> None:
    """The first halves of transforms of converted polynomials, for columns of eight lo ... hi - 1.

    Converted polynomials are at most p / 2 + 1 in size; for the results see `transforms.forward_columns`. From `PAST`
    doubles on they are written past the caches.

    Args:
        worker: row of `scratch` that is used.
        y, yat, terms: residues, limb after limb of N, in coefficient order, as inverse transforms leave them.
        group: most terms that are summed before a reduction.
        ids: for each output its prime.
        c, cstride: for each output `terms` factors and the product of the primes of y, at multiples of cstride.
        starts: for each output what sums of at most `group` products, and the product, start with, see `magic_of`.
        quotients, exact: with `exact`, the inverses of the primes of y: the result is that of the residue of least size
            modulo their product. Otherwise a multiple of the product is added, see `Ring.conversion`.
        scratch: (workers, 8 R (outputs + 2)), R at least 16.
        out, outat: where each output begins, N values.
    """
    N, piece, count = R * C, 8 * R, len(ids)
    room = scratch[worker]
    overshoot = (count + 1) * piece
    past = count * N >= PAST
    for column in range(lo, hi):
        if exact:
            overshoots(y, yat + column * piece, N, terms, quotients, room, overshoot, piece)
        for k in range(0, piece, PART):
            at = yat + column * piece + k
            for e in range(count):
                j = ids[e]
                for i in range(0, terms, group):
                    convert_part(
                        y,
                        at + i * N,
                        N,
                        min(group, terms - i),
                        c,
                        e * cstride + i,
                        starts[e],
                        room,
                        e * piece + k,
                        p[j],
                        pinv[j],
                        i > 0,
                        room,
                        overshoot + k,
                        exact and i + group >= terms,
                    )
        for e in range(count):
            j = ids[e]
            forward_columns(
                room,
                e * piece,
                8,
                room,
                count * piece,
                out,
                outat[e],
                column,
                R,
                C,
                w0,
                j * R,
                p[j],
                pinv[j],
                tight[j],
                past,
            )
    if past:
        fence()
