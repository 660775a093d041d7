"""The results of olac: an approximated model (plaintext only) and a compiled program (runs encrypted)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from functools import cached_property
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from olac.analysis.estimate import Estimate, estimate
from olac.analysis.rotation_keys import estimate_within
from olac.backends.cost import Slowdown
from olac.backends.recorder import RecorderEvaluator
from olac.ckks.engines import EngineModel
from olac.ckks.key_list import KeyList, keys_for
from olac.costs.table import CostTable
from olac.errors import ArtifactError, InputError, plain
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead, Outputs
from olac.ir.names import Named, Names
from olac.ir.ops import Array, Input
from olac.kernels.base import Kernel
from olac.kernels.execute import build_kernels
from olac.kernels.record import record
from olac.pages.text import counted
from olac.program import artifact
from olac.program.client_program import ClientProgram, Port, is_client_file
from olac.program.curves import Curves, beside
from olac.program.lowered import LoweredProgram
from olac.program.report import Report
from olac.system.internal import callers_own, guard
from olac.system.memory import check_room, memory_for
from olac.system.shapes import described, fitting, noun, shape_of

if TYPE_CHECKING:
    from olac.pages.page import Page
    from olac.pages.record import AnyRecord


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
            raise InputError(wrong_shape(array.shape, shape, tensor=hasattr(images, "detach")))
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


def wrong_shape(given: tuple[int, ...], shape: tuple[int, ...], *, tensor: bool = False, name: str = "x") -> str:
    """What to say of an array that holds no inputs of a program.

    Args:
        given: its shape.
        shape: of one input.
        tensor: whether it is one of torch's.
        name: of the array, in the line to write instead.
    """
    line = fitting(given, shape, name, tensor)
    return (
        f"the program takes {noun(shape, 2)} of shape {shape} (or (n, {', '.join(map(str, shape))})), not {given}"
        + (f". Write {line}" if line else "")
    )


def _real_array(images: Any) -> Any:
    """An array of real numbers, as given; InputError for anything else. Errors do not show values."""
    name = described(images)
    try:
        if hasattr(images, "detach"):  # a tensor; torch may not be installed
            images = images.detach().cpu()
            # numpy has no bfloat16, and .double() would drop imaginary parts.
            images = images.numpy() if images.is_complex() else images.double().numpy()
        array = np.asanyarray(images)
    except (TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise InputError(f"the input is {name}, not an array of real numbers: {_instead(images)}") from error
    if isinstance(array, np.ma.MaskedArray) and np.any(array.mask):
        raise InputError("the input is an array with masked values. Fill them in (array.filled(value)).")
    array = np.asarray(array)
    real = array.dtype.kind in "fiub" or (
        array.dtype.kind == "O" and all(isinstance(value, Real | Decimal) for value in array.reshape(-1))
    )
    if not real:
        raise InputError(f"the input is {name}, not an array of real numbers: {_instead(images)}")
    return array


def _instead(given: Any) -> str:
    """What to write for inputs that are no array."""
    if isinstance(given, Mapping):
        key = next((key for key, one in given.items() if isinstance(key, str) and shape_of(one) is not None), "key")
        return f"take them out of the batch, such as batch[{plain(key)!r}]"
    if isinstance(given, (tuple, list)) and any(shape_of(one) for one in given):
        return "take them out of the batch, such as batch[0]"
    if hasattr(given, "__iter__") and not isinstance(given, str) and shape_of(given) is None:
        return "take one batch after the other, such as next(iter(loader))[0]"
    return "give a numpy array or a tensor of floats"


class _Simulated(Named):
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

        Args:
            images: in true units, an array or a tensor of any real type on any device.
            observe: called with each node and its value, (n, *shape of the value). If it returns an array, that takes
                the value's place.
            raw: give what the head is applied to, such as logits.

        Raises:
            InputError: another shape, no real numbers, or values that are not finite.
        """
        with guard("simulating"):
            given = check_images(images, self.input_shape)
            outputs = self.graph.evaluate(given, None if observe is None else callers_own(observe))
        return outputs if raw else self.head.apply(outputs)


@dataclass(frozen=True, repr=False)
class ApproximatedModel(_Simulated):
    """A model whose activations are polynomials (stage POLYNOMIAL): simulate() and a report, no parameters.

    Attributes:
        graph: the model at stage POLYNOMIAL: linear operations, sums, products and polynomials.
        report: what was decided and measured: fits, agreement, notes (`olac.program.report.Report`).
        head: the model's last steps, which the client computes on decrypted outputs.
        output_names: the names of the outputs, such as those of classes; empty without names.
        curves: for reports (see `CompiledProgram`).
    """

    graph: Graph
    report: Report = field(default_factory=Report)
    head: OutputHead = field(default_factory=OutputHead)
    output_names: Names = ()
    curves: Curves | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """One line."""
        name = plain((self.curves and self.curves.model) or "of a model")
        activations = counted(len(self.report.fits), "activation")
        return f"<ApproximatedModel {name}: {len(self.graph.nodes)} nodes, {activations}>"


@dataclass(frozen=True, repr=False)
class CompiledProgram(_Simulated, LoweredProgram):
    """A program for encrypted inputs: the levelled graph, the parameters, and the rotation steps that need keys.

    Rotations by other steps are composed of these (`olac.ckks.rotations.composition`). The client applies `head` to
    decrypted outputs. A program holds no secret, no torch and no openfhe object.

    Attributes:
        graph: the model at stage LEVELLED, with a layout, a unit, a level and a scale for each value.
        parameters: ring, primes, scale and security (`olac.ckks.parameters.Parameters`).
        rotations: the steps, in slots, that need rotation keys.
        report: what was decided and measured (`olac.program.report.Report`); `report.notes` is what you should know.
        head: the model's last steps, which the client computes on decrypted outputs.
        engine: the name of the engine that the program was planned for, which runs it by default.
        public_key: whether it was planned for inputs that are encrypted with a public key.
        curves: for reports: the model's name and what calibration tells of its activations. Compiled programs have
            them, and `save` writes them to a file of their own. Programs that were read have none.
        output_names: the names of the outputs, such as those of classes; empty without names.
    """

    curves: Curves | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """One line: the model or the fingerprint, engine, ring, levels and nodes."""
        name = plain((self.curves and self.curves.model) or self.fingerprint[:12])
        return (
            f"<CompiledProgram {name} for {self.planned_for.title}: ring 2^{self.parameters.log_ring}, "
            f"{self.parameters.depth} levels, {len(self.graph.nodes)} nodes>"
        )

    def __str__(self) -> str:
        """The table of `olac info`, 80 columns wide; seconds are those of the shipped table of costs."""
        from olac.report import program_text

        return program_text(self)

    def _repr_html_(self) -> str:
        """For notebooks: the head of the report and the levels along the network."""
        from olac.pages.page import Page

        return Page.of(self).snippet()

    def html(
        self,
        path: str | Path | None = None,
        *,
        run: AnyRecord | Sequence[AnyRecord] | None = None,
        costs: CostTable | str | Path | None = None,
        curves: str | Path | None = None,
    ) -> Page:
        """A report of the program for people: one page of HTML, without scripts and without references to other files.

        The page needs jinja2. It tells of calibration data if the program has curves, so the file gets mode 0600.

        Args:
            path: the file to write; None for none.
            run: what was measured: a `RunRecord`, the file of `olac run --record` or `olac debug --json`, or several.
            costs: a table of costs for predictions, or its file; None for the shipped table of the engine.
            curves: the file that `save` wrote beside the program; None for those that the program has in memory.

        Returns:
            the report; its `figures()` are drawings for MLflow or TensorBoard.

        Raises:
            ArtifactError: a file is missing, damaged or belongs to another program, or the page can't be written.
            OlacError: jinja2 is missing.
        """
        from olac.pages.page import Page

        page = Page.of(self, run=run, costs=costs, curves=curves)
        if path is not None:
            page.save(path)
        return page

    def encode(self, images: Array) -> Array:
        """The values that the graph computes with, for images (n, *input shape): slots times the input's unit.

        Args:
            images: float64, (n, *input shape), in true units.
        """
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
            self.output_names,
            self.public_key,
        )

    def keys_for(self, engine: EngineModel) -> KeyList:
        """The evaluation keys that the program needs on an engine.

        Args:
            engine: what planners know of the engine, such as `program.planned_for`.
        """
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
            threads: that the server will use; None for those that this process may use.
            slowdown: how much slower than the table the machine is, as `olac.runtime.forecast` measures it; None for as
                fast.
            costs: of any engine; None for the shipped table of the one that the program was planned for.
        """
        costs = costs or CostTable.default(self.planned_for)
        found = estimate(self, threads=threads, costs=costs, slowdown=slowdown)
        if self.max_memory is None:
            return found
        return estimate_within(self, found, self.max_memory, threads=threads, costs=costs, slowdown=slowdown)

    def save(self, path: str | Path, *, curves: bool = True) -> None:
        """Write the program to one file (see `olac.program.artifact`).

        Args:
            path: the file to write, which is complete or absent.
            curves: also write the curves that the program has to PATH.report, with mode 0600. They tell of calibration
                data, so they are never in the program, and stay with whoever compiled it: `olac report` shows them.

        Raises:
            ArtifactError: the file can't be written.
        """
        target = Path(path)
        # A device or a pipe has no place beside it.
        known = self.curves if curves and (target.is_file() or not target.exists()) else None
        artifact.save_program(
            self, target, *([] if known is None else [known.output(beside(target), self.fingerprint)])
        )

    @staticmethod
    def load(path: str | Path) -> CompiledProgram:
        """Read a program and check all of it, its parameters' security included.

        Args:
            path: a file that `save` wrote, of this or an earlier version.

        Raises:
            ArtifactError: the file is missing, damaged, of another kind or version, or not valid.
            SecurityError: its parameters don't have the security that they claim.
        """
        if is_client_file(path):
            raise ArtifactError(
                f"{plain(path)}: looks like what `olac client` writes for clients, which has no weights. Give the "
                "program itself, which program.save(path) wrote."
            )
        return CompiledProgram._of(artifact.load_program(Path(path)))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return artifact.program_bytes(self)

    @staticmethod
    def from_bytes(data: bytes) -> CompiledProgram:
        """Check and read the result of `to_bytes`, with the errors of `load`.

        Args:
            data: what `to_bytes` gave.
        """
        return CompiledProgram._of(artifact.program_from_bytes(data))

    @staticmethod
    def _of(lowered: LoweredProgram) -> CompiledProgram:
        return CompiledProgram(**{field.name: getattr(lowered, field.name) for field in fields(lowered)})

    @staticmethod
    def check_kind(given: object) -> None:
        """Raise `ArtifactError` unless an object is a program.

        Args:
            given: anything.
        """
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
