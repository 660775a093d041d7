"""Sums, products and reshapes of values that share a layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from olac.backends.base import Evaluator
from olac.kernels.base import Kernel, Value, common_level


class AddKernel(Kernel):
    """a + b at the lower of their levels."""

    depth = 0

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        a, b = common_level(evaluator, operands)
        return tuple(evaluator.add(x, y) for x, y in zip(a, b, strict=True))


class MultiplyKernel(Kernel):
    """a * b: one level. The result's scale is whatever the two scales and the dropped prime make of it."""

    depth = 1

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        a, b = common_level(evaluator, operands)
        return tuple(evaluator.normalize(evaluator.multiply(x, y)) for x, y in zip(a, b, strict=True))


class ReshapeKernel(Kernel):
    """The same ciphertexts under another shape."""

    depth = 0

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        return operands[0]
