"""Writes and allocations that fail once: the n-th of a command, for every n."""

from __future__ import annotations

import errno
import os
import re
import resource
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import material as m
from benchmarks.faults.errands import ERRANDS, Errand, again, inspect, set_out
from benchmarks.faults.material import Material
from benchmarks.faults.outcomes import Outcome, Verdict, judged, right, wrong

LARGE_BYTES = 4096
"""Arrays that are smaller are not counted as allocations."""


@dataclass
class Trap:
    """Counts what it is told of, and raises at the n-th.

    Attributes:
        at: 0 only counts.
        folder: files beside it are not of interest.
        seen: what has passed so far.
        sprung: what failed.
    """

    at: int = 0
    folder: str = ""
    armed: bool = False
    sprung: str = ""
    seen: list[str] = field(default_factory=list)
    error: Callable[[], BaseException] = MemoryError

    def pass_over(self, what: str) -> None:
        """One more; raises if it is the one."""
        if not self.armed:
            return
        self.seen.append(what)
        if len(self.seen) == self.at:
            self.armed, self.sprung = False, what
            raise self.error()


TRAP = Trap()
"""Of this process: audit hooks can't be taken away again, so there is one, which looks here."""


@contextmanager
def armed(at: int, folder: Path, error: Callable[[], BaseException]) -> Iterator[Trap]:
    """While the n-th event fails."""
    TRAP.at, TRAP.folder, TRAP.seen, TRAP.sprung, TRAP.error = at, str(folder.resolve()), [], "", error
    TRAP.armed = True
    try:
        yield TRAP
    finally:
        TRAP.armed = False


def _disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Files ---------------------------------------------------------------------------------------------------------------

AUDITED = (
    "open",
    "os.rename",
    "os.link",
    "os.remove",
    "os.chmod",
    "os.mkdir",
    "os.truncate",
    "os.listdir",
    "os.scandir",
)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not TRAP.armed or event not in AUDITED:
        return
    path = arguments[0] if arguments else None
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(TRAP.folder):
        # Removing a temporary file is the way out of a failure; the first removal is of interest, not that one.
        TRAP.pass_over(f"{event} {os.path.basename(os.fsdecode(path))}")


def _wrapped(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        TRAP.pass_over(name)
        return original(*arguments, **options)

    setattr(owner, name, call)


def watch_files() -> None:
    """Let this process' trap hear of all that is done with files; for good."""
    sys.addaudithook(_hear)
    for name in ("fsync", "preadv", "write", "fchmod", "ftruncate", "memfd_create"):
        if hasattr(os, name):
            _wrapped(os, name)
    _wrap_streams()


def _wrap_streams() -> None:
    """Streams of `os.fdopen`, whose writes no audit hook hears of."""
    original = os.fdopen

    @wraps(original)
    def fdopen(*arguments: Any, **options: Any) -> Any:
        stream = original(*arguments, **options)
        if TRAP.armed and stream.writable():
            write, flush = stream.write, stream.flush
            return _Stream(stream, write, flush)
        return stream

    os.fdopen = fdopen


class _Stream:
    """A stream whose writes pass over the trap."""

    def __init__(self, stream: Any, write: Any, flush: Any) -> None:
        self._stream, self._write, self._flush = stream, write, flush

    def write(self, data: Any) -> Any:
        TRAP.pass_over("write")
        return self._write(data)

    def flush(self) -> Any:
        TRAP.pass_over("flush")
        return self._flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


# Allocations ---------------------------------------------------------------------------------------------------------

ARRAYS = (
    "empty", "zeros", "ones", "full", "stack", "concatenate", "array", "asarray", "ascontiguousarray", "frombuffer",
    "tile", "repeat", "pad", "empty_like", "zeros_like", "roll", "where", "copy",
)  # fmt: skip


def watch_allocations() -> None:
    """Let this process' trap hear of olac's large arrays and of OpenFHE's objects; for good."""
    import openfhe

    for name in ARRAYS:
        _wrap_arrays(name)
    for name in dir(openfhe.CryptoContext):
        if name.startswith(("Eval", "Encrypt", "Decrypt", "MakeCKKS", "KeyGen", "Insert", "Rescale", "LevelReduce")):
            _wrap_method(openfhe.CryptoContext, name)
    for name in dir(openfhe):
        if name.startswith(("Serialize", "Deserialize", "GenCryptoContext")):
            _wrapped(openfhe, name)


def _wrap_method(owner: Any, name: str) -> None:
    static = isinstance(vars(owner).get(name), staticmethod)
    original = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        TRAP.pass_over(name)
        return original(*arguments, **options)

    setattr(owner, name, staticmethod(call) if static else call)


def _wrap_arrays(name: str) -> None:
    original = getattr(np, name)

    @wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        made = original(*arguments, **options)
        if TRAP.armed and getattr(made, "nbytes", 0) >= LARGE_BYTES and _is_olac(sys._getframe(1)):
            TRAP.pass_over(f"np.{name} of {made.nbytes} bytes")
        return made

    setattr(np, name, call)


def _is_olac(frame: types.FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("olac.")


# Kinds ---------------------------------------------------------------------------------------------------------------


@dataclass
class Injected:
    """Errands in which the n-th write, or the n-th allocation, fails once.

    Seeds go through all errands and, for each, through all that it does.
    """

    folder: Path
    watch: Callable[[], None]
    error: Callable[[], BaseException]
    errands: tuple[Errand, ...] = ERRANDS
    _places: dict[str, list[int]] = field(default_factory=dict)
    _material: Material | None = None

    @property
    def material(self) -> Material:
        """The program without bootstraps; what failures must not touch is loaded before them."""
        if self._material is None:
            self._material = Material(self.folder / m.PLAIN, m.PLAIN)
            self._material.client.decrypt(self._material.server.run(self._material.input))
            self.watch()
        return self._material

    def places(self, errand: Errand) -> list[int]:
        """What can fail in an errand, each by its number: the first and the last of its sort first, then all others."""
        if errand.name not in self._places:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                set_out(errand, self.material, folder)
                errand.do(folder)  # what is made once in a process is made now
                again(errand, self.material, folder)
                for path in folder.iterdir():
                    path.unlink()
                set_out(errand, self.material, folder)
                with armed(0, folder, self.error) as trap:
                    errand.do(folder)
                self._places[errand.name] = ordered(trap.seen)
        return self._places[errand.name]

    def case(self, seed: int) -> Verdict:
        """One failure; all well when it ended in one of olac's errors, or in a right result in spite of it."""
        material = self.material
        errand = self.errands[seed % len(self.errands)]
        places = self.places(errand)
        at = places[seed // len(self.errands) % len(places)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            before = set_out(errand, material, folder)
            with armed(at, folder, self.error) as trap:
                verdict = judged(lambda: _done(errand, folder))
            what = f"{errand.name}, {at} of {len(places)} ({trap.sprung}): "
            if verdict.outcome in (Outcome.RIGHT, Outcome.REFUSED):
                failed, removal = verdict.outcome == Outcome.REFUSED, trap.sprung.startswith("os.remove")
                problem = inspect(errand, material, folder, before, failed, killed=removal)
                after = wrong(problem) if problem else judged(partial(again, errand, material, folder))
                if after.outcome == Outcome.REFUSED:
                    after = wrong(f"done again without a failure: {after.what}")
                if after.outcome != Outcome.RIGHT:
                    verdict = after
        return Verdict(verdict.outcome, what + verdict.what)


def ordered(seen: Sequence[str]) -> list[int]:
    """Numbers from 1 on of what was seen: one of each sort, then the last of each, then the others."""
    sorts = [_TEMPORARY.sub("", what) for what in seen]
    first = {sort: at for at, sort in reversed(list(enumerate(sorts, 1)))}
    last = {sort: at for at, sort in enumerate(sorts, 1)}
    return list(dict.fromkeys([*sorted(first.values()), *sorted(last.values()), *range(1, len(seen) + 1)]))


_TEMPORARY = re.compile(r"(?<=\.)[a-z0-9_]{8}$")


def _done(errand: Errand, folder: Path) -> Verdict:
    errand.do(folder)
    return right()


def failed_writes(folder: Path) -> Injected:
    """Each operation on files of each errand fails once, as on a full disk."""
    return Injected(folder, watch_files, _disk_full)


def failed_allocations(folder: Path) -> Injected:
    """Each large array and each object of OpenFHE's fails once; a small program is saved without any."""
    errands = tuple(one for one in ERRANDS if one.name != "save a program")
    return Injected(folder, watch_allocations, MemoryError, errands)


@dataclass
class Limited:
    """Errands within a limit of the size of files, which strikes inside of writes, those of C++ as well."""

    folder: Path
    _material: Material | None = None

    @property
    def material(self) -> Material:
        """The program without bootstraps."""
        if self._material is None:
            self._material = Material(self.folder / m.PLAIN, m.PLAIN)
            self._material.client.decrypt(self._material.server.run(self._material.input))
        return self._material

    def case(self, seed: int) -> Verdict:
        """One limit, from nothing to more than is needed."""
        material, errand = self.material, ERRANDS[seed % len(ERRANDS)]
        limit = int(2 ** np.random.default_rng(seed).uniform(0, 23))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            before = set_out(errand, material, folder)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                verdict = judged(lambda: _done(errand, folder))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if verdict.outcome in (Outcome.RIGHT, Outcome.REFUSED):
                problem = inspect(errand, material, folder, before, verdict.outcome == Outcome.REFUSED, killed=False)
                after = wrong(problem) if problem else judged(partial(again, errand, material, folder))
                if after.outcome != Outcome.RIGHT:
                    verdict = after
        return Verdict(verdict.outcome, f"{errand.name}, files of {limit} bytes at most: {verdict.what}")
