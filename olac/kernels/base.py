"""The interface of kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from olac.backends.base import Ciphertext, Evaluator

Value = tuple[Ciphertext[Any], ...]
"""One value of the graph: its ciphertexts, as many as its layout says, all in the same state."""


class Kernel(ABC):
    """One node of a graph, ready to run any number of times on any evaluator.

    `depth` is the number of levels from the lowest operand to the result.
    """

    depth: int = 0

    @property
    def table_bytes(self) -> int:
        """Bytes of the numbers that it keeps for encoding plaintexts."""
        return 0

    @property
    def held(self) -> int:
        """Ciphertexts at the operand's level that a run holds at once, beside operand and result.

        Where there are any, a run also holds digits of the operand for key switching.
        """
        return 0

    @abstractmethod
    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        """The result; every ciphertext has noise degree 1."""


def common_level(evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> list[Value]:
    """The operands, each reduced to the lowest level among them."""
    level = min(part.state.level for value in operands for part in value)
    return [tuple(evaluator.level_reduce(part, level) for part in value) for value in operands]
