"""Least squares with floors, against brute force; and floors that grow until polynomials are bounded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev

from olac.approximation.floors import COST, LARGER, LOW, MOST_FLOOR, Room, System
from olac.approximation.moments import means
from olac.approximation.sweep import sweep
from olac.ir.functions import Function, channel_functions
from olac.polynomials.fit import CHANNEL_RIDGE, FLOOR_POINTS
from olac.polynomials.modes import Compensated
from olac.system.arrays import Array
from tests.approximation.nets import activations, images, residual

Tensor = torch.Tensor
MIDDLE, HALF, PADDING = np.array([0.5, -1.0, 0.0]), np.array([2.0, 3.0, 1.0]), np.array([1.2, 1.6, 2.5])
FLOOR = 1e-3


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sample(count: int = 400) -> Tensor:
    """Values of three channels, in their ranges."""
    t = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return t**3 * torch.from_numpy(HALF) + torch.from_numpy(MIDDLE)


def made(degree: int, functions: list[Function] | None = None) -> tuple[System, Tensor, float]:
    """A system for a sample, the sample and the half width of the layer."""
    x, found = sample(), functions or [relu]
    columns = [np.asarray(found[k if len(found) > 1 else 0](x[:, k].numpy())) for k in range(3)]
    y = torch.from_numpy(np.stack(columns, 1))
    second, first = means(x, y, torch.from_numpy(MIDDLE), torch.from_numpy(HALF), degree)
    return System(found, second, first, MIDDLE, HALF, PADDING), x, float((abs(MIDDLE) + PADDING * HALF).max())


@pytest.mark.parametrize("degree", [1, 3, 7])
@pytest.mark.parametrize("several", [False, True])
def test_it_is_least_squares_over_data_and_floor(degree: int, several: bool) -> None:
    functions: list[Function] = [relu, np.tanh, np.abs] if several else [relu]
    system, x, width = made(degree, functions)
    floors = torch.tensor([1e-4, 1e-2, 0.1], dtype=torch.float64)
    found = system.solve(floors, width, 5.0).numpy()
    for channel, floor in enumerate(floors.tolist()):
        spread = MIDDLE[channel] + HALF[channel] * PADDING[channel] * np.linspace(-1, 1, FLOOR_POINTS)
        points = np.concatenate([x[:, channel].numpy(), spread])
        weights = np.concatenate([np.full(len(x), (1 - floor) / len(x)), np.full(FLOOR_POINTS, floor / FLOOR_POINTS)])
        root = np.sqrt(weights)[:, None]
        rows = np.concatenate(
            [root * chebyshev.chebvander(points / width, degree), math.sqrt(CHANNEL_RIDGE) * np.eye(degree + 1)]
        )
        target = functions[channel if several else 0](points)
        wanted = np.linalg.lstsq(rows, np.concatenate([root[:, 0] * target, np.zeros(degree + 1)]), rcond=None)[0]
        assert found[channel] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def off(coefficients: Tensor, width: float, beyond: Array) -> tuple[Array, Array]:
    """How far polynomials are off over expected ranges, and how much ReLU exceeds what was seen: (channels, points)."""
    errors, exceeds = [], []
    for channel, row in enumerate(coefficients.double().numpy()):
        t = np.linspace(-1, 1, FLOOR_POINTS)
        x = MIDDLE[channel] + HALF[channel] * beyond[channel] * t
        errors.append(np.abs(chebyshev.chebval(x / width, row) - relu(x)))
        more = np.maximum(relu(x) - relu(MIDDLE[channel] + HALF[channel] * t).max(), 0)
        exceeds.append(np.maximum(more, more[::-1]))
    return np.stack(errors), np.stack(exceeds)


def lost(system: System, coefficients: Tensor, x: Tensor, width: float) -> Array:
    """The mean squared change on the data against the least floor, by channel."""
    first = system.solve(torch.full((3,), FLOOR, dtype=torch.float64), width, 5.0)
    rows = (coefficients.double() - first).numpy()
    return np.array([np.mean(chebyshev.chebval(x[:, k].numpy() / width, rows[k]) ** 2) for k in range(3)])


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("deviation", [0.02, 0.1, 0.5, 2.0])
def test_polynomials_are_bounded_where_values_are_expected_or_too_much_would_be_lost(
    deviation: float, share: float
) -> None:
    system, x, width = made(7)
    beyond, room = np.array([1.5, 2.0, 3.0]), Room(deviation, share)
    found = system.bounded(FLOOR, beyond, width, 5.0, room)
    errors, exceeds = off(found, width, beyond)
    within = (errors <= room.limit + share * exceeds + 1e-5).all(1)
    assert (lost(system, found, x, width) <= COST * deviation**2 * 1.001).all()
    for channel in np.flatnonzero(~within):
        # It has the last floor that costs little enough: the next is too large or costs too much.
        floors = [FLOOR]
        while floors[-1] < MOST_FLOOR:
            floors.append(LARGER * floors[-1])
        tried = [system.solve(torch.full((3,), floor, dtype=torch.float64), width, 5.0) for floor in floors]
        costs = [lost(system, one, x, width)[channel] for one in tried]
        cheap = next((k for k, cost in enumerate(costs) if cost > COST * deviation**2), len(costs)) - 1
        assert found[channel] == pytest.approx(tried[cheap][channel].float(), abs=1e-5)


def test_floors_grow_only_for_channels_that_are_far_off() -> None:
    system, _, width = made(7)
    plain = system.solve(torch.full((3,), FLOOR, dtype=torch.float64), width, 5.0).float()
    near, far = np.ones(3), np.array([1.0, 1.0, 4.0])
    room = Room(0.5)
    assert (off(plain, width, near)[0] <= room.limit).all()
    assert torch.equal(system.bounded(FLOOR, near, width, 5.0, room), plain)
    found = system.bounded(FLOOR, far, width, 5.0, room)
    assert torch.equal(found[:2], plain[:2]) and not torch.equal(found[2], plain[2])
    assert off(found, width, far)[0][2].max() < 0.9 * off(plain, width, far)[0][2].max()


@pytest.mark.parametrize("degree", [2, LOW])
def test_low_degrees_keep_their_floors(degree: int) -> None:
    system, _, width = made(degree)
    plain = system.solve(torch.full((3,), FLOOR, dtype=torch.float64), width, 5.0).float()
    assert torch.equal(system.bounded(FLOOR, np.full(3, 4.0), width, 5.0, Room(1e-3)), plain)


@pytest.mark.parametrize("floor", [1e-5, 0.05])
def test_a_floor_that_is_given_is_exact(floor: float) -> None:
    """The polynomials of the first activation are those of least squares with it, whatever they do further out."""
    net, x = residual(1), images(100, 1)
    first = activations(net)[0]
    method = Compensated(refit=False, floor=floor, padding=1.3)
    graph = sweep(net, x, images(30, 2), {first: 7}, method).graph
    op = graph[first].op
    coefficients = graph.constants[op.coefficients]  # type: ignore[attr-defined]
    source = net[first].inputs[0]
    found: dict[str, Array] = {}
    net.evaluate(x.double().numpy(), lambda node, value: found.update({node.id: value}))
    value = torch.from_numpy(np.asarray(found[source]))
    axes = (0, 2, 3)
    low, high = value.amin(axes).numpy(), value.amax(axes).numpy()
    middle, half = (low + high) / 2, (high - low) / 2
    second, right = means(value, value.clamp_min(0), torch.from_numpy(middle), torch.from_numpy(half), 7)
    system = System(channel_functions("relu", (), 8), second, right, middle, half, np.full(8, 1.3))
    width = float((abs(middle) + 1.3 * half).max())
    wanted = system.solve(torch.full((8,), floor, dtype=torch.float64), width, 1.0)
    assert op.half_width == pytest.approx(width, rel=1e-5)  # type: ignore[attr-defined]
    assert coefficients == pytest.approx(wanted.numpy(), abs=2e-3 * float(wanted.abs().max()))
