"""What it means that a program agrees with its model, which depends on what the outputs are for.

A `Criterion` gives each image a score, from the outputs as users see them, and says how the errors of outputs count
when polynomials are fitted.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from olac.ir.ops import Array
from olac.system.choices import require_one_of
from olac.system.internal import callers

Spread = Literal["together", "each", "direction"]
"""How errors of outputs are scaled: by the variance of all outputs together, or by the variance of each output alone;
with "direction", outputs are first scaled to length 1."""

NEAR = 0.1
"""Probabilities agree within this, numbers within this share of their standard deviation."""
COSINE = 0.99
NEVER_LARGEST = 0.95
"""If one output is the largest on a larger share of the images than this, the outputs are not taken for classes."""
ENOUGH_CLASSES, ENOUGH_NUMBERS = 0.03, 1e-3
"""Errors of the outputs below which joint reconstruction is not tried, because it may make a few images diverge, and
that costs more than it gains (measured for ResNet-20 at degree 7)."""

Task = Literal["auto", "classification", "binary", "multilabel", "regression", "embedding", "map"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Criterion(ABC):
    """When a program's outputs agree with the model's.

    Attributes:
        task: its name, for reports.
        spread: how the errors of outputs are scaled.
        enough: error of the outputs, in units of their variance, below which fits are not improved further.
    """

    task: ClassVar[str] = "own"
    spread: ClassVar[Spread] = "together"
    enough: ClassVar[float] = ENOUGH_CLASSES

    @abstractmethod
    def scores(self, ours: Array, theirs: Array) -> Array:
        """A score of 0 to 1 for each image, shape (n,), from outputs of shape (n, *output shape).

        `theirs` are the model's. `ours` may hold NaN and infinities.
        """

    @property
    @abstractmethod
    def meaning(self) -> str:
        """What the agreement is a share of, such as "images whose largest output is the same"."""

    def agreement(self, ours: Array, theirs: Array) -> float:
        """The mean score; an image with an output that is not finite scores 0."""
        finite: npt.NDArray[np.bool_] = np.all(np.isfinite(_rows(ours)), axis=1)
        if not finite.any():
            return 0.0
        # An error in a criterion of the caller is no bug of olac.
        with callers() if self.task == Criterion.task else contextlib.nullcontext():
            scores = self.scores(np.asarray(ours)[finite], np.asarray(theirs)[finite])
        return float(np.sum(scores)) / int(finite.size)


@dataclass(frozen=True)
class Classification(Criterion):
    """The largest output is the same. Outputs that are class numbers already (an argmax) must be equal."""

    task: ClassVar[str] = "classification"
    meaning: ClassVar[str] = "inputs whose largest output is the same"

    def scores(self, ours: Array, theirs: Array) -> Array:
        """1 if the classes are the same."""
        a, b = _rows(ours), _rows(theirs)
        same = a[:, 0] == b[:, 0] if a.shape[1] == 1 else a.argmax(1) == b.argmax(1)
        return np.asarray(same, dtype=np.float64)


@dataclass(frozen=True)
class _Thresholded(Criterion):
    """Decisions by a threshold; with a tolerance, values must not differ by more than that either."""

    threshold: float = 0.0
    tolerance: float | None = None
    spread: ClassVar[Spread] = "each"
    scored: ClassVar[str]

    def scores(self, ours: Array, theirs: Array) -> Array:
        """The share of an image's outputs that agree."""
        a, b = _rows(ours), _rows(theirs)
        same = (a > self.threshold) == (b > self.threshold)
        if self.tolerance is not None:
            same &= np.abs(a - b) <= self.tolerance
        return np.asarray(same.mean(1))

    @property
    def meaning(self) -> str:
        """See `Criterion.meaning`."""
        near = "" if self.tolerance is None else f" and within {self.tolerance:g}"
        return f"{self.scored} whose output is on the same side of {self.threshold:g}{near}"


@dataclass(frozen=True)
class Binary(_Thresholded):
    """One logit, probability or match score is on the same side of a threshold."""

    task: ClassVar[str] = "binary"
    scored: ClassVar[str] = "images"


@dataclass(frozen=True)
class Multilabel(_Thresholded):
    """Each output is on the same side of a threshold."""

    task: ClassVar[str] = "multilabel"
    scored: ClassVar[str] = "labels"


@dataclass(frozen=True)
class Regression(Criterion):
    """Every output is within `tolerance` of the model's, in units of the standard deviation of that output."""

    tolerance: float = NEAR
    task: ClassVar[str] = "regression"
    spread: ClassVar[Spread] = "each"
    enough: ClassVar[float] = ENOUGH_NUMBERS

    def scores(self, ours: Array, theirs: Array) -> Array:
        """1 if all outputs of an image are within the tolerance."""
        a, b = _rows(ours), _rows(theirs)
        return np.asarray((np.abs(a - b) <= self.tolerance * _deviations(b)).all(1), dtype=np.float64)

    @property
    def meaning(self) -> str:
        """See `Criterion.meaning`."""
        return f"inputs whose outputs are all within {self.tolerance:.0%} of their standard deviation"


@dataclass(frozen=True)
class Embedding(Criterion):
    """The output vector points in the same direction: its cosine with the model's is at least `cosine`."""

    cosine: float = COSINE
    task: ClassVar[str] = "embedding"
    spread: ClassVar[Spread] = "direction"
    enough: ClassVar[float] = ENOUGH_NUMBERS

    def scores(self, ours: Array, theirs: Array) -> Array:
        """1 if the cosine is large enough."""
        a, b = _rows(ours), _rows(theirs)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return np.asarray((a * b).sum(1) >= self.cosine * lengths, dtype=np.float64)

    @property
    def meaning(self) -> str:
        """See `Criterion.meaning`."""
        return f"inputs whose output has a cosine of at least {self.cosine:g} with the model's"


@dataclass(frozen=True)
class Map(Criterion):
    """A decision or a number for each place, outputs of shape (channels, height, width) or of two axes.

    Attributes:
        what: "classes" (the largest channel of each place), "decisions" (each value is on the same side of
            `threshold`) or "numbers" (each value is within `tolerance` standard deviations of its channel).
    """

    what: Literal["classes", "decisions", "numbers"] = "classes"
    threshold: float = 0.0
    tolerance: float = NEAR
    task: ClassVar[str] = "map"

    def scores(self, ours: Array, theirs: Array) -> Array:
        """The share of an image's places that agree."""
        a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        if self.what == "classes":
            same = a.argmax(1) == b.argmax(1)
        elif self.what == "decisions":
            same = (a > self.threshold) == (b > self.threshold)
        else:
            others = (0, *range(2, b.ndim))
            deviation = b.std(axis=others, keepdims=True)
            same = np.abs(a - b) <= self.tolerance * np.maximum(deviation, _least(b))
        return np.asarray(same.reshape(len(same), -1).mean(1))

    @property
    def meaning(self) -> str:
        """See `Criterion.meaning`."""
        if self.what == "classes":
            return "places whose largest channel is the same"
        if self.what == "decisions":
            return f"values on the same side of {self.threshold:g}"
        return f"values within {self.tolerance:.0%} of the standard deviation of their channel"


@dataclass(frozen=True)
class Own(Criterion):
    """A function of the caller: `function(ours, theirs)` returns a score of 0 to 1 for each image, shape (n,).

    `scores` raises ValueError for scores of another shape or outside 0 to 1.
    """

    function: Callable[[Array, Array], Array]
    enough: ClassVar[float] = ENOUGH_NUMBERS

    def scores(self, ours: Array, theirs: Array) -> Array:
        """The scores of the function."""
        made = np.asarray(self.function(ours, theirs), dtype=np.float64)
        if made.shape != (len(ours),) or not np.all((made >= 0) & (made <= 1)):
            raise ValueError(
                f"the given task's function must give {len(ours)} scores of 0 to 1, one for each input; it gave an "
                f"array of shape {made.shape}" + ("" if made.shape != (len(ours),) else " with values outside 0 to 1")
            )
        return made

    @property
    def meaning(self) -> str:
        """See `Criterion.meaning`."""
        return f"the score of {getattr(self.function, '__name__', 'the given function')}"


def criterion_for(
    task: Task | str | Criterion | Callable[[Array, Array], Array],
    outputs: Array,
    last: str | None,
    image_shape: tuple[int, ...] = (),
) -> Criterion:
    """The criterion of a task; for "auto" it is chosen by the outputs of the model and by its last function.

    Args:
        task: one of `TASKS`, a criterion, or a function as in `Own`.
        outputs: of the model as users see them, (n, *output shape).
        last: the name of the model's last function ("sigmoid", "softmax", "log_softmax", "argmax", ...), or None.
        image_shape: of the inputs, without the batch axis.

    Raises:
        ValueError: an unknown task, or classes of one output.
    """
    if isinstance(task, Criterion):
        return task
    if not isinstance(task, str):
        if not callable(task):
            raise ValueError(f"task is neither one of {', '.join(TASKS)} nor a criterion nor a function")
        return Own(task)
    require_one_of("task", task, TASKS)
    if task == "classification" and outputs.size == len(outputs) and last != "argmax":
        raise ValueError(
            'task="classification" compares which of several outputs is the largest, and the model has one output. '
            'Give task="binary" if it decides by a threshold, or task="regression"'
        )
    if task == "auto":
        task = _recognised(outputs, last)
    if task == "binary":
        return Binary(*_decision(last))
    if task == "multilabel":
        return Multilabel(*_decision(last))
    if task == "map":
        return _map(outputs, last, image_shape)
    return {"classification": Classification(), "regression": Regression(), "embedding": Embedding()}[task]


CLASSES = ("softmax", "log_softmax", "argmax")
DECISIONS = ("sigmoid", "hardsigmoid", "log_sigmoid")
"""Last functions whose outputs are classes, or decisions."""


def _decision(last: str | None) -> tuple[float, float | None]:
    """The threshold of a decision, and the tolerance of the value that is compared with it."""
    if last in ("sigmoid", "hardsigmoid", "softmax"):
        return 0.5, NEAR
    if last in ("log_sigmoid", "log_softmax"):
        return float(np.log(0.5)), None
    return 0.0, None


def _recognised(outputs: Array, last: str | None) -> str:
    """The task, by outputs and the last function."""
    if outputs.ndim > 2:
        return "map"
    if last == "argmax":
        return "classification"
    if last == "normalize":
        return "embedding"
    width = 1 if outputs.ndim < 2 else outputs.shape[1]
    if width == 1:
        return "binary" if last in DECISIONS + CLASSES else "regression"  # one of the probabilities of a softmax
    if last in DECISIONS:
        return "multilabel"
    if last not in CLASSES and len(outputs) >= 2:
        commonest = np.bincount(outputs.argmax(1)).max() / len(outputs)
        # Numbers of different sizes, or labels of which several may be true: which one is the largest means nothing.
        if commonest > NEVER_LARGEST:
            return "regression"
    return "classification"


def _map(outputs: Array, last: str | None, image_shape: tuple[int, ...]) -> Map:
    """Maps with one channel, or as many as the image, hold numbers; others hold a class for each place."""
    if last in DECISIONS:
        return Map("decisions", _decision(last)[0])
    if last in ("softmax", "log_softmax"):
        return Map("classes")
    channels = outputs.shape[1] if outputs.ndim > 2 else 1
    alike = len(image_shape) == outputs.ndim - 1 and image_shape[:1] == (channels,)
    return Map("numbers") if channels == 1 or alike or last == "argmax" else Map("classes")


def finished(finish: Callable[[Array], Array], raw: Array) -> Array:
    """Outputs as users see them, from a graph's (n, *raw shape); NaN for images of which a raw output is not finite.

    Such images have no result when encrypted, although the sigmoid of infinity and the argmax of NaN are numbers.
    """
    made = finish(raw)
    finite: npt.NDArray[np.bool_] = np.all(np.isfinite(_rows(raw)), axis=1)
    if not finite.all():
        made = np.array(made, dtype=np.float64)
        made[~finite] = np.nan
    return made


def explained(ours: Array, theirs: Array, spread: Spread = "each") -> float:
    """R squared of outputs (n, *output shape): 1 less the mean squared error, in units of each output's variance.

    An output that hardly varies counts as if it varied by a millionth of the largest. With "together" the mean variance
    is the unit for all. Minus infinity if an output of ours is not finite.
    """
    a, b = _rows(ours), _rows(theirs)
    if not np.isfinite(a).all():
        return -np.inf
    deviations = _deviations(b)
    if spread == "together":
        deviations = np.sqrt(np.mean(deviations**2))
    return float(1 - np.mean(((a - b) / deviations) ** 2))


def _deviations(values: Array) -> Array:
    return np.asarray(np.maximum(values.std(axis=0), _least(values)))


def _least(values: Array) -> float:
    return max(1e-6 * float(np.abs(values).max(initial=0.0)), 1e-12)


def _rows(values: Array) -> Array:
    array = np.asarray(values, dtype=np.float64)
    return array.reshape(len(array), -1)
