"""Held-out images beyond the limit: a fair sample, the same whatever the order, the parts and the batches."""

from __future__ import annotations

import itertools
from functools import reduce

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.calibration import statistics
from olac.calibration.held_out import fair_sample, number_of
from olac.calibration.statistics import Calibration, held_out_limit

MOST = 16


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHOOSING_MOST", MOST // 2)
    monkeypatch.setattr(statistics, "HELD_OUT_MOST", MOST)
    assert held_out_limit(8) == MOST


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def merged(parts: tuple[Calibration, ...]) -> Calibration:
    return reduce(Calibration.merge, parts)


def test_the_order_of_merging_does_not_matter() -> None:
    parts = [olac.calibrate(net(), images(count, seed)) for seed, count in enumerate((80, 96, 72, 8))]
    first, *others = [merged(order) for order in itertools.permutations(parts)]
    others.append(parts[0].merge(parts[1]).merge(parts[2].merge(parts[3])))
    assert len(first.held_out) == MOST
    for other in others:
        np.testing.assert_array_equal(first.held_out, other.held_out)
        np.testing.assert_array_equal(first.held_out_outputs, other.held_out_outputs)


def test_outputs_stay_with_their_images() -> None:
    model = net()
    whole = merged(tuple(olac.calibrate(model, images(120, seed)) for seed in range(3)))
    with torch.no_grad():
        wanted = model(torch.from_numpy(whole.held_out).float()).numpy()
    np.testing.assert_allclose(whole.held_out_outputs, wanted, atol=1e-6)


def test_one_pass_holds_out_what_the_merged_parts_do() -> None:
    x = images(640)
    whole = merged(tuple(olac.calibrate(net(), part) for part in x.split(160)))
    for size in (7, 640):
        one = olac.calibrate(net(), x.split(size))
        np.testing.assert_array_equal(one.held_out, whole.held_out)
        assert one.images == 640 - MOST, "those that the sample leaves out are in the statistics"
        assert next(iter(one.histograms.values())).count == 2 * one.images
        held = {row.tobytes() for row in one.held_out.astype("<f4")}
        assert held <= {row.tobytes() for row in x[::8].numpy()}
        assert not held & {row.tobytes() for row in one.sample}


def test_ranges_leave_held_out_images_out_and_take_the_others() -> None:
    x = images(640)
    x[::8] += 100.0 * (1 + torch.arange(80))[:, None]
    one = olac.calibrate(net(), x)
    rest = sorted(set(x[::8].flatten().tolist()) - set(one.held_out.flatten().tolist()))
    assert len(rest) == 3 * (80 - MOST)
    of_the_input = next(iter(one.ranges.values()))
    assert of_the_input.high == pytest.approx(max(rest))


def test_every_part_has_its_share() -> None:
    """Of parts of 40 and 120 candidates, 16 are drawn 200 times: 4 of the smaller on average, with deviation 0.11."""
    shares = []
    for seed in range(200):
        candidates = np.random.default_rng(seed).normal(size=(160, 3)).astype(np.float32)
        shares.append(sum(place < 40 for place in fair_sample(candidates, MOST)))
    assert np.mean(shares) == pytest.approx(4.0, abs=0.5)
    assert np.std(shares) == pytest.approx(np.sqrt(16 * 0.25 * 0.75 * (144 / 159)), rel=0.3)


def test_few_images_stay_in_their_order() -> None:
    assert fair_sample(images(MOST).numpy(), MOST) == list(range(MOST))
    assert fair_sample(images(MOST + 1).numpy(), MOST) != list(range(MOST))


def test_the_number_depends_on_values_alone() -> None:
    x = images(2).numpy()
    assert number_of(x[0]) == number_of(x[0].astype(np.float64)) == number_of(x.T.copy().T[0]) != number_of(x[1])
