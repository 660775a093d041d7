"""A folder of the user's own for what is expensive to make again, and that nobody else may have written.

Its contents may be trusted as far as the user's own files are: every folder and file belongs to the user, nobody else
may write to it, no name in it is a symbolic link, and each file holds a digest of itself, so that damage is found. The
checks are made on what was opened, not on names: a folder above that others may write to can at worst hide the cache.
Whoever can write as the user can write olac's code as well; no digest or key could change that.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAGIC = b"OLACKEPT"
DIGEST_BYTES = 32
MAX_BYTES = 64 << 20
"""Larger files are none of ours."""
PART = ".part"
OLD_PART_SECONDS = 3600.0
VARIABLE = "OLAC_CACHE_DIR"


class NoCache(Exception):
    """There is no cache; the text says why, in a clause for a sentence."""


class Damaged(Exception):
    """A file is not as it was written, or might have been written by somebody else; the text says which and why."""


def cache_root() -> Path:
    """$OLAC_CACHE_DIR; or olac in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        NoCache: there is no home.
    """
    given = os.environ.get(VARIABLE, "")
    if given:
        return Path(given).expanduser().absolute()
    usual = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(usual):  # the standard says that others do not count
        return Path(usual) / "olac"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise NoCache(f"there is no home folder ({VARIABLE} can name another place)")
    return Path(home) / ".cache" / "olac"


class UserCache:
    """Files in a folder of the cache, which is made when something is written.

    Args:
        kind: the folder's name in `cache_root`.
        group: the name of a folder in that one, which the files are in.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group

    def path(self, name: str = "") -> Path:
        """Where a file is, for messages."""
        return cache_root() / self.kind / self.group / name

    def groups(self) -> list[str]:
        """The groups that have been written, in order; an empty list if there is no cache."""
        try:
            with self._kind(make=False) as folder:
                return sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except (NoCache, OSError):
            return []

    def read(self, name: str) -> tuple[dict[str, Any], bytes, str] | None:
        """The header, the contents and the digest of a file, in hexadecimal; None if there is none.

        Raises:
            NoCache: the folder can't be used.
            Damaged: the file can't be trusted.
        """
        try:
            with self._group(make=False) as folder:
                data = _read(folder, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damaged(f"{self.path(name)}: can't be read: {error.strerror or error}") from error
        except Damaged as error:
            raise Damaged(f"{self.path(name)}: {error}") from None
        start = len(MAGIC) + DIGEST_BYTES
        digest, body = data[len(MAGIC) : start], data[start:]
        if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != digest:
            raise Damaged(f"{self.path(name)}: is damaged (its digest is wrong)")
        length = int.from_bytes(body[:4], "big")
        try:
            header = json.loads(body[4 : 4 + length])
        except ValueError as error:
            raise Damaged(f"{self.path(name)}: is damaged (its header can't be read)") from error
        if not isinstance(header, dict):
            raise Damaged(f"{self.path(name)}: is damaged (its header can't be read)")
        return header, body[4 + length :], digest.hex()

    def write(self, name: str, header: Mapping[str, Any], contents: bytes) -> str:
        """Write a file completely or not at all; returns its digest in hexadecimal.

        Args:
            header: goes into the file as JSON.

        Raises:
            NoCache: the folder can't be used, or the file can't be written.
        """
        head = json.dumps(header, sort_keys=True).encode()
        body = len(head).to_bytes(4, "big") + head + contents
        digest = hashlib.sha256(body)
        part = f".{name[:100]}.{secrets.token_hex(8)}{PART}"
        try:
            with self._group(make=True) as folder:
                try:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    with os.fdopen(os.open(part, flags, 0o600, dir_fd=folder), "wb") as stream:
                        for piece in (MAGIC, digest.digest(), body):
                            stream.write(piece)
                    os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with suppress(OSError):
                        os.unlink(part, dir_fd=folder)
                    raise
                _remove_old_parts(folder)
        except OSError as error:
            raise NoCache(f"{self.path(name)} can't be written: {error.strerror or error}") from error
        return digest.hexdigest()

    def touch(self) -> None:
        """Note that this group was used now."""
        with suppress(NoCache, OSError), self._group(make=False) as folder:
            os.utime(folder)

    def forget_others(self, keep: int) -> None:
        """Delete all groups but this one and the `keep` others that were used last."""
        with suppress(NoCache, OSError), self._kind(make=False) as folder:
            ages = {}
            for name in os.listdir(folder):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if name != self.group and stat.S_ISDIR(status.st_mode):
                    ages[name] = status.st_mtime
            for name in sorted(ages, key=ages.__getitem__, reverse=True)[keep:]:
                with suppress(NoCache, OSError):
                    with _opened(name, folder, make=False) as group:
                        for file in os.listdir(group):
                            os.unlink(file, dir_fd=group)
                    os.rmdir(name, dir_fd=folder)

    @contextmanager
    def _kind(self, make: bool) -> Iterator[int]:
        root = cache_root()
        if make:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(self.kind, root, make) as folder:
            yield folder

    @contextmanager
    def _group(self, make: bool) -> Iterator[int]:
        with self._kind(make) as outer, _opened(self.group, outer, make) as folder:
            yield folder


@contextmanager
def _opened(name: str, above: int | Path, make: bool) -> Iterator[int]:
    """A handle of a folder that is the user's own, in another that is given by its path or its handle."""
    if not hasattr(os, "geteuid"):
        raise NoCache("this system does not say whom files belong to")
    path, inside = (name, above) if isinstance(above, int) else (os.path.join(above, name), None)
    if make:
        with suppress(FileExistsError):
            os.mkdir(path, 0o700, dir_fd=inside)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    except NotADirectoryError as error:  # so the system says if it is a symbolic link, too
        raise NoCache(f"{path} is not a folder, or is a symbolic link") from error
    try:
        status = os.fstat(handle)
        if status.st_uid != os.geteuid():
            raise NoCache(f"{path} belongs to another user")
        if status.st_mode & 0o022:
            raise NoCache(f"others may write to {path}; delete it")
        if status.st_mode & 0o077:
            os.fchmod(handle, 0o700)
        yield handle
    finally:
        os.close(handle)


def _read(folder: int, name: str) -> bytes:
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Damaged(f"can't be opened: {error.strerror or error}") from error
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Damaged("is not a file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise Damaged("might have been written by another user")
        if status.st_size > MAX_BYTES:
            raise Damaged(f"is damaged ({status.st_size} bytes)")
        return stream.read(MAX_BYTES)


def _remove_old_parts(folder: int) -> None:
    """Delete what processes that were killed have left."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(PART):
            with suppress(OSError):
                if time.time() - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime > OLD_PART_SECONDS:
                    os.unlink(name, dir_fd=folder)
