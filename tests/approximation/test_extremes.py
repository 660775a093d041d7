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
