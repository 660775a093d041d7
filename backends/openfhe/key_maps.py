"""OpenFHE's static maps of rotation keys, out of which single keys can go.

OpenFHE holds rotation keys by the tag of a ciphertext and forgets all of them or none. So a key that may have to go is
held under a tag of its own: all maps are taken out, and the others put back. Whatever looks keys up in the meantime
would fail, so a run that does so keeps all others of the process waiting.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from olac.backends.openfhe.library import load


class MapsLock:
    """Many threads may use the maps at once, or one may take keys out of them.

    A thread that has the lock gets it again. Who waits to take keys out comes before those who come later.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users: Counter[int] = Counter()
        self._owner: int | None = None
        self._depth = 0
        self._waiting = 0

    @contextmanager
    def using(self) -> Iterator[None]:
        """While keys are looked up or added."""
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

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While keys may be taken out."""
        me = threading.get_ident()
        with self._changed:
            self._waiting += 1
            try:
                while not (self._owner in (None, me) and all(user == me for user in self._users)):
                    self._changed.wait()
            finally:
                self._waiting -= 1
            self._owner = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._owner = None
                self._changed.notify_all()


KEY_MAPS = MapsLock()
"""Of this process."""


def put(keys: Any, tag: str) -> None:
    """Let OpenFHE hold an EvalKeyMap, which nobody else keeps, under a new tag."""
    load().CryptoContext.InsertEvalAutomorphismKey(keys, tag)


def take_out(tag: str) -> None:
    """Let OpenFHE forget what it holds under a tag; only while `KEY_MAPS.changing()`."""
    container = load().CryptoContext
    others = container.GetAllEvalAutomorphismKeys()
    others.pop(tag, None)
    container.ClearEvalAutomorphismKeys()
    for other, keys in others.items():
        container.InsertEvalAutomorphismKey(keys, other)
