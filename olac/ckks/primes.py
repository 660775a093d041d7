"""Primes of modulus chains, as OpenFHE picks them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

from olac.errors import InfeasibleError

Technique = Literal["FIXEDMANUAL", "FLEXIBLEAUTO"]
FIXED: Final = "FIXEDMANUAL"
FLEXIBLE: Final = "FLEXIBLEAUTO"
TECHNIQUES: tuple[Technique, ...] = (FIXED, FLEXIBLE)

FARTHEST = 2.0
"""OpenFHE refuses FLEXIBLEAUTO chains in which a scale is so many times another."""
MOST_SCALE_BITS = 59
MOST_FIRST_BITS = 60

WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # these decide primality below 3.3e24


def is_prime(n: int) -> bool:
    """Deterministic Miller-Rabin for n below 3.3e24."""
    if n < 2:
        return False
    for p in WITNESSES:
        if n % p == 0:
            return n == p
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for a in WITNESSES:
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


@lru_cache(maxsize=1 << 15)
def step_to_prime(q: int, step: int) -> int:
    """The first prime among q + step, q + 2 step, and so on. Chains of all lengths share most of these.

    Raises:
        InfeasibleError: there is none of fewer than 63 bits that is larger than the step.
    """
    q += step
    while not is_prime(q):
        q += step
        if not abs(step) < q < 1 << 62:
            raise InfeasibleError(f"there are not enough primes 1 (mod {abs(step)}) for these sizes")
    return q


def _flexible_middle(primes: list[int], order: int) -> None:
    """Primes that keep the scale near its first value although each product squares the deviation."""
    scale = float(primes[-1])
    for count, i in enumerate(range(len(primes) - 2, 0, -1)):
        scale = scale * scale / float(primes[i + 1])
        rounded = math.floor(scale + 0.5)
        step = -order if count % 2 == 0 else order
        candidate = step_to_prime(rounded - rounded % order + 1 + step, step)
        while candidate in primes[i + 1 :]:
            candidate = step_to_prime(candidate, step)
        primes[i] = candidate


def flexible_scales(primes: Sequence[int]) -> tuple[float, ...]:
    """The exact scale of each level of a chain in FLEXIBLEAUTO."""
    scales = [float(primes[-1])]
    for prime in reversed(primes[1:]):
        scales.append(scales[-1] ** 2 / prime)
    return tuple(reversed(scales))


@lru_cache(maxsize=2048)
def modulus_chain(log_ring: int, depth: int, scale_bits: int, first_bits: int, technique: str) -> tuple[int, ...]:
    """The primes q_0 ... q_depth; q_0 stays to the end, and the first rescale drops q_depth.

    Raises:
        InfeasibleError: there are too few primes near the scale; names a scale for which there are enough.
    """
    found = _chain(log_ring, depth, scale_bits, first_bits, technique)
    if found is None:
        enough = fewest_bits(log_ring, depth, first_bits - scale_bits, technique, scale_bits + 1)
        advice = "take fewer levels" if enough is None else f"take a scale of {enough} bits, or fewer levels"
        raise InfeasibleError(
            f"there are not enough primes near 2^{scale_bits} for {depth} levels at ring 2^{log_ring} in {technique}: "
            f"{advice}"
        )
    return found


@lru_cache(maxsize=256)
def fewest_bits(log_ring: int, depth: int, integer_bits: int, technique: str, least: int) -> int | None:
    """The fewest bits of scale, `least` or more, for which there are enough primes; None if there never are.

    Args:
        integer_bits: by how many the first prime has more.
    """
    for bits in range(least, MOST_SCALE_BITS + 1):
        if _chain(log_ring, depth, bits, min(bits + integer_bits, MOST_FIRST_BITS), technique) is not None:
            return bits
    return None


def _chain(log_ring: int, depth: int, scale_bits: int, first_bits: int, technique: str) -> tuple[int, ...] | None:
    """The primes of `modulus_chain`; None if there are too few."""
    try:
        primes = _picked(log_ring, depth, scale_bits, first_bits, technique)
    except InfeasibleError:
        return None
    if technique == FLEXIBLE:
        scales = flexible_scales(primes)
        if max(scales) >= FARTHEST * scales[-1] or scales[-1] >= FARTHEST * min(scales):
            return None
    return primes


def _picked(log_ring: int, depth: int, scale_bits: int, first_bits: int, technique: str) -> tuple[int, ...]:
    order = 2 << log_ring
    primes = [0] * (depth + 1)
    first = (1 << scale_bits) + 1
    primes[-1] = first if is_prime(first) else step_to_prime(first, order)
    if technique == FIXED:
        below = above = primes[-1]
        for count, i in enumerate(range(depth - 1, 0, -1)):
            if count % 2 == 0:
                below = primes[i] = step_to_prime(below, -order)
            else:
                above = primes[i] = step_to_prime(above, order)
    else:
        _flexible_middle(primes, order)
    highest = max(primes[1:]) if depth else primes[-1]
    if first_bits == scale_bits:
        primes[0] = step_to_prime(highest, order)
    else:
        primes[0] = step_to_prime((1 << first_bits) + 1, -order)
        if primes[0] in primes[1:]:
            primes[0] = step_to_prime(highest, order)
    return tuple(primes)
