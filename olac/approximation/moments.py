"""What fits need to know of a layer's values, in one pass over them: each image's ends, and means by channel.

The products of Chebyshev polynomials are sums of two others, T_i T_j = (T_(i + j) + T_|i - j|) / 2. So the means of
T_0 ... T_(2 d) are all that the normal equations of degree d have on their left side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from olac.approximation.compiled import array, compiler, each_piece, rows_of
from olac.approximation.least_squares import offsets, thinning

Tensor = torch.Tensor

TOGETHER = 16
"""Images whose sums are added up in one row of a table. It is fixed, so sums do not depend on the number of threads."""


def ends(x: Tensor) -> Tensor:
    """The least and the largest value of each image in each channel: (n, channels, 2), of (n, channels, ...)."""
    if x.ndim < 3:
        return torch.stack([x, x], 2)
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        rows = rows_of(x)  # torch reduces rows faster than pictures whose channels are last
        low, high = (each.reshape(len(x), -1, x.shape[1]) for each in (rows.amin(1), rows.amax(1)))
        return torch.stack([low.amin(1), high.amax(1)], 2)
    return torch.stack(torch.aminmax(x.flatten(2), dim=2), 2)


def means(x: Tensor, y: Tensor, middle: Tensor, half: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """Means by channel of T_i T_j and of T_i y, with the polynomials of (x - middle) / half.

    Args:
        x, y: (n, channels, ...).
        middle, half: (channels,), in double precision.
        degree: of the polynomials.

    Returns:
        (channels, degree + 1, degree + 1) and (channels, degree + 1).
    """
    channels, every = x.shape[1], thinning(x.shape[2:])
    count, tables = 0, []
    for part, wanted, (i, j) in zip(x.split(TOGETHER), y.split(TOGETHER), offsets(every, x.shape[2:]), strict=False):
        if every > 1:
            part, wanted = part[:, :, i::every, j::every], wanted[:, :, i::every, j::every]
        count += part.numel() // channels
        tables.append((part, wanted))
    sums = torch.zeros(len(tables), 3 * degree + 2, channels, dtype=torch.float64)
    add = _added if compiler() is None else _compiled

    def piece(part: slice) -> None:
        for (some, targets), row in zip(tables[part], sums[part], strict=True):
            add(some, targets, middle, half, degree, row)

    each_piece(len(tables), piece)
    total = sums.sum(0).T / count
    of_powers, first = total[:, : 2 * degree + 1], total[:, 2 * degree + 1 :]
    k = torch.arange(degree + 1)
    second = (of_powers[:, k[:, None] + k] + of_powers[:, (k[:, None] - k).abs()]) / 2
    return second, first


def _added(x: Tensor, y: Tensor, middle: Tensor, half: Tensor, degree: int, sums: Tensor) -> None:
    """Add the sums of T_0 ... T_(2 degree) and of T_0 y ... T_degree y to the rows of `sums`, in plain torch."""
    wanted = y.transpose(0, 1).flatten(1).double()
    t = (x.transpose(0, 1).flatten(1).double() - middle[:, None]) / half[:, None]
    before, now = torch.ones_like(t), t
    for k in range(2 * degree + 1):
        sums[k] += before.sum(1)
        if k <= degree:
            sums[2 * degree + 1 + k] += (before * wanted).sum(1)
        before, now = now, 2 * t * now - before


def _compiled(x: Tensor, y: Tensor, middle: Tensor, half: Tensor, degree: int, sums: Tensor) -> None:
    """The same by a kernel."""
    given, wanted, channels = rows_of(x), rows_of(y), x.shape[1]
    width = given.shape[2]
    centre, scale = (array(one.repeat(width // channels)) for one in (middle, 1 / half))
    table = torch.zeros(len(sums), width, dtype=torch.float64)
    _sums()(array(given), array(wanted), centre, scale, degree, array(table))
    sums += table.reshape(len(sums), -1, channels).sum(1)


@functools.cache
def _sums() -> Callable[..., None]:
    """See `_added`, by columns of the rows; the loops over a row have few arrays, so that LLVM vectorises them."""
    numba = compiler()

    @numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})  # type: ignore[untyped-decorator]
    def run(x: Any, y: Any, middle: Any, scale: Any, degree: Any, sums: Any) -> None:
        images, rows, width = x.shape
        t, before, now, wanted = np.empty(width), np.empty(width), np.empty(width), np.empty(width)
        last = 2 * degree
        for n in range(images):
            for i in range(rows):
                for k in range(width):
                    t[k] = 2 * scale[k] * (x[n, i, k] - middle[k])
                for k in range(width):
                    wanted[k] = y[n, i, k]
                    sums[last + 1, k] += wanted[k]
                for k in range(width):
                    before[k] = 1
                    now[k] = t[k] / 2
                for j in range(1, last + 1):
                    for k in range(width):
                        sums[j, k] += now[k]
                    if j <= degree:
                        for k in range(width):
                            sums[last + 1 + j, k] += now[k] * wanted[k]
                    for k in range(width):
                        following = t[k] * now[k] - before[k]
                        before[k] = now[k]
                        now[k] = following
        for k in range(width):
            sums[0, k] += images * rows

    return run  # type: ignore[no-any-return]
