"""How large a modulus may be at a ring for a level of security."""

from __future__ import annotations

import itertools

SECURITY_BOUNDS: dict[int, dict[int, int]] = {
    128: {10: 26, 11: 53, 12: 106, 13: 214, 14: 430, 15: 868, 16: 1747, 17: 3515},
    192: {11: 36, 12: 73, 13: 147, 14: 297, 15: 595, 16: 1199, 17: 2405},
    256: {11: 27, 12: 56, 13: 114, 14: 230, 15: 462, 16: 929, 17: 1864},
}
"""Largest log2(QP) by security level and log2 of the ring, for uniform ternary secrets and classical attackers.

Table 5.2 of "Security Guidelines for Implementing Homomorphic Encryption" (Bossuat et al., ePrint 2024/463), a little
lower where the lattice estimator gave less than the level: at 2^15 for 192 bits and at 2^17.
"""

EARLIER_SECURITY_BOUNDS: dict[int, dict[int, int]] = {
    128: {12: 109, 13: 218, 14: 438, 15: 881, 16: 1747, 17: 3523},
    192: {12: 75, 13: 152, 14: 305, 15: 611, 16: 1199, 17: 2411},
    256: {12: 58, 13: 118, 14: 237, 15: 476, 16: 929, 17: 1866},
}
"""The table of the Homomorphic Encryption Standard of 2018, as OpenFHE extends it to 2^17 and holds contexts to it.

Programs of earlier versions were held to it. Newer attacks cost it some two bits of 128, and eight of 256.
"""

INTERPOLATION_MARGIN = 1.0
"""Bits that figures between and beyond the bounds are below the straight line, from which costs of attacks bend."""

SPARSE_SECURITY_BOUNDS: dict[int, dict[int, int]] = {128: {15: 768, 16: 1553}}
"""The same for sparse ternary secrets of Hamming weight 192, as programs with bootstraps use them.

The dense table is not meant for these. No standard has a table for them; these are the largest log2(QP) of the
published 128-bit bootstrapping sets with this weight (Lattigo's), and a ring without an entry is refused.
"""

ENCAPSULATION_BOUNDS: dict[int, dict[int, int]] = {128: {15: 128, 16: 128}}
"""Largest log2 of the modulus of the key into the sparser secret of bootstraps, which has a Hamming weight of 32."""


def security_within(table: dict[int, dict[int, int]], log_ring: int, used: float) -> float:
    """Bits of security of a modulus of so many bits, from the bounds at this ring; 0 where there are none.

    Linear in 1 / used between bounds and through zero beyond them, less a margin: costs of attacks bend a little below
    these lines (tests/ckks_security.json). What is within a bound has its level at least.
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
