"""A third lowering of convolutions, as somebody outside olac would write it: this file and that of its kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from olac.ir.layout import TensorLayout
from olac.ir.lowerings import Lowering
from olac.ir.ops import Conv2d, Op


@dataclass(frozen=True)
class Gathered(Lowering):
    """A convolution with a stride between dense planes of one channel, on three levels.

    Every output has a shift of its own there, so by diagonals each takes a product. Here outputs are computed in the
    slots of their pixels, then moved together along rows, all rows at once, and then rows are moved together.
    """

    kind: ClassVar[str] = "gathered"
    extra_levels: ClassVar[int] = 2

    @classmethod
    def may_lower(cls, op: Op) -> bool:
        return type(op) is Conv2d and max(op.stride) > 1

    def can_lower(self, op: Op, operand: TensorLayout, result: TensorLayout) -> bool:
        return self.may_lower(op) and all(
            layout.ciphertexts == 1
            and layout.step == 0
            and len(layout.shape) == 3
            and layout.shape[0] == 1
            and np.array_equal(layout.addresses, np.arange(len(layout.addresses)))
            for layout in (operand, result)
        )
