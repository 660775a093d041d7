"""What olac makes of a model: an approximated model (plaintext only) or a compiled program (runs encrypted)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from olac.errors import ArtifactError, InputError, VerificationError
from olac.formats import without_unused
from olac.internal import callers_own, guard
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead, Outputs
from olac.ir.ops import Array, Input
from olac.ir.types import Stage
from olac.kernels.base import Kernel
from olac.kernels.execute import build_kernels
from olac.kernels.record import record
from olac.memory import check_room, memory_for
from olac.parameters import Parameters
from olac.passes.base import FitReport, FrontPoint

if TYPE_CHECKING:
    from olac.backends.cost import Slowdown
    from olac.costs import CostTable
    from olac.estimate import Estimate


@dataclass(frozen=True)
class SelfCheck:
    """The program's polynomials against the model itself, on calibration images that decided nothing.

    Attributes:
        images: how many.
        agreement: the mean score, by the criterion of the task.
        max_error: largest difference of an output.
        mean_error: mean difference of outputs.
        structure_error: largest relative difference of the lifted graph, before any approximation, from the model.
        task: what the outputs are taken for ("classification", "binary", ...; see `olac.approximation.criterion`).
        meaning: what the agreement is a share of.
        low, high: the interval that holds the true agreement with 95 % confidence.
        goal: the agreement that was asked for, or None in files that do not say.
        images_to_goal: images for `low` to reach the goal if the agreement stays; None if it is not above the goal.
        explained: R squared of the outputs, by each output's own variance or, for classes and maps, by that of all
            together; None for one image, which has no variance, and in files that do not say.
    """

    images: int
    agreement: float
    max_error: float
    mean_error: float
    structure_error: float
    task: str = "classification"
    meaning: str = ""
    low: float = 0.0
    high: float = 1.0
    goal: float | None = None
    images_to_goal: int | None = None
    explained: float | None = None


@dataclass(frozen=True)
class Report:
    """What was decided and measured at compile time.

    Attributes:
        fits, check, front, notes: of the approximation.
        pass_seconds: by pass, in order.
        noise: how far rescales and bootstraps take an output at most, relative to the outputs' range, as simulated on
            held-out images; None where there are no bootstraps, and `precision` holds.
        max_memory: bytes that the program was compiled for; None without a limit.
    """

    fits: tuple[FitReport, ...] = ()
    check: SelfCheck | None = None
    pass_seconds: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    noise: float | None = None
    max_memory: float | None = None

    def __post_init__(self) -> None:
        if self.max_memory is not None and not 0 < self.max_memory < math.inf:
            raise ValueError(f"a limit of {self.max_memory} bytes of memory")

    def to_json(self) -> dict[str, Any]:
        """Plain data for files."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Report:
        """The inverse of `to_json`; raises KeyError or TypeError on other data."""
        return Report(
            tuple(FitReport(**fit) for fit in data["fits"]),
            None if data["check"] is None else SelfCheck(**data["check"]),
            tuple((str(name), float(seconds)) for name, seconds in data["pass_seconds"]),
            tuple(str(note) for note in data["notes"]),
            tuple(FrontPoint(**{**point, "degrees": tuple(point["degrees"])}) for point in data["front"]),
            None if data.get("noise") is None else float(data["noise"]),
            None if data.get("max_memory") is None else float(data["max_memory"]),
        )


def _canonical(value: Any) -> Any:
    """Plain data in which equal numbers look alike, whatever their type."""
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_canonical(item) for item in value]
    if isinstance(value, str | bool) or value is None:
        return value
    return repr(float(value))


def check_images(images: Any, shape: tuple[int, ...]) -> Array:
    """Images as float64 of shape (n, *shape); one image may come without the batch axis.

    Tensors are taken from whatever device, with or without gradients.

    Raises:
        InputError: another shape, what is no array of real numbers, or values that are not finite.
        InfeasibleError: memory ran out.
    """
    with memory_for("taking the input"):
        array = _real_array(images)
        if array.shape == shape:
            array = array[None]
        if array.ndim != len(shape) + 1 or array.shape[1:] != shape:
            raise InputError(
                f"the program takes images of shape {shape} (or (n, {', '.join(map(str, shape))})), not {array.shape}"
            )
        # Shapes first: nothing of the size of an array that is not wanted is made.
        if array.dtype != np.float64:
            check_room(array.size * np.dtype(np.float64).itemsize, "taking the input")
        try:
            with np.errstate(over="ignore"):
                made = np.asarray(array, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError("the input holds numbers that float64 can't hold") from error
        if not np.all(np.isfinite(made)):
            raise InputError("the input holds values that are not finite, or that float64 can't hold")
    return made


def _real_array(images: Any) -> Any:
    """An array of real numbers, as it is given; InputError for all else. What it holds is told to nobody."""
    name = type(images).__name__
    try:
        if hasattr(images, "detach"):  # a tensor: torch need not be here
            images = images.detach().cpu()
            # numpy has no half of bfloat16, and would drop imaginary parts with no more than a warning.
            images = images.numpy() if images.is_complex() else images.double().numpy()
        array = np.asanyarray(images)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise InputError(f"an input of type {name} is not an array of numbers") from error
    if isinstance(array, np.ma.MaskedArray) and np.any(array.mask):
        raise InputError("the input is an array with masked values. Fill them in (array.filled(value)).")
    array = np.asarray(array)
    real = array.dtype.kind in "fiub" or (
        array.dtype.kind == "O" and all(isinstance(value, Real | Decimal) for value in array.reshape(-1))
    )
    if not real:
        raise InputError(f"an input of type {name} holds {array.dtype}, not real numbers")
    return array


def _simulated(graph: Graph, images: Any, observe: Callable[[Node, Array], Array | None] | None) -> Array:
    with guard("simulating"):
        return graph.evaluate(
            check_images(images, graph.inputs[0].type.shape), None if observe is None else callers_own(observe)
        )


@dataclass(frozen=True)
class ApproximatedModel:
    """A model whose activations are polynomials (stage POLYNOMIAL): simulate() and a report, no parameters.

    `head` makes the model's outputs of the graph's, exactly.
    """

    graph: Graph
    report: Report = field(default_factory=Report)
    head: OutputHead = field(default_factory=OutputHead)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.graph.inputs[0].type.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one image's outputs, () for one number."""
        return self.head.output_shape(self.graph[self.graph.outputs[0]].type.shape)

    def simulate(
        self, images: Any, observe: Callable[[Node, Array], Array | None] | None = None, *, raw: bool = False
    ) -> Outputs:
        """Outputs (n, *output shape) of the true polynomials in float64, for images (n, *input shape) or one image.

        Integers if the model's last step is an argmax. `raw` gives what the head is applied to, (n, *raw shape).
        """
        outputs = _simulated(self.graph, images, observe)
        return outputs if raw else self.head.apply(outputs)


@dataclass(frozen=True)
class CompiledProgram:
    """A program for encrypted inputs: the levelled graph, the parameters, and the rotation steps that need keys.

    Rotations by other steps are composed of these (`olac.rotations.composition`). `head` is what the client computes
    on decrypted outputs. It holds no secret, no torch and no openfhe object.
    """

    graph: Graph
    parameters: Parameters
    rotations: tuple[int, ...]
    report: Report = field(default_factory=Report)
    head: OutputHead = field(default_factory=OutputHead)

    def __post_init__(self) -> None:
        if self.graph.stage != Stage.LEVELLED:
            raise VerificationError(f"a compiled program needs a levelled graph, not one at {self.graph.stage.name}")

    @property
    def input(self) -> Node:
        """The node that the client encrypts; its type has the layout, level and unit."""
        return self.graph.inputs[0]

    @property
    def output(self) -> Node:
        """The node that the client decrypts; the head makes the model's outputs of its value."""
        return self.graph[self.graph.outputs[0]]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one image's outputs, () for one number."""
        return self.head.output_shape(self.output.type.shape)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.input.type.shape

    def encode(self, images: Array) -> Array:
        """What the graph computes with, for images (n, *input shape); slots are this over the input's unit."""
        op = self.input.op
        assert isinstance(op, Input)
        return op.encode(images)

    @cached_property
    def kernels(self) -> dict[str, Kernel]:
        """The kernels of all nodes, made once for estimates and runs."""
        return build_kernels(self.graph)

    @cached_property
    def multiplies_ciphertexts(self) -> bool:
        """Whether a run takes a product of ciphertexts, which needs the relinearisation key."""
        events = record(self.graph, self.parameters).events
        return any(event.primitive in ("multiply", "relinearize") for event in events)

    @cached_property
    def composed(self) -> tuple[int, ...]:
        """Rotation steps that the program takes and has no key for."""
        taken = set(record(self.graph, self.parameters).rotations)
        return tuple(sorted(taken - {*self.rotations, self.parameters.conjugation_step}))

    @property
    def batch(self) -> int:
        """Images in one set of ciphertexts."""
        return self.input.type.batch

    @property
    def max_memory(self) -> float | None:
        """Bytes that the program was compiled for: a server keeps to them if it is told nothing else."""
        return self.report.max_memory

    def simulate(
        self, images: Any, observe: Callable[[Node, Array], Array | None] | None = None, *, raw: bool = False
    ) -> Outputs:
        """What an encrypted run would give without noise: outputs (n, *output shape) for images (n, *input shape).

        Integers if the model's last step is an argmax. `raw` gives what the head is applied to, (n, *raw shape).
        """
        outputs = _simulated(self.graph, images, observe)
        return outputs if raw else self.head.apply(outputs)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what the program computes and how; keys and ciphertexts carry it."""
        digest = hashlib.sha256()
        digest.update(json.dumps(asdict(self.parameters), sort_keys=True).encode())
        digest.update(json.dumps(self.rotations).encode())
        digest.update(json.dumps([self.graph.stage.name, self.graph.outputs]).encode())
        for name in sorted(self.graph.constants):
            array = self.graph.constants[name]
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        for node in self.graph.nodes:
            attributes = without_unused({name: _canonical(value) for name, value in node.op.attributes().items()})
            kind = without_unused(_canonical(asdict(node.type)))
            lowering = node.lowering
            how = None if lowering is None else [lowering.kind, _canonical(asdict(lowering))]
            digest.update(json.dumps([node.id, node.op.name, attributes, node.inputs, kind, how]).encode())
        if self.head:  # programs without one keep the fingerprint that they had before there were heads
            steps = [[step.kind, _canonical(asdict(step))] for step in self.head.steps]
            digest.update(json.dumps(["head", steps]).encode())
        return digest.hexdigest()

    @memory_for("estimating times and memory")
    def estimate(
        self, threads: int | None = None, slowdown: Slowdown | None = None, costs: CostTable | None = None
    ) -> Estimate:
        """Predicted seconds and memory, from the shipped table of costs or another (see `olac.estimate`).

        They are of a server that keeps to the memory that the program was compiled for, if there is such a limit.
        """
        from olac.estimate import estimate

        found = estimate(self, threads=threads, costs=costs, slowdown=slowdown)
        if self.max_memory is None:
            return found
        from olac.rotation_keys import estimate_within

        return estimate_within(self, found, self.max_memory, threads=threads, costs=costs, slowdown=slowdown)

    def save(self, path: str | Path) -> None:
        """Write the program to one file (see `olac.artifact`)."""
        from olac.artifact import save_program

        save_program(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> CompiledProgram:
        """Read a program; raises `ArtifactError` for anything that isn't one."""
        from olac.artifact import load_program

        return load_program(Path(path))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        from olac.artifact import program_bytes

        return program_bytes(self)

    @staticmethod
    def from_bytes(data: bytes) -> CompiledProgram:
        """Check what `to_bytes` gave; raises `ArtifactError` for anything that isn't a program."""
        from olac.artifact import program_from_bytes

        return program_from_bytes(data)

    @staticmethod
    def check_kind(given: object) -> None:
        """Raise `ArtifactError` unless an object is a program."""
        if not isinstance(given, CompiledProgram):
            raise ArtifactError(
                f"an object of type {type(given).__name__} was given, expected a program: olac.compile(...), or "
                "CompiledProgram.load(path)"
            )

    def __reduce__(self) -> tuple[Callable[[bytes], CompiledProgram], tuple[bytes]]:
        """Pickles and copies go by `to_bytes`, so that what comes back has been checked as files are."""
        return CompiledProgram.from_bytes, (self.to_bytes(),)
