"""Number theoretic transforms of N = R C points, and the two orders in which residues lie in memory.

The polynomial's coefficient n = r C + c lies at ((c // 8) R + r) 8 + c % 8 (coefficient order): columns of eight, each
contiguous. The value that is the k-th in bit-reversed order, k = r C + c, lies at ((r // 8) C + c) 8 + r % 8 (value
order). So both halves of a transform, log2(R) stages over r and log2(C) over c, work on pieces of 8 R or 8 C doubles
that fit in the first cache, eight independent transforms side by side, and no vector is shuffled but in the
transposition of 8 x 8 tiles between them. (Bailey, "FFTs in external or hierarchical memory", 1990, with the merged
negacyclic twists of Longa and Naehrig, ePrint 2016/504, by radix 4.)

The second half has other roots for each row r: N of them, as many as residues. In bit-reversed order w[k] is a root of
unity to the power N rev(k), where rev(k) mirrors the binary digits of k at the point. Stage s takes the roots
w[(R + r) 2^s + i], i < 2^s, whose digits are those of i below those of R + r. So each is w[i] w[(R + r) 2^s]: a root
that all rows and stages have in common, times a twist of the row and the stage (`twisted`). These are C + R log2(C)
numbers, which stay in the second cache, and a product takes less time than reading N numbers more.

Bounds (see `arithmetic`), in units of p, with constants that are centred. Residues at rest, between
kernels, are at most 3/4.

* Forward, loose primes. A stage adds to a residue the `product` of another: from B to B + 1/2 + B / 128. From 3/4 that
  is 5 after 8 stages, 9.4 after 16 and 10 after 17, the most that there are. (Roots of the second half are at most
  1/2 + 1/256: there it is B + 1/2 + B / 127, which changes no digit that stands here.) So values are at most 11;
  `product` takes up to 62 times such a root.
* Forward, tight primes. All is reduced before each pass, to 1/2. In a pass by radix 4 the first products are at most
  1/2 + 1/16, the first sums 1.07, the second products 1/2 + 1.07 / 8, the second sums 1.7. Between the halves values
  are at most that. Roots of the second half are at most 1/2 + 1/16, so that there products are at most 1/2 + 9 B / 64
  for B up to 3.3: the first ones 0.571, the second ones 0.651, and the second sums 1.73. In the end values are reduced
  from that, to centred ones.
* Inverse, loose primes. In a pass by radix 4 from B, the sum of all four residues is at most 4 B and is reduced, to
  1/2. Roots are at most 1/2 + 1/256. Differences of two are at most 2 B and their products 1/2 + B / 63; the sum of two
  of these is at most 1 + B / 31. The products of what is at most 4 B are at most 1/2 + B / 31. So B = 1.04 before each
  pass leaves at most
  1.04, with sums of at most 4.2. The last pass multiplies everything by a factor: it leaves at most 1/2 + 4.2 / 128,
  below 0.55.
* Inverse, tight primes. All is reduced before each pass, to 1/2. Roots are at most 1/2 + 1/16. In a pass sums of four
  are at most 2, and their products 1/2 + 18 / 64; products of differences are at most 1/2 + 9 / 64, and sums of two of
  these 1.29. So a pass leaves at most 1.29; in the end values are reduced, to centred ones.

All of these are integers below 2^50 for loose primes and 2^52 for tight ones, so sums are exact.
"""

from __future__ import annotations

from typing import Any

from olac.backends.vector.arithmetic import MAGIC, product, reduced
from olac.backends.vector.compiled import inline, kernel, wide
from olac.backends.vector.lanes import LANES, load, put, splat, store, streams, transposed, vadd, vsub
from olac.system.arrays import Array as Floats

AT_REST = 0.75
"""Most that residues at rest are, in units of p."""
LAZY = 11
"""Most that forward transforms leave, in units of p, for loose primes."""
INVERTED = 0.55
"""Most that inverse transforms leave, in units of p, for loose primes."""


@inline
def quartet(a: Any, b: Any, c: Any, d: Any, w1: Any, w2: Any, w3: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """Two stages of Cooley and Tukey's butterflies on four residues.

    From at most B p to at most (B + 1/2 + B / 127) (1 + 1 / 127) p + p / 2 for loose primes, from p / 2 to 1.73 p for
    tight ones.
    """
    u = product(c, w1, pinv, p, magic)
    v = product(d, w1, pinv, p, magic)
    x0 = vadd(a, u)
    x2 = vsub(a, u)
    x1 = vadd(b, v)
    x3 = vsub(b, v)
    y = product(x1, w2, pinv, p, magic)
    z = product(x3, w3, pinv, p, magic)
    return vadd(x0, y), vsub(x0, y), vadd(x2, z), vsub(x2, z)


@inline
def reduce_piece(s: Any, start: int, rows: int, pinv: Any, p: Any, magic: Any) -> None:
    """Reduce rows of eight residues in place; they are centred then, if they were below 2^52 in size."""
    for row in range(rows):
        store(s, start + 8 * row, reduced(load(s, start + 8 * row), pinv, p, magic))


@kernel("void(f8[::1],i8,i8,f8[::1],i8,f8[::1],i8,i8,i8,i8,f8[::1],i8,f8,f8,b1,b1)")
def forward_columns(
    source: Floats,
    at: int,
    stride: int,
    s: Floats,
    sat: int,
    out: Floats,
    outat: int,
    column: int,
    R: int,
    C: int,
    w: Floats,
    wat: int,
    p1: float,
    pinv1: float,
    tight: bool,
    past: bool,
) -> None:
    """The first half for one column of eight: from rows of `source` to tiles of `out`, by way of the piece s.

    The source is at most 3/4 p in size, or below 2^52 for tight primes. Results are at most 6 p for loose primes (9
    stages) and 1.7 p for tight ones.

    Args:
        source, at, stride: row r is source[at + stride r ... + 8].
        s, sat: room for 8 R doubles.
        out, outat: where the N values begin.
        column: which column of eight.
        w, wat: where the first R roots begin, in bit-reversed order.
        tight: whether the prime is.
        past: results are written past the caches where they can be, and a `fence` has to follow.
    """
    wide()
    p, pinv, magic = splat(p1), splat(pinv1), splat(MAGIC)
    t, m = R // 4, 4
    if R & 0xAAAAAAAA:  # an odd number of stages: one by radix 2
        t, m = R // 2, 2
        w1 = splat(w[wat + 1])
        for b in range(t):
            x = load(source, at + stride * b)
            y = load(source, at + stride * (b + t))
            if tight:
                x, y = reduced(x, pinv, p, magic), reduced(y, pinv, p, magic)
            y = product(y, w1, pinv, p, magic)
            store(s, sat + 8 * b, vadd(x, y))
            store(s, sat + 8 * (b + t), vsub(x, y))
    else:
        w1, w2, w3 = splat(w[wat + 1]), splat(w[wat + 2]), splat(w[wat + 3])
        for b in range(t):
            x0 = load(source, at + stride * b)
            x1 = load(source, at + stride * (b + t))
            x2 = load(source, at + stride * (b + 2 * t))
            x3 = load(source, at + stride * (b + 3 * t))
            if tight:
                x0, x1 = reduced(x0, pinv, p, magic), reduced(x1, pinv, p, magic)
                x2, x3 = reduced(x2, pinv, p, magic), reduced(x3, pinv, p, magic)
            x0, x1, x2, x3 = quartet(x0, x1, x2, x3, w1, w2, w3, pinv, p, magic)
            store(s, sat + 8 * b, x0)
            store(s, sat + 8 * (b + t), x1)
            store(s, sat + 8 * (b + 2 * t), x2)
            store(s, sat + 8 * (b + 3 * t), x3)
    while 4 * m < R:
        t //= 4
        if tight:
            reduce_piece(s, sat, R, pinv, p, magic)
        forward_pass(s, sat, m, t, w, wat, pinv, p, magic)
        m *= 4
    if tight:
        reduce_piece(s, sat, R, pinv, p, magic)
    past = past and streams(out, outat)
    for block in range(m // 2):
        b, i = sat + 64 * block, 2 * block
        w1, w2, w3 = splat(w[wat + m + i]), splat(w[wat + 2 * (m + i)]), splat(w[wat + 2 * (m + i) + 1])
        x0, x1, x2, x3 = quartet(
            load(s, b), load(s, b + 8), load(s, b + 16), load(s, b + 24), w1, w2, w3, pinv, p, magic
        )
        i += 1
        w1, w2, w3 = splat(w[wat + m + i]), splat(w[wat + 2 * (m + i)]), splat(w[wat + 2 * (m + i) + 1])
        x4, x5, x6, x7 = quartet(
            load(s, b + 32), load(s, b + 40), load(s, b + 48), load(s, b + 56), w1, w2, w3, pinv, p, magic
        )
        tile = transposed(x0, x1, x2, x3, x4, x5, x6, x7)
        o = outat + (block * C + 8 * column) * 8
        for k in range(LANES):
            put(out, o + 8 * k, tile[k], past)


@inline
def forward_pass(s: Any, at: int, m: int, t: int, w: Any, wat: int, pinv: Any, p: Any, magic: Any) -> None:
    """A radix-4 pass with one root for all lanes: m blocks of 4 t rows; bounds are those of `quartet`."""
    for i in range(m):
        w1, w2, w3 = splat(w[wat + m + i]), splat(w[wat + 2 * (m + i)]), splat(w[wat + 2 * (m + i) + 1])
        for row in range(4 * i * t, 4 * i * t + t):
            a, b = at + 8 * row, at + 8 * (row + t)
            c, d = at + 8 * (row + 2 * t), at + 8 * (row + 3 * t)
            x0, x1, x2, x3 = quartet(load(s, a), load(s, b), load(s, c), load(s, d), w1, w2, w3, pinv, p, magic)
            store(s, a, x0)
            store(s, b, x1)
            store(s, c, x2)
            store(s, d, x3)


@inline
def log2(C: int) -> int:
    """log2 of a power of two."""
    log = 0
    while C >> log > 1:
        log += 1
    return log


@inline
def twisted(w: Any, at: int, twist: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """The roots of eight rows, from their twists and the root at a place, all centred.

    They are at most p / 2 + p / 256 in size for loose primes and p / 2 + p / 16 for tight ones.
    """
    return product(twist, splat(w[at]), pinv, p, magic)


@kernel("void(f8[::1],i8,i8,i8,i8,f8[::1],i8,f8,f8,b1)")
def forward_rows(
    out: Floats, outat: int, R: int, C: int, W: int, w: Floats, wat: int, p1: float, pinv1: float, tight: bool
) -> None:
    """The second half, in place, in value order.

    Operands are as `forward_columns` leaves them. Results are at most 11 p in size for loose primes, after all 17
    stages, and centred for tight ones.

    Args:
        W, w, wat: the first W roots in bit-reversed order begin here, and after them, for each eight rows, log2(W)
            vectors of twists: `twisted` makes the roots of these rows. A transform of R C points takes the first ones
            of each, if W is larger.
    """
    wide()
    p, pinv, magic = splat(p1), splat(pinv1), splat(MAGIC)
    stages = log2(W)
    for piece in range(R // 8):
        at = outat + piece * C * 8
        v = wat + W + piece * stages * 8
        t, m, stage = C, 1, 0
        if C & 0xAAAAAAAA:
            t, m, stage = C // 2, 2, 1
            w1 = load(w, v)
            for row in range(t):
                a, b = at + 8 * row, at + 8 * (row + t)
                x, y = load(out, a), load(out, b)
                if tight:
                    x, y = reduced(x, pinv, p, magic), reduced(y, pinv, p, magic)
                y = product(y, w1, pinv, p, magic)
                store(out, a, vadd(x, y))
                store(out, b, vsub(x, y))
        while m < C:
            t //= 4
            if tight:
                reduce_piece(out, at, C, pinv, p, magic)
            first, second = load(w, v + 8 * stage), load(w, v + 8 * stage + 8)
            for i in range(m):
                w1 = twisted(w, wat + i, first, pinv, p, magic)
                w2 = twisted(w, wat + 2 * i, second, pinv, p, magic)
                w3 = twisted(w, wat + 2 * i + 1, second, pinv, p, magic)
                for row in range(4 * i * t, 4 * i * t + t):
                    a, b = at + 8 * row, at + 8 * (row + t)
                    c, d = at + 8 * (row + 2 * t), at + 8 * (row + 3 * t)
                    x0, x1, x2, x3 = quartet(
                        load(out, a), load(out, b), load(out, c), load(out, d), w1, w2, w3, pinv, p, magic
                    )
                    store(out, a, x0)
                    store(out, b, x1)
                    store(out, c, x2)
                    store(out, d, x3)
            m *= 4
            stage += 2
        if tight:
            reduce_piece(out, at, C, pinv, p, magic)


@inline
def inverse_quartet(a: Any, b: Any, c: Any, d: Any, w1: Any, w2: Any, w3: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """Two stages of Gentleman and Sande's butterflies: the inverse of `quartet`, times 4.

    From at most 1.04 p to 1.04 p for loose primes, from p / 2 to 1.29 p for tight ones.
    """
    x0 = vadd(a, b)
    x1 = product(vsub(a, b), w2, pinv, p, magic)
    x2 = vadd(c, d)
    x3 = product(vsub(c, d), w3, pinv, p, magic)
    return (
        reduced(vadd(x0, x2), pinv, p, magic),
        vadd(x1, x3),
        product(vsub(x0, x2), w1, pinv, p, magic),
        product(vsub(x1, x3), w1, pinv, p, magic),
    )


@kernel("void(f8[::1],i8,f8[::1],i8,f8[::1],i8,i8,i8,f8[::1],i8,f8,f8,b1)")
def inverse_rows(
    source: Floats,
    sourceat: int,
    s: Floats,
    sat: int,
    out: Floats,
    outat: int,
    R: int,
    C: int,
    w: Floats,
    wat: int,
    p1: float,
    pinv1: float,
    tight: bool,
) -> None:
    """The inverse of `forward_rows`, times C, from value order to coefficient order (still mixed over r).

    The source is at most 3/4 p in size, or below 2^52 for tight primes. Results are at most 1.04 p for loose primes and
    centred for tight ones.
    """
    wide()
    p, pinv, magic = splat(p1), splat(pinv1), splat(MAGIC)
    stages = log2(C)
    for piece in range(R // 8):
        at = sourceat + piece * C * 8
        v = wat + C + piece * stages * 8
        m, t, stage = C // 4, 1, stages - 2
        first, second = load(w, v + 8 * stage), load(w, v + 8 * stage + 8)
        for i in range(m):  # the first pass, from the source to the piece
            w1 = twisted(w, wat + i, first, pinv, p, magic)
            w2 = twisted(w, wat + 2 * i, second, pinv, p, magic)
            w3 = twisted(w, wat + 2 * i + 1, second, pinv, p, magic)
            a = 32 * i
            x0, x1, x2, x3 = (
                load(source, at + a),
                load(source, at + a + 8),
                load(source, at + a + 16),
                load(source, at + a + 24),
            )
            if tight:
                x0, x1 = reduced(x0, pinv, p, magic), reduced(x1, pinv, p, magic)
                x2, x3 = reduced(x2, pinv, p, magic), reduced(x3, pinv, p, magic)
            x0, x1, x2, x3 = inverse_quartet(x0, x1, x2, x3, w1, w2, w3, pinv, p, magic)
            store(s, sat + a, x0)
            store(s, sat + a + 8, x1)
            store(s, sat + a + 16, x2)
            store(s, sat + a + 24, x3)
        t, m = 4, m // 4
        while m >= 1:
            if tight:
                reduce_piece(s, sat, C, pinv, p, magic)
            stage -= 2
            first, second = load(w, v + 8 * stage), load(w, v + 8 * stage + 8)
            for i in range(m):
                w1 = twisted(w, wat + i, first, pinv, p, magic)
                w2 = twisted(w, wat + 2 * i, second, pinv, p, magic)
                w3 = twisted(w, wat + 2 * i + 1, second, pinv, p, magic)
                for row in range(4 * i * t, 4 * i * t + t):
                    a, b, c, d = 8 * row, 8 * (row + t), 8 * (row + 2 * t), 8 * (row + 3 * t)
                    x0, x1, x2, x3 = inverse_quartet(
                        load(s, sat + a),
                        load(s, sat + b),
                        load(s, sat + c),
                        load(s, sat + d),
                        w1,
                        w2,
                        w3,
                        pinv,
                        p,
                        magic,
                    )
                    store(s, sat + a, x0)
                    store(s, sat + b, x1)
                    store(s, sat + c, x2)
                    store(s, sat + d, x3)
            t *= 4
            m //= 4
        if t < C:  # an odd number of stages: the last by radix 2
            w1 = load(w, v)
            for row in range(t):
                a, b = 8 * row, 8 * (row + t)
                x, y = load(s, sat + a), load(s, sat + b)
                if tight:
                    x, y = reduced(x, pinv, p, magic), reduced(y, pinv, p, magic)
                store(s, sat + a, reduced(vadd(x, y), pinv, p, magic))
                store(s, sat + b, product(vsub(x, y), w1, pinv, p, magic))
        if tight:
            reduce_piece(s, sat, C, pinv, p, magic)
        for column in range(C // 8):
            a = 64 * column
            tile = transposed(
                load(s, sat + a),
                load(s, sat + a + 8),
                load(s, sat + a + 16),
                load(s, sat + a + 24),
                load(s, sat + a + 32),
                load(s, sat + a + 40),
                load(s, sat + a + 48),
                load(s, sat + a + 56),
            )
            o = outat + (column * R + 8 * piece) * 8
            for k in range(LANES):
                store(out, o + 8 * k, tile[k])


@kernel("void(f8[::1],i8,i8,i8,f8[::1],i8,f8,f8,f8,f8,b1)")
def inverse_columns(
    out: Floats,
    outat: int,
    column: int,
    R: int,
    w: Floats,
    wat: int,
    factor: float,
    factor1: float,
    p1: float,
    pinv1: float,
    tight: bool,
) -> None:
    """The inverse of the first half, times R and `factor`, in place, for one column of eight.

    Operands are as `inverse_rows` leaves them. Results are at most 0.55 p in size for loose primes and centred for
    tight ones.

    Args:
        factor, factor1: centred residues: the factor, and the factor times the inverse root 1 of w.
    """
    wide()
    p, pinv, magic = splat(p1), splat(pinv1), splat(MAGIC)
    at = outat + column * R * 8
    t, m = 1, R // 4
    while m > 1:
        if tight:
            reduce_piece(out, at, R, pinv, p, magic)
        for i in range(m):
            w1, w2, w3 = splat(w[wat + m + i]), splat(w[wat + 2 * (m + i)]), splat(w[wat + 2 * (m + i) + 1])
            for row in range(4 * i * t, 4 * i * t + t):
                a, b = at + 8 * row, at + 8 * (row + t)
                c, d = at + 8 * (row + 2 * t), at + 8 * (row + 3 * t)
                x0, x1, x2, x3 = inverse_quartet(
                    load(out, a), load(out, b), load(out, c), load(out, d), w1, w2, w3, pinv, p, magic
                )
                store(out, a, x0)
                store(out, b, x1)
                store(out, c, x2)
                store(out, d, x3)
        t *= 4
        m //= 4
    if tight:
        reduce_piece(out, at, R, pinv, p, magic)
    f, fw = splat(factor), splat(factor1)
    if m == 1:  # the last pass by radix 4
        w2, w3 = splat(w[wat + 2]), splat(w[wat + 3])
        for row in range(t):
            a, b = at + 8 * row, at + 8 * (row + t)
            c, d = at + 8 * (row + 2 * t), at + 8 * (row + 3 * t)
            x, y, z, u = load(out, a), load(out, b), load(out, c), load(out, d)
            x0 = vadd(x, y)
            x1 = product(vsub(x, y), w2, pinv, p, magic)
            x2 = vadd(z, u)
            x3 = product(vsub(z, u), w3, pinv, p, magic)
            store(out, a, product(vadd(x0, x2), f, pinv, p, magic))
            store(out, b, product(vadd(x1, x3), f, pinv, p, magic))
            store(out, c, product(vsub(x0, x2), fw, pinv, p, magic))
            store(out, d, product(vsub(x1, x3), fw, pinv, p, magic))
    else:
        for row in range(t):
            a, b = at + 8 * row, at + 8 * (row + t)
            x, y = load(out, a), load(out, b)
            store(out, a, product(vadd(x, y), f, pinv, p, magic))
            store(out, b, product(vsub(x, y), fw, pinv, p, magic))
    if tight:
        reduce_piece(out, at, R, pinv, p, magic)


@kernel("void(f8[::1],i8,f8[::1],i8,f8[::1],i8,i8,i8,f8[::1],i8,f8[::1],i8,f8,f8,f8,f8,b1)")
def inverse_transform(
    source: Floats,
    sourceat: int,
    s: Floats,
    sat: int,
    out: Floats,
    outat: int,
    R: int,
    C: int,
    w0: Floats,
    w0at: int,
    w1: Floats,
    w1at: int,
    factor: float,
    factor1: float,
    p: float,
    pinv: float,
    tight: bool,
) -> None:
    """Values in value order to coefficients in coefficient order, times N and `factor`.

    Values are at most 3/4 p in size, or below 2^52 for tight primes. Results are at most 0.55 p for loose primes and
    centred for tight ones.
    """
    inverse_rows(source, sourceat, s, sat, out, outat, R, C, w1, w1at, p, pinv, tight)
    for column in range(C // 8):
        inverse_columns(out, outat, column, R, w0, w0at, factor, factor1, p, pinv, tight)


@kernel("void(f8[::1],i8,f8[::1],i8,f8[::1],i8,i8,i8,f8[::1],i8,f8[::1],i8,f8,f8,b1)")
def forward_transform(
    source: Floats,
    sourceat: int,
    s: Floats,
    sat: int,
    out: Floats,
    outat: int,
    R: int,
    C: int,
    w0: Floats,
    w0at: int,
    w1: Floats,
    w1at: int,
    p: float,
    pinv: float,
    tight: bool,
) -> None:
    """Coefficients in coefficient order to values in value order.

    Coefficients are at most 3/4 p in size, or below 2^52 for tight primes. Results are at most 11 p for loose primes
    and centred for tight ones.
    """
    for column in range(C // 8):
        forward_columns(
            source, sourceat + column * R * 8, 8, s, sat, out, outat, column, R, C, w0, w0at, p, pinv, tight, False
        )
    forward_rows(out, outat, R, C, C, w1, w1at, p, pinv, tight)
