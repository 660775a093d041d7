"""`python -m benchmarks costs` on a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import costs, encrypted, encrypted_steps, workloads
from benchmarks.__main__ import main
from benchmarks.encrypted_steps import decided
from benchmarks.results import read_rows

IMAGES = 3


def _small() -> workloads.Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
    images = torch.rand(64, 6) * 2 - 1
    with torch.no_grad():
        labels = (model(images)[:, 0] > 0).numpy().astype(np.int64)
    choices = {"degree": 3, "log_ring": 11, "insecure": True, "reconstruct": 0}
    return workloads.Workload(model.eval(), images, images, labels, choices)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were run. The first one runs in this process, because only this process knows the small model."""
    monkeypatch.setitem(workloads.SMALL, "small", _small)
    monkeypatch.setattr(costs, "SMALL", (*costs.SMALL, "small"))
    steps: list[str] = []
    real = encrypted.run_step

    def run_step(name: str, request: dict[str, Any], tell: encrypted.Tell) -> dict[str, Any]:
        steps.append(name)
        return encrypted_steps.costs(request, tell) if name == "costs" else real(name, request, tell)

    monkeypatch.setattr(encrypted, "run_step", run_step)
    return steps


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_a_row_has_what_a_network_costs(
    made: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, work = tmp_path / "rows.json", tmp_path / "work"
    given = ["costs", "small", "--images", str(IMAGES), "--threads", "1", "--work", str(work), "--json", str(path)]
    assert main(given) == 0
    assert made == ["costs", "keygen", "encrypt", "serve", "decrypt"]
    (row,) = read_rows([path])
    assert row["kind"] == "cost" and row["top1_plaintext"] == 1.0 and row["tested_images"] == 64
    assert row["top1_simulated"] == row["agreement_simulated"] > 0.9
    assert row["correct"] == row["same_class"] == IMAGES
    assert row["cpu_seconds"] > 0 and row["key_bytes"] > 0 and row["max_logit_error"] < 1e-2
    assert "| small |" in _markdown(path, capsys)

    made.clear()  # the program is there now, and it is of another recipe
    capsys.readouterr()
    assert main([*given, "--max-bootstraps", "3"]) == 2
    assert "was compiled otherwise (choices" in capsys.readouterr().err and made == ["costs"]


def _markdown(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["table", "--json", str(path)]) == 0
    return capsys.readouterr().out


def test_weights_are_found_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["costs", "digits", "resnet20", "--weights", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    assert main(given) == 2
    assert "has no resnet20.pt and no resnet20.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "rows.json").exists()


def test_the_small_ones_are_those_that_bring_their_data() -> None:
    assert tuple(workloads.SMALL) == costs.SMALL


def test_classes_of_logits() -> None:
    assert decided(np.array([[1.0, 2.0], [3.0, 0.0], [np.nan, 1.0]])).tolist() == [1, 0, -1]
    assert decided(np.array([[0.5], [-0.5], [np.inf]])).tolist() == [1, 0, -1]


def test_beats_are_told_apart_by_their_waves() -> None:
    signals, labels = workloads.beats(200, seed=3)
    assert signals.shape == (200, 1, workloads.BEAT) and set(labels.tolist()) == {0, 1, 2, 3}
    same, _ = workloads.beats(200, seed=3)
    assert torch.equal(signals, same)
    means = torch.stack([signals[labels == k].mean(0)[0] for k in range(4)])
    far = torch.cdist(means, means) + 10 * torch.eye(4)
    assert far.min() > 0.5
