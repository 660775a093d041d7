"""Kernels without the taps that see padding alone: fewer weights, and the same values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from olac.frontend import lift, trace
from olac.ir.ops import Conv2d
from olac.passes.base import PassContext, PassManager
from olac.passes.trim_kernels import TrimKernels


@pytest.mark.parametrize(
    ("conv", "size", "kernel", "padding"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (1, 1), (1, 1), (0, 0, 0, 0)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 2), (2, 2), (0, 1, 0, 1)),
        (nn.Conv2d(4, 6, 3, padding=1), (1, 3), (1, 3), (0, 0, 1, 1)),
        (nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (2, 2), (1, 1), (0, 0, 0, 0)),
        (nn.Conv2d(4, 6, 3, padding=3, dilation=4), (3, 5), (3, 3), (3, 3, 3, 3)),  # a tap less would need a crop
        (nn.Conv2d(4, 6, 7, stride=2, padding=3), (2, 4), (2, 6), (0, 1, 2, 3)),
        (nn.Conv2d(4, 6, 3, padding=1), (2, 2), (3, 3), (1, 1, 1, 1)),
        (nn.Conv2d(4, 6, 5), (5, 6), (5, 5), (0, 0, 0, 0)),
    ],
)
def test_taps_that_see_padding_alone_are_cut(
    conv: nn.Conv2d, size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    x = torch.randn(3, 4, *size)
    graph = lift(trace(nn.Sequential(conv, nn.ReLU()).eval(), x))
    made = PassManager([TrimKernels()]).run(graph, PassContext())
    (node,) = [node for node in made.nodes if isinstance(node.op, Conv2d)]
    assert isinstance(node.op, Conv2d)
    weight, images = made.constants[node.op.weight], x.double().numpy()
    assert np.allclose(made.evaluate(images), graph.evaluate(images), atol=1e-12)
    assert weight.shape[2:] == kernel and node.op.padding == padding
    assert (made == graph) == (kernel == conv.kernel_size)
    assert made[node.id].type == graph[node.id].type
