"""What a forked process must not take over from its parent: OpenFHE's randomness and its threads.

OpenFHE has one random generator for the process, and making a context draws from it. A child that is forked after that
continues from the state of its parent, and so does each of its siblings: they would encrypt with the same randomness
and make the same secret keys. The threads of OpenFHE's loops, and those of olac, do not exist in the child, which would
wait for them for ever. Such a child therefore gets an error whenever it is about to use OpenFHE. A child that was
forked before has its own generator and its own threads.

If torch is loaded too, it shares the threads of OpenFHE's loops. They are ended before a fork, so that the child of a
process that has only used torch can start its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from olac.errors import ForkError

MAPS = Path("/proc/self/maps")
PAUSE_SOFT = 1
"""Argument of `omp_pause_resource_all`: end the threads, keep the settings."""

_used = False
"""Whether OpenFHE's generator may have been used, in this process or in one that it was forked from."""
_forked = False
"""Whether this process, or one that it was forked from, was forked after that."""


def check_fork() -> None:
    """Call it before OpenFHE is used for anything, and before taking a lock that is held while it is used.

    Raises:
        ForkError: the process was forked after OpenFHE was used.
    """
    if _forked:
        raise ForkError(
            "this process was forked after its parent had used OpenFHE. It would repeat the parent's randomness and "
            "wait for threads that it doesn't have. Create Client and Server after the fork, in the processes that "
            "use them, and none before it, or start processes without a fork: "
            'multiprocessing.get_context("spawn").'
        )


def begin_use() -> None:
    """`check_fork` before a context may be made: a child that is forked from now on must not use OpenFHE."""
    global _used
    check_fork()
    _used = True


def is_stale() -> bool:
    """Whether `check_fork` would raise."""
    return _forked


def _in_use() -> bool:
    """Whether OpenFHE was used in this process, by olac or by others: any use of it takes a context."""
    module = sys.modules.get("openfhe")
    contexts = getattr(module, "GetAllContexts", None)
    return _used or (contexts is not None and bool(contexts()))


def _before() -> None:
    global _used
    _used = _in_use()
    if not _used:
        _end_threads()


def _after_in_child() -> None:
    global _forked
    _forked = _forked or _used


def _end_threads() -> None:
    """End the threads of OpenMP's loops that this thread started; its next loop starts new ones."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:  # a system that OpenFHE has no wheels for
        return
    for path in sorted({line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}):
        try:
            ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD).omp_pause_resource_all(PAUSE_SOFT)
        except (OSError, AttributeError):  # an old libgomp, which can't
            continue


os.register_at_fork(before=_before, after_in_child=_after_in_child)
