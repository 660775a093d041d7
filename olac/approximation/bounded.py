"""Polynomials of reconstruction: bounded, and compared with the values that they should have, with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from olac.approximation.compiled import LARGEST, PIECE, array, as_before, compiler, each_piece, kernels, rows_of, tiled
from olac.approximation.tensors import LARGE, polynomial

Tensor = torch.Tensor


def bounded(x: Tensor, bound: float) -> Tensor:
    """x within the bound, and its logarithm beyond, so that gradients still lead back."""
    excess = (x.abs() / bound).nan_to_num(nan=LARGEST, posinf=LARGEST).clamp(1.0, LARGEST)
    return torch.where(excess > 1, x.sign().nan_to_num() * bound * (1 + excess.log()), x)


def bounded_polynomial(
    x: Tensor, coefficients: Tensor, half_width: float, bound: float, target: Tensor
) -> tuple[Tensor, Tensor]:
    """The polynomial at x, compressed beyond the bound, and the squared error of each image; with gradients.

    Args:
        x: (n, channels, ...).
        coefficients: (channels or 1, degree + 1), of T_k(x / half_width).
        half_width: see `coefficients`.
        bound: values larger than this are compressed (see `bounded`).
        target: of x's shape, what errors are measured against.

    Returns:
        Values of x's shape, and the sum over an image's values of their squared errors, shape (n,).
    """
    if compiler() is not None:
        value, errors = _Fused.apply(x, coefficients, half_width, bound, target)
        return value, errors
    made = bounded(polynomial(x, coefficients, half_width), bound)
    return made, (made - target).square().flatten(1).sum(1)


def bounded_alone(x: Tensor, coefficients: Tensor, half_width: float, bound: float) -> Tensor:
    """The same polynomial without errors; by a kernel only if there are many values, as each degree is compiled."""
    if compiler() is None or x.numel() < LARGE:
        return bounded(polynomial(x, coefficients, half_width), bound)
    value: Tensor = _Fused.apply(x, coefficients, half_width, bound, torch.zeros_like(x))[0]
    return value


class _Fused(torch.autograd.Function):
    """See `bounded_polynomial`; values have their channels last in memory, as torch's convolutions like them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, coefficients: Tensor, half_width: float, bound: float, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        given, wanted = rows_of(x), rows_of(target)
        value, errors, far = torch.empty_like(given), x.new_empty(len(x)), torch.zeros(len(x), dtype=torch.bool)
        c = tiled(coefficients, x.shape[1], given.shape[2])
        run, _ = kernels(coefficients.shape[1] - 1)
        scale, most = np.float32(1 / half_width), np.float32(bound)
        arrays = [array(a) for a in (given, wanted, value, errors, far)]

        def piece(part: slice) -> None:
            u, w, v, e, f = (a[part] for a in arrays)
            run(u, c, scale, most, w, v, e, f)

        each_piece(len(x), piece)
        ctx.save_for_backward(given, coefficients, wanted, value, far)
        ctx.scale, ctx.bound, ctx.shape = scale, most, x.shape
        return as_before(value, x.shape), errors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, coefficients, target, value, far = ctx.saved_tensors
        result = torch.empty_like(x)
        count, width, channels = coefficients.shape[1], x.shape[2], ctx.shape[1]
        c, d = (tiled(rows, channels, width) for rows in (coefficients, _derivative(coefficients)))
        sums = torch.zeros(-(-len(x) // PIECE), count, width)
        _, run = kernels(count - 1)
        of_value, of_errors = rows_of(gradients[0]), gradients[1].contiguous()
        arrays = [array(a) for a in (x, target, value, of_value, of_errors, far, result)]
        totals = array(sums)

        def piece(part: slice) -> None:
            u, *others = (a[part] for a in arrays)
            run(u, c, d, ctx.scale, ctx.bound, *others, totals[part.start // PIECE])

        each_piece(len(x), piece)
        found = sums.sum(0).reshape(count, -1, channels).sum(1).T
        found = found if len(coefficients) > 1 else found.sum(0, keepdim=True)
        return as_before(result, ctx.shape), found, None, None, None


def _derivative(coefficients: Tensor) -> Tensor:
    """Coefficients of the derivative by t: d_(k - 1) = d_(k + 1) + 2 k c_k, and half of that for k = 1."""
    count = coefficients.shape[1]
    found = coefficients.new_zeros(len(coefficients), count + 1)
    for k in range(count - 1, 0, -1):
        found[:, k - 1] = found[:, k + 1] + 2 * k * coefficients[:, k]
    found[:, 0] /= 2
    return found[:, : max(1, count - 1)]
