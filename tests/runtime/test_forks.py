"""Processes that were forked: never the same randomness twice, never a wait for threads that are gone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.encrypted

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def told() -> Any:
    """What a process of its own, with two threads in OpenFHE's loops, has to tell of its forks."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "2",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.forked"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_forks_of_a_process_that_has_not_used_openfhe_work_and_share_no_randomness(told: Any) -> None:
    """Workers of a server whose program was loaded before they were forked, and whose parent has used torch."""
    found = told["before"]
    rounds = [*found["children"], found["parent"]]
    assert all(isinstance(one, list) and one[-1] is True for one in rounds), rounds
    assert len({one[0] for one in rounds}) == len({one[1] for one in rounds}) == 3
    assert found["foreign"] == found["grandchild"] == "refused"


def test_all_uses_are_refused_in_a_fork_of_a_process_that_has_used_openfhe(told: Any) -> None:
    found = told["after"]
    assert set(found["refused"].values()) == {"refused"}, found["refused"]
    assert len(found["refused"]) == 17
    assert found["let go"] is True  # at once, and without a word to OpenFHE
