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
        slots: slots that one image has in a ciphertext, a power of two.
        batch: images that share a ciphertext, a power of two; each has a *lane*: its slot s is the ciphertext's slot
            s * batch + b for image b. So a rotation of the ciphertext by k * batch rotates each image by k within its
            own slots, and what is computed does not depend on the batch (see `olac.kernels.lanes`). All other
            attributes and properties are of one image.
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
        if self.batch < 1 or self.batch & (self.batch - 1):
            raise ValueError(f"a batch of {self.batch} images is not a power of two")
        if self.step:
            if self.ciphertexts > 1 or 2 * self.period > self.slots:
                raise ValueError(f"only copies can be shifted: {self.period} slots of {self.slots}")
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
    def ciphertext_slots(self) -> int:
        """Slots of a ciphertext, over all images of a batch."""
        return self.slots * self.batch

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts that hold the value."""
        return max(1, -(-self.extent // self.slots))

    @property
    def period(self) -> int:
        """Slots from one copy to the next; `slots` if there is only one."""
        return min(self.slots, next_power_of_two(self.extent))

    @property
    def distinct_copies(self) -> int:
        """Copies with shifts of their own, 1 if no copy is shifted. Content repeats after this number of periods."""
        return min(self.slots // self.period, self.period // self.step) if self.step else 1

    @property
    def repeats_after(self) -> int:
        """Slots of an image after which its content repeats; `slots` if it does not."""
        return self.period * self.distinct_copies

    @property
    def ciphertext_repeats_after(self) -> int:
        """Slots after which the content of a ciphertext repeats, with all images; `ciphertext_slots` if it does not."""
        return self.repeats_after * self.batch

    @property
    def steps(self) -> tuple[int, int]:
        """Slots from one row of a channel to the next, and from one column to the next."""
        return self.gap * self.padded[1], self.gap

    @property
    def channel_addresses(self) -> Index:
        """For each channel of the grid: ciphertext * slots + slot of its first element."""
        channel, k = np.arange(self.grid[0]), self.gap
        page, inner = channel // (k * k), channel % (k * k)
        first: Index = page * self.plane + inner // k * self.padded[1] + inner % k
        return first

    @property
    def addresses(self) -> Index:
        """For each element in row-major order: ciphertext * slots + slot."""
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
        """The element in each slot of one period, shape (ciphertexts, period), -1 for none.

        Of the first copy, if copies are shifted.
        """
        return _owners(replace(self, shape=(math.prod(self.grid),), batch=1, step=0))

    def _made_owners(self) -> Order:
        size, found = math.prod(self.grid), np.full(self.ciphertexts * self.slots, -1, dtype=np.int32)
        found[self.addresses] = np.arange(size)
        owners: Order = found.reshape(self.ciphertexts, self.slots)[:, : self.period].copy()
        owners.setflags(write=False)
        return owners

    def expand_channels(self, values: Array, page: int) -> Array:
        """Numbers of each channel, shape (channels or 1, n), in an image's slots of one ciphertext: shape (n, slots).

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
        """Put one number per element, shape `self.shape`, into an image's slots: (ciphertexts, slots), zero elsewhere.

        All copies get the same numbers.
        """
        out: Array = np.zeros(self.ciphertexts * self.slots)
        out[self.addresses] = np.broadcast_to(values, self.shape).reshape(-1)
        if self.period < self.slots:
            copy = out[: self.period]
            shifted = np.concatenate([np.roll(copy, -c * self.step) for c in range(self.distinct_copies)])
            out = np.tile(shifted, self.slots // len(shifted))
        return out.reshape(self.ciphertexts, self.slots)

    def pack(self, images: Array) -> Array:
        """The slots of all ciphertexts, shape (ciphertexts, ciphertext slots), for images of shape (batch, *shape)."""
        if images.shape != (self.batch, *self.shape):
            raise ValueError(f"expected images of shape {(self.batch, *self.shape)}, got {images.shape}")
        lanes: Array = np.stack([self.expand(image) for image in images], axis=-1)
        return lanes.reshape(self.ciphertexts, self.ciphertext_slots)

    def unpack(self, slots: Array) -> Array:
        """The inverse of `pack`: images of shape (batch, *shape)."""
        lanes = np.asarray(slots).reshape(self.ciphertexts * self.slots, self.batch)
        return np.ascontiguousarray(lanes[self.addresses].T).reshape(self.batch, *self.shape)

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
