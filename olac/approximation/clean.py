"""What sweeps need of the clean network, computed once for all plans that are compared."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from olac.approximation.common import sweep_memory
from olac.approximation.tensors import CHUNK, channels_last, run, tensors
from olac.ir.graph import Graph
from olac.ir.ops import Activation

Tensor = torch.Tensor


@dataclass(frozen=True)
class Clean:
    """Values of a graph that no fit has changed.

    Attributes:
        activations: by id, the values on the images of fits.
        outputs: on the held-out images.
    """

    activations: dict[str, Tensor]
    outputs: Tensor


@dataclass
class KeptClean:
    """The values of the last graph that they were asked for."""

    _kept: list[tuple[Graph, Tensor, Clean]] = field(default_factory=list)

    def values(self, graph: Graph, images: Tensor, held_out: Tensor, limit: float | None = None) -> Clean | None:
        """The values, for images that are the same for each graph; None if they take too much memory to be kept.

        `limit` is that of the process, in bytes.
        """
        size = sum(node.type.size for node in graph.nodes if isinstance(node.op, Activation))
        if 4 * size * len(images) > sweep_memory(limit) / 2:
            return None
        if not self._kept or self._kept[0][0] is not graph or not torch.equal(self._kept[0][1], images):
            self._kept[:] = [(graph, images, clean_values(graph, images, held_out))]
        return self._kept[0][2]

    def forget(self) -> None:
        """Free the memory."""
        self._kept.clear()


@torch.no_grad()
def clean_values(graph: Graph, images: Tensor, held_out: Tensor) -> Clean:
    """See `Clean`."""
    weights, output = tensors(graph), graph.outputs[0]
    wanted = frozenset(node.id for node in graph.nodes if isinstance(node.op, Activation))
    parts = [run(graph, weights, part, keep=wanted) for part in channels_last(images).split(CHUNK)]
    outputs = [run(graph, weights, part)[output] for part in channels_last(held_out).split(CHUNK)]
    return Clean({name: torch.cat([part[name] for part in parts]) for name in wanted}, torch.cat(outputs))
