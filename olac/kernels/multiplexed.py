"""Multiplexed parallel convolution: rotations of the operand, sums over its channels, one mask per channel; two levels.

Lee, Lee, Lee, Kim, Kim, No and Choi, "Low-Complexity Deep Convolutional Neural Networks on Fully Homomorphic Encryption
Using Multiplexed Parallel Convolutions", ICML 2022 (arXiv 2112.05907), for stride and gap of any size:

1. The operand is rotated once for each element of the filter that moves it; all rotations are hoisted.
2. p copies of the operand serve p output channels at once. Each such group of output channels has a product with each
   rotation: in copy j the plaintext holds the weights of the group's channel j for every input channel, at the slots of
   the pixels that the stride keeps, and zero where the filter reaches into the padding. The products are summed.
3. Rotations sum over the input channels: over the columns and rows of the gap's cells, and over planes. Sums over m of
   these take floor(log2 m) + popcount(m) - 1 rotations.
4. A rotation, from one hoisted decomposition per group, moves each output channel to its place in the result's layout.
   A mask selects its pixels there, which is the second level, and all are added. Rotations fill the result's copies.

Unlike in the paper, batch normalisation is already in the weights, so masks hold ones. As rotations fill all copies of
the result, a channel may lie in any of them, and its rotation step is taken modulo the result's period.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from olac.backends.base import Array, Ciphertext, Evaluator
from olac.errors import VerificationError
from olac.ir.layout import TensorLayout, next_power_of_two
from olac.ir.lowerings import Multiplexed
from olac.ir.ops import Constants, Conv2d
from olac.kernels.base import Kernel, Value, add_slots, fold, sum_of_products
from olac.kernels.linear import halvings
from olac.system.arrays import Index

Sum = tuple[int, int]
"""A sum of slots: their number and their distance."""


@dataclass(frozen=True)
class _Tap:
    """An element of the filter: its row and column, and the rows and columns of the outputs whose pixel it reads."""

    row: int
    column: int
    rows: Index
    columns: Index


@dataclass(frozen=True)
class _Group:
    """Output channels that are computed at once.

    Attributes:
        first: the first of its channels; channel first + j is computed in copy j.
        products: for each rotation step of the operand, the filter's elements that it serves.
        places: for each rotation step of the sums, the slots that the mask selects after it.
    """

    first: int
    products: dict[int, list[_Tap]]
    places: dict[int, Index]


class MultiplexedKernel(Kernel):
    """A convolution between two layouts.

    Args:
        op, constants: the convolution and its arrays.
        operand, result: layouts between which `Multiplexed` can lower it.

    Raises:
        VerificationError: other layouts.
    """

    depth = 2

    def __init__(self, op: Conv2d, constants: Constants, operand: TensorLayout, result: TensorLayout) -> None:
        if not Multiplexed().can_lower(op, operand, result):
            raise VerificationError(f"{op.name} can't be multiplexed from {operand} to {result}")
        self._operand = operand
        self._weight = constants[op.weight]
        _, rows, columns = result.grid
        c, height, width = operand.grid
        self._parallel = operand.slots // operand.period
        self._channels = operand.addresses.reshape(c, height, width)[:, 0, 0]
        self._pixels: Index = operand.gap * (
            operand.padded[1] * op.stride[0] * np.arange(rows)[:, None] + op.stride[1] * np.arange(columns)
        )
        """Slot of each output within the first plane of a copy."""
        self._sums = _channel_sums(operand)
        taps = _taps(op, self._weight.shape[2:], operand, result)
        self._groups = [
            _Group(first, self._nonzero(taps, first), self._places(result, first))
            for first in range(0, result.grid[0], self._parallel)
        ]
        self._fills = halvings(result.slots, result.period)
        """Rotations that put the sum of all copies into each copy."""
        bias = np.zeros(1) if op.bias is None else constants[op.bias]
        self._bias = result.expand(np.broadcast_to(bias[:, None, None], result.shape))[0] if np.any(bias) else None

    @property
    def held(self) -> int:
        """Rotations of the operand for the filter's elements, of a sum for the channels of a group, and sums."""
        return math.prod(self._weight.shape[2:]) + min(self._parallel, len(self._weight)) + 3

    def run(self, evaluator: Evaluator[Any, Any], operands: Sequence[Value]) -> Value:
        ((x,),) = operands
        level = x.state.level
        if level < self.depth:
            raise VerificationError(f"a multiplexed convolution takes {self.depth} levels, {level} are left")
        parameters = evaluator.parameters
        # The scales of plaintexts make the scale of each rescaled sum exactly the canonical one.
        scales = [parameters.scale(level - 1), parameters.scale(level - 2)]
        of_weights = scales[0] * parameters.primes[level] / x.state.scale
        of_masks = scales[1] * parameters.primes[level - 1] / scales[0]
        needed = {step for group in self._groups for step in group.products}
        rotated = evaluator.rotate_hoisted(x, sorted(needed))

        def one(group: _Group) -> Ciphertext[Any]:
            terms = (
                (rotated[step], evaluator.encode(self._weights(group.first, taps), level, of_weights))
                for step, taps in group.products.items()
            )
            partial = sum_of_products(evaluator, terms)
            for count, distance in self._sums:
                # At noise degree 2: the noise of these key switches vanishes in the rescale.
                partial = _sum_slots(evaluator, partial, count, distance)
            summed = evaluator.rescale(partial)
            placed = evaluator.rotate_hoisted(summed, sorted(group.places))
            masked = (
                (placed[step], evaluator.encode(self._mask(slots), level - 1, of_masks))
                for step, slots in group.places.items()
            )
            return sum_of_products(evaluator, masked)

        total = functools.reduce(evaluator.add, evaluator.each(one, self._groups))
        result = evaluator.rescale(fold(evaluator, total, self._fills))
        return (result if self._bias is None else add_slots(evaluator, result, self._bias),)

    def _nonzero(self, taps: dict[int, list[_Tap]], first: int) -> dict[int, list[_Tap]]:
        """The filter's elements without those that are zero in all channels of a group; at least one is kept."""
        weight = self._weight[first : first + self._parallel]
        found = {
            step: [tap for tap in some if np.any(weight[:, :, tap.row, tap.column])] for step, some in taps.items()
        }
        return {step: some for step, some in found.items() if some} or dict(list(taps.items())[:1]) or {0: []}

    def _places(self, result: TensorLayout, first: int) -> dict[int, Index]:
        """For each rotation step of a group's sums, the slots of the output channels that it puts in their places."""
        addresses = result.addresses.reshape(result.grid)
        last = min(first + self._parallel, result.grid[0])
        places: dict[int, list[Index]] = {}
        for copy, channel in enumerate(range(first, last)):
            source = copy * self._operand.period
            step = int(source - addresses[channel, 0, 0]) % result.period
            slots: Index = (source + self._pixels - step) % result.slots
            places.setdefault(step, []).append(slots.reshape(-1))
        return {step: np.concatenate(parts) for step, parts in places.items()}

    def _weights(self, first: int, taps: Sequence[_Tap]) -> Callable[[], Array]:
        def make() -> Array:
            weight = self._weight[first : first + self._parallel]
            copies: Array = np.zeros((self._parallel, self._operand.period))
            for tap in taps:
                pixels = self._pixels[np.ix_(tap.rows, tap.columns)].reshape(-1)
                slots = self._channels[:, None] + pixels
                copies[: len(weight), slots] = weight[:, :, tap.row, tap.column, None]
            return copies.reshape(-1)

        return make

    def _mask(self, slots: Index) -> Callable[[], Array]:
        def make() -> Array:
            mask: Array = np.zeros(self._operand.slots)
            mask[slots] = 1.0
            return mask

        return make


def _taps(op: Conv2d, size: Sequence[int], operand: TensorLayout, result: TensorLayout) -> dict[int, list[_Tap]]:
    """By rotation step of the operand: the filter's elements that read at least one pixel.

    In narrow planes two of them may share a step: no slot reads the operand for both.
    """
    found: dict[int, list[_Tap]] = {}
    for row in range(size[0]):
        down = row * op.dilation[0] - op.padding[0]
        rows = _inside(result.grid[1], op.stride[0], down, operand.grid[1])
        for column in range(size[1]):
            right = column * op.dilation[1] - op.padding[2]
            columns = _inside(result.grid[2], op.stride[1], right, operand.grid[2])
            if len(rows) and len(columns):
                step = operand.gap * (operand.padded[1] * down + right) % operand.slots
                found.setdefault(step, []).append(_Tap(row, column, rows, columns))
    return found


def _inside(count: int, stride: int, offset: int, size: int) -> Index:
    """Outputs, along one axis, for which the pixel at an offset is not padding."""
    pixel = stride * np.arange(count) + offset
    return np.flatnonzero((pixel >= 0) & (pixel < size))


def _channel_sums(operand: TensorLayout) -> list[Sum]:
    """The sums over all channels: of columns and rows of the gap's cells, and of planes.

    Products are zero in slots without a channel, so each sum is extended to a power of two if there is room.
    """
    channels, gap = operand.grid[0], operand.gap
    columns, rows = min(channels, gap), min(-(-channels // gap), gap)
    pages = next_power_of_two(operand.pages)
    if (pages - 1) * operand.plane + operand.padded[0] * operand.padded[1] > operand.period:
        pages = operand.pages
    sums = [
        (min(next_power_of_two(columns), gap), 1),
        (min(next_power_of_two(rows), gap), operand.padded[1]),
        (pages, operand.plane),
    ]
    return [(count, distance) for count, distance in sums if count > 1]


def _sum_slots(evaluator: Evaluator[Any, Any], x: Ciphertext[Any], count: int, distance: int) -> Ciphertext[Any]:
    """Slot i becomes the sum of slots i, i + distance, ..., of `count` slots."""
    powers = {1: x}
    size = 1
    while 2 * size <= count:
        powers[2 * size] = evaluator.rotate_sum([(powers[size], 0), (powers[size], size * distance)])
        size *= 2
    total, at = powers[size], size
    for bit in sorted(powers, reverse=True):
        if bit != size and count & bit:
            total = evaluator.rotate_sum([(total, 0), (powers[bit], at * distance)])
            at += bit
    return total
