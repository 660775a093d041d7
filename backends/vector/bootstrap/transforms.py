"""The transforms between slots and coefficients as levels of diagonals, in numpy.

Slots of period n are U c, where c holds the n complex coefficients of a polynomial in X^(N/2n): entry j has coefficient
j as its real part and coefficient n + j as its imaginary part (X^(N/2) is the imaginary unit in every slot). U is an
FFT over the powers of 5, whose log2(n) stages need no bit reversal if the coefficients are taken in bit-reversed order
(Cheon, Han, Kim, Kim and Song, "Bootstrapping for Approximate Homomorphic Encryption", EUROCRYPT 2018). Several stages
are collapsed into a level (Chen, Chillotti and Song, "Improved Bootstrapping for Approximate Homomorphic Encryption",
EUROCRYPT 2019). How many is what `olac.ckks.bootstrapping.layers` says.

A level of c stages of stride s takes the rotations by d s for |d| < 2^c. Keys exist for positive multiples of s alone.
So a level gives its result rotated by (2^c - 1) s, and the levels after it have their diagonals rotated instead. The
last stages of a transform reach over the whole period: there d and d - 2^c are the same rotation, and half of the
diagonals remain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from olac.ckks.bootstrapping import Layer, layers
from olac.ckks.vector_bootstrapping import baby_steps

Complex = npt.NDArray[np.complex128]
Diagonals = dict[int, Complex]
"""Rotation step to the vector that the rotated operand is multiplied by."""


@dataclass(frozen=True, eq=False)
class LinearLevel:
    """A matrix as baby steps and giant steps.

    Attributes:
        period: of the slots.
        stride: all rotations are multiples of it.
        babies: the baby steps are 0, stride, ... (babies - 1) stride; the giant step is babies * stride.
        blocks: for each giant step the diagonals of its baby steps, each of shape (period,) or None if it is zero.
    """

    period: int
    stride: int
    babies: int
    blocks: tuple[tuple[Complex | None, ...], ...]

    @property
    def giant(self) -> int:
        """The giant step, in slots."""
        return self.babies * self.stride % self.period

    @property
    def baby_steps(self) -> tuple[int, ...]:
        """Rotation steps of the operand, beginning with 0."""
        return tuple(baby * self.stride for baby in range(max(map(len, self.blocks))))

    @property
    def giant_steps(self) -> frozenset[int]:
        """The rotation step that is repeated, if there is one."""
        return frozenset({self.giant} if len(self.blocks) > 1 else ())

    @property
    def steps(self) -> frozenset[int]:
        """All rotation steps but 0."""
        return (frozenset(self.baby_steps) | self.giant_steps) - {0}

    @property
    def diagonals(self) -> int:
        """The number of diagonals, each a plaintext."""
        return sum(one is not None for block in self.blocks for one in block)

    def apply(self, slots: Complex) -> Complex:
        """The level in numpy, on slots of shape (period,): what a ciphertext goes through."""
        total: Complex = np.zeros(self.period, dtype=complex)
        for block in reversed(self.blocks):
            total = np.roll(total, -self.giant)
            for baby, diagonal in enumerate(block):
                if diagonal is not None:
                    total = total + diagonal * np.roll(slots, -baby * self.stride)
        return total


ChooseBabies = Callable[[Layer, int, bool], int]
"""babies(layer, diagonals, raised): how many baby steps a level takes (`vector_bootstrapping.baby_steps`)."""


def transform(
    log_slots: int, budget: int, inverse: bool, rotated: int = 0, babies: ChooseBabies = baby_steps
) -> tuple[tuple[LinearLevel, ...], int]:
    """A transform in the order in which its levels are applied, and the rotation of its result.

    Args:
        log_slots: log2 of the period.
        budget: levels.
        inverse: from slots to coefficients, which makes U c of c (they are read as slots afterwards); otherwise from
            coefficients to slots, which makes c of U c. Each stage of the latter takes means, so no entry exceeds 1.
        rotated: steps that the operand is rotated by already.
        babies: chooses the number of baby steps. The first level to slots takes what was raised.
    """
    period = 1 << log_slots
    found = []
    ordered = sorted(layers(log_slots, budget, inverse), key=lambda layer: layer.stride, reverse=not inverse)
    for place, layer in enumerate(ordered):
        collapsed = (layer.diagonals + 1).bit_length() - 2
        lengths = [2 * layer.stride << stage for stage in range(collapsed)]
        whole: Diagonals = {0: np.ones(period, dtype=complex)}
        for length in lengths if inverse else reversed(lengths):
            whole = _after(whole, _stage(length, period, inverse))
        offset = (1 << collapsed) - 1
        rotated = (rotated + offset * layer.stride) % period
        count = period // layer.stride if layer.stride << collapsed == period else layer.diagonals
        found.append(
            _level(whole, layer, offset, rotated, count, babies(layer, count, not inverse and not place), period)
        )
    return tuple(found), rotated


def _level(
    whole: Diagonals, layer: Layer, offset: int, rotated: int, count: int, babies: int, period: int
) -> LinearLevel:
    shifted: list[Complex | None] = [None] * count
    for step, diagonal in whole.items():
        index = (step // layer.stride + offset) % count
        moved = np.roll(diagonal, -rotated)
        before = shifted[index]
        shifted[index] = moved if before is None else before + moved
    blocks = []
    for first in range(0, count, babies):
        moves = first * layer.stride  # of the giant steps that follow
        blocks.append(tuple(None if one is None else np.roll(one, moves) for one in shifted[first : first + babies]))
    return LinearLevel(period, layer.stride, babies, tuple(blocks))


def _stage(length: int, period: int, inverse: bool) -> Diagonals:
    """One stage of the FFT on blocks of a length, or one of its inverse; steps are signed."""
    half = length // 2
    place = np.arange(period) % length
    first = place < half
    powers = np.array([pow(5, k, 4 * length) for k in range(half)])
    twiddles = np.exp(2j * np.pi / (4 * length) * powers)[place % half]
    if inverse:
        return {
            0: np.where(first, 1.0, -twiddles),
            half: np.where(first, twiddles, 0.0),
            -half: np.where(first, 0.0, 1.0).astype(complex),
        }
    back = np.conj(twiddles) / 2
    return {
        0: np.where(first, 0.5, -back),
        half: np.where(first, 0.5, 0.0).astype(complex),
        -half: np.where(first, 0.0, back),
    }


def _after(first: Diagonals, second: Diagonals) -> Diagonals:
    """The product of two matrices: `second` is applied to the result of `first`."""
    found: Diagonals = {}
    for outer, factor in second.items():
        for inner, diagonal in first.items():
            product = factor * np.roll(diagonal, -outer)
            step = outer + inner
            found[step] = found[step] + product if step in found else product
    return found
