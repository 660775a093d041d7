"""The agreement of a plan, from the errors of its outputs on a few dozen held-out images."""

from __future__ import annotations

import math

import torch

from olac.approximation.common import WORST, image_errors
from olac.approximation.criterion import Spread

Tensor = torch.Tensor

PAIRINGS = 8
"""How many images' errors each image's outputs are combined with."""

REFITTED, SLOPE, FIRST_VISITS = 0.80, 0.12, 1000
"""The power of the error that is left: without reconstruction, and how much it falls for each tenfold of images above
`FIRST_VISITS` that passes take. Powers that were measured, with 896 images for fits, by errors on 4,000 that decided
nothing: ResNet-8 at degree 3 0.86, 0.81 and 0.69 after 0, 4 and 16 passes (with 3,584 images 0.61 after 6), and 0.74
after 16 for a plan of half the error; after 4 passes, ResNet-20 at degree 3 0.53 and for a plan of 30 levels 0.89, the
small ConvNeXt at degree 3 0.37.
"""
LEAST_POWER = 0.4


def with_errors(outputs: Tensor, clean: Tensor, others: Tensor, spread: Spread, shrunk: float = 1.0) -> Tensor:
    """Outputs of other images with the errors that some images have: shape (`PAIRINGS` x m, *output shape).

    A few dozen images tell how large errors are, but hardly the share of images that disagree: one of 64 images is
    1.6 %. How near the outputs of images are to another decision is known of all images, without a fit. So the error of
    each image is added to the clean outputs of many others. Errors follow the outputs to some degree, because
    approximations flatten them: outputs are a multiple of the clean ones, by least squares, and the rest of the error
    is what is added.

    Args:
        outputs: of an approximated graph, (n, *output shape).
        clean: of the original graph for the same images.
        others: of the original graph for any images of the same kind, (m, *output shape).
        spread: how errors of outputs are scaled.
        shrunk: errors are multiplied by this.
    """
    near = image_errors(outputs, clean, spread) <= WORST  # an image that diverges decides only for itself
    middle, offset, slope = clean.mean(0), torch.zeros_like(clean[0]), 0.0
    errors = outputs - clean
    if near.sum() > 1:
        middle, offset = clean[near].mean(0), errors[near].mean(0)
        across = clean[near] - middle
        slope = float((across * (errors[near] - offset)).sum() / across.square().sum().clamp_min(1e-30))
    rest = errors - offset - slope * (clean - middle)
    chosen = torch.randint(len(rest), (PAIRINGS * len(others),), generator=torch.Generator().manual_seed(0))
    repeated = others.repeat(PAIRINGS, *(1,) * (others.ndim - 1))
    return repeated + shrunk * (offset + slope * (repeated - middle) + rest[chosen])


def after_fit(error: float, visits: int, enough: float) -> float:
    """The error of the outputs that is expected after the whole fit.

    Reconstruction gains the more, the larger the error is and the more images its passes take in all, and nothing if
    the error is small: what is left of it, in units of `enough`, is a power of the error of the quick fit.

    Args:
        error: of the outputs after the quick fit, in units of their variance.
        visits: images that all passes of reconstruction take, each counted as often as it is taken.
        enough: the error that reconstruction leaves alone.
    """
    if not error > enough:
        return error
    power = REFITTED - SLOPE * max(0.0, math.log10(max(1, visits) / FIRST_VISITS))
    return float(enough * (min(error, WORST) / enough) ** max(LEAST_POWER, power))
