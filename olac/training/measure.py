"""The ranges that the inputs of a network's polynomials should stay in."""

from __future__ import annotations

import torch

from olac.approximation.common import SWEPT, spread_out
from olac.approximation.reconstruct import BOUND, fitted_polynomials, sound_images
from olac.approximation.tails import expected_ranges
from olac.approximation.tensors import CHUNK, channels_last, run, tensors
from olac.errors import CalibrationError
from olac.ir.graph import Graph
from olac.ir.ops import Polynomial
from olac.polynomials.fit import TINY
from olac.training.network import Range

Tensor = torch.Tensor


def measured_ranges(original: Graph, approximated: Graph, images: Tensor) -> dict[str, Range | float]:
    """The ranges of the fitted polynomials by node id: those that clean values are expected to reach.

    For other polynomials, such as those of a max-pooling, only the bound of results in training.

    Args:
        original: with its activations; ids of activations are those of the polynomials.
        approximated: at stage POLYNOMIAL, before squares are folded.
        images: (n, *input shape).

    Raises:
        CalibrationError: the values of all images diverge.
    """
    clean, ours = tensors(original), tensors(approximated)
    images = channels_last(spread_out(images, SWEPT))
    polynomials = fitted_polynomials(original, approximated)
    degrees = {n.id: ours[n.op.coefficients].shape[1] - 1 for n in polynomials if isinstance(n.op, Polynomial)}
    names = frozenset(degrees)
    with torch.no_grad():
        sound = torch.cat([sound_images(approximated, ours, original, clean, part) for part in images.split(CHUNK)])
        if not len(sound):
            raise CalibrationError("the outputs of all inputs diverge. Begin with a higher degree.")
        reached = expected_ranges(original, clean, degrees, images)
        largest = dict.fromkeys(degrees, TINY)
        for part in sound.split(CHUNK):
            for name, value in run(approximated, ours, part, keep=names).items():
                if name in names:
                    largest[name] = max(largest[name], float(value.abs().max()))
        fixed = [n.id for n in original.nodes if isinstance(n.op, Polynomial)]
        typical = run(original, clean, sound[:CHUNK], keep=names | set(fixed))
    bounds: dict[str, Range | float] = {name: BOUND * max(float(typical[name].std()), TINY) for name in fixed}
    return bounds | {
        name: Range(middle - half, middle + half, BOUND * max(float(typical[name].std()), TINY), largest[name])
        for name, (middle, half) in reached.items()
    }
