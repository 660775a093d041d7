"""Lowerings: the ways to compute a node on ciphertexts, as graphs and program files hold them.

A lowering says which ops it can compute between which layouts, and how many levels that takes beyond the op's own. Its
kernel is registered in `olac.kernels.execute.LOWERED`. The rest follows from the kernel: it says what it holds, and a
run on the recorder shows its cost and its rotation steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from olac.ir.layout import TensorLayout
from olac.ir.ops import Conv2d, LinearOp, Op


@dataclass(frozen=True)
class Lowering(ABC):
    """A way to compute an op of one operand; its fields are the choices that were made.

    Attributes:
        kind: its name in files and in `olac.compile(convolutions=kind)`.
        extra_levels: levels beyond those of the op.
        automatic: whether `convolutions="auto"` considers it, by predicted seconds. These leave out what the extra
            levels cost the rest of a program.
    """

    kind: ClassVar[str] = ""
    extra_levels: ClassVar[int] = 0
    automatic: ClassVar[bool] = True

    @abstractmethod
    def can_lower(self, op: Op, operand: TensorLayout, result: TensorLayout) -> bool:
        """Whether it can compute an op from one layout to another. This also checks programs from files."""

    @classmethod
    def may_lower(cls, op: Op) -> bool:
        """Whether it can lower an op between some layouts.

        Parameters are chosen before layouts: they have `extra_levels` for every op for which this is true.
        """
        return isinstance(op, LinearOp)

    @classmethod
    def choices(cls, op: Op, operand: TensorLayout, result: TensorLayout) -> Sequence[Lowering]:
        """The lowerings of this kind to choose from, by predicted seconds."""
        made = cls()
        return [made] if made.can_lower(op, operand, result) else []

    @property
    def brief(self) -> str:
        """A word for tables."""
        return self.kind

    def __str__(self) -> str:
        return self.kind


LOWERINGS: dict[str, type[Lowering]] = {}
"""By kind."""


def register_lowering(lowering: type[Lowering]) -> type[Lowering]:
    """Add a kind of lowering; kinds are unique."""
    if not lowering.kind or lowering.kind in ("auto", *LOWERINGS):
        raise ValueError(f"kind of lowering {lowering.kind!r} is empty or taken")
    LOWERINGS[lowering.kind] = lowering
    return lowering


@register_lowering
@dataclass(frozen=True)
class Diagonals(Lowering):
    """Products with generalised diagonals, by baby and giant steps (`olac.kernels.linear`), for all linear ops.

    Attributes:
        modulus: diagonals are counted modulo this power of two; if it is less than the period of the operand, the
            result is folded by log2(period / modulus) rotations. Shifted copies are folded too, so one product serves a
            diagonal for each of them.
        baby: diagonal d is reached by a baby step of d mod baby and a giant step of d - d mod baby.
        imaginary: 0, or a power of two below the modulus: the imaginary parts of the slots hold the operand rotated by
            it, and one product serves a diagonal d and the diagonal d + imaginary.
    """

    modulus: int
    baby: int
    imaginary: int = 0
    kind: ClassVar[str] = "diagonals"

    def can_lower(self, op: Op, operand: TensorLayout, result: TensorLayout) -> bool:
        modulus, imaginary = self.modulus, self.imaginary
        powers = modulus >= 1 and imaginary >= 0 and not modulus & (modulus - 1) and not imaginary & (imaginary - 1)
        if not isinstance(op, LinearOp) or not powers or imaginary >= modulus:
            return False
        if not 1 <= self.baby <= modulus <= result.slots or result.step:
            return False
        shifted = operand.step != 0
        return not shifted or (result.period <= modulus <= operand.period and result.ciphertexts == 1)

    @property
    def brief(self) -> str:
        return f"{self.modulus}/{self.baby}" + (f"+{self.imaginary}i" if self.imaginary else "")

    def __str__(self) -> str:
        halved = f", imaginary {self.imaginary}" if self.imaginary else ""
        return f"diagonals mod {self.modulus}, baby {self.baby}{halved}"


@register_lowering
@dataclass(frozen=True)
class Multiplexed(Lowering):
    """Multiplexed parallel convolution, two levels (`olac.kernels.multiplexed`).

    The layouts of operand and result decide everything, so there is nothing to choose. It is not chosen automatically:
    by prediction, the convolutions of ResNet-20 take three times as long by it, and their second level takes another
    bootstrap (docs/benchmarks.md). It may be faster between many channels whose copies can't be shifted, but whether it
    pays depends on what the level costs the rest of the program, which is not known when lowerings are chosen.
    """

    kind: ClassVar[str] = "multiplexed"
    extra_levels: ClassVar[int] = 1
    """The masks take it."""
    automatic: ClassVar[bool] = False

    @classmethod
    def may_lower(cls, op: Op) -> bool:
        """Each output channel reads all input channels."""
        return type(op) is Conv2d and op.groups == 1

    def can_lower(self, op: Op, operand: TensorLayout, result: TensorLayout) -> bool:
        """Whether an op between two layouts can be a multiplexed parallel convolution.

        An output is summed in the slots of its own pixel, in the first plane of a copy of the operand, and one
        rotation moves a whole output channel from there to its place. So operand and result must be single ciphertexts,
        laid out as images and without shifted copies; the result's rows and columns must be as far apart
        as the operand's at the op's strides; and every output must have a pixel (a cell of gap x gap slots) in the
        operand's planes.
        """
        if not isinstance(op, Conv2d) or not self.may_lower(op):
            return False
        for layout in (operand, result):
            single = layout.ciphertexts == 1 and layout.step == 0
            if not single or layout.shape != layout.grid:
                return False
        (_, rows, columns), gap = result.grid, operand.gap
        # Distances of neighbouring outputs, in slots; a single row or column has no neighbours.
        same_rows = rows == 1 or gap * op.stride[0] * operand.padded[1] == result.gap * result.padded[1]
        same_columns = columns == 1 or gap * op.stride[1] == result.gap
        inside = all(
            (count - 1) * stride < size // gap
            for count, stride, size in zip((rows, columns), op.stride, operand.padded, strict=True)
        )
        return same_rows and same_columns and inside
