"""`python -m benchmarks throughput` on a small model."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import throughput, workloads
from benchmarks.data import DataError
from benchmarks.results import ResultsFile, read_rows
from benchmarks.tables import markdown_table

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


def _small() -> workloads.Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    images = torch.rand(64, 6) * 2 - 1
    choices = {"degree": 3, "log_ring": 11, "insecure": True, "reconstruct": 0}

    def other(number: int) -> nn.Module:
        torch.manual_seed(number)
        return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()

    return workloads.Workload(model.eval(), images, images, None, choices, other)


def test_rows_compare_many_images_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workloads.SMALL, "small", _small)
    path, said = tmp_path / "rows.json", io.StringIO()
    results = ResultsFile.open(path, "the command", append=False)
    rows = throughput.run(["small"], [4, 100], results, Console(file=said, width=200), engine="openfhe", threads=1)
    assert rows == read_rows([path])
    for row, images in zip(rows, (4, 100), strict=True):
        assert (row["model"], row["images"], row["engine"]) == ("small", images, "openfhe")
        assert row["batch"] >= 4 and row["error"] < 1e-2 and row["error_alone"] < 1e-2
        assert row["ratio"] == pytest.approx(row["cpu_seconds"] / row["cpu_seconds_alone"])
    assert rows[1]["batch"] >= 64  # values of many images share a ciphertext
    assert rows[1]["ratio"] < rows[0]["ratio"] < 1
    table = markdown_table(rows)
    assert "share a ciphertext" in table and "| small | 100 |" in " ".join(table.split())
    assert "100 images in" in said.getvalue()


def test_rows_compare_ensembles_with_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workloads.SMALL, "small", _small)
    monkeypatch.setattr(throughput, "SEVERAL", ["small"])
    results = ResultsFile.open(tmp_path / "rows.json", "the command", append=False)
    (row,) = throughput.run(
        ["small"], [], results, Console(file=io.StringIO()), ensembles=[2], engine="openfhe", threads=1
    )
    assert (row["model"], row["images"]) == ("2 x small", 1) and [row] == read_rows([tmp_path / "rows.json"])
    assert row["error"] < 1e-2 and row["ratio"] == pytest.approx(row["cpu_seconds"] / row["cpu_seconds_alone"])


def test_names_are_checked_first(tmp_path: Path) -> None:
    results = ResultsFile.open(tmp_path / "rows.json", "the command", append=False)
    with pytest.raises(DataError, match="resnet99 is not one of logistic, digits, ecg, resnet8"):
        throughput.run(["logistic", "resnet99"], [4], results, Console(file=io.StringIO()))
    with pytest.raises(DataError, match="one logistic only: ensembles are measured of digits"):
        throughput.run(["logistic"], [], results, Console(file=io.StringIO()), ensembles=[2])
    assert not (tmp_path / "rows.json").exists()
