"""A few threads that share the ranges of kernels.

A kernel is called with a range, the number of the thread and its operands. It has to give the same results however the
whole range is cut into pieces, and to release the GIL, as `olac.backends.vector.compiled` makes it.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

log = logging.getLogger(__name__)

SMALL = 1 << 15
"""Work of fewer elements takes about as long as waking a thread, tens of microseconds."""
PIECES = 8
"""The least piece of a range is this part of a thread's share, so that few calls are made and none ends late."""


class Team:
    """The caller's thread and `threads - 1` others, which sleep between calls and end with this object.

    Several threads may call it at the same time: each of them works on what it asked for, and the others of the team
    help one caller after another. In a process that was forked, the team starts its threads anew.

    Attributes:
        threads: how many work on one call at most, the caller's among them.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"a team needs at least one thread, not {threads}")
        self.threads = threads
        self._queues: list[SimpleQueue[_Job | None]] = []
        self._lock = threading.Lock()
        weakref.finalize(self, Team._end, self._queues)
        _teams.add(self)

    def run(self, kernel: Callable[..., object], count: int, *args: Any, size: int = SMALL) -> None:
        """Call kernel(lo, hi, worker, *args) for ranges lo ... hi - 1 that together are range(count), each index once.

        Returns when all calls have ended. Ranges are shared as threads become free: nobody may rely on which thread
        gets which.

        Args:
            kernel: gets `worker`, which is from 0 to threads - 1 and differs between calls that overlap. Two calls of
                `run` at the same time use the same numbers.
            size: how many elements the whole range computes, if known: for few, the caller's thread works alone.

        Raises:
            Exception: the first that a call raised; ranges that have not begun by then are left out.
        """
        if count <= 0:
            return
        if self.threads == 1 or count == 1 or size < SMALL:
            kernel(0, count, 0, *args)
            return
        job = _Job(kernel, args, _pieces(count, self.threads))
        try:
            for queue in self._helpers(min(count, self.threads) - 1):
                queue.put(job)
            job.work(0)
        except BaseException as error:  # an interrupt, which may come anywhere in the main thread
            job.errors.append(error)
        while True:
            try:
                job.end()
                break
            except BaseException as error:  # the operands are in use until all calls have ended, whatever happens
                job.errors.append(error)
        if job.errors:
            try:
                raise job.errors[0]
            finally:
                del job  # no cycle of this frame and the error's traceback

    def _helpers(self, count: int) -> list[SimpleQueue[_Job | None]]:
        """The queues of the first helpers, which are started at the first use."""
        if len(self._queues) < count:
            with self._lock:
                for worker in range(len(self._queues) + 1, count + 1):
                    queue: SimpleQueue[_Job | None] = SimpleQueue()
                    name = f"olac-vector-{worker}"
                    try:
                        threading.Thread(target=_help, args=(queue, worker), name=name, daemon=True).start()
                    except RuntimeError as error:  # no memory or no more threads are allowed: the others do the work
                        log.warning("kernels run on %d threads instead of %d: %s", worker, self.threads, error)
                        self.threads = worker
                        break
                    self._queues.append(queue)
        return self._queues[:count]

    @staticmethod
    def _end(queues: list[SimpleQueue[_Job | None]]) -> None:
        for queue in queues:
            queue.put(None)


class _Job:
    """One call of `run`. Threads enter it while it is open; the caller closes it and waits for those inside."""

    def __init__(
        self, kernel: Callable[..., object], args: tuple[Any, ...], pieces: tuple[tuple[int, int], ...]
    ) -> None:
        self.errors: list[BaseException] = []
        self._kernel = kernel
        self._args = args
        self._pieces = deque(pieces)
        self._lock = threading.Lock()
        self._open = True
        self._inside = 0
        self._idle = threading.Lock()
        self._idle.acquire()

    def work(self, worker: int) -> None:
        """Take pieces until none are left."""
        kernel, args, take = self._kernel, self._args, self._pieces.popleft
        while self._pieces:
            try:
                lo, hi = take()
            except IndexError:  # another thread was faster
                return
            kernel(lo, hi, worker, *args)

    def help(self, worker: int) -> None:
        """`work` in a thread of the team, unless the job is over."""
        with self._lock:
            if not self._open:
                return
            self._inside += 1
        try:
            self.work(worker)
        except BaseException as error:
            self.errors.append(error)
            self._pieces.clear()
        with self._lock:
            self._inside -= 1
            if not self._open and not self._inside:
                self._idle.release()

    def end(self) -> None:
        """Wait until no thread is inside; after an interrupt it may be called again."""
        with self._lock:
            self._open = False
            self._pieces.clear()
            busy = self._inside > 0
        if busy:
            self._idle.acquire()


def _help(queue: SimpleQueue[_Job | None], worker: int) -> None:
    while (job := queue.get()) is not None:
        job.help(worker)
        del job  # its operands may be large, and the next job may be long in coming


@functools.lru_cache(maxsize=4096)
def _pieces(count: int, threads: int) -> tuple[tuple[int, int], ...]:
    """Ranges that make up range(count): at first half of a fair share each, then ever less."""
    least = -(-count // (PIECES * threads))
    pieces, lo = [], 0
    while lo < count:
        hi = min(count, lo + max(least, (count - lo) // (2 * threads)))
        pieces.append((lo, hi))
        lo = hi
    return tuple(pieces)


_teams: weakref.WeakSet[Team] = weakref.WeakSet()


def _after_fork() -> None:
    for team in list(_teams):
        team._lock = threading.Lock()
        team._queues.clear()  # of threads that this process does not have


os.register_at_fork(after_in_child=_after_fork)
