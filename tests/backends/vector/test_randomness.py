"""The randomness of keys: known answers, distributions, and forks."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from hashlib import shake_256
from math import comb
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chi2

from benchmarks.security import SIGMA as ESTIMATED
from olac.backends.vector.randomness import (
    BINOMIAL_PAIRS,
    CHUNK_WORDS,
    SEED_BYTES,
    SIGMA,
    errors,
    new_seed,
    sparse_ternary,
    uniform,
)

ROOT = Path(__file__).resolve().parents[3]
SEED = bytes(range(32))
PRIMES = [(1 << 36) + 0x2C0001, (1 << 37) - 0x1FFFF, (1 << 41) - 0x3FFFF, (1 << 45) + (1 << 44) + 1, (1 << 49) - 0x7FFF]
"""Moduli on both sides of powers of two; `uniform` never asks whether they are prime."""
RARE = 1e-9
"""A right distribution fails a test of what the system's generator gave as rarely as this."""


KNOWN = [
    [68, 7, 21, 70, 3, 25, 75, 7],
    [372538803, 27509673324, 44635664214, 106960799527],
    [44275634869627, 39682951334081, 34623717722787, 8784353372003],
    [31696184821571, 33920804033164, 30657601095882, 41479393135549],
]
"""Key files hold seeds, so these must never change."""


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:  # type: ignore[type-arg]
    return float(np.sum((counts - expected) ** 2 / expected))


def test_known_answers() -> None:
    assert uniform(SEED, 0, 97, 8).tolist() == KNOWN[0]
    assert uniform(SEED, 1, PRIMES[1], 4).tolist() == KNOWN[1]
    assert uniform(SEED, 1, PRIMES[3], 4).tolist() == KNOWN[2]
    assert uniform(SEED[::-1], 1, PRIMES[3], 4).tolist() == KNOWN[3]


@pytest.mark.parametrize("prime", [97, *PRIMES])
def test_uniform_is_the_stream_of_its_definition(prime: int) -> None:
    """AES block by block, and one residue after the other, over several chunks."""
    count = 2 * CHUNK_WORDS + 5
    name = (
        b"olac vector engine, uniform residues of a key, 1:" + SEED + bytes([3, 0, 0, 0]) + prime.to_bytes(8, "little")
    )
    block = Cipher(algorithms.AES(shake_256(name).digest(32)), modes.ECB()).encryptor()
    expected: list[int] = []
    for counter in itertools.count():
        data = block.update(counter.to_bytes(16, "big"))
        for at in (0, 8):
            word = int.from_bytes(data[at : at + 8], "little") % (1 << prime.bit_length())
            if word < prime:
                expected.append(word)
        if len(expected) >= count:
            break
    assert uniform(SEED, 3, prime, count).tolist() == expected[:count]
    assert uniform(SEED, 3, prime, 7).tolist() == expected[:7]


@pytest.mark.parametrize("prime", PRIMES)
def test_residues_are_uniform(prime: int) -> None:
    """By their size, and by their lowest bits; the answers are known, so a limit of three in a thousand is enough."""
    n, bins = 1 << 20, 1024
    found = uniform(SEED, 0, prime, n)
    assert found.dtype == np.uint64 and found.max() < prime and found.max() > prime - prime // 10000
    edges = [prime * k // bins for k in range(bins + 1)]
    counts = np.histogram(found.astype(float), np.array(edges, dtype=float))[0]
    expected = n * np.diff([float(edge) for edge in edges]) / prime
    assert chi2.isf(0.997, bins - 1) < chi_square(counts, expected) < chi2.isf(0.003, bins - 1)
    low = np.bincount((found % np.uint64(bins)).astype(np.int64), minlength=bins)
    assert chi2.isf(0.997, bins - 1) < chi_square(low, np.full(bins, n / bins)) < chi2.isf(0.003, bins - 1)
    centred = found / prime - 0.5
    assert abs(np.mean(centred[1:] * centred[:-1])) < 5 / 12 / np.sqrt(n)


def test_streams_share_nothing() -> None:
    """Another seed, digit or limb is another stream; none is another one shifted."""
    streams = [
        uniform(seed, digit, prime, 4096)
        for seed in (SEED, SEED[::-1])
        for digit in (0, 1)
        for prime in (PRIMES[1], PRIMES[1] - 0x20000)
    ]
    assert len(np.unique(np.concatenate(streams))) == 8 * 4096


def test_seeds() -> None:
    assert len({new_seed() for _ in range(100)}) == 100
    assert len(new_seed()) == SEED_BYTES == 32
    with pytest.raises(ValueError, match="31 bytes"):
        uniform(SEED[1:], 0, 97, 8)


def test_errors_are_a_centred_binomial() -> None:
    n = 1 << 20
    found = errors(n).astype(np.int64)
    assert SIGMA >= 3.2 > ESTIMATED
    probability = np.array([comb(2 * BINOMIAL_PAIRS, k) / 4.0**BINOMIAL_PAIRS for k in range(2 * BINOMIAL_PAIRS + 1)])
    counts = np.bincount(found + BINOMIAL_PAIRS, minlength=len(probability))
    assert len(counts) == len(probability) and counts.sum() == n
    common = n * probability > 10
    rest, expected = counts[~common].sum(), n * probability[~common].sum()
    statistic = chi_square(np.append(counts[common], rest), np.append(n * probability[common], expected))
    assert statistic < chi2.isf(RARE, common.sum())
    assert abs(found.mean()) < 6 * SIGMA / np.sqrt(n)
    fourth = 3 * SIGMA**4 - SIGMA**2  # of 42 bits
    assert abs((found**2).mean() - SIGMA**2) < 6 * np.sqrt((fourth - SIGMA**4) / n)
    assert abs((found[1:] * found[:-1]).mean()) < 6 * SIGMA**2 / np.sqrt(n)
    for bound in (7, 10, 12):  # at least 80 are expected beyond
        far = 2 * n * probability[: BINOMIAL_PAIRS - bound].sum()
        assert abs(np.sum(np.abs(found) > bound) - far) < 6 * np.sqrt(far)


def test_bits_of_errors_are_counted() -> None:
    """Against Python's count, for words of all zeros, all ones and random bits."""
    words = [0, (1 << 64) - 1, 1 << 41, 1 << 42, *(int.from_bytes(os.urandom(8), "little") for _ in range(500))]
    data = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", lambda size: data[:size])
        found = errors(len(words)).tolist()
    assert found == [(word % (1 << 42)).bit_count() - 21 for word in words]


def test_sparse_secrets_are_all_as_likely() -> None:
    found: Counter[bytes] = Counter(sparse_ternary(8, 2).tobytes() for _ in range(20000))
    assert len(found) == comb(8, 2) * 4
    counts = np.array(list(found.values()))
    assert chi_square(counts, np.full(len(counts), 20000 / len(counts))) < chi2.isf(RARE, len(counts) - 1)


@pytest.mark.parametrize(("count", "weight"), [(1, 1), (16, 0), (16, 16), (1024, 32), (1 << 16, 192)])
def test_weight_of_sparse_secrets(count: int, weight: int) -> None:
    found = sparse_ternary(count, weight)
    assert found.dtype == np.int8 and found.shape == (count,)
    assert np.sum(np.abs(found)) == np.count_nonzero(found) == weight


@pytest.mark.parametrize(("count", "weight"), [(24, 3), (16, 17), (0, 0), (16, -1)])
def test_impossible_weights(count: int, weight: int) -> None:
    with pytest.raises(ValueError, match="places of"):
        sparse_ternary(count, weight)


FORKS = """
import json, os, sys
from olac.backends.vector.randomness import errors, new_seed, sparse_ternary

def drawn():
    return [new_seed().hex(), errors(64).tobytes().hex(), sparse_ternary(4096, 32).tobytes().hex()]

drawn()
found = []
for _ in range(3):
    read, write = os.pipe()
    if not os.fork():
        os.write(write, json.dumps(drawn()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found.append(json.load(pipe))
    os.wait()
print(json.dumps([*found, drawn()]))
"""


def test_forked_processes_share_nothing() -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(done.stdout)
    assert len({value for one in found for value in one}) == 12
