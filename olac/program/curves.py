"""Curves of a program's activations as a file beside the program, which only its owner may read.

They tell of the calibration data: how inputs of every activation are distributed. So they are never in the program,
which servers get, nor in what clients get.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from olac.polynomials.curves import Curve
from olac.program.json_files import JsonFiles
from olac.system.files import Output, Source
from olac.system.formats import CURVES

SUFFIX = ".report"
MOST_CURVES = 1 << 14
FILES = JsonFiles(
    "olac-curves",
    "the curves of a program",
    CURVES,
    most_bytes=64_000_000,
    mismatch="Name the file that was saved with this program (PROGRAM.report), or compile the model again and save it.",
)


@dataclass(frozen=True)
class Curves:
    """What reports show of a model beside its program.

    Attributes:
        model: the name of the model's class; empty if it is not known.
        activations: a curve for each, in network order.
    """

    model: str = ""
    activations: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        if len(self.activations) > MOST_CURVES:
            raise ValueError(f"{len(self.activations)} activations, more than {MOST_CURVES}")

    def output(self, path: Path, fingerprint: str) -> Output:
        """The file to write for the program with this fingerprint, with mode 0600."""
        data = FILES.pack(fingerprint, self)
        return Output(path, [data], private=True, size=len(data))

    @staticmethod
    def load(path: str | Path, fingerprint: str) -> Curves:
        """Read a file and check all of it.

        Raises:
            ArtifactError: it is missing, damaged, of another kind or version, or belongs to another program.
        """
        _, found = FILES.read(Source.of_file(path), Curves, fingerprint)
        return found


def beside(path: str | Path) -> Path:
    """Where the curves of the program in a file are."""
    return Path(f"{path}{SUFFIX}")
