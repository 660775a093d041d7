"""Kernels that make, read and write keys: words in [0, p), in bit-reversed order, to doubles in value order and back.

Words are below 2^50, so they are doubles exactly, and int64 and uint64 of them are the same bits. Limbs of words have N
elements, a multiple of eight.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from olac.backends.vector.arithmetic import MAGIC, product, reduced
from olac.backends.vector.compiled import kernel, wide
from olac.backends.vector.lanes import (
    LANES,
    load,
    load_ints,
    load_word,
    splat,
    store,
    store_ints,
    store_residues,
    store_word,
    transposed,
    vadd,
    vfma,
    vsub,
)
from olac.system.arrays import Array as Floats

WORD = 8
"""Bytes of a word."""


@kernel("i8(u8[::1],u8,u8,u8[::1],i8)")
def take_below(stream: Any, mask: Any, bound: Any, out: Any, there: int) -> int:
    """Those words of a stream, masked, that are less than a bound, to out[there] and on until it is full.

    Returns:
        How many there are in `out` then.
    """
    count = len(out)
    k, end = 0, len(stream)
    while k < end and there < count:
        # As long as both last there is nothing to check, and no branch: a word that is not kept is written over.
        for _ in range(min(end - k, count - there)):
            word = stream[k] & mask
            out[there] = word
            there += word < bound
            k += 1
    return there


@kernel("void(u8[::1],f8[::1],u8[::1],u8[::1],f8,b1,f8,f8,u8[::1])")
def masked(
    a: Any, error: Floats, secret: Any, target: Any, factor: float, has: bool, p1: float, pinv1: float, out: Any
) -> None:
    """b = e - a s, plus a centred factor times another polynomial if there is one, as words.

    The error is below 2 p in size, words are below p. Products are at most p (1/2 + 1/4) and p (1/2 + 1/8), the sum is
    below 3.4 p, that is 2^52, and centred after it is reduced.
    """
    wide()
    p, pinv, magic, f = splat(p1), splat(pinv1), splat(MAGIC), splat(factor)
    for k in range(0, len(out), LANES):
        x = vsub(load(error, k), product(load_ints(a, k), load_ints(secret, k), pinv, p, magic))
        if has:
            x = vadd(x, product(load_ints(target, k), f, pinv, p, magic))
        store_residues(out, k, reduced(x, pinv, p, magic), int(p1))


@kernel("void(f8[::1],f8[::1],i8,i8)")
def in_word_order(values: Floats, out: Floats, R: int, C: int) -> None:
    """N values from value order to that of words."""
    wide()
    for block in range(R // 8):
        for column in range(0, C, 8):
            k, o = (block * C + column) * 8, block * 8 * C + column
            tile = transposed(
                load(values, k),
                load(values, k + 8),
                load(values, k + 16),
                load(values, k + 24),
                load(values, k + 32),
                load(values, k + 40),
                load(values, k + 48),
                load(values, k + 56),
            )
            for row in range(LANES):
                store(out, o + row * C, tile[row])


@kernel(
    "void(u8[::1],f8,i8,i8,i4[::1],i1[::1])",
    "void(u8[::1],f8,i8,i8,i4[::1],i2[::1])",
    "void(u8[::1],f8,i8,i8,i4[::1],i4[::1])",
)
def split_words(words: Any, p1: float, R: int, C: int, low: Any, high: Any) -> None:
    """Words to the two parts of centred residues in value order (see `packed`).

    `reduced` makes a centred residue v of a word. (v + 1/2) 2^-32 is exact, as v has at most 49 binary digits, and half
    an integer never: so it is rounded to the integer `high` for which v - high 2^32 is from -2^31 to 2^31 - 1.
    """
    wide()
    p, pinv, magic = splat(p1), splat(1.0 / p1), splat(MAGIC)
    half, small, large = splat(0.5), splat(2.0**-32), splat(-4294967296.0)
    for block in range(R // 8):
        for column in range(0, C, 8):
            k, o = block * 8 * C + column, (block * C + column) * 8
            tile = transposed(
                load_ints(words, k),
                load_ints(words, k + C),
                load_ints(words, k + 2 * C),
                load_ints(words, k + 3 * C),
                load_ints(words, k + 4 * C),
                load_ints(words, k + 5 * C),
                load_ints(words, k + 6 * C),
                load_ints(words, k + 7 * C),
            )
            for row in range(LANES):
                v = reduced(tile[row], pinv, p, magic)
                top = vsub(vfma(vadd(v, half), small, magic), magic)
                store_ints(high, o + 8 * row, top)
                store_ints(low, o + 8 * row, vfma(top, large, v))


@kernel(
    "void(i4[::1],i1[::1],f8,i8,i8,u8[::1])",
    "void(i4[::1],i2[::1],f8,i8,i8,u8[::1])",
    "void(i4[::1],i4[::1],f8,i8,i8,u8[::1])",
)
def join_words(low: Any, high: Any, p1: float, R: int, C: int, out: Any) -> None:
    """The inverse of `split_words`."""
    wide()
    shift, prime = splat(4294967296.0), int(p1)
    for block in range(R // 8):
        for column in range(0, C, 8):
            k, o = (block * C + column) * 8, block * 8 * C + column
            tile = transposed(
                vfma(load_ints(high, k), shift, load_ints(low, k)),
                vfma(load_ints(high, k + 8), shift, load_ints(low, k + 8)),
                vfma(load_ints(high, k + 16), shift, load_ints(low, k + 16)),
                vfma(load_ints(high, k + 24), shift, load_ints(low, k + 24)),
                vfma(load_ints(high, k + 32), shift, load_ints(low, k + 32)),
                vfma(load_ints(high, k + 40), shift, load_ints(low, k + 40)),
                vfma(load_ints(high, k + 48), shift, load_ints(low, k + 48)),
                vfma(load_ints(high, k + 56), shift, load_ints(low, k + 56)),
            )
            for row in range(LANES):
                store_residues(out, o + row * C, tile[row], prime)


@kernel("void(u8[::1],i8,u1[::1])")
def pack_words(words: Any, size: int, out: Any) -> None:
    """The lowest `size` bytes of each word, one after the other, the lowest first."""
    count = len(words)
    whole = max(0, count - WORD)
    for k in range(whole):  # what is written too much is written over, and the last words are written byte by byte
        store_word(out, k * size, words[k])
    for k in range(whole, count):
        for at in range(size):
            out[k * size + at] = (words[k] >> np.uint64(8 * at)) & np.uint64(255)


@kernel("u8(u1[::1],i8,u8[::1])")
def unpack_words(data: Any, size: int, out: Any) -> Any:
    """The inverse of `pack_words`.

    Returns:
        The largest word.
    """
    count = len(out)
    whole = max(0, count - WORD)
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(8 * (WORD - size))
    largest = np.uint64(0)  # all is unsigned: numba makes doubles of signed and unsigned integers together
    for k in range(whole):
        word = load_word(data, k * size) & mask
        out[k] = word
        largest = max(largest, word)
    for k in range(whole, count):
        word = np.uint64(0)
        for at in range(size):
            word |= np.uint64(data[k * size + at]) << np.uint64(8 * at)
        out[k] = word
        largest = max(largest, word)
    return largest
