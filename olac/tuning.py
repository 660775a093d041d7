"""`olac.finetune`: a network of polynomials, improved by labels and by the model that it approximates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx

from olac.approximation.checkpoint import Checkpoint
from olac.approximation.common import spread_out
from olac.calibration.collect import as_images
from olac.calibration.statistics import Calibration
from olac.compiler import Prepared, prepare
from olac.errors import CalibrationError
from olac.ir.graph import Graph
from olac.ir.ops import Activation
from olac.options import CompileOptions, Keywords, Stages, telling, with_choices
from olac.passes.fit_activations import FitActivations
from olac.polynomials.modes import FitOptions
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.selection.lower import lower
from olac.system.choices import require_one_of
from olac.system.internal import callers_items, callers_own, guard
from olac.system.memory import memory_for
from olac.training.judge import Judge
from olac.training.labels import loss_for
from olac.training.loop import Epoch, Trainer, TrainingOptions
from olac.training.measure import measured_ranges
from olac.training.network import plain_module

if TYPE_CHECKING:
    from typing_extensions import Unpack

Tensor = torch.Tensor
Target = Literal["squares", "options"]
TARGETS: tuple[Target, ...] = ("squares", "options")


@dataclass(frozen=True)
class FineTuned:
    """A network of polynomials after training.

    Attributes:
        module: gives the model's outputs; an ordinary torch module in evaluation mode, whose polynomials are
            `PolynomialActivation`s. Normalisations of the model are folded into its convolutions and linear layers.
        approximated: the same network as a graph, with a report that compares it with the original model.
        calibration: of the original model.
        options: with which it was made.
        history: of the training.
    """

    module: fx.GraphModule
    approximated: ApproximatedModel
    calibration: Calibration
    options: CompileOptions
    history: tuple[Epoch, ...]

    def compile(
        self, options: CompileOptions | None = None, *, progress: Stages | None = None, **choices: Unpack[Keywords]
    ) -> CompiledProgram:
        """A program for encrypted inputs, as `olac.compile` makes it; the polynomials stay as they are.

        Args:
            options: those of the fine-tuning by default; what they say about fits is not used.
            progress, choices: as in `olac.compile`.

        Raises:
            InfeasibleError, SecurityError: as `olac.compile`.
        """
        return lower(
            self.approximated, self.calibration, with_choices(options or self.options, choices), progress=progress
        )


class _Loader:
    """A caller's loader, which is read once an epoch."""

    def __init__(self, given: Iterable[Any], name: str) -> None:
        if isinstance(given, Iterator):
            raise CalibrationError(f"{name} can be read only once. Give a DataLoader or a list of batches.")
        self._given, self._name = given, name
        self.batches = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        count = 0
        for index, item in enumerate(callers_items(self._given)):
            count += 1
            where = f"batch {index} of {self._name}"
            yield as_images(item, where), _labels(item, where)
        self.batches = count


def _labels(item: Any, where: str) -> Tensor | None:
    """The second part of a loader's item, or its "labels"."""
    found = item.get("labels") if isinstance(item, dict) else None
    if isinstance(item, (tuple, list)) and len(item) > 1:
        found = item[1]
    if found is None:
        return None
    try:
        return torch.as_tensor(found).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(f"{where} has labels that are no tensor: {type(found).__name__}") from error


@memory_for("fine-tuning the model")
def finetune(
    model: Any,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None = None,
    *,
    epochs: int = 10,
    target: Target = "squares",
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    training: TrainingOptions | None = None,
    device: str | torch.device = "cpu",
    options: CompileOptions | None = None,
    progress: Stages | None = None,
    **choices: Unpack[Keywords],
) -> FineTuned:
    """Train a network of polynomials, from the one that `olac.approximate` makes of a model.

    Args:
        model: a trained torch.nn.Module; it is not changed.
        train_loader: yields images, or images and labels, anew each time that it is iterated. It may augment and
            shuffle; if it does so by torch's random numbers, the result depends on `seed` alone.
        val_loader: images, or images and classes, by which the best epoch is chosen. None for calibration images that
            no step sees, by their agreement with the model.
        epochs: passes over `train_loader`; 0 for none.
        target: "squares" for a polynomial of degree 2 in place of each activation, which takes one level; "options" for
            the degrees that `options` and `choices` ask for.
        loss: of raw outputs and labels, both tensors, a scalar. Raw outputs are those before the client's last steps,
            such as logits before a softmax. None for cross entropy, binary cross entropy or squared errors, as the task
            and the labels are; labels that fit none of these are an error.
        training: how the network is trained.
        device: where it is trained, "cpu" or "cuda".
        options, progress, choices: as in `olac.approximate`; `checkpoint` keeps the state of training as well.

    Raises:
        UnsupportedModelError, CalibrationError, InfeasibleError: as `olac.approximate`.
    """
    require_one_of("target", target, TARGETS)
    if epochs < 0:
        raise ValueError(f"epochs {epochs} is below 0")
    chosen = with_choices(options, choices)
    if target == "squares":
        chosen = replace(chosen, fit=_squares(chosen.fit))
    loader = _Loader(train_loader, "train_loader")
    own = None if loss is None else callers_own(loss)
    validation = None if val_loader is None else list(_Loader(val_loader, "val_loader"))
    prepared = prepare(model, (images for images, _ in loader), chosen, progress)
    how = _How(epochs, training or TrainingOptions(), own, torch.device(device), telling(progress))
    return _tuned(prepared, loader, validation, how)


def _squares(fit: FitOptions) -> FitOptions:
    """The options with degree 2 for every activation; other choices of degrees are refused."""
    choices = ("plan", "degree", "max_depth", "max_bootstraps", "max_latency", "tolerance", "max_degree")
    asked = [name for name in choices if getattr(fit, name) not in (None, 2)]
    if asked:
        raise ValueError(f'target="squares" has degree 2 everywhere: give target="options" with {" and ".join(asked)}')
    return replace(fit, degree=2)


@dataclass(frozen=True)
class _How:
    epochs: int
    options: TrainingOptions
    loss: Callable[[Tensor, Tensor], Tensor] | None
    device: torch.device
    say: Stages


@guard("fine-tuning the model")
def _tuned(
    prepared: Prepared, loader: _Loader, validation: list[tuple[Tensor, Tensor | None]] | None, how: _How
) -> FineTuned:
    passes, criterion = prepared.pipeline, prepared.criterion
    fits = next(i for i, one in enumerate(passes) if isinstance(one, FitActivations))
    original = prepared.run(passes[:fits])
    start = prepared.run(passes[fits : fits + 1], original)
    tuned, ranges = start, {}
    history: tuple[Epoch, ...] = ()
    if any(isinstance(node.op, Activation) for node in original.nodes):
        images = torch.from_numpy(prepared.images.images.copy()).float()
        ranges = measured_ranges(original, start, images)
        trainer = Trainer(
            original,
            start,
            ranges,
            images,
            how.options,
            loss_for(how.loss, criterion, prepared.head),
            _judge(prepared, original, validation, images),
            spread=criterion.spread,
            device=how.device,
            seed=prepared.options.seed,
            say=how.say,
            checkpoint=_checkpoint(prepared, (original, start), images, how),
        )
        tuned, history = trainer.train(loader, loader.batches, how.epochs)
        tuned = prepared.images.with_bounds(tuned)
    approximated = prepared.finished(prepared.run(passes[fits + 1 :], tuned))
    module = plain_module(tuned, prepared.head, ranges)
    return FineTuned(module, approximated, prepared.calibration, prepared.options, history)


def _judge(
    prepared: Prepared,
    original: Graph,
    validation: list[tuple[Tensor, Tensor | None]] | None,
    images: Tensor,
) -> Judge:
    held, labels = torch.from_numpy(prepared.images.held_out.copy()).float(), None
    if validation:
        held = torch.cat([x for x, _ in validation])
        parts = [y for _, y in validation if y is not None and y.ndim == 1 and not y.is_floating_point()]
        if len(parts) == len(validation) and prepared.criterion.task == "classification":
            labels = torch.cat(parts)
    fits = prepared.images
    return Judge.of(
        original, held, labels, prepared.criterion, fits.finish, spread_out(images, 1024), fits.seed, fits.augment
    )


def _checkpoint(prepared: Prepared, graphs: tuple[Graph, ...], images: Tensor, how: _How) -> Checkpoint | None:
    folder = prepared.options.checkpoint
    if folder is None:
        return None
    settings = how.options.__dict__ | {"epochs": how.epochs, "seed": prepared.options.seed}
    return Checkpoint.of(Path(folder), graphs, (images,), settings)
