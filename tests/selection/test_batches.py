"""How many images share a ciphertext, and what a batch costs an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.selection.price import Share
from tests.e2e.test_networks import SLOTS, in_slots, relative

CHOICES: dict[str, Any] = {"degree": 3, "insecure": True, "reconstruct": 0}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 1)).eval()


def images() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(64, 30) * 2 - 1


def seconds(program: olac.CompiledProgram, count: int) -> float:
    """Predicted for an image of a run of `count`, encoding included."""
    estimate = program.estimate(threads=1)
    encoding = estimate.first_seconds - estimate.seconds_per_image * program.batch
    return (-(-count // program.batch) * estimate.seconds_per_image * program.batch + encoding) / count


@pytest.mark.parametrize("count", [1, 3, 16, 1000, 100_000])
def test_batches_of_any_size(count: int) -> None:
    program = olac.compile(model(), [images()], batch=count, log_ring=12, **CHOICES)
    assert program.batch & (program.batch - 1) == 0
    assert program.batch < 2 * count
    if count <= 64:  # as many values of 32 slots as 2,048 slots hold
        assert program.batch >= count
    given = images()[: min(program.batch, 64)].double().numpy()
    assert relative(in_slots(program, given), program.simulate(given)) < SLOTS


def test_a_batch_takes_less_time_an_image() -> None:
    alone, *others = (
        (count, olac.compile(model(), [images()], batch=count, log_ring=12, **CHOICES)) for count in (1, 8, 64, 1024)
    )
    taken = [seconds(program, count) for count, program in (alone, *others)]
    assert taken == sorted(taken, reverse=True)
    assert taken[1] < taken[0] / 5 and taken[2] < taken[0] / 30 and taken[3] < taken[0] / 100


def test_with_one_slot_an_image_nothing_is_rotated() -> None:
    program = olac.compile(model(), [images()], batch=2048, log_ring=12, **CHOICES)
    assert program.batch == 2048 and not program.rotations
    given = np.random.default_rng(0).uniform(-1, 1, size=(2048, 30))
    assert relative(in_slots(program, given), program.simulate(given)) < SLOTS


def test_throughput_takes_as_many_as_there_is_room_for() -> None:
    program = olac.compile(model(), [images()], objective="throughput", log_ring=12, **CHOICES)
    assert program.batch == 64
    wider = olac.compile(model(), [images()], objective="throughput", batch=256, log_ring=12, **CHOICES)
    assert wider.batch == 256
    with pytest.raises(ValueError, match="objective 'speed' is not one of latency, throughput"):
        olac.CompileOptions(objective="speed")  # type: ignore[arg-type]


def test_shares() -> None:
    assert Share().each == 1.0
    assert Share(images=8, sets=4).each == 0.5
