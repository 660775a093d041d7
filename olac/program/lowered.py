"""The data of a compiled program, and the fingerprint that keys and ciphertexts carry."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from olac.ckks.engines import OPENFHE, EngineModel, engine_model
from olac.ckks.parameters import Parameters
from olac.errors import VerificationError
from olac.ir.graph import Graph, Node
from olac.ir.head import OutputHead
from olac.ir.names import Names
from olac.ir.types import Stage
from olac.program.report import Report
from olac.system.formats import without_unused


def _canonical(value: Any) -> Any:
    """Plain data in which equal numbers are the same text, whatever their type."""
    if isinstance(value, dict):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_canonical(item) for item in value]
    if isinstance(value, str | bool) or value is None:
        return value
    return repr(float(value))


@dataclass(frozen=True)
class LoweredProgram:
    """The contents of a program file; `olac.CompiledProgram` adds what can be done with it.

    `engine` is the name of the engine that the program was planned for, and that runs it by default. `output_names` are
    those of classes or numbers that the client gets, or none; they do not count in the fingerprint. `public_key` says
    whether the program was planned for inputs that are encrypted with a public key; it decides nothing of a run.
    """

    graph: Graph
    parameters: Parameters
    rotations: tuple[int, ...]
    report: Report = field(default_factory=Report)
    head: OutputHead = field(default_factory=OutputHead)
    engine: str = OPENFHE.name
    output_names: Names = ()
    public_key: bool = False

    def __post_init__(self) -> None:
        engine_model(self.engine)
        if self.graph.stage != Stage.LEVELLED:
            raise VerificationError(f"a compiled program needs a levelled graph, not one at {self.graph.stage.name}")

    @property
    def input(self) -> Node:
        """The node that the client encrypts; its type has the layout, level and unit."""
        return self.graph.inputs[0]

    @property
    def output(self) -> Node:
        """The node that the client decrypts; the head computes the model's outputs from its value."""
        return self.graph[self.graph.outputs[0]]

    @property
    def planned_for(self) -> EngineModel:
        """What planners know of its engine."""
        return engine_model(self.engine)

    @property
    def batch(self) -> int:
        """Images in one set of ciphertexts."""
        return self.input.type.batch

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what the program computes and how; keys and ciphertexts carry it."""
        digest = hashlib.sha256()
        digest.update(json.dumps(self.parameters.fields(), sort_keys=True).encode())
        digest.update(json.dumps(self.rotations).encode())
        digest.update(json.dumps([self.graph.stage.name, self.graph.outputs]).encode())
        for name in sorted(self.graph.constants):
            array = self.graph.constants[name]
            digest.update(f"{name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        for node in self.graph.nodes:
            attributes = without_unused({name: _canonical(value) for name, value in node.op.attributes().items()})
            kind = without_unused(_canonical(asdict(node.type)))
            how = None if node.lowering is None else [node.lowering.kind, _canonical(asdict(node.lowering))]
            digest.update(json.dumps([node.id, node.op.name, attributes, node.inputs, kind, how]).encode())
        if self.head:  # programs without a head keep the fingerprint that they had before there were heads
            steps = [[step.kind, _canonical(asdict(step))] for step in self.head.steps]
            digest.update(json.dumps(["head", steps]).encode())
        if self.engine != OPENFHE.name:  # the fingerprints of programs for OpenFHE are older than other engines
            digest.update(json.dumps(["engine", self.engine]).encode())
        return digest.hexdigest()
