"""Threads that OpenFHE's loops will use."""

from __future__ import annotations

import os


def usable_threads() -> int:
    """OMP_NUM_THREADS where it is set (OpenFHE reads it when it is imported), else the cores of this process."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else max(1, len(os.sched_getaffinity(0)))
