"""Small nets on pictures, written as an ordinary user writes them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.cases import Case
from benchmarks.zoo.outcomes import NETS


def convolution(before: int, after: int) -> nn.Sequential:
    """A convolution of 3x3 with its batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class Attention(nn.Module):
    """Self-attention of several heads, by torch's own function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(n, tokens, width))
        return projected


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class SmallViT(nn.Module):
    """A vision transformer of two blocks: pictures of 3x16x16 in patches of 4x4, with a class token."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 17, width))
        self.blocks = nn.Sequential(TransformerBlock(width, heads), TransformerBlock(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits


class UNet(nn.Module):
    """Down, up by a transposed convolution, and the skipped features beside them: a map of two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = convolution(1, 8), convolution(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge, self.head = convolution(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        mapped: Tensor = self.head(self.merge(torch.cat([self.up(second), first], dim=1)))
        return mapped


class UpsampledUNet(nn.Module):
    """The same with nearest neighbours and a convolution in place of the transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = convolution(1, 8), convolution(8, 16)
        self.up = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(16, 8, 3, padding=1))
        self.merge, self.head = convolution(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.avg_pool2d(first, 2))
        mapped: Tensor = self.head(self.merge(torch.cat((first, self.up(second)), 1)))
        return mapped


class BilinearAutoencoder(nn.Module):
    """A convolutional autoencoder that enlarges by bilinear interpolation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.encoder(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = F.interpolate(F.relu(self.first(x)), size=(16, 16), mode="bilinear", align_corners=True)
        return torch.sigmoid(self.second(x))


class SqueezeExcitation(nn.Module):
    """A convolution whose channels are weighted by a small net of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        logits: Tensor = self.head((x * weights).mean((2, 3)))
        return logits


class MixedOperations(nn.Module):
    """A cell whose operations are weighted by softmaxed parameters, as architecture searches have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8)
        self.operations = nn.ModuleList([convolution(8, 8), nn.AvgPool2d(3, 1, 1), nn.Identity()])
        self.weights = nn.Parameter(torch.randn(3))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = F.softmax(self.weights, dim=-1)
        mixed: Any = sum(w * operation(x) for w, operation in zip(weights, self.operations, strict=True))
        logits: Tensor = self.head(mixed.mean(dim=[2, 3]))
        return logits


class DenseLayer(nn.Module):
    """Norm, ReLU, convolution; the result is set beside the operand."""

    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class TinyDenseNet(nn.Module):
    """Three dense layers and a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.dense = nn.Sequential(*(DenseLayer(8 + 4 * i, 4) for i in range(3)))
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(10 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.transition(self.dense(self.stem(x))).flatten(1))
        return logits


class ShuffleBlock(nn.Module):
    """Half of the channels through three convolutions, then both halves shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
            *(nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half)),
            *(nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.branch(changed)), dim=1)
        n, channels, rows, columns = x.shape
        return x.view(n, 2, channels // 2, rows, columns).transpose(1, 2).contiguous().view(n, -1, rows, columns)


class ShuffleNet(nn.Module):
    """Two shuffled blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.Sequential(ShuffleBlock(12), ShuffleBlock(12))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x)).mean([2, 3]))
        return logits


class GroupNormNet(nn.Module):
    """Convolutions with group norms."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(16, 10)),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class MixerBlock(nn.Module):
    """A perceptron over the patches, then one over the channels."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.patches = nn.Sequential(nn.Linear(patches, 24), nn.GELU(), nn.Linear(24, patches))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patches(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return x


class Mixer(nn.Module):
    """An MLP-Mixer of two blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(16, width), MixerBlock(16, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(dim=1))
        return logits


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then a layer norm and a perceptron on the channels, scaled by learned numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.project(F.gelu(self.expand(self.norm(y))))
        x = x + y.permute(0, 3, 1, 2)
        return x


class ConvNeXt(nn.Module):
    """A patched stem, one block, and a layer norm before the last layer."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, width, 4, 4), ConvNeXtBlock(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.block(self.stem(x)).mean([-2, -1])))
        return logits


CASES = (
    Case("small_vit", NETS, SmallViT, ((3, 16, 16),)),
    Case("unet", NETS, UNet, ((1, 16, 16),)),
    Case("unet_upsampled", NETS, UpsampledUNet, ((1, 16, 16),)),
    Case("autoencoder_bilinear", NETS, BilinearAutoencoder, ((1, 16, 16),)),
    Case("squeeze_excitation", NETS, SqueezeExcitation, ((3, 16, 16),)),
    Case("mixed_operations", NETS, MixedOperations, ((3, 16, 16),)),
    Case("tiny_densenet", NETS, TinyDenseNet, ((3, 16, 16),)),
    Case("shufflenet", NETS, ShuffleNet, ((3, 16, 16),)),
    Case("groupnorm_net", NETS, GroupNormNet, ((3, 16, 16),)),
    Case("mlp_mixer", NETS, Mixer, ((3, 16, 16),)),
    Case("convnext_block", NETS, ConvNeXt, ((3, 32, 32),)),
)
