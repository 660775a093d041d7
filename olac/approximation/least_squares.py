"""Ridge regression and whitening of linear layers, in the smaller of two spaces: that of inputs or that of samples.

A layer with F inputs to each output, on n samples (images, or positions in them), has moments of rank n at most. If F
is at most n, all is computed with the F x F matrix of second moments. With fewer samples than inputs the same results
are computed with the n x n matrix of the samples' products with each other, and no matrix of size F x F is made.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from olac.approximation.tensors import CHUNK
from olac.ir.ops import Conv2d, Linear

Tensor = torch.Tensor

TINY = 1e-12
ENOUGH_PLACES = 128
"""Places of a picture that moments are taken of, about."""
PER_UNKNOWN = 64
"""Samples for each unknown of a regression, about, if there are more; their share of the error is the inverse."""
SQUARE = 144
"""Rows of a block of a symmetric product."""
BLOCK = 2048
"""Columns that are converted to double precision at a time."""


def patches(op: Conv2d | Linear, x: Tensor, weight: Tensor, every: int = 1, first: tuple[int, int] = (0, 0)) -> Tensor:
    """Rows of the layer as a product of matrices: (groups, columns, samples).

    Args:
        every, first: of a convolution's places, every so many-th row and column from these on are taken.
    """
    if isinstance(op, Linear):
        return x.T[None]
    top, bottom, left, right = op.padding
    (down, across), stride = op.stride, tuple(every * s for s in op.stride)
    padded = F.pad(x, (left, right, top, bottom))[:, :, first[0] * down :, first[1] * across :]
    unfolded = F.unfold(padded, (weight.shape[2], weight.shape[3]), dilation=op.dilation, stride=stride)
    columns = weight[0].numel()
    return unfolded.reshape(len(x), op.groups, columns, -1).permute(1, 2, 0, 3).reshape(op.groups, columns, -1)


def unknowns(weight: Tensor, output: Tensor) -> int:
    """Size of the system that a layer's regression takes: inputs to an output, or samples if those are fewer.

    Args:
        weight: (out, ...), one row an output.
        output: (n, out, ...), of the layer.
    """
    return min(weight[0].numel(), output.numel() // len(weight))


# Ridge regression ----------------------------------------------------------------------------------------------------


class Regression(Protocol):
    """Ridge regression of one layer, solved for several ridges."""

    def solve(self, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (groups, out, columns) and bias (groups, out) by ridge regression towards `weight`.

        Args:
            weight: (groups, out, columns), in double precision.
            ridge: penalty of a squared change of a weight, in units of the columns' mean variance.
        """


def ridge_regression(op: Conv2d | Linear, x: Tensor, target: Tensor, weight: Tensor) -> Regression:
    """Regression of a layer's targets (n, out, ...) on its inputs x (n, ...), in the smaller of both spaces."""
    of_samples = unknowns(weight, target) < weight[0].numel()
    return _samples(op, x, target, weight) if of_samples else _moments(op, x, target, weight)


@dataclass
class _Moments:
    """Means and centred second moments of a linear layer's patches and targets, by group."""

    gram: Tensor
    cross: Tensor
    patches: Tensor
    targets: Tensor
    _left: tuple[Tensor, Tensor] | None = None
    """Weights, and what they leave of the targets: the same for all ridges."""

    def solve(self, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """See `Regression`."""
        columns = self.gram.shape[1]
        size = self.gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        system = self.gram + (ridge * size + TINY) * torch.eye(columns, dtype=torch.float64)
        if self._left is None or self._left[0] is not weight:
            self._left = weight, (self.cross - weight @ self.gram).mT
        step = _solved(system, self._left[1]).mT
        made = weight + step
        return made, self.targets - (made @ self.patches[:, :, None])[:, :, 0]


def _moments(op: Conv2d | Linear, x: Tensor, target: Tensor, weight: Tensor) -> _Moments:
    groups = op.groups if isinstance(op, Conv2d) else 1
    out, columns = len(weight) // groups, weight[0].numel()
    gram = torch.zeros(groups, columns, columns, dtype=torch.float64)
    cross = torch.zeros(groups, out, columns, dtype=torch.float64)
    mean_x = torch.zeros(groups, columns, dtype=torch.float64)
    mean_y = torch.zeros(groups, out, dtype=torch.float64)
    count = 0
    for u, y in _chunks(op, x, target, weight):
        gram += _squared(u)
        cross += y @ u.mT
        mean_x += u.mean(2).double() * u.shape[2]
        mean_y += y.mean(2).double() * u.shape[2]
        count += u.shape[2]
    mean_x, mean_y = mean_x / count, mean_y / count
    gram = gram / count - mean_x[:, :, None] * mean_x[:, None, :]
    cross = cross / count - mean_y[:, :, None] * mean_x[:, None, :]
    return _Moments(gram, cross, mean_x, mean_y)


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """The solution of symmetric systems: by Cholesky's factors, unless rounding made one indefinite."""
    factor, failed = torch.linalg.cholesky_ex(system)
    return torch.linalg.solve(system, right) if failed.any() else torch.cholesky_solve(right, factor)


def _squared(u: Tensor) -> Tensor:
    """u @ u.mT in blocks of rows; those below the diagonal are copies of those above."""
    if u.shape[1] < 2 * SQUARE:
        return u @ u.mT
    made, size = u.new_empty(len(u), u.shape[1], u.shape[1]), u.shape[1]
    for start in range(0, size, SQUARE):
        rows = slice(start, start + SQUARE)
        made[:, rows, start:] = u[:, rows] @ u[:, start:].mT
        made[:, start + SQUARE :, rows] = made[:, rows, start + SQUARE :].mT
    return made


@dataclass
class _Samples:
    """The same in the space of samples: (groups, columns, n) centred patches, (groups, out, n) targets, and products.

    With X the patches, Y the targets and r the ridge, the step from weights W is
    (Y - W X) X' (X X' + r)^-1 = (Y - W X) (X' X + r)^-1 X'.
    """

    rows: Tensor
    targets: Tensor
    gram: Tensor
    row_means: Tensor
    target_means: Tensor
    _left: tuple[Tensor, Tensor] | None = None
    """See `_Moments`."""

    def solve(self, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """See `Regression`."""
        count, columns = self.gram.shape[1], self.rows.shape[1]
        size = self.gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] / columns
        system = self.gram + (ridge * size + TINY) * torch.eye(count, dtype=torch.float64)
        if self._left is None or self._left[0] is not weight:
            left = self.targets.clone()
            for part, block in _blocks(self.rows):
                left -= weight[:, :, part] @ block
            self._left = weight, left.mT / count
        found = _solved(system, self._left[1]).mT
        made = weight.clone()
        for part, block in _blocks(self.rows):
            made[:, :, part] += found @ block.mT
        return made, self.target_means - (made @ self.row_means[:, :, None])[:, :, 0]


def _samples(op: Conv2d | Linear, x: Tensor, target: Tensor, weight: Tensor) -> _Samples:
    chunks = list(_chunks(op, x, target, weight))
    rows, targets = torch.cat([u for u, _ in chunks], 2), torch.cat([y for _, y in chunks], 2).double()
    del chunks
    means = rows.mean(2, dtype=torch.float64)
    rows = _centred(rows, means)
    target_means = targets.mean(2)
    return _Samples(rows, targets - target_means[:, :, None], _products(rows), means, target_means)


def thinning(places: Sequence[int]) -> int:
    """Every so many-th row and column of pictures with these many is enough for moments: neighbours tell the same."""
    return max(1, math.isqrt(math.prod(places) // ENOUGH_PLACES)) if len(places) == 2 else 1


def thinning_for(unknown: int, images: int, places: Sequence[int]) -> int:
    """As `thinning`, but also no more than a regression of so many unknowns needs.

    All first rows and columns must still come, so that the edges of pictures count.
    """
    if len(places) != 2:
        return 1
    enough = math.isqrt(images * math.prod(places) // (PER_UNKNOWN * unknown))
    return max(thinning(places), min(enough, math.isqrt(math.ceil(images / CHUNK))))


def offsets(every: int, places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First row and column for one piece of the images after the other, so that all places are seen.

    Pictures may have fewer rows or columns than are left out, such as the one column of a sequence.
    """
    rows, columns = (min(every, n) for n in places) if len(places) == 2 else (every, every)
    return itertools.cycle([(i, j) for i in range(rows) for j in range(columns)])


def _chunks(op: Conv2d | Linear, x: Tensor, target: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Patches (groups, columns, samples) and targets (groups, out, samples), a few images at a time."""
    groups = op.groups if isinstance(op, Conv2d) else 1
    out = len(weight) // groups
    every = thinning_for(weight[0].numel(), len(x), target.shape[2:])
    firsts = offsets(every, target.shape[2:])
    for part, whole, (i, j) in zip(x.split(CHUNK), target.split(CHUNK), firsts, strict=False):
        wanted = whole[:, :, i::every, j::every] if every > 1 else whole
        y = wanted.reshape(len(part), groups, out, -1).permute(1, 2, 0, 3).reshape(groups, out, -1)
        yield patches(op, part, weight, every, (i, j)), y


def _blocks(rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some columns at a time, in double precision."""
    for start in range(0, rows.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        yield part, rows[:, part].double()


def _centred(rows: Tensor, means: Tensor) -> Tensor:
    centred = torch.empty_like(rows)
    for part, block in _blocks(rows):
        centred[:, part] = (block - means[:, part, None]).float()
    return centred


def _products(rows: Tensor) -> Tensor:
    """Mean products of the samples with each other: (groups, n, n)."""
    gram = torch.zeros(len(rows), rows.shape[2], rows.shape[2], dtype=torch.float64)
    for _, block in _blocks(rows):
        gram += block.mT @ block
    return gram / rows.shape[2]


# Whitening -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Root:
    """A symmetric matrix (groups, F, F): `base`, or with `thin` base * identity - thin @ thin.T.

    Attributes:
        base: (groups, F, F); with `thin` (groups, 1, 1).
        thin: (groups, F, n), or None.
    """

    base: Tensor
    thin: Tensor | None = None

    def scaled(self, factor: Tensor) -> Root:
        """All times a factor (groups, 1, 1) of at least 0."""
        return Root(self.base * factor, None if self.thin is None else self.thin * factor.sqrt())

    def float(self) -> Root:
        """In single precision."""
        return Root(self.base.float(), None if self.thin is None else self.thin.float())

    def to(self, device: torch.device) -> Root:
        """On a device."""
        return Root(self.base.to(device), None if self.thin is None else self.thin.to(device))

    def after(self, rows: Tensor) -> Tensor:
        """Rows (groups, out, F) times the matrix."""
        if self.thin is None:
            return rows @ self.base
        return rows * self.base - (rows @ self.thin) @ self.thin.mT


def whitening(op: Conv2d | Linear, x: Tensor, weight: Tensor, damping: float) -> tuple[Root, Tensor]:
    """(C / size + damping)^(-1/2) for the covariance C of a layer's patches, and their mean variance, the size.

    The size has shape (groups, 1, 1). With u the centred patches of n samples, C = u u' / n has rank n at most, so the
    root is damping^(-1/2) less a product of that rank.
    """
    u = patches(op, x, weight)
    u = u - u.mean(2, keepdim=True)
    columns, count = u.shape[1:]
    if columns <= count:
        gram = (u @ u.mT).double() / count
        size = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(TINY)[:, None, None]
        values, vectors = torch.linalg.eigh(gram / size)
        return Root(vectors @ torch.diag_embed((values.clamp_min(0) + damping) ** -0.5) @ vectors.mT), size
    gram = _products(u)
    size = (gram.diagonal(dim1=1, dim2=2).sum(1) / columns).clamp_min(TINY)[:, None, None]
    values, vectors = torch.linalg.eigh(gram / size)
    damped = values.clamp_min(0) + damping
    # (damping^-1/2 - damped^-1/2) / values, in a form that is exact if values are 0.
    drop = 1 / (damped.sqrt() * damping**0.5 * (damped.sqrt() + damping**0.5))
    right = vectors * (drop / (count * size[:, :, 0])).sqrt()[:, None, :]
    thin = torch.cat([block @ right for _, block in _blocks(u)], 1)
    return Root(torch.full_like(size, damping**-0.5), thin), size
