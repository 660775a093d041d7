"""Compiled programs as files: one safetensors file with the constants as tensors and the rest as a JSON manifest.

Nothing in a file is executed or trusted: every field must have the type that its dataclass declares, every invariant of
the compiler is checked again, and the fingerprint must be the one in the file.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from olac.ckks.engines import ENGINES, OPENFHE
from olac.ckks.parameters import OPENFHE_RECIPE, Parameters
from olac.ckks.primes import is_prime
from olac.errors import ArtifactError, OlacError, SecurityError, VerificationError
from olac.ir.graph import Graph, Node, Origin
from olac.ir.head import STEPS, OutputHead, Step
from olac.ir.lowerings import LOWERINGS, Lowering
from olac.ir.ops import OPS, Array, Input, Op
from olac.ir.types import Stage, ValueType
from olac.ir.verify import verify
from olac.program.lowered import LoweredProgram
from olac.program.report import Report, SelfCheck
from olac.system.files import Source, check_writable, write_file
from olac.system.formats import PROGRAMS
from olac.system.memory import memory_for
from olac.system.tensors import TensorFiles

FILES = TensorFiles("program", PROGRAMS, writer="LoweredProgram.save", hashes_tensors=False)
MAX_INTEGER = 1 << 62
MAX_CIPHERTEXTS = 1 << 14
MAX_PARTS = 1 << 16
MAX_NOTE_CHARACTERS = 1 << 20
MAX_PROBLEM_CHARACTERS = 500
REMAKE = PROGRAMS.remake


@memory_for("saving the program")
def save_program(program: LoweredProgram, path: str | Path) -> None:
    """Write a program to one file, completely or not at all.

    Raises:
        ArtifactError: the file can't be written.
        InfeasibleError: memory ran out.
        VerificationError: loading the file would not give the same program.
    """
    check_writable(path)
    data = program_bytes(program)
    write_file(path, [data], size=len(data))


def program_bytes(program: LoweredProgram) -> bytes:
    """The content of the file that `save_program` writes.

    Raises:
        VerificationError: loading them would not give the same program.
    """
    manifest = json.dumps(_manifest(program))
    try:
        again = _program(json.loads(manifest), program.graph.constants)
    except ValueError as error:
        raise VerificationError(f"the program can't be saved: {error}") from error
    if again.fingerprint != program.fingerprint:
        raise VerificationError("the program holds values that a file can't hold, such as numpy scalars in types")
    # ascontiguousarray would give scalars an axis, and safetensors writes strided arrays in the wrong order.
    tensors = {name: np.asarray(a, dtype="<f8", order="C") for name, a in program.graph.constants.items()}
    return FILES.pack(manifest, tensors)


@memory_for("loading the program")
def load_program(path: str | Path) -> LoweredProgram:
    """Read a program and check all of it.

    Raises:
        ArtifactError: the file is missing, damaged, of another kind or a newer version, or its program is not valid.
        InfeasibleError: memory ran out.
        SecurityError: its parameters don't have the security that they claim. If they have it only by the bounds of
            earlier versions, which were a little higher, there is a warning.
    """
    return _load(Source.of_file(path))


@memory_for("loading the program")
def program_from_bytes(data: bytes) -> LoweredProgram:
    """The program in the bytes from `program_bytes`, checked as `load_program` checks files, with the same errors."""
    return _load(Source(data=bytes(data)))


def _load(source: Source) -> LoweredProgram:
    version, manifest, constants = FILES.read(source)
    if version == 4:
        _add_fields_of_version_5(manifest)
    for name, array in constants.items():
        if array.dtype != np.float64:
            raise ArtifactError(
                f"{source.name}: the tensor {name} is of type {array.dtype}, expected float64. {REMAKE}"
            )
    wanted = {"olac", "fingerprint", "graph", "parameters", "rotations", "report", "head"}
    if set(manifest) - {"engine"} != wanted:
        raise ArtifactError(f"{source.name}: its manifest does not have the parts {sorted(wanted)}. {REMAKE}")
    try:
        program = _program(manifest, constants)
        _check(program)
        found = program.fingerprint
    except SecurityError as error:
        raise SecurityError(f"{source.name}: {error}") from error
    except (OlacError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ArtifactError(f"{source.name}: not a valid program: {_problem(error)}. {REMAKE}") from error
    if found != manifest["fingerprint"]:
        raise ArtifactError(
            f"{source.name}: its content has the fingerprint {found[:16]}..., it claims "
            f"{str(manifest['fingerprint'])[:16]}...: it was damaged or changed. Get it again from who made it."
        )
    if program.parameters.security == 0:
        warnings.warn(
            f"{source.name} was compiled without security, for tests: its ciphertexts hide nothing", stacklevel=5
        )
    elif not program.parameters.secure:
        warnings.warn(
            f"{source.name} was compiled for {program.parameters.security}-bit security by bounds that newer attacks "
            f"have lowered: it has {math.floor(program.parameters.security_bits)} bits. It runs as before; compile the "
            "model again for the full security.",
            stacklevel=5,
        )
    return program


def _problem(error: Exception) -> str:
    """What is wrong with a file, in one line. Unlike elsewhere, a broken invariant is not reported as a bug of olac."""
    said = error.args[0] if isinstance(error, VerificationError) and error.args else error
    line = " ".join(str(said).split()).removesuffix(".")
    return line if len(line) <= MAX_PROBLEM_CHARACTERS else line[:MAX_PROBLEM_CHARACTERS] + " ..."


def _add_fields_of_version_5(manifest: dict[str, Any]) -> None:
    """Add the fields that a manifest of version 4 lacks, with values that leave its program as it was.

    The manifest is not checked yet: parts of another form are left alone here, and refused later.
    """
    manifest.setdefault("head", [])
    graph, report = manifest.get("graph"), manifest.get("report")
    nodes = graph.get("nodes") if isinstance(graph, dict) else None
    for node in nodes if isinstance(nodes, list) else ():
        if isinstance(node, dict) and isinstance(node.get("type"), dict):
            node["type"].setdefault("channels", [])
        if isinstance(node, dict) and node.get("op") == Input.name and isinstance(node.get("attributes"), dict):
            node["attributes"].setdefault("offsets", [])
            node["attributes"].setdefault("factors", [])
    if isinstance(report, dict):
        report.setdefault("max_memory", None)
        if isinstance(report.get("check"), dict):
            for field in fields(SelfCheck):
                if field.default is not MISSING:
                    report["check"].setdefault(field.name, field.default)


# The manifest --------------------------------------------------------------------------------------------------------


def _olac_version() -> str:
    try:
        return importlib.metadata.version("olac")
    except importlib.metadata.PackageNotFoundError:  # run from a tree that isn't installed
        return "unknown"


def _manifest(program: LoweredProgram) -> dict[str, Any]:
    graph = program.graph
    engine = {} if program.engine == OPENFHE.name else {"engine": program.engine}
    return {
        "olac": _olac_version(),
        "fingerprint": program.fingerprint,
        "graph": {
            "nodes": [
                {
                    "id": node.id,
                    "op": node.op.name,
                    "attributes": _encode(node.op.attributes()),
                    "inputs": _encode(node.inputs),
                    "type": _encode(node.type),
                    "origin": _encode(node.origin),
                    "lowering": _tagged(node.lowering),
                }
                for node in graph.nodes
            ],
            "outputs": _encode(graph.outputs),
            "stage": graph.stage.name,
        },
        "parameters": _encode(program.parameters.fields()),
        "rotations": _encode(program.rotations),
        "report": _encode(replace(program.report, pass_seconds=())),
        "head": [_tagged(step) for step in program.head.steps],
        **engine,
    }


def _check_counts(manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest with too many parts or notes, before anything is made from them or shown to people."""
    for where in ("graph", "report"):
        parts = manifest[where] if isinstance(manifest[where], dict) else {}
        for name, part in parts.items():
            if isinstance(part, list) and len(part) > MAX_PARTS:
                raise ValueError(f"it has {len(part)} {name[:60]}, more than {MAX_PARTS}")
            if name == "notes" and sum(len(str(note)) for note in part or ()) > MAX_NOTE_CHARACTERS:
                raise ValueError(f"its notes are longer than {MAX_NOTE_CHARACTERS} characters")


def _program(manifest: Mapping[str, Any], constants: Mapping[str, Array]) -> LoweredProgram:
    _check_counts(manifest)
    graph = _object(manifest["graph"], {"nodes", "outputs", "stage"}, "graph")
    if graph["stage"] != Stage.LEVELLED.name:
        raise ValueError(f"the graph is at stage {graph['stage']!r}, expected {Stage.LEVELLED.name}")
    if not isinstance(graph["nodes"], list):
        raise ValueError("graph.nodes is not a list")
    nodes = tuple(_node(data, f"node {i}") for i, data in enumerate(graph["nodes"]))
    return LoweredProgram(
        Graph(nodes, _decode(graph["outputs"], tuple[str, ...], "outputs"), constants, Stage.LEVELLED),
        _parameters(manifest["parameters"]),
        _decode(manifest["rotations"], tuple[int, ...], "rotations"),
        _decode(manifest["report"], Report, "report"),
        _head(manifest["head"]),
        _engine(manifest.get("engine", OPENFHE.name)),
    )


def _parameters(data: Any) -> Parameters:
    setup = data.get("bootstrapping") if isinstance(data, dict) else None
    if isinstance(setup, dict):
        data = {**data, "bootstrapping": {"recipe": OPENFHE_RECIPE, **setup}}
    return typing.cast(Parameters, _decode(data, Parameters, "parameters"))


def _engine(data: Any) -> str:
    if not isinstance(data, str) or data not in ENGINES:
        raise ValueError(f"unknown engine {str(data)[:60]!r}: a newer olac or an extension made it")
    return data


def _node(data: Any, where: str) -> Node:
    parts = _object(data, {"id", "op", "attributes", "inputs", "type", "origin", "lowering"}, where)
    node_id = _decode(parts["id"], str, f"{where}.id")
    where = f"{where} ({node_id[:60]})"
    name = parts["op"]
    if not isinstance(name, str) or name not in OPS or OPS[name].last_stage < Stage.LEVELLED:
        raise ValueError(f"{where}: unknown op {str(name)[:60]!r}: a newer olac or an extension made it")
    return Node(
        node_id,
        typing.cast(Op, _decode(parts["attributes"], OPS[name], f"{where}.attributes")),
        _decode(parts["inputs"], tuple[str, ...], f"{where}.inputs"),
        _decode(parts["type"], ValueType, f"{where}.type"),
        _decode(parts["origin"], Origin, f"{where}.origin"),
        _lowering(parts["lowering"], f"{where}.lowering"),
    )


def _tagged(value: Lowering | Step | None) -> dict[str, Any] | None:
    return None if value is None else {"kind": value.kind, **_encode(value)}


def _lowering(data: Any, where: str) -> Lowering | None:
    return None if data is None else typing.cast(Lowering, _of_kind(data, LOWERINGS, where, "lowering"))


def _head(data: Any) -> OutputHead:
    if not isinstance(data, list):
        raise ValueError(f"head is a {type(data).__name__}, expected a list")
    return OutputHead(tuple(_of_kind(step, STEPS, f"head[{i}]", "step") for i, step in enumerate(data)))


def _of_kind(data: Any, kinds: Mapping[str, type], where: str, what: str) -> Any:
    """The value of the kind that `data` names, which must have exactly the fields of that kind."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}: unknown {what} {str(kind)[:60]!r}: a newer olac or an extension made it")
    rest = {name: value for name, value in data.items() if name != "kind"}
    return _decode(rest, kinds[kind], where)


def _encode(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists, numbers as Python's own."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


@functools.lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _object(data: Any, names: set[str], where: str) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != names:
        found = sorted(data)[:20] if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{where} is {found}, expected the fields {sorted(names)}")
    return data


def _decode(data: Any, kind: Any, where: str) -> Any:
    """JSON as the declared type, with nothing converted but lists to tuples and integers to floats."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        (kind,) = (a for a in arguments if a is not type(None))
        return _decode(data, kind, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} is a {type(data).__name__}, expected a list")
        parts = (arguments[0],) * len(data) if arguments[1:] == (...,) else arguments
        if len(parts) != len(data):
            raise ValueError(f"{where} has {len(data)} elements, expected {len(parts)}")
        return tuple(_decode(d, a, f"{where}[{i}]") for i, (d, a) in enumerate(zip(data, parts, strict=True)))
    if is_dataclass(kind):
        hints = _hints(typing.cast(type, kind))
        given = _object(data, set(hints), where)
        made = {name: _decode(given[name], hint, f"{where}.{name}") for name, hint in hints.items()}
        try:
            return typing.cast(Any, kind)(**made)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if kind is float and type(data) in (int, float):
        # Reports may hold infinite errors, but no number that programs compute with may be infinite.
        unbounded = type(data) is int and abs(data) > MAX_INTEGER
        if unbounded or not (math.isfinite(data) or where.startswith("report")):
            raise ValueError(f"{where} = {data} is not a finite number")
        return float(data)
    if type(data) is not kind:
        raise ValueError(f"{where} is a {type(data).__name__}, expected {getattr(kind, '__name__', kind)}")
    if kind is int and abs(data) > MAX_INTEGER:
        raise ValueError(f"{where} is too large")
    return data


# Checks --------------------------------------------------------------------------------------------------------------


def _check(program: LoweredProgram) -> None:
    """Check all that the compiler promises of its programs; raises ValueError or an error of olac."""
    parameters, graph = program.parameters, program.graph
    _check_chain_exists(parameters)
    parameters.check_security(earlier=True)
    refusal = program.planned_for.refuses(parameters)
    if refusal is not None:
        raise ValueError(refusal)
    named = {name for node in graph.nodes for name in node.op.constant_names()}
    if named != set(graph.constants):
        raise ValueError(f"constants {sorted(named ^ set(graph.constants))[:5]} are not both named and stored")
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs, expected one of each")
    for node in graph.nodes:
        _check_sizes(program, node)
    verify(graph, parameters)
    try:
        program.head.output_shape(program.output.type.shape)
    except ValueError as error:
        raise ValueError(f"the head does not take the program's outputs: {error}") from error
    steps = program.rotations
    most = parameters.slots - 1 if parameters.bootstrapping is not None else parameters.conjugation_step
    if list(steps) != sorted(set(steps)) or any(not 0 < step <= most for step in steps):
        raise ValueError(f"rotation steps must increase within 1 ... {most}")
    lacking = program.planned_for.bootstraps(parameters).steps - set(steps)
    if lacking:
        raise ValueError(f"{len(lacking)} rotation steps of bootstraps are not among the program's")


def _check_chain_exists(parameters: Parameters) -> None:
    """Large rings have few small primes: without this check the search for them would not end."""
    order, found = 2 * parameters.ring_dimension, 0
    candidate = (1 << parameters.scale_bits) + 1
    while candidate > order and found < parameters.depth + 2:
        candidate -= order
        found += is_prime(candidate)
    if found < parameters.depth + 2:
        raise ValueError(f"there are not {parameters.depth + 1} primes of {parameters.scale_bits} bits for the ring")


def _check_sizes(program: LoweredProgram, node: Node) -> None:
    """Check sizes before the checks that allocate memory by them."""
    layout, shape = node.layout, node.type.shape
    if not shape or min(shape) < 1 or min(layout.grid) < 1 or min(layout.padded) < 1 or node.type.batch < 1:
        raise ValueError(f"{node.id} has an empty shape")
    if layout.ciphertext_slots != program.parameters.slots:
        raise ValueError(
            f"{node.id} is laid out in {layout.ciphertext_slots} slots, the ring has {program.parameters.slots}"
        )
    if layout.ciphertexts > MAX_CIPHERTEXTS or math.prod(shape) > MAX_CIPHERTEXTS * layout.slots:
        raise ValueError(f"{node.id} takes {layout.ciphertexts} ciphertexts, more than {MAX_CIPHERTEXTS}")
