"""What a forked process must not take over from its parent: OpenFHE's randomness and its threads.

OpenFHE's generator lives in the process. Making a context draws from it, and from then on a forked child goes on where
its parent stood, as its siblings do: they would encrypt with the same randomness and make the same secret keys. The
threads of its loops, and olac's own, are gone in the child, where it would wait for them for ever. So a process that
was forked after that is told so whenever it is about to use OpenFHE. One that was forked before has a generator and
threads of its own.

torch shares the threads of OpenFHE's loops where both are loaded. They are let go before a fork, so that a child of a
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
"""Of `omp_pause_resource_all`: threads go, settings stay."""

_used = False
"""Whether OpenFHE's randomness may have been drawn from, in this process or in one that it was forked from."""
_forked = False
"""Whether a process was forked off after that: this one, or one that it was forked from."""


def check_fork() -> None:
    """Before OpenFHE is used for anything, and before any lock that is held while it is used.

    Raises:
        ForkError: the process was forked after OpenFHE was used.
    """
    if _forked:
        raise ForkError(
            "this process was forked after its parent had used OpenFHE. It would repeat the parent's randomness, and "
            "wait for threads that it doesn't have. Create Client and Server after the fork, in the processes that "
            "use them, and none before it; or start processes without a fork: "
            'multiprocessing.get_context("spawn").'
        )


def begin_use() -> None:
    """`check_fork`, where a context may be made: from now on this process must not be forked to use OpenFHE."""
    global _used
    check_fork()
    _used = True


def is_stale() -> bool:
    """Whether `check_fork` would raise."""
    return _forked


def _in_use() -> bool:
    """Whether OpenFHE was used, by olac or by others in this process: whatever is done with it takes a context."""
    module = sys.modules.get("openfhe")
    contexts = getattr(module, "GetAllContexts", None)
    return _used or (contexts is not None and bool(contexts()))


def _before() -> None:
    global _used
    _used = _in_use()
    if not _used:
        _let_threads_go()


def _after_in_child() -> None:
    global _forked
    _forked = _forked or _used


def _let_threads_go() -> None:
    """End the threads of OpenMP's loops that this thread began; its next loop begins others."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:  # no system that OpenFHE has wheels for
        return
    for path in sorted({line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}):
        try:
            ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_NOLOAD).omp_pause_resource_all(PAUSE_SOFT)
        except (OSError, AttributeError):  # an old one, that can't
            continue


os.register_at_fork(before=_before, after_in_child=_after_in_child)
