"""Where each element of a tensor lies in the slots of its ciphertexts.

A tensor of shape (c, h, w) is packed with a *gap* k: k^2 channels interleave in one plane (multiplexed packing, Lee et
al., "Low-Complexity Deep Convolutional Neural Networks on Fully Homomorphic Encryption Using Multiplexed Parallel
Convolutions", ICML 2022). Strides and pooling make the gap larger, so nothing is ever repacked for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from olac.system.arrays import Array, Index, Order


def next_power_of_two(n: int) -> int:
    """The least power of two that is at least `n` (1 for n <= 1)."""
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class TensorLayout:
    """A bijection from the elements of a tensor to slots.

    Attributes:
        shape: the logical shape without the batch axis, (f,) or (c, h, w).
        grid: the shape (c, h, w) under which the tensor was packed; it has as many elements as `shape` and differs
            from it after a flatten or reshape, which moves nothing.
        padded: height and width of a plane in slots, at least gap*h and gap*w.
        gap: k; neighbours in space lie k slots apart and k^2 channels share a plane.
        plane: slots from one plane to the next, at least padded[0] * padded[1].
        slots: slots of one ciphertext, a power of two.
        batch: images that share the slots; image b lies `image_stride` slots after image b - 1.
        step: 0 if the copies of a small tensor are all the same. Otherwise a power of two: copy c is rotated by
            c * step, so its slot i holds the same as slot (i + c * step) mod period of copy 0.
    """

    shape: tuple[int, ...]
    grid: tuple[int, int, int]
    padded: tuple[int, int]
    gap: int
    plane: int
    slots: int
    batch: int = 1
    step: int = 0

    def __post_init__(self) -> None:
        c, h, w = self.grid
        if math.prod(self.shape) != c * h * w:
            raise ValueError(f"shape {self.shape} and grid {self.grid} differ in size")
        if self.gap < 1 or self.padded[0] < (h - 1) * self.gap + 1 or self.padded[1] < (w - 1) * self.gap + 1:
            raise ValueError(f"a grid of {self.grid} with gap {self.gap} does not fit in planes of {self.padded}")
        if self.gap > 1 and (self.padded[0] < h * self.gap or self.padded[1] < w * self.gap):
            raise ValueError(f"gap {self.gap} needs whole cells: {self.grid} in {self.padded}")
        if self.plane < self.padded[0] * self.padded[1]:
            raise ValueError(f"planes of {self.padded} overlap at a distance of {self.plane}")
        if self.slots < 1 or self.slots & (self.slots - 1):
            raise ValueError(f"{self.slots} slots is not a power of two")
        if self.batch > 1 and self.batch * self.image_stride > self.slots:
            raise ValueError(f"{self.batch} images of {self.image_stride} slots do not fit in {self.slots} slots")
        if self.step:
            if self.batch > 1 or self.ciphertexts > 1 or 2 * self.period > self.slots:
                raise ValueError(f"only copies can be shifted: {self.period} slots of {self.slots}, batch {self.batch}")
            if not 0 < self.step < self.period or self.step & (self.step - 1):
                raise ValueError(f"a step of {self.step} is not a power of two below the period {self.period}")

    @staticmethod
    def dense(shape: tuple[int, ...], slots: int, batch: int = 1) -> TensorLayout:
        """Row-major planes with gap 1: the layout of fresh inputs and of the outputs of linear layers."""
        return TensorLayout.multiplexed(shape, (1, 1), 1, slots, batch)

    @staticmethod
    def multiplexed(
        shape: tuple[int, ...], padded: tuple[int, int], gap: int, slots: int, batch: int = 1
    ) -> TensorLayout:
        """A layout with the given gap in planes of at least `padded` slots.

        Planes are a power of two apart if that takes no more ciphertexts: differences of channels then wrap around and
        share diagonals.
        """
        grid = (shape[0], 1, 1) if len(shape) == 1 else (math.prod(shape[:-2]), shape[-2], shape[-1])
        base = (max(padded[0], gap * grid[1]), max(padded[1], gap * grid[2]))
        area = base[0] * base[1]
        pages = -(-grid[0] // (gap * gap))
        aligned = next_power_of_two(area)
        if pages == 1 or -(-pages * aligned // slots) > max(1, -(-pages * area // slots)):
            aligned = area
        return TensorLayout(shape, grid, base, gap, aligned, slots, batch)

    def reshaped(self, shape: tuple[int, ...]) -> TensorLayout:
        """The same slots under another logical shape (row-major order of elements is kept)."""
        return replace(self, shape=shape)

    def with_step(self, step: int) -> TensorLayout:
        """The same layout with its copies shifted by another step."""
        return replace(self, step=step)

    @property
    def pages(self) -> int:
        """Planes that the tensor takes."""
        return -(-self.grid[0] // (self.gap * self.gap))

    @property
    def extent(self) -> int:
        """Slots of one image, over all its ciphertexts, from the first to the last."""
        return (self.pages - 1) * self.plane + self.padded[0] * self.padded[1]

    @property
    def image_stride(self) -> int:
        """Slots from one image of a batch to the next; a power of two."""
        return next_power_of_two(self.extent)

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts that hold the value."""
        return max(1, -(-self.extent // self.slots))

    @property
    def period(self) -> int:
        """Slots from one copy to the next; `slots` if there is only one."""
        return self.slots if self.batch > 1 else min(self.slots, self.image_stride)

    @property
    def distinct_copies(self) -> int:
        """Copies with shifts of their own, 1 if no copy is shifted. Content repeats after this number of periods."""
        return min(self.slots // self.period, self.period // self.step) if self.step else 1

    @property
    def repeats_after(self) -> int:
        """Slots after which the content of a ciphertext repeats; `slots` if it does not."""
        return self.period * self.distinct_copies

    @property
    def steps(self) -> tuple[int, int]:
        """Slots from one row of a channel to the next, and from one column to the next."""
        return self.gap * self.padded[1], self.gap

    @property
    def channel_addresses(self) -> Index:
        """For each channel of the grid: ciphertext * slots + slot of its first element, for the first image."""
        channel, k = np.arange(self.grid[0]), self.gap
        page, inner = channel // (k * k), channel % (k * k)
        first: Index = page * self.plane + inner // k * self.padded[1] + inner % k
        return first

    @property
    def addresses(self) -> Index:
        """For each element in row-major order: ciphertext * slots + slot, for the first image of the batch."""
        return _addresses(replace(self, shape=(math.prod(self.grid),), batch=1, step=0))

    def _made_addresses(self) -> Index:
        _, h, w = self.grid
        down, right = self.steps
        channels = self.channel_addresses[:, None, None]
        flat: Index = (channels + down * np.arange(h)[:, None] + right * np.arange(w)).reshape(-1).astype(np.int64)
        flat.setflags(write=False)
        return flat

    @property
    def owners(self) -> Order:
        """The element in each slot of one period, shape (ciphertexts, period): image * size + element, -1 for none.

        Of the first copy, if copies are shifted.
        """
        return _owners(replace(self, shape=(math.prod(self.grid),), step=0))

    def _made_owners(self) -> Order:
        size, found = math.prod(self.grid), np.full(self.ciphertexts * self.slots, -1, dtype=np.int32)
        for image in range(self.batch):
            found[self.addresses + image * self.image_stride] = image * size + np.arange(size)
        owners: Order = found.reshape(self.ciphertexts, self.slots)[:, : self.period].copy()
        owners.setflags(write=False)
        return owners

    def expand_channels(self, values: Array, page: int) -> Array:
        """Numbers of each channel, shape (channels or 1, n), in the slots of one ciphertext: shape (n, slots).

        They are those that `expand` gives for all elements of a channel, without the other ciphertexts.
        """
        owners = self.owners[page]
        held = owners >= 0
        size = math.prod(self.shape)
        channels = owners[held] % size // (size // self.shape[0]) if len(values) > 1 else np.zeros(1, dtype=np.int64)
        out: Array = np.zeros((values.shape[1], len(owners)))
        out[:, held] = values[channels].T
        if self.step:
            out = np.concatenate([np.roll(out, -c * self.step, axis=1) for c in range(self.distinct_copies)], axis=1)
        return np.tile(out, self.slots // out.shape[1])

    def expand(self, values: Array) -> Array:
        """Put one number per element, shape `self.shape`, into slots: shape (ciphertexts, slots), zero elsewhere.

        All images of a batch and all copies get the same numbers.
        """
        return self.pack(np.broadcast_to(values, (self.batch, *self.shape)))

    def pack(self, images: Array) -> Array:
        """Slots of shape (ciphertexts, slots) for images of shape (batch, *shape); copies fill the ciphertext."""
        if images.shape != (self.batch, *self.shape):
            raise ValueError(f"expected images of shape {(self.batch, *self.shape)}, got {images.shape}")
        out: Array = np.zeros(self.ciphertexts * self.slots)
        for b in range(self.batch):
            out[self.addresses + b * self.image_stride] = images[b].reshape(-1)
        if self.period < self.slots:
            copy = out[: self.period]
            shifted = np.concatenate([np.roll(copy, -c * self.step) for c in range(self.distinct_copies)])
            out = np.tile(shifted, self.slots // len(shifted))
        return out.reshape(self.ciphertexts, self.slots)

    def unpack(self, slots: Array) -> Array:
        """The inverse of `pack`: images of shape (batch, *shape) from slots of shape (ciphertexts, slots)."""
        flat = np.asarray(slots).reshape(-1)
        images = [flat[self.addresses + b * self.image_stride] for b in range(self.batch)]
        return np.stack(images).reshape(self.batch, *self.shape)

    def __str__(self) -> str:
        copies = self.slots // self.period
        return (
            f"{'x'.join(map(str, self.shape))} gap {self.gap} plane {self.plane} "
            f"in {self.ciphertexts} x {self.slots} slots"
            + (f", {copies} copies" if copies > 1 else "")
            + (f" shifted by {self.step}" if self.step else "")
            + (f", batch {self.batch}" if self.batch > 1 else "")
        )


@lru_cache(maxsize=16)
def _addresses(layout: TensorLayout) -> Index:
    """Layouts that differ in less than their addresses share these; of large tensors, not all can be kept."""
    return layout._made_addresses()


@lru_cache(maxsize=16)
def _owners(layout: TensorLayout) -> Order:
    return layout._made_owners()
