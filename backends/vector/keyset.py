"""Evaluation keys in a process, as the evaluator uses them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from olac.backends.session import Piece
from olac.backends.vector.keys import KeyForm
from olac.backends.vector.packed import PackedKey
from olac.backends.vector.packing import pack
from olac.backends.vector.ring import Ring, ring
from olac.ckks.parameters import Parameters
from olac.ckks.special import KeyShape
from olac.ckks.words import Words
from olac.errors import MissingKeyError
from olac.system.arrays import Array


def packed_key(
    ring: Ring, form: KeyForm, limbs: Iterator[tuple[int, int, Words, Words]], seed: bytes = b""
) -> PackedKey:
    """A key of (digit, limb, a, b) for each limb of each digit, see `olac.backends.vector.keys.read_limbs`."""
    made = PackedKey(ring, KeyShape(form.limbs, form.digits, form.special), ring.indices(form.primes))
    made.seed = seed
    for digit, limb, a, b in limbs:
        for half, words in enumerate((b, a)):
            made.put(digit, half, limb, _centred(words, form.primes[limb]))
    return made


def _centred(words: Words, prime: int) -> Array:
    values = words.astype(np.float64)
    return np.where(values > prime / 2, values - prime, values)


class VectorKeys:
    """Keys by what they are for, see `olac.backends.session.Keys`.

    Attributes:
        parameters, mark: of the key pair, in this process.
        relinearise: from s^2 to s, or None.
        rotations: by step; the conjugation step stands for conjugation.
        into_sparse, from_sparse: of bootstraps, or None.
    """

    def __init__(self, parameters: Parameters, mark: str = "") -> None:
        self.parameters, self.mark = parameters, mark
        self._order: list[PackedKey] = []
        self.relinearise: PackedKey | None = None
        self.rotations: dict[int, PackedKey] = {}
        self.into_sparse: PackedKey | None = None
        self.from_sparse: PackedKey | None = None

    def add(self, place: int | str, key: PackedKey) -> None:
        """Add a key of a rotation step, or that which is called "relinearise", "into_sparse" or "from_sparse"."""
        self._order.append(key)
        if isinstance(place, int):
            self.rotations[place] = key
        else:
            setattr(self, place, key)

    def blocks(self) -> Iterator[Piece]:
        """The bytes of all keys in the order in which they were added, for keys that were made in this process."""
        primes = ring(self.parameters).primes
        for key in self._order:
            yield key.seed
            for digit in range(key.shape.digits):
                for limb, j in enumerate(key.ids):
                    values = np.mod(key.get(digit, 0, limb), float(primes[j])).astype(np.uint64)
                    yield pack(values, primes[j])

    def rotation(self, step: int) -> PackedKey:
        """The key of a step."""
        if step not in self.rotations:
            raise MissingKeyError(f"there is no key for rotation step {step}")
        return self.rotations[step]

    def relinearisation(self) -> PackedKey:
        """The relinearisation key."""
        if self.relinearise is None:
            raise MissingKeyError("there is no relinearisation key")
        return self.relinearise
