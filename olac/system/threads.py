"""The threads that OpenFHE's loops use, and Python's threads that work beside the caller's."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def usable_threads() -> int:
    """OMP_NUM_THREADS if it is set (OpenFHE reads it when it is imported), else the cores of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else max(1, len(os.sched_getaffinity(0)))


def helpers(most: int) -> int:
    """How many threads, at most `most`, may work beside the caller's: none if only one thread is usable."""
    usable = usable_threads()
    return min(usable, most) if usable > 1 else 0


def in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`function` of each item, in order, computed by `threads` threads beside the caller's.

    If `threads` is 0, the caller's thread computes each result when it is asked for. Otherwise items are
    taken in the caller's thread, at most one more than there are threads before a result is given. An error there or in
    `function` ends the work: calls that have begun are waited for, the others are never made.
    """
    if threads < 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="olac") as pool:
        yield from _ordered(pool, threads, function, items)


class Workers:
    """Threads that last as long as this object, for work that comes in small pieces again and again.

    Args:
        threads: how many; if 0, everything is done in the caller's thread.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._local = threading.local()
        # Threads keep their initializer: if it were a method of this object, none of them would ever end.
        self._pool = (
            ThreadPoolExecutor(threads, thread_name_prefix="olac", initializer=_enter, initargs=(self._local,))
            if threads
            else None
        )

    @property
    def inside(self) -> bool:
        """Whether the caller is one of these threads. It then works by itself, as all others may be waiting for it."""
        return getattr(self._local, "inside", False)

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """As `in_threads`."""
        if self._pool is None or self.inside:
            return map(function, items)
        return _ordered(self._pool, self.threads, function, items)


def _enter(local: threading.local) -> None:
    local.inside = True


def _ordered(pool: ThreadPoolExecutor, ahead: int, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    begun: deque[Future[R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()
