"""Slots to polynomials.

Slot j of a polynomial m is m(zeta^(5^j)), zeta = exp(i pi / N). As 5^j = 1 modulo 4, X^(N/2) is i at all these points.
So m is a complex polynomial u of N / 2 coefficients there, whose real and imaginary parts are the lower and upper half
of m's coefficients, and its values at zeta^(1 + 4 t) are a Fourier transform of u_k zeta^k.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import scipy.fft

from olac.backends.base import Slots
from olac.system.arrays import Array, Index


@functools.lru_cache(maxsize=8)
def _tables(n: int) -> tuple[Index, npt.NDArray[np.complex128]]:
    """Where the slots go, and zeta^-k."""
    exponents: Index = np.ones(1, dtype=np.int64)
    step = 5
    while len(exponents) < n // 2:
        exponents = np.concatenate([exponents, exponents * step % (2 * n)])
        step = step * step % (2 * n)
    return (exponents - 1) // 4, np.exp(-1j * np.pi * np.arange(n // 2) / n)


def coefficients(slots: Slots, scale: float) -> Array:
    """The N integer coefficients, as doubles, of the polynomial with given slots, shape (N / 2,), at a scale."""
    half = len(slots)
    places, twist = _tables(2 * half)
    values = np.empty(half, dtype=np.complex128)
    values[places] = slots
    found = scipy.fft.fft(values, overwrite_x=True)
    found *= twist
    found *= scale / half
    out = np.empty(2 * half)
    np.rint(found.real, out=out[:half])
    np.rint(found.imag, out=out[half:])
    return out


def repeats(slots: Slots, most: int) -> int:
    """How often the slots can be halved, at most so often, so that both halves are the same."""
    found = 0
    while found < most and np.array_equal(slots[: len(slots) // 2], slots[len(slots) // 2 :]):
        slots = slots[: len(slots) // 2]
        found += 1
    return found


def slots_of(coefficients: Array) -> npt.NDArray[np.complex128]:
    """The slots of a polynomial, shape (N / 2,), at scale 1: the inverse of `coefficients`."""
    half = len(coefficients) // 2
    places, twist = _tables(2 * half)
    values = scipy.fft.ifft((coefficients[:half] + 1j * coefficients[half:]) * np.conj(twist)) * half
    found: npt.NDArray[np.complex128] = values[places]
    return found
