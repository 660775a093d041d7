"""Which versions of olac's files this release reads, and the messages about the others.

A release reads every older version, or names the last release that does. The end of support is announced one release
before: files of such a version are still read then, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from olac.errors import ArtifactError
from olac.system.logs import warn

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Versions:
    """The versions of one kind of file.

    Attributes:
        current: the version that is written.
        oldest: the first version that is read.
        ending: for each version that the next release will not read, the name of that release.
        ended: for each version that is not read any more, the last release that read it; a version without an entry was
            never part of a release.
        remake: what to do about a file that can't be read.
    """

    current: int
    oldest: int
    ending: Mapping[int, str] = field(default_factory=dict)
    ended: Mapping[int, str] = field(default_factory=dict)
    remake: str = "Make it anew with this olac."

    def check(self, version: object, name: str) -> None:
        """Warn if support of a version ends.

        Args:
            version: as the file gives it, which may be of any type.
            name: of the file, for messages.

        Raises:
            ArtifactError: this release does not read it.
        """
        if type(version) is not int or not self.oldest <= version <= self.current:
            reads = f"{self.current}" if self.oldest == self.current else f"{self.oldest} to {self.current}"
            raise ArtifactError(
                f"{name}: format version {str(version)[:20]}, this olac reads version {reads}. {self._advice(version)}"
            )
        if version in self.ending:
            warn(
                log,
                f"{name}: format version {version} is not read by olac {self.ending[version]} and later. {self.remake}",
                stacklevel=2,
            )

    def _advice(self, version: object) -> str:
        if type(version) is int and version > self.current:
            return "Update olac."
        if type(version) is int and version in self.ended:
            return f"olac {self.ended[version]} still reads it. {self.remake}"
        return self.remake


PROGRAMS = Versions(current=6, oldest=4, remake="Compile the model again and save it anew.")
CLIENT_PROGRAMS = Versions(
    current=2, oldest=1, remake="Make it anew of the program: CompiledProgram.client().save(path)."
)
"""What clients know of programs."""
FRAMES = Versions(current=3, oldest=1)
"""Keys, ciphertexts and checkpoints."""
KEY_MANIFESTS = Versions(current=1, oldest=1)
"""Lists of evaluation keys in parts."""
CALIBRATIONS = Versions(current=2, oldest=1, remake="Calibrate the model again and save it anew.")
CURVES = Versions(current=1, oldest=1, remake="Compile the model again and save the program anew.")
"""Data of calibration that reports show, beside a program."""
RUN_RECORDS = Versions(current=1, oldest=1, remake="Write it anew with olac run --record, or olac debug --json.")
"""What was measured in encrypted runs."""
FITS = Versions(current=1, oldest=1, remake="Delete it: the fit then begins anew.")
"""The state of fits. Files of other releases are not kept readable."""

SINCE_VERSION_5 = ("channels", "offsets", "factors")
"""Fields of types and ops that programs of version 4 and calibrations of version 1 lack."""


def without_unused(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that fingerprints cover: later ones only if they are used, so that older files keep theirs."""
    return {name: value for name, value in fields.items() if name not in SINCE_VERSION_5 or value}


__all__ = [
    "CALIBRATIONS",
    "CLIENT_PROGRAMS",
    "CURVES",
    "FITS",
    "FRAMES",
    "KEY_MANIFESTS",
    "PROGRAMS",
    "RUN_RECORDS",
    "Versions",
    "without_unused",
]
