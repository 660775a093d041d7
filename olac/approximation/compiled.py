"""Polynomials of activations in kernels that numba compiles, on images whose channels are last in memory.

One pass over a layer's values takes the place of some thirty of plain torch. If numba is not installed, or not for this
Python, plain torch computes the same (`olac.approximation.tensors`, `olac.approximation.bounded`).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

Tensor = torch.Tensor

LARGEST = 1e30
"""Values beyond it, in units of the bound, count as this much and have no gradient."""
WIDTH = 512
"""Values of a row, about: a few such rows stay in the first cache."""
PIECE = 4
"""Images that a thread takes at a time. It is fixed, so that sums do not depend on the number of threads."""


@functools.cache
def compiler() -> Any:
    """numba, or None if it is not installed, or not for this Python and numpy."""
    try:
        found = importlib.import_module("numba")
    except Exception:  # it refuses some releases with errors of several kinds
        return None
    return None if found.config.DISABLE_JIT else found


@functools.cache
def kernels(degree: int) -> tuple[Callable[..., Any], Callable[..., None]]:
    """The polynomial forward and backward over images (n, rows, width) in single precision, for one degree.

    `c` (degree + 1, width) has the coefficients of T_k, `d` those of the derivative by t = x * scale. `far` tells for
    each image whether a value is beyond the bound. The loops over a row are short of arrays, so that LLVM can check
    that these do not overlap, and vectorises.
    """
    numba = compiler()
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


@functools.cache
def _plain(degree: int) -> Any:
    """The polynomial alone; see `kernels`."""
    numba = compiler()

    @numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
    def run(x: Any, c: Any, scale: Any, value: Any) -> None:
        images, rows, width = x.shape
        two, none = np.float32(2), np.float32(0)
        for n in range(images):
            for i in range(rows):
                for k in range(width):
                    t = scale * x[n, i, k]
                    b1 = b2 = none
                    for j in range(degree, 0, -1):
                        b1, b2 = c[j, k] + two * t * b1 - b2, b1
                    value[n, i, k] = c[0, k] + t * b1 - b2

    return run


def polynomial(x: Tensor, coefficients: Tensor, half_width: float) -> Tensor:
    """sum_k c_k T_k(x / half_width), without gradients; single precision, coefficients (channels or 1, degree + 1)."""
    given = rows_of(x)
    value = torch.empty_like(given)
    c, run = tiled(coefficients, x.shape[1], given.shape[2]), _plain(coefficients.shape[1] - 1)
    source, into, scale = array(given), array(value), np.float32(1 / half_width)
    each_piece(len(x), lambda part: run(source[part], c, scale, into[part]))
    return as_before(value, x.shape)


def each_piece(images: int, run: Callable[[slice], None]) -> None:
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


def rows_of(x: Tensor) -> Tensor:
    """(n, channels, ...) with channels last, as contiguous rows of up to `WIDTH` values: (n, rows, width)."""
    n, channels = x.shape[:2]
    places = x[0, 0].numel()
    most = max(1, WIDTH // channels)
    together = next(k for k in range(min(most, places), 0, -1) if places % k == 0)
    return x.detach().movedim(1, -1).reshape(n, places // together, together * channels).contiguous()


def as_before(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows as (n, channels, ...), without moving anything in memory."""
    n, channels, *rest = shape
    return x.reshape(n, *rest, channels).movedim(-1, 1)


def array(x: Tensor) -> Any:
    return x.detach().numpy()


def tiled(coefficients: Tensor, channels: int, width: int) -> Any:
    """(degree + 1, width): the coefficients of each channel, as often as a row has it."""
    each = np.broadcast_to(array(coefficients), (channels, coefficients.shape[1])).T
    return np.ascontiguousarray(np.tile(each, width // channels))
