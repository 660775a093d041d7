"""The agreement that is expected from the errors of a few images, and after the whole fit."""

from __future__ import annotations

import math

import pytest
import torch

from olac.approximation import ImageFitter
from olac.approximation.common import WORST
from olac.approximation.forecast import PAIRINGS, after_fit, with_errors
from olac.polynomials.modes import Compensated
from tests.approximation.nets import activations, images, residual


def outputs(count: int, seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs that are flattened and disturbed, and the clean ones."""
    random = torch.Generator().manual_seed(seed)
    clean = torch.randn(count, 6, generator=random)
    return 0.7 * clean + 0.1 + noise * torch.randn(count, 6, generator=random), clean


def share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    theirs = theirs.repeat(len(ours) // len(theirs), 1)
    return float((ours.argmax(1) == theirs.argmax(1)).double().mean())


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.5])
def test_the_share_that_disagrees_is_known_better_than_from_the_images_alone(noise: float) -> None:
    truth = share(*outputs(20000, 0, noise))
    _, others = outputs(1000, 1, noise)
    alone, expected = [], []
    for seed in range(2, 32):
        ours, clean = outputs(48, seed, noise)
        alone.append((share(ours, clean) - truth) ** 2)
        expected.append((share(with_errors(ours, clean, others, "together"), others) - truth) ** 2)
    assert math.sqrt(sum(expected) / sum(alone)) < 0.5


def test_errors_are_those_that_are_given() -> None:
    ours, clean = outputs(40, 1, 0.3)
    _, others = outputs(100, 2, 0.3)
    made = with_errors(ours, clean, others, "together")
    assert made.shape == (PAIRINGS * 100, 6)
    repeated = others.repeat(PAIRINGS, 1)
    assert float((made - repeated).square().mean()) == pytest.approx(float((ours - clean).square().mean()), rel=0.15)
    assert torch.equal(with_errors(clean, clean, others, "together"), repeated)
    assert torch.allclose(with_errors(ours, clean, others, "together", 0.0), repeated)
    half = with_errors(ours, clean, others, "together", 0.5)
    assert torch.allclose(half - repeated, 0.5 * (made - repeated), atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_an_image_that_diverges_decides_only_for_itself(value: float) -> None:
    ours, clean = outputs(50, 1, 0.01)
    ours[0] = value
    _, others = outputs(400, 2, 0.0)
    made = with_errors(ours, clean, others, "together")
    lost = 1 - float((~made.isfinite().all(1) | (made.abs().amax(1) > 1e6)).double().mean())
    assert lost == pytest.approx(0.98, abs=0.01)
    near = made[made.isfinite().all(1) & (made.abs().amax(1) < 1e6)]
    assert float(near.std()) == pytest.approx(0.7 * float(others.std()), rel=0.1)


def test_the_fit_gains_more_with_more_images_and_where_the_error_is_larger() -> None:
    assert after_fit(0.02, 10**6, 0.03) == 0.02
    ratios = [after_fit(error, 16000, 0.03) / error for error in (0.03, 0.1, 0.3, 1.0)]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] > 0.1
    errors = [after_fit(0.3, visits, 0.03) for visits in (0, 500, 4000, 16000, 320000, 10**9)]
    assert errors == sorted(errors, reverse=True) and 0.03 < errors[-1] < errors[0] < 0.3
    assert after_fit(math.inf, 0, 0.03) <= WORST


@pytest.mark.parametrize(("degree", "passes"), [(2, 0), (3, 0), (3, 6), (7, 6)])
def test_forecasts_are_near_what_fits_reach(degree: int, passes: int) -> None:
    net = residual(2)
    fitter = ImageFitter(images(400, 1).numpy(), images(100, 2).numpy())
    unseen = ImageFitter(images(400, 1).numpy(), images(600, 3).numpy())
    degrees, method = dict.fromkeys(activations(net), degree), Compensated(reconstruct=passes)
    _, forecast, _ = fitter.trial(net, degrees, method)
    made = fitter.compensate(net, degrees, method)
    reached = unseen.error(net, made)[1]
    assert forecast == pytest.approx(reached, abs=0.06)
    assert fitter.error(net, made)[1] == pytest.approx(reached, abs=0.06)
