"""What pages take from torchvision, where it is not installed: ResNet-18 with torchvision's structure and names.

The architecture is that of He et al. (2015) as torchvision builds it, so a page that is tested with this module
compiles the same network. Pretrained weights are not part of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        kept = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += kept
        result: torch.Tensor = self.relu(out)
        return result


class ResNet(nn.Module):
    """ResNet-18: a stem for large pictures, four stages of two blocks, and a linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) to (n, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


def resnet18(*, weights: None = None, num_classes: int = 1000) -> ResNet:
    """torchvision's function, for random weights."""
    if weights is not None:
        raise ValueError("this stand-in has no pretrained weights")
    return ResNet(num_classes)


@contextmanager
def torchvision_there() -> Iterator[None]:
    """`import torchvision` works meanwhile: it gives torchvision or, where that is not installed, this stand-in."""
    if find_spec("torchvision") is not None:
        yield
        return
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    package.models = models  # type: ignore[attr-defined]
    models.resnet18 = resnet18  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": package, "torchvision.models": models}
    try:
        yield
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.models"]
