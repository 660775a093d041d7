"""Weighted least-squares polynomials under a layer's own input distribution.

The distribution is the calibrated histogram plus a small uniform *floor* over the padded range, so that inputs which
calibration never saw meet a polynomial that is still bounded there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from olac.ir.functions import Function
from olac.polynomials.statistics import Histogram

Array = npt.NDArray[np.float64]

FLOOR_POINTS = 512
RIDGE = 1e-6
"""Weight of the coefficients' squares, in units of the function's mean square.

Where the data fill a part of [-half_width, half_width] only, high degrees would else buy a little accuracy with
coefficients of 1e6, which amplify the noise of encryption as much.
"""


@dataclass(frozen=True)
class FitOptions:
    """How activations are fitted.

    Attributes:
        degree: of every polynomial, or None for the least that meets `tolerance`.
        tolerance: largest root mean square error under the calibrated distribution, relative to the root mean square
            of the function's values there.
        max_degree: where to stop looking for it.
        floor: share of the mass that is spread evenly over the padded range.
        padding: the range is calibrated minimum to maximum, widened about its middle by this factor.
    """

    degree: int | None = None
    tolerance: float = 0.1
    max_degree: int = 15
    floor: float = 1e-3
    padding: float = 1.3

    def __post_init__(self) -> None:
        if self.degree is not None and not 1 <= self.degree <= 127:
            raise ValueError(f"degree {self.degree} is outside 1 ... 127")
        if not 1 <= self.max_degree <= 127:
            raise ValueError(f"max_degree {self.max_degree} is outside 1 ... 127")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance {self.tolerance} is not positive")
        if not 0 < self.floor < 1:
            raise ValueError(f"floor {self.floor} is outside 0 ... 1")
        if not self.padding >= 1:
            raise ValueError(f"padding {self.padding} is below 1")


@dataclass(frozen=True)
class Fit:
    """A polynomial sum_k c_k T_k(x / half_width) and how good it is.

    `rmse` is relative to the root mean square of the function under the calibrated distribution; `max_error` is the
    largest absolute error on the padded range [low, high].
    """

    coefficients: Array
    half_width: float
    rmse: float
    max_error: float
    low: float
    high: float

    @property
    def degree(self) -> int:
        """Of the polynomial."""
        return len(self.coefficients) - 1


def fit(function: Function, histogram: Histogram, options: FitOptions) -> Fit:
    """One polynomial for all channels, of the degree asked for or the least that meets the tolerance."""
    centres, masses = histogram.density(None)
    seen = histogram.range(None)
    middle, half = (seen.low + seen.high) / 2, max((seen.high - seen.low) / 2, 1e-6)
    low, high = middle - options.padding * half, middle + options.padding * half
    half_width = max(abs(low), abs(high))
    floor = np.linspace(low, high, FLOOR_POINTS)
    points = np.concatenate([centres, floor])
    weights = np.concatenate([(1 - options.floor) * masses, np.full(FLOOR_POINTS, options.floor / FLOOR_POINTS)])
    target = function(points)
    size = float(np.sqrt(np.sum(masses * function(centres) ** 2))) or 1.0
    degrees = [options.degree] if options.degree is not None else range(1, options.max_degree + 1)
    best: Fit | None = None
    for degree in degrees:
        assert degree is not None
        basis = chebyshev.chebvander(points / half_width, degree)
        root = np.sqrt(weights)[:, None]
        rows = np.concatenate([basis * root, np.sqrt(RIDGE) * np.eye(degree + 1)])
        right = np.concatenate([target * root[:, 0], np.zeros(degree + 1)])
        coefficients = np.linalg.lstsq(rows, right, rcond=None)[0]
        error = basis @ coefficients - target
        rmse = float(np.sqrt(np.sum(masses * error[: len(centres)] ** 2))) / size
        best = Fit(coefficients, half_width, rmse, float(np.max(np.abs(error[len(centres) :]))), low, high)
        if rmse <= options.tolerance:
            break
    assert best is not None
    return best


def rescaled(coefficients: Array, half_width: float, unit_in: float, unit_out: float) -> Array:
    """Coefficients of p(unit_in t) / unit_out on t in [-1, 1], for p given on [-half_width, half_width].

    Shape (channels, degree + 1) to the same; exact up to rounding, by interpolation at degree + 1 points. The degrees
    of the even and of the odd part stay what they are.
    """
    if unit_in == half_width:
        return coefficients / unit_out
    degree = coefficients.shape[1] - 1
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    values = chebyshev.chebval(nodes * unit_in / half_width, coefficients.T)
    basis = chebyshev.chebvander(nodes, degree)
    made = np.asarray(np.linalg.solve(basis, values.reshape(len(coefficients), -1).T).T) / unit_out
    for parity in (0, 1):
        used = np.flatnonzero(coefficients[:, parity::2].any(axis=0))
        made[:, parity + 2 * (int(used.max(initial=-1)) + 1) :: 2] = 0.0
    return made
