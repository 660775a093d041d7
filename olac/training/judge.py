"""How good a network of polynomials is on images that no step has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from olac.approximation.common import WORST, Augment, altered, diverged, spread_out, varied
from olac.approximation.criterion import Criterion, finished
from olac.approximation.reconstruct import JUDGED, OFTENER
from olac.approximation.tensors import CHUNK, channels_last, outputs_of, tensors
from olac.ir.graph import Graph
from olac.ir.ops import Array
from olac.training.loop import Judgement

Tensor = torch.Tensor


@dataclass(frozen=True)
class Judge:
    """Scores graphs by labels if there are any, else by their agreement with the original, and counts what diverges.

    Attributes:
        original: with its activations.
        images: (n, *input shape), that no step sees.
        labels: (n,), of classes; None for none.
        criterion: what agreement means.
        finish: makes the outputs that users see of the graph's.
        copies: altered copies of images, which are checked for outputs that diverge.
    """

    original: Graph
    images: Tensor
    labels: Tensor | None
    criterion: Criterion
    finish: Callable[[Array], Array]
    copies: Tensor

    @staticmethod
    def of(
        original: Graph,
        images: Tensor,
        labels: Tensor | None,
        criterion: Criterion,
        finish: Callable[[Array], Array],
        others: Tensor,
        seed: int,
        augment: Augment = varied,
    ) -> Judge:
        """With copies of the images and, if these are few, of others."""
        pool = torch.cat([spread_out(images, JUDGED), spread_out(others, JUDGED)])
        return Judge(original, images, labels, criterion, finish, altered(pool, JUDGED, seed + 1, augment))

    def __call__(self, graph: Graph) -> Judgement:
        """Of a graph that approximates the original."""
        ours, theirs = _outputs(graph, self.images), _outputs(self.original, self.images)
        if self.labels is None:
            made, wanted = (finished(self.finish, values.double().numpy()) for values in (ours, theirs))
            score = self.criterion.agreement(made, wanted)
        else:
            right = ours.argmax(1) == self.labels
            score = float((right & ours.flatten(1).isfinite().all(1)).double().mean())
        spread = self.criterion.spread
        far = diverged(_outputs(graph, self.copies), _outputs(self.original, self.copies), spread)
        beyond = int(diverged(ours, theirs, spread).sum())
        worth = score - WORST / OFTENER * float(far.double().mean())
        return Judgement(score, beyond + int(far.sum()), worth if np.isfinite(worth) else -np.inf)


def _outputs(graph: Graph, images: Tensor) -> Tensor:
    weights = tensors(graph)
    with torch.no_grad():
        return torch.cat([outputs_of(graph, weights, channels_last(part)) for part in images.split(CHUNK)])
