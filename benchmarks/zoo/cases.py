"""What a row of `python -m benchmarks models` is about: a module, its inputs, and random weights that hide nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.zoo.outcomes import AS_GIVEN

Shape = tuple[int, ...]
Sampler = Callable[[int, Shape, torch.Generator], torch.Tensor]
"""Makes a batch (count, *shape) with the numbers of a generator."""

SETTLING = 8
"""Inputs that set the statistics of batch norms."""


def normal(count: int, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers."""
    return torch.randn(count, *shape, generator=generator)


def positive(count: int, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Numbers between 0.5 and 2."""
    return 0.5 + 1.5 * torch.rand(count, *shape, generator=generator)


def whole(count: int, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """The numbers -1, 0 and 1, so that elements of two inputs are often equal."""
    return torch.randint(-1, 2, (count, *shape), generator=generator).float()


def pixels(count: int, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Numbers between 0 and 1."""
    return torch.rand(count, *shape, generator=generator)


@dataclass(frozen=True)
class Case:
    """One module with inputs for it.

    Attributes:
        name: unique within its kind.
        kind: one of `benchmarks.zoo.outcomes.KINDS`.
        make: the module, with weights from torch's own random numbers.
        shapes: of one image for each input of `forward`.
        samplers: how each input is made; normal numbers where there are fewer samplers than inputs.
        variant: "as given", or what was changed so that olac may take the module.
        package: that `make` imports, beside torch.
        activations: for `olac.check` and `olac.compile`.
        client_head: whether the client may compute the last steps; not for single operations, which are to be computed
            on encrypted values.
        shared: indices of inputs that have no batch axis.
        approximates: whether it is small enough for fits of polynomials.
        smallest: for one that is not, the same model for the smallest inputs that it takes, for which polynomials are
            fitted; None if that is too large as well.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    samplers: tuple[Sampler, ...] = ()
    variant: str = AS_GIVEN
    package: str = ""
    activations: Mapping[Any, Any] = field(default_factory=dict)
    client_head: bool = True
    shared: tuple[int, ...] = ()
    approximates: bool = True
    smallest: Case | None = None

    @property
    def title(self) -> str:
        """The name, with the variant if it is not as given."""
        return self.name if self.variant == AS_GIVEN else f"{self.name} ({self.variant})"

    def inputs(self, count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """`count` images for each input; the same for the same seed."""
        generator = torch.Generator().manual_seed(_seed_of(self.name) + seed)
        made = []
        for i, shape in enumerate(self.shapes):
            sample = self.samplers[i] if i < len(self.samplers) else normal
            batch = sample(count, shape, generator)
            made.append(batch[0] if i in self.shared else batch)
        return tuple(made)

    def model(self) -> nn.Module:
        """The module in evaluation mode, with weights of which each matters; the same at each call.

        New modules hide errors: norms that do nothing, branches scaled by 1e-6, heads of zeros, statistics of batch
        norms that don't fit the values. So constants are replaced by random numbers, small weights are enlarged, and
        batch norms see a few inputs.

        Raises:
            ImportError: if its package is not installed.
        """
        with _seeded(_seed_of(self.name)):
            model = self.make().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    _stir(parameter)
                _settle(model, self.inputs(SETTLING, seed=1))
        return model


def _seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within this, torch's own random numbers start from a seed; those outside stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _stir(parameter: torch.Tensor) -> None:
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return
    first = float(parameter.flatten()[0])
    if bool((parameter == first).all()):
        if first == 0:
            parameter.normal_(0, 0.2)
        else:
            parameter.uniform_(0.5, 1.5)
    if parameter.ndim >= 2:
        wanted, spread = parameter[0].numel() ** -0.5, float(parameter.std()) if parameter.numel() > 1 else 0.0
        if 0 < spread < wanted:
            parameter.mul_(wanted / spread)


def _settle(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Set the statistics of batch norms from inputs."""
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    if not norms:
        return
    before = [one.momentum for one in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches, of which there is one
        norm.reset_running_stats()
        norm.train()
    model(*inputs)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
