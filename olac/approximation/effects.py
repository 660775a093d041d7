"""The effect of one approximated activation on the outputs: measured (olac's own), and by gradients (OLA's alpha_i)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional as F

from olac.approximation.common import WORST, image_errors, output_sizes, readers
from olac.approximation.criterion import Spread
from olac.approximation.tensors import CHUNK, apply, channels_last, outputs_of, run, tensors
from olac.errors import VerificationError
from olac.ir.graph import Graph, Node
from olac.ir.ops import Activation, Input, Polynomial
from olac.polynomials.fit import Fit
from olac.progress import Event

Tensor = torch.Tensor


@torch.no_grad()
def effects(
    graph: Graph,
    images: Tensor,
    fits: Mapping[str, Sequence[Fit]],
    progress: Callable[[str], None] | None = None,
    spread: Spread = "together",
    within: float = 0.0,
) -> dict[str, list[float]]:
    """The error of the outputs (see `output_error`) by each fit of each activation, with all others exact.

    Args:
        graph: at stage TRACED.
        images: a few hundred, (n, *input shape), on which errors are measured.
        fits: candidates, by activation.
        progress: called with a line of text for each activation.
        spread: how errors of outputs are scaled.
        within: an error is measured on `CHUNK` more images until it is known within this share of it.
    """
    weights = tensors(graph)
    chunks = channels_last(images).split(CHUNK)
    clean = torch.cat([outputs_of(graph, weights, part) for part in chunks])
    after: dict[str, list[Node]] = {name: readers(graph, graph[name]) for name in fits}
    errors: dict[str, list[Tensor]] = {name: [clean.new_empty(0)] * len(row) for name, row in fits.items()}
    start = 0
    for number, part in enumerate(chunks):
        open_fits = {name: [k for k, one in enumerate(row) if not _known(one, within)] for name, row in errors.items()}
        if not any(open_fits.values()):
            break
        values = run(graph, weights, part, keep=frozenset(node.id for node in graph.nodes))
        these = slice(start, start + len(part))
        for count, (name, numbers) in enumerate(open_fits.items()):
            x = values[graph[name].inputs[0]]
            changing = {node.id for node in after[name]}
            before = {i: v for i, v in values.items() if i not in changing}
            for k in numbers:
                candidate = fits[name][k]
                node = Node(name, Polynomial("c", candidate.half_width), graph[name].inputs, graph[name].type)
                made = apply(node, [x], {"c": torch.from_numpy(candidate.coefficients).float()}, {})
                outputs = clean.clone()
                outputs[these] = run(graph, weights, {**before, name: made}, after[name])[graph.outputs[0]]
                found = image_errors(outputs, clean, spread)[these].nan_to_num(nan=WORST, posinf=WORST)
                errors[name][k] = torch.cat([errors[name][k], found.clamp_max(WORST)])
            if progress is not None:
                done, total = number * len(fits) + count + 1, len(chunks) * len(fits)
                progress(Event(f"measuring activations: {done} of {total}", "", done, total))
        start += len(part)
    return {name: [float(one.mean()) for one in row] for name, row in errors.items()}


def _known(errors: Tensor, within: float) -> bool:
    """Whether the mean of these errors, of one image each, is known within this share of it (a standard deviation)."""
    count = len(errors)
    return count > 1 and float(errors.std()) <= within * math.sqrt(count) * float(errors.mean())


def sensitivities(graph: Graph, images: Tensor, classes: bool = True, seed: int = 0) -> dict[str, float]:
    """OLA's alpha_i = sum_j E[(dL/da_ij)^2] for each activation's output a_i (Lee et al., arXiv 2310.10349).

    L is the cross entropy of the outputs against the network's own class, as there are no labels; this is our
    reconstruction of the paper's weights. If outputs are no classes, L is the sum of the outputs, each with a random
    sign and in units of its standard deviation, so alpha_i is the mean squared change of the outputs.

    Raises:
        VerificationError: an op between an activation and the output lets no gradient through.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights = tensors(graph)
        deviations = output_sizes(outputs_of(graph, weights, images[:CHUNK]).flatten(1), "each").sqrt()
    order = [node for node in graph.nodes if not isinstance(node.op, Input)]
    totals = {node.id: 0.0 for node in order if isinstance(node.op, Activation)}
    for part in images.split(CHUNK):
        values: dict[str, Tensor] = {graph.inputs[0].id: part}
        watched: dict[str, Tensor] = {}
        for node in order:
            value = apply(node, [values[i] for i in node.inputs], weights, graph.constants)
            if isinstance(node.op, Activation):
                value = value if value.requires_grad else value.detach().requires_grad_()
                watched[node.id] = value
            values[node.id] = value
        outputs = values[graph.outputs[0]].flatten(1)
        if classes:
            loss = F.cross_entropy(outputs, outputs.argmax(1), reduction="sum")
        else:
            signs = torch.randint(0, 2, outputs.shape, generator=random) * 2 - 1
            loss = (signs * outputs / deviations).sum()
        gradients = torch.autograd.grad(loss, list(watched.values()), allow_unused=True)
        for name, gradient in zip(watched, gradients, strict=True):
            if gradient is None:  # a graph holds nothing that its output does not read
                raise VerificationError(f"{name}: no gradient of the output leads back to this activation")
            totals[name] += float(gradient.square().sum())
    return {name: total / len(images) for name, total in totals.items()}
