"""Where coefficient words lie in the bytes that OpenFHE makes of ciphertexts and keys, and key tags."""

from __future__ import annotations

import hmac
import mmap
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from olac.ckks.words import WORD_BYTES, Words, check_words, is_block
from olac.errors import BackendError

MAX_STRUCTURE_BYTES = 1 << 16


@dataclass(frozen=True)
class Template:
    """OpenFHE's bytes of one kind of object, with holes in the place of the coefficient words.

    Attributes:
        pieces: the bytes around the holes, one more than there are holes.
        primes: for each hole, the prime that its words must be less than.
        length: words in a hole.
        tag: the key tag in the pieces.
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


def holes(data: bytes | mmap.mmap, primes: Sequence[int], length: int) -> tuple[int, ...]:
    """Where the coefficients are in bytes that OpenFHE made in this process: an offset for each of `primes`.

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
        # The ring dimension is in the bytes as well, but no block of residues follows it.
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
    """A key tag that nobody outside this process knows, for OpenFHE's static map of all evaluation keys.

    Args:
        identity: of the key pair that it is for, which `is_tag_of` recognises.
    """
    return (secrets.token_hex(8) if identity is None else _mark(identity)) + secrets.token_hex(8)


def is_tag_of(tag: str, identity: str) -> bool:
    """Whether a tag was made for a key pair, in this process."""
    return tag[: len(tag) // 2] == _mark(identity)


_PROCESS = secrets.token_bytes(32)


def _mark(identity: str) -> str:
    return hmac.digest(_PROCESS, identity.encode(), "sha256").hex()[:16]
