"""What was measured in an encrypted run, as a small file that reports read: seconds, memory and errors.

`olac run --record` writes seconds and memory, which tell nothing of inputs. `olac debug --json` writes errors and the
largest value of each layer as well: its file is for the client, with mode 0600.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from olac.errors import ArtifactError
from olac.program.json_files import JsonFiles
from olac.program.rows import Comparison, Outputs, Row
from olac.system.files import Source, write_file
from olac.system.formats import RUN_RECORDS

MOST_NODES = 1 << 16
FILES = JsonFiles(
    "olac-run",
    "the record of a run",
    RUN_RECORDS,
    most_bytes=16_000_000,
    mismatch="Record a run of this program: olac run --record, or olac debug --json.",
)


@dataclass(frozen=True)
class NodeRun:
    """One node of a run.

    Attributes:
        node: its id.
        seconds: wall time, over all sets of ciphertexts.
        memory_gb: resident memory of the process after it; None if it was not measured.
    """

    node: str
    seconds: float
    memory_gb: float | None = None


@dataclass(frozen=True)
class Timing:
    """A run on a server.

    Attributes:
        engine: that computed.
        threads: of the process.
        images: of the run.
        seconds: wall time of all nodes.
        peak_gb: the largest resident memory of the process.
        keys_held, keys_read: rotation keys that are held at most, and how often the server has read one from its file
            so far; None if all are held.
        nodes: in the order of the run.
    """

    engine: str
    threads: int
    images: int
    seconds: float
    peak_gb: float
    keys_held: int | None
    keys_read: int | None
    nodes: tuple[NodeRun, ...]


@dataclass(frozen=True)
class LayerErrors:
    """One row of a comparison; see `olac.program.rows.Row`. Numbers that are not finite are None."""

    layer: str
    op: str
    level: int
    error: float | None
    true_error: float | None
    bits: float | None
    largest: float | None
    largest_encrypted: float | None
    outside: int
    seconds: float


@dataclass(frozen=True)
class OutputErrors:
    """The outputs of an encrypted run against a simulated one; see `olac.program.rows.Outputs`."""

    images: int
    same: int | None
    mean_error: float | None
    max_error: float | None


@dataclass(frozen=True)
class Accuracy:
    """Shares of images with labels whose class is right.

    Attributes:
        images: with labels.
        model: of the model itself, in torch.
        simulated, encrypted: of the program; None if it was not measured.
    """

    images: int
    model: float | None = None
    simulated: float | None = None
    encrypted: float | None = None

    def __post_init__(self) -> None:
        for share in (self.model, self.simulated, self.encrypted):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"an accuracy of {share}, which is no share")


@dataclass(frozen=True)
class _Content:
    timing: Timing | None
    layers: tuple[LayerErrors, ...]
    outputs: OutputErrors | None
    accuracy: Accuracy | None

    def __post_init__(self) -> None:
        nodes = 0 if self.timing is None else len(self.timing.nodes)
        if max(nodes, len(self.layers)) > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} nodes")


@dataclass(frozen=True)
class RunRecord:
    """What is known of encrypted runs of one program; parts that were not measured are None or empty.

    Attributes:
        fingerprint: of the program.
        timing: of a run on a server.
        layers, outputs: of a comparison with a simulated run.
        accuracy: on images with labels. olac does not know labels: who measures it gives it here.
    """

    fingerprint: str
    timing: Timing | None = None
    layers: tuple[LayerErrors, ...] = ()
    outputs: OutputErrors | None = None
    accuracy: Accuracy | None = None

    @staticmethod
    def of_comparison(fingerprint: str, found: Comparison) -> RunRecord:
        """The record of a comparison (`olac.runtime.debug.comparison`)."""
        return RunRecord(
            fingerprint, layers=tuple(_layer(row) for row in found.rows), outputs=_output_errors(found.outputs)
        )

    def merged(self, other: RunRecord) -> RunRecord:
        """This record with the parts of another one, which come first where both have them. Both are of one program."""
        return RunRecord(
            self.fingerprint,
            other.timing or self.timing,
            other.layers or self.layers,
            other.outputs or self.outputs,
            other.accuracy or self.accuracy,
        )

    def to_bytes(self) -> bytes:
        """The bytes of a file."""
        content = _Content(self.timing, self.layers, self.outputs, self.accuracy)
        return FILES.pack(self.fingerprint, content)

    def save(self, path: str | Path) -> None:
        """Write a file; only its owner may read it (mode 0600) if it tells of values. ArtifactError if that fails."""
        data = self.to_bytes()
        write_file(path, [data], private=bool(self.layers or self.outputs), size=len(data))

    @staticmethod
    def load(path: str | Path, fingerprint: str | None = None) -> RunRecord:
        """Read a file and check all of it.

        Args:
            fingerprint: of the program that it must belong to; None for any.

        Raises:
            ArtifactError: it is missing, damaged, of another kind or version, or belongs to another program.
        """
        found, content = FILES.read(Source.of_file(path), _Content, fingerprint)
        return RunRecord(found, content.timing, content.layers, content.outputs, content.accuracy)


AnyRecord: TypeAlias = RunRecord | str | Path


def joined(given: AnyRecord | Sequence[AnyRecord] | None, fingerprint: str) -> RunRecord | None:
    """One record of all that is given; None for nothing.

    Raises:
        ArtifactError: a file can't be used, or a record belongs to another program.
    """
    if given is None:
        return None
    several = [given] if isinstance(given, RunRecord | str | Path) else list(given)
    found: RunRecord | None = None
    for one in several:
        record = one if isinstance(one, RunRecord) else RunRecord.load(one, fingerprint)
        if record.fingerprint != fingerprint:
            raise ArtifactError(
                f"the record is of the program {record.fingerprint[:16]}..., and this program is "
                f"{fingerprint[:16]}.... {FILES.mismatch}"
            )
        found = record if found is None else found.merged(record)
    return found


def timing_of(
    seconds: Mapping[str, float],
    memory_gb: Mapping[str, float],
    *,
    engine: str,
    threads: int,
    images: int,
    peak_gb: float,
    keys_held: int | None = None,
    keys_read: int | None = None,
) -> Timing:
    """A `Timing` of the seconds and memory of nodes, by id."""
    nodes = tuple(NodeRun(name, spent, memory_gb.get(name)) for name, spent in seconds.items())
    return Timing(engine, threads, images, sum(seconds.values()), peak_gb, keys_held, keys_read, nodes)


def _layer(row: Row) -> LayerErrors:
    return LayerErrors(
        row.layer,
        row.op,
        row.level,
        _finite(row.error),
        _finite(row.true_error),
        _finite(row.bits),
        _finite(row.largest),
        _finite(row.largest_encrypted),
        row.outside,
        row.seconds,
    )


def _output_errors(found: Outputs) -> OutputErrors:
    return OutputErrors(found.images, found.same, _finite(found.mean_error), _finite(found.max_error))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
