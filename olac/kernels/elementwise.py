"""Sums, products, squares and reshapes of values that share a layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from olac.backends.base import Array, Ciphertext, Evaluator
from olac.ir.layout import TensorLayout
from olac.kernels.base import Kernel, Value, add_slots, common_level


class AddKernel(Kernel):
    """a + b at the lower of their levels."""

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        a, b = common_level(evaluator, operands)
        return tuple(evaluator.add(x, y) for x, y in zip(a, b, strict=True))


class MultiplyKernel(Kernel):
    """a * b: one level. The result's scale is the product of the two scales, divided by the dropped prime."""

    depth = 1

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        a, b = common_level(evaluator, operands)
        return tuple(evaluator.rescale(evaluator.multiply(x, y)) for x, y in zip(a, b, strict=True))


class SquareKernel(Kernel):
    """x * x + shift: one level, and the scale as in a product. Slots that hold no element stay zero.

    Args:
        shift: shape (channels or 1,).
        layout: of operand and result.
    """

    depth = 1

    def __init__(self, shift: Array, layout: TensorLayout) -> None:
        self._shift, self._layout = shift.reshape(-1, 1), layout

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        pages = (self._layout.expand_channels(self._shift, page)[0] for page in range(len(operands[0])))
        return tuple(_square(evaluator, x, shift) for x, shift in zip(operands[0], pages, strict=True))


def _square(evaluator: Evaluator[Any, Any], x: Ciphertext[Any], shift: Array) -> Ciphertext[Any]:
    result = evaluator.rescale(evaluator.multiply(x, x))
    return add_slots(evaluator, result, shift) if np.any(shift) else result


class BootstrapKernel(Kernel):
    """A bootstrap whose result is reduced to a level.

    Operands are first reduced to the least level that a bootstrap takes: OpenFHE does not bootstrap a ciphertext above
    the level of the result.
    """

    def __init__(self, level: int) -> None:
        self._level = level

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        setup = evaluator.parameters.bootstrapping
        lowest = 0 if setup is None else setup.input_level  # without a set-up, the evaluator refuses
        low = [evaluator.level_reduce(part, lowest) if part.state.level > lowest else part for part in operands[0]]
        return tuple(evaluator.level_reduce(part, self._level) for part in evaluator.bootstrap_all(low))


class ReshapeKernel(Kernel):
    """The same ciphertexts under another shape."""

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        return operands[0]
