"""Coefficient words, and where they lie in the bytes that OpenFHE makes of ciphertexts and keys."""

from __future__ import annotations

import hmac
import mmap
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from olac.errors import ArtifactError, BackendError

Words = npt.NDArray[np.uint64]
WORD_BYTES = 8
MAX_STRUCTURE_BYTES = 1 << 16
UNIFORM_BITS = 8
"""The largest of a block's words has at most so many bits less than the prime; by chance, less than 2^-1000."""


@dataclass(frozen=True)
class Template:
    """OpenFHE's bytes of one kind of object, with holes where the coefficient words go.

    Attributes:
        pieces: the bytes around the holes, one more than there are holes.
        primes: what the words of each hole must stay below.
        length: words in a hole.
        tag: the key tag that stands in the pieces.
    """

    pieces: tuple[bytes, ...]
    primes: tuple[int, ...]
    length: int
    tag: str

    def fill(self, words: Words, tag: str) -> bytes:
        """The bytes of an object with these words, shape (holes, length), under another key tag."""
        check_words(words, self.primes, self.length)
        raw = np.ascontiguousarray(words, dtype="<u8")
        pieces = self.renamed(tag)
        out: list[bytes | memoryview] = [next(pieces)]
        for block, piece in zip(raw, pieces, strict=True):
            out += [block.data, piece]
        return b"".join(out)

    def renamed(self, tag: str) -> Iterator[bytes]:
        """The pieces under another key tag."""
        old, new = self.tag.encode(), tag.encode()
        return (piece.replace(old, new) for piece in self.pieces)


def check_words(words: Words, primes: Sequence[int], length: int) -> None:
    """Raise `ArtifactError` unless words have shape (primes, length) and could be residues of an encryption."""
    if words.shape != (len(primes), length):
        raise ArtifactError(f"coefficients of shape {words.shape}, expected {(len(primes), length)}")
    check_highest(words.max(axis=1), primes)


def check_highest(highest: Words, primes: Sequence[int]) -> None:
    """`check_words` where the largest word of each block is known."""
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
    """Whether words that OpenFHE made could be residues of a prime, uniform ones."""
    return prime >> UNIFORM_BITS <= int(words.max()) < prime


def holes(data: bytes | mmap.mmap, primes: Sequence[int], length: int) -> tuple[int, ...]:
    """Where the coefficients lie in bytes that OpenFHE made in this process: an offset for each of `primes`.

    A block is the number of words as 8 bytes and then the words, each less than its prime.
    """
    mark = length.to_bytes(WORD_BYTES, "little")
    out: list[int] = []
    at = 0
    while len(out) < len(primes):
        at = data.find(mark, at)
        start = at + WORD_BYTES
        if at < 0 or start + WORD_BYTES * length > len(data):
            raise BackendError(f"OpenFHE's bytes hold {len(out)} blocks of {length} words, expected {len(primes)}")
        # The ring dimension itself stands in the bytes as well; what follows it is no block of residues.
        if is_block(np.frombuffer(data, "<u8", length, start), primes[len(out)]):
            out.append(start)
            at = start + WORD_BYTES * length
        else:
            at += 1
    rest = len(data) - WORD_BYTES * length * len(primes)
    if rest > MAX_STRUCTURE_BYTES + 64 * len(primes):
        raise BackendError(f"OpenFHE's bytes hold {rest} more than the coefficients")
    return tuple(out)


def extract(data: bytes, primes: Sequence[int], length: int) -> Words:
    """The words, shape (primes, length), of bytes that OpenFHE made in this process."""
    offsets = holes(data, primes, length)
    return np.stack([np.frombuffer(data, "<u8", length, at) for at in offsets]).astype(np.uint64, copy=False)


def template(data: bytes | mmap.mmap, primes: Sequence[int], length: int, tag: str) -> Template:
    """A template from bytes that OpenFHE made in this process."""
    pieces, last = [], 0
    for at in holes(data, primes, length):
        pieces.append(data[last:at])
        last = at + WORD_BYTES * length
    pieces.append(data[last:])
    if not any(tag.encode() in piece for piece in pieces):
        raise BackendError("OpenFHE's bytes don't hold the key tag")
    return Template(tuple(pieces), tuple(primes), length, tag)


def new_tag(identity: str | None = None) -> str:
    """A key tag that nobody outside this process knows: OpenFHE keeps all evaluation keys in one static map.

    Args:
        identity: of the key pair that it is for, which `is_tag_of` knows again.
    """
    return (secrets.token_hex(8) if identity is None else _mark(identity)) + secrets.token_hex(8)


def is_tag_of(tag: str, identity: str) -> bool:
    """Whether a tag was made for a key pair, in this process."""
    return tag[: len(tag) // 2] == _mark(identity)


_PROCESS = secrets.token_bytes(32)


def _mark(identity: str) -> str:
    return hmac.digest(_PROCESS, identity.encode(), "sha256").hex()[:16]
