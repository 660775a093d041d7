"""The memory and the time that compiling takes in this process, told before either is spent.

Memory is what the process holds already, what every step needs, and what the largest step needs. Values are in single
precision, 4 bytes each. A step that looks at n images at a time needs, for each of them:

| step | images | for each image |
|---|---|---|
| calibrating | 64 or fewer | the values that live at a time, with a layer's patches |
| effects of activations | 64 | all values, and those that live at a time |
| sweep | as many as fit in `MEMORY`, 1,024 at most | twice what lives at a time, and the largest value again |
| re-fit of a layer | 64 | its patches, thinned; and for the system five matrices of its unknowns in double precision |
| units of steps | 96 | a layer's patches twice, and those five matrices for its inputs or samples |
| steps | 32 | the values that gradients are computed from: targets, all values, half of them again in bfloat16 |
| bounds | 64 | all values |
| checks | 64 | what lives at a time and a layer's patches, in double precision |

A layer's patches are the operands of its product of matrices: inputs to an output, times places. What every step needs
are the libraries that are loaded on the way, the constants of all graphs, the histograms (2,048 counts a channel), and
the images that are kept for fits and held out. Steps also hold the constants in single precision, ten times, and what
whitens them. Composing a pooling with the layer after it takes 48 bytes for each entry of the result.

Time is counted in evaluations of the model for one image, whose seconds are measured (`Yardstick`), plus products of
matrices for the systems, whose rate is measured as well, plus the lowering, by layer. Not counted is what an engine
does at its first use on a machine, up to a minute, which its own lines of progress tell.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from olac.approximation.common import live_bytes, most_fitting, sweep_memory
from olac.approximation.engine import BOUND_IMAGES, COPIES, EFFECT_IMAGES, TRIAL_IMAGES
from olac.approximation.least_squares import PER_UNKNOWN, thinning_for
from olac.approximation.reconstruct import BATCH, INTERVAL, JUDGED, LEAST_IMAGES, MOMENTS_IMAGES
from olac.approximation.sweep import MOST_UNKNOWNS, RIDGES, tails
from olac.approximation.tensors import CHUNK
from olac.calibration.collect import RUN_ELEMENTS
from olac.calibration.histogram import BINS
from olac.calibration.statistics import (
    CHOOSING_MOST,
    HELD_OUT_EVERY,
    held_out_limit,
    sample_bytes,
    sample_limit,
)
from olac.errors import InfeasibleError
from olac.ir.graph import Graph
from olac.ir.ops import Activation, Affine, Conv2d, Linear, LinearOp, MaxPool2d, Reshape
from olac.polynomials.modes import EFFORTS, Agreement, Compensated, FitOptions, Within
from olac.progress.stages import (
    CALIBRATING,
    CHECKING,
    CHOOSING,
    FITTING,
    LOWERING,
    MEASURING,
    RECONSTRUCTING,
    SIMPLIFYING,
    STAGES,
    TUNING,
)
from olac.system.memory import GB

Tensor = torch.Tensor

TOLD = "will take about"
"""Words of the line that tells it."""
LIBRARIES = 0.32e9
"""Bytes of the modules and the compiled kernels that are loaded after the model was traced."""
START_SECONDS = 7.0
"""Seconds for loading these, and for compiling the kernels of fits."""
ALLOCATOR = 1.15
"""What the allocators take for each byte that steps ask for: they keep some of what was freed."""
SYSTEM = 5
"""Matrices of a layer's unknowns that are held at a time while its system is solved, in double precision."""
ALTERED = 6
"""Arrays of altered copies of images that are held while they are made."""
STATES = 10
"""Copies of the constants in single precision while weights are trained: steps, their moments, means and gradients."""
GRAPHS = 5
"""Graphs whose constants are held in double precision: the lifted one, and those of later passes."""
ENTRY_BYTES = 48
"""Bytes of an entry of a linear layer that is composed with another: two numbers of slots and a weight, twice."""
YARDSTICK_IMAGES, YARDSTICK_ROWS = 32, 512
YARDSTICK_CALLS, YARDSTICK_SECONDS = 8, 0.5
UNKNOWN_IMAGES = 1024
"""Images that a loader without a length is taken to have."""

FORWARD_BACKWARD = 5.0
"""Evaluations of the model that one image of a step takes: the original's, the approximation's, and its gradients."""
CALIBRATED = 3.0
"""Evaluations that calibrating takes for each image: the model's, and the histograms of its values."""
CHECKED = 4.0
"""Evaluations in single precision that take as long as one in double precision by numpy."""
CANDIDATES = 4
"""Degrees of each activation whose effect is measured."""
TRIALS = 3
"""Quick sweeps by which a plan is found."""
EIGEN = 40.0
"""Products of matrices of the same size that finding eigenvectors in double precision takes."""
ENTRY = 150.0
"""Multiplications in a product of matrices that take as long as one entry of a composed layer."""
LOWERING_SECONDS = 1.0
"""Seconds of the lowering for each linear layer and activation, all sets of parameters together."""


@dataclass(frozen=True)
class Term:
    """A part of what is needed.

    Attributes:
        what: it is needed for.
        bytes: of it.
        advice: what makes it smaller; empty if nothing does.
    """

    what: str
    bytes: float
    advice: str = ""


@dataclass(frozen=True)
class Yardstick:
    """How fast this process computes.

    Attributes:
        image: seconds of one evaluation of the model for one image.
        flop: seconds of one multiplication in a large product of matrices in single precision.
    """

    image: float
    flop: float


@dataclass(frozen=True)
class OwnNeeds:
    """What compiling takes.

    Attributes:
        held: bytes that the process holds already, of the model and its loader too.
        always: what all steps need.
        steps: what each step needs in addition; only one of them runs at a time.
        seconds: for everything; None if it was not measured.
    """

    held: float
    always: tuple[Term, ...]
    steps: tuple[Term, ...]
    seconds: float | None = None

    @property
    def largest(self) -> Term:
        """The step that needs most."""
        return max(self.steps, key=lambda term: term.bytes)

    @property
    def more(self) -> float:
        """Bytes beyond those that the process holds already, at the peak."""
        return ALLOCATOR * (sum(term.bytes for term in self.always) + self.largest.bytes)

    @property
    def total(self) -> float:
        """Bytes of this process at the peak."""
        return self.held + self.more

    def line(self, doing: str) -> str:
        """One line of progress, such as "compiling will take about 40 s and 1.3 GB"."""
        memory = f"{self.total / GB:.1f} GB"
        return (
            f"{doing} will take about {memory if self.seconds is None else f'{_duration(self.seconds)} and {memory}'}"
        )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds, -1 if seconds > 20 else 0)):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class _Layer:
    """A convolution or linear layer: rows of patches (groups x columns), places, and outputs of one place."""

    groups: int
    columns: int
    places: tuple[int, ...]
    outputs: int

    @property
    def patches(self) -> int:
        """Elements of the patches of one image."""
        return self.groups * self.columns * math.prod(self.places)

    @property
    def map(self) -> int:
        """Elements of what whitens steps of the weights."""
        return self.groups * self.columns * min(self.columns, MOMENTS_IMAGES * math.prod(self.places))

    def system(self, samples: int) -> int:
        """Elements of a matrix of the unknowns, for so many samples of each place."""
        return self.groups * min(self.columns, samples * math.prod(self.places)) ** 2


def _layers(graph: Graph) -> Iterator[_Layer]:
    for node in graph.nodes:
        op = node.op
        if isinstance(op, Conv2d | Linear):
            shape = graph.constants[op.weight].shape
            groups = op.groups if isinstance(op, Conv2d) else 1
            yield _Layer(groups, math.prod(shape[1:]), tuple(node.type.shape[1:]), shape[0])


def _values(graph: Graph) -> int:
    """Elements of all values of one image. Normalisations are folded, and a max-pooling becomes many polynomials."""
    total = 0
    for node in graph.nodes:
        if not isinstance(node.op, Affine):
            total += node.type.size * (3 * math.prod(node.op.kernel) if isinstance(node.op, MaxPool2d) else 1)
    return total


def _composed(graph: Graph, most: int) -> int:
    """Most entries of two linear layers that become one, up to `most`; normalisations are folded before."""
    found = 0
    for node in graph.nodes:
        if not isinstance(node.op, LinearOp) or isinstance(node.op, Affine):
            continue
        first = graph[node.inputs[0]]
        while isinstance(first.op, Reshape | Affine):
            first = graph[first.inputs[0]]
        if isinstance(first.op, LinearOp) and (first.op.structural or node.op.structural):
            shape, between = graph[first.inputs[0]].type.shape, graph[node.inputs[0]].type.shape
            each = first.op.entry_count(shape, graph.constants) // math.prod(between)
            entries = node.op.entry_count(between, graph.constants) * max(1, each)
            found = max(found, entries if entries <= most else 0)
    return found


@dataclass(frozen=True)
class Work:
    """A model and what is to be done with it.

    Attributes:
        graph: the lifted model.
        fit: the options of fits.
        images: for calibration, in all.
        batch: images of the loader that are in memory at a time.
        limit: bytes that the process may take, by which sweeps take fewer images; None for no limit.
        calibrated: whether the calibration is done.
        lowers: whether a program is made.
        epochs: of fine-tuning, over the images of the loader.
        entries: most entries of linear layers that are composed.
    """

    graph: Graph
    fit: FitOptions
    images: int
    batch: int = 1
    limit: float | None = None
    calibrated: bool = False
    lowers: bool = True
    epochs: int = 0
    entries: int = 0
    values: int = field(init=False)
    layers: tuple[_Layer, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _values(self.graph))
        object.__setattr__(self, "layers", tuple(_layers(self.graph)))

    # Images ----------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Elements of an image."""
        return max(1, self.graph.inputs[0].type.size)

    @property
    def held_out(self) -> int:
        """Images that are held out."""
        return min(math.ceil(self.images / HELD_OUT_EVERY), held_out_limit(8 * self.size))

    @property
    def kept(self) -> int:
        """Images that are kept for fits."""
        most = EFFORTS[self.fit.effort].images
        return min(max(1, self.images - self.held_out), sample_limit(4 * self.size, most, sample_bytes(most)))

    @property
    def swept(self) -> int:
        """Images of the sweep."""
        return min(self.kept, most_fitting(self.graph, 2, self.limit))

    @property
    def judging(self) -> int:
        """Held-out images that make choices."""
        return min(CHOOSING_MOST, math.ceil(self.held_out / 2))

    @property
    def fits_on_images(self) -> bool:
        """Whether there is a sweep."""
        return isinstance(self.fit.fitting, Compensated) and any(isinstance(n.op, Activation) for n in self.graph.nodes)

    @property
    def passes(self) -> int:
        """Passes of the reconstruction."""
        method = self.fit.fitting
        if not isinstance(method, Compensated) or self.kept < LEAST_IMAGES or not self.fits_on_images:
            return 0
        return method.passes_over(self.kept)

    # Memory ----------------------------------------------------------------------------------------------------------

    def always(self) -> tuple[Term, ...]:
        """What all steps need."""
        graph = self.graph
        weights = sum(value.size for value in graph.constants.values())
        channels = sum(n.type.shape[0] for n in graph.nodes if isinstance(n.op, Activation))
        images = self.size * (8 * self.held_out + 4 * self.kept + 4 * self.judging)
        return (
            Term("libraries", LIBRARIES),
            Term("the weights of all graphs", 8 * GRAPHS * weights, "a narrower model"),
            Term("histograms", 8 * BINS * channels),
            Term(
                f"{self.kept:,} inputs for fits and {self.held_out:,} that are held out",
                images,
                "fewer calibration inputs",
            ),
            Term("a batch of the loader", 12 * self.size * self.batch, "smaller batches of the loader"),
        )

    def steps(self) -> Iterator[Term]:
        """What each step needs in addition."""
        live, values, swept = live_bytes(self.graph), 4 * self.values, self.swept
        largest = 4 * max(node.type.size for node in self.graph.nodes)
        patches = 4 * max((layer.patches for layer in self.layers), default=0)
        activations = sum(4 * n.type.size for n in self.graph.nodes if isinstance(n.op, Activation))
        smaller = "a smaller input, or a narrower model"
        weights = 4 * sum(value.size for value in self.graph.constants.values())
        composed = _composed(self.graph, self.entries)
        if composed:
            yield Term("composing linear layers", ENTRY_BYTES * composed, smaller)
        if not self.calibrated:
            at_once = max(1, min(64, RUN_ELEMENTS // self.size))
            yield Term("calibrating", at_once * (2 * live + patches), smaller)
        yield Term(f"checks of {CHUNK} inputs in double precision", 2 * CHUNK * (live + patches + largest), smaller)
        choice = self.fit.choice
        if isinstance(choice, Within | Agreement):
            yield Term(
                f"all values of {CHUNK} inputs, for the effects of activations",
                CHUNK * (values + 2 * live),
                f"degree=3, or {smaller}",
            )
        if isinstance(choice, Within | Agreement) and self.fits_on_images:
            trial = min(TRIAL_IMAGES, swept)
            shared = trial * activations if trial * activations <= sweep_memory(self.limit) / 2 else trial * live
            yield Term(
                f"values of {trial} inputs in trials of plans",
                shared + trial * (live + largest) + self.judging * (live + largest),
                f"degree=3, or {smaller}",
            )
        if self.fits_on_images:
            rest = self.judging * (2 * live + largest)
            refit = max((self._refit(layer, swept) for layer in self.layers), default=0.0)
            yield Term(
                f"values of {swept:,} inputs in the sweep",
                swept * (2 * live + largest) + rest + refit + 2 * weights,
                f"fewer calibration inputs, or {smaller}",
            )
            yield Term(f"all values of {CHUNK} inputs, for their bounds", CHUNK * values, smaller)
        if self.passes or self.epochs:
            trained = STATES * weights + 4 * sum(layer.map for layer in self.layers)
            units = max((self._units(layer) for layer in self.layers), default=0.0) + MOMENTS_IMAGES * 2 * live
            yield Term(
                f"the units of steps, from {MOMENTS_IMAGES} inputs",
                trained + max(units, MOMENTS_IMAGES * values),
                f"reconstruct=0, or {smaller}",
            )
            step = BATCH * (activations + 1.5 * values + 2 * live)
            yield Term(
                f"steps of {BATCH} inputs",
                trained + step + 4 * self.size * ALTERED * JUDGED,
                f"reconstruct=0, or {smaller}",
            )

    def _refit(self, layer: _Layer, swept: int) -> float:
        unknowns = min(layer.columns, swept * math.prod(layer.places))
        method = self.fit.fitting
        if unknowns > MOST_UNKNOWNS or not (isinstance(method, Compensated) and method.refit):
            return 0.0
        thin = thinning_for(layer.columns, swept, layer.places) ** 2
        patches = 3 * 4 * CHUNK * layer.patches / thin
        if unknowns < layer.columns:
            patches = 3 * 4 * swept * layer.patches
        return patches + 8 * SYSTEM * layer.system(swept)

    def _units(self, layer: _Layer) -> float:
        return 4 * 2 * MOMENTS_IMAGES * layer.patches + 8 * SYSTEM * layer.system(MOMENTS_IMAGES)

    def needs(self, held: float) -> OwnNeeds:
        """What is needed by a process that holds so many bytes."""
        return OwnNeeds(held, self.always(), tuple(self.steps()))

    # Time ------------------------------------------------------------------------------------------------------------

    def evaluations(self) -> dict[str, float]:
        """Evaluations of the model for one image, by stage."""
        activations = sum(isinstance(node.op, Activation) for node in self.graph.nodes)
        total = {CALIBRATING: 0.0 if self.calibrated else CALIBRATED * self.images}
        # The result, and plans that are judged by agreement, are tried on altered copies as well.
        copies = 2 * COPIES
        total[CHECKING] = copies + CHECKED * (CHUNK + self.held_out - self.judging)
        if isinstance(self.fit.choice, Within | Agreement):
            total[MEASURING] = min(EFFECT_IMAGES, self.kept) * CANDIDATES * activations / 2
            total[CHOOSING] = copies if isinstance(self.fit.choice, Agreement) else 0.0
            if self.fits_on_images:
                total[CHOOSING] += TRIALS * (2 * min(TRIAL_IMAGES, self.kept) + self.judging)
        if self.fits_on_images:
            each = activations * len(tails(3)) + len(self.layers) * (len(RIDGES) + 1)
            total[FITTING] = self.judging * each / 2 + 3 * self.swept + min(BOUND_IMAGES, self.kept)
        visits = self.passes * self.kept
        if visits:
            # Both networks at the beginning, and the weights after the first pass, at the end and in between.
            judged = (JUDGED + self.judging) * (4 + visits / INTERVAL)
            total[RECONSTRUCTING] = visits * FORWARD_BACKWARD + judged
        if self.epochs:
            total[TUNING] = self.epochs * self.images * FORWARD_BACKWARD
        return total

    def multiplications(self) -> dict[str, float]:
        """Multiplications in single precision that systems and composed layers take, by stage."""
        method = self.fit.fitting
        total = {SIMPLIFYING: ENTRY * COPIES * _composed(self.graph, self.entries), FITTING: 0.0, RECONSTRUCTING: 0.0}
        for layer in self.layers if self.fits_on_images else ():
            places = math.prod(layer.places)
            if isinstance(method, Compensated) and method.refit:
                unknowns = min(layer.columns, self.swept * places)
                samples = min(self.swept * places, PER_UNKNOWN * layer.columns)
                if unknowns <= MOST_UNKNOWNS:
                    total[FITTING] += layer.groups * (
                        samples * unknowns * layer.columns / 2 + 2 * len(RIDGES) * unknowns**3
                    )
            if self.passes:
                unknowns = min(layer.columns, MOMENTS_IMAGES * places)
                total[RECONSTRUCTING] += layer.groups * (
                    MOMENTS_IMAGES * places * layer.columns * unknowns + EIGEN * unknowns**3
                )
        return total

    def seconds(self, yardstick: Yardstick) -> float:
        """Seconds of everything, `fit_seconds` kept to."""
        return sum(self.stage_seconds(yardstick).values())

    def stage_seconds(self, yardstick: Yardstick) -> dict[str, float]:
        """The same for each stage that takes some, in their order."""
        method, limit = self.fit.fitting, math.inf
        if isinstance(method, Compensated) and method.fit_seconds is not None:
            limit = method.fit_seconds
        evaluations, multiplications = self.evaluations(), self.multiplications()
        found: dict[str, float] = {}
        for stage in STAGES:
            found[stage] = evaluations.get(stage, 0.0) * yardstick.image
            found[stage] += multiplications.get(stage, 0.0) * yardstick.flop
        stepping = self.passes * self.kept * FORWARD_BACKWARD * yardstick.image
        found[RECONSTRUCTING] += min(stepping, limit) - stepping
        # Each stage loads what it needs when it begins.
        loading = [stage for stage, seconds in found.items() if seconds > 0]
        for stage in loading:
            found[stage] += START_SECONDS / len(loading)
        lowered = sum(isinstance(n.op, Activation) for n in self.graph.nodes) + len(self.layers)
        if self.lowers:
            found[LOWERING] = LOWERING_SECONDS * lowered
        return {stage: seconds for stage, seconds in found.items() if seconds > 0}


def measured(run: Callable[[Tensor], Tensor], images: Tensor) -> Yardstick:
    """How fast this process computes a model, on at most `YARDSTICK_IMAGES` images, and products of matrices.

    Args:
        run: the model.
        images: (n, *input shape); they are repeated if they are few.
    """
    count = max(1, min(YARDSTICK_IMAGES, RUN_ELEMENTS // max(1, images[0].numel())))
    batch = images[torch.arange(count) % len(images)]
    square = torch.ones(YARDSTICK_ROWS, YARDSTICK_ROWS)
    with torch.no_grad():
        return Yardstick(_least(lambda: run(batch)) / count, _least(lambda: square @ square) / YARDSTICK_ROWS**3)


def _least(run: Callable[[], object]) -> float:
    """Least seconds of a few calls after the first, which may load and choose kernels."""
    run()
    found, begun = math.inf, time.perf_counter()
    for _ in range(YARDSTICK_CALLS):
        start = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - start)
        if time.perf_counter() - begun > YARDSTICK_SECONDS:
            break
    return found


def images_in(loader: Any, first: Tensor) -> int:
    """Images of a loader whose first batch is known, by its length, or `UNKNOWN_IMAGES` if it has none."""
    if isinstance(loader, (Tensor, np.ndarray)):
        return len(first)
    try:
        batches = len(loader)
    except Exception:  # a stream, or a loader that does not know its length
        return max(UNKNOWN_IMAGES, len(first))
    return max(1, batches) * len(first)


def check_fits(needs: OwnNeeds, limit: float | None, available: float, doing: str) -> None:
    """Raise InfeasibleError, with the largest parts and what makes them smaller, if more is needed than there is.

    Args:
        needs: of the work.
        limit: bytes that the process may hold at its peak; None for no limit.
        available: bytes beyond those that it holds.
        doing: names the work, as the beginning of "... takes".
    """
    room, where = needs.held + available, "this machine leaves"
    if limit is not None and limit < room:
        room, where = limit, "max_compile_memory allows"
    if needs.total <= room:
        return
    parts = sorted((*needs.always, needs.largest), key=lambda term: -term.bytes)[:3]
    named = ", ".join(f"{ALLOCATOR * term.bytes / GB:.2f} GB for {term.what}" for term in parts)
    advice = dict.fromkeys(term.advice for term in parts if term.advice)
    held = f"{needs.held / GB:.2f} GB are held already"
    raise InfeasibleError(
        f"{doing} takes about {needs.total / GB:.2f} GB of memory, {where} {max(0.0, room) / GB:.2f} GB. {held}; "
        f"beyond that, {named}. What makes it less: {'; '.join((*advice, 'a larger machine or limit'))}."
    )
