"""How far values are expected to go in many more images than were seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olac.approximation.extremes import EXPECTED, FURTHEST, extremes, reach
from olac.approximation.moments import ends
from olac.system.arrays import Array

Tensor = torch.Tensor


def ranged(x: Tensor) -> tuple[Array, Array]:
    """Middle and half width of each channel."""
    axes = [0, *range(2, x.ndim)]
    low, high = x.amin(axes).double().numpy(), x.amax(axes).double().numpy()
    return (low + high) / 2, (high - low) / 2


@pytest.mark.parametrize("images", [64, 256, 1024])
@pytest.mark.parametrize("places", [(), (4, 4)])
@pytest.mark.parametrize("shape", ["normal", "laplace", "uniform"])
def test_nearly_all_of_many_further_images_stay_within(images: int, places: tuple[int, ...], shape: str) -> None:
    random = np.random.default_rng(images)

    def sample(n: int, channels: int) -> Tensor:
        return torch.from_numpy(getattr(random, shape)(size=(n, channels, *places)))

    seen, channels = sample(images, 200), 200
    middle, half = ranged(seen)
    padding = reach(extremes(ends(seen)), middle, half)
    assert padding.shape == (channels,)
    assert (padding >= 1).all() and (padding <= FURTHEST).all()
    further = sample(1000, channels).numpy().reshape(1000, channels, -1)
    beyond = np.abs(further - middle[None, :, None]) > (padding * half)[None, :, None]
    # A share of 1000 / EXPECTED of the channels is expected to have one; an estimate from few images scatters.
    assert beyond.any(axis=(0, 2)).mean() < (3 if images == 64 else 2) * 1000 / EXPECTED
    unpadded = np.abs(further - middle[None, :, None]) > half[None, :, None]
    assert unpadded.any(axis=(0, 2)).mean() > 0.6


def test_less_is_added_if_more_was_seen() -> None:
    random = torch.Generator().manual_seed(1)
    paddings = []
    for images in (32, 128, 1024, 8192):
        x = torch.randn(images, 50, generator=random)
        paddings.append(float(np.median(reach(extremes(ends(x)), *ranged(x)))))
    assert paddings == sorted(paddings, reverse=True)
    assert paddings[0] > 1.8 and paddings[-1] < 1.5


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_few_images_are_no_error(images: int) -> None:
    x = torch.randn(images, 3, generator=torch.Generator().manual_seed(2))
    middle, half = ranged(x)
    found = reach(extremes(ends(x)), middle, np.maximum(half, 0.1))
    assert np.isfinite(found).all() and (found >= 1).all()


def test_a_constant_channel_is_not_padded() -> None:
    x = torch.cat([torch.full((100, 1), 2.0), torch.randn(100, 1, generator=torch.Generator().manual_seed(3))], 1)
    found = reach(extremes(ends(x)), np.array([2.0, 0.0]), np.array([0.1, 3.0]))
    assert found[0] == 1.0 and found[1] > 1.0


def drawn(kind: str, images: int, channels: int, seed: int = 1) -> Tensor:
    """Values of one place an image; t5 is Student's t of 5 degrees of freedom."""
    random = np.random.default_rng(seed)
    made = random.standard_t(5, (images, channels)) if kind == "t5" else getattr(random, kind)(size=(images, channels))
    return torch.from_numpy(made)


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("uniform", -0.25, -0.2), ("normal", -0.25, -0.04), ("exponential", -0.06, 0.06), ("t5", 0.05, 0.3)],
)
@pytest.mark.parametrize("channels", [16, 200])
def test_the_shape_of_a_layers_tails(kind: str, least: float, most: float, channels: int) -> None:
    found = [extremes(ends(drawn(kind, 1024, channels, seed))) for seed in range(6)]
    shapes = np.array([float(one.shape[0, 0]) for one in found if one is not None])
    assert len(shapes) == 6
    assert least <= shapes.mean() <= most
    if channels == 200:
        assert all(one is not None and one.heavy == (kind == "t5") for one in found) or kind == "exponential"


def test_one_shape_is_shared_by_a_layer() -> None:
    """A channel says little about its own shape, so one heavy channel among many does not decide it."""
    found = extremes(ends(torch.cat([drawn("uniform", 1024, 60), drawn("t5", 1024, 1)], 1)))
    assert found is not None and found.shape.shape == (2, 1) and not found.heavy


@pytest.mark.parametrize("kind", ["normal", "exponential", "t5"])
@pytest.mark.parametrize("images", [256, 1024])
def test_levels_against_true_quantiles(kind: str, images: int) -> None:
    """The level of 10,000 images is about the true value that one image of 10,000 exceeds."""
    found = extremes(ends(drawn(kind, images, 200)))
    assert found is not None
    true = np.quantile(drawn(kind, 2_000_000, 1, 9).numpy(), 1 - 1 / EXPECTED)
    levels = found.level(EXPECTED)[0].numpy()
    assert np.median(levels) == pytest.approx(true, rel=0.2)
    assert (np.abs(levels / true - 1) < 0.35).mean() > 0.9
    assert (found.level(10 * EXPECTED) > found.level(EXPECTED)).all()


def test_all_channels_together_go_further_than_one() -> None:
    x = drawn("normal", 1024, 100)
    tails, (middle, half) = extremes(ends(x)), ranged(x)
    alone, together = (reach(tails, middle, half, each) for each in (False, True))
    assert (together > alone).all()
    further = np.abs(drawn("normal", 10_000, 100, 5).numpy() - middle)
    # A channel leaves its own expected range in one of EXPECTED images on each side, the one of all in hardly any.
    left = {name: int((further > padding * half).sum()) for name, padding in (("alone", alone), ("together", together))}
    assert 20 < left["alone"] < 400 and left["together"] < 20
