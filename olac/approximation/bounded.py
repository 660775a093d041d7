"""Polynomials of reconstruction: bounded, and compared with the values that they should have, with gradients.

In plain torch these take some thirty passes over a layer's values, which is most of the time of a step. If numba is
installed, one pass forward and one backward do all of it. Both ways give the same up to rounding; a test compares them.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from olac.approximation.tensors import polynomial

Tensor = torch.Tensor

LARGEST = 1e30
"""Values beyond it, in units of the bound, count as this much and have no gradient."""
WIDTH = 512
"""Values of a row, about: a few such rows stay in the first cache."""
PIECE = 4
"""Images that a thread takes at a time. It is fixed, so that sums do not depend on the number of threads."""


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
    if _numba() is not None:
        value, errors = _Fused.apply(x, coefficients, half_width, bound, target)
        return value, errors
    made = bounded(polynomial(x, coefficients, half_width), bound)
    return made, (made - target).square().flatten(1).sum(1)


@functools.cache
def _numba() -> Any:
    """numba, or None if it is not installed, or not for this Python and numpy."""
    try:
        found = importlib.import_module("numba")
    except Exception:  # it refuses some releases with errors of several kinds
        return None
    return None if found.config.DISABLE_JIT else found


@functools.cache
def _kernels(degree: int) -> tuple[Callable[..., Any], Callable[..., None]]:
    """The polynomial forward and backward over images (n, rows, width) in single precision, for one degree.

    `c` (degree + 1, width) has the coefficients of T_k, `d` those of the derivative by t = x * scale. `far` tells for
    each image whether a value is beyond the bound. The loops over a row are short of arrays, so that LLVM can check
    that these do not overlap, and vectorises.
    """
    numba = _numba()
    compiled = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
    last = max(0, degree - 1)
    none, one, two, largest = np.float32(0), np.float32(1), np.float32(2), np.float32(LARGEST)

    @numba.njit(inline="always")  # type: ignore[untyped-decorator]
    def clenshaw(c: Any, t: Any, k: Any, highest: Any) -> Any:
        b1 = b2 = none
        for i in range(highest, 0, -1):
            b1, b2 = c[i, k] + two * t * b1 - b2, b1
        return c[0, k] + t * b1 - b2

    @compiled  # type: ignore[untyped-decorator]
    def forward(x: Any, c: Any, scale: Any, bound: Any, target: Any, value: Any, errors: Any, far: Any) -> None:
        images, rows, width = x.shape
        total = np.zeros(width, np.float32)
        for n in range(images):
            total[:] = 0
            for i in range(rows):
                beyond = 0
                for k in range(width):
                    p = clenshaw(c, scale * x[n, i, k], k, degree)
                    value[n, i, k] = p
                    beyond += 0 if abs(p) <= bound else 1  # NaN is beyond as well
                if beyond:
                    far[n] = True
                    for k in range(width):
                        p = value[n, i, k]
                        if not abs(p) <= bound:
                            excess = min(abs(p) / bound, largest) if p == p else largest
                            sign = np.sign(p) if p == p else none
                            value[n, i, k] = sign * bound * (one + np.log(excess))
                for k in range(width):
                    off = value[n, i, k] - target[n, i, k]
                    total[k] += off * off
            errors[n] = total.sum()

    @compiled  # type: ignore[untyped-decorator]
    def backward(
        x: Any,
        c: Any,
        d: Any,
        scale: Any,
        bound: Any,
        target: Any,
        value: Any,
        of_value: Any,
        of_errors: Any,
        far: Any,
        result: Any,
        sums: Any,
    ) -> None:
        images, rows, width = x.shape
        g, t = np.empty(width, np.float32), np.empty(width, np.float32)
        for n in range(images):
            by_error = two * of_errors[n]
            for i in range(rows):
                for k in range(width):
                    g[k] = of_value[n, i, k] + by_error * (value[n, i, k] - target[n, i, k])
                for k in range(width):
                    t[k] = scale * x[n, i, k]
                if far[n]:
                    for k in range(width):
                        size = abs(clenshaw(c, t[k], k, degree))
                        if not size <= bound:
                            slope = bound / size if size < bound * largest else none
                            g[k] = g[k] * slope if slope > 0 else none
                            # Where there is no gradient, infinite powers of t must not make one.
                            t[k] = t[k] if slope > 0 else none
                for k in range(width):
                    result[n, i, k] = scale * g[k] * clenshaw(d, t[k], k, last)
                for k in range(width):
                    before, now = one, t[k]
                    sums[0, k] += g[k]
                    for j in range(1, degree + 1):
                        sums[j, k] += g[k] * now
                        before, now = now, two * t[k] * now - before

    return forward, backward


class _Fused(torch.autograd.Function):
    """See `bounded_polynomial`; values have their channels last in memory, as torch's convolutions like them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, coefficients: Tensor, half_width: float, bound: float, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        given, wanted = _rows(x), _rows(target)
        value, errors, far = torch.empty_like(given), x.new_empty(len(x)), torch.zeros(len(x), dtype=torch.bool)
        c = _tiled(coefficients, x.shape[1], given.shape[2])
        run, _ = _kernels(coefficients.shape[1] - 1)
        scale, most = np.float32(1 / half_width), np.float32(bound)
        arrays = [_array(a) for a in (given, wanted, value, errors, far)]

        def piece(part: slice) -> None:
            u, w, v, e, f = (a[part] for a in arrays)
            run(u, c, scale, most, w, v, e, f)

        _each(len(x), piece)
        ctx.save_for_backward(given, coefficients, wanted, value, far)
        ctx.scale, ctx.bound, ctx.shape = scale, most, x.shape
        return _as_before(value, x.shape), errors

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, coefficients, target, value, far = ctx.saved_tensors
        result = torch.empty_like(x)
        count, width, channels = coefficients.shape[1], x.shape[2], ctx.shape[1]
        c, d = (_tiled(rows, channels, width) for rows in (coefficients, _derivative(coefficients)))
        sums = torch.zeros(-(-len(x) // PIECE), count, width)
        _, run = _kernels(count - 1)
        of_value, of_errors = _rows(gradients[0]), gradients[1].contiguous()
        arrays = [_array(a) for a in (x, target, value, of_value, of_errors, far, result)]
        totals = _array(sums)

        def piece(part: slice) -> None:
            u, *others = (a[part] for a in arrays)
            run(u, c, d, ctx.scale, ctx.bound, *others, totals[part.start // PIECE])

        _each(len(x), piece)
        found = sums.sum(0).reshape(count, -1, channels).sum(1).T
        found = found if len(coefficients) > 1 else found.sum(0, keepdim=True)
        return _as_before(result, ctx.shape), found, None, None, None


def _each(images: int, run: Callable[[slice], None]) -> None:
    """Call `run` for pieces of the images, on as many threads as torch has."""
    parts = [slice(start, min(start + PIECE, images)) for start in range(0, images, PIECE)]
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        for part in parts:
            run(part)
    else:
        list(_pool(threads).map(run, parts))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="reconstruct")


def _rows(x: Tensor) -> Tensor:
    """(n, channels, ...) with channels last, as contiguous rows of up to `WIDTH` values: (n, rows, width)."""
    n, channels = x.shape[:2]
    places = x[0, 0].numel()
    most = max(1, WIDTH // channels)
    together = next(k for k in range(min(most, places), 0, -1) if places % k == 0)
    return x.detach().movedim(1, -1).reshape(n, places // together, together * channels).contiguous()


def _as_before(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows as (n, channels, ...), without moving anything in memory."""
    n, channels, *rest = shape
    return x.reshape(n, *rest, channels).movedim(-1, 1)


def _array(x: Tensor) -> Any:
    return x.detach().numpy()


def _tiled(coefficients: Tensor, channels: int, width: int) -> Any:
    """(degree + 1, width): the coefficients of each channel, as often as a row has it."""
    each = np.broadcast_to(_array(coefficients), (channels, coefficients.shape[1])).T
    return np.ascontiguousarray(np.tile(each, width // channels))


def _derivative(coefficients: Tensor) -> Tensor:
    """Coefficients of the derivative by t: d_(k - 1) = d_(k + 1) + 2 k c_k, and half of that for k = 1."""
    count = coefficients.shape[1]
    found = coefficients.new_zeros(len(coefficients), count + 1)
    for k in range(count - 1, 0, -1):
        found[:, k - 1] = found[:, k + 1] + 2 * k * coefficients[:, k]
    found[:, 0] /= 2
    return found[:, : max(1, count - 1)]
