"""Files that are there completely or not at all, and what is read from files or bytes that arrive."""

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from olac.errors import ArtifactError, plain

MAGIC = b"OLAC"
SECRET_KEY = "secret-key"
KIND_START, KIND_BYTES = 6, 16
"""Where frames of every version say what they are (see `olac.runtime.envelope`)."""

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
        """A file; raises `ArtifactError` where there is none."""
        given = Path(path)
        try:
            if not given.is_file():
                what = "is not a file" if given.exists() else "does not exist"
                raise ArtifactError(f"{plain(given)}: {what}. Check the path.")
        except OSError as error:  # a folder that must not be searched, say, or a name too long
            raise ArtifactError(f"{plain(given)}: can't be read: {error.strerror or error}") from error
        return Source(given)

    @property
    def name(self) -> str:
        """How errors call it."""
        return plain(self.path) if self.path is not None else f"{len(self.data)} bytes received"

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


# Writing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """A file that is to be written.

    Attributes:
        path: where; a symbolic link is followed.
        pieces: its bytes, in pieces; each is written before the next is asked for.
        private: only its owner may read it (mode 0600). All others get the mode that the umask gives, and a file that
            is there already keeps its mode.
        overwrite: whether a file that is there may be replaced.
        replaces_key: whether that holds for a secret key as well.
        size: its bytes where they are known: a disk or limit that can't hold them is found before anything is written.
    """

    path: Path
    pieces: Iterable[bytes | memoryview]
    private: bool = False
    overwrite: bool = True
    replaces_key: bool = False
    size: int = 0


def check_apart(outputs: Mapping[str, str | Path | None], inputs: Mapping[str, str | Path | None]) -> None:
    """Raise ArtifactError if an output is one of the inputs or another output, by whatever names and links.

    Args:
        outputs, inputs: the path of each by what it is called, such as "result"; None where there is none.
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
    """Whether two paths are one file, which need not be there yet. Devices and pipes are no files."""
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
    """Raise ArtifactError if a file could not be written, at the end of a long run, say.

    Args:
        size: its bytes, as far as they are known.
        overwrite, replaces_key: as in `Output`.
        special: whether a device or pipe would do.
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
    """Raise ArtifactError if a folder that is not there yet could not be made, or hold so many bytes."""
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
    """Make a folder, and those above it, if it is not there. ArtifactError if it can't be made."""
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
    """Write a file that is there completely or not at all (see `Output`); devices and pipes are written into.

    Raises:
        ArtifactError: the folder doesn't exist or can't be written, the file exists and must not be overwritten, it
            holds a secret key, or there is no room for it.
    """
    write_files([Output(Path(path), pieces, private=private, overwrite=overwrite, size=size)])


def write_files(outputs: Sequence[Output]) -> None:
    """Write files that belong together: all are complete, under other names, before the first takes its name.

    What is written when a process is killed stays under a hidden name beside the file, and goes when the file is
    written the next time.

    Raises:
        ArtifactError: as `write_file`; then all that was there before is there still.
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
            with _problems(one.output.path):
                one.write()
        for one in pending:
            with _problems(one.output.path):
                one.take_place(keep=len(pending) > 1)
    except BaseException:
        for one in pending:
            one.take_back()
        raise
    finally:
        for one in pending:
            one.clean()
    for folder in {one.target.path.parent for one in pending if not one.target.special}:
        _sync_folder(folder)


def remove_file(path: str | Path) -> None:
    """Delete a file, not the symbolic link that leads to it; nothing if there is none.

    Raises:
        ArtifactError: it can't be deleted.
    """
    with _problems(Path(path)):
        target = _target(Path(path))
        if not target.special:
            target.path.unlink(missing_ok=True)


def check_private(stream: BinaryIO, path: str | Path) -> None:
    """Raise ArtifactError if others may read a file that its owner alone should read, as ssh does for its keys.

    A file of another owner may be readable for a group that we are in: then it was given to us.

    Args:
        stream: the open file; another may have its name by now.
        path: its name, for messages.
    """
    given = Path(path)
    status = os.fstat(stream.fileno())
    others = stat.S_IRWXO | (stat.S_IRWXG if status.st_uid == os.geteuid() else 0)
    if status.st_mode & others:
        raise ArtifactError(
            f"{plain(given)}: others may read this secret key (mode {stat.S_IMODE(status.st_mode):04o}). If nobody "
            f"has, keep it from them with: chmod 600 {shlex.quote(plain(given))}. Else make new keys."
        )


@dataclass(frozen=True)
class _Target:
    """Where an output goes: a file by its own name, links followed, or a device, pipe or descriptor."""

    path: Path
    special: bool = False
    descriptor: int | None = None


def _target(path: Path) -> _Target:
    """Follow symbolic links up to the file, or to what is no file; links into /proc name descriptors."""
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
    """Whether a file begins as secret keys do, of whatever version of the format. OSError if it can't be read."""
    with path.open("rb") as stream:
        start = stream.read(KIND_START + KIND_BYTES)
    return start[: len(MAGIC)] == MAGIC and start[KIND_START:].rstrip(b"\0") == SECRET_KEY.encode()


def _check_room(given: Path, folder: Path, size: int) -> None:
    """Raise ArtifactError if so many bytes don't fit: by the limit of the process, or on the disk."""
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
    """An output on its way: what was written of it, and what stood in its place."""

    def __init__(self, output: Output, target: _Target) -> None:
        self.output = output
        self.target = target
        self._temporary: Path | None = None
        self._handle: int | None = None
        self._before: Path | None = None
        self._was_there = True
        self._took_place = False

    def write(self) -> None:
        """Write all of a file beside its place, down to the disk."""
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

    def take_place(self, keep: bool) -> None:
        """Put the file where it belongs; if `keep`, so that this can be undone."""
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
                except OSError:  # a file system without hard links: it can't be undone
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
        """Leave nothing behind."""
        for path in (self._temporary, self._before):
            if path is not None:
                with suppress(OSError):
                    path.unlink()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _hidden_name(target: Path) -> Path:
    """A name beside a file that no other file has."""
    short = os.fsdecode(os.fsencode(target.name)[:MAX_NAME_BYTES])
    return target.with_name(f".{short}.{secrets.token_hex(8)}{PART}")


def _new_temporary(target: Path, mode: int) -> tuple[int, Path]:
    """A new file beside `target`, locked as long as it is open: unlocked ones are of processes that were killed."""
    _sweep(target)
    while True:
        path = _hidden_name(target)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with suppress(OSError):  # a file system without locks: then nobody sweeps either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, path
        os.close(handle)  # somebody swept it before it was locked


def _sweep(target: Path) -> None:
    """Delete what processes that were killed left of this file."""
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


def _sync_folder(folder: Path) -> None:
    """The new names, down to the disk, where the file system does that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename; FileExistsError where the target came to be in the meantime."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the check before has to do
        os.replace(temporary, target)
    else:
        os.unlink(temporary)


@contextmanager
def _problems(path: Path) -> Iterator[None]:
    """Problems of the file system with an output become `ArtifactError`."""
    try:
        yield
    except FileExistsError as error:
        raise ArtifactError(f"{plain(path)}: exists already and is not overwritten.") from error
    except OSError as error:
        raise ArtifactError(f"{plain(path)}: can't be written: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file can have
        raise ArtifactError(f"{plain(path)}: can't be written: {error}") from error
