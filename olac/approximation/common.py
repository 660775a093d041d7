"""What the sweeps over images share: how far outputs are off, and how many images fit in memory."""

from __future__ import annotations

import networkx as nx
import torch
from torch.nn import functional

from olac.approximation.criterion import Spread
from olac.ir.graph import Graph, Node

Tensor = torch.Tensor

MOST_CONTRAST = 1.6
"""Of stressed images: how far they may be moved, 1 being where they are."""

LEAST_VARIANCE = 1e-6
"""Of one output, as a share of the variance of all."""
MEMORY = 3e9
"""Bytes that the values of all images may take while a sweep runs; fewer images are used where they would take more."""
WORST = 10.0
"""An image counts no more than this, in units of the outputs' variance: a wreck is a wreck."""


def output_error(outputs: Tensor, clean: Tensor, spread: Spread = "together") -> float:
    """Mean squared change of the outputs, in units of their variance; finite for any outputs."""
    each = image_errors(outputs, clean, spread)
    return float(torch.nan_to_num(each, nan=WORST, posinf=WORST).clamp_max(WORST).mean())


def wrecked(outputs: Tensor, clean: Tensor, spread: Spread = "together") -> float:
    """Share of images whose outputs have changed by more than their standard deviation, or aren't finite."""
    return float((~(image_errors(outputs, clean, spread) <= 1.0)).double().mean())


def image_errors(outputs: Tensor, clean: Tensor, spread: Spread) -> Tensor:
    """For each image the mean squared change of its outputs, shape (n,), scaled as the criterion says."""
    ours, theirs = outputs.flatten(1), clean.flatten(1)
    if spread == "direction":
        ours, theirs = functional.normalize(ours), functional.normalize(theirs)
    return ((ours - theirs).square() / output_sizes(theirs, spread)).mean(1)


def output_sizes(clean: Tensor, spread: Spread) -> Tensor:
    """What squared changes of outputs are divided by: a scalar, or (1, outputs) for outputs of shape (n, outputs)."""
    together = clean.var(correction=0).clamp_min(1e-12)
    if spread != "each":
        return together
    # An output that hardly varies has no size of its own: it counts as if it varied a little.
    return torch.maximum(clean.var(0, correction=0, keepdim=True), LEAST_VARIANCE * together)


def mirrored(images: Tensor, random: torch.Generator) -> Tensor:
    """Pictures, of shape (n, c, h, w), of which every second is mirrored at random; anything else as it is.

    The clean network says what comes out of a mirrored picture, so it needs no label, and there are twice as many.
    """
    if images.ndim != 4:
        return images
    chosen = torch.rand((len(images), 1, 1, 1), generator=random) < 0.5
    return torch.where(chosen, images.flip(3), images)


def stressed(images: Tensor, random: torch.Generator, share: float = 1.0) -> Tensor:
    """Images moved away from their own mean or from another image, each by its own factor; all but a share as they are.

    Unseen inputs take values out of the ranges that calibration saw, and polynomials grow fast there. These images do
    the same on purpose: fits are pinned down by them, and choices are judged by them.
    """
    shape = (len(images), *(1,) * (images.ndim - 1))
    factor = 1 + (MOST_CONTRAST - 1) * torch.rand(shape, generator=random)
    factor = torch.where(torch.rand(shape, generator=random) < share, factor, torch.ones(()))
    others = images[torch.randperm(len(images), generator=random)]
    flat = images.mean(list(range(1, images.ndim)), keepdim=True).expand_as(images)
    away = torch.where(torch.rand(shape, generator=random) < 0.5, flat, others)
    return away + factor * (images - away)


def live_bytes(graph: Graph) -> int:
    """Most bytes that the values of one image take at a time, in single precision, each let go after its last use."""
    last = {operand: node.id for node in graph.nodes for operand in node.inputs}
    sizes = {node.id: node.type.size for node in graph.nodes}
    live = most = 0
    for node in graph.nodes:
        live += sizes[node.id]
        most = max(most, live)
        live -= sum(sizes[i] for i in set(node.inputs) if last[i] == node.id)
    return 4 * most


def fitting(graph: Graph, images: Tensor, copies: int = 1) -> Tensor:
    """As many images, evenly spread, as `MEMORY` holds the values of, `copies` times each."""
    most = max(1, int(MEMORY / (live_bytes(graph) * copies)))
    if len(images) <= most:
        return images
    return images[torch.linspace(0, len(images) - 1, most).round().long()]


def readers(graph: Graph, node: Node) -> list[Node]:
    """All nodes that depend on a node, in order."""
    below = nx.descendants(graph.to_networkx(), node.id)
    return [n for n in graph.nodes if n.id in below]
