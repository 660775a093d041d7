"""`python -m benchmarks engines`: primitives at a small ring, and one small program on both engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import encrypted, encrypted_steps
from benchmarks.__main__ import main
from benchmarks.data import ENVIRONMENT
from benchmarks.models import MODELS, Benchmark
from benchmarks.primitives import BOTH, HOIST, HOISTED
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.vector.session import Vector
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE

SMALL = ["--ring", "10", "--insecure", "--rounds", "1", "--threads", "1"]
NEED_A_LEVEL = {
    "rescale",
    "plaintext product, rescale",
    "product",
    "product, rescale",
    "sum of 3 rotations",
    "sum of 3 rotations, rescale",
}


@pytest.mark.encrypted
def test_primitives_of_both_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert main(["engines", *SMALL, "--depth", "3", "--limbs", "1", "4", "--json", str(file)]) == 0
    assert "product, rescale" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["engine"], row["limbs"]) for row in rows] == [
        ("openfhe", 4),
        ("vector", 4),
        ("openfhe", 1),
        ("vector", 1),
    ]
    for row in rows:
        assert (row["kind"], row["threads"], row["log_ring"], row["levels"]) == ("primitives", 1, 10, 3)
        assert set(row["cpu_seconds"]) == set(row["wall_seconds"])
        assert (set(row["cpu_seconds"]) >= NEED_A_LEVEL) == (row["limbs"] > 1)
        assert set(row["errors"]) >= {"rotation", HOISTED} and max(row["errors"].values()) < 1e-5
        assert row["ntt_cpu_seconds"] > 0 and row["held_rotation_key_bytes"] > 0
        for clock in ("cpu_seconds", "wall_seconds"):
            spent = dict(row[clock])
            assert spent.pop(HOIST) == pytest.approx(max(0.0, spent[BOTH] - spent[HOISTED]), abs=2e-7)
            assert min(spent.values()) > 0
    # OpenFHE's keys are all for the whole chain, the other engine's are for the level that they are used at.
    assert rows[2]["rotation_key_bytes"] == rows[0]["rotation_key_bytes"] > rows[1]["rotation_key_bytes"]
    assert rows[3]["rotation_key_bytes"] < rows[1]["rotation_key_bytes"]

    assert main(["table", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "ring 2^10, 3 levels of 37 bits" in out and "; 1 threads:" in out
    cpu, wall = ([row[clock]["encode"] for row in rows[:2]] for clock in ("cpu_seconds", "wall_seconds"))
    (line,) = [line for line in out.splitlines() if line.startswith("| encode | 4 |")]
    assert line.split(" | ")[4::3] == [f"{cpu[1] / cpu[0]:.3f}", f"{wall[1] / wall[0]:.3f} |"]

    # The same measurement again takes the place of the first, and other numbers of limbs stand beside it.
    more = ["--depth", "3", "--limbs", "2", "4", "--engines", "vector", "--append"]
    assert main(["engines", *SMALL, *more, "--json", str(file)]) == 0
    again = json.loads(file.read_text())["rows"]
    assert sorted((row["engine"], row["limbs"]) for row in again) == [
        ("openfhe", 1),
        ("openfhe", 4),
        ("vector", 1),
        ("vector", 2),
        ("vector", 4),
    ]
    capsys.readouterr()
    assert main(["table", "--json", str(file)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| encode | 2 |")]
    assert line.startswith("| encode | 2 |  | ") and line.count("|  |") == 3


def test_bootstrapping_does_not_change_the_chain_that_is_measured() -> None:
    setup = Bootstrapping(9, (4, 3), 4)
    own = Parameters(12, setup.depth, 37, 41, 2, FLEXIBLE, 0, setup)
    bare = Parameters(12, setup.depth, 37, 41, 2, FLEXIBLE, 0)
    assert own.primes == bare.primes and own.special_primes == bare.special_primes


@pytest.mark.encrypted
def test_a_wrong_result_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = OpenFHEEvaluator._rotate
    monkeypatch.setattr(OpenFHEEvaluator, "_rotate", lambda self, a, step, state: right(self, a, step + 1, state))
    file = tmp_path / "rows.json"
    arguments = [*SMALL, "--depth", "1", "--limbs", "1", "--engines", "openfhe", "--json", str(file)]
    assert main(["engines", *arguments]) == 1
    assert "failed: OpenFHE: rotation gave a result that is off by" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--engines", "seal"], "there is no engine 'seal'"),
        (["--engines", "openfhe", "vector"], "the vector engine can't be used here: it is ill"),
        (["--engines", "vector", "--scale", "50", "--first", "58"], "does not take ring 2^10, 3 levels of 50 bits"),
        (["--engines", "openfhe", "--limbs", "5"], "--limbs 5: the chain has 4"),
        (["--engines", "openfhe", "--depth", "200"], "depth 200 is outside"),
        (["--engines", "openfhe", "--program", "absent.olac"], "absent.olac"),
    ],
)
def test_wrong_usage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(Vector, "unavailable", lambda *_: "it is ill")
    assert main(["engines", *SMALL, "--depth", "3", "--json", str(tmp_path / "rows.json"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "rows.json").exists()


def shallow() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program with the file that says what it was compiled from, in a folder with images, where the test runs."""
    random = np.random.default_rng(0)
    for name, count in (("test", 2), ("train", 40)):
        images = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        np.savez(tmp_path / f"cifar10_{name}.npz", images=images, labels=random.integers(0, 3, count, dtype=np.uint8))
    torch.manual_seed(0)
    torch.save(shallow().state_dict(), tmp_path / "weights.pt")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setitem(MODELS, "shallow", Benchmark(shallow))
    monkeypatch.chdir(tmp_path)
    pinned = {"insecure": True, "log_ring": 10, "rest": None, "digits": None, "max_memory": None}
    request = {
        "program": "shallow.olac",
        "recipe": encrypted_steps.recipe("shallow", Path("weights.pt"), "empirical:3", 40, "standard", pinned),
        "weights": "weights.pt",
        "data": ".",
        "images": 0,
        "simulate": None,
        "threads": 1,
        "engine": "openfhe",
    }
    encrypted_steps.prepare(request, lambda event: None)
    return Path("shallow.olac")


@pytest.mark.encrypted
@pytest.mark.filterwarnings("ignore:.*compiled without security")
def test_one_program_on_both_engines(
    program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # This process alone knows the network.
    real, done = encrypted.run_step, []

    def run_step(name: str, request: dict[str, Any], tell: encrypted.Tell) -> dict[str, Any]:
        done.append((request["engine"], name))
        return encrypted_steps.prepare(request, tell) if name == "prepare" else real(name, request, tell)

    monkeypatch.setattr(encrypted, "run_step", run_step)
    given = ["--program", str(program), "--no-primitives", "--data", ".", "--threads", "1", "--json", "rows.json"]
    assert main(["engines", *given]) == 0
    steps = ["prepare", "keygen", "encrypt", "serve", "decrypt"]
    assert done == [(engine, step) for engine in ("openfhe", "vector") for step in steps]
    ours, theirs = json.loads(Path("rows.json").read_text())["rows"]
    assert (ours["engine"], theirs["engine"]) == ("openfhe", "vector")
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert ours["planned_for"] == theirs["planned_for"] == "openfhe"
    for row in (ours, theirs):
        assert row["max_logit_error"] < 0.02 * row["max_logit"] and row["same_class"] == 1
        assert 0 < row["cpu_seconds"] < row["wall_seconds"] + 0.5
        assert row["ntt_cpu_seconds"] > 0 and row["key_bytes"] > 0 and row["peak_rss_gb"] > 0.05
    assert theirs["key_bytes"] < ours["key_bytes"]
    assert not list(Path().glob("olac-encrypted-*"))
    out = capsys.readouterr().out
    mark = ours["fingerprint"]
    assert f"engine vector, program {mark[:16]} planned for openfhe" in out
    ratio = f"{theirs['cpu_seconds'] / ours['cpu_seconds']:.3f}"
    (line,) = [line for line in out.splitlines() if mark[:8] in line.split() and "vector" in line.split()]
    assert line.split()[:6] == ["shallow", "empirical:3", "vector", "openfhe", mark[:8], "1"]
    assert ratio in line.split()

    Path("shallow.olac.json").write_text("[]")
    assert main(["engines", *given]) == 2
    assert "shallow.olac.json does not say what images shallow.olac takes" in capsys.readouterr().err
