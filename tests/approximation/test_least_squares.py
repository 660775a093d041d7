"""Regression and whitening of wide layers: the small system has the solution of the large one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from olac.approximation import least_squares
from olac.approximation.least_squares import (
    Root,
    offsets,
    patches,
    ridge_regression,
    thinning,
    thinning_for,
    unknowns,
    whitening,
)
from olac.approximation.reconstruct import reconstruct
from olac.approximation.sweep import sweep
from olac.approximation.tensors import CHUNK
from olac.ir.ops import Conv2d, Linear
from olac.polynomials.modes import Compensated
from tests.approximation.nets import activations, folded, images

DAMPING = 0.1
GROUPED = Conv2d("w", None, (2, 2), (0, 1, 1, 0), (1, 1), 2)


def layers() -> Iterator[tuple[str, tuple[Conv2d | Linear, Tensor, Tensor]]]:
    """Layers with more inputs to an output than there are samples: op, inputs, weights."""
    random = torch.Generator().manual_seed(3)
    yield "linear", (Linear("w"), torch.randn(70, 90, generator=random) + 2, torch.randn(7, 90, generator=random))
    x = images(5, 4, (16, 5, 5)) * torch.linspace(0.1, 3, 16)[:, None, None]
    yield "convolution", (GROUPED, x, torch.randn(8, 8, 3, 3, generator=random) / 8)


LAYERS = dict(layers())


def target_of(op: Conv2d | Linear, x: Tensor, weight: Tensor) -> Tensor:
    """Values near the layer's outputs, of their shape."""
    random = torch.Generator().manual_seed(5)
    if isinstance(op, Linear):
        y = x @ weight.T
    else:
        top, bottom, left, right = op.padding
        padded = torch.nn.functional.pad(x, (left, right, top, bottom))
        y = torch.nn.functional.conv2d(padded, weight, None, op.stride, 0, op.dilation, op.groups)
    return y.tanh() + 0.3 * torch.randn(y.shape, generator=random) + 1


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("name", LAYERS)
def test_regression_on_samples_is_that_on_inputs(name: str, ridge: float) -> None:
    op, x, weight = LAYERS[name]
    target = target_of(op, x, weight)
    columns = weight[0].numel()
    assert unknowns(weight, target) < columns
    small = ridge_regression(op, x, target, weight)
    large = least_squares._moments(op, x.double(), target.double(), weight)
    assert isinstance(small, least_squares._Samples)
    groups = op.groups if isinstance(op, Conv2d) else 1
    flat = weight.double().reshape(groups, len(weight) // groups, columns)
    (w, b), (wanted, bias) = small.solve(flat, ridge), large.solve(flat, ridge)
    assert (wanted - flat).abs().max() > 0.01, "there is something to fit"
    assert torch.allclose(w, wanted, atol=1e-6 * float(wanted.abs().max()))
    assert torch.allclose(b, bias, atol=1e-5 * float(bias.abs().max()))
    more = torch.cat([x] * 30)
    assert isinstance(ridge_regression(op, more, target_of(op, more, weight), weight), least_squares._Moments)


@pytest.mark.parametrize("name", LAYERS)
def test_whitening_from_samples_is_that_from_inputs(name: str) -> None:
    op, x, weight = LAYERS[name]
    root, size = whitening(op, x, weight, DAMPING)
    assert root.thin is not None
    u = patches(op, x, weight).double()
    u = u - u.mean(2, keepdim=True)
    covariance = u @ u.mT / u.shape[2]
    assert torch.allclose(size[:, 0, 0], covariance.diagonal(dim1=1, dim2=2).mean(1), rtol=1e-5)
    values, vectors = torch.linalg.eigh(covariance / size)
    wanted = vectors @ torch.diag_embed((values.clamp_min(0) + DAMPING) ** -0.5) @ vectors.mT
    eye = torch.eye(u.shape[1], dtype=torch.float64).expand(len(u), -1, -1)
    assert torch.allclose(root.after(eye), wanted, atol=1e-5)
    assert torch.allclose(root.scaled(3 * size).after(eye), 3 * size * wanted, atol=1e-4)
    assert torch.allclose(root.float().after(eye.float()), wanted.float(), atol=1e-5)
    more, _ = whitening(op, torch.cat([x] * 30), weight, DAMPING)
    assert more.thin is None
    assert torch.allclose(more.after(eye), wanted, atol=1e-4)
    assert isinstance(more, Root)


class Largest(TorchDispatchMode):
    """Finds the largest number of elements of a tensor that torch makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_nothing_grows_with_the_square_of_the_width() -> None:
    """Sweep and reconstruction of a layer of 2000 inputs on 80 images."""
    width, count = 2000, 80
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    )
    train, held = torch.randn(count, 8), torch.randn(40, 8)
    graph = folded(model, train[:2])
    with Largest() as seen:
        swept = sweep(graph, train, held, dict.fromkeys(activations(graph), 2), Compensated(), choose=False).graph
        assert any(name.endswith(".fitted") and "weight" in name for name in swept.constants), "layers were fitted"
        lines: list[str] = []
        reconstruct(graph, swept, train, held, 2, progress=lines.append, enough=0.0)
    assert len(lines) == 2
    assert width * count <= seen.elements <= 8 * width * count < width**2


@pytest.mark.parametrize("size", [16, 23, 32, 64])
@pytest.mark.parametrize("stride", [1, 2])
def test_moments_of_fewer_places_are_those_of_all(size: int, stride: int) -> None:
    """A regression on every so many-th place is nearly the regression on all, and all places are seen."""
    random = torch.Generator().manual_seed(size)
    x, weight = torch.randn(6 * CHUNK, 3, size, size, generator=random), torch.randn(4, 3, 3, 3, generator=random)
    op = Conv2d("w", "b", stride=(stride, stride), padding=(1, 1, 1, 1))
    wanted = torch.nn.functional.conv2d(x, 1.1 * weight, torch.ones(4), stride, 1)
    noisy = wanted + 0.3 * torch.randn(wanted.shape, generator=random)
    flat = weight.double().reshape(1, 4, -1)
    made, bias = ridge_regression(op, x, noisy, weight).solve(flat, 1e-4)
    assert torch.allclose(made, 1.1 * flat, atol=0.02) and torch.allclose(bias, torch.ones(1, 4).double(), atol=0.02)
    every = thinning(wanted.shape[2:])
    assert every == max(1, math.isqrt(math.prod(wanted.shape[2:]) // 128))
    assert len(set(itertools.islice(offsets(every, wanted.shape[2:]), every * every))) == every * every


@pytest.mark.parametrize("places", [(700, 1), (1, 700), (2, 800)])
def test_moments_of_sequences(places: tuple[int, int]) -> None:
    """Pictures may have fewer columns than are left out."""
    random = torch.Generator().manual_seed(1)
    x, weight = torch.randn(3 * CHUNK, 3, *places, generator=random), torch.randn(4, 3, 1, 1, generator=random)
    wanted = torch.nn.functional.conv2d(x, weight)
    assert thinning(places) > min(places)
    made, _ = ridge_regression(Conv2d("w", "b"), x, 1.1 * wanted, weight).solve(weight.double().reshape(1, 4, -1), 1e-4)
    assert torch.allclose(made, 1.1 * weight.double().reshape(1, 4, -1), atol=0.02)


def test_regressions_take_as_many_samples_as_they_need() -> None:
    assert thinning_for(9, 1024, (32, 32)) == 4 > thinning((32, 32)), "all 16 first places come in 16 chunks of images"
    assert thinning_for(288, 1 << 14, (16, 16)) == 15, "2^22 places, and 64 * 288 are enough"
    assert thinning_for(9, 64, (8, 8)) == thinning((8, 8)) == 1, "with few images all places count"
    assert thinning_for(4608, 1024, (32, 32)) == thinning((32, 32)) == 2
    assert thinning_for(9, 1024, ()) == 1


def test_symmetric_products_and_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "SQUARE", 7)
    u = torch.randn(2, 31, 50, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(least_squares._squared(u), u @ u.mT, atol=1e-12)
    right = torch.randn(2, 31, 3).double()
    definite = u @ u.mT
    for system in (definite, definite - 20 * torch.eye(31, dtype=torch.float64)):
        assert torch.allclose(system @ least_squares._solved(system, right), right, atol=1e-8)
    assert torch.linalg.cholesky_ex(system).info.any(), "the second is indefinite"
