"""Calibration streams any loader once, observes the values of torch, and names the batch of bad data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from olac.calibration.batches import first_batch
from olac.calibration.collect import calibrate, pixel_notes
from olac.calibration.statistics import Calibration
from olac.errors import CalibrationError, VerificationError
from olac.frontend import lift, trace
from olac.frontend.trace import Traced
from olac.ir.graph import Graph
from olac.ir.ops import Activation


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Any) -> Any:
        y = self.act(self.conv(x))
        y = y - torch.tanh(y * 0.5)
        a, b = self.fc(y.mean((2, 3))).chunk(2, 1)
        return a * b.sigmoid()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, 6, 7, generator=torch.Generator().manual_seed(0))


def split(count: int, size: int) -> list[torch.Tensor]:
    return [images(count)[i : i + size] for i in range(0, count, size)]


def run(model: nn.Module, loader: Any) -> tuple[Traced, Graph, Calibration]:
    example, batches = first_batch(loader)
    traced = trace(model, example)
    graph = lift(traced)
    return traced, graph, calibrate(traced, graph, batches)


def same(a: Calibration, b: Calibration) -> None:
    assert a.images == b.images and a.ranges.keys() == b.ranges.keys()
    assert np.array_equal(a.held_out, b.held_out)
    assert np.allclose(a.held_out_outputs, b.held_out_outputs, atol=1e-6)
    for key, seen in a.ranges.items():
        assert seen.low == pytest.approx(b.ranges[key].low, abs=1e-5)
        assert seen.high == pytest.approx(b.ranges[key].high, abs=1e-5)
    for key, histogram in a.histograms.items():
        assert histogram.count == b.histograms[key].count


def test_against_the_graph_itself() -> None:
    model = Net().eval()
    x = images(37)
    _, graph, calibration = run(model, [x[:16], x[16:32], x[32:]])
    held = torch.arange(37) % 8 == 0
    assert calibration.images == 37 - 5
    assert np.array_equal(calibration.held_out, x[held].double().numpy())
    with torch.no_grad():
        assert np.allclose(calibration.held_out_outputs, model(x[held]).numpy(), atol=1e-6)
    values: dict[str, Any] = {}
    graph.evaluate(x[~held].double().numpy(), lambda node, value: values.update({node.id: value}))
    assert calibration.ranges.keys() == values.keys()
    for key, value in values.items():
        assert calibration.ranges[key].low == pytest.approx(value.min(), abs=1e-5)
        assert calibration.ranges[key].high == pytest.approx(value.max(), abs=1e-5)
    activations = {node.id: node for node in graph.nodes if isinstance(node.op, Activation)}
    assert calibration.histograms.keys() == activations.keys() == {"act", "tanh", "sigmoid"}
    for key, histogram in calibration.histograms.items():
        value = values[activations[key].inputs[0]]
        assert histogram.count == value.size
        assert histogram.range().low == pytest.approx(value.min(), abs=1e-5)
        assert histogram.mean(1) == pytest.approx(value[:, 1].mean(), abs=1e-5)


def test_any_kind_of_loader() -> None:
    x, model = images(20), Net()
    parts = [x[:8], x[8:16], x[16:]]
    expected = run(model, parts)[2]

    def generator() -> Iterator[torch.Tensor]:
        yield from parts

    dataset = torch.utils.data.TensorDataset(x, torch.zeros(len(x)))
    loaders: list[Any] = [
        generator(),
        tuple(parts),
        [(p, torch.zeros(len(p))) for p in parts],
        [[p, "labels"] for p in parts],
        [{"images": p} for p in parts],
        [{"pixel_values": p, "labels": 0} for p in parts],
        [p.numpy() for p in parts],
        [p.numpy().astype(np.float64) for p in parts],
        x,
        x.numpy(),
        torch.utils.data.DataLoader(dataset, batch_size=8),
        [x[i : i + 1] for i in range(20)],
    ]
    for loader in loaders:
        same(run(model, loader)[2], expected)


def test_one_batch_is_read_once() -> None:
    reads = []

    def generator() -> Iterator[torch.Tensor]:
        for i in range(3):
            reads.append(i)
            yield images(4)

    example, batches = first_batch(generator())
    assert reads == [0] and len(example) == 4
    assert len(list(batches)) == 3 and reads == [0, 1, 2]


@pytest.mark.parametrize(
    ("count", "fitted", "held"), [(1, 1, 1), (2, 1, 1), (9, 7, 2), (600, 525, 75), (2200, 1925, 275)]
)
def test_held_out_images(count: int, fitted: int, held: int) -> None:
    calibration = run(Net(), split(count, 7))[2]
    assert calibration.images == fitted
    assert len(calibration.held_out) == len(calibration.held_out_outputs) == held
    assert calibration.histograms["act"].count == fitted * 3 * 4 * 5


def test_held_out_images_are_in_no_statistic() -> None:
    x = images(16)
    x[0] *= 1000
    x[8] *= 1000
    calibration = run(Net(), [x])[2]
    assert calibration.ranges["x"].magnitude < 100
    assert np.abs(calibration.held_out).max() > 100


def test_progress() -> None:
    traced = trace(Net(), images(2))
    seen: list[int] = []
    calibrate(traced, lift(traced), split(10, 4), progress=seen.append)
    assert seen == [4, 8, 10]


def test_uint8_images() -> None:
    calibration = run(Net(), [(images(9) * 40).abs().to(torch.uint8)])[2]
    assert calibration.ranges["x"].low == 0 and calibration.ranges["x"].high > 40


def bad(position: int, value: float) -> list[torch.Tensor]:
    parts = [p.clone() for p in split(12, 4)]
    parts[position][1, 0, 2, 2] = value
    return parts


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "empty"),
        ([images(0)], "empty"),
        (iter(()), "empty"),
        (bad(0, float("nan")), "batch 0 holds NaN"),
        (bad(2, float("inf")), "batch 2 holds NaN or inf"),
        ([images(4), torch.zeros(4, 1, 6, 8)], r"batch 1 has inputs of shape \(1, 6, 8\)"),
        ([images(4), "text"], "batch 1"),
        ([images(4), None], "batch 1"),
        ([images(4), ()], "batch 1 is empty"),
        ([{"labels": 1}], "'images'"),
        ([torch.zeros(4, 1, 6, 7, dtype=torch.int64)], "batch 0 has type torch.int64"),
        ([torch.zeros(4, 1, 6, 7, dtype=torch.complex64)], "complex"),
        ([torch.zeros(4)], "batch axis"),
        (5, "batches are needed"),
    ],
)
def test_bad_data(loader: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        run(Net(), loader)


def test_images_of_another_shape_than_traced() -> None:
    traced = trace(Net(), images(2))
    with pytest.raises(CalibrationError, match="the model takes"):
        calibrate(traced, lift(traced), torch.zeros(3, 1, 9, 9))


@pytest.mark.parametrize("weight", [float("nan"), 1e38])
def test_models_that_give_nan(weight: float) -> None:
    first = nn.Linear(3, 3)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        first.weight.fill_(weight)
    with pytest.raises(CalibrationError, match="NaN"):
        run(model, [torch.full((4, 3), 100.0)])


def test_another_graph() -> None:
    traced = trace(Net(), images(2))
    lift(traced)
    other = lift(trace(nn.Sequential(nn.Flatten(), nn.Linear(42, 1)), images(2)))
    with pytest.raises(VerificationError):
        calibrate(traced, other, images(3))


def test_pixels_that_were_not_scaled_are_noted() -> None:
    pixels = (255 * torch.rand(16, 1, 6, 7, generator=torch.Generator().manual_seed(0))).to(torch.uint8)

    def notes(given: torch.Tensor) -> tuple[str, ...]:
        _, graph, calibration = run(Net(), [given])
        return pixel_notes(graph, calibration)

    (note,) = notes(pixels)
    assert "images.float() / 255" in note
    assert not notes(pixels.float() / 255) and not notes(pixels // 4) and not notes(pixels.float() - 128)
    _, graph, calibration = run(nn.Linear(4, 2), [pixels.flatten(1)[:, :4].float()])
    assert not pixel_notes(graph, calibration)  # rows of a table may be whole numbers
