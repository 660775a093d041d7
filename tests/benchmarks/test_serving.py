"""`python -m benchmarks serving`, with few jobs of the small program."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import serving
from benchmarks.__main__ import main
from tests.runtime.small_program import small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


def test_a_few_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_program().save(tmp_path / "small.olac")
    command = ["serving", str(tmp_path / "small.olac"), "--clients", "2", "--jobs", "4", "--memory", "0.3"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "4 of 4 results right, 0 wrong, 0 left" in text and "1 workers made room" in text


def test_a_wrong_result_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_program().save(tmp_path / "small.olac")
    monkeypatch.setattr(serving, "TOLERANCE", 1e-12)
    found = serving.measure(tmp_path / "small.olac", 1, 1, 1, 3e8, 1)
    assert (found.right, found.wrong) == (0, 1) and found.workers_gb > 0.05
