"""How far the values of channels are expected to go in many more images than were seen.

The largest value of each image is a sample of block maxima, whatever the number of places that an image has and however
much they depend on each other. So a channel that is seen in one place an image has as many samples as it has images.
The excess over a high threshold has a generalised Pareto distribution (peaks over threshold). Its size is a channel's
own, pulled towards what is usual in the layer as far as it is uncertain; its shape is the same for all channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from olac.system.arrays import Array

Tensor = torch.Tensor

EXPECTED = 1e4
"""Ranges are padded to what is expected to be the furthest value of all channels in this many images."""
MOST_EXTREMES = 64
"""The largest values of this many images at most, and of a tenth of all, tell how far a channel goes."""
FURTHEST = 4.0
"""Ranges are padded to at most this many times what was seen."""
ALONE = 2.0
"""The padding if there is one image."""
LEAST_SHAPE, MOST_SHAPE = -0.25, 0.35
"""Shapes of tails: 0 is exponential, less is lighter (normal: -0.15), more is heavier (Student's t of 5: 0.2)."""
USUAL_SHAPES = 0.15
"""The standard deviation of the shapes of tails about 0, before anything is seen."""


@dataclass(frozen=True)
class Extremes:
    """The tails of per-image maxima and of negated minima, first axis: (2, channels) each.

    Attributes:
        threshold: exceeded by a share of the images.
        excess: the mean excess of those, with a margin for its uncertainty.
        shape: of the generalised Pareto distribution, (2, 1).
        share: of the images whose maximum is beyond the threshold.
    """

    threshold: Tensor
    excess: Tensor
    shape: Tensor
    share: float

    @property
    def heavy(self) -> bool:
        """Whether the tails are heavier than exponential, so that a few values come from far beyond the others."""
        return bool((self.shape > 0).any())

    def level(self, images: float) -> Tensor:
        """What is expected to be the furthest value of one channel in this many images, (2, channels)."""
        times = math.log(max(1.0, images * self.share))
        grown = torch.where(self.shape.abs() < 1e-3, times, torch.expm1(times * self.shape) / self.shape)
        return self.threshold + self.excess * (1 - self.shape) * grown


def extremes(ends: Tensor) -> Extremes | None:
    """The tails of channels by the least and the largest value of each image, (images, channels, 2).

    None for one image.
    """
    images = len(ends)
    taken = min(MOST_EXTREMES, max(images // 10, min(4, images - 1)))
    if taken < 1:
        return None
    sides = torch.stack([ends[:, :, 1], -ends[:, :, 0]]).double()
    top = sides.topk(taken + 1, 1).values
    threshold = top[:, taken]
    above = top[:, :taken] - threshold[:, None]
    excess, margin = _pulled(above.mean(1), sides.std(1, correction=0), taken)
    return Extremes(threshold, excess * (1 + margin), _shape(above), taken / images)


def _pulled(excess: Tensor, deviation: Tensor, taken: int) -> tuple[Tensor, Tensor]:
    """Mean excesses, pulled towards those usual in the layer, and their relative standard deviations.

    The logarithm of a mean of `taken` exponential values has the variance 1 / taken. What varies more between channels
    is their own.
    """
    channels = excess.shape[1]
    varies = excess > 1e-9 * deviation.amax(1, keepdim=True)
    if channels < 2 or not varies.any():
        return excess, torch.full_like(excess, taken**-0.5)
    count = varies.sum(1, keepdim=True).clamp_min(1)
    ratio = (excess.clamp_min(1e-300) / deviation.clamp_min(1e-300)).log().where(varies, torch.zeros(()).double())
    usual = ratio.sum(1, keepdim=True) / count
    spread = (ratio - usual).square().where(varies, torch.zeros(()).double()).sum(1, keepdim=True)
    own = (spread / (count - 1).clamp_min(1) - 1 / taken).clamp_min(0)
    weight = torch.where(count > 1, own / (own + 1 / taken), torch.ones(()).double())
    pulled = (weight * ratio + (1 - weight) * usual).exp() * deviation
    return torch.where(varies, pulled, excess), ((weight + (1 - weight) / count) / taken).sqrt().expand_as(excess)


def _shape(above: Tensor) -> Tensor:
    """The shape of the tails of all channels of a side, (2, 1), by the second L-moment.

    It is pulled towards 0 as far as it is uncertain. Channels depend on each other, so they count as the root of their
    number.
    """
    taken = above.shape[1]
    mean = above.mean(1)
    rank = torch.arange(taken, dtype=torch.float64) / max(1, taken - 1)
    second = 2 * (above.sort(1).values * rank[None, :, None]).mean(1) - mean
    varies = mean > 1e-12 * above.abs().amax((1, 2))[:, None].clamp_min(1e-300)
    count = varies.sum(1, keepdim=True)
    share = (second / mean.clamp_min(1e-300)).where(varies, torch.zeros(()).double()).sum(1, keepdim=True) / count
    found = 2 - 1 / share.clamp_min(0.1)
    uncertain = 1 / (taken * count.clamp_min(1).double().sqrt())
    known = USUAL_SHAPES**2 / (USUAL_SHAPES**2 + uncertain)
    shape = torch.where(count > 0, known * found, torch.zeros(()).double()) if taken > 1 else torch.zeros_like(share)
    return shape.nan_to_num(0.0).clamp(LEAST_SHAPE, MOST_SHAPE)


def reach(tails: Extremes | None, middle: Array, half: Array, together: bool = True) -> Array:
    """How far a channel's values are expected to go, in half widths from the middle, shape (channels,).

    The furthest value is that of all channels in `EXPECTED` images: one channel that leaves its range is enough to make
    an image diverge. It is that of a single channel if not `together`.
    """
    centre, width = torch.from_numpy(middle), torch.from_numpy(half)
    if tails is None:
        found = torch.full_like(width, ALONE)
    else:
        level = tails.level(EXPECTED * 2 * len(half) if together else EXPECTED)
        found = torch.maximum(level[0] - centre, level[1] + centre) / width
    made: Array = found.clamp(1.0, FURTHEST).numpy()
    return made
