"""Residues in as few bytes as their prime takes."""

from __future__ import annotations

import numpy as np
import pytest

from olac.backends.vector.packing import pack, residue_bytes, unpack
from olac.errors import ArtifactError

PRIMES = [251, 65521, (1 << 20) - 3, (1 << 30) - 35, (1 << 37) - 25, (1 << 41) - 21, (1 << 46) - 21, (1 << 50) - 27]


@pytest.mark.parametrize("prime", [*PRIMES, (1 << 61) - 1])
@pytest.mark.parametrize("count", [1, 7, 4096])
def test_bytes_are_those_of_python(prime: int, count: int) -> None:
    residues = np.random.default_rng(count).integers(0, prime, count, dtype=np.uint64)
    residues[0] = prime - 1
    size = residue_bytes(prime)
    packed = pack(residues, prime)
    assert packed.tobytes() == b"".join(int(residue).to_bytes(size, "little") for residue in residues)
    assert unpack(packed, prime).tolist() == residues.tolist()
    assert unpack(memoryview(packed.tobytes()), prime).tolist() == residues.tolist()


def test_sizes() -> None:
    assert [residue_bytes(prime) for prime in PRIMES] == [1, 2, 3, 4, 5, 6, 6, 7]
    assert residue_bytes((1 << 40) + 15) == 6


@pytest.mark.parametrize("prime", PRIMES)
def test_residues_that_are_not_less_than_their_prime(prime: int) -> None:
    size, residues = residue_bytes(prime), np.full(16, prime - 1, dtype=np.uint64)
    data = bytearray(pack(residues, prime).tobytes())
    for wrong in (prime, 256**size - 1):
        data[3 * size : 4 * size] = wrong.to_bytes(size, "little")
        with pytest.raises(ArtifactError, match="not less than their prime"):
            unpack(data, prime)


@pytest.mark.parametrize("prime", PRIMES[1:])
def test_residues_that_are_not_uniform(prime: int) -> None:
    residues = np.zeros(16, dtype=np.uint64)
    for largest in (0, (prime >> 8) - 1):
        residues[5] = largest
        with pytest.raises(ArtifactError, match="not uniform"):
            unpack(pack(residues, prime), prime)


@pytest.mark.parametrize("size", [0, 4, 11])
def test_other_numbers_of_bytes(size: int) -> None:
    with pytest.raises(ArtifactError, match=f"{size} bytes are no residues of 5"):
        unpack(bytes(size), PRIMES[4])


def test_residues_that_do_not_lie_side_by_side() -> None:
    residues = np.arange(100, 200, dtype=np.uint64)
    assert np.array_equal(pack(residues[::3], 251), residues[::3].astype(np.uint8))
