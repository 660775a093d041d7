"""`python -m benchmarks finetune` and `structure`, on small random networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import structure
from benchmarks.__main__ import main
from benchmarks.finetuning import BATCH, SHIFT, Augmented
from benchmarks.models import MODELS, Benchmark
from olac.frontend import lift, trace
from olac.passes.compose_linear import ComposeLinear
from olac.passes.fold_squares import FoldSquares
from olac.program.program import CompiledProgram
from tests.benchmarks.test_accuracy import tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and weights; the tests run in it."""
    random = np.random.default_rng(0)
    for name, count in (("test", 60), ("train", 300)):
        images = random.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
        np.savez(tmp_path / f"cifar10_{name}.npz", images=images, labels=random.integers(0, 5, count, dtype=np.uint8))
    torch.manual_seed(0)
    torch.save(tiny().state_dict(), tmp_path / "weights.pt")
    monkeypatch.setitem(MODELS, "tiny", Benchmark(tiny))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finetune(*more: str) -> int:
    options = ["--model", "tiny", "--weights", "weights.pt", "--data", ".", "--images", "60", "--effort", "fast"]
    return main(["finetune", *options, "--calibration", "300", "--json", "rows.json", *more])


def test_it_writes_a_row_a_module_and_a_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("--epochs", "2", "--save", "module.pt", "--program", "program.olac", "--threads", "1") == 0
    (row,) = json.loads((folder / "rows.json").read_text())["rows"]
    assert row["strategy"] == "finetune:2" and row["model"] == "tiny"
    assert row["degrees"] == [2, 2] and row["depths"] == [1, 1] and row["total_depth"] == 2
    assert [epoch["images"] for epoch in row["history"]] == [294, 294]
    state = torch.load(folder / "module.pt", weights_only=True)
    assert {name.rpartition(".")[2] for name in state} >= {"weight", "bias", "coefficients"}
    assert CompiledProgram.load(folder / "program.olac").output_shape == (5,)
    assert json.loads((folder / "program.olac.json").read_text())["strategy"] == "finetune:2"
    assert "epoch 2 of 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--calibration", "50"], "too little to train on"),
        (["--save", "nowhere/module.pt"], "folder of nowhere/module.pt"),
        (["--calibration", "400"], "--calibration asks for 400"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(
    folder: Path, capsys: pytest.CaptureFixture[str], more: Sequence[str], message: str
) -> None:
    assert finetune(*more) == 2
    assert message in capsys.readouterr().err


def test_batches_are_shuffled_mirrored_and_shifted_and_keep_their_labels() -> None:
    count = BATCH + 30
    images = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, 1, 8, 8).clone()
    images[:, :, :, 4:] += 0.25  # the right half is different, so mirrored images can be told
    data = Augmented(images, torch.arange(count))
    assert len(data) == 2
    seen, mirrored, moved = [], 0, 0
    for x, labels in data:
        for one, label in zip(x[:, 0], labels.tolist(), strict=True):
            inside = one[one != 0]
            assert set(inside.tolist()) <= {label + 1.0, label + 1.25}
            moved += int((one == 0).any())
            row = one[(one != 0).any(1)][0]
            row = row[row != 0]
            mirrored += int(row[0] > row[-1])
            seen.append(label)
    assert sorted(seen) == list(range(count)) and seen != sorted(seen)
    assert 0 < mirrored < count and 0 < moved <= count
    assert SHIFT == 4


def test_structure_counts_what_rules_save(capsys: pytest.CaptureFixture[str]) -> None:
    graph = lift(trace(tiny().eval(), torch.zeros(2, 3, 16, 16)))
    # Three linear ops, of which pooling is part of the last one, and two squares.
    assert structure.levels(graph) == 5
    assert structure.levels(graph, (FoldSquares,)) == 7
    assert structure.levels(graph, (ComposeLinear,)) == 6
    assert main(["structure", "--models", "resnet8"]) == 0
    assert "resnet8" in capsys.readouterr().out
    assert main(["structure", "--models", "resnet9"]) == 2
