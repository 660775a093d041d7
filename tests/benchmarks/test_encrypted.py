"""`python -m benchmarks encrypted`, on a small random network, random images and a small ring."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import encrypted, encrypted_steps
from benchmarks.__main__ import main
from benchmarks.data import ENVIRONMENT, DataError
from benchmarks.models import MODELS, Benchmark

SIZE = 4
Run = Callable[..., int]


def tiny() -> nn.Module:
    """Deeper than the chain of the pinned parameters, so that it needs a bootstrap."""
    blocks = [part for _ in range(7) for part in (nn.Conv2d(2, 2, 1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with images and weights that the test runs in; returns the steps that were run. `prepare` runs in this
    process, because only this process knows the tiny network.
    """
    random = np.random.default_rng(0)
    for name, count in (("test", 8), ("train", 40)):
        images = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        np.savez(tmp_path / f"cifar10_{name}.npz", images=images, labels=random.integers(0, 3, count, dtype=np.uint8))
    torch.manual_seed(0)
    # Positive weights, so that values stay positive after eight ReLUs and the output depends on the input.
    torch.save({name: values.abs() for name, values in tiny().state_dict().items()}, tmp_path / "weights.pt")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setitem(MODELS, "tiny", Benchmark(tiny))
    monkeypatch.chdir(tmp_path)
    done: list[str] = []
    real = encrypted.run_step

    def run_step(name: str, request: dict[str, Any], tell: encrypted.Tell) -> dict[str, Any]:
        done.append(name)
        return encrypted_steps.prepare(request, tell) if name == "prepare" else real(name, request, tell)

    monkeypatch.setattr(encrypted, "run_step", run_step)
    return done


@pytest.fixture
def run(steps: list[str]) -> Run:
    """Runs `encrypted` on the tiny model; keywords replace options, None leaves one out."""

    def call(*more: str, **changes: object) -> int:
        options: dict[str, object] = {
            "model": "tiny",
            "weights": "weights.pt",
            "data": ".",
            "strategy": "empirical:3",
            "calibration": 40,
            "threads": 1,
            "json": "rows.json",
        }
        given = [(k.replace("_", "-"), v) for k, v in {**options, **changes}.items() if v is not None]
        return main(["encrypted", *(str(part) for k, v in given for part in (f"--{k}", v)), *more])

    return call


PINNED = ("--insecure", "--log-ring", "11", "--rest", "4", "--digits", "2")
STEPS = ["prepare", "keygen", "encrypt", "serve", "decrypt"]


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_a_run_with_bootstraps_and_its_keys_again(
    run: Run, steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*PINNED, work="work", engine="openfhe", simulate=8) == 0
    assert steps == STEPS
    (row,) = json.loads(Path("rows.json").read_text())["rows"]
    assert (row["kind"], row["model"], row["strategy"], row["images"], row["threads"]) == (
        "encrypted",
        "tiny",
        "empirical:3",
        1,
        1,
    )
    assert (row["engine"], row["planned_for"]) == ("openfhe", "openfhe")
    assert row["bootstraps"] >= 1
    # The bootstraps of a run and what else it does take the CPU time of the run together.
    assert 0 < row["bootstrap_cpu_seconds"] * row["bootstraps"] < row["cpu_seconds"]
    assert row["bootstrap_wall_seconds"] * row["bootstraps"] == pytest.approx(
        row["kind_seconds"]["bootstrap"], abs=0.01
    )
    assert 0 < row["ntt_cpu_seconds"] < row["bootstrap_cpu_seconds"]
    assert row["same_class"] == 1
    assert row["max_logit_error"] < 0.05 * row["max_logit"]
    assert 0 < row["cpu_seconds"] < 1.5 * row["wall_seconds"] + 0.5
    assert row["peak_rss_gb"] > 0.1
    assert row["ring_dimension"] == 2048
    assert "NOT SECURE" in row["parameters"]
    assert row["simulated_images"] == 8
    assert set(row["kind_seconds"]) == set(encrypted_steps.KINDS)
    assert sum(row["kind_seconds"].values()) == pytest.approx(sum(row["node_seconds"].values()), abs=0.05)
    assert row["kind_seconds"]["bootstrap"] > 0
    assert row["kind_seconds"]["encode"] > 0
    out = capsys.readouterr().out
    assert out.index("predicted: ") < out.index("keys: ")
    assert row["here_seconds"] > 0 and "s on this machine, " in out
    assert "\r" not in out and "\x1b" not in out
    assert oct(Path("work/client").stat().st_mode)[-3:] == "700"
    assert not list(Path("work/server").glob("*secret*"))

    steps.clear()
    assert run("--append", *PINNED, work="work", engine="openfhe") == 0
    assert steps == [step for step in STEPS if step != "keygen"]
    (again,) = json.loads(Path("rows.json").read_text())["rows"]
    assert again["compile_seconds"] is None
    assert again["keygen_seconds"] == row["keygen_seconds"]
    assert "calibration and compilation are skipped" in capsys.readouterr().out
    assert main(["table", "--json", "rows.json"]) == 0
    assert "| tiny | empirical:3 | openfhe | 1 |" in capsys.readouterr().out

    # Rows and keys that are older than other engines are OpenFHE's.
    record = json.loads(Path("work/keys.json").read_text())
    folders = encrypted.Folders(Path("work"), Path("work/program.olac"))
    assert folders.keys(row["fingerprint"], "vector") is None
    assert record.pop("engine") == "openfhe"
    Path("work/keys.json").write_text(json.dumps(record))
    assert folders.keys(row["fingerprint"], "openfhe") == {k: v for k, v in record.items() if k != "fingerprint"}

    assert run(*PINNED, work="work", engine="openfhe", strategy="empirical:2") == 2
    assert "was compiled otherwise (strategy empirical:3 there" in capsys.readouterr().err


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_a_run_with_multiplexed_convolutions(run: Run, steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*PINNED, "--lowering", "multiplexed", program="tiny.olac") == 0
    (row,) = json.loads(Path("rows.json").read_text())["rows"]
    assert row["strategy"] == "empirical:3@multiplexed"
    assert row["lowerings"] == {"multiplexed": 8, "diagonals": 1}
    assert row["bootstraps"] >= 1
    assert row["same_class"] == 1
    assert row["max_logit_error"] < 0.05 * row["max_logit"]
    capsys.readouterr()
    assert run(*PINNED, program="tiny.olac") == 2
    assert "was compiled otherwise (strategy empirical:3@multiplexed there" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_lowerings_compared(run: Run, steps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    items = "empirical:2,empirical:2@multiplexed,empirical:2@diagonals"
    assert run("--compare", items, "--minutes", "0", *PINNED, strategy=None) == 0
    rows = {row["strategy"]: row for row in json.loads(Path("rows.json").read_text())["rows"]}
    assert list(rows) == items.split(",")
    auto, multiplexed, diagonals = (rows[item] for item in items.split(","))
    assert auto["fingerprint"] == diagonals["fingerprint"] != multiplexed["fingerprint"]
    assert auto["lowerings"] == {"diagonals": 9}
    assert multiplexed["lowerings"] == {"multiplexed": 8, "diagonals": 1}
    assert multiplexed["bootstraps"] >= auto["bootstraps"]
    capsys.readouterr()
    assert main(["table", "--json", "rows.json"]) == 0
    assert "| tiny | empirical:2@multiplexed | vector | 1 |" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_refused_before_any_key(
    run: Run, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encrypted, "available_bytes", lambda: 10**8)
    assert run(*PINNED, program="tiny.olac") == 1
    assert steps == ["prepare"]
    assert "0.10 GB are available" in capsys.readouterr().err
    assert Path("tiny.olac").exists()  # it can be used again
    assert not list(Path().glob("olac-encrypted-*"))
    assert not json.loads(Path("rows.json").read_text())["rows"] if Path("rows.json").exists() else True


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"strategy": "relu"}, (), "--strategy takes one way"),
        ({"strategy": "uniform:3,uniform:7"}, (), "--strategy takes one way"),
        ({"strategy": "bogus"}, (), "'bogus' is unknown"),
        ({"strategy": "uniform:3@fastest"}, (), "'fastest' is no lowering"),
        ({"images": 9}, (), "has 8 images"),
        ({"calibration": 41}, (), "--calibration asks for 41"),
        ({"weights": "absent.pt"}, (), "no file absent.pt"),
        ({"json": "absent/rows.json"}, (), "the folder of absent"),
        ({"program": "absent/x.olac"}, (), "does not exist"),
        ({}, ("--digits", "3"), "give --rest, too"),
        ({}, ("--engine", "seal"), "there is no engine 'seal'"),
        ({}, ("--rest", "3", "--digits", "40"), "can't be pinned"),
    ],
)
def test_wrong_usage(
    run: Run,
    steps: list[str],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    more: tuple[str, ...],
    message: str,
) -> None:
    assert run(*more, **changes) == 2
    assert message in capsys.readouterr().err
    assert not steps


def test_a_step_that_dies(tmp_path: Path) -> None:
    with pytest.raises(encrypted.RunError, match="ArtifactError"):
        encrypted.run_step("serve", {"threads": 1, "force": False, "program": str(tmp_path / "x")}, lambda event: None)
    request = {"threads": 1, "program": str(tmp_path / "x.olac"), "recipe": {}, "engine": None}
    (tmp_path / "x.olac").touch()
    (tmp_path / "x.olac.json").write_text("[]")
    with pytest.raises(encrypted.RunError, match="ArtifactError"):
        encrypted.run_step("prepare", request, lambda event: None)
    request["recipe"] = {"model": "tiny"}
    with pytest.raises(DataError, match=r"does not say how x\.olac was compiled"):
        encrypted.run_step("prepare", request, lambda event: None)
    with pytest.raises(encrypted.RunError, match="exit status 1"):
        encrypted.run_step("bogus", {"threads": 1}, lambda event: None)


@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_compare(
    run: Run, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = encrypted_steps.prepare

    def refusing(request: dict[str, Any], tell: encrypted.Tell) -> dict[str, Any]:
        if request["recipe"]["strategy"] == "empirical:7":
            raise encrypted.RunError("InfeasibleError: too deep")
        return prepare(request, tell)

    monkeypatch.setattr(encrypted_steps, "prepare", refusing)
    assert run("--compare", "empirical:2,empirical:7", "--minutes", "0", *PINNED, strategy=None) == 0
    assert steps == ["prepare", "prepare"]
    first, second = json.loads(Path("rows.json").read_text())["rows"]
    assert (first["kind"], first["strategy"], first["infeasible"]) == ("predicted", "empirical:2", None)
    assert first["predicted_seconds"] >= 0
    assert second["infeasible"] == "InfeasibleError: too deep"
    assert "empirical:7: InfeasibleError: too deep" in capsys.readouterr().out
    assert main(["table", "--json", "rows.json"]) == 0
    out = capsys.readouterr().out
    assert "| tiny | empirical:2 | vector | 1 | " in out
    assert "* tiny, empirical:7: InfeasibleError: too deep." in out
    assert "Not run: predicted only, as --minutes 0 asks for." in out
    assert run("--compare", "relu") == 2


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_what_there_is_time_for_is_run(
    run: Run, steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The faster of two is run; the slower one, which would take longer than the time left, stays a prediction."""
    prepare = encrypted_steps.prepare

    def slow(request: dict[str, Any], tell: encrypted.Tell) -> dict[str, Any]:
        found = prepare(request, tell)
        if request["recipe"]["strategy"] == "empirical:3":
            found["predicted_seconds"] = 600.0
        return found

    monkeypatch.setattr(encrypted_steps, "prepare", slow)
    assert run("--compare", "empirical:3,empirical:2", "--minutes", "1", *PINNED, strategy=None) == 0
    assert steps == ["prepare", "prepare", *STEPS]
    slower, faster = json.loads(Path("rows.json").read_text())["rows"]
    assert (slower["kind"], slower["strategy"]) == ("predicted", "empirical:3")
    assert re.search(r"would take 60\d s, \d+ s are left", slower["not_run"])
    assert (faster["kind"], faster["strategy"], faster["same_class"]) == ("encrypted", "empirical:2", 1)
    assert faster["compile_seconds"] > 0
    out = capsys.readouterr().out
    assert "empirical:3: not run: keys, set-up and run would take" in out
    assert out.count("empirical:2") >= 2
    assert not list(Path().glob("olac-encrypted-*"))
