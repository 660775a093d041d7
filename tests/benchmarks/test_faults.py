"""A few faults of each kind: none may end in a wrong result, a crash, a hang or a foreign exception.

`python -m benchmarks faults` tries many (docs/reliability.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import mutate
from benchmarks.faults.command import worker
from benchmarks.faults.kinds import MUTATIONS
from benchmarks.faults.material import DEEP, EVALUATION, INPUT, PLAIN, PROGRAM, Material, prepare
from benchmarks.faults.outcomes import FAULTS, Finding, Outcome, Verdict, judged, markdown, right, rows
from benchmarks.faults.pool import Worker
from benchmarks.faults.processes import USES
from olac.ckks.engines import ENGINES
from olac.errors import ArtifactError, VerificationError
from olac.program.program import CompiledProgram

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

NETWORKS = 40
MUTATED = 300
CALIBRATIONS = 100
"""A calibration that is read is compiled with, which takes much longer than a look at any other file."""


@pytest.fixture(scope="module", params=ENGINES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faults")
    prepare(place, request.param)
    assert {CompiledProgram.load(place / which / PROGRAM).engine for which in (PLAIN, DEEP)} == {request.param}
    return place


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[Worker]:
    """One process for most kinds, because starting it takes longer than many cases."""
    with worker([*MUTATIONS, "threads", "constant memory"], folder) as made:
        yield made


def check(process: Worker, kind: str, count: int, first: int = 0) -> Counter[Outcome]:
    """No case may end in a fault; returns how many ended with each outcome."""
    found = [process.case(kind, seed) for seed in range(first, first + count)]
    assert not [str(one) for one in found if one.verdict.outcome in FAULTS]
    return Counter(one.verdict.outcome for one in found)


def test_random_networks(tmp_path: Path) -> None:
    """On the engine that is taken by default."""
    with worker(["networks"], tmp_path) as process:
        ends = check(process, "networks", NETWORKS)
    assert ends[Outcome.RIGHT] > 0.9 * NETWORKS


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_files(kind: str, process: Worker) -> None:
    count = CALIBRATIONS if kind == "mutated calibration" else MUTATED
    ends = check(process, kind, count)
    assert ends[Outcome.REFUSED] > count / 2 and ends[Outcome.RIGHT] > 0


COMMANDS = [("failed writes", 54), ("failed allocations", 32), ("limited files", 18), ("killed", 18)]


@pytest.mark.parametrize(("kind", "count"), COMMANDS)
def test_commands_that_fail_or_are_killed(kind: str, count: int, folder: Path) -> None:
    with worker([kind], folder) as process:
        ends = check(process, kind, count)
    assert ends[Outcome.REFUSED if kind != "killed" else Outcome.RIGHT] >= count / 4


def test_forks(folder: Path) -> None:
    ways = 1 + len(USES)
    with worker(["forks"], folder) as process:
        ends = check(process, "forks", ways)
    # Before its parent has used the library, a child may do everything, and after that nothing random.
    assert ends[Outcome.RIGHT] >= 1 and ends[Outcome.REFUSED] >= 4


@pytest.mark.parametrize(("kind", "count"), [("threads", 4), ("constant memory", 4)])
def test_what_lasts(kind: str, count: int, process: Worker) -> None:
    ends = check(process, kind, count)
    assert ends[Outcome.RIGHT] == count


# The harness notices faults -------------------------------------------------------------------------------------------


def test_ends_are_told_apart() -> None:
    def refuse() -> Verdict:
        raise ArtifactError("no")

    def broken() -> Verdict:
        raise VerificationError("a bug")

    def foreign() -> Verdict:
        return right(str(1 // 0))

    ends = [judged(case).outcome for case in (right, refuse, broken, foreign)]
    assert ends == [Outcome.RIGHT, Outcome.REFUSED, Outcome.FOREIGN, Outcome.FOREIGN]
    assert "ZeroDivisionError" in judged(foreign).what


def test_crashes_and_hangs_are_seen_and_the_next_case_is_done(tmp_path: Path) -> None:
    source = """
import os, sys, time
from benchmarks.faults import kinds, worker
from benchmarks.faults.outcomes import right, wrong

class Faulty:
    def case(self, seed):
        if seed == 1:
            os.abort()
        if seed == 2:
            while True:
                pass
        if seed == 3:
            bytearray(1 << 40)
        print("printed by a case")
        return wrong("as asked") if seed == 4 else right()

kinds.KINDS["faulty"] = lambda folder: Faulty()
sys.exit(worker.main(sys.argv[1:]))
"""
    with Worker(["faulty"], tmp_path, program=("-c", source)) as process:
        ends = [process.case("faulty", seed, cpu=1.0).verdict for seed in range(6)]
    assert [one.outcome for one in ends] == [
        Outcome.RIGHT,
        Outcome.CRASHED,
        Outcome.HUNG,
        Outcome.FOREIGN,
        Outcome.WRONG,
        Outcome.RIGHT,
    ]
    assert ends[1].what.startswith("SIGABRT") and ends[3].what.startswith("MemoryError")


def test_the_table() -> None:
    ends = [Outcome.RIGHT, Outcome.RIGHT, Outcome.REFUSED, Outcome.HUNG]
    found = [Finding("a", i, Verdict(one)) for i, one in enumerate(ends)]
    lines = rows([*found, Finding("b", 0, Verdict(Outcome.WRONG))])
    assert [(line.kind, line.tried, line.faults) for line in lines] == [("a", 4, 1), ("b", 1, 1)]
    assert markdown(lines).splitlines()[2:] == [
        "| a | 4 | 2 | 1 | 0 | 0 | 0 | 1 |",
        "| b | 1 | 0 | 0 | 1 | 0 | 0 | 0 |",
        "| all | 5 | 2 | 1 | 1 | 0 | 0 | 1 |",
    ]


@pytest.mark.parametrize(("which", "name"), [(PLAIN, PROGRAM), (PLAIN, EVALUATION), (DEEP, INPUT)])
def test_mutations_change_the_file_and_can_be_made_again(which: str, name: str, folder: Path) -> None:
    data = (folder / which / name).read_bytes()
    knowing = mutate.program if name == PROGRAM else mutate.frame
    for make in (mutate.blind, knowing):
        made = [make(np.random.default_rng(seed), data) for seed in range(30)]
        assert sum(one.data != data for one in made) > 25
        assert [one.data for one in made] == [make(np.random.default_rng(seed), data).data for seed in range(30)]


def test_a_wrong_result_is_not_right(folder: Path) -> None:
    material = Material(folder / PLAIN, PLAIN)
    assert material.is_right(material.expected)
    assert not material.is_right(material.expected * 1.1) and not material.is_right(material.expected[:, :2])
