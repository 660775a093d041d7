"""Memory that this process may still take, and memory that it has taken."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
KIB = 1024


def available_bytes() -> int:
    """Bytes that this process can still take: free memory of the machine, or of the cgroup where that is less."""
    free = _meminfo("MemAvailable")
    rooms = [] if free is None else [free]
    rooms += _cgroup_rooms()
    return max(0, min(rooms)) if rooms else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def total_bytes() -> int:
    """Bytes of memory that the machine has."""
    return _meminfo("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


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
    """limit - use of the cgroups of this process and those above them; page cache that can go counts as free."""
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
    """Give memory that was freed back to the system, where the C library keeps it and can give it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
