"""The training loop: labels and the original model teach a network of polynomials.

The steps are those of reconstruction (`olac.approximation.reconstruct`): Adam on whitened parameters, which are
averaged. The loss has labels and the range penalty as well.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import astuple, dataclass, field

import torch
from torch.func import functional_call

from olac.approximation import half
from olac.approximation.checkpoint import Checkpoint
from olac.approximation.common import output_error, output_sizes, spread_out, stressed
from olac.approximation.criterion import Spread
from olac.approximation.reconstruct import (
    MOMENTS_IMAGES,
    TAIL,
    fitted_polynomials,
    rate_for,
    sound_images,
    with_constants,
)
from olac.approximation.steps import Numbers, Schedule, Steps
from olac.approximation.tails import Tails
from olac.approximation.tensors import channels_last, outputs_of, run, tensors
from olac.approximation.whitened import Whitened
from olac.errors import CalibrationError
from olac.ir.graph import Graph
from olac.progress import Event
from olac.progress.stages import TUNING
from olac.training.activation import PolynomialActivation, RangePenalty
from olac.training.network import Network, Range

Tensor = torch.Tensor
Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor | None]

SIZED = 256
"""Images from which it is known how large values typically are."""
LINES = 20
"""Lines of progress in an epoch."""
FALLEN = 0.05
"""If an epoch makes the judgement worse by more than this, the next begins at the best one, with smaller steps."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a network of polynomials is trained.

    Attributes:
        rate: Adam's largest rate, in units of a layer's standard deviation; None for that of reconstruction, which
            depends on the error at the beginning and on the degrees.
        labels: weight of the loss by labels.
        distillation: weight of the error of the outputs against the original model's, log(1 + relative squared error).
        features: weight of the same errors of the polynomials' results, against the original activations'.
        penalty: weight of the range penalty.
        stressed: share of images that are moved out of the calibrated ranges; their labels are not used.
        mixed: share of batches whose images are each mixed with another one of the batch (Zhang et al., "mixup:
            beyond empirical risk minimization", arXiv 1710.09412), by a part from 0 to 1 that the batch shares.
        averaged: share of an epoch over which parameters are averaged.
    """

    rate: float | None = None
    labels: float = 1.0
    distillation: float = 1.0
    features: float = 1.0
    penalty: float = 0.1
    stressed: float = 0.3
    mixed: float = 0.0
    averaged: float = 0.3

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate {self.rate} is not a positive number")
        for name in ("labels", "distillation", "features", "penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} is not a weight of at least 0")
        if not 0 <= self.stressed < 1 or not 0 < self.averaged <= 1 or not 0 <= self.mixed <= 1:
            shares = f"stressed {self.stressed}, mixed {self.mixed} or averaged {self.averaged}"
            raise ValueError(f"{shares} is not a share")


@dataclass(frozen=True)
class Epoch:
    """One pass over the loader.

    Attributes:
        number: from 1.
        images: of the pass.
        loss: its mean, of everything but the range penalty.
        penalty: the mean of the range penalty.
        score: of the averaged weights on the images that choose the epoch: share of right classes, or agreement.
        diverged: of these images and of altered copies.
        seconds: of the pass, with the judgement.
    """

    number: int
    images: int
    loss: float
    penalty: float
    score: float
    diverged: int
    seconds: float


@dataclass(frozen=True)
class Judgement:
    """A score of 0 to 1, how many images diverged, and what both come to: the larger the better."""

    score: float
    diverged: int
    worth: float


class Trainer:
    """Trains a network towards labels and towards the graph that it approximates.

    Args:
        original: the graph with its activations; ids of activations are those of polynomials.
        start: the approximated graph, at stage POLYNOMIAL before squares are folded.
        ranges: of the polynomials (see `olac.training.measure`).
        images: (n, *input shape), from whose values the units of steps are.
        options: see there.
        loss: of raw outputs and labels, a scalar; None if labels are not used.
        judge: of a graph with trained weights.
        spread: how errors of outputs are scaled.
        device: where it is trained.
        seed: of the order of images, if the loader shuffles by torch's random numbers, and of what is done to them.
        refit: whether weights are trained, or polynomials alone.
        say: called with a line of text now and then.
        checkpoint: where the state is kept after each epoch and, if it is there, taken from.

    Raises:
        CalibrationError: the outputs of all images diverge.
    """

    def __init__(
        self,
        original: Graph,
        start: Graph,
        ranges: Mapping[str, Range | float],
        images: Tensor,
        options: TrainingOptions,
        loss: Loss | None,
        judge: Callable[[Graph], Judgement],
        *,
        spread: Spread = "together",
        device: torch.device | None = None,
        seed: int = 0,
        refit: bool = True,
        say: Callable[[str], None] | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._start, self._options, self._loss, self._judge = start, options, loss, judge
        self._device, self._seed = device or torch.device("cpu"), seed
        self._say = say or (lambda line: None)
        self._checkpoint = checkpoint
        self._network = Network(start, ranges)
        self._module = self._network.module.to(self._device).to(memory_format=torch.channels_last).train()
        self._activations = {i: m for i, m in self._network.activations.items() if m.coefficients.requires_grad}
        self._teacher = _Teacher(original, frozenset(self._activations), images, self._device, spread)
        self._penalty = RangePenalty(self._module)
        self._random = torch.Generator().manual_seed(seed)
        self._whitened, self._tails, self._rate = self._units(original, ranges, images, spread, refit)

    def _units(
        self, original: Graph, ranges: Mapping[str, Range | float], images: Tensor, spread: Spread, refit: bool
    ) -> tuple[Whitened, Tails, float]:
        clean, weights = tensors(original), tensors(self._start)
        images = channels_last(spread_out(images, MOMENTS_IMAGES))
        with torch.no_grad():
            sound = sound_images(self._start, weights, original, clean, images)
            if not len(sound):
                raise CalibrationError("the outputs of all inputs diverge. Begin with a higher degree.")
            known = {name: r for name, r in ranges.items() if isinstance(r, Range)}
            reached = {name: ((r.high + r.low) / 2, (r.high - r.low) / 2) for name, r in known.items()}
            whitened = Whitened(self._start, weights, sound, reached, refit, spread)
            error = output_error(outputs_of(self._start, weights, images), outputs_of(original, clean, images), spread)
        polynomials = fitted_polynomials(original, self._start)
        sizes = {name: value.cpu() for name, value in self._teacher.sizes.items()}
        tails = Tails(original, self._start, polynomials, sizes, reached)
        degrees = [module.coefficients.shape[1] - 1 for module in self._activations.values()]
        return whitened.to(self._device), tails.to(self._device), self._options.rate or rate_for(error, degrees)

    def train(self, loader: Iterable[Batch], per_epoch: int, epochs: int) -> tuple[Graph, tuple[Epoch, ...]]:
        """The graph with the best weights, and what each epoch gave.

        Args:
            loader: yields batches of images (n, *input shape) and labels (n, ...) or None; anew for each epoch.
            per_epoch: batches in an epoch.
            epochs: passes over the loader.
        """
        schedule = Schedule(max(1, per_epoch * epochs))
        steps = Steps(self._whitened.theta, self._rate, max(1, round(self._options.averaged * per_epoch)), schedule)
        progress = self._resumed(schedule, steps)
        if progress is None:
            progress = _Progress(self._judge(self._start), steps.mean())
            line = f"fine-tuning: begins with {progress.best.score:.2%}, {progress.best.diverged} diverged"
            self._say(Event(line, TUNING))
        clock = _Clock(per_epoch * epochs, per_epoch * len(progress.history))
        for number in range(len(progress.history) + 1, epochs + 1):
            begun, start = f"fine-tuning: epoch {number} of {epochs}", time.monotonic()

            def told(batches: int, images: int, loss: float, number: int = number, begun: str = begun) -> None:
                if not batches % max(1, per_epoch // LINES):
                    left = clock.left(per_epoch * (number - 1) + batches)
                    done, total = per_epoch * (number - 1) + batches, per_epoch * epochs
                    line = f"{begun}, {images} images, loss {loss:.3f}, {left} left"
                    self._say(Event(line, TUNING, done, total))

            images, loss, penalty = self._epoch(seeded(loader, self._seed + number), steps, told)
            judged = self._judge(self._graph(steps.mean()))
            if judged.worth >= progress.best.worth:
                progress.best, progress.kept = judged, steps.mean()
            elif not judged.worth >= progress.best.worth - FALLEN:
                steps.restart(progress.kept)
            seconds = time.monotonic() - start
            progress.history.append(Epoch(number, images, loss, penalty, judged.score, judged.diverged, seconds))
            self._say(
                f"{begun}: loss {loss:.3f}, penalty {penalty:.3f}, {judged.score:.2%}, {judged.diverged} diverged, "
                f"{_duration(seconds)}"
            )
            if self._checkpoint is not None:
                self._checkpoint.save(_state(progress, schedule, steps, self._random))
        return self._graph(progress.kept), tuple(progress.history)

    def _epoch(
        self, batches: Generator[Batch], steps: Steps, told: Callable[[int, int, float], None]
    ) -> tuple[int, float, float]:
        """One pass: its images, and the means of the loss and of the penalty."""
        count, images, losses, penalties = 0, 0, 0.0, 0.0
        with contextlib.closing(batches):
            for x, labels in batches:
                loss, penalty = self._step(x, labels, steps)
                count, images = count + 1, images + len(x)
                losses, penalties = losses + loss, penalties + penalty
                told(count, images, losses / count)
        if not count:
            raise CalibrationError("the training data is empty when it is read again. Give a loader that starts anew.")
        return images, losses / count, penalties / count

    def _graph(self, theta: Mapping[str, Tensor]) -> Graph:
        made = {name: value.detach() for name, value in self._whitened.current(theta).items()}
        return with_constants(self._start, made, set(self._whitened.theta), "finetune")

    def _resumed(self, schedule: Schedule, steps: Steps) -> _Progress | None:
        """The progress in the checkpoint, if there is one; everything else is brought to its state."""
        if self._checkpoint is None or (found := self._checkpoint.load()) is None:
            return None
        numbers, parts = found
        with self._checkpoint.checking():
            schedule.restore(numbers)
            steps.restore(numbers, {name: _on(value, self._device, name) for name, value in parts.items()})
            self._random.set_state(parts["random"])
            score, diverged, worth = parts["best"].tolist()
            rows = parts["history"].tolist()
            history = [Epoch(int(n), int(m), loss, p, s, int(d), t) for n, m, loss, p, s, d, t in rows]
            kept = {name: parts[f"kept/{name}"].to(self._device) for name in self._whitened.theta}
            progress = _Progress(Judgement(score, int(diverged), worth), kept, history)
        self._say(Event(f"fine-tuning: goes on after epoch {len(history)}", TUNING))
        return progress

    def _step(self, x: Tensor, labels: Tensor | None, steps: Steps) -> tuple[float, float]:
        options = self._options
        # Stressed images have no labels: a few that diverge would decide the loss by them.
        order = torch.randperm(len(x), generator=self._random)
        plain, others = order.tensor_split([len(x) - round(options.stressed * len(x))])
        part, pairs = self._mixture(plain)
        clean = x[plain] if part == 1 else part * x[plain] + (1 - part) * x[pairs]
        x = channels_last(torch.cat([clean, stressed(x[others], self._random)]).to(self._device))
        wanted = self._teacher(x)
        if options.features > 0:
            for name, module in self._activations.items():
                module.target = wanted.values[name]
        current = self._whitened.current()
        places = self._network.places
        parameters = {p: current[name] for name in self._whitened.theta for p in places[name]}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._teacher.few_bits):
            made = functional_call(self._module, parameters, (x,)).float()
        error = (made - wanted.outputs).square().flatten(1) / wanted.size
        loss = options.distillation * torch.log1p(error.mean(1)).mean() + TAIL * self._tails(current)
        if options.features > 0:
            errors = [wanted.error(name, module) for name, module in self._activations.items()]
            loss = loss + options.features * torch.stack(errors).mean()
        if labels is not None and self._loss is not None and options.labels > 0 and len(plain):
            by_labels = self._loss(made[: len(plain)], labels[plain].to(self._device))
            if part < 1:
                others_loss = self._loss(made[: len(plain)], labels[pairs].to(self._device))
                by_labels = part * by_labels + (1 - part) * others_loss
            loss = loss + options.labels * by_labels
        penalty = self._penalty()
        steps.take(loss + options.penalty * penalty)
        return float(loss.detach()), float(penalty.detach())

    def _mixture(self, plain: Tensor) -> tuple[float, Tensor]:
        """The part that images keep of themselves, and the numbers of those that they are mixed with."""
        if not self._options.mixed:
            return 1.0, plain
        chance, part = torch.rand(2, generator=self._random).tolist()
        pairs = plain[torch.randperm(len(plain), generator=self._random)]
        return (part if chance < self._options.mixed else 1.0), pairs


@dataclass(frozen=True)
class _Wanted:
    """The original's values for a batch, and how large they typically are."""

    values: Mapping[str, Tensor]
    outputs: Tensor
    sizes: Mapping[str, Tensor]
    size: Tensor

    def error(self, name: str, module: PolynomialActivation) -> Tensor:
        """The mean of log(1 + relative squared error) of an activation's last results."""
        found, module.error = module.error, None
        assert found is not None
        return torch.log1p(found / (self.values[name][0].numel() * self.sizes[name])).mean()


class _Teacher:
    """The original graph, which gives what the network should."""

    def __init__(
        self, original: Graph, names: frozenset[str], images: Tensor, device: torch.device, spread: Spread
    ) -> None:
        self._graph, self._names = original, names
        self._weights = {name: value.to(device) for name, value in tensors(original).items()}
        on_cpu = device.type == "cpu"
        self._rounded = half.convolutions(original) if on_cpu else {}
        self.few_bits = not on_cpu or half.supported()
        values = self._values(channels_last(spread_out(images, SIZED)).to(device))
        self.sizes = {name: values[name].var().clamp_min(1e-12) for name in names}
        self._size = output_sizes(values[original.outputs[0]].flatten(1), spread)

    def __call__(self, x: Tensor) -> _Wanted:
        """For a batch."""
        values = self._values(x)
        return _Wanted(values, values[self._graph.outputs[0]], self.sizes, self._size)

    def _values(self, x: Tensor) -> dict[str, Tensor]:
        keep = self._names | set(self._graph.outputs)
        with torch.no_grad():
            return run(self._graph, self._weights, x, keep=keep, instead=self._rounded)


@dataclass
class _Progress:
    """The best judgement so far, the steps that had it, and what each epoch gave."""

    best: Judgement
    kept: dict[str, Tensor]
    history: list[Epoch] = field(default_factory=list)


def _state(
    progress: _Progress, schedule: Schedule, steps: Steps, random: torch.Generator
) -> tuple[Numbers, dict[str, Tensor]]:
    numbers, parts = steps.state()
    best = progress.best
    found = {
        "best": torch.tensor([best.score, best.diverged, best.worth], dtype=torch.float64),
        "history": torch.tensor([astuple(epoch) for epoch in progress.history], dtype=torch.float64),
        "random": random.get_state(),
    }
    kept = {f"kept/{name}": value for name, value in progress.kept.items()}
    return numbers | schedule.state(), {name: value.cpu() for name, value in (parts | kept | found).items()}


def _on(value: Tensor, device: torch.device, name: str) -> Tensor:
    return value if name in ("random", "best", "history") else value.to(device)


class _Clock:
    """How long is left, by the steps that were taken in this process."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._start = total, done, time.monotonic()

    def left(self, done: int) -> str:
        """A text for the time left after so many steps."""
        each = (time.monotonic() - self._start) / max(1, done - self._done)
        return _duration(each * max(0, self._total - done))


def seeded(loader: Iterable[Batch], seed: int) -> Generator[Batch]:
    """The batches of a loader, whose shuffling by torch's random numbers depends on the seed alone.

    Torch's generator is as it was before when the batches end, or when this is closed.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield from loader
    finally:
        torch.set_rng_state(state)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
