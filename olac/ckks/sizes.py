"""Sizes of ciphertexts, plaintexts and keys, in bytes."""

from __future__ import annotations

WORD_BYTES = 8
SEED_BYTES = 32
"""A seed stands for the uniform half of a key of the vector engine."""
FREE_CIPHERTEXTS = 6
"""Ciphertexts of the whole chain that take as much memory as an evaluator of the vector engine keeps for later use."""
MOST_PRODUCTS = 8
"""Products with plaintexts that it sums at a time: more streams slow a processor's memory down. Until then, their
operands wait."""


def residue_bytes(prime: int) -> int:
    """A residue of a prime, packed into whole bytes."""
    return -(-prime.bit_length() // 8)


def ciphertext_bytes(log_ring: int, limbs: int, elements: int = 2) -> int:
    """A ciphertext of `elements` polynomials, in memory and (within 2 kB) as bytes."""
    return elements * limbs * WORD_BYTES << log_ring


def plaintext_bytes(log_ring: int, limbs: int) -> int:
    """The encoding of a plaintext."""
    return limbs * WORD_BYTES << log_ring


def kept_plaintext_bytes(log_ring: int, limbs: int) -> int:
    """A plaintext that is kept: OpenFHE holds its complex slots beside its encoding, which take a limb more."""
    return plaintext_bytes(log_ring, limbs + 1)


def rotation_key_bytes(log_ring: int, total_limbs: int, digits: int, special_limbs: int) -> int:
    """One rotation or relinearisation key: it doesn't shrink with the level of the ciphertext."""
    return 2 * digits * (total_limbs + special_limbs) * WORD_BYTES << log_ring
