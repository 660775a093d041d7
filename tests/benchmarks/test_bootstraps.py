"""`python -m benchmarks bootstraps`, at a small ring."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.ckks.vector_bootstrapping import vector_bootstrap_model

SMALL = ["--ring", "11", "--insecure", "--rounds", "1", "--threads", "1"]


@pytest.mark.encrypted
def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each runs in a process of its own, as from the command line: OpenFHE keeps one set-up for a chain."""
    file = tmp_path / "rows.json"
    for more in ([], ["--slots", "8"], ["--complex"], ["--engine", "vector"]):
        command = [sys.executable, "-m", "benchmarks", "bootstraps", *SMALL, "--json", str(file), "--append", *more]
        subprocess.run(command, check=True, capture_output=True)
    full, sparse, both, vector = json.loads(file.read_text())["rows"]
    assert [row["engine"] for row in (full, sparse, both, vector)] == ["openfhe"] * 3 + ["vector"]
    assert [row["log_slots"] for row in (full, sparse, both)] == [10, 8, 10]
    assert [row["complex"] for row in (full, sparse, both)] == [False, False, True]
    for row in (full, sparse, both, vector):
        assert 0 < row["noise"] <= row["largest_error"] < 1e-3
        assert row["cpu_seconds"] > row["ntt_cpu_seconds"] > 0 and row["keys"] > 10
    assert sparse["keys"] < full["keys"] == both["keys"]
    setup = Bootstrapping(9, (4, 3))
    model = vector_bootstrap_model(Parameters(11, setup.depth, 37, 41, 2, FLEXIBLE, 0, setup))
    assert vector["keys"] == 1 + len(model.steps) + model.special_keys
    assert vector["key_bytes"] < full["key_bytes"]
    assert main(["table", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "| openfhe | 2^11 | 26 | 37/41 | 4+3 | 2 | 2^10 complex | 1 |" in out
    start = "| vector | 2^11 | 37/41 | 2^10 | 1 | 26 | 4, 12 |"
    ratios = [f"{vector[clock] / full[clock]:.3f}" for clock in ("cpu_seconds", "wall_seconds")]
    (line,) = [line for line in out.splitlines() if line.startswith(start)]
    assert line.split(" | ")[8:11:2] == ratios


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ring", "16", "--rest", "12"], "log2(QP)"),
        (["--slots", "11", "--ring", "11", "--insecure"], "--slots 11: a ring of 2^11 has 2^1 to 2^10"),
        (["--first", "37", "--ring", "11", "--insecure"], "correction factor of 0"),
        (["--ring", "11", "--insecure", "--engine", "seal"], "there is no engine 'seal'"),
        (["--ring", "11", "--insecure", "--engine", "vector", "--complex"], "OpenFHE's alone"),
    ],
)
def test_what_can_not_be(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert main(["bootstraps", "--json", str(tmp_path / "rows.json"), *more]) == 2
    assert message in capsys.readouterr().err


def test_two_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bootstraps", "--json", str(tmp_path / "rows.json"), "--budget", "4"])
    assert "two whole numbers with a comma" in capsys.readouterr().err
