"""Memory that this process has taken and may still take, and amounts of memory as people write them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from olac.errors import InfeasibleError
from olac.system.threads import cores, usable_threads

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
KIB = 1024
UNITS: dict[str, int] = {
    "B": 1,
    **{f"{letter}{unit}": 1000**k for k, letter in enumerate("KMGT", 1) for unit in ("", "B")},
    **{f"{letter}IB": 1024**k for k, letter in enumerate("KMGT", 1)},
}
"""Bytes of a unit, in capitals."""
LEAST_BYTES = 1_000_000
"""A smaller number can't be meant as bytes."""


GB = 1e9
NO_MEMORY = (
    "defaultcpuallocator",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "can't start new thread",
)
"""Texts of errors that say so without a class of their own: those of torch, and of threads, which need memory too."""
LIMIT_OF_LIBRARIES = 230_000_000
LIMIT_OF_A_THREAD = 85_000_000
"""Memory as limits count it, most of which is never used: 226 MB with one thread, 310 MB with two."""


def available_bytes() -> int:
    """Bytes that this process can still take.

    This is the least of the free memory of the machine, what the cgroup leaves, and what the limits of the process
    (ulimit -v and -d) leave. The limits also count memory that is reserved and not used. Systems other than Linux don't
    say what is free; half of all memory is taken to be.
    """
    free = _meminfo("MemAvailable")
    rooms = [] if free is None else [free]
    rooms += _cgroup_rooms() + _limit_rooms()
    if free is None:
        rooms.append(total_bytes() // 2)
    return max(0, min(rooms))


def check_room(needed: float, what: str) -> None:
    """Raise InfeasibleError if fewer than `needed` bytes are available.

    OpenFHE's threads end the process if they find no memory, so work that is known to need too much is not begun.
    """
    room = available_bytes()
    if needed > room:
        raise InfeasibleError(
            f"{what} takes {needed / GB:.2f} GB more than this process holds, {room / GB:.2f} GB are available. "
            "Free memory, raise the limits of this process (ulimit -v), or take a larger machine."
        )


def limits_room() -> float:
    """Bytes of address space that the limits of this process leave; infinite if there are none."""
    return min(_limit_rooms(), default=math.inf)


def check_limits() -> None:
    """Raise InfeasibleError if the limits of this process are too low for the libraries, which are not loaded yet.

    OpenBLAS does not fail if it finds no memory: it tries for ever.
    """
    threads = min(usable_threads(), cores())
    needed = LIMIT_OF_LIBRARIES + (threads - 1) * LIMIT_OF_A_THREAD
    room = min(_limit_rooms(), default=needed)
    if room < needed:
        raise InfeasibleError(
            f"the limits of this process (ulimit -v) leave {max(0, room) / GB:.2f} GB of memory, olac's libraries take "
            f"{needed / GB:.2f} GB on {threads} threads. Raise the limits, or take fewer threads (OMP_NUM_THREADS)."
        )


def check_threads(needed: float, what: str) -> None:
    """Raise InfeasibleError if the limits of this process are too low for `needed` bytes and all threads of a run.

    A run has the caller's thread and one of Python's for each usable thread, and each of these has OpenMP's threads. If
    one of them can't be started, the process ends.
    """
    threads = usable_threads()
    more = threads * threads if threads > 1 else 0
    room = limits_room()
    total = needed + more * LIMIT_OF_A_THREAD
    if room < total:
        raise InfeasibleError(
            f"the limits of this process (ulimit -v) leave {max(0.0, room) / GB:.2f} GB of memory, {what} takes "
            f"{total / GB:.2f} GB with {threads} threads. Raise the limits, or take fewer threads (OMP_NUM_THREADS)."
        )


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in NO_MEMORY)
    )


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Raise InfeasibleError, which names `what`, if memory runs out within; works as a decorator, too."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not ran_out(error):
            raise
        room = available_bytes()
        raise InfeasibleError(
            f"{what}: memory ran out ({room / GB:.2f} GB are available now). Free memory, raise the limits of this "
            "process (ulimit -v), or take a larger machine."
        ) from error


def total_bytes() -> int:
    """Bytes of memory that the machine has."""
    return _meminfo("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """The largest resident memory that this process has had."""
    # getrusage counts what the parent held when it started this process, too.
    try:
        for line in (PROC / "self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB
    except (OSError, ValueError, IndexError):
        pass
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else KIB)


def current_rss_bytes() -> int:
    """Resident memory of this process now."""
    try:
        pages = int((PROC / "self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return peak_rss_bytes()
    return pages * os.sysconf("SC_PAGE_SIZE")


def _meminfo(field: str) -> int | None:
    try:
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * KIB
    except (OSError, ValueError, IndexError):
        pass
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" stands for no limit
        return None


def _cgroup_rooms() -> list[int]:
    """limit - use of the cgroups of this process and those above them; page cache that can be freed counts as free."""
    rooms = []
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, limit, use, cache = CGROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, use, cache = (
                CGROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            allowed, used = _number(place / limit), _number(place / use)
            if allowed is not None and used is not None:
                rooms.append(allowed - used + _stat(place / "memory.stat", cache))
            if place == base:
                break
    return rooms


def _limit_rooms() -> list[int]:
    """Bytes that the limits of this process leave it."""
    rooms = []
    for limit, field in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        most, _ = resource.getrlimit(limit)
        if most == resource.RLIM_INFINITY:
            continue
        try:
            pages = int((PROC / "self/statm").read_text().split()[field])
        except (OSError, ValueError, IndexError):
            continue
        # Threads that are not started yet reserve memory, too.
        reserved = (usable_threads() - 1) * LIMIT_OF_A_THREAD
        rooms.append(most - reserved - pages * os.sysconf("SC_PAGE_SIZE"))
    return rooms


def _stat(path: Path, field: str) -> int:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == field:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def return_freed() -> None:
    """Return freed memory to the system, if the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def bytes_of(amount: float | str, what: str, *, or_zero: bool = False, bare: str = "") -> float:
    """Bytes of an amount of memory: a number of them, or text such as "8GB", "512 MB" or "1.5GiB".

    Args:
        amount: as the caller gave it.
        what: its name, for messages.
        or_zero: whether zero is allowed, too.
        bare: the unit of text without one; empty if such text is refused.

    Raises:
        ValueError: not an amount: not a number, not finite, zero or less, an unknown unit, or fewer than a million
            bytes.
    """
    if isinstance(amount, str):
        parts = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+\.)\s*([A-Za-z]*)\s*", amount)
        unit = UNITS.get((parts[2] or bare).upper()) if parts else None
        if parts is None or unit is None:
            raise ValueError(f'{what} {amount[:40]!r} is not an amount of memory such as "8GB", "512MB" or "1.5GiB"')
        found: float = float(parts[1]) * unit
    else:
        try:
            found = math.nan if isinstance(amount, bool) else float(amount)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
    if or_zero and found == 0:
        return 0.0
    if not math.isfinite(found) or found <= 0:
        raise ValueError(f"{what} {str(amount)[:40]} is not an amount of memory above 0")
    if found < LEAST_BYTES:
        raise ValueError(f'{what} {str(amount)[:40]} is less than a megabyte: give bytes, or "8GB"')
    return found
