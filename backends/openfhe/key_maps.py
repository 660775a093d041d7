"""OpenFHE's static maps of evaluation keys, out of which single keys can go.

OpenFHE holds evaluation keys by the tag of a ciphertext and forgets all of them or none. So a key that may have to go
is held under a tag of its own: all maps are taken out, and the others put back. Whatever looks keys up in the meantime
would fail, and so may what looks them up while a tag is new, so `KEY_MAPS` is held for both.

What nobody needs any more (`Held`) is not let go at once, because it may come to light anywhere: Python's garbage
collector runs in the middle of other work, with locks held. It is written down, and the next one who leaves the maps
alone lets it go.
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

    A thread that has the lock gets it again. One that uses the maps and wants to change them steps aside while it
    waits, so two of them do not wait for each other, and others may have changed the maps before it goes on. Who waits
    to change them comes before those who come later.
    """

    def __init__(self) -> None:
        # No reentrant lock: a finalizer may run in a thread that has it, and must find it taken.
        self._changed = threading.Condition(threading.Lock())
        self._users: Counter[int] = Counter()
        self._owner: int | None = None
        self._depth = 0
        self._waiting = 0
        self._gone: deque[str] = deque()
        self._jobs: deque[Callable[[], None]] = deque()

    @contextmanager
    def using(self) -> Iterator[None]:
        """While keys are looked up, or added to a tag that is there.

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
        """While tags come or go.

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
                    if aside:  # an entry of 0 would count as a user for whoever waits next
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
        """While a thread that has the lock does something else, and has kept nothing that it found in the maps.

        Others may use or change them in the meantime. So nobody waits for the end of a run of hours.
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
                    pass  # what is to go goes at its end
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
                except BaseException as error:  # Ctrl-C: what the thread had it must get again before it goes
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
        """Let keys go as soon as nobody uses the maps. Waits for nothing, so a finalizer may call it."""
        self._gone.extend(tags)
        self.settle()

    def do_later(self, job: Callable[[], None]) -> None:
        """The same for something else that no run may be beside."""
        self._jobs.append(job)
        self.settle()

    def settle(self) -> None:
        """Do what is to be done later, if nobody uses the maps now."""
        # In a process that was forked, locks may be held by threads that are gone, and OpenFHE must be left alone.
        while (self._gone or self._jobs) and not is_stale():
            if not self._changed.acquire(blocking=False):
                return  # who has it comes here next
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
            except RuntimeError as error:  # OpenFHE's; who happens to be here has nothing to do with it
                warnings.warn(f"OpenFHE can't let keys go: {error}", stacklevel=2)
        return_freed()


KEY_MAPS = MapsLock()
"""Of this process."""


class Held:
    """Tags under which OpenFHE holds keys for as long as this object, or another with the tag, is there."""

    _all: ClassVar[dict[int, set[str]]] = {}
    """The tags of all objects that are there, by their numbers."""
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, *tags: str) -> None:
        number, self._tags = next(self._numbers), set(tags)
        self._all[number] = self._tags
        # At the end of the process all goes anyway, and OpenFHE's maps may be gone before.
        weakref.finalize(self, self._end, number).atexit = False

    @classmethod
    def _end(cls, number: int) -> None:
        KEY_MAPS.forget_later(cls._all.pop(number))

    def add(self, tag: str) -> None:
        """One more."""
        self._tags.add(tag)

    def discard(self, tag: str) -> None:
        """One that is gone already."""
        self._tags.discard(tag)

    @classmethod
    def tags(cls) -> set[str]:
        """Those of all objects that are there."""
        return set().union(*map(tuple, tuple(cls._all.values())))


def put(keys: Any, tag: str) -> None:
    """Let OpenFHE hold an EvalKeyMap, which nobody else keeps, under a new tag."""
    put_all([keys], tag)


def put_all(maps: Sequence[Any], tag: str, relinearisation: Any = None) -> None:
    """Let OpenFHE hold EvalKeyMaps, and an EvalKey for relinearisation, under a new tag."""
    container = load().CryptoContext
    with KEY_MAPS.changing():
        for keys in maps:
            container.InsertEvalAutomorphismKey(keys, tag)
        if relinearisation is not None:
            container.InsertEvalMultKey([relinearisation], tag)


def take_out(tag: str) -> None:
    """Let OpenFHE forget the rotation keys that it holds under a tag."""
    with KEY_MAPS.changing():
        _forget_rotations({tag})


def forget(tags: Collection[str]) -> None:
    """Let OpenFHE forget all keys that it holds under some tags."""
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
    """No rotation keys in OpenFHE's static map but those that are made within, which go at the end.

    OpenFHE forgets all keys or none, so those of others step aside for the while, in which nobody may look keys up.
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
