"""The randomness of keys: secret coefficients from the system's generator, and uniform residues from a public seed.

Nothing is kept between calls, so a forked process shares no randomness with its parent or its siblings. No public seed
is derived from what makes secrets: each is 256 bits of the system's generator of its own.
"""

from __future__ import annotations

import importlib
import math
import os
from hashlib import shake_256
from typing import Final

import numpy as np
import numpy.typing as npt

from olac.backends.vector.key_kernels import take_below
from olac.ckks.sizes import SEED_BYTES as SEED_BYTES
from olac.ckks.words import WORD_BYTES, Words

Coefficients = npt.NDArray[np.int8]
"""Of a secret or an error, shape (N,)."""

BINOMIAL_PAIRS: Final = 21
SIGMA: Final = math.sqrt(BINOMIAL_PAIRS / 2)
"""Standard deviation of an error, 3.24; its bound is `BINOMIAL_PAIRS`."""
STREAM_LABEL: Final = b"olac vector engine, uniform residues of a key, 1:"
CHUNK_WORDS: Final = 1 << 13
"""Words of a stream that are taken at a time: as many as stay in a processor's second cache."""
_ZEROS: Final = bytes(CHUNK_WORDS * WORD_BYTES)


def errors(count: int) -> Coefficients:
    """Fresh secret errors, shape (count,): a centred binomial distribution of standard deviation `SIGMA`.

    An error is a sum of 21 random bits less a sum of 21 others. A bit has the distribution of one minus a bit, so that
    is the sum of 42 bits less 21. The bits are counted without branches and tables (Warren, "Hacker's Delight", 5-1).
    """
    taken = _random_words(count)
    taken &= np.uint64((1 << 2 * BINOMIAL_PAIRS) - 1)
    taken -= (taken >> np.uint64(1)) & np.uint64(0x5555555555555555)
    pairs = np.uint64(0x3333333333333333)
    taken = (taken & pairs) + ((taken >> np.uint64(2)) & pairs)
    taken = (taken + (taken >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    taken = (taken * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return taken.astype(np.int8) - np.int8(BINOMIAL_PAIRS)


def sparse_ternary(count: int, weight: int) -> Coefficients:
    """A fresh secret, shape (count,), of `weight` coefficients that are 1 or -1; all such secrets are as likely.

    Places are drawn one after the other, and one that was drawn before is drawn anew.

    Args:
        count: a power of two.

    Raises:
        ValueError: `count` is no power of two, or less than the weight.
    """
    if count < 1 or count & (count - 1) or not 0 <= weight <= count:
        raise ValueError(f"{weight} places of {count}")
    places: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    while len(places) < weight:
        drawn = (_random_words(2 * weight) & np.uint64(count - 1)).astype(np.int64)
        places = np.concatenate([places, drawn])
        _, first = np.unique(places, return_index=True)
        places = places[np.sort(first)]
    out = np.zeros(count, dtype=np.int8)
    signs = (_random_words(weight) & np.uint64(1)).astype(np.int8)
    out[places[:weight]] = np.int8(1) - np.int8(2) * signs
    return out


def new_seed() -> bytes:
    """A fresh public seed for `uniform`."""
    return os.urandom(SEED_BYTES)


def uniform(seed: bytes, digit: int, prime: int, count: int) -> Words:
    """Uniform residues modulo a prime, shape (count,), which everybody who has the seed gets.

    They are those words of a stream that are less than the prime, each masked to the bits of the prime. The stream is
    AES-256 in counter mode, from a counter of zero, under a key that SHAKE256 makes of a label, the seed, the digit and
    the prime. So every digit and limb of a key has a stream of its own.

    Args:
        seed: `SEED_BYTES` bytes, of one key alone.
        digit: from 0.
        prime: of the limb, of at most 64 bits.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed of {len(seed)} bytes")
    ciphers = importlib.import_module("cryptography.hazmat.primitives.ciphers")  # not everybody has it installed
    name = STREAM_LABEL + seed + digit.to_bytes(4, "little") + prime.to_bytes(8, "little")
    key = shake_256(name).digest(32)
    stream = ciphers.Cipher(ciphers.algorithms.AES(key), ciphers.modes.CTR(bytes(16))).encryptor()
    room = bytearray(len(_ZEROS) + 15)  # update_into asks for a block more than it writes
    words = np.frombuffer(room, dtype=np.uint64, count=CHUNK_WORDS)
    mask, bound = np.uint64((1 << prime.bit_length()) - 1), np.uint64(prime)
    out, there = np.empty(count, dtype=np.uint64), 0
    while there < count:
        stream.update_into(_ZEROS, room)
        there = take_below(words, mask, bound, out, there)
    return out


def _random_words(count: int) -> Words:
    return np.frombuffer(bytearray(os.urandom(count * WORD_BYTES)), dtype=np.uint64)
