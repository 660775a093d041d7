"""Residues in as few whole bytes as their prime takes, as key files hold them: 5 bytes for 37 bits, 6 for 46.

Residues follow one another, each with its lowest byte first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from olac.backends.vector.key_kernels import pack_words, unpack_words
from olac.ckks.sizes import residue_bytes as residue_bytes
from olac.ckks.words import Words, check_highest
from olac.errors import ArtifactError

Packed = npt.NDArray[np.uint8]


def pack(residues: Words, prime: int) -> Packed:
    """Residues in [0, prime) of shape (count,), packed; shape (count * residue_bytes(prime),)."""
    size = residue_bytes(prime)
    out = np.empty(len(residues) * size, dtype=np.uint8)
    pack_words(np.ascontiguousarray(residues, dtype=np.uint64), size, out)
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
    data = data if data.flags.writeable else data.copy()  # kernels take no arrays that can't be written
    out = np.empty(len(data) // size, dtype=np.uint64)
    check_highest(np.array([unpack_words(data, size, out)], dtype=np.uint64), (prime,))
    return out
