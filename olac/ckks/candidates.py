"""Sets of parameters that keep a security level, with and without bootstraps."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from olac.ckks.parameters import (
    BOOTSTRAP_FIRST_BITS,
    BOOTSTRAP_SCALE_BITS,
    MOST_DEPTH,
    MOST_DIGITS,
    OPENFHE_RECIPE,
    RECIPES,
    Bootstrapping,
    Parameters,
)
from olac.ckks.primes import FIXED, FLEXIBLE


def candidates(
    depth: int,
    scale_bits: int,
    first_bits: int,
    *,
    technique: str = FIXED,
    security: int = 128,
    log_rings: tuple[int, ...] = (12, 13, 14, 15, 16),
) -> list[Parameters]:
    """All sets of the given depth and precision that keep the security, the smallest ring first, few digits first."""
    found = []
    for log_ring in log_rings:
        for digits in range(1, depth + 2):
            if not Parameters.valid_digits(depth, digits) or scale_bits < log_ring + 4:
                continue
            parameters = Parameters(log_ring, depth, scale_bits, first_bits, digits, technique, security)
            if parameters.secure:
                found.append(parameters)
    return found


BUDGETS = ((3, 3), (4, 3), (5, 3), (4, 4), (5, 4))
"""Budgets to try: levels of the two transforms of a bootstrap.

A transform in two levels is slower and holds 64 rotated ciphertexts at once: 17 GB on all slots, 10 in three levels.
"""


def deep_chains(
    *,
    scale_bits: int = BOOTSTRAP_SCALE_BITS,
    first_bits: int = BOOTSTRAP_FIRST_BITS,
    security: int = 128,
    log_rings: tuple[int, ...] = (15, 16),
    budgets: tuple[tuple[int, int], ...] = BUDGETS,
    most_rest: int = MOST_DEPTH,
    recipe: str = OPENFHE_RECIPE,
) -> list[Parameters]:
    """All sets with bootstraps that keep the security and leave levels between two bootstraps.

    Args:
        most_rest: the most levels that bootstrapping leaves.
        recipe: of the bootstraps.
    """
    found, sine = [], RECIPES[recipe].sine
    correction = first_bits - scale_bits
    for log_ring, digits in itertools.product(log_rings, range(2, MOST_DIGITS + 1)):
        if scale_bits < log_ring + 4:
            continue
        least = 2 + sine + min(map(sum, budgets))
        most = most_rest + sine + max(map(sum, budgets))
        for depth in range(least, min(most, MOST_DEPTH) + 1):
            if not Parameters.valid_digits(depth, digits):
                continue
            if not _is_secure(log_ring, depth, scale_bits, first_bits, digits, security):
                break
            setups = (
                Bootstrapping(rest, budget, correction, recipe=recipe)
                for budget in budgets
                if 2 <= (rest := depth - sine - sum(budget)) <= most_rest
            )
            chain = log_ring, depth, scale_bits, first_bits, digits, FLEXIBLE, security
            found += [Parameters(*chain, setup) for setup in setups]
    return found


def longest_chains(
    security: int = 128,
    log_rings: tuple[int, ...] = (15, 16),
    takes: Callable[[Parameters], bool] = lambda chain: True,
    recipe: str = OPENFHE_RECIPE,
) -> list[Parameters]:
    """For each ring and number of digits the longest chain with bootstraps in 3 + 3 levels, of those that `takes`."""
    longest = {
        (chain.log_ring, chain.digits): chain
        for chain in deep_chains(security=security, log_rings=log_rings, budgets=BUDGETS[:1], recipe=recipe)
        if takes(chain)
    }
    return list(longest.values())


def _is_secure(log_ring: int, depth: int, scale_bits: int, first_bits: int, digits: int, security: int) -> bool:
    """Whether a chain for bootstraps keeps the security, whatever its levels are for."""
    setup = Bootstrapping(depth - RECIPES[OPENFHE_RECIPE].sine - 2, (1, 1), first_bits - scale_bits)
    return Parameters(log_ring, depth, scale_bits, first_bits, digits, FLEXIBLE, security, setup).secure
