"""Means of Chebyshev polynomials and their products by one pass, compared with dense sums."""

from __future__ import annotations

import pytest
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from olac.approximation import moments
from olac.approximation.least_squares import offsets, thinning
from olac.approximation.moments import TOGETHER, ends, means
from olac.approximation.tensors import channels_last

SHAPES = [(70, 5), (70, 3, 11), (33, 4, 6, 6), (40, 16, 8, 8), (40, 3, 32, 24)]


def values(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(len(shape))
    size = torch.linspace(0.5, 2, shape[1]).reshape(-1, *(1,) * (len(shape) - 2))
    x = torch.randn(shape, generator=random) * size + size
    return channels_last(x), channels_last(torch.relu(x) + 0.1 * torch.randn(shape, generator=random))


@pytest.fixture(params=["kernels", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(moments, "compiler", lambda: None)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("degree", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_means_are_those_of_dense_sums(shape: tuple[int, ...], degree: int) -> None:
    x, y = values(shape)
    middle, half = torch.linspace(-0.5, 0.5, shape[1]).double(), torch.linspace(8, 12, shape[1]).double()
    second, first = means(x, y, middle, half, degree)
    every = thinning(shape[2:])
    assert (every > 1) == (shape[2:] == (32, 24))
    for c in range(shape[1]):
        pairs = [
            (one[:, c], other[:, c]) if every == 1 else (one[:, c, i::every, j::every], other[:, c, i::every, j::every])
            for one, other, (i, j) in zip(x.split(TOGETHER), y.split(TOGETHER), offsets(every, shape[2:]), strict=False)
        ]
        u, v = (torch.cat([pair[k].flatten() for pair in pairs]).double() for k in (0, 1))
        basis = torch.from_numpy(chebyshev.chebvander(((u - middle[c]) / half[c]).numpy(), degree))
        assert torch.allclose(second[c], basis.T @ basis / len(u), atol=1e-12)
        assert torch.allclose(first[c], basis.T @ v / len(u), atol=1e-12)


def test_sums_do_not_depend_on_threads() -> None:
    x, y = values((90, 8, 8, 8))
    middle, half = torch.zeros(8).double(), torch.full((8,), 12.0).double()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(means(x, y, middle, half, 5))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_ends_of_each_image(shape: tuple[int, ...]) -> None:
    x, _ = values(shape)
    found = ends(x)
    assert found.shape == (shape[0], shape[1], 2)
    rows = x.reshape(shape[0], shape[1], -1)
    assert torch.equal(found[:, :, 0], rows.amin(2)) and torch.equal(found[:, :, 1], rows.amax(2))
