"""The results of olac: an approximated model (plaintext only) and a compiled program (runs encrypted)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from functools import cached_property
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from olac.analysis.estimate import Estimate, estimate
from olac.analysis.rotation_keys import estimate_within
from olac.backends.cost import Slowdown
from olac.backends.recorder import RecorderEvaluator
from olac.ckks.engines import EngineModel
from olac.ckks.key_list import KeyList, keys_for
from olac.costs.table import CostTable
from olac.errors import ArtifactError, InputError
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead, Outputs
from olac.ir.ops import Array, Input
from olac.kernels.base import Kernel
from olac.kernels.execute import build_kernels
from olac.kernels.record import record
from olac.program import artifact
from olac.program.client_program import ClientProgram, Port, is_client_file
from olac.program.lowered import LoweredProgram
from olac.program.report import Report
from olac.system.internal import callers_own, guard
from olac.system.memory import check_room, memory_for


def check_images(images: Any, shape: tuple[int, ...]) -> Array:
    """Images as float64 of shape (n, *shape); one image may come without the batch axis.

    Tensors may be on any device and have gradients.

    Raises:
        InputError: another shape, no array of real numbers, or values that are not finite.
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
        # After the check of the shape, so that no copy of a wrong array is made.
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
    """An array of real numbers, as given; InputError for anything else. Errors do not show values."""
    name = type(images).__name__
    try:
        if hasattr(images, "detach"):  # a tensor; torch may not be installed
            images = images.detach().cpu()
            # numpy has no bfloat16, and .double() would drop imaginary parts.
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


class _Simulated:
    """A graph whose outputs a head turns into those of the model, exactly."""

    graph: Graph
    head: OutputHead

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

        They are those of an encrypted run without noise, and integers if the model's last step is an argmax. With `raw`
        they are what the head is applied to, (n, *raw shape).
        """
        with guard("simulating"):
            given = check_images(images, self.input_shape)
            outputs = self.graph.evaluate(given, None if observe is None else callers_own(observe))
        return outputs if raw else self.head.apply(outputs)


@dataclass(frozen=True)
class ApproximatedModel(_Simulated):
    """A model whose activations are polynomials (stage POLYNOMIAL): simulate() and a report, no parameters."""

    graph: Graph
    report: Report = field(default_factory=Report)
    head: OutputHead = field(default_factory=OutputHead)


@dataclass(frozen=True)
class CompiledProgram(_Simulated, LoweredProgram):
    """A program for encrypted inputs: the levelled graph, the parameters, and the rotation steps that need keys.

    Rotations by other steps are composed of these (`olac.ckks.rotations.composition`). The client applies `head` to
    decrypted outputs. A program holds no secret, no torch and no openfhe object.
    """

    def encode(self, images: Array) -> Array:
        """The values that the graph computes with, for images (n, *input shape): slots times the input's unit."""
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
        return self.product_level is not None

    @property
    def rotation_levels(self) -> Mapping[int, int]:
        """The highest level at which the kernels rotate by each step, those of composed rotations included.

        Conjugation is `Parameters.conjugation_step`. What bootstraps do does not count (see `BootstrapModel`).
        """
        return self._key_levels[0]

    @property
    def product_level(self) -> int | None:
        """The highest level at which the kernels multiply ciphertexts; None if they don't. Bootstraps don't count."""
        return self._key_levels[1]

    @cached_property
    @memory_for("finding the keys of the program")
    def _key_levels(self) -> tuple[Mapping[int, int], int | None]:
        recorder = RecorderEvaluator(self.parameters, self.rotations)
        events = record(self.graph, self.parameters, recorder=recorder).events
        rotations: dict[int, int] = {}
        for event in events:
            if event.step:
                rotations[event.step] = max(event.level, rotations.get(event.step, 0))
        products = (event.level for event in events if event.primitive in ("multiply", "relinearize"))
        return MappingProxyType(rotations), max(products, default=None)

    @cached_property
    @memory_for("finding the keys of the program")
    def composed(self) -> tuple[int, ...]:
        """Rotation steps that the program takes and has no key for."""
        taken = set(record(self.graph, self.parameters).rotations)
        return tuple(sorted(taken - {*self.rotations, self.parameters.conjugation_step}))

    def client(self) -> ClientProgram:
        """What a client needs of the program, without weights, layers and names of modules."""
        op = self.input.op
        assert isinstance(op, Input)
        return ClientProgram(
            self.fingerprint,
            self.parameters,
            tuple((step, self.rotation_levels.get(step, 0)) for step in self.rotations),
            self.product_level,
            Port(self.input.type, op.offsets, op.factors),
            Port(self.output.type),
            self.head,
            self.engine,
            self.public_key,
        )

    def keys_for(self, engine: EngineModel) -> KeyList:
        """The evaluation keys that the program needs on an engine."""
        return keys_for(self.parameters, engine, self.rotations, self.rotation_levels, self.product_level)

    @property
    def max_memory(self) -> float | None:
        """Bytes that the program was compiled for, which are the default limit of servers; None without a limit."""
        return self.report.max_memory

    @memory_for("estimating times and memory")
    def estimate(
        self, threads: int | None = None, slowdown: Slowdown | None = None, costs: CostTable | None = None
    ) -> Estimate:
        """Predicted seconds and memory, by a table of costs (see `olac.analysis.estimate`).

        They are of a server with the memory that the program was compiled for, if there is such a limit.

        Args:
            costs: of any engine; None for the shipped table of the one that the program was planned for.
        """
        costs = costs or CostTable.default(self.planned_for)
        found = estimate(self, threads=threads, costs=costs, slowdown=slowdown)
        if self.max_memory is None:
            return found
        return estimate_within(self, found, self.max_memory, threads=threads, costs=costs, slowdown=slowdown)

    def save(self, path: str | Path) -> None:
        """Write the program to one file (see `olac.program.artifact`)."""
        artifact.save_program(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> CompiledProgram:
        """Read a program; raises `ArtifactError` for anything that isn't one."""
        return CompiledProgram._of(artifact.load_program(Path(path)))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return artifact.program_bytes(self)

    @staticmethod
    def from_bytes(data: bytes) -> CompiledProgram:
        """Check and read the result of `to_bytes`; raises `ArtifactError` for anything that isn't a program."""
        return CompiledProgram._of(artifact.program_from_bytes(data))

    @staticmethod
    def _of(lowered: LoweredProgram) -> CompiledProgram:
        return CompiledProgram(**{field.name: getattr(lowered, field.name) for field in fields(lowered)})

    @staticmethod
    def check_kind(given: object) -> None:
        """Raise `ArtifactError` unless an object is a program."""
        if not isinstance(given, CompiledProgram):
            raise ArtifactError(
                f"an object of type {type(given).__name__} was given, expected a program: olac.compile(...), or "
                "CompiledProgram.load(path)"
            )

    def __reduce__(self) -> tuple[Callable[[bytes], CompiledProgram], tuple[bytes]]:
        """Pickles and copies are made with `to_bytes`, so that they are checked as files are."""
        return CompiledProgram.from_bytes, (self.to_bytes(),)


AnyProgram: TypeAlias = CompiledProgram | ClientProgram
"""A program, or what a client knows of it: clients work from either."""


def check_any_program(given: object) -> None:
    """Raise `ArtifactError` unless an object is a program or what a client knows of one."""
    if not isinstance(given, ClientProgram):
        CompiledProgram.check_kind(given)


def load_any_program(path: str | Path) -> AnyProgram:
    """Read the file of a program or of what a client knows of one; raises `ArtifactError` for anything else."""
    return ClientProgram.load(path) if is_client_file(path) else CompiledProgram.load(path)
