"""The units of reconstruction's steps: what a step of one changes, in the values and beyond them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from olac.approximation.criterion import Spread
from olac.approximation.floors import LOW
from olac.approximation.tails import POINTS, expected_ranges
from olac.approximation.tensors import run, tensors
from olac.approximation.whitened import LEAST_OWN, REACHED, Whitened
from olac.ir.ops import Conv2d, Polynomial
from tests.approximation.nets import activations, folded, from_histograms, images, residual

NET, TRAIN = residual(1), images(160, 1)


@pytest.mark.parametrize("degree", [2, 3, 7, 15])
def test_steps_of_polynomials_stay_small_where_values_are_expected(degree: int) -> None:
    """Any direction of norm one changes the mean square of values by at most the layer's variance.

    Above degree `LOW`, that holds for a uniform spread over the range that is expected as well, up to its weight.
    """
    graph = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), degree))
    weights = tensors(graph)
    reached = expected_ranges(NET, tensors(NET), dict.fromkeys(activations(NET), degree), TRAIN)
    made = Whitened(graph, weights, TRAIN, reached, refit=False)
    seen = run(graph, weights, TRAIN, keep=frozenset(node.id for node in graph.nodes))
    for node in graph.nodes:
        if not isinstance(node.op, Polynomial):
            continue
        name, half_width = node.op.coefficients, node.op.half_width
        deviation = float(seen[node.id].std())
        mapping = made.map[name]
        assert isinstance(mapping, torch.Tensor)
        middle, half = reached[node.id]
        everywhere = (middle[:, None] + half[:, None] * np.linspace(-1, 1, POINTS)) / half_width
        values = seen[node.inputs[0]].transpose(0, 1).flatten(1).numpy() / half_width
        for channel, step in enumerate(mapping.double()):
            basis = [np.polynomial.chebyshev.chebvander(t[channel], degree) for t in (values, everywhere)]
            inside, beyond = (float(torch.linalg.matrix_norm(torch.from_numpy(b).double() @ step, 2)) for b in basis)
            assert inside <= 1.01 * deviation * values.shape[1] ** 0.5
            if degree > LOW:
                assert beyond <= 1.01 * deviation * (POINTS / REACHED) ** 0.5


@pytest.mark.parametrize(
    ("groups", "spread", "degree"), [(1, "together", 3), (6, "together", 3), (1, "each", 3), (1, "together", 7)]
)
def test_steps_are_in_units_of_the_layer_or_of_each_channel(groups: int, spread: Spread, degree: int) -> None:
    """Of six channels one has values of a tenth of the others', and one is constant."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 6, 3, padding=1, groups=groups)
    with torch.no_grad():
        for part in (convolution.weight, convolution.bias):
            assert part is not None
            part[0] *= 0.1
            part[1] *= 0.0
    given = torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    last = () if spread == "each" else (nn.ReLU(), nn.Conv2d(6, 6, 1))
    graph = folded(nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU(), convolution, *last), given)
    degrees = dict.fromkeys(activations(graph), degree)
    ranges = expected_ranges(graph, tensors(graph), degrees, given)
    graph = from_histograms(graph, given, degrees)
    weights = tensors(graph)
    node = [node for node in graph.nodes if isinstance(node.op, Conv2d)][1]
    assert isinstance(node.op, Conv2d) and node.op.bias is not None
    made = Whitened(graph, weights, given, ranges, refit=True, spread=spread)
    for theta in made.theta.values():
        theta.data.fill_(1.0)
    step = (made.current()[node.op.bias] - weights[node.op.bias]).detach()
    y = run(graph, weights, given, keep=frozenset({node.id}))[node.id]
    own, layers = y.transpose(0, 1).flatten(1).std(1), float(y.std())
    if (groups, spread, degree) == (1, "together", 3):
        assert torch.allclose(step, torch.full_like(step, layers), rtol=1e-3)
    else:
        assert float(own[0]) < 0.3 * float(own[2]) and float(own[1]) < LEAST_OWN * layers
        assert torch.allclose(step, own.clamp_min(LEAST_OWN * layers), rtol=1e-3)
