"""Networks with their data, from a logistic regression to a ResNet-56, as `costs` and `throughput` measure them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.accuracy import load_model
from benchmarks.data import DataError, data_folder, test_set, training_set
from benchmarks.models import MODELS, ResNet18
from olac.demo import load_digits, train

Labels = npt.NDArray[np.int64]

BEAT = 184
"""Samples of a beat: half a second at 360 Hz, the rate of the MIT-BIH database."""
BEATS = 2_000
SHAPES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "normal": ((0.25, 0.15, 0.04), (0.42, -0.12, 0.012), (0.46, 1.0, 0.018), (0.50, -0.2, 0.014), (0.72, 0.3, 0.06)),
    "premature ventricular": ((0.40, 0.9, 0.06), (0.56, -0.45, 0.06), (0.80, -0.25, 0.07)),
    "atrial": ((0.42, -0.12, 0.012), (0.46, 1.0, 0.018), (0.50, -0.2, 0.014), (0.72, 0.25, 0.06)),
    "bundle branch block": ((0.25, 0.12, 0.04), (0.43, 0.7, 0.025), (0.53, 0.75, 0.03), (0.76, -0.2, 0.06)),
}
"""Waves of a beat by its class: when (share of the beat), how high (1 is a usual R wave), how wide (share)."""


@dataclass(frozen=True)
class Workload:
    """A model and its data.

    Attributes:
        model: in evaluation mode; its outputs are logits, (n, classes) or (n, 1).
        calibration: inputs that it is calibrated on.
        images: inputs that nothing was fitted to, but for those of `logistic`.
        labels: their classes, or None if the weights are random.
        choices: options that `olac.compile` gets beside its defaults.
        other: another model of the same structure for each number from 1 on, for ensembles; None if there is none.
    """

    model: nn.Module
    calibration: torch.Tensor
    images: torch.Tensor
    labels: Labels | None
    choices: dict[str, Any]
    other: Callable[[int], nn.Module] | None = None


def _logistic() -> Workload:
    """Logistic regression on scikit-learn's breast cancer data: 30 columns."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer()
    x = torch.tensor((table.data - table.data.mean(0)) / table.data.std(0), dtype=torch.float32)
    y = torch.tensor(table.target, dtype=torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y).backward()
        optimizer.step()
    return Workload(model.eval(), x, x, np.asarray(table.target, dtype=np.int64), {})


def _digits() -> Workload:
    """The demo's network of two convolutions on scikit-learn's digits."""
    digits = load_digits()
    labels = digits.test_labels.numpy().astype(np.int64)
    return Workload(
        train(digits),
        digits.train_images[:512],
        digits.test_images,
        labels,
        {"degree": 3},
        lambda number: train(digits, seed=number),
    )


class BeatNet(nn.Module):
    """Three convolutions of one axis, with batch norm and ReLU, and a linear layer."""

    def __init__(self, classes: int = len(SHAPES)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, width in ((1, 8, 7), (8, 16, 5), (16, 16, 5)):
            layers += [nn.Conv1d(before, after, width, 2, width // 2), nn.BatchNorm1d(after), nn.ReLU()]
        self.features, self.linear = nn.Sequential(*layers), nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Signals (n, 1, samples) to logits (n, classes)."""
        out: torch.Tensor = self.linear(self.features(x).mean(2))
        return out


def beats(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic heart beats, (count, 1, 184), and their classes: sums of Gaussian waves, shifted, scaled and noisy.

    They look like those of an electrocardiogram and are none: they measure seconds, not diagnoses.
    """
    random = np.random.default_rng(seed)
    times = np.arange(BEAT) / BEAT
    labels = random.integers(0, len(SHAPES), count)
    signals = random.normal(0, 0.04, (count, 1, BEAT))
    for signal, label in zip(signals, labels, strict=True):
        shift, size = random.normal(0, 0.03), random.uniform(0.7, 1.3)
        for when, high, wide in tuple(SHAPES.values())[label]:
            centre, width = when + shift + random.normal(0, 0.01), wide * random.uniform(0.8, 1.25)
            signal[0] += size * high * np.exp(-0.5 * ((times - centre) / width) ** 2)
    return torch.tensor(signals, dtype=torch.float32), torch.tensor(labels)


def _ecg() -> Workload:
    """A network of three convolutions on synthetic heart beats of four classes."""
    x, y = beats(BEATS, 0)
    torch.manual_seed(0)
    model = BeatNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(10):
        for part in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    held_out, labels = beats(BEATS // 2, 1)
    return Workload(model.eval(), x[:512], held_out, labels.numpy().astype(np.int64), {})


def _cifar(name: str, weights: Path | None, folder: Path | None, calibration: int, images: int) -> Workload:
    data = data_folder(folder)
    training, test = training_set(data, calibration), test_set(data, images)
    if name == "resnet18":
        model: nn.Module = ResNet18(64)
        benchmark = MODELS[name]
        pixels = benchmark.images(training.images(calibration))
        return Workload(_random(model, pixels), pixels, benchmark.images(test.images(images)), None, {})
    benchmark, model = load_model(name, weights)
    pixels = benchmark.images(training.images(calibration))
    return Workload(model, pixels, benchmark.images(test.images(images)), test.labels(images), {})


def _random(model: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """He's random weights, and the statistics of batch norms as these inputs make them."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over the batches
    with torch.no_grad():
        for part in inputs.split(64):
            model.train()(part)
    return model.eval()


SMALL: dict[str, Callable[[], Workload]] = {"logistic": _logistic, "digits": _digits, "ecg": _ecg}
"""Those that come with their data; the others are networks of benchmarks/models.py for CIFAR-10."""


def check_names(names: list[str] | tuple[str, ...]) -> None:
    """DataError if a name is unknown."""
    known = (*SMALL, *MODELS)
    for name in names:
        if name not in known:
            raise DataError(f"{name} is not one of {', '.join(known)}")


def workload(
    name: str, weights: Path | None, folder: Path | None, *, calibration: int = 1024, images: int = 1000
) -> Workload:
    """A workload by its name. Small ones have as many inputs as they come with. DataError says what is missing."""
    check_names([name])
    return SMALL[name]() if name in SMALL else _cifar(name, weights, folder, calibration, images)
