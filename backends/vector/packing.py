"""Residues in as few whole bytes as their prime takes, as key files hold them: 5 bytes for 37 bits, 6 for 46.

Residues follow one another, each with its lowest byte first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from olac.ckks.sizes import residue_bytes as residue_bytes
from olac.ckks.words import WORD_BYTES, Words, check_highest
from olac.errors import ArtifactError

Packed = npt.NDArray[np.uint8]


def pack(residues: Words, prime: int) -> Packed:
    """Residues in [0, prime) of shape (count,), packed; shape (count * residue_bytes(prime),)."""
    size = residue_bytes(prime)
    words = np.ascontiguousarray(residues, dtype="<u8")
    out = np.empty(len(words) * size, dtype=np.uint8)
    to, taken = out.view(_fields(size, size)), words.view(_fields(size, WORD_BYTES))
    for name in taken.dtype.names or ():
        to[name] = taken[name]
    return out


def unpack(packed: bytes | bytearray | memoryview | Packed, prime: int) -> Words:
    """The residues that were packed, shape (count,).

    Raises:
        ArtifactError: the bytes are no whole number of residues, a residue is not less than the prime, or they are all
            so small that they are not uniform.
    """
    size = residue_bytes(prime)
    data = np.frombuffer(packed, dtype=np.uint8)
    if not len(data) or len(data) % size:
        raise ArtifactError(f"{len(data)} bytes are no residues of {size} bytes each")
    out = np.zeros(len(data) // size, dtype="<u8")
    to, taken = out.view(_fields(size, WORD_BYTES)), data.view(_fields(size, size))
    for name in taken.dtype.names or ():
        to[name] = taken[name]
    check_highest(np.array([out.max()]), (prime,))
    return out.astype(np.uint64, copy=False)


def _fields(size: int, item: int) -> np.dtype[np.void]:
    """The lowest `size` bytes of items of `item` bytes, as fields whose sizes are powers of two."""
    names, formats, offsets, at = [], [], [], 0
    for part in (8, 4, 2, 1):
        if size & part:
            names.append(f"at{at}")
            formats.append(f"<u{part}")
            offsets.append(at)
            at += part
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": item})
