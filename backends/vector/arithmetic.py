"""Products and sums of residues as float64, eight at a time, and why none of them is rounded wrongly.

A residue modulo a prime p is any integer that is congruent to it, held exactly as a double. It is centred if it is the
least in size, at most (p - 1) / 2. Constants (roots, factors, residues of keys) are centred: |w| < p / 2. `pinv` is
1 / p, rounded. u is 2^-53; rounding a number v to a double changes it by at most u |v|.

Facts, for integers x, w and v that are doubles, and M = 1.5 * 2^52:

* h = x w, rounded, and l = fma(x, w, -h) are integers, h + l = x w, and |l| <= u |x w|.
* q = fma(v, pinv, M) - M is an integer with |q - v / p| <= 1/2 + u |v / p|, if |v pinv| <= 2^51: the sum lies in
  [2^52, 2^53], where the doubles are the integers, so that it is rounded once, to an integer; the subtraction is
  exact; and pinv is off by at most u / p. (Not beyond: below 2^52 sums are rounded to halves, and then q is none.)
* For such q, v - q p is an integer, as v and q p are, of at most p / 2 + u |v| <= 3/4 p in size. So it is a double if
  p is below 2^53, and fma(-q, p, v) is exact.

`reduced`: x mod p, at most p / 2 + u |x| in size, if |x| <= 2^51 p (a little less, for pinv: 2^50 p always will do). As
(p - 1) / 2 is the largest integer below p / 2 + 1/2, results are centred if |x| < 2^52.

`product`: x w mod p. With v = h, the result is at most p / 2 + u |h| + u |x w|, that is

    p / 2 + 2^-52 |x w|,

if |x w| <= 0.99 * 2^51 p. It is an integer below 2^53, so the last sum is exact, too. In units of p, with |x| <= B p:

    primes                  times a constant            times |y| <= D p
    loose, below 2^46       1/2 + B / 128, B <= 63      1/2 + B D / 64, B D <= 31
    tight, below 2^50       1/2 + B / 8,   B <= 3.9     1/2 + B D / 4,  B D <= 1.9

Primes below 2^46 are called loose: transforms need no reduction within, as what they make grows to no more than 11 p
(see `transforms`). Primes from 2^46 to 2^50 are called tight. Sums are below 2^53: of at most 8 p for tight primes, of
at most 128 p for loose ones.
"""

from __future__ import annotations

from typing import Any

from olac.backends.vector.compiled import inline
from olac.backends.vector.lanes import vadd, vfma, vmul, vneg, vsub

MAGIC = 1.5 * 2.0**52
"""Adding and subtracting it rounds numbers of at most 2^51 in size to integers."""
MOST_BITS = 50
"""All primes are below 2^50."""
LOOSE_BITS = 46
"""Primes below 2^46 are loose."""


@inline
def product(x: Any, w: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """x w mod p, at most p / 2 + 2^-52 |x w| in size, if |x w| <= 0.99 * 2^51 p."""
    h = vmul(x, w)
    low = vfma(x, w, vneg(h))
    q = vsub(vfma(h, pinv, magic), magic)
    return vadd(vfma(vneg(q), p, h), low)


@inline
def reduced(x: Any, pinv: Any, p: Any, magic: Any) -> Any:
    """x mod p, at most p / 2 + 2^-53 |x| in size, if |x| <= 2^50 p: centred, if |x| < 2^52."""
    q = vsub(vfma(x, pinv, magic), magic)
    return vfma(vneg(q), p, x)
