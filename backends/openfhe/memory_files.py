"""Files in memory: OpenFHE reads and writes large objects by name without copying them to strings."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from olac.errors import BackendError

if TYPE_CHECKING:
    from typing_extensions import Self

DESCRIPTORS = "/proc/self/fd"


class MemoryFile:
    """A file without a name in any folder, which only this process writes.

    If the system has no files in memory, it is a temporary file that only its owner can open.

    Attributes:
        path: by which OpenFHE opens it, while it is open here.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            if hasattr(os, "memfd_create") and Path(DESCRIPTORS).is_dir():
                self._handle = os.memfd_create("olac", os.MFD_CLOEXEC)
                self.path = f"{DESCRIPTORS}/{self._handle}"
            else:
                self._folder = tempfile.TemporaryDirectory()
                self.path = str(Path(self._folder.name) / "keys")
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackendError(f"no room for bytes of keys: {error}") from error

    @property
    def size(self) -> int:
        """Bytes in it."""
        return os.fstat(self._handle).st_size

    def write(self, data: bytes | memoryview, at: int) -> None:
        """Put bytes at an offset."""
        left = memoryview(data).cast("B")
        try:
            while left:
                done = os.pwrite(self._handle, left, at)
                left, at = left[done:], at + done
        except OSError as error:
            raise BackendError(f"no room for bytes of keys: {error}") from error

    def read_into(self, buffer: memoryview, at: int) -> None:
        """Fill a buffer of bytes from an offset on; the file must be long enough."""
        left = buffer
        while left:
            done = os.preadv(self._handle, [left], at)
            if not done:
                raise BackendError(f"{self.path} ends early, at byte {at}")
            left, at = left[done:], at + done

    def mapped(self) -> mmap.mmap:
        """All of it, as bytes that are not copied; the file must keep its length while they are used."""
        return mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        os.close(self._handle)
        if self._folder is not None:
            self._folder.cleanup()
