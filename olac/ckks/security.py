"""How large a modulus may be for a ring and a level of security."""

from __future__ import annotations

import itertools

SECURITY_BOUNDS: dict[int, dict[int, int]] = {
    128: {10: 26, 11: 53, 12: 106, 13: 214, 14: 430, 15: 868, 16: 1747, 17: 3515},
    192: {11: 36, 12: 73, 13: 147, 14: 297, 15: 595, 16: 1199, 17: 2405},
    256: {11: 27, 12: 56, 13: 114, 14: 230, 15: 462, 16: 929, 17: 1864},
}
"""Largest log2(QP) by security level and log2 of the ring, for uniform ternary secrets and classical attackers.

Table 5.2 of "Security Guidelines for Implementing Homomorphic Encryption" (Bossuat et al., ePrint 2024/463), lowered a
little if the lattice estimator gave less than the level: at 2^15 for 192 bits and at 2^17.
"""

EARLIER_SECURITY_BOUNDS: dict[int, dict[int, int]] = {
    128: {12: 109, 13: 218, 14: 438, 15: 881, 16: 1747, 17: 3523},
    192: {12: 75, 13: 152, 14: 305, 15: 611, 16: 1199, 17: 2411},
    256: {12: 58, 13: 118, 14: 237, 15: 476, 16: 929, 17: 1866},
}
"""The table of the Homomorphic Encryption Standard of 2018, extended to 2^17 by OpenFHE, which holds contexts to it.

Earlier versions of olac compiled programs by it. Newer attacks reduce its 128 bits by about two, and its 256 by eight.
"""

INTERPOLATION_MARGIN = 1.0
"""Bits by which interpolated figures are lowered, as the cost of attacks is a little below a straight line."""

SPARSE_SECURITY_BOUNDS: dict[int, dict[int, int]] = {128: {15: 768, 16: 1553}}
"""`SECURITY_BOUNDS` for sparse ternary secrets of Hamming weight 192, which programs with bootstraps use.

`SECURITY_BOUNDS` is not meant for such secrets, and no standard has a table for them. These are the largest log2(QP) of
the published 128-bit bootstrapping sets with this weight (Lattigo's). A ring without an entry is refused.
"""

ENCAPSULATION_BOUNDS: dict[int, dict[int, int]] = {128: {15: 128, 16: 128}}
"""Largest log2 of the modulus of the key into the sparser secret of bootstraps, which has a Hamming weight of 32."""


def security_within(table: dict[int, dict[int, int]], log_ring: int, used: float) -> float:
    """Bits of security of a modulus of `used` bits, from the bounds at this ring; 0 if there are none.

    Linear in 1 / used between bounds and through zero beyond them, less a margin, as the cost of attacks is a little
    below these lines (tests/ckks_security.json). A modulus within a bound has at least the bound's level.
    """
    points = sorted((bounds[log_ring], level) for level, bounds in table.items() if log_ring in bounds)
    used = round(used, 2)
    if not points or used <= points[0][0]:
        return float(points[0][1]) if points else 0.0
    for (low, more), (high, less) in itertools.pairwise(points):
        if used <= high:
            line = less + (more - less) * (1 / used - 1 / high) / (1 / low - 1 / high)
            return max(float(less), line - INTERPOLATION_MARGIN)
    bound, level = points[-1]
    return max(0.0, level * bound / used - INTERPOLATION_MARGIN)
