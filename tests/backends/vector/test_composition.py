"""Numbers from residues, against Python's integers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from olac.backends.vector.composition import digits, numbers
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.words import Words

PRIMES = Parameters(16, 40, 37, 41, 5, FLEXIBLE, 0, Bootstrapping(24)).primes
LARGE = ((1 << 50) - 27, (1 << 49) + 69)
"""Moduli at the upper end of what the engine takes; odd and without a common factor is enough."""
COUNTS = [1, 2, 3, 12, len(PRIMES)]


def residues(values: list[int], primes: tuple[int, ...]) -> Words:
    return np.array([[value % prime for value in values] for prime in primes], dtype=np.uint64)


def values_below(primes: tuple[int, ...]) -> list[int]:
    """Extreme and random ones of all sizes."""
    product, chance = 1, random.Random(0)
    out = [0]
    for prime in primes:
        product *= prime
        half = (product - 1) // 2
        out += [half, -half, half - 1, 1 - half, prime // 2, -(prime // 2), product // prime, 1, -1]
        out += [chance.randint(-half, half) for _ in range(20)]
    half = (product - 1) // 2
    for bits in range(1, product.bit_length() - 1):
        out += [value for value in (1 << bits, (1 << bits) - 1, 1 - (1 << bits)) if abs(value) <= half]
    return out


@pytest.mark.parametrize("primes", [PRIMES[:count] for count in COUNTS] + [LARGE], ids=lambda primes: str(len(primes)))
def test_digits_and_numbers(primes: tuple[int, ...]) -> None:
    values = values_below(primes)
    found = digits(residues(values, primes), primes)
    assert all(np.max(np.abs(row)) <= (prime - 1) // 2 for row, prime in zip(found, primes, strict=True))
    for value, column in zip(values, found.T.tolist(), strict=True):
        whole = 0
        for digit, prime in zip(reversed(column), reversed(primes), strict=True):
            whole = whole * prime + digit
        assert whole == value
    bound = 3 * len(primes) * 2.0**-53
    for value, number in zip(values, numbers(residues(values, primes), primes).tolist(), strict=True):
        if abs(value) < 1 << 52:
            assert number == value
        elif abs(value) < 1 << 1020:
            assert abs(int(number) - value) <= bound * abs(value)


def test_numbers_beyond_doubles_are_not_finite() -> None:
    product = 1
    for prime in PRIMES:
        product *= prime
    assert product.bit_length() > 1100
    found = numbers(residues([product // 3, 7], PRIMES), PRIMES)
    assert not np.isfinite(found[0]) and found[1] == 7
