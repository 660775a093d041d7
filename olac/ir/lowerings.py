"""The second lowering of linear ops: which convolutions it can compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeGuard

from olac.ir.layout import TensorLayout
from olac.ir.ops import Conv2d, Op


@dataclass(frozen=True)
class Multiplexed:
    """A lowering of a convolution: multiplexed parallel convolution, two levels (`olac.kernels.multiplexed`).

    The layouts of operand and result decide everything, so there is nothing to choose.
    """

    kind: ClassVar[str] = "multiplexed"
    extra_levels: ClassVar[int] = 1
    """Beyond what the op says: of the masks."""

    def __str__(self) -> str:
        return self.kind


def is_multiplexable(op: Op) -> TypeGuard[Conv2d]:
    """Whether some layouts let this op be a multiplexed convolution: each output channel reads all input channels."""
    return type(op) is Conv2d and op.groups == 1


def can_multiplex(op: Op, operand: TensorLayout, result: TensorLayout) -> bool:
    """Whether an op between two layouts can be a multiplexed parallel convolution.

    An output is summed up in the slots of its own pixel, in the first plane of a copy of the operand, and one rotation
    takes a whole output channel from there to its place. So operand and result are single ciphertexts of one image,
    laid out as images and with plain copies; the result's rows and columns are as far apart as the operand's are at
    the op's strides; and every output has a pixel (a cell of gap x gap slots) in the operand's planes.
    """
    if not is_multiplexable(op):
        return False
    for layout in (operand, result):
        single = layout.batch == 1 and layout.ciphertexts == 1 and layout.step == 0
        if not single or layout.shape != layout.grid:
            return False
    (_, rows, columns), gap = result.grid, operand.gap
    # Distances of neighbouring outputs, in slots; of a single row or column there are none.
    same_rows = rows == 1 or gap * op.stride[0] * operand.padded[1] == result.gap * result.padded[1]
    same_columns = columns == 1 or gap * op.stride[1] == result.gap
    inside = all(
        (count - 1) * stride < size // gap
        for count, stride, size in zip((rows, columns), op.stride, operand.padded, strict=True)
    )
    return same_rows and same_columns and inside


@dataclass(frozen=True)
class Diagonals:
    """A lowering of a linear op: products with generalised diagonals, by baby and giant steps, one level.

    Attributes:
        modulus: diagonals are taken modulo this power of two; where it is less than the period of the operand, the
            result is folded by log2(period / modulus) rotations. Copies that are shifted have to be folded too, so one
            product serves a diagonal for each of them.
        baby: diagonal d is reached by a baby step of d mod baby and a giant step of d - d mod baby.
        imaginary: 0, or a power of two below the modulus: the operand, rotated by it, rides in the imaginary parts of
            the slots, and one product serves a diagonal d and the diagonal d + imaginary.
    """

    modulus: int
    baby: int
    imaginary: int = 0
    kind: ClassVar[str] = "diagonals"
    extra_levels: ClassVar[int] = 0
    """Beyond what the op says."""

    def __str__(self) -> str:
        halved = f", imaginary {self.imaginary}" if self.imaginary else ""
        return f"diagonals mod {self.modulus}, baby {self.baby}{halved}"


Lowering = Diagonals | Multiplexed

LOWERINGS: dict[str, type[Lowering]] = {lowering.kind: lowering for lowering in (Diagonals, Multiplexed)}
"""By the name that they have in files."""
