"""Compositions of minimax polynomials that approximate the sign, and thereby ReLU and the maximum.

    relu(x) ~ x (1 + p(x)) / 2        max(a, b) ~ (a + b) / 2 + (a - b) p(a - b) / 2

p = p_n o ... o p_1, where each stage is the odd polynomial that is nearest to the sign on the image of the stages
before it. At the same depth, compositions are much more exact than single polynomials, because degrees multiply while
depths add up. Degrees by precision: Lee et al., "Precise approximation of convolutional neural networks for
homomorphically encrypted data" (arXiv 2105.10879).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from olac.polynomials.remez import approximate_sign
from olac.system.arrays import Array

DEGREES: dict[int, tuple[int, ...]] = {
    4: (5,),
    5: (13,),
    6: (3, 7),
    7: (7, 7),
    8: (7, 15),
    9: (15, 15),
    10: (7, 7, 13),
    11: (7, 7, 27),
    12: (7, 15, 27),
    13: (15, 15, 27),
    14: (15, 27, 29),
}
"""Degrees of the stages, by the precision alpha in bits."""

SEARCH_STEPS = 24
SEARCH_POINTS = 1001


@dataclass(frozen=True)
class SignStage:
    """An odd polynomial sum_k c_k T_k(x / half_width); `coefficients` are c_0, c_1, ..."""

    coefficients: tuple[float, ...]
    half_width: float

    @property
    def degree(self) -> int:
        """Degree of the polynomial."""
        return len(self.coefficients) - 1

    def __call__(self, x: npt.NDArray[np.floating[Any]]) -> Array:
        """The polynomial at points of any shape."""
        return np.asarray(chebyshev.chebval(x / self.half_width, self.coefficients))


@dataclass(frozen=True)
class Composition:
    """An approximation of the sign on [-1, -threshold] and [threshold, 1].

    Attributes:
        stages: in the order in which they are applied; each maps to within the half width of the next.
        threshold: for |x| below it, p(x) runs from about -1 to about 1.
        error: largest |p(x) - sign(x)| for |x| above the threshold.
    """

    stages: tuple[SignStage, ...]
    threshold: float
    error: float

    @property
    def degree(self) -> int:
        """Degree of the composition as one polynomial: the product of the stages' degrees."""
        return math.prod(stage.degree for stage in self.stages)

    def __call__(self, x: npt.NDArray[np.floating[Any]]) -> Array:
        """p(x) at points of any shape."""
        for stage in self.stages:
            x = stage(x)
        return np.asarray(x, dtype=np.float64)


def check_precision(alpha: int) -> None:
    """Raise ValueError if there is no composition for a precision in bits."""
    if alpha not in DEGREES:
        raise ValueError(f"a precision of {alpha} bits is outside {min(DEGREES)} ... {max(DEGREES)}")


@functools.lru_cache(maxsize=len(DEGREES))
def sign_composition(alpha: int) -> Composition:
    """The composition p with |x (1 + p(x)) / 2 - relu(x)| <= 2^-alpha on [-1, 1], of the degrees in `DEGREES`.

    ValueError for alpha outside 4 ... 14.
    """
    check_precision(alpha)
    # A larger threshold makes the error below it grow and the error above it fall: the best one makes them equal.
    low, high = -16.0, -0.5
    best: tuple[float, Composition] | None = None
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        made = _compose(DEGREES[alpha], 2.0**middle)
        x = np.linspace(0.0, made.threshold, SEARCH_POINTS)
        below, above = float(np.max(x * np.abs(1 - made(x)))), made.error
        if best is None or max(below, above) < best[0]:
            best = max(below, above), made
        low, high = (low, middle) if below > above else (middle, high)
    assert best is not None
    return best[1]


def _compose(degrees: tuple[int, ...], threshold: float) -> Composition:
    low, high, error = threshold, 1.0, 1.0
    stages = []
    for degree in degrees:
        coefficients, error = approximate_sign(degree, [(low, high)])
        stages.append(SignStage(tuple(float(c) for c in coefficients), high))
        low, high = 1.0 - error, 1.0 + error
    return Composition(tuple(stages), threshold, error)
