"""The kernel of a third lowering of convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from olac.backends.base import Array, Ciphertext, Evaluator
from olac.ir.graph import Graph, Node
from olac.ir.layout import TensorLayout
from olac.ir.ops import Constants, Conv2d
from olac.kernels.base import Kernel, Value


class GatheredKernel(Kernel):
    """Outputs in the slots of their pixels; then a mask and a rotation for each column, and for each row."""

    depth = 3

    def __init__(self, op: Conv2d, constants: Constants, operand: TensorLayout, result: TensorLayout) -> None:
        weight, (_, height, width) = constants[op.weight][0, 0], operand.shape
        _, rows, columns = result.shape
        self._slots, self._result, self._period = operand.slots, result, operand.period
        self._bias = None if op.bias is None else float(constants[op.bias][0])
        taps, along, across = self._steps = tuple[dict[int, Array], ...](({}, {}, {}))
        for y, x in np.ndindex(rows, columns):
            top, left = y * op.stride[0], x * op.stride[1]
            self._set(along, left - x, top * width + x, 1.0)
            self._set(across, top * width - y * columns, y * columns + x, 1.0)
            for (i, j), value in np.ndenumerate(weight):
                down, right = i * op.dilation[0] - op.padding[0], j * op.dilation[1] - op.padding[2]
                if 0 <= top + down < height and 0 <= left + right < width:
                    self._set(taps, down * width + right, top * width + left, value)
        self._fills = []
        step = operand.period // 2
        while step >= result.period:
            self._fills.append(step)
            step //= 2

    def _set(self, plaintexts: dict[int, Array], step: int, slot: int, value: float) -> None:
        plaintexts.setdefault(step, np.zeros(self._slots))[slot :: self._period] = value

    @property
    def held(self) -> int:
        return max(map(len, self._steps)) + 1

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        ((found,),) = operands
        for plaintexts in self._steps[:-1]:
            found = evaluator.rescale(self._step(evaluator, found, plaintexts))
        found = self._step(evaluator, found, self._steps[-1])
        for step in self._fills:
            found = evaluator.add(found, evaluator.rotate(found, step))
        found = evaluator.rescale(found)
        if self._bias:
            bias = self._result.expand(np.full(self._result.shape, self._bias))[0]
            found = evaluator.add_plain(found, evaluator.encode(lambda: bias, found.state.level, found.state.scale))
        return (found,)

    @staticmethod
    def _step(evaluator: Evaluator[Any, Any], x: Ciphertext[Any], plaintexts: Mapping[int, Array]) -> Ciphertext[Any]:
        """The sum of rotations, each times its plaintext, at the scale that rescales to the canonical one."""
        level, parameters = x.state.level, evaluator.parameters
        scale = parameters.scale(level - 1) * parameters.primes[level] / x.state.scale
        rotated = evaluator.rotate_hoisted(x, sorted({step % evaluator.slots for step in plaintexts}))
        total: Ciphertext[Any] | None = None
        for step, slots in plaintexts.items():
            plaintext = evaluator.encode(lambda slots=slots: slots, level, scale)  # type: ignore[misc]
            term = evaluator.multiply_plain(rotated[step % evaluator.slots], plaintext)
            total = term if total is None else evaluator.add(total, term)
        assert total is not None
        return total


def gathered(graph: Graph, node: Node) -> Kernel:
    operand, result = graph[node.inputs[0]].type.layout, node.type.layout
    assert isinstance(node.op, Conv2d) and operand is not None and result is not None
    return GatheredKernel(node.op, graph.constants, operand, result)
