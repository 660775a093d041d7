"""Compares an encrypted run with a simulated one, layer by layer; only those who hold the secret key can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from olac.errors import InputError
from olac.ir.graph import Node
from olac.ir.ops import Array, Bootstrap, Input
from olac.kernels.base import Value
from olac.program.program import check_images
from olac.program.rows import Comparison, Outputs
from olac.program.rows import Row as Row
from olac.runtime.client import Client
from olac.runtime.server import Asked, Server
from olac.system.shapes import counted

THRESHOLD = 0.05
"""Largest error of a slot that counts as right, in the layer's unit, or times the largest slot if that exceeds 1."""
EDGE = 1.0 + 1e-3
"""Slots beyond this are out of range; noise alone may take a slot a little beyond 1."""


@dataclass(frozen=True)
class Fault:
    """The first layer that goes wrong.

    Attributes:
        layer: its id.
        problem: what is wrong there.
        advice: what to do, in a sentence.
    """

    layer: str
    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.problem}. {self.advice}"


def debug(client: Client, server: Server, images: object, progress: Asked = None) -> tuple[Row, ...]:
    """Run images encrypted and simulated, and compare all values.

    Args:
        client: with the secret key; of the program, or of what clients need of it.
        server: of the same program, with this client's evaluation keys.
        images: shape (n, *input shape) or one image; at most a batch.
        progress: as in `Server.run`.

    Raises:
        InputError, ArtifactError, BackendError: as `Client.encrypt` and `Server.run`.
    """
    return comparison(client, server, images, progress).rows


def comparison(client: Client, server: Server, images: object, progress: Asked = None) -> Comparison:
    """As `debug`, with a comparison of the outputs."""
    program = server.program
    given = check_images(images, program.input_shape)
    if len(given) > program.batch:
        many = counted(len(given), program.input_shape)
        raise InputError(f"{many} are given, at most {program.batch} share ciphertexts and are compared")
    simulated: dict[str, Array] = {}

    def simulate(node: Node, value: Array) -> None:
        simulated[node.id] = value

    encrypted = client.encrypt(given, allow_out_of_range=True)  # the comparison shows what comes of it
    program.simulate(given, simulate)
    rows: dict[str, Row] = {}

    outputs: list[Outputs] = []

    def compare(node: Node, value: Value) -> None:
        slots = client.slots(value)
        row = _row(node, value[0].state.level, simulated[node.id], slots)
        if node.id == program.output.id:
            outputs.append(_outputs(node, simulated[node.id], slots))
        if isinstance(node.op, Bootstrap):
            operand = rows[node.inputs[0]]  # the results of the sine are never out of range
            row = replace(
                row, largest=operand.largest, largest_encrypted=operand.largest_encrypted, outside=operand.outside
            )
        rows[node.id] = row

    server.run(encrypted, progress, observe=compare)
    found = tuple(replace(row, seconds=server.last_run[name]) for name, row in rows.items())
    return Comparison(found, outputs[-1])


def _outputs(node: Node, simulated: Array, slots: Array) -> Outputs:
    ours = node.layout.unpack(slots)[: len(simulated)].reshape(len(simulated), -1)
    theirs = simulated.reshape(len(simulated), -1)
    difference = np.abs(ours - theirs) * node.type.unit
    decides = theirs.shape[1] > 1
    same = int(np.count_nonzero(ours.argmax(1) == theirs.argmax(1))) if decides else None
    return Outputs(len(simulated), same, float(difference.mean()), float(difference.max()))


def _row(node: Node, level: int, simulated: Array, slots: Array) -> Row:
    difference = np.abs(node.layout.unpack(slots)[: len(simulated)] - simulated)
    error, mean = float(difference.max()), float(difference.mean())
    size = float(np.abs(simulated).max())
    return Row(
        layer=node.id,
        op=node.op.name,
        level=level,
        error=error,
        true_error=error * node.type.unit,
        bits=-math.log2(mean / (size or 1.0)) if mean else math.inf,
        largest=size,
        largest_encrypted=float(np.abs(slots).max()),
        outside=int(np.count_nonzero(_outside(node, simulated))),
    )


def _outside(node: Node, slots: Array) -> npt.NDArray[np.bool_]:
    bound = node.type.bound
    if not isinstance(node.op, Input) or bound is None:
        return np.abs(slots) > EDGE
    ranges = node.type.channels or (bound,) * node.type.shape[0]
    ends = np.array([(one.low, one.high) for one in ranges]).reshape(-1, 2, *(1,) * (len(node.type.shape) - 1))
    slack = (EDGE - 1.0) * np.abs(ends).max(axis=1)
    values = slots * node.type.unit
    return np.asarray((values < ends[:, 0] - slack) | (values > ends[:, 1] + slack))


def first_fault(rows: Sequence[Row], threshold: float = THRESHOLD) -> Fault | None:
    """The first layer with an error beyond `threshold`, or a bootstrap of values out of range; None if all is well."""
    left = ""  # the first layer out of range, which often causes what goes wrong later
    for row in rows:
        if row.outside and not left:
            left = row.layer
        entering = max(row.largest, row.largest_encrypted)
        if row.op == Bootstrap.name and entering > EDGE:
            problem = f"slots reach {entering:.3g} at a bootstrap, which loses precision beyond 1"
            return Fault(row.layer, problem, _range_advice(rows, left))
        if row.error <= threshold * max(1.0, row.largest):  # noise grows with values that are out of range
            continue
        problem = f"slots are off by {row.error:.2g} of the unit, and at most {threshold:g} is right"
        if math.isnan(row.error):
            problem = "it does not decrypt to numbers: values overflowed, or noise took their place"
        if left:
            return Fault(row.layer, problem, _range_advice(rows, left))
        if row.op == Bootstrap.name:
            advice = "The bootstrap itself loses that much: compile with parameters of a larger scale."
        else:
            advice = "Noise grew too large: compile with more precision (precision=), or parameters of a larger scale."
        return Fault(row.layer, problem, advice)
    return None


def _range_advice(rows: Sequence[Row], left: str) -> str:
    if not left:
        return "Only slots that hold no element are out of range: a bug in olac, please report it with the program."
    if any(row.layer == left and row.op == Input.name for row in rows):
        return (
            "The inputs themselves lie outside what was calibrated: prepare them as the calibration inputs, or "
            "calibrate with more like them."
        )
    return f"Values first leave [-1, 1] at {left}: calibrate with more inputs like these."
