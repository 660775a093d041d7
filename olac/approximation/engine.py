"""The fits that look at whole images, as passes reach them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from olac.approximation.common import fitting, output_error
from olac.approximation.criterion import Classification, Criterion, finished
from olac.approximation.effects import effects, sensitivities
from olac.approximation.reconstruct import reconstruct
from olac.approximation.sweep import sweep
from olac.approximation.tensors import CHUNK, run, tensors
from olac.ir.graph import Graph
from olac.ir.ops import Array
from olac.ir.types import Range
from olac.polynomials.fit import Fit
from olac.polynomials.modes import Compensated

EFFECT_IMAGES = 192
"""Images that the effect of single activations is measured on."""
FURTHEST = 4.0
"""Bounds grow to this many times the clean magnitude at most."""


@dataclass(frozen=True)
class ImageFitter:
    """Fits and measurements on calibration images.

    Attributes:
        images: (n, *input shape), that everything is fitted to.
        held_out: (m, *input shape), that no fit sees and that choices are made by.
        say: called with a line of text as work goes on.
        criterion: what agreement means, and how errors of outputs count.
        finish: from the graph's outputs to what users see, for the criterion.
        seed: of all that is random.
    """

    images: npt.NDArray[np.floating[Any]]
    held_out: npt.NDArray[np.floating[Any]]
    say: Callable[[str], None] | None = None
    criterion: Criterion = field(default_factory=Classification)
    finish: Callable[[Array], Array] = lambda outputs: outputs
    seed: int = 0

    def _fitted(self, graph: Graph, copies: int) -> torch.Tensor:
        return fitting(graph, _tensor(self.images), copies)

    def effects(self, graph: Graph, fits: Mapping[str, Sequence[Fit]]) -> dict[str, list[float]]:
        """See `olac.approximation.effects`; on images that are held out and others, 192 in all."""
        held = _tensor(self.held_out)[: EFFECT_IMAGES // 2]
        others = _tensor(self.images)[: EFFECT_IMAGES - len(held)]
        return effects(graph, fitting(graph, torch.cat([held, others]), 8), fits, self.say, self.criterion.spread)

    def sensitivities(self, graph: Graph) -> dict[str, float]:
        """See `olac.approximation.effects`."""
        classes = isinstance(self.criterion, Classification)
        return sensitivities(graph, _tensor(self.images)[:EFFECT_IMAGES], classes, self.seed)

    def trial(
        self, graph: Graph, degrees: Mapping[str, int], method: Compensated, probes: Sequence[int] = ()
    ) -> tuple[float, float, dict[str, dict[int, float]]]:
        """A quick sweep, without re-fitted weights: error and agreement on held-out images, and effects of probes."""
        quick = replace(method, refit=False)
        made = sweep(
            graph,
            self._fitted(graph, 2)[::2],
            _tensor(self.held_out),
            degrees,
            quick,
            choose=False,
            probes=probes,
            progress=self.say,
            spread=self.criterion.spread,
        )
        return made.error, self._agreement(made.outputs, made.clean), made.effects

    def _agreement(self, outputs: torch.Tensor, clean: torch.Tensor) -> float:
        """Agreement of a graph's outputs with those of the clean graph, both as users see them."""
        ours, theirs = (finished(self.finish, values.double().numpy()) for values in (outputs, clean))
        return self.criterion.agreement(ours, theirs)

    def compensate(self, graph: Graph, degrees: Mapping[str, int], method: Compensated) -> Graph:
        """All activations replaced, each layer making up for the errors before it; bounds of values in their types."""
        images, held_out = self._fitted(graph, 2), _tensor(self.held_out)
        spread = self.criterion.spread
        made = sweep(graph, images, held_out, degrees, method, progress=self.say, spread=spread).graph
        made = reconstruct(
            graph,
            made,
            images,
            held_out,
            method.reconstruct,
            refit=method.refit,
            progress=self.say,
            spread=spread,
            enough=self.criterion.enough,
            seed=self.seed,
        )
        return self.with_bounds(made)

    def with_bounds(self, graph: Graph) -> Graph:
        """The graph with each value's range, as seen on all images, joined to what its type says."""
        weights, low, high = tensors(graph), dict[str, float](), dict[str, float]()
        everything = frozenset(node.id for node in graph.nodes)
        with torch.no_grad():
            for part in torch.cat([_tensor(self.images), _tensor(self.held_out)]).split(CHUNK):
                for name, value in run(graph, weights, {graph.inputs[0].id: part}, keep=everything).items():
                    finite = value[torch.isfinite(value)]
                    if len(finite):
                        low[name] = min(low.get(name, np.inf), float(finite.min()))
                        high[name] = max(high.get(name, -np.inf), float(finite.max()))
        seen = {name: Range(low[name], high[name]) for name in low}
        for node in graph.nodes:
            if node.id in seen and node.type.bound is not None and node.type.bound.magnitude > 0:
                # An image that diverges must not decide what all others are scaled by.
                most = FURTHEST * node.type.bound.magnitude
                one = seen[node.id]
                low_end, high_end = (float(np.clip(v, -most, most)) for v in (one.low, one.high))
                seen[node.id] = Range(low_end, high_end)
        return graph.rewrite(
            lambda node, builder, inputs: (
                builder.keep(
                    node,
                    inputs,
                    type=replace(
                        node.type,
                        bound=seen[node.id] if node.type.bound is None else node.type.bound.union(seen[node.id]),
                    ),
                )
                if node.id in seen
                else None
            ),
            by="fit_activations",
        )

    def error(self, original: Graph, approximated: Graph) -> tuple[float, float]:
        """Error and agreement of an approximated graph on the held-out images."""
        with torch.no_grad():
            x = _tensor(self.held_out)
            clean = run(original, tensors(original), {original.inputs[0].id: x})[original.outputs[0]]
            ours = run(approximated, tensors(approximated), {approximated.inputs[0].id: x})[approximated.outputs[0]]
        return output_error(ours, clean, self.criterion.spread), self._agreement(ours, clean)


def _tensor(array: npt.NDArray[np.floating[Any]]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
