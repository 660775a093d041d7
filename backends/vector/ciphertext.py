"""What the vector engine's ciphertexts and plaintexts hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from olac.backends.vector.buffers import Buffer, Part
from olac.system.arrays import Array, Index


@dataclass(frozen=True, slots=True)
class Residues:
    """Polynomials modulo q_0 ... q_(limbs - 1), and special primes after them if it is modulo Q P.

    Attributes:
        buffer: where they are, polynomial after polynomial and limb after limb, each N doubles in value order.
        parts: polynomials: 2 for a ciphertext, 3 for a product that is not relinearised.
        limbs, specials: primes that count.
        room: limbs from the beginning of one polynomial to that of the next.
        degree, scale: of the ciphertext.
        mark: of the key pair in this process.
    """

    buffer: Buffer | Part
    parts: int
    limbs: int
    specials: int
    room: int
    degree: int
    scale: float
    mark: str

    @property
    def data(self) -> Array:
        """The flat array."""
        return self.buffer.data

    @property
    def count(self) -> int:
        """Limbs of one polynomial."""
        return self.limbs + self.specials

    def offsets(self, n: int) -> Index:
        """Where each limb begins, polynomial after polynomial."""
        first = np.arange(self.parts)[:, None] * self.room + np.arange(self.count)
        return (first * n).reshape(-1)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A plaintext: limbs of N >> repeat doubles in value order.

    Attributes:
        repeat: 2^repeat rows of eight values after one another are the same, and are there once. Plaintexts whose slots
            repeat are so.
    """

    buffer: Buffer
    limbs: int
    repeat: int

    @property
    def data(self) -> Array:
        """The flat array."""
        return self.buffer.data


@dataclass(eq=False, slots=True)
class Products:
    """A sum of products of ciphertexts and plaintexts, of noise degree 2, that is computed when it is needed.

    Each operand is read once then, and only the sum is written.

    Attributes:
        terms: pairs of operands.
        base: what is added to them, modulo Q; None for nothing.
        scale: of the sum.
        computed: the sum, after it was needed once.
    """

    terms: tuple[tuple[Residues, Encoded], ...]
    base: Residues | None
    scale: float
    computed: Residues | None = None
