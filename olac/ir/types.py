"""The type of a value: its shape, bounds and unit, where it lies in slots, and the state of its ciphertexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from olac.ir.layout import TensorLayout


class Stage(IntEnum):
    """How far a graph has been lowered; each stage keeps the promises of the ones before it."""

    TRACED = 0
    """Lifted from the model: any registered op."""
    POLYNOMIAL = 1
    """No activation and no max-pooling is left, only linear ops, sums, products and polynomials."""
    PACKED = 2
    """Every value has a layout, every linear op a lowering."""
    LEVELLED = 3
    """Every value has a level, a noise degree and a scale."""


@dataclass(frozen=True)
class Range:
    """A closed interval that the elements of a value are expected to stay in, in true units."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"[{self.low}, {self.high}] is not a range")

    @property
    def magnitude(self) -> float:
        """The largest absolute value in the range."""
        return max(abs(self.low), abs(self.high))

    def union(self, other: Range) -> Range:
        """The least range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class CipherState:
    """The state that the ciphertexts of a value share.

    Attributes:
        level: levels that remain; a fresh ciphertext has the most, 0 is the last. (OpenFHE's GetLevel() counts up.)
        noise_degree: 1 after a rescale, 2 after a product.
        scale: the exact factor between a slot's value and the encoded integer.
    """

    level: int
    noise_degree: int
    scale: float

    def __str__(self) -> str:
        return f"level {self.level} degree {self.noise_degree} scale 2^{math.log2(self.scale):.6f}"


@dataclass(frozen=True)
class ValueType:
    """The type of one value.

    Attributes:
        shape: logical shape without the batch axis, (f,) or (c, h, w).
        batch: images that are evaluated together in one set of ciphertexts.
        bound: calibrated range in true units, or None before calibration; for inputs that of the values
            with which the graph computes (`Input.encode`).
        unit: true value = unit * slot value. Units keep slot values within [-1, 1].
        layout: where the elements lie; from stage PACKED on.
        state: of the ciphertexts; from stage LEVELLED on.
        channels: the range of each channel in which inputs and outputs are trusted, in the units of `bound`; empty for
            other values, and if it is unknown.
    """

    shape: tuple[int, ...]
    batch: int = 1
    bound: Range | None = None
    unit: float = 1.0
    layout: TensorLayout | None = None
    state: CipherState | None = None
    channels: tuple[Range, ...] = ()

    @property
    def size(self) -> int:
        """Elements of one image."""
        return math.prod(self.shape)
