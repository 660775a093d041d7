"""Calibration in parts against one pass over the whole set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.errors import CalibrationError
from olac.scaling import calibrate_parts
from tests.scaling.small_calibration import assert_same, images, net


def test_parts_of_512_images_give_the_same_as_one_pass() -> None:
    model, x = net(), images(1024)
    merged = calibrate_parts(model, [x[:512], x[512:]])
    assert_same(merged, olac.calibrate(model, x))


def test_other_parts_give_the_same_but_for_rounding() -> None:
    """Every part is a multiple of 8 images, so the same are held out."""
    model, x = net(), images(400)
    merged = calibrate_parts(model, [x[:40], x[40:248], x[248:]])
    whole = olac.calibrate(model, x)
    assert merged.images == whole.images
    np.testing.assert_array_equal(merged.held_out, whole.held_out)
    for name, seen in whole.ranges.items():
        np.testing.assert_allclose([*vars(merged.ranges[name]).values()], [*vars(seen).values()], rtol=1e-5)
    for name, histogram in whole.histograms.items():
        moved = np.abs(merged.histograms[name].counts - histogram.counts).sum()
        assert moved <= 1e-3 * histogram.counts.sum()


def test_parts_are_read_where_they_are_needed() -> None:
    events: list[str] = []

    def part(number: int) -> Any:
        def loader() -> Iterator[torch.Tensor]:
            events.append(f"read {number}")
            yield images(16, seed=number)

        return loader

    calibrate_parts(net(), [part(0), part(1)], progress=lambda done, total: events.append(f"{done} of {total}"))
    assert events == ["read 0", "1 of 2", "read 1", "2 of 2"]


def test_going_on_after_an_interruption(tmp_path: Path) -> None:
    x, model, read = images(48), net(), []

    def part(number: int, fails: bool = False) -> Any:
        def loader() -> list[torch.Tensor]:
            read.append(number)
            if fails:
                raise KeyboardInterrupt
            return [x[16 * number : 16 * number + 16]]

        return loader

    with pytest.raises(KeyboardInterrupt):
        calibrate_parts(model, [part(0), part(1, fails=True), part(2)], folder=tmp_path)
    resumed = calibrate_parts(model, [part(0), part(1), part(2)], folder=tmp_path)
    assert read == [0, 1, 1, 2]
    assert_same(resumed, calibrate_parts(model, [part(0), part(1), part(2)]))


def test_parts_of_another_model_in_the_folder(tmp_path: Path) -> None:
    x = images(32)
    calibrate_parts(net(seed=1), [x[:16]], folder=tmp_path)
    with pytest.raises(CalibrationError, match="different models"):
        calibrate_parts(net(seed=2), [x[:16], x[16:]], folder=tmp_path)


@pytest.mark.parametrize("parts", [[], [[]]])
def test_no_images(parts: list[Any]) -> None:
    with pytest.raises(CalibrationError):
        calibrate_parts(nn.Flatten(), parts)
