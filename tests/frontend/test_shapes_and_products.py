"""Ops that move axes, join, multiply, normalise, attend and recur, against torch over odd shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from olac.errors import UnsupportedModelError
from olac.frontend import lift, trace
from olac.ir.graph import Graph
from olac.ir.ops import Contract, Conv2d, Gather
from tests.frontend.test_lift import Apply, agrees, images

FIXED = torch.Generator().manual_seed(4)


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


TOKENS = (5, 6)
"""Tokens and features."""
PLANES = (4, 6, 5)

FUNCTIONS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "transpose": (TOKENS, lambda x: x.transpose(1, 2)),
    "transpose, negative": (PLANES, lambda x: x.transpose(-1, -3)),
    "permute": (PLANES, lambda x: x.permute(0, 3, 1, 2)),
    "permute by list": (PLANES, lambda x: torch.permute(x, [0, 2, 3, 1])),
    "permute and flatten": (PLANES, lambda x: x.permute(0, 2, 3, 1).flatten(1)),
    "mT": (TOKENS, lambda x: x.mT),
    "movedim": (PLANES, lambda x: x.movedim(1, -1)),
    "movedim of two": (PLANES, lambda x: x.movedim((1, 2), (3, 1))),
    "swapaxes": (TOKENS, lambda x: torch.swapaxes(x, 1, 2)),
    "the batch moves and comes back": (TOKENS, lambda x: (x.permute(1, 0, 2) * 2).relu().permute(1, 0, 2)),
    "the batch is last": (TOKENS, lambda x: x.permute(2, 1, 0).sum(0).T),
    "steps first": (TOKENS, lambda x: sum(x.transpose(0, 1).unbind(0))),
    "tokens in the batch": (TOKENS, lambda x: torch.tanh(x.reshape(-1, 6) @ weight(6, 3)).reshape(-1, 5, 3)),
    "windows in the batch": (
        (4, 4, 3),
        lambda x: x.view(-1, 2, 2, 2, 2, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 3).mean(1).view(-1, 4 * 3),
    ),
    "pictures in the batch": (
        (2, 3, 5, 4),
        lambda x: F.max_pool2d(F.conv2d(x.flatten(0, 1), weight(4, 3, 2, 2), weight(4)), 2).reshape(-1, 2, 4 * 2),
    ),
    "norm of tokens in the batch": (
        TOKENS,
        lambda x: F.batch_norm(x.flatten(0, 1), weight(6), weight(6) ** 2).reshape(-1, 5, 6),
    ),
    "heads": (TOKENS, lambda x: x.reshape(len(x), 5, 3, 2).permute(2, 0, 1, 3)[1]),
    "queries, keys, values": (TOKENS, lambda x: sum(x.reshape(len(x), 5, 3, 2).permute(2, 0, 1, 3).unbind(0))),
    "bmm with a matrix for each image": (
        TOKENS,
        lambda x: (
            torch.bmm(x, weight(6, 3).expand(len(x), 6, 3))
            + torch.bmm(weight(1, 5, 5).repeat(len(x), 1, 1), x[..., :3])
        ),
    ),
    "matmul with a matrix for each image": (TOKENS, lambda x: x @ weight(6, 3)[None].expand(x.shape[0], -1, -1)),
    "baddbmm with constants for each image": (
        TOKENS,
        lambda x: torch.baddbmm(torch.ones(len(x), 5, 3), x, weight(6, 3).expand(len(x), 6, 3), beta=2, alpha=3),
    ),
    "index by a table": (PLANES, lambda x: x[:, torch.tensor([[0, 3, 1], [-1, 2, 2]])]),
    "index by a table at the end": (TOKENS, lambda x: x[..., [[0], [5]]] * 2),
    "index by a table beside a number": (PLANES, lambda x: x[:, 1, torch.tensor([[0, 5], [3, -2]])]),
    "products of truth values": (
        TOKENS,
        lambda x: torch.where((x > 0) * (x < 1), x, -x) + ((x > -1) * torch.tensor([True, False] * 3)).float(),
    ),
    "average pooling of moved pictures": (
        PLANES,
        lambda x: F.avg_pool2d(x.permute(1, 0, 2, 3), 2).permute(1, 0, 2, 3),
    ),
    "max pooling of rows in the batch": (PLANES, lambda x: F.max_pool2d(x.reshape(-1, 1, 6, 5), 2).reshape(len(x), -1)),
    "cat": (PLANES, lambda x: torch.cat([x, x * x, -x], 1)),
    "cat of columns": (PLANES, lambda x: torch.cat([x, x[..., :2]], dim=-1)),
    "cat with a constant": (TOKENS, lambda x: torch.cat([weight(1, 1, 6).expand(len(x), -1, -1), x], 1)),
    "cat of one": (TOKENS, lambda x: torch.cat([x], 1)),
    "concat": (TOKENS, lambda x: torch.concat((x, x + 1), 2)),
    "cat of permuted": (PLANES, lambda x: torch.cat([x.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1) ** 2], -1)),
    "stack": (TOKENS, lambda x: torch.stack([x, x * 2], 1)),
    "stack, last": (TOKENS, lambda x: torch.stack([x, x * 2], -1)),
    "stack, first": (TOKENS, lambda x: torch.stack([x, x * 2], 0).sum(0)),
    "hstack": (TOKENS, lambda x: torch.hstack([x, x])),
    "flip": (PLANES, lambda x: x.flip(1, 3)),
    "flip by list": (PLANES, lambda x: torch.flip(x, [2])),
    "roll": (PLANES, lambda x: torch.roll(x, (1, -2), (2, 3))),
    "roll, one": (PLANES, lambda x: x.roll(2, 1)),
    "index_select": (PLANES, lambda x: x.index_select(2, torch.tensor([5, 0, 0]))),
    "index by a list": (PLANES, lambda x: x[:, [2, 0], :, 1:]),
    "index by a tensor": (TOKENS, lambda x: x[:, :, torch.tensor([3, -1])]),
    "repeat": (TOKENS, lambda x: x.repeat(1, 2, 3)),
    "tile": (TOKENS, lambda x: torch.tile(x, (1, 1, 2))),
    "repeat_interleave": (TOKENS, lambda x: x.repeat_interleave(2, dim=2)),
    "repeat_interleave by counts": (TOKENS, lambda x: torch.repeat_interleave(x, torch.tensor([1, 0, 2, 1, 1]), dim=1)),
    "expand": (TOKENS, lambda x: x[:, None].expand(-1, 3, -1, -1)),
    "unfold": (PLANES, lambda x: F.unfold(x, (3, 2), padding=1, stride=2)),
    "pixel_shuffle": (PLANES, lambda x: F.pixel_shuffle(x, 2)),
    "pixel_unshuffle": ((2, 4, 6), lambda x: F.pixel_unshuffle(x, 2)),
    "channel_shuffle": (PLANES, lambda x: F.channel_shuffle(x, 2)),
    "shuffle by hand": (PLANES, lambda x: x.view(len(x), 2, 2, 6, 5).transpose(1, 2).reshape(len(x), 4, 6, 5)),
    "reflect": (PLANES, lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect")),
    "replicate": (TOKENS, lambda x: F.pad(x, (1, 2), mode="replicate")),
    "circular": (PLANES, lambda x: F.pad(x, (1, 2, 3, 0), mode="circular")),
    "linear on the last axis": (PLANES, lambda x: F.linear(x, weight(3, 5), weight(3))),
    "linear twice": (TOKENS, lambda x: F.linear(F.relu(F.linear(x, weight(4, 6))), weight(3, 4), weight(3))),
    "x @ W.T": (TOKENS, lambda x: x @ weight(3, 6).T),
    "W @ x": (TOKENS, lambda x: weight(3, 5) @ x),
    "matmul by one matrix an axis": (PLANES, lambda x: x @ weight(4, 5, 3)),
    "matmul with a vector": (TOKENS, lambda x: x @ weight(6)),
    "matmul of features": ((6,), lambda x: x.matmul(weight(6, 2))),
    "x @ x.mT": (TOKENS, lambda x: x @ x.transpose(1, 2)),
    "bmm": (TOKENS, lambda x: torch.bmm(x, x.transpose(1, 2))),
    "matmul of heads": (PLANES, lambda x: x @ x.transpose(-1, -2) @ x),
    "matmul that repeats": (PLANES, lambda x: x[:, :1] @ x.transpose(-1, -2)),
    "addmm": ((6,), lambda x: torch.addmm(weight(2), x, weight(6, 2), beta=0.5, alpha=2)),
    "einsum": (TOKENS, lambda x: torch.einsum("bnd,de->bne", x, weight(6, 3))),
    "einsum of two": (TOKENS, lambda x: torch.einsum("bnd,bmd->bnm", x, x * 2)),
    "einsum with an ellipsis": (PLANES, lambda x: torch.einsum("...ij,jk->...ki", x, weight(5, 2))),
    "einsum without a result": (TOKENS, lambda x: torch.einsum("bnd,n,d", x, weight(5), weight(6))[:, None] * 1),
    "einsum over several axes": (PLANES, lambda x: torch.einsum("bchw,chk->bkw", x, weight(4, 6, 3))),
    "einsum of a trace": (TOKENS, lambda x: torch.einsum("bnd->bd", x)),
    "addcmul": (TOKENS, lambda x: torch.addcmul(weight(6), weight(1, 1, 1), x)),
    "lerp": (TOKENS, lambda x: torch.lerp(x, x * x, 0.25)),
    "prod": ((3, 4), lambda x: x.prod(1)),
    "cumsum": (TOKENS, lambda x: x.cumsum(2)),
    "mean of tokens": (TOKENS, lambda x: x.mean(1)),
    "mean of four axes": ((2, 3, 4, 5), lambda x: x.mean((2, 4))),
    "sum of permuted": (PLANES, lambda x: x.permute(0, 2, 3, 1).sum(-1, keepdim=True)),
    "sum of neighbours": (PLANES, lambda x: x.permute(0, 2, 3, 1).sum((1, 2))),
    "var": (TOKENS, lambda x: x.var(2)),
    "var, biased": (PLANES, lambda x: torch.var(x, (2, 3), unbiased=False, keepdim=True)),
    "std": (TOKENS, lambda x: torch.std(x, -1, keepdim=True) * 1),
    "norm": (TOKENS, lambda x: torch.linalg.vector_norm(x, dim=1) * 1),
    "norm method": (PLANES, lambda x: x.norm(p=2, dim=(2, 3), keepdim=True) + x),
    "layer_norm": (TOKENS, lambda x: F.layer_norm(x, (6,), weight(6), weight(6)) * 2),
    "layer_norm of planes": (PLANES, lambda x: F.layer_norm(x, (6, 5)) * 2),
    "layer_norm of channels": (PLANES, lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2) * 1),
    "rms_norm": (TOKENS, lambda x: F.rms_norm(x, (6,), weight(6), 1e-3) * 2),
    "group_norm": (PLANES, lambda x: F.group_norm(x, 2, weight(4), weight(4)) * 2),
    "instance_norm": (PLANES, lambda x: F.instance_norm(x) * 2),
    "normalize within": (TOKENS, lambda x: F.normalize(x, dim=-1) @ weight(6, 2)),
    "cosine_similarity": (TOKENS, lambda x: F.cosine_similarity(x, weight(1, 1, 6), dim=-1) * 1),
    "cosine_similarity of two": ((6,), lambda x: F.cosine_similarity(x[:, :3], x[:, 3:])),
    "softmax within": (TOKENS, lambda x: F.softmax(x, -1) @ weight(6, 2)),
    "log_softmax within": (TOKENS, lambda x: F.log_softmax(x, 1) @ weight(6, 2)),
    "softmax of constants": (TOKENS, lambda x: x * F.softmax(weight(5, 1), 0)),
    "attention": (TOKENS, lambda x: F.scaled_dot_product_attention(x, x * 0.5, x + 1)),
    "attention of heads, causal": (PLANES, lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "attention with a mask": (
        TOKENS,
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu()),
    ),
    "attention with a bias": (TOKENS, lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=weight(5, 5))),
    "division": (TOKENS, lambda x: x / (1 + x * x)),
    "reciprocal": (TOKENS, lambda x: 3.0 / (x.square() + 1)),
    "power": (TOKENS, lambda x: (x.abs() + 1) ** 1.5),
    "power of a number": (TOKENS, lambda x: 2.0**x * 1 + x),
    "exp within": (TOKENS, lambda x: torch.exp(-x.square()) @ weight(6, 2)),
    "log": (TOKENS, lambda x: torch.log(x.square() + 1)),
    "sqrt": (TOKENS, lambda x: (x.square() + 1).sqrt()),
    "rsqrt": (TOKENS, lambda x: torch.rsqrt(x.square() + 1)),
    "sin, cos": (TOKENS, lambda x: torch.sin(x) + torch.cos(x)),
    "erf": (TOKENS, lambda x: torch.erf(x)),
    "abs": (TOKENS, lambda x: x.abs() + abs(x)),
    "sign": (TOKENS, lambda x: torch.sign(x) * x),
    "maximum": (TOKENS, lambda x: torch.maximum(x, x.flip(1)) * 1),
    "maximum of a constant": (TOKENS, lambda x: torch.maximum(x, weight(6)) * 1),
    "minimum": (TOKENS, lambda x: torch.minimum(x, -x) + 0 * x),
    "amax within": (TOKENS, lambda x: x.amax(1) @ weight(6, 2)),
    "max within": (TOKENS, lambda x: x.max(2, keepdim=True).values * x),
    "where": (TOKENS, lambda x: torch.where(x > 0.5, x, -x)),
    "where by a constant": (TOKENS, lambda x: torch.where(weight(5, 6) > 0, x, 2.0)),
    "where, of a value": (TOKENS, lambda x: x.where(x > 0, -x)),
    "greater": (TOKENS, lambda x: (x > x.flip(1)) * x),
    "less, and, or": (TOKENS, lambda x: torch.where((x < 1) & (x > -1) | (x > 2), x, 0.0)),
    "masked_fill": (TOKENS, lambda x: x.masked_fill(weight(5, 6) > 0, -2.0)),
    "steps first, encoded": (TOKENS, lambda x: F.rms_norm(x.transpose(0, 1), (6,)).transpose(0, 1) * 1),
    "steps first, where": (
        TOKENS,
        lambda x: torch.where(x.transpose(0, 1) > 0, x.transpose(0, 1), 0.0).transpose(0, 1),
    ),
    "tokens in the batch, divided": (
        TOKENS,
        lambda x: (x.reshape(-1, 6) / x.reshape(-1, 6).abs().sum(1, keepdim=True)).reshape(-1, 5, 6),
    ),
    "pictures in the batch, shuffled": (
        (2, 4, 3, 3),
        lambda x: F.pixel_shuffle(F.pad(x.flatten(0, 1), (1, 1, 1, 1), mode="reflect"), 2).reshape(-1, 2, 1, 10, 10),
    ),
    "pictures in the batch, larger": (
        (5, 3, 4),
        lambda x: F.interpolate(x.reshape(-1, 1, 3, 4), scale_factor=2).reshape(-1, 5, 6, 8),
    ),
    "slopes of merged channels": (
        (2, 3, 4),
        lambda x: F.prelu(x.reshape(-1, 3, 4), torch.tensor([0.5, -1.0, 0.1])).reshape(-1, 2, 3, 4),
    ),
    "small integers": (TOKENS, lambda x: x - torch.arange(6).to(torch.uint8)),
    "larger than small integers": (
        TOKENS,
        lambda x: torch.maximum(x, torch.tensor([200, 1, 0, 2, 3, 4]).to(torch.uint8)),
    ),
    "where, of small integers": (TOKENS, lambda x: torch.where(x > 0, x, torch.tensor(3, dtype=torch.uint8))),
    "and, with numbers": (TOKENS, lambda x: torch.logical_and(x > 0, torch.tensor([0, 2, 1, 0, 1, 3])) * x),
    "or, with numbers": (TOKENS, lambda x: torch.logical_or(x > 0, torch.tensor([0, 2, 1, 0, 1, 3])) * x),
    "not": (TOKENS, lambda x: torch.logical_not(x > 0) * x),
    "a constant before the batch": (TOKENS, lambda x: (x.unsqueeze(0) + torch.ones(2, 1, 1, 6)).sum(0)),
    "numpy's names": (TOKENS, lambda x: x.mean(axis=1, keepdims=True) + x.sum(axis=2, keepdims=True)),
    "operands by name": (TOKENS, lambda x: torch.where(condition=x > 0, input=x, other=x * 0)),
    "amax of two axes": (PLANES, lambda x: x.amax((1, 2)) * 2),
    "index_select of one": (TOKENS, lambda x: torch.index_select(x, 1, torch.tensor(2))),
    "einsum that repeats": (TOKENS, lambda x: torch.einsum("bij,bj->bi", x, x[:, 0, :1])),
    "bilinear": ((6,), lambda x: F.bilinear(x[:, :2], x[:, 2:], weight(3, 2, 4))),
    "interpolate": (PLANES, lambda x: F.interpolate(x, scale_factor=2)),
    "interpolate to a size": (PLANES, lambda x: F.interpolate(x, size=(9, 4), mode="bilinear", align_corners=False)),
    "interpolate lines": (TOKENS, lambda x: F.interpolate(x, scale_factor=2, mode="linear", align_corners=True)),
    "conv1d": ((3, 9), lambda x: F.conv1d(x, weight(4, 3, 3), weight(4), stride=2, padding=1)),
    "conv_transpose2d": (PLANES, lambda x: F.conv_transpose2d(x, weight(4, 3, 3, 2), weight(3), 2, 1, 1)),
    "avg_pool1d": ((3, 9), lambda x: F.avg_pool1d(x, 2)),
    "max_pool1d": ((3, 9), lambda x: F.max_pool1d(x, 3, 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    shape, function = FUNCTIONS[name]
    agrees(Apply(function), images(*shape))


def layer(cls: Any, *args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(5)
    made: nn.Module = cls(*args, **kwargs)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.eval()


LAYERS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "Linear on tokens": (TOKENS, lambda: layer(nn.Linear, 6, 3)),
    "Conv1d": ((3, 9), lambda: layer(nn.Conv1d, 3, 4, 3, padding="same", dilation=2)),
    "Conv1d, grouped": ((4, 9), lambda: layer(nn.Conv1d, 4, 4, 3, stride=2, groups=2, bias=False)),
    "Conv1d, replicated": ((4, 9), lambda: layer(nn.Conv1d, 4, 2, 3, padding=2, padding_mode="replicate")),
    "Conv2d, reflected": (PLANES, lambda: layer(nn.Conv2d, 4, 2, 3, padding=(2, 1), padding_mode="reflect")),
    "Conv2d, circular": (PLANES, lambda: layer(nn.Conv2d, 4, 2, 3, padding=1, padding_mode="circular")),
    "Conv3d": ((2, 4, 5, 3), lambda: layer(nn.Conv3d, 2, 3, (3, 2, 2), stride=(2, 1, 2), padding=(1, 0, 1))),
    "Conv3d, grouped": ((4, 3, 4, 4), lambda: layer(nn.Conv3d, 4, 4, 3, padding="same", groups=2)),
    "ConvTranspose1d": ((3, 5), lambda: layer(nn.ConvTranspose1d, 3, 2, 4, stride=2, padding=1)),
    "ConvTranspose2d": (PLANES, lambda: layer(nn.ConvTranspose2d, 4, 6, (3, 2), (2, 3), (1, 0), (1, 0), 2)),
    "ConvTranspose2d, dilated": (PLANES, lambda: layer(nn.ConvTranspose2d, 4, 2, 3, dilation=2, padding=3)),
    "ConvTranspose2d, cut": (PLANES, lambda: layer(nn.ConvTranspose2d, 4, 2, 1, padding=1)),
    "AvgPool1d": ((3, 9), lambda: nn.AvgPool1d(3, 2, padding=1, ceil_mode=True)),
    "AvgPool3d": ((2, 4, 5, 4), lambda: nn.AvgPool3d((2, 3, 2), stride=(2, 1, 2), padding=(1, 1, 0))),
    "MaxPool1d": ((3, 9), lambda: nn.MaxPool1d(3, 2, padding=1, ceil_mode=True)),
    "MaxPool3d": ((2, 4, 5, 4), lambda: nn.MaxPool3d((2, 3, 2), stride=(2, 1, 2), padding=(1, 1, 0))),
    "AdaptiveAvgPool1d": ((3, 9), lambda: nn.AdaptiveAvgPool1d(4)),
    "AdaptiveAvgPool3d": ((2, 4, 5, 3), lambda: nn.AdaptiveAvgPool3d((2, None, 1))),
    "AdaptiveMaxPool1d": ((3, 8), lambda: nn.AdaptiveMaxPool1d(4)),
    "BatchNorm3d": ((2, 3, 4, 2), lambda: layer(nn.BatchNorm3d, 2)),
    "BatchNorm1d of lines": ((2, 7), lambda: layer(nn.BatchNorm1d, 2)),
    "LayerNorm": (TOKENS, lambda: layer(nn.LayerNorm, (5, 6))),
    "RMSNorm": (TOKENS, lambda: layer(nn.RMSNorm, 6)),
    "GroupNorm": (PLANES, lambda: layer(nn.GroupNorm, 2, 4)),
    "InstanceNorm2d": (PLANES, lambda: layer(nn.InstanceNorm2d, 4, affine=True)),
    "InstanceNorm1d, tracked": ((3, 5), lambda: layer(nn.InstanceNorm1d, 3, track_running_stats=True)),
    "Upsample": (PLANES, lambda: nn.Upsample(scale_factor=(2, 3))),
    "Upsample, bilinear": (PLANES, lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "Upsample, bicubic": (PLANES, lambda: nn.Upsample(size=(7, 9), mode="bicubic")),
    "UpsamplingBilinear2d": (PLANES, lambda: nn.UpsamplingBilinear2d(scale_factor=2)),
    "PixelShuffle": (PLANES, lambda: nn.PixelShuffle(2)),
    "PixelUnshuffle": ((2, 4, 6), lambda: nn.PixelUnshuffle(2)),
    "ChannelShuffle": (PLANES, lambda: nn.ChannelShuffle(2)),
    "Unfold": (PLANES, lambda: nn.Unfold(2, stride=2)),
    "ReflectionPad1d": (TOKENS, lambda: nn.ReflectionPad1d(2)),
    "ReplicationPad2d": (PLANES, lambda: nn.ReplicationPad2d((1, 2, 0, 3))),
    "CircularPad2d": (PLANES, lambda: nn.CircularPad2d(1)),
    "ZeroPad1d": (TOKENS, lambda: nn.ZeroPad1d(2)),
    "TransformerEncoderLayer": (
        TOKENS,
        lambda: layer(nn.TransformerEncoderLayer, 6, 2, 8, batch_first=True, activation="gelu"),
    ),
    "TransformerEncoderLayer, norm first": (
        TOKENS,
        lambda: layer(nn.TransformerEncoderLayer, 6, 3, 8, batch_first=True, norm_first=True),
    ),
    "TransformerEncoder": (
        TOKENS,
        lambda: layer(
            nn.TransformerEncoder,
            nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
            2,
            nn.LayerNorm(6),
            enable_nested_tensor=False,
        ),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    shape, make = LAYERS[name]
    agrees(make(), images(*shape))


class Attended(nn.Module):
    def __init__(self, batch_first: bool, weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = layer(nn.MultiheadAttention, 6, 2, batch_first=batch_first, **options)
        self.first, self.weights = batch_first, weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.first else x.transpose(0, 1)
        y, found = self.attention(x, x, 2 * x, need_weights=self.weights)
        y = y if self.first else y.transpose(0, 1)
        return y + found.sum(-1, keepdim=True) if self.weights else y  # type: ignore[no-any-return]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_multihead_attention(first: bool, weights: bool) -> None:
    agrees(Attended(first, weights), images(*TOKENS))


class Last(nn.Module):
    """The last step of a recurrent layer, and its states."""

    def __init__(self, recurrent: nn.Module, lstm: bool) -> None:
        super().__init__()
        self.recurrent, self.lstm = recurrent, lstm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, state = self.recurrent(x)
        ends = state[0] + state[1] if self.lstm else state
        return torch.cat([y[:, -1], ends[-1]], 1)


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bias": False}, {"bidirectional": True}], ids=str)
def test_recurrent(cls: Any, options: dict[str, Any]) -> None:
    agrees(Last(layer(cls, 6, 4, batch_first=True, **options), cls is nn.LSTM), images(*TOKENS))


class Written(nn.Module):
    """A recurrent cell, written out over steps that come first."""

    def __init__(self, cell: nn.Module, lstm: bool) -> None:
        super().__init__()
        self.cell, self.lstm = cell, lstm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: Any = torch.zeros(len(x), 4)
        if self.lstm:
            state = (state, state)
        for step in x.transpose(0, 1):
            state = self.cell(step, state)
        return state[0] if self.lstm else state  # type: ignore[no-any-return]


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(cls: Any) -> None:
    agrees(Written(layer(cls, 6, 4), cls is nn.LSTMCell), images(*TOKENS))


def kinds(graph: Graph, cls: type) -> int:
    return sum(isinstance(node.op, cls) for node in graph.nodes)


def test_channels_that_move_to_the_end_and_back_stay_where_they_are() -> None:
    """A block of ConvNeXt: LayerNorm and linear layers over channels that were moved last."""
    norm, inner, outer = layer(nn.LayerNorm, 4), layer(nn.Linear, 4, 8), layer(nn.Linear, 8, 4)

    def block(x: Any) -> Any:
        return x + outer(F.gelu(inner(norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)

    graph = agrees(Apply(block), images(*PLANES))
    assert kinds(graph, Gather) == kinds(graph, Contract) == 0
    assert kinds(graph, Conv2d) >= 5


def test_a_linear_layer_makes_features_of_tokens_channels() -> None:
    first, second = layer(nn.Linear, 6, 8), layer(nn.Linear, 8, 3)
    graph = agrees(Apply(lambda x: second(F.relu(first(x)))), images(*TOKENS))
    assert kinds(graph, Contract) == 1
    assert kinds(graph, Conv2d) == 1


def test_numbers_of_features_shift_and_scale_within_attention() -> None:
    """Many features: means over more than `DENSE` of them are subtracted."""
    agrees(Apply(lambda x: F.layer_norm(x, (300,)) * 1), images(300))


REFUSED: dict[str, tuple[tuple[int, ...], Callable[[Any], Any], str]] = {
    "batch": (TOKENS, lambda x: x.flip(0), "along the batch axis"),
    "batch in a product": (TOKENS, lambda x: torch.einsum("bnd,cnd->bc", x, weight(3, 5, 6)[: len(x)]), "batch"),
    "rows of a batch": ((6,), lambda x: x @ x.T, "batch"),
    "equal": (TOKENS, lambda x: (x == 1) * x, "equal"),
    "masked by infinity": (
        TOKENS,
        lambda x: x.masked_fill(weight(5, 6) > 0, -torch.inf).softmax(-1) @ weight(6, 2),
        "fills",
    ),
    "index by a mask": (TOKENS, lambda x: x[:, torch.tensor([True, False, True, True, False])], "mask"),
    "index by a table apart from a number": (PLANES, lambda x: x[:, 1, :, [[0, 1]]].movedim(2, 0), "and another by"),
    "a sum of truth values": (TOKENS, lambda x: ((x > 1) + (x < -1)).float(), "adds truth values"),
    "a matrix that differs between images": (
        TOKENS,
        lambda x: torch.bmm(x, torch.arange(len(x) * 18.0).reshape(-1, 6, 3)),
        "differs between the inputs",
    ),
    "the product of the images": ((6,), lambda x: torch.mm(x, x.T), "over the batch axis"),
    "the batch merged with tokens before it": (
        TOKENS,
        lambda x: x.permute(1, 0, 2).reshape(-1, 6).reshape(5, -1, 6).permute(1, 0, 2),
        "merges it with an axis before it",
    ),
    "several rows for each image": (TOKENS, lambda x: x.reshape(-1, 6), "several rows for each input"),
    "pooling of images": (TOKENS, lambda x: F.avg_pool1d(x.permute(2, 1, 0), 2), "works along the batch axis"),
    "whole batch": (TOKENS, lambda x: x - x.mean(), "whole batch"),
    "norm of the batch": (TOKENS, lambda x: x / x.norm(), "whole batch"),
    "sort": (TOKENS, lambda x: x.sort(1).values, "sort"),
    "attention over the batch": (
        TOKENS,
        lambda x: F.scaled_dot_product_attention(*[x.reshape(-1, 6)] * 3).reshape(-1, 5, 6),
        "batch axis",
    ),
    "attention to nothing": (
        TOKENS,
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.bool)),
        "nothing to attend",
    ),
    "attention of other heads": (TOKENS, lambda x: F.scaled_dot_product_attention(x[:, None], x, x), "heads"),
    "softmax that mixes images": ((2, 3, 4), lambda x: F.softmax(x.reshape(-1, 3, 4)) * 1, "batch axis"),
    "groups over the batch": (TOKENS, lambda x: F.group_norm(x.permute(1, 2, 0), 2).permute(2, 0, 1), "batch axis"),
    "the truth of numbers": (TOKENS, lambda x: torch.logical_and(x, x.flip(1)).float(), "are 0"),
    "the matrix norm": (PLANES, lambda x: torch.linalg.norm(x, ord=1, dim=(2, 3)) * 1, "matrix norm"),
    "a low threshold": (TOKENS, lambda x: F.softplus(2 * x, threshold=1), "threshold"),
    "einsum by lists": (TOKENS, lambda x: torch.einsum(x, [0, 1, 2], x, [0, 3, 2], [0, 1, 3]), "lists"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    shape, function, what = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as caught:
        lift(trace(Apply(function), images(*shape)))
    assert what in str(caught.value)
    assert all(node.advice for node in caught.value.nodes)


BATCH_SECOND = [nn.TransformerEncoderLayer(6, 2, 8), nn.LSTM(6, 3), nn.GRU(6, 3)]


@pytest.mark.parametrize("module", BATCH_SECOND, ids=lambda m: type(m).__name__)
def test_sequences_whose_batch_axis_is_elsewhere_are_refused(module: nn.Module) -> None:
    """Without batch_first torch would take tokens for images."""
    with pytest.raises(UnsupportedModelError, match="batch_first"):
        lift(trace(nn.Sequential(module).eval(), images(*TOKENS)))


def test_instance_norms_without_a_batch_axis_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="axes"):
        lift(trace(nn.Sequential(nn.InstanceNorm1d(6)), images(6)))


def test_an_encoder_with_steps_first() -> None:
    encoder = layer(nn.TransformerEncoderLayer, 6, 2, 8)
    agrees(Apply(lambda x: encoder(x.transpose(0, 1)).transpose(0, 1)), images(*TOKENS))


class Begun(nn.Module):
    """A recurrent layer with initial states of zeros, as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = layer(nn.LSTM, 6, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(1, x.size(0), 3)
        found: torch.Tensor = self.cells(input=x, hx=(state, state))[0][:, -1]
        return found


def test_states_of_zeros() -> None:
    agrees(Begun(), images(*TOKENS))


class Own(nn.TransformerEncoderLayer):
    """An encoder layer that does something else."""

    def forward(self, src: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 2 * src


def test_encoders_of_other_layers() -> None:
    encoder = nn.TransformerEncoder(Own(6, 2, 8, batch_first=True), 1, enable_nested_tensor=False)
    with pytest.raises(UnsupportedModelError, match="forward of their own"):
        lift(trace(nn.Sequential(encoder).eval(), images(*TOKENS)))
    normed = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 1, nn.RMSNorm(6), enable_nested_tensor=False
    )
    agrees(nn.Sequential(normed), images(*TOKENS))


def test_a_mask_may_hold_infinities() -> None:
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    graph = agrees(Apply(lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=mask)), images(*TOKENS))
    assert all(np.isfinite(array).all() for array in graph.constants.values())
