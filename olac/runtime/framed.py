"""Objects that travel in a frame (see `olac.runtime.envelope`): as bytes, as a file, and pickled."""

from __future__ import annotations

import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from olac.ckks.parameters import Parameters
from olac.errors import plain
from olac.program.program import AnyProgram, check_any_program
from olac.runtime.envelope import Owner, Payload, open_frame
from olac.system.files import Output, Source, check_writable, write_files
from olac.system.logs import event as log_event
from olac.system.memory import memory_for

if TYPE_CHECKING:
    from typing_extensions import Self


log = logging.getLogger(__name__)


class Framed(ABC):
    """An object that one side of a program sends to the other.

    Attributes:
        kind: the kind of its frame.
        contents: what errors call the contents of the frame.
    """

    kind: ClassVar[str]
    contents: ClassVar[str]

    @property
    @abstractmethod
    def payload_bytes(self) -> int:
        """Bytes of the coefficients."""

    @abstractmethod
    def _pieces(self) -> Iterator[bytes | memoryview]:
        """The frame, in pieces, each valid until the next is asked for."""

    @property
    @abstractmethod
    def _belongs_to(self) -> AnyProgram | Parameters:
        """What it belongs to, from which `from_bytes` reads it again."""

    @classmethod
    def _owner(cls, given: AnyProgram | Parameters) -> Owner:
        """What a frame has to belong to; raises `ArtifactError` for what is no program."""
        check_any_program(given)
        return given

    @classmethod
    @abstractmethod
    def _of(cls, given: Any, payload: Payload) -> Self:
        """Read and check all that follows the header of a frame."""

    def to_bytes(self) -> bytes:
        """One frame. Save large keys to a file, which takes no memory."""
        with memory_for(f"writing {self.contents}"):
            out = io.BytesIO()
            for piece in self._pieces():
                out.write(piece)
            return out.getvalue()

    def save(self, path: str | Path) -> None:
        """Write one frame to a file, piece by piece.

        Raises:
            ArtifactError: the file can't be written (see `olac.system.files.write_file`).
            InfeasibleError: memory ran out.
        """
        output = self.output(path)
        check_writable(path, size=output.size)
        with memory_for(f"saving the {self.kind.replace('-', ' ')}"):
            write_files([output])
        log_event(log, f"{plain(path)}: {self.kind} saved", file=str(path), kind=self.kind, bytes=output.size)

    def output(self, path: str | Path) -> Output:
        """What `save` writes, for `olac.system.files.write_files`, which may write the secret key together with it."""
        return Output(Path(path), self._pieces(), size=self.payload_bytes)

    def __reduce__(self) -> tuple[Callable[[Any, bytes], Framed], tuple[AnyProgram | Parameters, bytes]]:
        """Pickles and copies are made with `to_bytes`, so that they are checked as files are."""
        return type(self).from_bytes, (self._belongs_to, self.to_bytes())

    @classmethod
    def from_bytes(cls, program: AnyProgram, data: bytes) -> Self:
        """Check a frame; raises `ArtifactError` for anything that does not fit the program."""
        return cls._read(program, Source(data=data))

    @classmethod
    def load(cls, program: AnyProgram, path: str | Path) -> Self:
        """Read and check a file.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind, version or program.
        """
        return cls._loaded(program, path)

    @classmethod
    def _loaded(cls, given: AnyProgram | Parameters, path: str | Path) -> Self:
        made = cls._read(given, Source.of_file(path))
        size = made.payload_bytes
        log_event(log, f"{plain(path)}: {cls.kind} loaded", file=str(path), kind=cls.kind, bytes=size)
        return made

    @classmethod
    def _read(cls, given: AnyProgram | Parameters, source: Source) -> Self:
        with memory_for(f"reading {cls.contents}"), open_frame(source, cls.kind, cls._owner(given)) as payload:
            return cls._of(given, payload)


class FramedKeys(Framed):
    """Public keys, which belong to parameters: they serve every program that has these.

    Attributes:
        parameters: those that they are for.
    """

    parameters: Parameters

    @property
    def _belongs_to(self) -> Parameters:
        return self.parameters

    @classmethod
    def _owner(cls, given: AnyProgram | Parameters) -> Owner:
        return parameters_of(given)

    @classmethod
    def from_bytes(cls, program: AnyProgram | Parameters, data: bytes) -> Self:
        """Check a frame; raises `ArtifactError` for anything that is not for the parameters (of the program).

        Args:
            program: a program, what clients know of it, or parameters.
            data: what `to_bytes` gave.
        """
        return cls._read(program, Source(data=data))

    @classmethod
    def load(cls, program: AnyProgram | Parameters, path: str | Path) -> Self:
        """Read and check a file. Evaluation keys are read again when a server takes them.

        Args:
            program: with the parameters that the keys must be for, or these parameters. Evaluation keys of olac 0.1 or
                older, which belong to one program, take that program.
            path: the file.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind or version, or for other parameters.
        """
        return cls._loaded(program, path)


def parameters_of(given: AnyProgram | Parameters) -> Parameters:
    """Parameters, as given or of a program; ArtifactError for what is neither."""
    if isinstance(given, Parameters):
        return given
    check_any_program(given)
    return given.parameters
