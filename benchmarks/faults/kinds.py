"""All kinds of faults by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.faults import files
from benchmarks.faults.outcomes import Verdict


class Kind(Protocol):
    """Faults of one kind; a seed makes the same case again."""

    def case(self, seed: int) -> Verdict:
        """Make one fault and judge what it leads to; the caller judges exceptions."""


@dataclass(frozen=True)
class Networks:
    """Random networks; they need no material."""

    folder: Path

    def case(self, seed: int) -> Verdict:
        """One network."""
        from benchmarks.faults.compiled import check_network

        return check_network(seed)


def _networks(folder: Path) -> Kind:
    import torch  # before memory is limited

    torch.set_num_threads(1)
    return Networks(folder)


def _mutations(name: str) -> Callable[[Path], Kind]:
    def make(folder: Path) -> Kind:
        if name == "calibration":
            import olac.compiler  # noqa: F401  # with torch, before memory is limited
        return files.mutations(folder, name)

    return make


def _failed_writes(folder: Path) -> Kind:
    from benchmarks.faults.injected import failed_writes

    return failed_writes(folder)


def _failed_allocations(folder: Path) -> Kind:
    from benchmarks.faults.injected import failed_allocations

    return failed_allocations(folder)


def _limited(folder: Path) -> Kind:
    from benchmarks.faults.injected import Limited

    return Limited(folder)


def _killed(folder: Path) -> Kind:
    from benchmarks.faults.processes import Killed

    return Killed(folder)


def _forks(folder: Path) -> Kind:
    from benchmarks.faults.processes import Forks, ready

    ready(folder)
    return Forks(folder)


def _threads(folder: Path) -> Kind:
    from benchmarks.faults.processes import Threads

    return Threads(folder)


def _repeated(folder: Path) -> Kind:
    from benchmarks.faults.processes import Repeated

    return Repeated(folder)


MUTATIONS = tuple(f"mutated {name}" for name in files.KINDS)
KINDS: dict[str, Callable[[Path], Kind]] = {
    "networks": _networks,
    **{f"mutated {name}": _mutations(name) for name in files.KINDS},
    "failed writes": _failed_writes,
    "failed allocations": _failed_allocations,
    "limited files": _limited,
    "killed": _killed,
    "forks": _forks,
    "threads": _threads,
    "constant memory": _repeated,
}


def kind(name: str, folder: Path) -> Kind:
    """A kind by its name, on material in a folder."""
    return KINDS[name](folder)
