"""The fits on whole images, as passes call them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from olac.approximation.checkpoint import Checkpoint
from olac.approximation.clean import KeptClean
from olac.approximation.common import Augment, diverged, fitting, output_error, spread_out, stressed, varied
from olac.approximation.criterion import Classification, Criterion, finished
from olac.approximation.effects import effects, sensitivities
from olac.approximation.forecast import PAIRINGS, after_fit, with_errors
from olac.approximation.reconstruct import reconstruct
from olac.approximation.sweep import sweep
from olac.approximation.tensors import CHUNK, channels_last, outputs_of, real_outputs, run, tensors
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Array
from olac.ir.types import Range
from olac.polynomials.fit import Fit
from olac.polynomials.modes import Compensated
from olac.progress import at_stage
from olac.progress.stages import CHOOSING, FITTING, MEASURING, RECONSTRUCTING

EFFECT_IMAGES, EFFECT_WITHIN = 192, 0.15
"""Most images on which the effect of single activations is measured, and how well it has to be known."""
JUDGED_IMAGES, JUDGED_VALUES = 1024, 1 << 24
"""Images whose outputs tell how many disagree because of errors, and most values of all their copies."""
TRIAL_IMAGES = 256
"""Most images on which the polynomials of a trial are fitted."""
BOUND_IMAGES = 2048
"""Images on which the bounds of values are measured."""
OUTSIDE_IMAGES = 256
"""Most images that tell how many inputs of activations lie outside the ranges of their polynomials."""
COPIES, LITTLE = 1024, 1.2
"""Altered copies of images that are tried in the end, and the largest factor by which they are moved."""
FURTHEST = 4.0
"""Bounds grow to at most this many times the clean magnitude."""


@dataclass(frozen=True)
class ImageFitter:
    """Fits and measurements on calibration images.

    Attributes:
        images: (n, *input shape), for fits.
        held_out: (m, *input shape), for choices; no fit sees them.
        say: called with a line of text for each step.
        criterion: what agreement means, and how errors of outputs count.
        finish: makes the outputs that users see of the graph's, for the criterion.
        seed: of all that is random.
        augment: makes images as unseen ones may be.
        folder: where reconstructions keep their state, or None.
        memory: bytes that the process may take, or None; fits then hold fewer images at a time.
    """

    images: npt.NDArray[np.floating[Any]]
    held_out: npt.NDArray[np.floating[Any]]
    say: Callable[[str], None] | None = None
    criterion: Criterion = field(default_factory=Classification)
    finish: Callable[[Array], Array] = lambda outputs: outputs
    seed: int = 0
    augment: Augment = varied
    folder: Path | None = None
    memory: float | None = None
    _outputs: list[tuple[Graph, torch.Tensor]] = field(default_factory=list, init=False, repr=False, compare=False)
    """A graph, and its outputs on some of the images."""
    _clean: KeptClean = field(default_factory=KeptClean, init=False, repr=False, compare=False)
    """What trials share."""

    def _fitted(self, graph: Graph, copies: int) -> torch.Tensor:
        return fitting(graph, _tensor(self.images), copies, self.memory)

    def effects(self, graph: Graph, fits: Mapping[str, Sequence[Fit]]) -> dict[str, list[float]]:
        """See `olac.approximation.effects`; on images that are held out and others, 192 in all."""
        held = _tensor(self.held_out)[: EFFECT_IMAGES // 2]
        others = _tensor(self.images)[: EFFECT_IMAGES - len(held)]
        images = fitting(graph, torch.cat([held, others]), 8, self.memory)
        say = at_stage(self.say, MEASURING)
        return effects(graph, images, fits, say, self.criterion.spread, EFFECT_WITHIN)

    def sensitivities(self, graph: Graph) -> dict[str, float]:
        """See `olac.approximation.effects`."""
        classes = isinstance(self.criterion, Classification)
        return sensitivities(graph, _tensor(self.images)[:EFFECT_IMAGES], classes, self.seed)

    def trial(
        self, graph: Graph, degrees: Mapping[str, int], method: Compensated, probes: Sequence[int] = ()
    ) -> tuple[float, float, dict[str, dict[int, float]]]:
        """See `olac.analysis.degree_choice.Images`; a sweep without re-fitted weights."""
        images, held_out = spread_out(self._fitted(graph, 2)[::2], TRIAL_IMAGES), _tensor(self.held_out)
        made = sweep(
            graph,
            images,
            held_out,
            degrees,
            replace(method, refit=False),
            choose=False,
            probes=probes,
            progress=at_stage(self.say, CHOOSING),
            spread=self.criterion.spread,
            clean=self._clean.values(graph, images, held_out, self.memory),
        )
        after = after_fit(made.error, method.passes_over(len(self.images)) * len(self.images), self.criterion.enough)
        shrunk = after / made.error if made.error > 0 else 1.0
        return made.error, self._expected(graph, made.outputs, made.clean, shrunk), made.effects

    def _agreement(self, outputs: torch.Tensor, clean: torch.Tensor) -> float:
        """Agreement of a graph's outputs with those of the clean graph, both as users see them."""
        ours, theirs = (finished(self.finish, values.double().numpy()) for values in (outputs, clean))
        return self.criterion.agreement(ours, theirs)

    def _expected(self, graph: Graph, outputs: torch.Tensor, clean: torch.Tensor, shrunk: float = 1.0) -> float:
        """Agreement of all images if their outputs had errors like these, `shrunk` in variance; see `with_errors`."""
        most = max(1, min(JUDGED_IMAGES, JUDGED_VALUES // (PAIRINGS * clean[0].numel())))
        if not self._outputs or self._outputs[0][0] is not graph:
            images = spread_out(_tensor(self.images), most)
            with torch.no_grad():
                self._outputs[:] = [(graph, outputs_of(graph, tensors(graph), images))]
        theirs = torch.cat([self._outputs[0][1], spread_out(clean, most)])
        ours = with_errors(outputs, clean, theirs, self.criterion.spread, math.sqrt(shrunk))
        return self._agreement(ours, theirs.repeat(PAIRINGS, *(1,) * (theirs.ndim - 1)))

    def compensate(self, graph: Graph, degrees: Mapping[str, int], method: Compensated) -> Graph:
        """All activations replaced, each layer compensating the errors before it; bounds of values in their types."""
        every, held_out = _tensor(self.images), _tensor(self.held_out)
        self._clean.forget()
        spread = self.criterion.spread
        swept = self._fitted(graph, 2)
        say = at_stage(self.say, FITTING)
        made = sweep(graph, swept, held_out, degrees, method, progress=say, spread=spread).graph
        settings: dict[str, Any] = {
            "epochs": method.passes_over(len(every)),
            "seconds": method.fit_seconds,
            "refit": method.refit,
            "spread": spread,
            "enough": self.criterion.enough,
            "seed": self.seed,
        }
        checkpoint = None
        if self.folder is not None:
            checkpoint = Checkpoint.of(self.folder, (graph, made), (every, held_out), settings)
        made = reconstruct(
            graph,
            made,
            every,
            held_out,
            progress=at_stage(self.say, RECONSTRUCTING),
            augment=self.augment,
            checkpoint=checkpoint,
            **settings,
        )
        return self.with_bounds(made)

    def with_bounds(self, graph: Graph) -> Graph:
        """The graph with the range of each value on all images joined to the bound in its type."""
        weights, seen = tensors(graph), dict[str, Range]()
        everything = frozenset(node.id for node in graph.nodes)
        with torch.no_grad():
            images = spread_out(_tensor(self.images), BOUND_IMAGES)
            for part in torch.cat([images, _tensor(self.held_out)]).split(CHUNK):
                for name, value in run(graph, weights, channels_last(part), keep=everything).items():
                    low, high = (float(end) for end in torch.aminmax(value))
                    if not math.isfinite(high - low):
                        finite = value[torch.isfinite(value)]
                        if not len(finite):
                            continue
                        low, high = (float(end) for end in torch.aminmax(finite))
                    seen[name] = Range(low, high).union(seen.get(name, Range(low, high)))

        def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
            bound, found = node.type.bound, seen.get(node.id)
            if found is None:
                return None
            if bound is not None and bound.magnitude > 0:
                # An image that diverges must not decide the scale for all others.
                most = FURTHEST * bound.magnitude
                found = Range(float(np.clip(found.low, -most, most)), float(np.clip(found.high, -most, most)))
            joined = found if bound is None else bound.union(found)
            return builder.keep(node, inputs, type=replace(node.type, bound=joined))

        return graph.rewrite(step, by="fit_activations")

    def diverging(self, original: Graph, approximated: Graph) -> tuple[int, int]:
        """How many of `COPIES` copies of images diverge that were altered a little, and how many there are.

        They are augmented, and moved away from their mean or from another one, by up to
        `LITTLE` times their distance: as inputs are that nobody has seen.
        """
        images = torch.cat([_tensor(self.held_out), spread_out(_tensor(self.images), COPIES)])
        random, number = torch.Generator().manual_seed(self.seed + 2), 0
        clean, ours = tensors(original), tensors(approximated)
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            while number < COPIES:
                chosen = images[torch.arange(number, number + CHUNK) % len(images)]
                copies = stressed(self.augment(chosen, random), random, most=LITTLE)
                found.append((real_outputs(approximated, ours, copies), real_outputs(original, clean, copies)))
                number += CHUNK
        made, wanted = (torch.cat(parts) for parts in zip(*found, strict=True))
        return int(diverged(made, wanted, self.criterion.spread).sum()), number

    def outside(self, graph: Graph, ranges: Mapping[str, Array]) -> dict[str, float]:
        """For each node the share of its operand's values, on held-out images, outside their channel's range.

        Args:
            graph: whose nodes have true values, not slots.
            ranges: by node id, shape (channels, 2).
        """
        wanted = frozenset(graph[name].inputs[0] for name in ranges)
        left, seen, weights = dict.fromkeys(ranges, 0), dict.fromkeys(ranges, 0), tensors(graph)
        with torch.no_grad():
            images = spread_out(_tensor(self.held_out), OUTSIDE_IMAGES)
            for part in channels_last(images).split(CHUNK):
                values = run(graph, weights, part, keep=wanted)
                for name, ends in ranges.items():
                    value = values[graph[name].inputs[0]]
                    shaped = torch.from_numpy(ends).to(value.dtype).reshape(-1, 2, *(1,) * (value.ndim - 2))
                    within = (value >= shaped[:, 0]) & (value <= shaped[:, 1])  # NaN is in no range
                    left[name] += int((~within).sum())
                    seen[name] += value.numel()
        return {name: left[name] / max(1, count) for name, count in seen.items()}

    def error(self, original: Graph, approximated: Graph) -> tuple[float, float]:
        """Error and agreement of an approximated graph on the held-out images."""
        with torch.no_grad():
            x = _tensor(self.held_out)
            clean, ours = (outputs_of(graph, tensors(graph), x) for graph in (original, approximated))
        return output_error(ours, clean, self.criterion.spread), self._expected(original, ours, clean)


def _tensor(array: npt.NDArray[np.floating[Any]]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
