"""Faults of all kinds, in small: none may end in a wrong result, a crash, a hang or a foreign exception.

`python -m benchmarks faults` does the same in large (docs/reliability.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.command import worker
from benchmarks.faults.kinds import MUTATIONS
from benchmarks.faults.material import prepare
from benchmarks.faults.outcomes import (
    FAULTS,
    Outcome,
)
from benchmarks.faults.pool import Worker

pytestmark = pytest.mark.encrypted

NETWORKS = 60
MUTATED = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faults")
    prepare(place)
    return place


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[Worker]:
    """One process for most kinds: to start it takes longer than many cases."""
    with worker(["networks", *MUTATIONS, "threads", "constant memory"], folder) as made:
        yield made


def check(process: Worker, kind: str, count: int, first: int = 0) -> Counter[Outcome]:
    """No case may end in a fault; how many ended how."""
    found = [process.case(kind, seed) for seed in range(first, first + count)]
    assert not [str(one) for one in found if one.verdict.outcome in FAULTS]
    return Counter(one.verdict.outcome for one in found)


def test_random_networks(process: Worker) -> None:
    ends = check(process, "networks", NETWORKS)
    assert ends[Outcome.RIGHT] > 0.9 * NETWORKS


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_files(kind: str, process: Worker) -> None:
    ends = check(process, kind, MUTATED)
    assert ends[Outcome.REFUSED] > MUTATED / 2 and ends[Outcome.RIGHT] > 0
