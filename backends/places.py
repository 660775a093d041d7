"""Where a thread is in a run, by which plaintexts are found that were made in an earlier run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from olac.backends.session import Place


class Places(threading.local):
    """The piece of work, which may be part of another, and a number within it."""

    def __init__(self) -> None:
        self.work: Place = ()
        self.count = 0

    def next(self) -> Place:
        """The next place within the piece of work."""
        self.count += 1
        return (*self.work, self.count)

    def restart(self) -> None:
        """Begin a run."""
        self.count = 0

    @contextmanager
    def within(self, work: Place) -> Iterator[None]:
        """Within a piece of work, counted from its beginning."""
        before = self.work, self.count
        self.work, self.count = work, 0
        try:
            yield
        finally:
            self.work, self.count = before
