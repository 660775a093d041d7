"""Small trained-looking networks as folded graphs at stage TRACED, and images for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from olac.analysis.degree_choice import fit_from_histograms
from olac.approximation.common import output_error
from olac.calibration.histogram import Histogram
from olac.frontend import lift, trace
from olac.ir.graph import Graph
from olac.ir.ops import Activation, Array
from olac.passes.base import PassContext, PassManager
from olac.passes.fold_affine import FoldAffine
from olac.polynomials.modes import Channel, FromHistograms
from tests.e2e.test_networks import batch_norm

SHAPE = (3, 8, 8)


class Residual(nn.Module):
    """A stem and basic blocks of 8 channels with the identity as shortcut, pooling and a head."""

    def __init__(self, blocks: int = 2, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.act = act
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), batch_norm(8))
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), batch_norm(8)) for _ in range(2))
            for _ in range(blocks)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            x = self.act(block[1](self.act(block[0](x))) + x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def images(count: int, seed: int = 1, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Smooth images: noise of three sizes, each image with a contrast of its own."""
    random = torch.Generator().manual_seed(seed)
    parts = [torch.randn(count, shape[0], n, n, generator=random) for n in (1, 2, shape[-1])]
    mixed = sum((nn.functional.interpolate(p, shape[-2:]) for p in parts), torch.zeros(()))
    return mixed * (0.3 + 0.4 * torch.rand(count, 1, 1, 1, generator=random))


def folded(model: nn.Module, example: Tensor) -> Graph:
    """The model's graph without affine maps after its convolutions."""
    return PassManager([FoldAffine()]).run(lift(trace(model.eval(), example)), PassContext())


def residual(blocks: int = 2, act: Callable[[Tensor], Tensor] = torch.relu, seed: int = 0) -> Graph:
    """The graph of a `Residual`."""
    torch.manual_seed(seed)
    model = Residual(blocks, act).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        for _ in range(3):
            model(images(256, 9))
        outputs = model.eval()(images(256, 9))
        model.head.weight /= outputs.std(0)[:, None]
        model.head.bias.sub_(outputs.mean(0)).div_(outputs.std(0))
    return folded(model, images(4))


def activations(graph: Graph) -> list[str]:
    """Their ids, in order."""
    return [node.id for node in graph.nodes if isinstance(node.op, Activation)]


def values(graph: Graph, x: Tensor) -> dict[str, Array]:
    """Every value, in double precision."""
    found: dict[str, Array] = {}
    graph.evaluate(x.double().numpy(), lambda node, value: found.update({node.id: value}))
    return found


def histograms(graph: Graph, x: Tensor) -> dict[str, Histogram]:
    """Of the inputs of all activations."""
    every = values(graph, x)
    made = {}
    for name in activations(graph):
        value = every[graph[name].inputs[0]]
        made[name] = Histogram(value.shape[1])
        made[name].add(value)
    return made


def from_histograms(graph: Graph, x: Tensor, degrees: Mapping[str, int], method: FromHistograms | None = None) -> Graph:
    """The graph with polynomials that are fitted by channel, from histograms."""
    return fit_from_histograms(graph, histograms(graph, x), degrees, method or Channel())


def error(graph: Graph, approximated: Graph, x: Tensor) -> float:
    """Of the outputs, in units of their variance."""
    given = x.double().numpy()
    ours, clean = approximated.evaluate(given), graph.evaluate(given)
    return output_error(torch.from_numpy(np.asarray(ours)), torch.from_numpy(np.asarray(clean)))
