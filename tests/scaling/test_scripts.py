"""The scripts of docs/scaling.md do what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from olac.calibration.statistics import Calibration
from olac.scaling import calibrate_parts
from tests.scaling.small_calibration import assert_same, images, net

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(containing: str) -> str:
    """The only block of code of the document that contains a text."""
    (found,) = [one for one in BLOCK.findall((ROOT / "docs" / "scaling.md").read_text()) if containing in one]
    assert isinstance(found, str)
    return found


def test_the_job_that_calibrates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def loader(part: int, parts: int) -> list[torch.Tensor]:
        read.append((part, parts))
        return [images(16, seed=part)]

    monkeypatch.setitem(sys.modules, "my_model", SimpleNamespace(model=net(), loader=loader))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("PARTS", "2")
    for number in ("0", "1", "0"):  # the last is there already
        monkeypatch.setenv("JOB_COMPLETION_INDEX", number)
        exec(script("JOB_COMPLETION_INDEX"), {})
    assert read == [(0, 2), (1, 2)]
    exec(script("reduce(Calibration.merge"), {})
    wanted = calibrate_parts(net(), [images(16, seed=number) for number in range(2)])
    assert_same(Calibration.load(tmp_path / "whole.calibration"), wanted)
