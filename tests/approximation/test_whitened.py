"""The units of reconstruction's steps: what a step of one changes, in the values and beyond them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olac.approximation.floors import LOW
from olac.approximation.tails import POINTS, expected_ranges
from olac.approximation.tensors import run, tensors
from olac.approximation.whitened import LEAST_OWN, REACHED, Whitened
from olac.ir.ops import Conv2d, Linear, Polynomial
from tests.approximation.nets import activations, from_histograms, images, residual

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


def test_steps_of_weights_are_in_units_of_each_channel() -> None:
    graph = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 3))
    weights = tensors(graph)
    first = next(node for node in graph.nodes if isinstance(node.op, Conv2d | Linear))
    assert isinstance(first.op, Conv2d | Linear) and first.op.bias is not None
    factors = torch.ones(len(weights[first.op.bias]))
    factors[0], factors[1] = 0.1, 0.0
    for name in (first.op.weight, first.op.bias):
        weights[name] = weights[name] * factors.reshape(-1, *(1,) * (weights[name].ndim - 1))
    made = Whitened(graph, weights, TRAIN, {}, refit=True)
    for theta in made.theta.values():
        theta.data.fill_(1.0)
    step = (made.current()[first.op.bias] - weights[first.op.bias]).detach()
    y = run(graph, weights, TRAIN, keep=frozenset({first.id}))[first.id]
    own = y.transpose(0, 1).flatten(1).std(1)
    assert torch.allclose(step[2:] / own[2:], (step / own)[0].expand(len(step) - 2), rtol=1e-3)
    assert float(step[1]) == pytest.approx(LEAST_OWN * float(y.std()), rel=1e-3)
