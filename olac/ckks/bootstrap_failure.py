"""How likely it is that a bootstrap fails, computed from the weight of its sparser secret.

A bootstrap raises c_0 + c_1 s, which is m modulo q_0, to t = m + q_0 I, and reduces it by a sine that is right for
|t / q_0| <= K alone. A coefficient of c_1 s is, for a secret s of h coefficients 1 or -1, a sum of h coefficients of
c_1 or their negatives, all different ones. They are uniform modulo q_0, as ciphertexts are not to be told from uniform
pairs. So it is q_0 V, where V is a sum of h independent uniform numbers of [-1/2, 1/2]. With c_0, too, of least size,
|t / q_0| <= |V| + 1/2. What remains to bound is P(|V| > K - 1/2), by the distribution of such sums (Irwin and Hall).

The analysis is that of Bossuat, Mouchet, Troncoso-Pastoriza and Hubaux, "Efficient Bootstrapping for Approximate
Homomorphic Encryption with Non-sparse Keys", EUROCRYPT 2021. They take c_0 for one more independent number. It is
m - c_1 s modulo q_0, so its largest value is counted here.
"""

from __future__ import annotations

import math
from fractions import Fraction

MOST_FAILURE_BITS = -40
"""log2 of the largest probability that a bootstrap fails in any of its coefficients."""


def irwin_hall(count: int, most: Fraction) -> Fraction:
    """P(U_1 + ... + U_count <= most) for independent U_i, uniform on [0, 1], exactly."""
    terms = ((-1) ** k * math.comb(count, k) * (most - k) ** count for k in range(min(count, math.floor(most)) + 1))
    return sum(terms, Fraction(0)) / math.factorial(count)


def failure_bits(weight: int, most: int, coefficients: int) -> float:
    """log2 of a bound of the probability that any |t / q_0| is above `most`; -inf if none can be.

    Args:
        weight: Hamming weight h of the secret under which ciphertexts are raised, at least 1.
        most: K, at least 1.
        coefficients: of a ciphertext. All have to be right, and what happens to them may depend on each other.
    """
    # V + h / 2 is a sum of numbers on [0, 1], and its two tails are alike.
    tail = 2 * irwin_hall(weight, Fraction(weight, 2) - (most - Fraction(1, 2)))
    found = min(Fraction(1), coefficients * tail)
    return math.log2(found.numerator) - math.log2(found.denominator) if found > 0 else -math.inf
