"""Small JSON files that belong to one program: they name its fingerprint, and are checked before anything is used."""

from __future__ import annotations

import json
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from olac.errors import ArtifactError
from olac.program.parts import decode, encode, problem_of
from olac.system.files import MAGIC, Source
from olac.system.formats import Versions
from olac.system.memory import memory_for

T = TypeVar("T")
HEX_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class JsonFiles:
    """One kind of file.

    Attributes:
        format: the name that every file of this kind holds.
        what: it is, for messages.
        versions: that are read.
        most_bytes: of a file.
        mismatch: what to do if a file belongs to another program.
    """

    format: str
    what: str
    versions: Versions
    most_bytes: int
    mismatch: str

    def pack(self, fingerprint: str, content: Any) -> bytes:
        """The bytes of a file. ValueError for numbers that are not finite, which JSON can't hold."""
        outer = {
            "format": self.format,
            "version": self.versions.current,
            "fingerprint": fingerprint,
            "content": encode(content),
        }
        return json.dumps(outer, allow_nan=False, separators=(",", ":")).encode() + b"\n"

    @memory_for("reading a file")
    def read(self, source: Source, kind: type[T], fingerprint: str | None) -> tuple[str, T]:
        """The fingerprint in a file, and its content, every field of which has the type that `kind` declares.

        Args:
            kind: a dataclass.
            fingerprint: of the program that the file must belong to; None for any.

        Raises:
            ArtifactError: the file is too large, damaged, of another kind, version or program.
        """
        with source.open() as stream:
            data = stream.read(self.most_bytes + 1)
        outer = self._outer(data, source.name)
        self.versions.check(outer.get("version"), source.name)
        found = outer.get("fingerprint")
        if not isinstance(found, str) or len(found) != 64 or set(found) - HEX_DIGITS:
            raise ArtifactError(f"{source.name}: it names no program. {self.versions.remake}")
        if fingerprint is not None and found != fingerprint:
            raise ArtifactError(
                f"{source.name}: it belongs to the program {found[:16]}..., and this program is {fingerprint[:16]}.... "
                f"{self.mismatch}"
            )
        try:
            content = typing.cast(T, decode(outer.get("content"), kind, "content"))
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise ArtifactError(
                f"{source.name}: not {self.what}: {problem_of(error)}. {self.versions.remake}"
            ) from error
        return found, content

    def _outer(self, data: bytes, name: str) -> dict[str, Any]:
        if len(data) > self.most_bytes:
            raise ArtifactError(f"{name}: more than {self.most_bytes} bytes, which {self.what} never has.")
        if data[: len(MAGIC)] == MAGIC:
            raise ArtifactError(f"{name}: it holds keys or ciphertexts, not {self.what}. Name another file.")
        try:
            outer = json.loads(data.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{name}: not {self.what}, or damaged. {self.versions.remake}") from error
        if not isinstance(outer, dict) or outer.get("format") != self.format:
            raise ArtifactError(f"{name}: not {self.what}. {self.versions.remake}")
        return outer


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
