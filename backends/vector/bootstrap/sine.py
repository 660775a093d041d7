"""The modular reduction of a bootstrap as products of ciphertexts, with exact levels and scales, for any backend.

Coefficients come back as t = m + q_0 I with a small integer I. Reducing them modulo q_0 is taken for a sine of t / q_0
(Cheon, Han, Kim, Kim and Song, EUROCRYPT 2018): sin(2 pi t / q_0) = cos(2 pi (t / q_0 - 1/4)). The cosine is made from
one of an eighth of the angle by three doublings, cos(2 v) = 2 cos(v)^2 - 1 (Han and Ki, "Better Bootstrapping for
Approximate Homomorphic Encryption", CT-RSA 2020).

With u = (t / q_0 - 1/4) / (K + 1/4), which is within [-1, 1], the cosine of an eighth of the angle is an even function
of u. So it is a polynomial in y = T_2(u), of half the degree: T_2k(u) = T_k(y), and the coefficients are values of
Bessel functions (Jacobi and Anger). It is evaluated by splits p = q T_m + r at powers of two (Paterson and
Stockmeyer). All products of a sum are relinearised and rescaled together.

What a bootstrap multiplies the sine by at last, 2^correction / (2 pi), is in the scales: the last doubling gives a
cosine whose scale is the canonical one times this factor. Read at the canonical scale, it is the product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import jv

from olac.ckks.parameters import Parameters

Array = npt.NDArray[np.float64]
C = TypeVar("C")

RANGE = 13
"""K: the largest |t / q_0| that is reduced; `olac.ckks.bootstrap_failure` has how seldom it is larger.

It is the least K for which that is seldom enough at all rings: more periods take a higher degree and lose precision.
"""
DOUBLINGS = 3
SQUARES = 5
"""Levels of the polynomial: one for y, and four for a degree of at most 15 in y."""
MOST_ORDER = 100
"""Bessel functions of twice this order are zero at the angles that occur."""
ERROR_BITS = 20
"""The polynomial's error is at most 2^(ERROR_BITS - scale_bits) of a slot at a correction of 4, as the noise is."""
DIRECT = 3
"""Chebyshev polynomials up to this one are summed without a split."""


@dataclass(frozen=True)
class Combination:
    """One value of a plan: (factor * sum of products + sum of terms + constant), relinearised and rescaled.

    Values are numbered in the order of the plan, and 0 is the operand. All are first brought to level + 1, by dropping
    limbs, which leaves their scales.

    Attributes:
        level, scale: of the result; products and terms have scale * q_(level + 1) before the rescale.
        products: pairs of values.
        factor: of the products.
        terms: (value, integer that it is multiplied by).
        constant: added to every slot before the rescale: the integer that stands for it.
    """

    level: int
    scale: float
    products: tuple[tuple[int, int], ...] = ()
    factor: int = 1
    terms: tuple[tuple[int, int], ...] = ()
    constant: int = 0


@dataclass(frozen=True)
class SinePlan:
    """From u at `level` and its canonical scale to the reduced value, `SQUARES + DOUBLINGS` levels below.

    Attributes:
        level: of the operand, whose scale is canonical.
        degree: of the polynomial in y; the one in u has twice this degree.
        error: bound of what the polynomial does to a slot, for |t / q_0| <= `RANGE`.
        combinations: the values after the operand; the last one is the result.
    """

    level: int
    degree: int
    error: float
    combinations: tuple[Combination, ...]

    @property
    def levels(self) -> int:
        """Levels from the operand to the result."""
        return self.level - self.combinations[-1].level

    @property
    def relinearisations(self) -> int:
        """Combinations with products, each of which takes a key switch."""
        return sum(bool(one.products) for one in self.combinations)

    def run(self, operand: C, combine: Callable[[Combination, Mapping[int, C]], C]) -> C:
        """Compute all values; `combine` gets one combination and the values that are still needed, by their numbers."""
        values, last = {0: operand}, self._last_uses()
        for place, one in enumerate(self.combinations, 1):
            values[place] = combine(one, values)
            for value in [value for value in values if last.get(value) == place]:
                del values[value]
        return values[len(self.combinations)]

    def _last_uses(self) -> dict[int, int]:
        """For each value the last one that is computed from it."""
        found = {}
        for place, one in enumerate(self.combinations, 1):
            for value in (*itertools.chain(*one.products), *(value for value, _ in one.terms)):
                found[value] = place
        return found


def half_width() -> float:
    """t / q_0 - 1/4 is this times u."""
    return RANGE + 0.25


def chebyshev(degree: int) -> tuple[Array, float]:
    """Coefficients in y of cos(2 pi (K + 1/4) u / 2^DOUBLINGS), and a bound of the error for u in [-1, 1]."""
    angle = 2 * math.pi * half_width() / 2**DOUBLINGS
    orders = np.arange(MOST_ORDER)
    coefficients = 2.0 * (-1.0) ** orders * jv(2 * orders, angle)
    coefficients[0] /= 2.0
    return coefficients[: degree + 1], float(np.abs(coefficients[degree + 1 :]).sum())


@lru_cache(maxsize=64)
def plan_sine(parameters: Parameters) -> SinePlan:
    """The plan with the fewest products whose error is small beside the noise, and of these the most exact.

    If the noise is so small that there is none, it is the most exact plan. Its last level is the output level of a
    bootstrap.
    """
    setup = parameters.bootstrapping
    assert setup is not None
    gain = 2.0**setup.correction / (2 * math.pi)
    allowed = 2.0 ** (ERROR_BITS - parameters.scale_bits + setup.correction - 4)
    level = setup.output_level + SQUARES + DOUBLINGS
    found = []
    for degree in range(1, 1 << SQUARES - 1):
        coefficients, error = chebyshev(degree)
        made = _Planner(parameters, level).plan(coefficients, gain)
        found.append(SinePlan(level, degree, 4.0**DOUBLINGS * gain * error, made))
    exact = [one for one in found if one.error <= allowed]
    if not exact:
        return min(found, key=lambda one: one.error)
    return min(exact, key=lambda one: (one.relinearisations, one.error))


@dataclass
class _Planner:
    """Plans one polynomial in y from an operand at a level."""

    parameters: Parameters
    level: int
    made: list[Combination] = field(default_factory=list)
    powers: dict[int, int] = field(default_factory=dict)

    def plan(self, coefficients: Array, gain: float) -> tuple[Combination, ...]:
        setup = self.parameters.bootstrapping
        assert setup is not None
        self.powers[1] = self._double(0)
        level = setup.output_level + DOUBLINGS
        scale = gain ** (2.0**-DOUBLINGS) * self.parameters.scale(level)
        value = self._polynomial(coefficients, level, scale)
        for _ in range(DOUBLINGS):
            value = self._double(value)
        return tuple(self.made)

    def _state(self, value: int) -> tuple[int, float]:
        if not value:
            return self.level, self.parameters.scale(self.level)
        return self.made[value - 1].level, self.made[value - 1].scale

    def _add(self, one: Combination) -> int:
        self.made.append(one)
        return len(self.made)

    def _prime(self, level: int) -> int:
        return self.parameters.primes[level]

    def _double(self, value: int) -> int:
        """2 v^2 - 1."""
        level, scale = self._state(value)
        doubled = scale * scale
        return self._add(
            Combination(level - 1, doubled / self._prime(level), ((value, value),), 2, (), -round(doubled))
        )

    def _power_level(self, k: int) -> int:
        """The level of T_k(y)."""
        return self._state(self.powers[1])[0] - (k - 1).bit_length()

    def _power(self, k: int) -> int:
        """T_k(y), from T_2a = 2 T_a^2 - 1 and T_(2a+1) = 2 T_a T_(a+1) - y."""
        if k not in self.powers:
            if k % 2 == 0:
                self.powers[k] = self._double(self._power(k // 2))
            else:
                a, b, y = self._power(k // 2), self._power(k // 2 + 1), self.powers[1]
                level = min(self._state(a)[0], self._state(b)[0])
                scale = self._state(a)[1] * self._state(b)[1]
                term = (y, -round(scale / self._state(y)[1]))
                self.powers[k] = self._add(Combination(level - 1, scale / self._prime(level), ((a, b),), 2, (term,), 0))
        return self.powers[k]

    def _polynomial(self, coefficients: Array, level: int, scale: float) -> int:
        """A polynomial in y at a level and a scale."""
        doubled = scale * self._prime(level + 1)
        products, terms = [], []
        while True:
            degree = len(coefficients) - 1
            if degree == 0 or (degree <= DIRECT and self._power_level(degree) > level):
                break
            split = 1 << (degree.bit_length() - 1)
            quotient, coefficients = _divide(coefficients, split)
            power = self._power(split)
            if len(quotient) == 1:
                terms.append(self._term(power, float(quotient[0]), doubled))
            else:
                value = self._polynomial(quotient, level + 1, doubled / self._state(power)[1])
                products.append((value, power))
        for k in range(1, len(coefficients)):
            terms.append(self._term(self._power(k), float(coefficients[k]), doubled))
        return self._add(
            Combination(level, scale, tuple(products), 1, tuple(terms), round(float(coefficients[0]) * doubled))
        )

    def _term(self, power: int, value: float, doubled: float) -> tuple[int, int]:
        return power, round(value * doubled / self._state(power)[1])


def _divide(coefficients: Array, split: int) -> tuple[Array, Array]:
    """q and r with p = q T_split + r, for split <= degree < 2 split."""
    high = coefficients[split:]
    quotient = 2.0 * high
    quotient[0] = high[0]
    remainder = coefficients[:split].copy()
    for k in range(1, len(high)):  # T_m T_k = (T_(m+k) + T_(m-k)) / 2
        remainder[split - k] -= high[k]
    return quotient, remainder
