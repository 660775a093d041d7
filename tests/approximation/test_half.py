"""Convolutions in bfloat16: near those in single precision, with gradients; none where nothing is gained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from olac.approximation import half
from olac.approximation.tensors import run, tensors
from olac.ir.graph import Graph
from olac.ir.ops import Conv2d
from tests.approximation.nets import folded

NET = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1, groups=16),
    nn.Conv2d(16, 16, 3, stride=2, padding=(0, 1), bias=False),
    nn.Conv2d(16, 8, 3),
)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Graph:
    monkeypatch.setattr(half, "supported", lambda: True)
    torch.manual_seed(0)
    return folded(NET, torch.zeros(1, 3, 8, 8))


def test_only_convolutions_of_many_channels_and_places_are_rounded(graph: Graph) -> None:
    found = [(graph[graph[name].inputs[0]].type.shape[0], graph[name].type.shape) for name in half.convolutions(graph)]
    assert found == [(16, (16, 8, 8)), (16, (16, 3, 4))]


def test_none_without_instructions_for_it(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "supported", lambda: False)
    assert half.convolutions(graph) == {}


def test_values_and_gradients_are_near_those_in_single_precision(graph: Graph) -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    made = []
    none: dict[str, Any] = {}
    for instead in (none, half.convolutions(graph)):
        weights = {name: value.requires_grad_() for name, value in tensors(graph).items()}
        out = run(graph, weights, x, instead=instead)[graph.outputs[0]]
        assert out.dtype == torch.float32
        gradients = torch.autograd.grad(out.square().sum(), [weights[name] for name in weights_of(graph)])
        made.append([out, *gradients])
    for ours, exact in zip(*made, strict=True):
        error = float((ours - exact).detach().norm() / exact.detach().norm())
        assert 0 < error < 0.05  # a value is rounded by 0.4 %, in each of three layers and of their gradients


def weights_of(graph: Graph) -> list[str]:
    return [node.op.weight for node in graph.nodes if isinstance(node.op, Conv2d)]
