"""Coefficient words: what ciphertexts and keys are made of on their way from one process to another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from olac.ckks.sizes import WORD_BYTES as WORD_BYTES
from olac.errors import ArtifactError

Words = npt.NDArray[np.uint64]
UNIFORM_BITS = 8
"""The largest of a block's words has at most this many bits less than the prime; by chance, less than 2^-1000."""


def as_bytes(words: Words) -> memoryview:
    """The bytes of words as they are written, which are not copied."""
    return np.ascontiguousarray(words, dtype="<u8").reshape(-1).data.cast("B")


def check_words(words: Words, primes: Sequence[int], length: int) -> None:
    """Raise `ArtifactError` unless words have shape (primes, length) and could be residues of an encryption."""
    if words.shape != (len(primes), length):
        raise ArtifactError(f"coefficients of shape {words.shape}, expected {(len(primes), length)}")
    check_highest(words.max(axis=1), primes)


def check_highest(highest: Words, primes: Sequence[int]) -> None:
    """`check_words` if the largest word of each block is known."""
    bounds = np.array(primes, dtype=np.uint64)
    wrong = np.flatnonzero(highest >= bounds)
    if len(wrong):
        raise ArtifactError(
            f"coefficients that are not less than their prime, in {len(wrong)} of {len(primes)} limbs: it was not "
            "made by olac, or for other parameters"
        )
    # Thousands of uniform words come close to their prime. All zeros, say, would be an encryption that hides nothing.
    if np.any(highest < bounds >> np.uint64(UNIFORM_BITS)):
        raise ArtifactError("coefficients that are not uniform: it is no encryption")


def is_block(words: Words, prime: int) -> bool:
    """Whether words that an engine made could be residues of a prime, uniform ones."""
    return prime >> UNIFORM_BITS <= int(words.max()) < prime
