"""OpenFHE's static maps of evaluation keys, and how single keys are deleted from them.

OpenFHE holds evaluation keys by the tag of a ciphertext and can delete all of them or none. So a key that may have to
be deleted is held under a tag of its own: all maps are taken out, and the others put back. A look-up in the meantime
would fail, and so may a look-up while a tag is added, so both are done under the lock `KEY_MAPS`.

Keys that nobody needs any more (`Held`) are not deleted at once, because Python's garbage collector finds them in the
middle of other work, with locks held. Their tags are noted, and the next thread that releases the lock deletes them.
"""

from __future__ import annotations

import itertools
import threading
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from olac.backends.openfhe.library import load
from olac.system.forks import begin_use, is_stale
from olac.system.memory import return_freed


class MapsLock:
    """Many threads may use the maps at once, or one may change which tags there are.

    A thread that has the lock gets it again. A thread that uses the maps and wants to change them does not count as a
    user while it waits, so that two such threads do not wait for each other; others may change the maps before it
    continues. A thread that waits to change the maps comes before threads that ask later.
    """

    def __init__(self) -> None:
        # Not reentrant: a finalizer may run in the thread that holds it, and must find it taken.
        self._changed = threading.Condition(threading.Lock())
        self._users: Counter[int] = Counter()
        self._owner: int | None = None
        self._depth = 0
        self._waiting = 0
        self._gone: deque[str] = deque()
        self._jobs: deque[Callable[[], None]] = deque()

    @contextmanager
    def using(self) -> Iterator[None]:
        """While keys are looked up, or added under a tag that is there.

        Raises:
            ForkError: the process was forked after OpenFHE was used.
        """
        begin_use()
        me = threading.get_ident()
        with self._changed:
            while not (self._owner == me or self._users[me] or (self._owner is None and not self._waiting)):
                self._changed.wait()
            self._users[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._users[me] -= 1
                self._users += Counter()  # without those at 0
                self._changed.notify_all()
            self.settle()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While tags are added or deleted.

        Raises:
            ForkError: the process was forked after OpenFHE was used.
        """
        begin_use()
        me = threading.get_ident()
        aside = 0
        with self._changed:
            if self._owner != me:
                aside = self._users.pop(me, 0)
                self._waiting += 1
                self._changed.notify_all()
                try:
                    while self._owner is not None or self._users:
                        self._changed.wait()
                    self._owner = me
                except BaseException:  # Ctrl-C while it waits
                    if aside:  # an entry of 0 would count as a user
                        self._users[me] += aside
                    raise
                finally:
                    self._waiting -= 1
                    self._changed.notify_all()
            self._depth += 1
        try:
            yield
        finally:
            try:
                if self._depth == 1:
                    self._work_off()
            finally:
                with self._changed:
                    self._depth -= 1
                    if not self._depth:
                        self._owner = None
                        self._users[me] += aside
                        self._users += Counter()
                    self._changed.notify_all()
            self.settle()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """While a thread that has the lock does something else, and keeps nothing that it found in the maps.

        Others may use or change the maps in the meantime, so that they need not wait for the end of a run of hours.
        """
        me = threading.get_ident()
        with self._changed:
            depth = self._depth if self._owner == me else 0
            if depth:
                self._owner, self._depth = None, 0
            aside = self._users.pop(me, 0)
            self._changed.notify_all()
        try:
            if (depth or aside) and (self._gone or self._jobs):
                with self.changing():
                    pass  # at its end keys are deleted
            yield
        finally:
            if depth or aside:
                self._return(depth, aside)

    def _return(self, depth: int, aside: int) -> None:
        """After a rest."""
        me, interrupted = threading.get_ident(), None
        with self._changed:
            self._waiting += bool(depth)
            while self._owner is not None or (self._users if depth else self._waiting):
                try:
                    self._changed.wait()
                except BaseException as error:  # Ctrl-C: raised when the thread has the lock again, as callers expect
                    interrupted = error
            self._waiting -= bool(depth)
            if depth:
                self._owner, self._depth = me, depth
            self._users[me] += aside
            self._users += Counter()
            self._changed.notify_all()
        if interrupted is not None:
            raise interrupted

    def forget_later(self, tags: Collection[str]) -> None:
        """Delete keys as soon as nobody uses the maps. Waits for nothing, so a finalizer may call it."""
        self._gone.extend(tags)
        self.settle()

    def do_later(self, job: Callable[[], None]) -> None:
        """Call a function as soon as nobody uses the maps."""
        self._jobs.append(job)
        self.settle()

    def settle(self) -> None:
        """Do what is to be done later, if nobody uses the maps now."""
        # In a process that was forked, locks may be held by threads that it lacks, and OpenFHE must not be used.
        while (self._gone or self._jobs) and not is_stale():
            if not self._changed.acquire(blocking=False):
                return  # the thread that has it comes here next
            try:
                if self._owner is not None or self._users:
                    return
                self._owner, self._depth = threading.get_ident(), 1
            finally:
                self._changed.release()
            try:
                self._work_off()
            finally:
                with self._changed:
                    self._owner, self._depth = None, 0
                    self._changed.notify_all()

    def _work_off(self) -> None:
        """Only by the owner."""
        if not (self._gone or self._jobs) or is_stale():
            return
        tags: set[str] = set()
        jobs: list[Callable[[], None]] = [lambda: forget(tags - Held.tags())]
        while self._gone:
            tags.add(self._gone.popleft())
        while self._jobs:
            jobs.append(self._jobs.popleft())
        for job in jobs:
            try:
                job()
            except RuntimeError as error:  # OpenFHE's; it does not concern the thread that happens to be here
                warnings.warn(f"OpenFHE can't delete keys: {error}", stacklevel=2)
        return_freed()


KEY_MAPS = MapsLock()
"""Of this process."""


class Held:
    """Tags under which OpenFHE holds keys until this object, and every other with the tag, is deleted."""

    _all: ClassVar[dict[int, set[str]]] = {}
    """The tags of all objects, by their numbers."""
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, *tags: str) -> None:
        number, self._tags = next(self._numbers), set(tags)
        self._all[number] = self._tags
        # Not at the end of the process, when OpenFHE's maps may be deleted already.
        weakref.finalize(self, self._end, number).atexit = False

    @classmethod
    def _end(cls, number: int) -> None:
        KEY_MAPS.forget_later(cls._all.pop(number))

    def add(self, tag: str) -> None:
        """Add a tag."""
        self._tags.add(tag)

    def discard(self, tag: str) -> None:
        """Remove a tag whose keys are deleted already."""
        self._tags.discard(tag)

    @classmethod
    def tags(cls) -> set[str]:
        """The tags of all objects."""
        return set().union(*map(tuple, tuple(cls._all.values())))


def put_all(maps: Sequence[Any], tag: str, relinearisation: Any = None) -> None:
    """Let OpenFHE hold EvalKeyMaps, which nobody else keeps, and an EvalKey for relinearisation, under a new tag."""
    container = load().CryptoContext
    with KEY_MAPS.changing():
        for keys in maps:
            container.InsertEvalAutomorphismKey(keys, tag)
        if relinearisation is not None:
            container.InsertEvalMultKey([relinearisation], tag)


def take_out(tag: str) -> None:
    """Delete the rotation keys that OpenFHE holds under a tag."""
    with KEY_MAPS.changing():
        _forget_rotations({tag})


def forget(tags: Collection[str]) -> None:
    """Delete all keys that OpenFHE holds under some tags."""
    if not tags:
        return
    fhe = load()
    container = fhe.CryptoContext
    with KEY_MAPS.changing():
        _forget_rotations(tags)
        held = container.GetAllEvalMultKeys()
        if not held.keys().isdisjoint(tags):
            fhe.ClearEvalMultKeys()
            for tag, keys in held.items():
                if tag not in tags:
                    container.InsertEvalMultKey(keys, tag)


def _forget_rotations(tags: Collection[str]) -> None:
    container = load().CryptoContext
    held = container.GetAllEvalAutomorphismKeys()
    if not held.keys().isdisjoint(tags):
        container.ClearEvalAutomorphismKeys()
        for tag, keys in held.items():
            if tag not in tags:
                container.InsertEvalAutomorphismKey(keys, tag)


@contextmanager
def others_aside() -> Iterator[None]:
    """Empties OpenFHE's static map of rotation keys, deletes at the end what was added, and then restores the map.

    Nobody can look keys up in the meantime.
    """
    container = load().CryptoContext
    with KEY_MAPS.changing():
        others = container.GetAllEvalAutomorphismKeys()
        container.ClearEvalAutomorphismKeys()
        try:
            yield
        finally:
            container.ClearEvalAutomorphismKeys()
            for tag, keys in others.items():
                container.InsertEvalAutomorphismKey(keys, tag)
