"""The example in the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.encrypted
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})
    *_, error = capsys.readouterr().out.split()
    assert float(error) < 1e-2
    assert (tmp_path / "model.olac").exists()


def test_the_two_commands_stand_at_the_top() -> None:
    top = README.read_text().splitlines()[:15]
    assert any("make demo" in line for line in top)
    assert any("make test" in line for line in top)
