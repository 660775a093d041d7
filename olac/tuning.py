"""`olac.finetune`: a network of polynomials, improved by labels and by the model that it approximates."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from olac.approximation.checkpoint import Checkpoint
from olac.approximation.common import SWEPT
from olac.approximation.criterion import Classification
from olac.calibration.batches import as_inputs, check_loader
from olac.calibration.statistics import Calibration
from olac.compiler import Prepared, Purpose, prepare
from olac.errors import CalibrationError
from olac.ir.graph import Graph
from olac.ir.ops import Activation
from olac.options import CompileOptions, Keywords, Stages, with_choices
from olac.passes.expand_max_pool import WidenMaxPool
from olac.passes.fit_activations import FitActivations
from olac.polynomials.modes import FitOptions
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.progress import Shown, showing
from olac.progress.stages import LOWERING
from olac.selection.lower import lower
from olac.system.choices import require_one_of
from olac.system.internal import callers, callers_items, callers_own, guard
from olac.system.memory import memory_for
from olac.training.judge import Judge
from olac.training.labels import loss_for
from olac.training.loop import Batch, Epoch, Loss, Trainer, TrainingOptions, seeded
from olac.training.measure import measured_ranges
from olac.training.network import Range, plain_module

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

Tensor = torch.Tensor
Target = Literal["squares", "options"]
TARGETS: tuple[Target, ...] = ("squares", "options")
SEEN = "the agreement was measured on inputs that training saw as well: give a val_loader to measure it on others"
CHOSEN = "the agreement was measured on inputs of val_loader, by which the best epoch was chosen"


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
        self, options: CompileOptions | None = None, *, progress: Shown = None, **choices: Unpack[Keywords]
    ) -> CompiledProgram:
        """A program for encrypted inputs, as `olac.compile` makes it; the polynomials stay as they are.

        Args:
            options: those of the fine-tuning by default; what they say about fits is not used.
            progress, choices: as in `olac.compile`.

        Raises:
            InfeasibleError, SecurityError: as `olac.compile`.
        """
        chosen = with_choices(options or self.options, choices)
        with showing(progress, "compiling", "compiled", log, {LOWERING: 1.0}) as say:
            return lower(self.approximated, self.calibration, chosen, progress=say)


class _Loader:
    """A caller's loader, which is read several times.

    Attributes:
        batches: in the last pass.
        digest: of the labels of the first pass.
        classes: whether all labels so far are class numbers.
    """

    def __init__(self, given: Any, name: str) -> None:
        if isinstance(given, Iterator):
            raise CalibrationError(f"{name} can be read only once. Give a DataLoader or a list of batches.")
        check_loader(given, name)
        self._given = [given] if isinstance(given, torch.Tensor | np.ndarray) else given
        self._name = name
        self._shape: torch.Size | None = None
        self.batches, self.digest, self.classes = 0, "", True

    def __iter__(self) -> Iterator[Batch]:
        count, digest = 0, hashlib.sha256()
        for index, item in enumerate(callers_items(self._given)):
            where = f"batch {index} of {self._name}"
            images, labels = as_inputs(item, where), _labels(item, where)
            self.classes &= labels is not None and labels.ndim == 1 and not labels.is_floating_point()
            if labels is not None and (not labels.ndim or len(labels) != len(images)):
                raise CalibrationError(f"{where} has {len(images)} inputs and labels of shape {tuple(labels.shape)}")
            self._shape = self._shape or images.shape[1:]
            if images.shape[1:] != self._shape:
                raise CalibrationError(
                    f"{where} has inputs of shape {tuple(images.shape[1:])}, not {tuple(self._shape)}"
                )
            if not len(images):
                continue
            count += 1
            digest.update(b"none" if labels is None else np.ascontiguousarray(labels.numpy()).tobytes())
            yield images, labels
        self.batches, self.digest = count, self.digest or digest.hexdigest()


def _labels(item: Any, where: str) -> Tensor | None:
    """The second part of a loader's item, or its "labels" or "label"."""
    found = None
    if isinstance(item, Mapping):
        found = item.get("labels", item.get("label"))
    elif isinstance(item, (tuple, list)) and len(item) > 1:
        found = item[1]
    if found is None:
        return None
    try:
        return torch.as_tensor(found).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(f"{where} has labels that are no tensor: {type(found).__name__}") from error


@dataclass(frozen=True)
class _Validation:
    """The images of `val_loader`, and their classes if they have labels."""

    images: Tensor
    classes: Tensor | None
    digest: str

    @staticmethod
    def of(given: Any) -> _Validation:
        loader = _Loader(given, "val_loader")
        batches = list(loader)
        if not batches:
            raise CalibrationError("val_loader is empty")
        labels = [y for _, y in batches if y is not None]
        if labels and len(labels) < len(batches):
            raise CalibrationError("some batches of val_loader have labels and some do not")
        classes = torch.cat([y.reshape(len(y), -1) for y in labels]) if labels else None
        if classes is not None and (classes.shape[1] != 1 or classes.is_floating_point()):
            classes = None  # targets, not classes: the agreement with the model counts
        return _Validation(
            torch.cat([x for x, _ in batches]), None if classes is None else classes[:, 0].long(), loader.digest
        )


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
    progress: Shown = None,
    **choices: Unpack[Keywords],
) -> FineTuned:
    """Train a network of polynomials, from the one that `olac.approximate` makes of a model.

    Args:
        model: a trained torch.nn.Module; it is not changed.
        train_loader: yields images, or images and labels (tuples, or dicts with "images" and "labels"), anew each time
            that it is iterated: once for calibration and once an epoch. It may augment and shuffle; if it does so by
            torch's random numbers, the result depends on `seed` alone.
        val_loader: images, or images and classes, by which the best epoch is chosen and the agreement is measured: by
            the share of right classes if there are labels, else by the agreement with the model. None for every eighth
            calibration image, which training sees as well.
        epochs: passes over `train_loader`; 0 for none.
        target: "squares" for a polynomial of degree 2 in place of each activation, which takes one level; "options" for
            the degrees that `options` and `choices` ask for.
        loss: of raw outputs and labels, both tensors, a scalar. Raw outputs are those before the client's last steps,
            such as logits before a softmax. None for cross entropy, binary cross entropy or squared errors, as the task
            and the labels are; labels that fit none of these are an error.
        training: how the network is trained.
        device: where it is trained, "cpu" or "cuda".
        options, progress, choices: as in `olac.approximate`. `checkpoint` keeps the state of training as well; the
            functions of `loss`, `augment` and `task` are not compared when training goes on from there.

    Raises:
        UnsupportedModelError, CalibrationError, InfeasibleError: as `olac.approximate`.
        CalibrationError: also for loaders that can't be read again, and for labels that fit neither images nor a loss.
    """
    require_one_of("target", target, TARGETS)
    if not isinstance(epochs, Integral) or epochs < 0:
        raise ValueError(f"epochs {epochs} is not a whole number from 0 on")
    chosen = with_choices(options, choices)
    if target == "squares":
        chosen = replace(chosen, fit=_squares(chosen.fit))
    if chosen.fit.method == "minimax":
        raise ValueError('compositions (method="minimax") are not trained: give another method')
    with callers():
        torch.zeros(1, device=device)
    loader = _Loader(train_loader, "train_loader")
    own = None if loss is None else callers_own(loss)
    validation = None if val_loader is None else _Validation.of(val_loader)
    with showing(progress, "fine-tuning", "fine-tuned", log) as say:
        how = _How(int(epochs), training or TrainingOptions(), own, torch.device(device), say, chosen)
        with guard("approximating the model"), contextlib.closing(seeded(loader, chosen.seed)) as batches:
            held_out = None if validation is None else validation.images
            purpose = Purpose("fine-tuning", epochs=int(epochs), loader=train_loader)
            prepared = prepare(model, (images for images, _ in batches), chosen, say, purpose, held_out)
        if chosen.task == "auto" and loader.classes and prepared.criterion.task in ("regression", "multilabel"):
            prepared = prepared.with_criterion(Classification())
        made = _tuned(prepared, loader, validation, how)
        say.result = f"{len(made.history)} epochs"
    return made


def _squares(fit: FitOptions) -> FitOptions:
    """The options with degree 2 for every activation; other choices of degrees are refused."""
    others = ("plan", "max_depth", "max_bootstraps", "max_latency", "tolerance", "max_degree")
    asked = [name for name in others if getattr(fit, name) is not None]
    asked += ["degree"] if fit.degree not in (None, 2) else []
    if asked:
        raise ValueError(f'target="squares" has degree 2 everywhere: give target="options" with {" and ".join(asked)}')
    return replace(fit, degree=2)


@dataclass(frozen=True)
class _How:
    epochs: int
    training: TrainingOptions
    loss: Loss | None
    device: torch.device
    say: Stages
    options: CompileOptions


@guard("fine-tuning the model")
def _tuned(prepared: Prepared, loader: _Loader, validation: _Validation | None, how: _How) -> FineTuned:
    passes, notes = prepared.pipeline, prepared.context.notes
    fits = next(i for i, one in enumerate(passes) if isinstance(one, FitActivations))
    widens = next(i for i, one in enumerate(passes) if isinstance(one, WidenMaxPool))
    fitting = passes[fits]
    assert isinstance(fitting, FitActivations)
    original = prepared.run(passes[:fits])
    tuned = start = prepared.run(passes[fits : fits + 1], original)
    ranges: dict[str, Range | float] = {}
    history: tuple[Epoch, ...] = ()
    if any(isinstance(node.op, Activation) for node in original.nodes):
        images = torch.from_numpy(_some(prepared.images.images, SWEPT))
        ranges = measured_ranges(original, start, images)
        trainer = Trainer(
            original,
            start,
            ranges,
            images,
            how.training,
            loss_for(how.loss, prepared.criterion, prepared.head),
            _judge(prepared, original, validation, images),
            spread=prepared.criterion.spread,
            device=how.device,
            seed=how.options.seed,
            refit=getattr(fitting.method, "refit", True),
            say=how.say,
            checkpoint=_checkpoint(prepared, loader, validation, (original, start), images, how),
        )
        tuned, history = trainer.train(loader, loader.batches, how.epochs)
        tuned = prepared.images.with_bounds(tuned)
        fitting.report(original, tuned, prepared.context)
        notes.append(CHOSEN if validation is not None else SEEN)
    else:
        notes.append("the model has no activations, so there was nothing to train")
    widened = prepared.run(passes[fits + 1 : widens + 1], tuned)
    approximated = prepared.finished(prepared.run(passes[widens + 1 :], widened))
    module = plain_module(widened, prepared.head, ranges)
    return FineTuned(module, approximated, prepared.calibration, how.options, history)


def _some(images: npt.NDArray[np.floating[Any]], most: int) -> npt.NDArray[np.float32]:
    """At most so many images, evenly from all."""
    chosen = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(np.int64)
    return np.array(images[chosen], dtype=np.float32)


def _judge(prepared: Prepared, original: Graph, validation: _Validation | None, images: Tensor) -> Judge:
    fits = prepared.images
    held = torch.from_numpy(_some(fits.held_out, len(fits.held_out))) if validation is None else validation.images
    classes = None
    if validation is not None and prepared.criterion.task == "classification":
        classes = validation.classes
    return Judge.of(original, held, classes, prepared.criterion, fits.finish, images, fits.seed, fits.augment)


def _checkpoint(
    prepared: Prepared,
    loader: _Loader,
    validation: _Validation | None,
    graphs: tuple[Graph, ...],
    images: Tensor,
    how: _How,
) -> Checkpoint | None:
    folder = how.options.checkpoint
    if folder is None:
        return None
    settings = how.training.__dict__ | {
        "epochs": how.epochs,
        "seed": how.options.seed,
        "labels": loader.digest,
        "validation": None if validation is None else validation.digest,
        "task": prepared.criterion.task,
        "loss": how.loss is not None,
    }
    held = images if validation is None else validation.images
    return Checkpoint.of(Path(folder), graphs, (images, held), settings)
