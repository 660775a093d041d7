"""Evaluation keys in memory: residues in 5 or 6 bytes, in value order.

A residue is high 2^32 + low, with low in [-2^31, 2^31) as int32 and high as int8 for primes below 255 * 2^32, so that
high is at most 127, and as int16 for others. If a prime is 65535 * 2^32 or more, the others have an int32.

For a centred residue v, high is the integer nearest to v / 2^32, at most p / 2^33 + 1/2 in size: below 128 for the
first primes, and below 32768 for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from olac.backends.vector.key_kernels import join_words, split_words
from olac.backends.vector.ring import Ring
from olac.ckks.parameters import Parameters
from olac.ckks.special import ONE_BYTE as ONE_BYTE
from olac.ckks.special import TWO_BYTES as TWO_BYTES
from olac.ckks.special import KeyShape, bytes_of_high, vector_special_primes
from olac.ckks.words import Words
from olac.system.arrays import Array, Index


def split(values: Array, low: Any, high: Any) -> None:
    """Centred residues to their parts, in the same order: what `PackedKey.put` does with words, in numpy."""
    top = np.floor(values * 2.0**-32 + 0.5)
    high[:] = top
    low[:] = values - top * 2.0**32


def packed_bytes(primes: Sequence[int], digits: int, length: int, parameters: Parameters) -> int:
    """Bytes of a key in memory."""
    largest = max(*parameters.primes, *vector_special_primes(parameters))
    return 2 * digits * length * sum(4 + bytes_of_high(prime, largest) for prime in primes)


class PackedKey:
    """One key for key switching.

    Args:
        shape: its primes and digits.
        ids: indices of its primes in the ring; None for those that the shape says.

    Attributes:
        shape, ids: as given.
        low, high8, high16: parts of the residues by digit, polynomial and limb, flat.
        place, small: for each limb its place among those with a high part of its kind, and whether that is one byte.
        count8, count16: limbs of each kind.
        seed: of the polynomials a.
    """

    def __init__(self, ring: Ring, shape: KeyShape, ids: Index | None = None) -> None:
        self.shape = shape
        ids = ring.ids(shape.limbs, shape.specials) if ids is None else ids
        digits = shape.digits
        self.ids = ids
        self.small = np.array([ring.primes[j] < ONE_BYTE for j in ids])
        self.place = np.where(self.small, np.cumsum(self.small) - 1, np.cumsum(~self.small) - 1).astype(np.int64)
        self.count8 = int(self.small.sum())
        self.count16 = len(ids) - self.count8
        polynomials = 2 * digits * ring.N
        self.low = np.empty(polynomials * len(ids), dtype=np.int32)
        self.high8 = np.empty(polynomials * self.count8, dtype=np.int8)
        self.high16 = np.empty(polynomials * self.count16, dtype=np.int16 if max(ring.primes) < TWO_BYTES else np.int32)
        self._ring = ring
        self.seed = b""

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.low.nbytes + self.high8.nbytes + self.high16.nbytes

    def put(self, digit: int, half: int, limb: int, words: Words) -> None:
        """Set one limb of the polynomial b (half 0) or a (half 1) of a digit."""
        low, high = self._parts(digit, half, limb)
        split_words(words, self._ring.p[self.ids[limb]], self._ring.R, self._ring.C, low, high)

    def put_values(self, digit: int, half: int, limb: int, values: Array) -> None:
        """The same with centred residues in value order."""
        split(values, *self._parts(digit, half, limb))

    def get(self, digit: int, half: int, limb: int) -> Words:
        """What `put` set."""
        low, high = self._parts(digit, half, limb)
        out = np.empty(self._ring.N, dtype=np.uint64)
        join_words(low, high, self._ring.p[self.ids[limb]], self._ring.R, self._ring.C, out)
        return out

    def values(self, digit: int, half: int, limb: int) -> Array:
        """The same as centred residues in value order."""
        low, high = self._parts(digit, half, limb)
        found: Array = high.astype(np.float64) * 2.0**32 + low.astype(np.float64)
        return found

    def b(self, digit: int, limb: int) -> Words:
        """A limb of the polynomial b."""
        return self.get(digit, 0, limb)

    def _parts(self, digit: int, half: int, limb: int) -> tuple[Any, Any]:
        n, which = self._ring.N, 2 * digit + half
        at = (which * len(self.ids) + limb) * n
        count, high = (self.count8, self.high8) if self.small[limb] else (self.count16, self.high16)
        highat = (which * count + int(self.place[limb])) * n
        return self.low[at : at + n], high[highat : highat + n]
