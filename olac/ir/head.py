"""What the client computes on decrypted outputs: the last steps of a model, exactly, in numpy.

A head is a part of a program's description. It costs no level, and its functions are not replaced by polynomials.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy import special

from olac.ir.functions import CLIENT_FUNCTIONS, FUNCTIONS, Family, Function
from olac.system.arrays import Array

Outputs = npt.NDArray[Any]
"""float64, or int64 after an `ArgMax`."""
Shape = tuple[int, ...]
MAX_AXES = 16
MAX_STEPS = 1000
"""Models have fewer; files with more are refused."""


@dataclass(frozen=True)
class Step(ABC):
    """One step of a head, on values of shape (images, *shape); axes are those of one image, from 0."""

    kind: ClassVar[str] = ""
    decides: ClassVar[bool] = False
    """Whether the results are classes: a small change of the operands changes nothing, or chooses another class."""

    @abstractmethod
    def infer(self, shape: Shape) -> Shape:
        """The shape of one image's result. ValueError if the step does not take operands of this shape."""

    @abstractmethod
    def apply(self, values: Outputs) -> Outputs:
        """The results for values of shape (images, *shape)."""

    @property
    def name(self) -> str:
        """Its kind, or the name of the function that it applies."""
        return self.kind

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Elementwise(Step):
    """A function of each element, by its name in `olac.ir.functions`."""

    function: str
    parameters: tuple[float, ...] = ()
    kind: ClassVar[str] = "elementwise"

    def __post_init__(self) -> None:
        self._made()

    def _family(self) -> Family:
        found = FUNCTIONS.get(self.function) or CLIENT_FUNCTIONS.get(self.function)
        if found is None:
            raise ValueError(f"there is no function {self.function[:60]!r}")
        return Family.of(found)

    def _made(self) -> Function:
        family = self._family()
        if not all(math.isfinite(value) for value in self.parameters):
            raise ValueError(f"{self.function} has parameters that are not finite: {self.parameters[:5]}")
        if family.channels(self.parameters) == 0:
            raise ValueError(f"{self.function} has no parameters")
        try:
            return family(*self.parameters)
        except TypeError as error:
            raise ValueError(f"{self.function} does not take {len(self.parameters)} parameters") from error

    def infer(self, shape: Shape) -> Shape:
        channels = self._family().channels(self.parameters)
        if channels > 1 and shape[:1] != (channels,):
            raise ValueError(f"{self.function} for {channels} channels on {shape}")
        return shape

    def apply(self, values: Outputs) -> Outputs:
        with np.errstate(all="ignore"):
            return np.asarray(self._made()(np.asarray(values, dtype=np.float64)))

    @property
    def name(self) -> str:
        return self.function


@dataclass(frozen=True)
class Affine(Step):
    """scale * x + shift, elementwise.

    Attributes:
        scale, shift: in row-major order.
        shape: that of both; it broadcasts to the shape of a value.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    shape: Shape = ()
    kind: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        if min(self.shape, default=1) < 1 or not len(self.scale) == len(self.shift) == math.prod(self.shape):
            raise ValueError(f"{len(self.scale)} scales and {len(self.shift)} shifts of shape {self.shape}")
        if not all(math.isfinite(value) for value in (*self.scale, *self.shift)):
            raise ValueError("a scale or a shift is not finite")

    def infer(self, shape: Shape) -> Shape:
        if np.broadcast_shapes(shape, self.shape) != shape:
            raise ValueError(f"scales of shape {self.shape} on {shape}")
        return shape

    def apply(self, values: Outputs) -> Outputs:
        scale, shift = (np.reshape(part, self.shape) for part in (self.scale, self.shift))
        return np.asarray(scale * values + shift)

    def __str__(self) -> str:
        if len(self.scale) > 1:
            return f"scale and shift by constants of shape {self.shape}"
        return f"times {self.scale[0]:.6g}" + (f" plus {self.shift[0]:.6g}" if self.shift[0] else "")


@dataclass(frozen=True)
class AlongAxis(Step):
    """A step along one axis of a value."""

    axis: int = 0

    def infer(self, shape: Shape) -> Shape:
        if not 0 <= self.axis < len(shape):
            raise ValueError(f"there is no axis {self.axis} in {shape}")
        return shape

    def __str__(self) -> str:
        return f"{self.kind} along axis {self.axis}"


@dataclass(frozen=True)
class Softmax(AlongAxis):
    """exp(x), divided by its sum along an axis."""

    kind: ClassVar[str] = "softmax"

    def apply(self, values: Outputs) -> Outputs:
        return np.asarray(special.softmax(values, axis=self.axis + 1))


@dataclass(frozen=True)
class LogSoftmax(AlongAxis):
    """The logarithm of `Softmax`."""

    kind: ClassVar[str] = "log_softmax"

    def apply(self, values: Outputs) -> Outputs:
        return np.asarray(special.log_softmax(values, axis=self.axis + 1))


@dataclass(frozen=True)
class Reduction(AlongAxis):
    """A step that leaves one element along an axis."""

    keepdim: bool = False

    def infer(self, shape: Shape) -> Shape:
        shape = super().infer(shape)
        return (*shape[: self.axis], *((1,) if self.keepdim else ()), *shape[self.axis + 1 :])


@dataclass(frozen=True)
class Max(Reduction):
    """The largest element along an axis."""

    kind: ClassVar[str] = "max"

    def apply(self, values: Outputs) -> Outputs:
        return np.asarray(np.max(values, axis=self.axis + 1, keepdims=self.keepdim))


@dataclass(frozen=True)
class ArgMax(Reduction):
    """The index of the largest element along an axis, an integer; the first one if several are largest."""

    kind: ClassVar[str] = "argmax"
    decides: ClassVar[bool] = True

    def apply(self, values: Outputs) -> Outputs:
        return np.asarray(np.argmax(values, axis=self.axis + 1, keepdims=self.keepdim))


@dataclass(frozen=True)
class Normalize(AlongAxis):
    """x, divided by its p-norm along an axis, or by `least` if that is more: torch's F.normalize."""

    p: float = 2.0
    least: float = 1e-12
    kind: ClassVar[str] = "normalize"

    def __post_init__(self) -> None:
        if not (1 <= self.p < math.inf and 0 <= self.least < math.inf):
            raise ValueError(f"a {self.p}-norm that is at least {self.least}")

    def apply(self, values: Outputs) -> Outputs:
        norms = np.linalg.norm(values, self.p, axis=self.axis + 1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):  # without a least norm, zeros give NaN, as in torch
            return np.asarray(values / np.maximum(norms, self.least))

    def __str__(self) -> str:
        return f"divided by the {self.p:g}-norm along axis {self.axis}"


@dataclass(frozen=True)
class Slice(Step):
    """Strided slicing: (start, stop, step) on each axis, as Python slices with positive steps."""

    slices: tuple[tuple[int, int, int], ...]
    kind: ClassVar[str] = "slice"

    def infer(self, shape: Shape) -> Shape:
        if len(self.slices) != len(shape) or any(step < 1 for _, _, step in self.slices):
            raise ValueError(f"slices {self.slices[:5]} of {shape}")
        taken = tuple(len(range(*slice(*s).indices(n))) for s, n in zip(self.slices, shape, strict=True))
        if min(taken, default=1) < 1:
            raise ValueError(f"slices {self.slices[:5]} leave nothing of {shape}")
        return taken

    def apply(self, values: Outputs) -> Outputs:
        window = (slice(None), *(slice(*s) for s in self.slices))
        return values[window]

    def __str__(self) -> str:
        return "[" + ", ".join(":".join(map(str, s)) for s in self.slices) + "]"


@dataclass(frozen=True)
class Reshape(Step):
    """The same elements of each image in another shape, row-major; () for one number an image."""

    shape: Shape = ()
    kind: ClassVar[str] = "reshape"

    def infer(self, shape: Shape) -> Shape:
        if len(self.shape) > MAX_AXES:
            raise ValueError(f"a shape of {len(self.shape)} axes, more than {MAX_AXES}")
        if min(self.shape, default=1) < 1 or math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"{shape} in the shape {self.shape}")
        return self.shape

    def apply(self, values: Outputs) -> Outputs:
        return values.reshape(len(values), *self.shape)

    def __str__(self) -> str:
        return f"shape {self.shape}"


STEPS: dict[str, type[Step]] = {
    step.kind: step for step in (Elementwise, Affine, Softmax, LogSoftmax, ArgMax, Max, Normalize, Slice, Reshape)
}
"""By their names in files."""


@dataclass(frozen=True)
class OutputHead:
    """The steps that make a model's outputs from a program's raw outputs, in order; none by default."""

    steps: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each step: "softmax", "argmax", "affine", "reshape", or a function's name such as "sigmoid"."""
        return tuple(step.name for step in self.steps)

    @property
    def decides(self) -> bool:
        """Whether outputs are classes: integers that a step chose."""
        return any(step.decides for step in self.steps)

    @property
    def scores(self) -> OutputHead:
        """The steps before the one that chooses classes; all steps if there is none."""
        first = next((i for i, step in enumerate(self.steps) if step.decides), len(self.steps))
        return OutputHead(self.steps[:first])

    def shortfall(self, scores: Array, outputs: Outputs) -> float:
        """The most by which the score of a chosen class is below the largest; infinite if an output is no class.

        Args:
            scores: the results of `self.scores` for raw outputs.
            outputs: (images, *output shape) of a head that `decides`.
        """
        chooses = self.steps[len(self.scores.steps)]
        assert isinstance(chooses, ArgMax)
        kept = replace(chooses, keepdim=True)
        axis = chooses.axis + 1
        classes = np.rint(outputs).astype(np.int64).reshape(len(scores), *kept.infer(scores.shape[1:]))
        known = classes.min() >= 0 and classes.max() < scores.shape[axis]
        if not known or not np.array_equal(classes.reshape(outputs.shape), outputs):
            return math.inf
        chosen = np.take_along_axis(scores, classes, axis)
        return float((scores.max(axis, keepdims=True) - chosen).max())

    def output_shape(self, raw: Shape) -> Shape:
        """The shape of one image's outputs, () for one number, from that of the raw ones.

        ValueError if a step does not take the shape that it gets.
        """
        if len(self.steps) > MAX_STEPS:
            raise ValueError(f"{len(self.steps)} steps, more than {MAX_STEPS}")
        for step in self.steps:
            raw = step.infer(raw)
        return raw

    def apply(self, raw: Array) -> Outputs:
        """Outputs (images, *output shape) for raw ones of shape (images, *raw shape); integers after an `ArgMax`."""
        values: Outputs = raw
        for step in self.steps:
            values = step.apply(values)
        return values

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps)) or "nothing"
