"""Small networks of every task, trained in a moment on data that are made by rule."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.approximation.nets import images

CLASSES = 6


@dataclass(frozen=True)
class Task:
    """A net and what it is trained for.

    Attributes:
        net: makes the net.
        data: makes this many inputs and targets; the same for the same seed.
        loss: of outputs and targets.
        steps: of the training.
    """

    net: Callable[[], nn.Module]
    data: Callable[[int, int], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int = 150

    def trained(self) -> nn.Module:
        """The net, trained; the same each time."""
        torch.manual_seed(0)
        net = self.net().train()
        inputs, targets = self.data(1024, 0)
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        random = torch.Generator().manual_seed(0)
        for _ in range(self.steps):
            chosen = torch.randint(len(inputs), (64,), generator=random)
            optimizer.zero_grad()
            self.loss(net(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
        return net.eval()


# Data ----------------------------------------------------------------------------------------------------------------


def patterns(shape: tuple[int, int, int], noise: float = 0.8) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Smooth patterns, one a class, in noise; each image has a contrast of its own."""

    def made(count: int, seed: int) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(seed)
        kinds = functional.interpolate(
            torch.randn(CLASSES, shape[0], 3, 3, generator=torch.Generator().manual_seed(7)), shape[1:]
        )
        classes = torch.randint(CLASSES, (count,), generator=random)
        contrast = 0.4 + 1.2 * torch.rand(count, 1, 1, 1, generator=random)
        return contrast * (kinds[classes] + noise * images(count, seed + 100, shape)), classes

    return made


def measurements(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Six numbers, and three smooth functions of them of size 1."""
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    wanted = torch.stack(
        [torch.sin(x[:, 0] + x[:, 1]), x[:, 2] * x[:, 3] / 1.5, 1.5 * torch.tanh(x[:, 4] - x[:, 5])], 1
    )
    return x, wanted


def labels(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Six numbers, and four labels of which several may be true."""
    x, y = measurements(count, seed)
    return x, torch.cat([y > 0, x[:, :1] > x[:, 4:5]], 1).float()


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth pictures, to be given back."""
    x = patterns((1, 8, 8), 0.5)(count, seed)[0]
    return x, x


# Nets ----------------------------------------------------------------------------------------------------------------


def _convolution(
    inputs: int, outputs: int, size: int | tuple[int, int] = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    pad = size // 2 if isinstance(size, int) else (size[0] // 2, size[1] // 2)
    convolution = nn.Conv2d(inputs, outputs, size, stride, pad, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _head(channels: int, outputs: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs))


def convolutional() -> nn.Module:
    """Three convolutions with ReLU."""
    layers = [_convolution(3, 8), nn.ReLU(), _convolution(8, 16, stride=2), nn.ReLU(), _convolution(16, 16), nn.ReLU()]
    return nn.Sequential(*layers, _head(16))


class InvertedResidual(nn.Module):
    """As in MobileNetV2."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(channels, wide, 1),
            nn.ReLU6(),
            _convolution(wide, wide, groups=wide),
            nn.ReLU6(),
            _convolution(wide, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.layers(x)
        return result


def depthwise() -> nn.Module:
    """Two inverted residuals."""
    blocks = [InvertedResidual(8, 24), InvertedResidual(8, 24)]
    return nn.Sequential(_convolution(3, 8), nn.ReLU6(), *blocks, _head(8))


def keywords() -> nn.Module:
    """Over 49 times and 10 bands, as nets that spot keywords."""
    first = [_convolution(1, 12, (10, 4), 2), nn.ReLU()]
    blocks = [
        layer
        for _ in range(2)
        for layer in (_convolution(12, 12, groups=12), nn.ReLU(), _convolution(12, 12, 1), nn.ReLU())
    ]
    return nn.Sequential(*first, *blocks, _head(12))


def regression() -> nn.Module:
    """Three numbers."""
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def in_units(net: nn.Module, sizes: Tensor) -> nn.Module:
    """A copy of a net whose outputs are multiplied by these sizes, in its last layer."""
    made = copy.deepcopy(net)
    *_, last = made.children()
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(sizes[:, None])
        last.bias.mul_(sizes)
    return made


class Unit(nn.Module):
    """Outputs of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x)


def embedding() -> nn.Module:
    """A direction in 8 dimensions."""
    layers = [_convolution(3, 8), nn.ReLU(), _convolution(8, 16, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, _head(16, 8), Unit())


def autoencoder() -> nn.Module:
    """64 pixels by way of 8 numbers."""
    inner = [nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64)]
    return nn.Sequential(nn.Flatten(), *inner, nn.Unflatten(1, (1, 8, 8)))


def smooth() -> nn.Module:
    """Probabilities of four labels, by GELU and tanh."""
    layers = [nn.Linear(6, 32), nn.GELU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4), nn.Sigmoid()]
    return nn.Sequential(*layers)


# Tasks ---------------------------------------------------------------------------------------------------------------


def _apart(outputs: Tensor, classes: Tensor) -> Tensor:
    """Directions of a class are near that class's own."""
    anchors = functional.normalize(torch.eye(CLASSES, 8) - 1 / 8)
    return functional.cross_entropy(8 * outputs @ anchors.T, classes)


TASKS = {
    "convolutional": Task(convolutional, patterns((3, 8, 8)), functional.cross_entropy, 60),
    "depthwise": Task(depthwise, patterns((3, 8, 8)), functional.cross_entropy, 100),
    "keywords": Task(keywords, patterns((1, 49, 10)), functional.cross_entropy),
    "regression": Task(regression, measurements, functional.mse_loss, 600),
    "embedding": Task(embedding, patterns((3, 8, 8)), _apart),
    "autoencoder": Task(autoencoder, pictures, functional.mse_loss, 400),
    "smooth": Task(smooth, labels, functional.binary_cross_entropy, 400),
}


@functools.cache
def trained(name: str) -> nn.Module:
    """The trained net of a task."""
    return TASKS[name].trained()
