"""The networks of the benchmarks, with the state-dict keys of the weights that are published for them.

ResNets for CIFAR-10 after He et al. (2016), section 4.2, with shortcuts that drop pixels and pad channels (option A);
ResNet-8 as MLPerf Tiny defines it; a small ConvNeXt (Liu et al., 2022) with BatchNorm in place of LayerNorm; and a
small MobileNetV2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ASSETS = Path(__file__).parent / "assets"


class PadShortcut(nn.Module):
    """Every second pixel, and channels of zeros on both sides: a shortcut without weights."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) to (n, c + 2 pad, h / 2, w / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        same = stride == 1 and channels_in == channels
        self.shortcut: nn.Module = nn.Identity() if same else PadShortcut((channels - channels_in) // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels_in, h, w) to (n, channels, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """ResNet-(6n + 2): three stages of n blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a CIFAR ResNet has 6 n + 2 layers, not {depth}")
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, count, 1)
        self.layer2 = self._stage(16, 32, count, 2)
        self.layer3 = self._stage(32, 64, count, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(channels_in: int, channels: int, count: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(count - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) to logits (n, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


class ConvBlock(BasicBlock):
    """The basic block of ResNet-18: the shortcut is a 1x1 convolution with batch norm if the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__(channels_in, channels, stride)
        if not isinstance(self.shortcut, nn.Identity):
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2015) for 32x32 images: four stages of two blocks, the first of `width` channels."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks, channels = [], width
        for stage in range(4):
            for block in range(2):
                wanted = width << stage
                blocks.append(ConvBlock(channels, wanted, 2 if stage and not block else 1))
                channels = wanted
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) to logits (n, classes)."""
        out: torch.Tensor = self.linear(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))
        return out


class VGG16(nn.Module):
    """VGG-16 (Simonyan and Zisserman, 2014) for 32x32 images, with batch norm and average pooling; one linear layer."""

    WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in self.WIDTHS:
            for wanted in stage:
                layers += [nn.Conv2d(channels, wanted, 3, 1, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()]
                channels = wanted
            layers.append(nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) to logits (n, classes)."""
        out: torch.Tensor = self.linear(torch.flatten(self.features(x), 1))
        return out


class SameConv2d(nn.Conv2d):
    """A convolution padded to ceil(size / stride), with the odd row and column below and to the right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, c, h, w) to (n, out, ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        sides = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return super().forward(F.pad(x, sides))


class TinyBlock(nn.Module):
    """A block of ResNet-8: a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv2d(channels_in, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-3)
        self.relu1 = nn.ReLU()
        self.conv2 = SameConv2d(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-3)
        self.relu2 = nn.ReLU()
        same = stride == 1 and channels_in == channels
        self.shortcut: nn.Module = nn.Identity() if same else SameConv2d(channels_in, channels, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels_in, h, w) to (n, channels, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: torch.Tensor = self.relu2(y + self.shortcut(x))
        return out


class TinyResNet8(nn.Module):
    """MLPerf Tiny's ResNet-8 for CIFAR-10; it takes pixels of 0 to 255."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = SameConv2d(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.relu = nn.ReLU()
        self.stack1 = TinyBlock(16, 16, 1)
        self.stack2 = TinyBlock(16, 32, 2)
        self.stack3 = TinyBlock(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) to logits (n, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stack3(self.stack2(self.stack1(x)))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, normalisation, four times the channels, GELU, and back; a shortcut around all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.gelu = nn.GELU()
        self.project = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, h, w) to the same shape."""
        y: torch.Tensor = self.project(self.gelu(self.expand(self.norm(self.depthwise(x)))))
        return x + y


class SmallConvNeXt(nn.Module):
    """A ConvNeXt for 32x32 images: patches of 2x2, three blocks of 48 channels, three of 96."""

    def __init__(self, classes: int = 10, channels: int = 48, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 2, 2, bias=False), nn.BatchNorm2d(channels))
        self.stage1 = nn.Sequential(*(ConvNeXtBlock(channels) for _ in range(blocks)))
        self.down = nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, 2 * channels, 2, 2))
        self.stage2 = nn.Sequential(*(ConvNeXtBlock(2 * channels) for _ in range(blocks)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(2 * channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) to logits (n, classes)."""
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1x1 to `expand` times the channels, depthwise 3x3, and back by a 1x1 without activation."""

    def __init__(self, channels_in: int, channels: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = expand * channels_in
        self.expand = nn.Conv2d(channels_in, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.relu1 = nn.ReLU6()
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.relu2 = nn.ReLU6()
        self.project = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels_in, h, w) to (n, channels, h / stride, w / stride)."""
        y = self.relu1(self.bn1(self.expand(x)))
        y = self.bn3(self.project(self.relu2(self.bn2(self.depthwise(y)))))
        out: torch.Tensor = x + y if self.residual else y
        return out


class SmallMobileNet(nn.Module):
    """A MobileNetV2 (Sandler et al., 2018) for 32x32 images: seven inverted residuals of 32 to 96 channels."""

    BLOCKS = ((32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (96, 1), (96, 1))
    """Channels and stride of each."""

    def __init__(self, classes: int = 10, expand: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        channels, blocks = 32, []
        for wanted, stride in self.BLOCKS:
            blocks.append(InvertedResidual(channels, wanted, stride, expand))
            channels = wanted
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(channels, 320, 1, bias=False), nn.BatchNorm2d(320), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(320, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, 32, 32) to logits (n, classes)."""
        x = self.head(self.blocks(self.stem(x)))
        out: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return out


@dataclass(frozen=True)
class Benchmark:
    """A network and what its weights expect of pixels in 0 ... 1: (x - mean) / deviation."""

    make: Callable[[], nn.Module]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    deviation: tuple[float, float, float] = IMAGENET_STD
    weights: Path | None = None
    """The file of weights that come with olac, or None."""

    def load(self, weights: Path | None) -> nn.Module:
        """The network in evaluation mode. ValueError if no weights are given and none come with olac."""
        path = weights or self.weights
        if path is None:
            raise ValueError("this network has no weights of its own: name a state dict with --weights")
        model = self.make()
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, Any] = {k: v.float() for k, v in load_file(path).items()}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        counters = {k for k in model.state_dict() if k.endswith("num_batches_tracked")}
        missing, unexpected = model.load_state_dict(state, strict=False)
        if unexpected or set(missing) - counters:
            raise ValueError(f"{path} is not a state dict of this network: {[*missing, *unexpected][:3]}")
        return model.eval()

    def images(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (n, 32, 32, 3) to normalised float32 (n, 3, 32, 32)."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.deviation))
        return ((x - mean) / deviation).contiguous()


def _resnet(depth: int) -> Benchmark:
    return Benchmark(lambda: CifarResNet(depth))


MODELS: dict[str, Benchmark] = {
    "resnet8": Benchmark(TinyResNet8, (0.0, 0.0, 0.0), (1 / 255,) * 3),
    **{f"resnet{depth}": _resnet(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18": Benchmark(ResNet18),
    "vgg16": Benchmark(VGG16),
    "convnext": Benchmark(SmallConvNeXt, weights=ASSETS / "convnext_cifar10.safetensors"),
    "mobilenet": Benchmark(SmallMobileNet, weights=ASSETS / "mobilenet_cifar10.safetensors"),
}
"""Benchmarks by the name that `--model` takes."""
