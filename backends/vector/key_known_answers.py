"""What the kernels of keys have to give on every machine, as Python's integers compute it."""

from __future__ import annotations

from typing import Any

import numpy as np

from olac.backends.vector.arithmetic import MOST_BITS
from olac.backends.vector.compiled import known_answer
from olac.backends.vector.key_kernels import (
    in_word_order,
    join_words,
    masked,
    pack_words,
    split_words,
    take_below,
    unpack_words,
)
from olac.ckks.special import ONE_BYTE, TWO_BYTES
from olac.ckks.words import Words

R, C = 16, 8
COUNT = R * C
PARTS = ((np.int8, ONE_BYTE - 1), (np.int16, TWO_BYTES - 1), (np.int32, (1 << MOST_BITS) - 1))
"""The type of high parts and the largest modulus that it is for, which need not be a prime."""


def _words(rng: np.random.Generator, prime: int) -> Words:
    out = rng.integers(0, prime, COUNT, dtype=np.uint64)
    out[::9] = prime - 1
    out[4:8] = prime // 2, prime // 2 + 1, 0, 1
    return out


def _order(k: int) -> int:
    """Where value k, in bit-reversed order, lies in value order."""
    r, c = divmod(k, C)
    return ((r // 8) * C + c) * 8 + r % 8


@known_answer(take_below)
def _streams_are_cut() -> bool:
    rng = np.random.default_rng(1)
    for prime in ((1 << 37) + 1, (1 << 50) - 1):
        mask, out, there, expected = (1 << prime.bit_length()) - 1, np.zeros(COUNT, dtype=np.uint64), 0, []
        while there < COUNT:
            stream = rng.integers(0, 1 << 64, 50, dtype=np.uint64)
            expected += [word for word in (int(word) & mask for word in stream) if word < prime]
            there = take_below(stream, np.uint64(mask), np.uint64(prime), out, there)
            if there != min(COUNT, len(expected)):
                return False
        if out.tolist() != expected[:COUNT]:
            return False
    return True


@known_answer(masked)
def _masked_secrets_are_right() -> bool:
    rng = np.random.default_rng(2)
    for prime in (ONE_BYTE - 1, (1 << MOST_BITS) - 1):
        a, secret, target = (_words(rng, prime) for _ in range(3))
        error = _words(rng, prime).astype(np.float64) * rng.choice([-1.0, 1.0], COUNT)
        factor = prime // 2
        for has in (False, True):
            out = np.zeros(COUNT, dtype=np.uint64)
            masked(a, error, secret, target, float(-factor), has, float(prime), 1.0 / prime, out)
            expected = [
                (int(e) - int(x) * int(s) - has * factor * int(t)) % prime
                for e, x, s, t in zip(error, a, secret, target, strict=True)
            ]
            if out.tolist() != expected:
                return False
    return True


@known_answer(in_word_order)
def _values_are_put_in_the_order_of_words() -> bool:
    values, out = np.arange(1, COUNT + 1).astype(np.float64), np.zeros(COUNT)
    in_word_order(values, out, R, C)
    return bool(np.all(out == [values[_order(k)] for k in range(COUNT)]))


@known_answer(split_words, join_words)
def _words_are_split_and_joined() -> bool:
    rng = np.random.default_rng(3)
    for kind, prime in PARTS:
        words = _words(rng, prime)
        words[40:48] = [k % prime for k in (2**31, -(2**31), 2**31 - 1, -(2**31) - 1, 2**32 - 1, 2**32, -1, 2**33)]
        low, high = np.zeros(COUNT, dtype=np.int32), np.zeros(COUNT, dtype=kind)
        split_words(words, float(prime), R, C, low, high)
        if not _are_parts(words, prime, low, high):
            return False
        out = np.zeros(COUNT, dtype=np.uint64)
        join_words(low, high, float(prime), R, C, out)
        if out.tolist() != words.tolist():
            return False
    return True


def _are_parts(words: Words, prime: int, low: Any, high: Any) -> bool:
    for k, word in enumerate(words):
        at, centred = _order(k), (int(word) + prime // 2) % prime - prime // 2
        if int(high[at]) * 2**32 + int(low[at]) != centred:
            return False
    return True


@known_answer(pack_words, unpack_words)
def _words_are_packed() -> bool:
    rng = np.random.default_rng(4)
    for size in (1, 5, 6, 8):
        words = _words(rng, (1 << 8 * size) - 1)
        out, back = np.zeros(COUNT * size, dtype=np.uint8), np.zeros(COUNT, dtype=np.uint64)
        pack_words(words, size, out)
        if out.tobytes() != b"".join(int(word).to_bytes(size, "little") for word in words):
            return False
        if unpack_words(out, size, back) != words.max() or back.tolist() != words.tolist():
            return False
    return True
