"""Lines on standard output that may have no reader: work of hours goes on without one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def going_on() -> Iterator[None]:
    """Output that nobody reads, or for which a disk is full, does not end a run of hours."""
    try:
        yield
    except OSError:
        forget_stdout()


def tell(line: str) -> None:
    """One line about a run; files and pipes get it at once."""
    with going_on():
        print(line, flush=True)


def forget_stdout() -> None:
    """Discard all further output: otherwise Python would write it at exit, and fail again."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
