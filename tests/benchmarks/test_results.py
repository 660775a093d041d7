"""Tables and plots of files of results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.results import ResultsFile
from benchmarks.tables import compressed


def row(strategy: str, depth: int | None, top1: float, degrees: list[int], **more: Any) -> dict[str, Any]:
    common = {"model": "resnet20", "images": 2000, "calibration_images": 512, "plaintext_top1": 0.9165, "wrecked": 0}
    own = {"strategy": strategy, "total_depth": depth, "top1": top1, "agreement": 0.9, "degrees": degrees}
    return {**common, **own, "fit_seconds": 41.26, **more}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two files of results in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    first = [
        row("relu", None, 0.9165, [], agreement=1.0, fit_seconds=None),
        row("uniform:7", 57, 0.9155, [7] * 19),
        row("uniform:3", 38, 0.8925, [3] * 19, wrecked=4),
        row("default:42", 42, 0.9095, [3, 3, 7, 2, 3]),
    ]
    second = [row("uniform:3", 62, 0.911, [3] * 31, model="resnet32", plaintext_top1=0.927, fit_seconds=1.26)]
    for name, rows in (("a.json", first), ("b.json", second)):
        Path(name).write_text(json.dumps({"rows": rows}))
    return ["a.json", "b.json"]


def encrypted(engine: str | None, cpu: float, **more: Any) -> dict[str, Any]:
    """A row of an encrypted run; without an engine, as they were written before there were several."""
    common = {
        "kind": "encrypted",
        "model": "resnet20",
        "strategy": "bootstraps:6",
        "images": 1,
        "threads": 1,
        "parameters": "ring 2^16",
        "security_bits": 128.0,
        "wall_seconds": cpu + 1,
        "peak_rss_gb": 10.5,
        "key_bytes": 5_700_000_000,
        "bootstraps": 6,
        "keygen_seconds": 20.0,
        "setup_seconds": 44.0,
    }
    return {**common, "cpu_seconds": cpu, **({} if engine is None else {"engine": engine}), **more}


def test_engines_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One program on both engines, and an engine's own program, which is compared with the other engine's own."""
    file = tmp_path / "rows.json"
    both, own = {"fingerprint": "a" * 64, "ntt_cpu_seconds": 0.004}, {"fingerprint": "b" * 64, "planned_for": "vector"}
    rows = [encrypted("vector", 40.0, **both), encrypted("openfhe", 160.0, **both), encrypted("vector", 32.0, **own)]
    file.write_text(json.dumps({"rows": rows}))
    assert main(["table", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    start = "| resnet20 | bootstraps:6 |"
    assert f"{start} vector | 1 | 40.0 | 41.0 | 10.50 | 5.70 | 6 |  |  | 128 bits | 4.00 |" in out
    assert (
        f"{start} openfhe | openfhe | aaaaaaaa | 1 | 160.0 |  | 161.0 |  | 6 |  | 10.50 | 5.70 | 64 |  | 4.00 |" in out
    )
    assert f"{start} vector | openfhe | aaaaaaaa | 1 | 40.0 | 0.250 | 41.0 | 0.255 | 6 |" in out
    assert f"{start} vector | vector | bbbbbbbb | 1 | 32.0 | 0.200 | 33.0 | 0.205 | 6 |" in out
    # Nothing is compared if there is one engine alone.
    file.write_text(json.dumps({"rows": rows[:1]}))
    assert main(["table", "--json", str(file)]) == 0
    assert "planned for" not in capsys.readouterr().out


def test_rows_that_name_no_engine_are_openfhes(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": [encrypted(None, 134.0)]}))
    results = ResultsFile.open(file, "again", append=True)
    results.add(encrypted("vector", 40.0, planned_for="openfhe"))
    results.add(encrypted("vector", 30.0, planned_for="vector"))
    assert [row["cpu_seconds"] for row in results.rows] == [134.0, 40.0, 30.0]
    results.add(encrypted("openfhe", 130.0, planned_for="openfhe"))
    assert [row["cpu_seconds"] for row in json.loads(file.read_text())["rows"]] == [40.0, 30.0, 130.0]


def test_compressed() -> None:
    assert compressed([3, 3, 7, 2, 3]) == "3 (2), 7 (1), 2 (1), 3 (1)"
    assert compressed([]) == ""


def test_table(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", "--json", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "| model | strategy | total depth | top-1 | agreement | diverged | effort | fit seconds | degrees |",
        "|---|---|---:|---:|---:|---:|---|---:|---|",
        "| resnet20 | relu |  | 91.65% | 100.00% | 0 |  |  |  |",
    ]
    assert "| resnet20 | default:42 | 42 | 90.95% | 90.00% | 0 | standard | 41 | 3 (2), 7 (1), 2 (1), 3 (1) |" in lines
    assert "| resnet32 | uniform:3 | 62 | 91.10% | 90.00% | 0 | standard | 1.3 | 3 (31) |" in lines
    assert "* resnet20: 91.65% with its own activations, 2000 test images, 512 for calibration." in lines
    assert "* resnet20, uniform:3: 4 images diverged." in lines
    assert sum("own activations" in line for line in lines) == 2


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_plot(files: list[str], name: str) -> None:
    pytest.importorskip("matplotlib")
    assert main(["plot", "--json", *files, "--output", name]) == 0
    content = Path(name).read_bytes()
    assert b"<svg" in content if name.endswith("svg") else content.startswith(b"\x89PNG")
    assert main(["plot", "--json", *files, "--output", f"again-{name}"]) == 0
    assert Path(f"again-{name}").read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "a.json", "--output", "plot.pdf"], ".svg or .png"),
        (["--json", "a.json", "--output", "absent/plot.svg"], "the folder of absent"),
        (["--json", "absent.json", "--output", "plot.svg"], "absent.json is not a file of results"),
        (["--json", "list.json", "--output", "plot.svg"], "list.json is not a file of results"),
    ],
)
def test_wrong_usage(files: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.json").write_text("[]")
    assert main(["plot", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_matplotlib(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", "--json", "a.json", "--output", "plot.svg"]) == 2
    assert "pip install 'olac[benchmarks]'" in capsys.readouterr().err
