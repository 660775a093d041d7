"""A small network to calibrate, its images, and the comparison of calibrations."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from olac.calibration.statistics import Calibration


def net(seed: int = 0) -> nn.Module:
    """Two activations."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.SiLU(), nn.Linear(5, 2)
    ).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Random images, (count, 2, 4, 4)."""
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def assert_same(a: Calibration, b: Calibration) -> None:
    """All is the same bit for bit but sums, which are added in another order, and outputs of held-out images."""
    assert (a.images, a.sample_every, a.fingerprint, a.ranges) == (b.images, b.sample_every, b.fingerprint, b.ranges)
    assert a.channels.keys() == b.channels.keys()
    for name, seen in a.channels.items():
        np.testing.assert_array_equal(seen, b.channels[name])
    np.testing.assert_array_equal(a.held_out, b.held_out)
    np.testing.assert_array_equal(a.sample, b.sample)
    np.testing.assert_allclose(a.held_out_outputs, b.held_out_outputs, rtol=1e-5, atol=1e-6)
    assert a.histograms.keys() == b.histograms.keys()
    for name, one in a.histograms.items():
        other = b.histograms[name]
        for part in ("counts", "exponents", "low", "high"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
        for part in ("sums", "squares"):
            np.testing.assert_allclose(getattr(one, part), getattr(other, part), rtol=1e-9, atol=1e-9)
