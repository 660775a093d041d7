"""How good a network of polynomials is on some images."""

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
        images: (n, *input shape).
        wanted: the original's raw outputs for them.
        labels: (n,), of classes; None for none.
        criterion: what agreement means.
        finish: makes the outputs that users see of the graph's.
        copies, copies_wanted: altered copies of images, which are checked for outputs that diverge, and the original's
            raw outputs for them.
    """

    images: Tensor
    wanted: Tensor
    labels: Tensor | None
    criterion: Criterion
    finish: Callable[[Array], Array]
    copies: Tensor
    copies_wanted: Tensor

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
        copies = altered(pool, JUDGED, seed + 1, augment)
        wanted, copies_wanted = (_outputs(original, x) for x in (images, copies))
        return Judge(images, wanted, labels, criterion, finish, copies, copies_wanted)

    def __call__(self, graph: Graph) -> Judgement:
        """Of a graph that approximates the original."""
        ours, theirs = _outputs(graph, self.images), self.wanted
        made = finished(self.finish, ours.double().numpy()).reshape(len(ours), -1)
        if self.labels is None:
            wanted = finished(self.finish, theirs.double().numpy()).reshape(len(ours), -1)
            score = self.criterion.agreement(made, wanted)
        else:
            classes = made[:, 0] if made.shape[1] == 1 else made.argmax(1)
            score = float(np.mean((classes == self.labels.numpy()) & np.isfinite(made).all(1)))
        spread = self.criterion.spread
        far = diverged(_outputs(graph, self.copies), self.copies_wanted, spread)
        beyond = int(diverged(ours, theirs, spread).sum())
        worth = score - WORST / OFTENER * float(far.double().mean())
        return Judgement(score, beyond + int(far.sum()), worth if np.isfinite(worth) else -np.inf)


def _outputs(graph: Graph, images: Tensor) -> Tensor:
    weights = tensors(graph)
    with torch.no_grad():
        return torch.cat([outputs_of(graph, weights, channels_last(part)) for part in images.split(CHUNK)])
