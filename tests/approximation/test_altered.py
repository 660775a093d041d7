"""Copies of images that are altered, and how many of them diverge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from olac.approximation.common import altered, shifted, stressed
from olac.approximation.engine import COPIES, ImageFitter
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Polynomial
from tests.approximation.nets import activations, from_histograms, images, residual

TRAIN, HELD = images(160, 1), images(50, 2)
NET = residual(1)


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(16, 16), (20, 33)])
def test_a_shifted_picture_is_a_window_of_the_padded_one(size: tuple[int, int]) -> None:
    given = torch.rand(40, 2, *size, generator=generator())
    found = shifted(given, generator())
    down, right = size[0] // 8, size[1] // 8
    padded = functional.pad(given, (right, right, down, down), mode="replicate")
    places = set()
    for one, wide in zip(found, padded, strict=True):
        windows = {
            (i, j): wide[:, i : i + size[0], j : j + size[1]] for i in range(2 * down + 1) for j in range(2 * right + 1)
        }
        (place,) = [at for at, window in windows.items() if torch.equal(window, one)]
        places.add(place)
    assert len(places) > 10


@pytest.mark.parametrize("shape", [(8, 5), (8, 2, 15, 40), (8, 3, 30)])
def test_other_inputs_and_small_pictures_are_not_shifted(shape: tuple[int, ...]) -> None:
    given = torch.rand(shape, generator=generator())
    assert torch.equal(shifted(given, generator()), given)


def test_stress_goes_as_far_as_it_may() -> None:
    given = torch.randn(400, 6, generator=generator())
    mean = given.mean(1, keepdim=True)
    for most in (1.2, 1.6):
        made = stressed(given, generator(2), most=most)
        factors = ((made - mean).norm(dim=1) / (given - mean).norm(dim=1))[
            (functional.cosine_similarity(made - mean, given - mean) > 1 - 1e-5)
        ]
        assert len(factors) > 100 and float(factors.min()) >= 1 and float(factors.max()) <= most + 1e-4
        assert float(factors.max()) > 1 + 0.9 * (most - 1)


def test_altered_copies_are_the_same_for_the_same_seed() -> None:
    first, again, other = (altered(TRAIN, 50, seed) for seed in (3, 3, 4))
    assert first.shape == (50, *TRAIN.shape[1:])
    assert torch.equal(first, again) and not torch.equal(first, other)


def steeper(graph: Graph, factor: float) -> Graph:
    """The graph with the highest coefficient of every polynomial multiplied."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Polynomial):
            return None
        c = graph.constants[node.op.coefficients] * 1.0
        c[:, -1] *= factor
        name = builder.constant(f"{node.id}.steeper", c)
        return builder.keep(node, inputs, op=replace(node.op, coefficients=name))

    return graph.rewrite(step, by="test")


def test_copies_that_diverge_are_counted() -> None:
    fitter = ImageFitter(TRAIN.numpy(), HELD.numpy())
    assert fitter.diverging(NET, NET) == (0, COPIES)
    good = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 7))
    few, _ = fitter.diverging(NET, good)
    many, _ = fitter.diverging(NET, steeper(good, 40.0))
    assert few < 0.2 * COPIES < many
    assert fitter.diverging(NET, good) == (few, COPIES)


def test_outputs_that_are_not_finite_diverge() -> None:
    fitter = ImageFitter(TRAIN.numpy(), HELD.numpy())
    good = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 7))
    with np.errstate(all="ignore"):
        assert fitter.diverging(NET, steeper(good, 1e30)) == (COPIES, COPIES)
