"""What a client needs of a program, and no more: parameters, keys, and what its inputs and outputs are.

A client makes keys, encrypts and decrypts. For that it needs no weight, no layer and no name of either. So the owner of
a model can give clients this description, a few kilobytes of JSON, and keep the program on the server.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from olac.backends.base import SCALE_TOLERANCE
from olac.ckks.engines import EngineModel, engine_model
from olac.ckks.key_list import KeyList, keys_for
from olac.ckks.parameters import Parameters
from olac.errors import ArtifactError, OlacError, SecurityError
from olac.ir.head import OutputHead
from olac.ir.layout import TensorLayout
from olac.ir.names import Named, Names, check_names
from olac.ir.ops import Array, Input
from olac.ir.types import CipherState, Stage, ValueType
from olac.program.parts import (
    check_chain_exists,
    check_sizes,
    decode,
    encode,
    engine_of,
    head_of,
    object_of,
    parameters_of,
    problem_of,
    tagged,
    warn_of_security,
)
from olac.system.files import MAGIC, Source, check_writable, write_file
from olac.system.formats import CLIENT_PROGRAMS
from olac.system.memory import memory_for

FORMAT = "olac-client"
MAX_BYTES = 1 << 25
"""A model's last scales may have as many numbers as its outputs, and each is about 20 bytes of text."""
PUBLIC_KEY = "public_key"
"""The field that files have only if it is true."""
HEX_DIGITS = frozenset("0123456789abcdef")
REMAKE = CLIENT_PROGRAMS.remake


@dataclass(frozen=True)
class Port:
    """The input or the output of a program.

    Attributes:
        type: its shape, ranges, unit and batch, where it lies in slots, and the state of its ciphertexts.
        offsets, factors: of an input, as in `olac.ir.ops.Input`.
    """

    type: ValueType
    offsets: tuple[float, ...] = ()
    factors: tuple[float, ...] = ()

    @property
    def layout(self) -> TensorLayout:
        """Where its elements lie."""
        assert self.type.layout is not None
        return self.type.layout

    @property
    def state(self) -> CipherState:
        """Of its ciphertexts."""
        assert self.type.state is not None
        return self.type.state

    @property
    def op(self) -> Input:
        """What an input does to images before they are encrypted."""
        return Input(self.type.shape, self.offsets, self.factors)


@dataclass(frozen=True)
class ClientProgram(Named):
    """What a client knows of a program: `CompiledProgram.client()` makes it, and `Client` works from it.

    Attributes:
        fingerprint: of the program, which encrypted inputs and results carry. It covers the weights, as a hash.
        parameters: those that the program runs with.
        levels: (step, level) of each rotation step that needs a key: the highest level at which kernels take it.
        product_level: the highest level at which kernels multiply ciphertexts; None if they don't.
        input, output: what is encrypted and decrypted.
        head: what the client computes of decrypted outputs.
        engine: the name of the engine that the program was planned for.
        output_names: of classes or numbers of the output, or none.
        public_key: whether it was planned for inputs that are encrypted with a public key.
    """

    fingerprint: str
    parameters: Parameters
    levels: tuple[tuple[int, int], ...]
    product_level: int | None
    input: Port
    output: Port
    head: OutputHead = field(default_factory=OutputHead)
    engine: str = "openfhe"
    output_names: Names = ()
    public_key: bool = False

    @property
    def rotations(self) -> tuple[int, ...]:
        """The rotation steps that need keys."""
        return tuple(step for step, _ in self.levels)

    @cached_property
    def rotation_levels(self) -> Mapping[int, int]:
        """The highest level at which kernels take each step."""
        return dict(self.levels)

    def keys_for(self, engine: EngineModel) -> KeyList:
        """The evaluation keys that the program needs on an engine.

        Args:
            engine: what planners know of the engine.
        """
        return keys_for(self.parameters, engine, self.rotations, self.rotation_levels, self.product_level)

    @property
    def batch(self) -> int:
        """Images in one set of ciphertexts."""
        return self.input.type.batch

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.input.type.shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one image's outputs, () for one number."""
        return self.head.output_shape(self.output.type.shape)

    def encode(self, images: Array) -> Array:
        """The values that are encrypted, times the input's unit, for images (n, *input shape).

        Args:
            images: float64, in true units.
        """
        return self.input.op.encode(images)

    def client(self) -> ClientProgram:
        """Itself, so that a program and its description can be used alike."""
        return self

    # Files -----------------------------------------------------------------------------------------------------------

    @memory_for("saving the client's description")
    def save(self, path: str | Path) -> None:
        """Write the description to a file, completely or not at all.

        Args:
            path: the file to write.

        Raises:
            ArtifactError: the file can't be written.
        """
        check_writable(path)
        data = self.to_bytes()
        write_file(path, [data], size=len(data))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        content = _content(self)
        outer = {
            "format": FORMAT,
            "version": CLIENT_PROGRAMS.current,
            "sha256": _digest(content),
            "client": content,
        }
        return json.dumps(outer).encode() + b"\n"

    @staticmethod
    def load(path: str | Path) -> ClientProgram:
        """Read a description and check all of it.

        Args:
            path: a file that `save` or `olac client` wrote.

        Raises:
            ArtifactError: the file is missing, damaged, of another kind or a newer version, or not valid.
            SecurityError: its parameters don't have the security that they claim.
        """
        return _load(Source.of_file(path))

    @staticmethod
    def from_bytes(data: bytes) -> ClientProgram:
        """Check and read the result of `to_bytes`, with the errors of `load`.

        Args:
            data: what `to_bytes` gave.
        """
        return _load(Source(data=bytes(data)))

    def __reduce__(self) -> tuple[Callable[[bytes], ClientProgram], tuple[bytes]]:
        """Pickles and copies are made with `to_bytes`, so that they are checked as files are."""
        return ClientProgram.from_bytes, (self.to_bytes(),)


def is_client_file(path: str | Path) -> bool:
    """Whether a file begins as a client's description does. Programs begin with the length of their header."""
    with Source.of_file(path).open() as stream:
        return stream.read(1) == b"{"


def _content(program: ClientProgram) -> dict[str, Any]:
    found: dict[str, Any] = {
        one.name: encode(getattr(program, one.name))
        for one in fields(program)
        if one.name not in ("parameters", "head", PUBLIC_KEY)
    }
    if program.public_key:
        found[PUBLIC_KEY] = True
    return found | {
        "parameters": encode(program.parameters.fields()),
        "head": [tagged(step) for step in program.head.steps],
    }


def _digest(content: Any) -> str:
    """SHA-256 of JSON, whatever its white space."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@memory_for("loading the client's description")
def _load(source: Source) -> ClientProgram:
    with source.open() as stream:
        data = stream.read(MAX_BYTES + 1)
    outer = _outer(data, source.name)
    CLIENT_PROGRAMS.check(outer.get("version"), source.name)
    content = outer.get("client")
    try:
        if _digest(content) != outer.get("sha256"):
            raise ArtifactError(f"{source.name}: its hash is wrong: it was damaged or changed. Get it again.")
        if outer["version"] == 1 and isinstance(content, dict):
            content.setdefault("output_names", [])
        program = _program(content)
        _check(program)
    except (ArtifactError, SecurityError) as error:
        named = str(error) if str(error).startswith(source.name) else f"{source.name}: {error}"
        raise type(error)(named) from error
    except (OlacError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ArtifactError(
            f"{source.name}: not a valid description of a client: {problem_of(error)}. {REMAKE}"
        ) from error
    warn_of_security(program.parameters, source.name, stacklevel=6)
    return program


def _outer(data: bytes, name: str) -> dict[str, Any]:
    advice = "Give the file that CompiledProgram.client().save wrote, or get it again."
    if data[: len(MAGIC)] == MAGIC:
        raise ArtifactError(
            f"{name}: it holds keys or ciphertexts, not the client's description of a program. {advice}"
        )
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{name}: more than {MAX_BYTES} bytes, which no client's description has. {advice}")
    try:
        outer = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{name}: not the client's description of a program, or damaged. {advice}") from error
    if not isinstance(outer, dict) or outer.get("format") != FORMAT:
        raise ArtifactError(f"{name}: not the client's description of a program. {advice}")
    return outer


def _program(data: Any) -> ClientProgram:
    names = {one.name for one in fields(ClientProgram)}
    if isinstance(data, dict) and PUBLIC_KEY not in data:
        names.remove(PUBLIC_KEY)
    given = object_of(data, names, "client")
    return ClientProgram(
        decode(given["fingerprint"], str, "fingerprint"),
        parameters_of(given["parameters"]),
        decode(given["levels"], tuple[tuple[int, int], ...], "levels"),
        decode(given["product_level"], int | None, "product_level"),
        decode(given["input"], Port, "input"),
        decode(given["output"], Port, "output"),
        head_of(given["head"]),
        engine_of(given["engine"]),
        decode(given["output_names"], Names, "output_names"),
        decode(given.get(PUBLIC_KEY, False), bool, PUBLIC_KEY),
    )


def _check(program: ClientProgram) -> None:
    """Check all that a program promises of these parts; raises ValueError or an error of olac."""
    parameters = program.parameters
    check_chain_exists(parameters)
    parameters.check_security(earlier=True)
    engine = engine_model(program.engine)
    refusal = engine.refuses(parameters)
    if refusal is not None:
        raise ValueError(refusal)
    if len(program.fingerprint) != 64 or set(program.fingerprint) - HEX_DIGITS:
        raise ValueError("the fingerprint is not 64 hexadecimal digits")
    listed = KeyList(program.levels, program.product_level)
    listed.check(parameters)
    if parameters.conjugation_step in listed.by_step and parameters.bootstrapping is not None:
        raise ValueError("conjugation is among the rotation steps of a program with bootstraps")
    lacking = engine.bootstraps(parameters).steps - set(listed.steps)
    if lacking:
        raise ValueError(f"{len(lacking)} rotation steps of bootstraps are not among the program's")
    _check_port(program.input, parameters, "input")
    _check_port(program.output, parameters, "output")
    program.input.op.check((), {}, Stage.LEVELLED)
    if program.output.offsets or program.output.factors:
        raise ValueError("the output has offsets or factors, which only inputs have")
    if program.input.type.batch != program.output.type.batch:
        raise ValueError("input and output are of different batches")
    program.head.output_shape(program.output.type.shape)
    check_names(program.output_names, program.head, program.output.type.shape)


def _check_port(port: Port, parameters: Parameters, name: str) -> None:
    type_, state = port.type, port.type.state
    check_sizes(type_, parameters.slots, name)
    if port.layout.shape != type_.shape or port.layout.batch != type_.batch:
        raise ValueError(f"{name}: its layout is of another shape or batch")
    if state is None or not 0 <= state.level <= parameters.depth or state.noise_degree != 1:
        raise ValueError(f"{name}: its ciphertexts have no level of the chain, or another noise degree than 1")
    if not abs(state.scale / parameters.scale(state.level) - 1) <= SCALE_TOLERANCE:
        raise ValueError(f"{name}: its scale is not that of its level")
    if not (math.isfinite(type_.unit) and type_.unit > 0):
        raise ValueError(f"{name}: its unit is not positive")
    if len(type_.channels) not in (0, type_.shape[0]):
        raise ValueError(f"{name}: {len(type_.channels)} ranges for {type_.shape[0]} channels")


__all__ = ["ClientProgram", "Port", "is_client_file"]
