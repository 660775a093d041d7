"""The interface of kernels, and what several of them do."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from olac.backends.base import Ciphertext, Evaluator, Plaintext, Slots

Value = tuple[Ciphertext[Any], ...]
"""One value of the graph: its ciphertexts, as many as its layout says, all in the same state."""


class Kernel(ABC):
    """One node of a graph, ready to run any number of times on any evaluator.

    `depth` is the number of levels from the lowest operand to the result.
    """

    depth: int = 0

    @property
    def table_bytes(self) -> int:
        """Bytes of the numbers from which it encodes plaintexts."""
        return 0

    @property
    def held(self) -> int:
        """Ciphertexts at the operand's level that a run holds at once, beside operand and result.

        If there are any, a run also holds digits of the operand for key switching.
        """
        return 0

    @abstractmethod
    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        """The result; every ciphertext has noise degree 1."""


def common_level(evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> list[Value]:
    """The operands, each reduced to the lowest level among them."""
    level = min(part.state.level for value in operands for part in value)
    return [tuple(evaluator.level_reduce(part, level) for part in value) for value in operands]


def sum_of_products(
    evaluator: Evaluator[Any, Any], terms: Iterable[tuple[Ciphertext[Any], Plaintext[Any]]]
) -> Ciphertext[Any]:
    """The sum of the products of one term or more, not rescaled; each term is asked for when it is multiplied."""
    products = (evaluator.multiply_plain(ciphertext, plaintext) for ciphertext, plaintext in terms)
    return functools.reduce(evaluator.add, products)


def fold(evaluator: Evaluator[Any, Any], x: Ciphertext[Any], steps: Iterable[int]) -> Ciphertext[Any]:
    """For each step in turn: the sum of the ciphertext and its rotation by the step."""
    for step in steps:
        x = evaluator.rotate_sum([(x, 0), (x, step)])
    return x


def add_slots(evaluator: Evaluator[Any, Any], x: Ciphertext[Any], slots: Slots) -> Ciphertext[Any]:
    """The sum of a ciphertext and numbers, one for each slot."""
    return evaluator.add_plain(x, evaluator.encode(lambda: slots, x.state.level, x.state.scale))
