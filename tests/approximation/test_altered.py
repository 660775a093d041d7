"""Copies of images that are altered, and how many of them diverge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.nn import functional

import olac
from olac.approximation.augment import callers_augment
from olac.approximation.common import altered, shifted, stressed
from olac.approximation.engine import COPIES, ImageFitter
from olac.errors import ArtifactError, CalibrationError
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


# A caller's own ------------------------------------------------------------------------------------------------------


def test_a_callers_augment_takes_the_place_of_mirrors_and_shifts() -> None:
    given = torch.rand((8, 3, 16, 16), generator=generator())
    augment = callers_augment(lambda images: images.roll(1, 3))
    assert torch.equal(augment(given, generator()), given.roll(1, 3))
    made = altered(given, 16, 3, augment)
    near = [(made[i] - given[i % 8].roll(1, 2)).abs().amax() < 1e-6 for i in range(16)]
    assert 2 <= sum(map(bool, near)) < 16, "half of the copies are stressed as well"


def test_what_a_callers_augment_draws_depends_on_the_seed_alone() -> None:
    given = torch.rand((8, 5), generator=generator())
    augment = callers_augment(lambda images: images.add_(torch.rand_like(images)))
    before, kept = given.clone(), torch.random.get_rng_state()
    first, again, other = (augment(given, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(given, before), "the images are copies"
    assert torch.equal(torch.random.get_rng_state(), kept)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda images: images[:, :, 1:], r"a batch of shape \(4, 3, 4, 5\) of one of shape \(4, 3, 5, 5\)"),
        (lambda images: images.numpy(), "returned ndarray, not a tensor"),
        (lambda images: images / 0, "aren't finite"),
    ],
)
def test_an_augment_that_makes_no_images_is_refused(
    function: Callable[[torch.Tensor], torch.Tensor], text: str
) -> None:
    given = torch.rand((4, 3, 5, 5), generator=generator())
    with pytest.raises(CalibrationError, match=text):
        callers_augment(function)(given, generator())


def test_compile_takes_an_augment_and_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 3),
    )
    given, seen = torch.randn(400, 3, 8, 8, generator=generator()), []

    def augment(batch: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(batch.shape))
        return batch.flip(2)

    def outputs(**choices: Any) -> npt.NDArray[Any]:
        made = olac.approximate(model, [given], degree=2, reconstruct=4, task="regression", **choices)
        return np.asarray(made.simulate(given[:8]))

    first = outputs(augment=augment, checkpoint=tmp_path / "state")
    assert seen and all(shape[1:] == (3, 8, 8) for shape in seen)
    assert [path.name[:4] for path in (tmp_path / "state").iterdir()] == ["fit-"]
    assert np.array_equal(first, outputs(augment=augment)) and not np.array_equal(first, outputs())

    def fails(batch: torch.Tensor) -> torch.Tensor:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        outputs(augment=fails)
    with pytest.raises(ValueError, match="augment is 3, which can't be called"):
        outputs(augment=3)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="the folder can't be made"):
        outputs(checkpoint=tmp_path / "file" / "state")
