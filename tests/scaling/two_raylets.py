"""A Ray cluster of two raylets on this machine, as two machines of one core each, and its worker processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The cluster, which Ray is connected to."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install olac[ray]")
    utilities = pytest.importorskip("ray.cluster_utils")
    paths = [str(ROOT), *sys.path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys(path for path in paths if path)))
        patch.setenv("PYTHONWARNINGS", "ignore")
        made = utilities.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            made.add_node(**NODE)
            ray.init(address=made.address, log_to_driver=False)
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


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
