"""Bounded polynomials: the compiled form against plain torch, values and gradients."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from olac.approximation import bounded as module
from olac.approximation.bounded import bounded, bounded_alone, bounded_polynomial
from olac.approximation.compiled import compiler
from olac.approximation.tensors import LARGE

Tensor = torch.Tensor
Results = tuple[Tensor, Tensor, Tensor, Tensor]

compiled = pytest.mark.skipif(compiler() is None, reason="numba is not installed")


def results(x: Tensor, c: Tensor, target: Tensor, bound: float) -> Results:
    """Values, errors, and the gradients by x and c of a sum of both with fixed weights."""
    x, c = x.clone().requires_grad_(), c.clone().requires_grad_()
    value, errors = bounded_polynomial(x, c, 1.5, bound, target)
    random = torch.Generator().manual_seed(5)
    weights = torch.rand(value.shape, generator=random)
    loss = (weights * value).sum() + (torch.arange(len(x)) * errors).sum() / 7
    loss.backward()
    assert x.grad is not None and c.grad is not None
    return value.detach(), errors.detach(), x.grad, c.grad


def both(x: Tensor, c: Tensor, target: Tensor, bound: float) -> tuple[Results, Results]:
    """Compiled, and in plain torch in double precision."""
    ours = results(x, c, target, bound)
    with mock.patch.object(module, "compiler", lambda: None):
        return ours, results(x.double(), c.double(), target.double(), bound)


@compiled
@pytest.mark.parametrize("degree", [1, 2, 3, 7, 15])
@pytest.mark.parametrize("shape", [(5, 4), (9, 3, 7), (6, 5, 4, 6), (3, 16, 32, 32), (2, 700, 2, 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_compiled_and_plain_agree(degree: int, shape: tuple[int, ...], shared: bool) -> None:
    random = torch.Generator().manual_seed(degree)
    x, target = torch.randn(shape, generator=random), torch.randn(shape, generator=random)
    c = torch.randn(1 if shared else shape[1], degree + 1, generator=random) / (1 + torch.arange(degree + 1))
    # At degree 15 a single value of 4 deviations decides all sums.
    x = x.clamp(-2, 2) if degree == 15 else x
    for ours, exact in zip(*both(x, c, target, 3.0), strict=True):
        assert ours.shape == exact.shape
        assert torch.allclose(ours.double(), exact, rtol=2e-4, atol=2e-5 * float(exact.abs().max()))


@compiled
def test_images_that_diverge_have_bounded_values_and_do_not_spoil_the_others() -> None:
    x = torch.full((6, 2, 3, 3), 0.5)
    x[1, 0, 1, 1], x[2, 1, 0, 0], x[3, 0, 2, 2], x[4] = 1e3, 1e14, torch.inf, torch.nan
    c = torch.tensor([[0.1, 1.0, 0.3, 0.2], [0.0, 0.5, -0.2, 0.1]])
    value, errors, by_x, by_c = results(x, c, torch.zeros_like(x), 10.0)
    assert value.isfinite().all() and errors.isfinite().all()
    assert by_x.isfinite().all() and by_c.isfinite().all()
    assert value.abs().max() <= 10 * (1 + 31 * 2.31)
    assert value[1, 0, 1, 1] > 10 and by_x[1, 0, 1, 1] != 0
    assert (by_x[4] == 0).all() and by_x[3, 0, 2, 2] == 0
    same = results(x[[0, 5]], c, torch.zeros(2, 2, 3, 3), 10.0)
    assert torch.equal(value[[0, 5]], same[0]) and torch.equal(errors[[0, 5]], same[1])


@compiled
def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    random = torch.Generator().manual_seed(1)
    x, target = (torch.randn(19, 8, 6, 6, generator=random) for _ in range(2))
    c = torch.randn(8, 4, generator=random)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(x, c, target, 4.0))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@compiled
def test_channels_last_in_memory_gives_the_same() -> None:
    x, target = torch.randn(2, 8, 6, 10, generator=torch.Generator().manual_seed(2)), torch.zeros(2, 8, 6, 10)
    c = torch.randn(8, 4, generator=torch.Generator().manual_seed(3))
    last = x.contiguous(memory_format=torch.channels_last)
    for a, b in zip(results(x, c, target, 4.0), results(last, c, target, 4.0), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [0.0, 1.9, 2.0, 2.1, 1e4, 1e29, 1e33, torch.inf, torch.nan])
@pytest.mark.parametrize("sign", [1, -1])
def test_values_within_the_bound_stay(value: float, sign: int) -> None:
    found = float(bounded(torch.tensor([sign * value]), 2.0))
    if abs(value) <= 2:
        assert found == pytest.approx(sign * value)
    elif value == value:
        assert sign * found >= 2 and abs(found) <= 2 * (1 + 69.1)
        assert sign * found >= sign * float(bounded(torch.tensor([sign * 2.0]), 2.0))
    else:
        assert found == 0


@compiled
@pytest.mark.parametrize("degree", [5, 7])
def test_many_values_without_targets_are_those_of_plain_torch(degree: int) -> None:
    random = torch.Generator().manual_seed(degree)
    x = torch.randn(4, 8, 33, 33, generator=random)
    assert x.numel() >= LARGE
    x[1, 0, 1, 1], x[2, 1, 0, 0] = torch.inf, torch.nan
    c = torch.randn(1, degree + 1, generator=random)
    found = []
    for kind in (torch.float32, torch.float64):
        given = x.detach().to(kind, copy=True).requires_grad_()
        with mock.patch.object(module, "compiler", compiler if kind == torch.float32 else lambda: None):
            value = bounded_alone(given, c.to(kind), 3.0, 5.0)
        value.sum().backward()
        assert given.grad is not None and value.isfinite().all()
        found.append((value.detach().double(), given.grad.double()))
    sound = x.isfinite()
    for ours, exact in zip(*found, strict=True):
        assert torch.allclose(ours[sound], exact[sound], rtol=1e-3, atol=1e-4)
