"""How far the values of channels are expected to go in many more images than were seen."""

from __future__ import annotations

import math

import numpy as np
import torch

from olac.system.arrays import Array

Tensor = torch.Tensor

EXPECTED = 1e4
"""Ranges are padded to what is expected to be the furthest value in this many images."""
MOST_EXTREMES = 64
"""The largest values of this many images at most, and of a tenth of all, tell how far a channel goes."""
FURTHEST = 4.0
"""Ranges are padded to at most this many times what was seen."""
ALONE = 2.0
"""The padding if there is one image."""


def reach(x: Tensor, middle: Array, half: Array) -> Array:
    """How far a channel's values are expected to go in `EXPECTED` images, in half widths from the middle, (channels,).

    The largest value of each image is a sample of block maxima, whatever the number of places that an image has and
    however much they depend on each other. Beyond a high threshold their excess is taken as exponential (the
    generalised Pareto distribution of shape 0: peaks over threshold), of the mean that is seen plus its own deviation.
    """
    images = len(x)
    taken = min(MOST_EXTREMES, max(images // 10, min(4, images - 1)))
    flat = x.reshape(images, x.shape[1], -1)
    sides = torch.stack([flat.amax(2), -flat.amin(2)]).double()
    if taken < 1:
        return np.full(len(half), ALONE)
    top = sides.topk(taken + 1, 1).values
    threshold = top[:, taken]
    excess = (top[:, :taken] - threshold[:, None]).mean(1) * (1 + taken**-0.5)
    level = threshold + excess * math.log(EXPECTED * taken / images)
    centre, width = torch.from_numpy(middle), torch.from_numpy(half)
    found = torch.maximum(level[0] - centre, level[1] + centre) / width
    return np.asarray(found.clamp(1.0, FURTHEST).numpy())
