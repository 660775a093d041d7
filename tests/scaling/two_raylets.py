"""The processes of Ray's workers that this process started, and what its raylets have."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
WAIT_SECONDS = 60.0


def workers(title: str) -> set[int]:
    """Process numbers of this process's own Ray workers with a title such as "ray::Runner"."""
    parents, titles = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                number = int(folder.name)
                parents[number] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[number] = (folder / "cmdline").read_text()
            except OSError:
                continue
    return {number for number, text in titles.items() if text.startswith(title) and _descends(number, parents)}


def _descends(number: int, parents: dict[int, int]) -> bool:
    while number in parents and number != os.getpid():
        number = parents[number]
    return number == os.getpid()


def wait_for_workers(title: str, count: int) -> set[int]:
    """The workers of a title when there are as many as that."""
    end = time.monotonic() + WAIT_SECONDS
    while len(found := workers(title)) < count:
        assert time.monotonic() < end, f"{found}: not {count} workers {title}"
        time.sleep(0.05)
    return found


def send(numbers: set[int], number: signal.Signals) -> None:
    """Send a signal to processes."""
    for process in numbers:
        os.kill(process, number)
