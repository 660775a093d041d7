"""Products and sums of residues as float64, eight at a time, and why none of them is rounded wrongly.

A residue modulo a prime p is any integer that is congruent to it, held exactly as a double. Write |x| <= B p. All
constants (roots, factors) are centred: |w| <= p / 2. `pinv` is 1 / p, rounded.

Facts, for integers below 2^53 in size:

* h = x w, rounded, and l = fma(x, w, -h) are both exact multiples of 1, h + l = x w, |l| <= 2^-53 |x w|.
* fma(v, pinv, M) - M with M = 1.5 * 2^52 is an integer q with |q - v / p| <= 1/2 + 3 * 2^-53 |v / p|, if |v / p| is
  below 2^51. (The fma rounds once, to a multiple of 1. The subtraction is exact.)
* For such q, v - q p is a multiple of 1, as v and q p are, and at most p (1/2 + ...) in size, which is below 2^53.
  So fma(-q, p, v) is exact.

`product` (x w mod p): |h / p| <= B p / 2, so the result is at most p (1/2 + 2^-52 B p) in size, if B p < 2^52. With
p < 2^46 and B <= 12 that is below 0.7 p; with p < 2^50 and B <= 2 it is at most p.
`reduced` (x mod p): at most p (1/2 + 2^-51 B), if B < 2^51.

Primes below 2^46 are called loose: transforms need no reduction within. Primes from 2^46 to 2^50 are called tight.
"""

from __future__ import annotations

from typing import Any

from olac.backends.vector.compiled import inline
from olac.backends.vector.lanes import vadd, vfma, vmul, vneg, vsub

MAGIC = 1.5 * 2.0**52
"""Adding and subtracting it rounds to integers."""
MOST_BITS = 50
"""All primes are below 2^50."""
LOOSE_BITS = 46
"""Primes below 2^46 are loose."""


@inline
def product(x: Any, w: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """x w mod p."""
    h = vmul(x, w)
    low = vfma(x, w, vneg(h))
    q = vsub(vfma(h, pinv, magic), magic)
    return vadd(vfma(vneg(q), p, h), low)


@inline
def reduced(x: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """x mod p."""
    q = vsub(vfma(x, pinv, magic), magic)
    return vfma(vneg(q), p, x)
