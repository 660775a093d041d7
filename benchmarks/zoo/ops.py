"""Modules of one operation each: the 46 that HEIR tests by name, in small shapes of our own.

What takes two tensors is given as it is, with the second as a constant, and with both cut from one input. exp, log and
sqrt are also given as named activations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.cases import Case, Sampler, Shape, normal, positive, whole
from benchmarks.zoo.outcomes import OPS

Function = Callable[..., Any]
CONSTANT, CUT, NAMED = "second a constant", "both cut from one input", "named in activations="
"""Variants of a module that olac may take if it does not take it as given."""
PICTURE, SIGNAL, VOLUME = (3, 4, 4), (2, 8), (2, 4, 4, 4)
"""Shapes of one image: channels, then one, two or three axes."""


class One(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


class Two(nn.Module):
    """A function of two tensors, both inputs."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return self.function(x, y)


class WithConstant(nn.Module):
    """A function of an input and a constant that is the same for all images."""

    y: torch.Tensor

    def __init__(self, function: Function, y: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("y", y)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, self.y)


class CutInTwo(nn.Module):
    """A function of two tensors that are the first and the last part of one flat input."""

    def __init__(self, function: Function, first: Shape, second: Shape) -> None:
        super().__init__()
        self.function, self.first, self.second = function, first, second

    def forward(self, x: torch.Tensor) -> Any:
        size = torch.Size(self.first).numel()
        return self.function(x[:, :size].reshape(-1, *self.first), x[:, size:].reshape(-1, *self.second))


def _of_one(name: str, make: Callable[[], nn.Module], shape: Shape, sampler: Sampler = normal) -> Case:
    return Case(name, OPS, make, (shape,), (sampler,), client_head=False)


def _of_two(
    name: str,
    function: Function,
    first: Shape,
    second: Shape,
    *samplers: Sampler,
    with_constant: Function | None = None,
) -> list[Case]:
    """The variants of a function of two tensors; `with_constant` is how it is called if the second has no batch axis.

    Without a second sampler both inputs are made by the first.
    """
    of_first, of_second = samplers[0] if samplers else normal, samplers[-1] if samplers else normal
    flat = (torch.Size(first).numel() + torch.Size(second).numel(),)

    def constant() -> nn.Module:
        y = of_second(1, second, torch.Generator().manual_seed(0))[0]
        return WithConstant(with_constant or function, y)

    return [
        Case(name, OPS, lambda: Two(function), (first, second), (of_first, of_second), client_head=False),
        Case(name, OPS, constant, (first,), (of_first,), CONSTANT, client_head=False),
        Case(
            name,
            OPS,
            lambda: CutInTwo(function, first, second),
            (flat,),
            (of_second,),
            CUT,
            client_head=False,
        ),
    ]


def _bmm_constant(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # bmm does not broadcast: a constant matrix is repeated for each image.
    return torch.bmm(x, y.expand(x.shape[0], -1, -1))


def _cat(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, y], 1)


def _cat_constant(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, y.expand(x.shape[0], *y.shape)], 1)


def _mm() -> list[Case]:
    """torch.mm multiplies two matrices without a batch: the rows of the first are the images, the second is shared."""
    y = normal(1, (8, 5), torch.Generator().manual_seed(0))[0]
    return [
        Case("mm", OPS, lambda: Two(torch.mm), ((8,), (8, 5)), client_head=False, shared=(1,)),
        Case("mm", OPS, lambda: WithConstant(torch.mm, y), ((8,),), variant=CONSTANT, client_head=False),
    ]


def _named(name: str, function: Function, sampler: Sampler) -> list[Case]:
    as_given = _of_one(name, lambda: One(function), PICTURE, sampler)
    # The module looks the function up when it runs, as users write it: it is replaced while the model is traced.
    called = {torch.exp: lambda x: torch.exp(x), torch.log: lambda x: torch.log(x), torch.sqrt: lambda x: torch.sqrt(x)}
    make = called[function]
    named = Case(
        name,
        OPS,
        lambda: One(make),
        (PICTURE,),
        (sampler,),
        NAMED,
        activations={function: None},
        client_head=False,
    )
    return [as_given, named]


def _cases() -> list[Case]:
    return [
        *_of_two("add", torch.add, PICTURE, PICTURE),
        *_of_two("sub", torch.sub, PICTURE, PICTURE),
        *_of_two("mul", torch.mul, PICTURE, PICTURE),
        *_of_two("div", torch.div, PICTURE, PICTURE, normal, positive),
        _of_one("neg", lambda: One(torch.neg), PICTURE),
        *_named("exp", torch.exp, normal),
        *_named("log", torch.log, positive),
        *_named("sqrt", torch.sqrt, positive),
        _of_one("sum", lambda: One(lambda x: torch.sum(x, 1)), (8,)),
        _of_one("mean", lambda: One(lambda x: torch.mean(x, 1)), (8,)),
        _of_one("prod", lambda: One(lambda x: torch.prod(x, 1)), (4,)),
        *_of_two("eq", torch.eq, PICTURE, PICTURE, whole),
        *_of_two("gt", torch.gt, PICTURE, PICTURE, whole),
        *_of_two("lt", torch.lt, PICTURE, PICTURE, whole),
        *_of_two("matmul", torch.matmul, (4, 8), (8, 5)),
        *_mm(),
        *_of_two("bmm", torch.bmm, (4, 8), (8, 5), with_constant=_bmm_constant),
        _of_one("linear", lambda: nn.Linear(8, 5), (8,)),
        _of_one("conv1d", lambda: nn.Conv1d(2, 3, 3, padding=1), SIGNAL),
        _of_one("conv2d", lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8)),
        _of_one("conv3d", lambda: nn.Conv3d(1, 2, 3, padding=1), (1, 4, 4, 4)),
        _of_one("avgpool1d", lambda: nn.AvgPool1d(2), SIGNAL),
        _of_one("avgpool2d", lambda: nn.AvgPool2d(2), PICTURE),
        _of_one("avgpool3d", lambda: nn.AvgPool3d(2), VOLUME),
        _of_one("maxpool1d", lambda: nn.MaxPool1d(2), SIGNAL),
        _of_one("maxpool2d", lambda: nn.MaxPool2d(2), PICTURE),
        _of_one("maxpool3d", lambda: nn.MaxPool3d(2), VOLUME),
        _of_one("batchnorm1d", lambda: nn.BatchNorm1d(2), SIGNAL),
        _of_one("batchnorm2d", lambda: nn.BatchNorm2d(3), PICTURE),
        _of_one("batchnorm3d", lambda: nn.BatchNorm3d(2), VOLUME),
        _of_one("relu", nn.ReLU, PICTURE),
        _of_one("leakyrelu", nn.LeakyReLU, PICTURE),
        _of_one("prelu", lambda: nn.PReLU(3), PICTURE),
        _of_one("elu", nn.ELU, PICTURE),
        _of_one("gelu", nn.GELU, PICTURE),
        _of_one("silu", nn.SiLU, PICTURE),
        _of_one("sigmoid", nn.Sigmoid, PICTURE),
        _of_one("tanh", nn.Tanh, PICTURE),
        _of_one("softmax", lambda: nn.Softmax(1), (8,)),
        *_of_two("cat", _cat, (2, 4), (3, 4), with_constant=_cat_constant),
        _of_one("flatten", nn.Flatten, PICTURE),
        _of_one("permute", lambda: One(lambda x: x.permute(0, 3, 1, 2)), (4, 5, 3)),
        _of_one("transpose", lambda: One(lambda x: x.transpose(1, 2)), (4, 6)),
        _of_one("squeeze", lambda: One(lambda x: x.squeeze(1)), (1, 4, 4)),
        _of_one("chunk", lambda: One(lambda x: torch.chunk(x, 2, 1)), (8,)),
        _of_one("select", lambda: One(lambda x: torch.select(x, 1, 2)), (4, 6)),
    ]


CASES = tuple(_cases())
NAMES = tuple(dict.fromkeys(case.name for case in CASES))
