"""Errors of outputs, images that are changed for fits, and how many images fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import networkx as nx
import torch
from torch.nn import functional

from olac.approximation.criterion import Spread
from olac.ir.graph import Graph, Node, last_reads

Tensor = torch.Tensor
Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""Makes images of the same shape, as unseen ones may be, from images (n, *input shape)."""

MOST_CONTRAST = 1.6
"""The largest factor by which stressed images are moved away."""
LEAST_VARIANCE = 1e-6
"""The least variance of one output, as a share of the variance of all."""
MEMORY = 3e9
"""Bytes that the values of all images may take during a sweep; fewer images are used if they would take more."""
SHARE = 1 / 3
"""Share of the limit of the whole process that these values may take."""
SWEPT = 1024
"""Most images of a sweep; reconstruction takes all."""
DIVERGED = 5.0
"""Outputs count as diverged if they are off by this many standard deviations."""
SHIFTED = 16
"""Smaller pictures are not shifted."""
WORST = 10.0
"""The error of an image counts as at most this, in units of the outputs' variance."""


def output_error(outputs: Tensor, clean: Tensor, spread: Spread = "together") -> float:
    """Mean squared change of the outputs, in units of their variance; finite for any outputs."""
    each = image_errors(outputs, clean, spread)
    return float(torch.nan_to_num(each, nan=WORST, posinf=WORST).clamp_max(WORST).mean())


def diverged(outputs: Tensor, clean: Tensor, spread: Spread = "together") -> Tensor:
    """Which images' outputs are off by more than `DIVERGED` standard deviations, or aren't finite: shape (n,)."""
    return ~(image_errors(outputs, clean, spread) <= DIVERGED**2)


def varied(images: Tensor, random: torch.Generator) -> Tensor:
    """Images as unseen ones may be, if nothing is known of them: pictures are mirrored and shifted."""
    return shifted(mirrored(images, random), random)


def altered(images: Tensor, copies: int, seed: int, augment: Augment = varied) -> Tensor:
    """Copies of images as unseen ones may be: augmented, half of them stressed. All are copied as often."""
    random = torch.Generator().manual_seed(seed)
    chosen = images[torch.arange(copies) % len(images)]
    return stressed(augment(chosen, random), random, 0.5)


def image_errors(outputs: Tensor, clean: Tensor, spread: Spread) -> Tensor:
    """For each image the mean squared change of its outputs, shape (n,), scaled as the criterion says."""
    ours, theirs = outputs.flatten(1), clean.flatten(1)
    if spread == "direction":
        ours, theirs = functional.normalize(ours), functional.normalize(theirs)
    return ((ours - theirs).square() / output_sizes(theirs, spread)).mean(1)


def output_sizes(clean: Tensor, spread: Spread) -> Tensor:
    """The divisor of squared changes of outputs: a scalar, or (1, outputs) for outputs of shape (n, outputs)."""
    together = clean.var(correction=0).clamp_min(1e-12)
    if spread != "each":
        return together
    # An output that hardly varies counts as if it varied a little.
    return torch.maximum(clean.var(0, correction=0, keepdim=True), LEAST_VARIANCE * together)


def mirrored(images: Tensor, random: torch.Generator) -> Tensor:
    """Pictures, of shape (n, c, h, w), of which a random half is mirrored; inputs of other shapes as they are.

    The clean network gives the outputs of mirrored pictures, so they need no labels.
    """
    if images.ndim != 4:
        return images
    chosen = torch.rand((len(images), 1, 1, 1), generator=random) < 0.5
    return torch.where(chosen, images.flip(3), images)


def shifted(images: Tensor, random: torch.Generator) -> Tensor:
    """Pictures of at least `SHIFTED` pixels a side, each moved by up to an eighth of it; others as they are.

    What is not known at an edge repeats the edge's own pixels.
    """
    if images.ndim != 4 or min(images.shape[2:]) < SHIFTED:
        return images
    height, width = images.shape[2:]
    down, right = height // 8, width // 8
    wide = functional.pad(images, (right, right, down, down), mode="replicate")
    tops = torch.randint(0, 2 * down + 1, (len(images),), generator=random)
    lefts = torch.randint(0, 2 * right + 1, (len(images),), generator=random)
    starts = zip(wide, tops.tolist(), lefts.tolist(), strict=True)
    return torch.stack([one[:, top : top + height, left : left + width] for one, top, left in starts])


def stressed(images: Tensor, random: torch.Generator, share: float = 1.0, most: float = MOST_CONTRAST) -> Tensor:
    """Images of which a share is moved away from the own mean or from another image, by a factor of up to `most`.

    Unseen inputs lead to values outside the calibrated ranges, where polynomials grow fast, and so do these images. So
    fits on them stay bounded there.
    """
    shape = (len(images), *(1,) * (images.ndim - 1))
    factor = 1 + (most - 1) * torch.rand(shape, generator=random)
    factor = torch.where(torch.rand(shape, generator=random) < share, factor, torch.ones(()))
    others = images[torch.randperm(len(images), generator=random)]
    flat = images.mean(list(range(1, images.ndim)), keepdim=True).expand_as(images)
    away = torch.where(torch.rand(shape, generator=random) < 0.5, flat, others)
    return away + factor * (images - away)


def live_bytes(graph: Graph) -> int:
    """Most bytes that the values of one image take at a time, in single precision; each is freed after its last use."""
    done = last_reads(graph.nodes)
    live = most = 0
    for node in graph.nodes:
        live += node.type.size
        most = max(most, live)
        live -= sum(graph[i].type.size for i in done[node.id])
    return 4 * most


def sweep_memory(limit: float | None) -> float:
    """Bytes that the values of all images may take during a sweep, if the process may take `limit` bytes."""
    return MEMORY if limit is None else min(MEMORY, SHARE * limit)


def most_fitting(graph: Graph, copies: int = 1, limit: float | None = None) -> int:
    """As many images as have values that fit in `sweep_memory`, `copies` times each, but `SWEPT` at most."""
    return max(1, min(SWEPT, int(sweep_memory(limit) / (live_bytes(graph) * copies))))


def fitting(graph: Graph, images: Tensor, copies: int = 1, limit: float | None = None) -> Tensor:
    """Evenly spread images, of which there are `most_fitting` at most."""
    return spread_out(images, most_fitting(graph, copies, limit))


def spread_out(images: Tensor, most: int) -> Tensor:
    """At most this many images, evenly spread."""
    return images if len(images) <= most else images[torch.linspace(0, len(images) - 1, most).round().long()]


def readers(graph: Graph, node: Node) -> list[Node]:
    """All nodes that depend on a node, in order."""
    below = nx.descendants(graph.to_networkx(), node.id)
    return [n for n in graph.nodes if n.id in below]
