"""Convolutions with operands and results in bfloat16, on CPUs that have instructions for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from olac.approximation.tensors import TORCH_OPS, Weights
from olac.ir.graph import Graph
from olac.ir.ops import Conv2d

Tensor = torch.Tensor
LEAST_CHANNELS, LEAST_PLACES = 8, 4
"""Convolutions of fewer channels in a group, or to smaller maps, gain nothing."""


@functools.cache
def supported() -> bool:
    """Whether this CPU multiplies in bfloat16; torch's convolutions are then 2 to 4 times as fast as in float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def convolutions(graph: Graph) -> dict[str, Callable[[Sequence[Tensor], Weights], Tensor]]:
    """For each large convolution what computes its value in bfloat16, with gradients; see `tensors.run`.

    Sums are in single precision, values are rounded to 8 bits and returned in single precision, and biases are not
    rounded. Empty if the CPU has no instructions for it.
    """
    if not supported():
        return {}
    return {
        node.id: _rounded(node.op)
        for node in graph.nodes
        if isinstance(node.op, Conv2d)
        and graph[node.inputs[0]].type.shape[0] >= LEAST_CHANNELS * node.op.groups
        and math.prod(node.type.shape[1:]) >= LEAST_PLACES
    }


def _rounded(op: Conv2d) -> Callable[[Sequence[Tensor], Weights], Tensor]:
    compute, alone = TORCH_OPS[Conv2d], replace(op, bias=None)

    def made(operands: Sequence[Tensor], weights: Weights) -> Tensor:
        value = compute(alone, [operands[0].bfloat16()], {op.weight: weights[op.weight].bfloat16()})
        # The sum of a bfloat16 and a float32 is a float32.
        return value.float() if op.bias is None else value + weights[op.bias].reshape(-1, 1, 1)

    return made
