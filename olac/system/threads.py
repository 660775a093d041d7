"""How many threads this process uses, in all of its libraries, and Python's threads that work beside the caller's.

One number rules them all: `usable_threads`. OpenMP's loops in OpenFHE and torch, BLAS, and the threads of Python that
run kernels or call OpenFHE take their number from it.

OpenMP's threads that spin at barriers make every primitive several times slower as soon as another process wants a
core; threads that sleep cost a few percent. OpenMP reads that setting when torch or OpenFHE loads it, so it is set
here, as soon as olac is imported, unless the caller has set it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")
R = TypeVar("R")

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

VARIABLE = "OMP_NUM_THREADS"
"""It is read when a library is loaded, so it is also how a number reaches those that are loaded later."""
MOST = 1024

_followers: list[Callable[[int], None]] = []


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def usable_threads() -> int:
    """What `set_threads` was given; before that, OMP_NUM_THREADS if it is set, else the cores of this process."""
    given = os.environ.get(VARIABLE, "")
    return int(given) if given.isdigit() and int(given) > 0 else cores()


def set_threads(threads: int | None) -> None:
    """Have all libraries of this process use so many threads, those that are loaded later as well.

    It is the number of the whole process, and of the processes that it starts: the last call counts. What exists
    already, such as servers, may keep threads of Python that it has.

    Args:
        threads: at least 1; None leaves everything as it is.

    Raises:
        ValueError: a number that can't be.
    """
    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MOST:
        raise ValueError(f"threads {threads!r} is not a whole number in 1 ... {MOST}")
    os.environ[VARIABLE] = str(threads)
    threadpool_limits(threads)  # what is loaded of BLAS and OpenMP
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
    for follow in _followers:
        follow(threads)


def follow_threads(follow: Callable[[int], None]) -> None:
    """Have a library told: `follow` is called now with `usable_threads`, and by each `set_threads`."""
    _followers.append(follow)
    follow(usable_threads())


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
