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
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults import material as m
from benchmarks.faults.errands import ERRANDS, Errand, again, inspect, set_out
from benchmarks.faults.material import Material
from benchmarks.faults.outcomes import Outcome, Verdict, judged, right, wrong

LARGE_BYTES = 4096
"""Smaller arrays are not counted as allocations."""


@dataclass
class Trap:
    """Counts events, and raises at the n-th.

    Attributes:
        at: n; 0 only counts.
        folder: only files in it count.
        seen: the events so far.
        sprung: the event that failed.
    """

    at: int = 0
    folder: str = ""
    armed: bool = False
    sprung: str = ""
    seen: list[str] = field(default_factory=list)
    error: Callable[[], BaseException] = MemoryError

    def pass_over(self, what: str) -> None:
        """Count one event; raises if it is the n-th."""
        if not self.armed:
            return
        self.seen.append(what)
        if len(self.seen) == self.at:
            self.armed, self.sprung = False, what
            raise self.error()


TRAP = Trap()
"""The trap of this process: audit hooks can't be removed, so there is one hook, which uses this trap."""


@contextmanager
def armed(at: int, folder: Path, error: Callable[[], BaseException]) -> Iterator[Trap]:
    """Within this, the n-th event fails."""
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
        # A failure ends with removing the temporary file, so only the first removal is of interest.
        TRAP.pass_over(f"{event} {os.path.basename(os.fsdecode(path))}")


def _wrapped(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        TRAP.pass_over(name)
        return original(*arguments, **options)

    setattr(owner, name, call)


def watch_files() -> None:
    """Make this process's trap count all operations on files; this can't be undone."""
    sys.addaudithook(_hear)
    for name in ("fsync", "preadv", "write", "fchmod", "ftruncate", "memfd_create"):
        if hasattr(os, name):
            _wrapped(os, name)
    _wrap_streams()


def _wrap_streams() -> None:
    """Make the trap count writes to streams of `os.fdopen`, which no audit hook sees."""
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
    """A stream whose writes the trap counts."""

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
    """Make this process's trap count olac's large arrays and OpenFHE's objects; this can't be undone."""
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


def _used(folder: Path) -> Material:
    """The program without bootstraps, after its client and its server have been used."""
    material = Material(folder / m.PLAIN, m.PLAIN)
    material.client.decrypt(material.server.run(material.input))
    return material


@dataclass
class Injected:
    """Errands in which the n-th write, or the n-th allocation, fails once.

    The seeds run through all errands and, for each, through all its events.
    """

    folder: Path
    watch: Callable[[], None]
    error: Callable[[], BaseException]
    errands: tuple[Errand, ...] = ERRANDS
    _places: dict[str, list[int]] = field(default_factory=dict)

    @cached_property
    def material(self) -> Material:
        """The program without bootstraps; everything that failures must not affect is loaded first."""
        material = _used(self.folder)
        self.watch()
        return material

    def places(self, errand: Errand) -> list[int]:
        """The numbers of an errand's events: the first and the last of each sort first, then all others."""
        if errand.name not in self._places:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                set_out(errand, self.material, folder)
                errand.do(folder)  # so that objects that are made once in a process exist
                again(errand, self.material, folder)
                for path in folder.iterdir():
                    path.unlink()
                set_out(errand, self.material, folder)
                with armed(0, folder, self.error) as trap:
                    errand.do(folder)
                self._places[errand.name] = ordered(trap.seen)
        return self._places[errand.name]

    def case(self, seed: int) -> Verdict:
        """One failure; it is right if it ends in one of olac's errors, or in a right result in spite of the failure."""
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
    """Numbers of events, from 1 on: the first of each sort, then the last of each, then the others."""
    sorts = [_TEMPORARY.sub("", what) for what in seen]
    first = {sort: at for at, sort in reversed(list(enumerate(sorts, 1)))}
    last = {sort: at for at, sort in enumerate(sorts, 1)}
    return list(dict.fromkeys([*sorted(first.values()), *sorted(last.values()), *range(1, len(seen) + 1)]))


_TEMPORARY = re.compile(r"(?<=\.)[a-z0-9_]{8}$")


def _done(errand: Errand, folder: Path) -> Verdict:
    errand.do(folder)
    return right()


def failed_writes(folder: Path) -> Injected:
    """Each operation on files of each errand fails once, as if the disk were full."""
    return Injected(folder, watch_files, _disk_full)


def failed_allocations(folder: Path) -> Injected:
    """Each large array and each object of OpenFHE's fails once; saving a small program makes none."""
    errands = tuple(one for one in ERRANDS if one.name != "save a program")
    return Injected(folder, watch_allocations, MemoryError, errands)


@dataclass
class Limited:
    """Errands with a limit on the size of files, which takes effect within writes, those of C++, too."""

    folder: Path

    @cached_property
    def material(self) -> Material:
        """The program without bootstraps."""
        return _used(self.folder)

    def case(self, seed: int) -> Verdict:
        """One limit, from nothing to more than needed."""
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
