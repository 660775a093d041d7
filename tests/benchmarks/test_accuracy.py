"""`python -m benchmarks`, on a small random network and random images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import olac
from benchmarks import accuracy
from benchmarks.__main__ import main
from benchmarks.data import ENVIRONMENT, ImageSet
from benchmarks.models import MODELS, Benchmark
from olac.approximation import tensors
from olac.errors import InfeasibleError

COMMON = {"model", "images", "calibration_images", "plaintext_top1", "fit_seconds", "simulate_seconds", "wrecked"}
SIZE = 8


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


Run = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and weights; the tests run in it."""
    random = np.random.default_rng(0)
    for name, count in (("test", 100), ("train_first10k", 48), ("train", 64)):
        images = random.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
        np.savez(tmp_path / f"cifar10_{name}.npz", images=images, labels=random.integers(0, 5, count, dtype=np.uint8))
    torch.manual_seed(0)
    torch.save(tiny().state_dict(), tmp_path / "weights.pt")
    monkeypatch.setitem(MODELS, "tiny", Benchmark(tiny))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Runs `accuracy` on the tiny model; keywords replace options, None leaves one out."""

    def call(*more: str, **changes: object) -> int:
        options: dict[str, object] = {
            "model": "tiny",
            "weights": "weights.pt",
            "data": ".",
            "strategies": "empirical:3",
            "images": 100,
            "calibration": 40,
            "json": "rows.json",
        }
        given = [str(part) for k, v in {**options, **changes}.items() if v is not None for part in (f"--{k}", v)]
        return main(["accuracy", *given, *more])

    return call


def rows(path: str = "rows.json") -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(Path(path).read_text())["rows"]
    return loaded


def test_effort_and_time_reach_the_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[olac.CompileOptions] = []

    def spy(model: nn.Module, batches: object, options: olac.CompileOptions, **others: Any) -> object:
        taken.append(options)
        return approximate(model, batches, options, **others)

    approximate: Callable[..., object] = olac.approximate
    monkeypatch.setattr(olac, "approximate", spy)
    assert run("--effort", "fast", "--fit-seconds", "7") == 0
    (row,) = rows()
    assert (row["effort"], row["fit_limit"]) == ("fast", 7)
    assert run("--json", "other.json", json=None) == 0
    assert [(one.fit.effort, one.fit.fit_seconds) for one in taken] == [("fast", 7), ("standard", None)]
    assert rows("other.json")[0]["fit_limit"] is None


def test_rows(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(strategies="relu,uniform:1 uniform:3") == 0
    data = json.loads(Path("rows.json").read_text())
    relu, line, cubic = data["rows"]
    assert set(line) >= COMMON
    assert [row["strategy"] for row in data["rows"]] == ["relu", "uniform:1", "uniform:3"]
    assert relu["agreement"] == 1
    assert relu["top1"] == relu["plaintext_top1"] == cubic["plaintext_top1"]
    assert relu["total_depth"] is None
    assert (cubic["degrees"], cubic["depths"], cubic["total_depth"]) == ([3, 3], [2, 2], 4)
    assert line["degrees"] == [1, 1]
    assert 0.5 < cubic["agreement"] <= 1
    assert (cubic["images"], cubic["calibration_images"], cubic["wrecked"]) == (100, 40, 0)
    assert cubic["fit_seconds"] > 0
    assert data["command"].startswith("python -m benchmarks accuracy --model tiny")
    assert {"python", "torch", "numpy", "olac"} <= set(data["versions"])
    assert data["machine"]
    assert not list(Path().glob("*.part"))
    out = capsys.readouterr().out
    assert "uniform:3: depth 4, top-1" in out
    assert "degrees" in out
    assert "warning" not in out


def test_numbers_are_those_of_simulate(run: Run, folder: Path) -> None:
    assert run() == 0
    benchmark = MODELS["tiny"]
    model = benchmark.load(folder / "weights.pt")
    with np.load("cifar10_test.npz") as test, np.load("cifar10_train.npz") as train:
        images, labels = benchmark.images(test["images"]), test["labels"]
        first = "cifar10_train_first10k.npz"
        assert not np.array_equal(train["images"][:40], np.load(first)["images"][:40])
        calibration = benchmark.images(np.load(first)["images"][:40])  # the smaller file has enough
    options = olac.CompileOptions(fit=olac.FitOptions(method="empirical", degree=3))
    classes = olac.approximate(model, [calibration], options).simulate(images.numpy()).argmax(1)
    with torch.no_grad():
        expected = model(images).argmax(1).numpy()
    (row,) = rows()
    assert row["top1"] == pytest.approx(np.mean(classes == labels))
    assert row["agreement"] == pytest.approx(np.mean(classes == expected))
    assert row["plaintext_top1"] == pytest.approx(np.mean(expected == labels))


def test_test_images_are_read_after_the_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    read, approximate = ImageSet.images, olac.approximate

    def reading(self: ImageSet, first: int) -> npt.NDArray[np.uint8]:
        events.append(self.path.stem)
        return read(self, first)

    def approximating(model: nn.Module, loader: Iterable[torch.Tensor], *rest: Any, **options: Any) -> Any:
        events.append("approximate")
        batches = list(loader)
        assert sum(len(batch) for batch in batches) == 60
        with np.load("cifar10_train.npz") as train:
            assert torch.equal(torch.cat(batches), MODELS["tiny"].images(train["images"][:60]))
        result = approximate(model, batches, *rest, **options)
        events.append("frozen")
        return result

    monkeypatch.setattr(ImageSet, "images", reading)
    monkeypatch.setattr(olac, "approximate", approximating)
    assert run(calibration=60, images=10) == 0
    assert events == ["cifar10_train", "approximate", "frozen", "cifar10_test"]


def test_falls_back_on_double_precision(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    monkeypatch.setattr(tensors, "run", lambda graph, *_: {graph.outputs[0]: torch.full((64, 5), torch.nan)})
    assert run(json="other.json") == 0
    assert "empirical:3: warning: single precision is off by" in capsys.readouterr().out
    assert [rows(path)[0]["precision"] for path in ("rows.json", "other.json")] == ["single", "double"]
    assert rows("other.json")[0]["agreement"] == rows()[0]["agreement"]


def test_wrecked_images_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "WRECKED", 1e-6)
    assert run(images=30) == 0
    assert rows()[0]["wrecked"] == 30


def test_outputs_that_are_not_finite_are_wrong(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> tuple[npt.NDArray[np.float64], str]:
        outputs = np.zeros((30, 5))
        outputs[:10] = np.nan
        outputs[10:20, 0] = np.inf
        return outputs, "single"

    monkeypatch.setattr(accuracy, "evaluate", broken)
    assert run(images=30) == 0
    assert rows()[0]["wrecked"] == 20
    assert max(rows()[0]["top1"], rows()[0]["agreement"]) <= 10 / 30


def test_the_file_is_whole_after_every_row(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    approximate, calls = olac.approximate, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return approximate(*arguments, **options)

    monkeypatch.setattr(olac, "approximate", stopped)
    assert run(strategies="empirical:1,empirical:3") == 130
    assert [row["strategy"] for row in rows()] == ["empirical:1"]


def test_a_strategy_that_fails_stops_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    approximate = olac.approximate

    def refusing(model: Any, loader: Any, options: olac.CompileOptions, **more: Any) -> Any:
        if options.fit.degree == 5:
            raise InfeasibleError("too deep")
        return approximate(model, loader, options, **more)

    monkeypatch.setattr(olac, "approximate", refusing)
    assert run(strategies="empirical:1,uniform:5,empirical:3") == 1
    assert [row["strategy"] for row in rows()] == ["empirical:1", "empirical:3"]
    assert "uniform:5: failed: InfeasibleError: too deep" in capsys.readouterr().out


def test_append(run: Run) -> None:
    assert run() == 0
    first = rows()
    assert run("--append", strategies="relu") == 0
    assert rows()[:1] == first
    assert run("--append") == 0  # measured again
    assert [row["strategy"] for row in rows()] == ["relu", "empirical:3"]
    assert run("--append", images=50) == 0
    assert [(row["strategy"], row["images"]) for row in rows()] == [
        ("relu", 100),
        ("empirical:3", 100),
        ("empirical:3", 50),
    ]
    assert len(json.loads(Path("rows.json").read_text())["command"].splitlines()) == 4
    assert run(strategies="relu") == 0
    assert [row["strategy"] for row in rows()] == ["relu"]


def test_data_from_the_environment(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(folder))
    assert run(data=None, images=10, strategies="relu") == 0


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"data": None}, ["--data", ENVIRONMENT, "docs/benchmarks.md"]),
        ({"data": "absent"}, ["absent is not a folder"]),
        ({"images": 101}, ["cifar10_test.npz has 100 images, --images asks for 101"]),
        ({"calibration": 65}, ["cifar10_train.npz has 64 images, --calibration asks for 65"]),
        ({"model": "resnet21"}, ["'resnet21' is unknown", "resnet20", "convnext"]),
        ({"weights": None}, ["no weights for tiny", "--weights"]),
        ({"weights": "absent.pt"}, ["no file absent.pt", "docs/benchmarks.md"]),
        ({"weights": "cifar10_test.npz"}, ["no weights for tiny"]),
        ({"weights": "broken.safetensors"}, ["no weights for tiny"]),
        ({"model": "resnet20"}, ["no weights for resnet20"]),
        ({"strategies": "relu,uniform:x"}, ["'uniform:x'", "allowed are uniform:DEGREE"]),
        ({"plot": "plot.pdf"}, [".svg or .png"]),
        ({"json": "absent/rows.json"}, ["the folder of absent"]),
    ],
)
def test_wrong_usage(
    run: Run, capsys: pytest.CaptureFixture[str], changes: dict[str, object], messages: list[str]
) -> None:
    Path("broken.safetensors").write_bytes(b"nothing")
    assert run(**changes) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert all(message in captured.err for message in messages), captured.err
    assert captured.out == ""
    assert not Path("rows.json").exists()


@pytest.mark.parametrize("name", ["cifar10_test.npz", "cifar10_train"])
def test_missing_files(run: Run, folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    for path in folder.glob(f"{name}*"):
        path.unlink()
    assert run() == 2
    err = capsys.readouterr().err
    assert name in err
    assert "docs/benchmarks.md says how to get the data" in err


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((4, 8, 8, 3), np.uint8)},
        {"images": np.zeros((4, 8, 8, 3)), "labels": np.zeros(4)},
        {"images": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.zeros(4)},
        {"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.zeros(5)},
    ],
)
def test_other_files(run: Run, capsys: pytest.CaptureFixture[str], arrays: dict[str, Any]) -> None:
    np.savez("cifar10_test.npz", **arrays)
    assert run(images=4) == 2
    assert "cifar10_test.npz" in capsys.readouterr().err
    Path("cifar10_test.npz").write_bytes(b"nothing")
    assert run(images=4) == 2
    assert "is not an .npz file" in capsys.readouterr().err


def test_bugs_are_not_wrong_usage(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(olac, "approximate", broken)
    with pytest.raises(ValueError, match="a bug"):
        run()


def test_append_to_what_is_no_results(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.json").write_text('{"rows": [{}]}')
    assert run("--append") == 2
    assert "rows.json has rows without" in capsys.readouterr().err
    assert Path("rows.json").read_text() == '{"rows": [{}]}'


@pytest.mark.parametrize("option", ["--images", "--calibration", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_numbers_that_are_none(run: Run, option: str, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        run(option, value)
    assert caught.value.code == 2


def test_plot_of_a_run(run: Run) -> None:
    pytest.importorskip("matplotlib")
    assert run(strategies="relu,empirical:1", images=20, plot="plot.png") == 0
    assert Path("plot.png").read_bytes().startswith(b"\x89PNG")
