"""Least squares for the polynomials of a layer's channels, bounded where values are expected that were not seen.

The data are mixed with a small uniform floor over the padded range. A channel gets a larger floor if its polynomial
would be far off within the range that it is expected to reach: one value that is far off drives those of the next layer
out of their ranges, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from olac.approximation.tensors import chebyshev
from olac.ir.functions import Function
from olac.polynomials.fit import CHANNEL_RIDGE, FLOOR_POINTS, quadratic, widening
from olac.system.arrays import Array

Tensor = torch.Tensor

LIMIT, SHARE = 2.0, 1.0
"""See `Room`."""
COST = 2e-3
"""Floors grow as long as this share of the variance of the layer's values is not lost where the data are."""
LOW = 3
"""Floors stay as they are up to this degree: such polynomials grow slowly, and floors over wide ranges cost
much and bound little."""
LARGER, MOST_FLOOR = 3.0, 0.1
"""Floors grow by this factor as long as they are below this weight, so the last may be above it."""
FEW_CHANNELS = 64
"""Channels whose floors are computed together."""


@dataclass(frozen=True)
class Room:
    """How far off a layer's polynomials may be within the ranges that are expected.

    Attributes:
        deviation: of the layer's clean values; polynomials may be off by `LIMIT` times as much.
        share: they may be further off by this share of what the function itself exceeds the values that were seen by.
            With heavy tails it is 0: a few values come from far beyond the others, in many layers at once.
    """

    deviation: float
    share: float = SHARE

    @property
    def limit(self) -> float:
        """The part that is the same everywhere."""
        return LIMIT * self.deviation


class System:
    """The normal equations of the channels of one layer, in Chebyshev polynomials of (x - middle) / half.

    Args:
        functions: of each channel, or one for all.
        second, first: means of T_i T_j and of T_i y over the data, (channels, n, n) and (channels, n).
        middle, half, padding: the range of each channel, which is padded by this factor.
    """

    def __init__(
        self, functions: Sequence[Function], second: Tensor, first: Tensor, middle: Array, half: Array, padding: Array
    ) -> None:
        self._second, self._first = second, first
        self._middle, self._half, self._padding = middle, half, torch.from_numpy(padding)
        self._functions, self._degree = functions, second.shape[1] - 1
        self._spread_second, self._spread_first = torch.empty_like(second), torch.empty_like(first)
        for part in self._parts():
            basis, target = self._points(part, self._padding[part])
            self._spread_second[part] = basis @ basis.mT / FLOOR_POINTS
            self._spread_first[part] = (basis @ target[:, :, None])[:, :, 0] / FLOOR_POINTS

    def _parts(self) -> list[slice]:
        return [slice(start, start + FEW_CHANNELS) for start in range(0, len(self._first), FEW_CHANNELS)]

    def _points(self, part: slice, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Polynomials (channels, n, points) and the functions' values (channels, points) over ranges of some widths."""
        t = widths[:, None] * torch.linspace(-1, 1, FLOOR_POINTS, dtype=torch.float64)
        return torch.stack(chebyshev(t, self._degree), 1), self._values(part, t)

    def _values(self, part: slice, t: Tensor) -> Tensor:
        points = self._middle[part, None] + self._half[part, None] * t.numpy()
        if len(self._functions) == 1:
            return torch.from_numpy(np.asarray(self._functions[0](points)))
        return torch.from_numpy(np.stack([f(x) for f, x in zip(self._functions[part], points, strict=True)]))

    def solve(self, floors: Tensor, half_width: float, largest: float) -> Tensor:
        """Coefficients (channels, n) on x / half_width for the floor of each channel."""
        mapping = torch.from_numpy(widening(self._middle, self._half, half_width, self._degree))
        system = (1 - floors)[:, None, None] * self._second + floors[:, None, None] * self._spread_second
        right = (1 - floors)[:, None] * self._first + floors[:, None] * self._spread_first
        if self._degree == 2:
            inverse = torch.linalg.inv(mapping)
            squares = inverse.mT @ system @ inverse + CHANNEL_RIDGE * torch.eye(3, dtype=torch.float64)
            products = (inverse.mT @ right[:, :, None])[:, :, 0]
            parts = zip(squares.numpy(), products.numpy(), strict=True)
            return torch.from_numpy(np.array([quadratic(a, b, largest) for a, b in parts]))
        rows = torch.linalg.solve(system + CHANNEL_RIDGE * mapping.mT @ mapping, right)
        made: Tensor = (mapping @ rows[:, :, None])[:, :, 0]
        return made

    def bounded(self, floor: float, beyond: Array, half_width: float, largest: float, room: Room) -> Tensor:
        """As `solve`, with larger floors where polynomials would be further off than they should within `beyond`."""
        floors = torch.full((len(self._first),), floor, dtype=torch.float64)
        first = made = self.solve(floors, half_width, largest)
        if self._degree <= LOW:
            return made.float()
        inverse = torch.linalg.inv(torch.from_numpy(widening(self._middle, self._half, half_width, self._degree)))
        open_ = torch.ones(len(floors), dtype=torch.bool)
        while True:
            rows = inverse @ made[:, :, None]
            open_ &= torch.cat([self._far(part, rows[part], beyond[part], room) for part in self._parts()])
            open_ &= floors < MOST_FLOOR
            if not open_.any():
                return made.float()
            floors = torch.where(open_, LARGER * floors, floors)
            tried = self.solve(floors, half_width, largest)
            step = inverse @ (tried - first)[:, :, None]
            open_ &= (step.mT @ self._second @ step)[:, 0, 0] <= COST * room.deviation**2
            made = torch.where(open_[:, None], tried, made)

    def _far(self, part: slice, rows: Tensor, beyond: Array, room: Room) -> Tensor:
        """Which channels' polynomials are further off than they should be."""
        widths = torch.from_numpy(beyond)
        basis, target = self._points(part, widths)
        seen = (
            self._values(part, torch.linspace(-1, 1, FLOOR_POINTS, dtype=torch.float64).expand(len(widths), -1))
            .abs()
            .amax(1)
        )
        exceeds = (target.abs() - seen[:, None]).clamp_min(0)
        allowed = room.limit + room.share * torch.maximum(exceeds, exceeds.flip(1))
        far: Tensor = (((rows.mT @ basis)[:, 0] - target).abs() > allowed).any(1)
        return far
