"""Files that are there completely or not at all, and what is read from files or bytes that arrive."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from olac.errors import ArtifactError


@dataclass(frozen=True)
class Source:
    """Where a frame is read from: a file, or bytes that somebody sent."""

    path: Path | None = None
    data: bytes = b""

    @staticmethod
    def of_file(path: str | Path) -> Source:
        """A file; raises `ArtifactError` where there is none."""
        given = Path(path)
        if not given.is_file():
            what = "is not a file" if given.exists() else "does not exist"
            raise ArtifactError(f"{given}: {what}. Check the path.")
        return Source(given)

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"{self.path}" if self.path is not None else f"{len(self.data)} bytes received"

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.data) if self.path is None else self.path.stat().st_size

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The stream from its beginning; problems of the file system become `ArtifactError`."""
        try:
            stream: BinaryIO = io.BytesIO(self.data) if self.path is None else self.path.open("rb")
            with stream:
                yield stream
        except OSError as error:
            raise ArtifactError(f"{self.name}: can't be read: {error.strerror or error}") from error

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """The source, open."""
        with self.open() as stream:
            yield Reader(self, stream)


class Reader:
    """Reads an open source from any place; several threads may use one."""

    def __init__(self, source: Source, stream: BinaryIO) -> None:
        self._source = source
        self._stream = stream

    def read_into(self, buffer: memoryview, at: int) -> int:
        """Fill a buffer of bytes from an offset on; how many there were."""
        if self._source.path is None:
            piece = self._source.data[at : at + len(buffer)]
            buffer[: len(piece)] = piece
            return len(piece)
        done = 0
        try:
            while done < len(buffer):
                more = os.preadv(self._stream.fileno(), [buffer[done:]], at + done)
                if not more:
                    break
                done += more
        except OSError as error:
            raise ArtifactError(f"{self._source.name}: can't be read: {error.strerror or error}") from error
        return done


def check_writable(path: str | Path) -> None:
    """Raise ArtifactError where a file could not be written at the end of a long run."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ArtifactError(f"{path}: the folder {folder} doesn't exist. Make it, or choose another.")
    if not os.access(folder, os.W_OK):
        raise ArtifactError(f"{path}: the folder {folder} can't be written to.")


def write_file(
    path: str | Path, pieces: Iterable[bytes | memoryview], *, mode: int = 0o644, overwrite: bool = True
) -> None:
    """Write a file that is there completely or not at all.

    Raises:
        ArtifactError: the folder doesn't exist or can't be written, or the file exists and must not be overwritten.
    """
    target = Path(path)
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target}: exists already and is not overwritten. Choose another name, or delete it.")
    temporary = None
    try:
        # mkstemp makes it readable for its owner alone from the first byte.
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_new(temporary, target)
        temporary = None
    except FileExistsError as error:
        raise ArtifactError(f"{target}: exists already and is not overwritten.") from error
    except OSError as error:
        raise ArtifactError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _rename_new(temporary: str, target: Path) -> None:
    """Rename; FileExistsError where the target came to be in the meantime."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the check before has to do
        os.replace(temporary, target)
    else:
        os.unlink(temporary)
