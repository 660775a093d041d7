"""Writing files so that each is complete or absent, and reading files and received bytes."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import resource
import secrets
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from olac.errors import ArtifactError, plain
from olac.system.internal import is_callers

MAGIC = b"OLAC"
SECRET_KEY = "secret-key"
KIND_START, KIND_BYTES = 6, 16
"""Offset and length of the field in which frames of every version name their kind (see `olac.runtime.envelope`)."""

PRIVATE, SHARED = 0o600, 0o666
"""Modes of new files, before the umask."""
PART = ".part"
MAX_NAME_BYTES = 200
MAX_LINKS = 40


@dataclass(frozen=True)
class Source:
    """Where a frame is read from: a file, or bytes that somebody sent."""

    path: Path | None = None
    data: bytes = b""

    @staticmethod
    def of_file(path: str | Path) -> Source:
        """A file; raises `ArtifactError` if it does not exist."""
        given = Path(path)
        try:
            if not given.is_file():
                what = "is not a file" if given.exists() else "does not exist"
                raise ArtifactError(f"{plain(given)}: {what}. Check the path.")
        except OSError as error:  # e.g. a folder without permission to search it, or a name too long
            raise ArtifactError(f"{plain(given)}: can't be read: {error.strerror or error}") from error
        return Source(given)

    @property
    def name(self) -> str:
        """The name that error messages use."""
        return plain(self.path) if self.path is not None else f"{len(self.data)} bytes received"

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return len(self.data) if self.path is None else self.path.stat().st_size

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """A stream at the start of the source; errors of the file system become `ArtifactError`."""
        try:
            stream: BinaryIO = io.BytesIO(self.data) if self.path is None else self.path.open("rb")
            with stream:
                yield stream
        except OSError as error:
            raise ArtifactError(f"{self.name}: can't be read: {error.strerror or error}") from error

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A `Reader` of the source."""
        with self.open() as stream:
            yield Reader(self, stream)


class Reader:
    """Reads an open source at any offset; several threads may share one."""

    def __init__(self, source: Source, stream: BinaryIO) -> None:
        self._source = source
        self._stream = stream

    def read_into(self, buffer: memoryview, at: int) -> int:
        """Fill a buffer with the bytes from an offset on; returns how many there were."""
        if self._source.path is None:
            piece = self._source.data[at : at + len(buffer)]
            buffer[: len(piece)] = piece
            return len(piece)
        done = 0
        try:
            while done < len(buffer):
                more = _read_at(self._stream.fileno(), buffer[done:], at + done)
                if not more:
                    break
                done += more
        except OSError as error:
            raise ArtifactError(f"{self._source.name}: can't be read: {error.strerror or error}") from error
        return done


def _read_at(handle: int, buffer: memoryview, at: int) -> int:
    """Read bytes from an offset on into a buffer; returns how many there were."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [buffer], at)
    piece = os.pread(handle, len(buffer), at)  # a system without preadv, such as an older macOS
    buffer[: len(piece)] = piece
    return len(piece)


# Writing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """A file to write.

    Attributes:
        path: where; a symbolic link is followed.
        pieces: its bytes, in pieces; each is written before the next is asked for. Errors that are raised where they
            are made come out as they are, but for those of the file system that are olac's.
        private: only its owner may read it (mode 0600). Any other new file gets the mode that the umask gives, and a
            file that exists keeps its mode.
        overwrite: whether a file that exists may be replaced.
        replaces_key: whether even a secret key may be replaced.
        size: its bytes, or 0 if unknown; if it is known, a disk or a limit that is too small is found before anything
            is written.
        check: called with the path of the complete file before it takes its name; if it raises, the file is deleted.
    """

    path: Path
    pieces: Iterable[bytes | memoryview]
    private: bool = False
    overwrite: bool = True
    replaces_key: bool = False
    size: int = 0
    check: Callable[[Path], None] | None = None


def check_apart(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Raise ArtifactError if an output is the same file as an input or another output, under any name or link.

    Args:
        outputs, inputs: the path of each by its role, such as "result"; None if there is none.
    """
    written = {what: Path(path) for what, path in outputs.items() if path is not None}
    read = {what: Path(path) for what, path in inputs.items() if path is not None}
    for what, path in written.items():
        for other, source in read.items():
            if is_same(path, source):
                raise ArtifactError(
                    f"{plain(path)}: is the {other} that is read, and the {what} would be written over it. "
                    f"Name another file for the {what}."
                )
    names = list(written)
    for i, what in enumerate(names):
        for other in names[:i]:
            if is_same(written[what], written[other]):
                raise ArtifactError(f"{plain(written[what])}: is to be the {other} and the {what}. Name two files.")


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths name the same file, which need not exist yet. Devices and pipes don't count as files."""
    with _problems(one):
        a = _status(one)
    with _problems(other):
        b = _status(other)
    if a is None or b is None:
        return a is b and os.path.realpath(one) == os.path.realpath(other)
    return os.path.samestat(a, b) and not _is_special(a)


def check_writable(
    path: str | Path, *, size: int = 0, overwrite: bool = True, replaces_key: bool = False, special: bool = True
) -> None:
    """Raise ArtifactError if a file can't be written. Called before a long computation whose result goes there.

    Args:
        size: its bytes; 0 if unknown.
        overwrite, replaces_key: as in `Output`.
        special: whether a device or a pipe is allowed.
    """
    given = Path(path)
    with _problems(given):
        target = _target(given)
        if not special and target.special:
            raise ArtifactError(f"{plain(given)}: is a device or pipe, and has to be a file. Name a file.")
        _check_target(given, target, overwrite, replaces_key)
        if not target.special:
            _check_room(given, target.path.parent, size)


def check_folder(path: str | Path, size: int = 0) -> None:
    """Raise ArtifactError if a folder can't be made or written to, or if its disk has less than `size` bytes free."""
    given = Path(path)
    with _problems(given):
        place = Path(os.path.realpath(given))
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise ArtifactError(f"{plain(given)}: the folder can't be made, {plain(place)} is a file. Name another.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ArtifactError(
                f"{plain(given)}: the folder can't be made, {plain(place)} can't be written to. Choose another."
            )
        _check_room(given, place, size)


def make_folder(path: str | Path) -> None:
    """Make a folder, and those above it, if it does not exist. ArtifactError if it can't be made."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{plain(path)}: the folder can't be made: {problem}") from error


def write_file(
    path: str | Path,
    pieces: Iterable[bytes | memoryview],
    *,
    private: bool = False,
    overwrite: bool = True,
    size: int = 0,
) -> None:
    """Write a file so that it is complete or absent (see `Output`); devices and pipes are written to directly.

    Raises:
        ArtifactError: the folder doesn't exist or can't be written to, the file exists and must not be overwritten, it
            holds a secret key, or there is no room for it.
    """
    write_files([Output(Path(path), pieces, private=private, overwrite=overwrite, size=size)])


def write_files(outputs: Sequence[Output]) -> None:
    """Write files that belong together: all are written under temporary names before the first is renamed.

    If the process is killed, partial files stay in the folder under hidden names. They are deleted when the same file
    is written the next time.

    Raises:
        ArtifactError: as for `write_file`; the files that existed before are then unchanged.
    """
    pending: list[_Pending] = []
    try:
        for output in outputs:
            with _problems(output.path):
                target = _target(output.path)
                _check_target(output.path, target, output.overwrite, output.replaces_key)
                pending.append(_Pending(output, target))
        rooms: dict[Path, int] = {}
        for one in pending:
            if not one.target.special:
                rooms[one.target.path.parent] = rooms.get(one.target.path.parent, 0) + one.output.size
                _check_room(one.output.path, one.target.path.parent, rooms[one.target.path.parent])
        for one in pending:
            with _disk_problems(one.output.path):
                one.write()
        for one in pending:
            with _disk_problems(one.output.path):
                one.take_place(keep=len(pending) > 1)
    except BaseException:
        for one in pending:
            one.take_back()
        raise
    finally:
        for one in pending:
            one.clean()
    for folder in {one.target.path.parent for one in pending if not one.target.special}:
        sync_folder(folder)


def remove_file(path: str | Path) -> None:
    """Delete a file, but not a symbolic link to it; does nothing if there is no file.

    Raises:
        ArtifactError: it can't be deleted.
    """
    with _problems(Path(path)):
        target = _target(Path(path))
        if not target.special:
            target.path.unlink(missing_ok=True)


def check_private(
    stream: BinaryIO, path: str | Path, what: str = "secret key", otherwise: str = "make new keys"
) -> None:
    """Raise ArtifactError if a file that only its owner should read can be read by others, as ssh does for its keys.

    A file of another owner may be readable by a group of this process: it was then given to this process on purpose.

    Args:
        stream: the open file. It is checked instead of the path, which may name another file by now.
        path: its name, for messages.
        what: it is, for messages.
        otherwise: what to do if somebody has read it.
    """
    given = Path(path)
    status = os.fstat(stream.fileno())
    others = stat.S_IRWXO | (stat.S_IRWXG if status.st_uid == os.geteuid() else 0)
    if status.st_mode & others:
        raise ArtifactError(
            f"{plain(given)}: others may read this {what} (mode {stat.S_IMODE(status.st_mode):04o}). If nobody "
            f"has read it, protect it with: chmod 600 {shlex.quote(plain(given))}. Otherwise {otherwise}."
        )


@dataclass(frozen=True)
class _Target:
    """The destination of an output: a file, with all links followed, or a device, a pipe or a file descriptor."""

    path: Path
    special: bool = False
    descriptor: int | None = None


def _target(path: Path) -> _Target:
    """Follow symbolic links to the destination; links into /proc/PID/fd name file descriptors of this process."""
    place = path.absolute()
    for _ in range(MAX_LINKS):
        folder = os.path.realpath(place.parent)
        found = re.fullmatch(rf"/proc/{os.getpid()}(/task/[0-9]+)?/fd", folder)
        if found and place.name.isdigit():
            return _Target(path, special=True, descriptor=int(place.name))
        place = Path(folder, place.name)
        if not place.is_symlink():
            status = _status(place)
            return _Target(place, special=status is not None and _is_special(status))
        place = place.parent / os.readlink(place)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_special(status: os.stat_result) -> bool:
    return not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)


def _check_target(given: Path, target: _Target, overwrite: bool, replaces_key: bool) -> None:
    name, folder = plain(given), target.path.parent
    status = _status(given)
    if not target.special:
        if not folder.is_dir():
            raise ArtifactError(f"{name}: the folder {plain(folder)} doesn't exist. Make it, or choose another.")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ArtifactError(
                f"{name}: the folder {plain(folder)} can't be written to. Choose another, or change its permissions."
            )
    if status is None:
        return
    if stat.S_ISDIR(status.st_mode):
        raise ArtifactError(f"{name}: is a folder. Name a file in it.")
    if not overwrite:
        raise ArtifactError(f"{name}: exists already and is not overwritten. Choose another name, or delete it.")
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISBLK(status.st_mode):
        raise ArtifactError(f"{name}: is a socket or disk, and is not written to. Name a file.")
    if not os.access(given, os.W_OK):
        raise ArtifactError(f"{name}: is read-only. Name another file, or change its permissions.")
    if stat.S_ISREG(status.st_mode) and not replaces_key and holds_secret_key(given):
        raise ArtifactError(
            f"{name}: holds a secret key, which is not overwritten. Name another file, or delete it if nobody needs it."
        )


def holds_secret_key(path: Path) -> bool:
    """Whether a file begins as a secret key of any version of the format does. OSError if it can't be read."""
    with path.open("rb") as stream:
        start = stream.read(KIND_START + KIND_BYTES)
    return start[: len(MAGIC)] == MAGIC and start[KIND_START:].rstrip(b"\0") == SECRET_KEY.encode()


def _check_room(given: Path, folder: Path, size: int) -> None:
    """Raise ArtifactError if a file of `size` bytes exceeds the limit of this process or the free space of the disk."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and size > limit:
        raise ArtifactError(
            f"{plain(given)}: takes {size} bytes, files of this process may have {limit} (ulimit -f). Raise the limit."
        )
    try:
        disk = os.statvfs(folder)
    except OSError:
        return
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and size > free:
        raise ArtifactError(
            f"{plain(given)}: takes {size} bytes, {free} are free on its disk. Free some, or choose another folder."
        )


class _Pending:
    """An output that is being written: its temporary file, and a copy of the file that it replaces."""

    def __init__(self, output: Output, target: _Target) -> None:
        self.output = output
        self.target = target
        self._temporary: Path | None = None
        self._handle: int | None = None
        self._before: Path | None = None
        self._was_there = True
        self._took_place = False

    def write(self) -> None:
        """Write the whole temporary file to the disk."""
        if self.target.special:
            return
        status = _status(self.target.path)
        mode = PRIVATE if self.output.private or status is not None else SHARED
        self._handle, self._temporary = _new_temporary(self.target.path, mode)
        with os.fdopen(os.dup(self._handle), "wb") as stream:
            for piece in self.output.pieces:
                stream.write(piece)
            if status is not None and not self.output.private:
                os.fchmod(self._handle, stat.S_IMODE(status.st_mode))
            stream.flush()
            os.fsync(self._handle)
        if self.output.check is not None:
            self.output.check(self._temporary)

    def take_place(self, keep: bool) -> None:
        """Rename the temporary file to its own name; if `keep`, so that this can be undone."""
        if self.target.special:
            self._write_into()
            return
        assert self._temporary is not None
        path = self.target.path
        if not self.output.overwrite:
            self._was_there = False
            _rename_new(self._temporary, path)
        else:
            self._was_there = path.exists()
            if keep and self._was_there:
                before = _hidden_name(path)
                try:
                    os.link(path, before)
                except OSError:  # the file system has no hard links: it can't be undone
                    pass
                else:
                    self._before = before
            os.replace(self._temporary, path)
        self._temporary, self._took_place = None, True

    def _write_into(self) -> None:
        if self.target.descriptor is None:
            handle = os.open(self.target.path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        else:
            sys.stdout.flush()
            handle = os.dup(self.target.descriptor)
        with os.fdopen(handle, "wb") as stream:
            for piece in self.output.pieces:
                stream.write(piece)

    def take_back(self) -> None:
        """Undo `take_place`."""
        if self._took_place:
            with suppress(OSError):
                if self._before is not None:
                    os.replace(self._before, self.target.path)
                    self._before = None
                elif not self._was_there:
                    self.target.path.unlink()

    def clean(self) -> None:
        """Delete the temporary files."""
        for path in (self._temporary, self._before):
            if path is not None:
                with suppress(OSError):
                    path.unlink()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _hidden_name(target: Path) -> Path:
    """A hidden name in the folder of `target` that no other file has."""
    short = os.fsdecode(os.fsencode(target.name)[:MAX_NAME_BYTES])
    return target.with_name(f".{short}.{secrets.token_hex(8)}{PART}")


def _new_temporary(target: Path, mode: int) -> tuple[int, Path]:
    """A new file beside `target`, locked while it is open: files without a lock were left by killed processes."""
    _sweep(target)
    while True:
        path = _hidden_name(target)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with suppress(OSError):  # the file system has no locks: then `_sweep` deletes nothing either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # another process deleted it before it was locked


def _sweep(target: Path) -> None:
    """Delete the temporary files of `target` that killed processes left."""
    short = os.fsdecode(os.fsencode(target.name)[:MAX_NAME_BYTES])
    left = re.compile(re.escape(f".{short}.") + "[0-9a-f]{16}" + re.escape(PART))
    for name in os.listdir(target.parent):
        if not left.fullmatch(name):
            continue
        with suppress(OSError):
            handle = os.open(target.with_name(name), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                target.with_name(name).unlink()
            finally:
                os.close(handle)


def sync_folder(folder: Path) -> None:
    """Write the new names to the disk, if the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename; FileExistsError if the target was made in the meantime."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # the file system has no hard links: only the check before protects the target
        os.replace(temporary, target)
    else:
        os.unlink(temporary)


@contextmanager
def _problems(path: Path) -> Iterator[None]:
    """Turn errors of the file system about an output, and names that it does not take, into `ArtifactError`."""
    try:
        with _disk_problems(path):
            yield
    except ValueError as error:  # a name that no file can have
        raise ArtifactError(f"{plain(path)}: can't be written: {error}") from error


@contextmanager
def _disk_problems(path: Path) -> Iterator[None]:
    """Turn errors of the file system about an output into `ArtifactError`, but not those of the caller's own code."""
    try:
        yield
    except OSError as error:
        if is_callers(error):
            raise
        problem = f"can't be written: {error.strerror or error}"
        if isinstance(error, FileExistsError):
            problem = "exists already and is not overwritten."
        raise ArtifactError(f"{plain(path)}: {problem}") from error
