"""Compiled programs as files: one safetensors file with the constants as tensors and the rest as a JSON manifest.

Nothing in a file is executed or trusted: every field must have the type that its dataclass declares, every invariant of
the compiler is checked again, and the fingerprint must be the one in the file.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from olac.ckks.engines import OPENFHE
from olac.errors import ArtifactError, OlacError, SecurityError, VerificationError, plain
from olac.ir.graph import Graph, Node, Origin
from olac.ir.lowerings import LOWERINGS, Lowering
from olac.ir.names import Names, check_names
from olac.ir.ops import OPS, Array, Input, Op
from olac.ir.types import Stage, ValueType
from olac.ir.verify import verify
from olac.program.lowered import LoweredProgram
from olac.program.parts import (
    check_chain_exists,
    check_sizes,
    decode,
    encode,
    engine_of,
    head_of,
    object_of,
    of_kind,
    parameters_of,
    problem_of,
    tagged,
    warn_of_security,
)
from olac.program.report import Report, SelfCheck
from olac.system.files import Output, Source, check_writable, write_files
from olac.system.formats import PROGRAMS
from olac.system.logs import event as log_event
from olac.system.memory import memory_for
from olac.system.tensors import TensorFiles

log = logging.getLogger(__name__)

FILES = TensorFiles("program", PROGRAMS, writer="LoweredProgram.save", hashes_tensors=False)
MAX_PARTS = 1 << 16
MAX_NOTE_CHARACTERS = 1 << 20
REMAKE = PROGRAMS.remake


@memory_for("saving the program")
def save_program(program: LoweredProgram, path: str | Path, *others: Output) -> None:
    """Write a program to one file, completely or not at all.

    Args:
        others: files that are written with it, or not at all.

    Raises:
        ArtifactError: the file can't be written.
        InfeasibleError: memory ran out.
        VerificationError: loading the file would not give the same program.
    """
    check_writable(path)
    data = program_bytes(program)
    write_files([Output(Path(path), [data], size=len(data)), *others])
    log_event(log, f"{plain(path)}: program saved", file=str(path), fingerprint=program.fingerprint, bytes=len(data))


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
    program = _load(Source.of_file(path))
    log_event(log, f"{plain(path)}: program loaded", file=str(path), fingerprint=program.fingerprint)
    return program


@memory_for("loading the program")
def program_from_bytes(data: bytes) -> LoweredProgram:
    """The program in the bytes from `program_bytes`, checked as `load_program` checks files, with the same errors."""
    return _load(Source(data=bytes(data)))


def _load(source: Source) -> LoweredProgram:
    version, manifest, constants = FILES.read(source)
    if version == 4:
        _add_fields_of_version_5(manifest)
    if version < 6:
        manifest.setdefault("output_names", [])
    for name, array in constants.items():
        if array.dtype != np.float64:
            raise ArtifactError(
                f"{source.name}: the tensor {name} is of type {array.dtype}, expected float64. {REMAKE}"
            )
    wanted = {"olac", "fingerprint", "graph", "parameters", "rotations", "report", "head", "output_names"}
    if set(manifest) - {"engine", "public_key"} != wanted:
        raise ArtifactError(f"{source.name}: its manifest does not have the parts {sorted(wanted)}. {REMAKE}")
    try:
        program = _program(manifest, constants)
        _check(program)
        found = program.fingerprint
    except SecurityError as error:
        raise SecurityError(f"{source.name}: {error}") from error
    except (OlacError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ArtifactError(f"{source.name}: not a valid program: {problem_of(error)}. {REMAKE}") from error
    if found != manifest["fingerprint"]:
        raise ArtifactError(
            f"{source.name}: its content has the fingerprint {found[:16]}..., it claims "
            f"{str(manifest['fingerprint'])[:16]}...: it was damaged or changed. Get it again from who made it."
        )
    warn_of_security(program.parameters, source.name, stacklevel=6)
    return program


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


def olac_version() -> str:
    """The version that is installed, or "unknown"."""
    try:
        return importlib.metadata.version("olac")
    except importlib.metadata.PackageNotFoundError:  # run from a tree that isn't installed
        return "unknown"


def _manifest(program: LoweredProgram) -> dict[str, Any]:
    graph = program.graph
    engine = {} if program.engine == OPENFHE.name else {"engine": program.engine}
    return {
        "olac": olac_version(),
        "fingerprint": program.fingerprint,
        "graph": {
            "nodes": [
                {
                    "id": node.id,
                    "op": node.op.name,
                    "attributes": encode(node.op.attributes()),
                    "inputs": encode(node.inputs),
                    "type": encode(node.type),
                    "origin": encode(node.origin),
                    "lowering": tagged(node.lowering),
                }
                for node in graph.nodes
            ],
            "outputs": encode(graph.outputs),
            "stage": graph.stage.name,
        },
        "parameters": encode(program.parameters.fields()),
        "rotations": encode(program.rotations),
        "report": encode(replace(program.report, pass_seconds=())),
        "head": [tagged(step) for step in program.head.steps],
        "output_names": encode(program.output_names),
        **engine,
        **({"public_key": True} if program.public_key else {}),
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
    graph = object_of(manifest["graph"], {"nodes", "outputs", "stage"}, "graph")
    if graph["stage"] != Stage.LEVELLED.name:
        raise ValueError(f"the graph is at stage {graph['stage']!r}, expected {Stage.LEVELLED.name}")
    if not isinstance(graph["nodes"], list):
        raise ValueError("graph.nodes is not a list")
    nodes = tuple(_node(data, f"node {i}") for i, data in enumerate(graph["nodes"]))
    return LoweredProgram(
        Graph(nodes, decode(graph["outputs"], tuple[str, ...], "outputs"), constants, Stage.LEVELLED),
        parameters_of(manifest["parameters"]),
        decode(manifest["rotations"], tuple[int, ...], "rotations"),
        decode(manifest["report"], Report, "report"),
        head_of(manifest["head"]),
        engine_of(manifest.get("engine", OPENFHE.name)),
        decode(manifest["output_names"], Names, "output_names"),
        decode(manifest.get("public_key", False), bool, "public_key"),
    )


def _node(data: Any, where: str) -> Node:
    parts = object_of(data, {"id", "op", "attributes", "inputs", "type", "origin", "lowering"}, where)
    node_id = decode(parts["id"], str, f"{where}.id")
    where = f"{where} ({node_id[:60]})"
    name = parts["op"]
    if not isinstance(name, str) or name not in OPS or OPS[name].last_stage < Stage.LEVELLED:
        raise ValueError(f"{where}: unknown op {str(name)[:60]!r}: a newer olac or an extension made it")
    return Node(
        node_id,
        typing.cast(Op, decode(parts["attributes"], OPS[name], f"{where}.attributes")),
        decode(parts["inputs"], tuple[str, ...], f"{where}.inputs"),
        decode(parts["type"], ValueType, f"{where}.type"),
        decode(parts["origin"], Origin, f"{where}.origin"),
        _lowering(parts["lowering"], f"{where}.lowering"),
    )


def _lowering(data: Any, where: str) -> Lowering | None:
    return None if data is None else typing.cast(Lowering, of_kind(data, LOWERINGS, where, "lowering"))


# Checks --------------------------------------------------------------------------------------------------------------


def _check(program: LoweredProgram) -> None:
    """Check all that the compiler promises of its programs; raises ValueError or an error of olac."""
    parameters, graph = program.parameters, program.graph
    check_chain_exists(parameters)
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
        check_sizes(node.type, parameters.slots, node.id)
    verify(graph, parameters)
    try:
        program.head.output_shape(program.output.type.shape)
    except ValueError as error:
        raise ValueError(f"the head does not take the program's outputs: {error}") from error
    check_names(program.output_names, program.head, program.output.type.shape)
    steps = program.rotations
    most = parameters.slots - 1 if parameters.bootstrapping is not None else parameters.conjugation_step
    if list(steps) != sorted(set(steps)) or any(not 0 < step <= most for step in steps):
        raise ValueError(f"rotation steps must increase within 1 ... {most}")
    lacking = program.planned_for.bootstraps(parameters).steps - set(steps)
    if lacking:
        raise ValueError(f"{len(lacking)} rotation steps of bootstraps are not among the program's")
