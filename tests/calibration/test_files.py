"""Calibrations that are saved, loaded, merged, and given instead of a loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import olac
from olac.calibration import files
from olac.calibration.statistics import Calibration
from olac.errors import ArtifactError, CalibrationError
from olac.system.formats import CALIBRATIONS


def net(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4), nn.Tanh()
    ).eval()


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def assert_same(a: Calibration, b: Calibration) -> None:
    """Equal bit for bit."""
    assert a.images == b.images and a.sample_every == b.sample_every and a.fingerprint == b.fingerprint
    assert a.ranges == b.ranges and list(a.histograms) == list(b.histograms)
    for name in ("held_out", "held_out_outputs", "sample"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and np.array_equal(x, y)
    assert list(a.channels) == list(b.channels)
    assert all(np.array_equal(seen, b.channels[name]) for name, seen in a.channels.items())
    for name, histogram in a.histograms.items():
        other = b.histograms[name]
        for part in ("counts", "exponents", "low", "high", "sums", "squares"):
            assert np.array_equal(getattr(histogram, part), getattr(other, part)), part


@pytest.mark.parametrize("count", [1, 2, 10, 200])
def test_it_comes_back_as_it_is(count: int, tmp_path: Path) -> None:
    calibration = olac.calibrate(net(), images(count).split(7))
    calibration.save(tmp_path / "a.calibration")
    again = olac.Calibration.load(tmp_path / "a.calibration")
    assert_same(again, calibration)
    again.save(tmp_path / "b.calibration")
    assert (tmp_path / "a.calibration").read_bytes() == (tmp_path / "b.calibration").read_bytes()


def test_a_model_without_activations(tmp_path: Path) -> None:
    calibration = olac.calibrate(nn.Linear(3, 2), torch.rand(20, 3))
    calibration.save(tmp_path / "c")
    assert_same(olac.Calibration.load(tmp_path / "c"), calibration)


def test_batches_do_not_matter() -> None:
    x = images(300)
    whole = olac.calibrate(net(), x)
    for size in (1, 7, 64, 100):
        assert_same(olac.calibrate(net(), x.split(size)), whole)


def test_in_the_place_of_a_loader(tmp_path: Path) -> None:
    model, x = net(), images(100)
    lines: list[str] = []
    olac.calibrate(model, x.split(30), progress=lines.append).save(tmp_path / "c")
    assert lines[0] == "tracing the model" and lines[-2] == "calibrating: 100 images"
    assert lines[-1].startswith("calibrated in ") and lines[-1].endswith(": 100 images")
    calibration = olac.Calibration.load(tmp_path / "c")
    given, direct = olac.approximate(model, calibration), olac.approximate(model, x.split(30))
    assert given.graph == direct.graph and given.report.check == direct.report.check
    program = olac.compile(model, calibration, degree=3, log_ring=12, insecure=True)
    assert program.fingerprint == olac.compile(model, [x], degree=3, log_ring=12, insecure=True).fingerprint


def test_another_models_is_refused() -> None:
    calibration = olac.calibrate(net(), images(20))
    assert olac.calibrate(net(), images(30, seed=4)).fingerprint == calibration.fingerprint
    for other in (net(seed=1), net(width=4), nn.Sequential(nn.Flatten(), nn.Linear(36, 2), nn.ReLU())):
        with pytest.raises(CalibrationError, match="another model"):
            olac.approximate(other, calibration)
        with pytest.raises(CalibrationError, match="different models"):
            calibration.merge(olac.calibrate(other, images(20)))
    anonymous = Calibration(**{**vars(calibration), "fingerprint": ""})
    olac.approximate(net(), anonymous)
    with pytest.raises(CalibrationError, match="another model"):
        olac.approximate(net(seed=1), anonymous)
    with pytest.raises(CalibrationError, match="never saw"):
        olac.approximate(nn.Sequential(nn.Flatten(), nn.Linear(36, 2), nn.ReLU()), anonymous)
    for part in ("histograms", "sample"):
        changed = Calibration(**{**vars(anonymous), part: {} if part == "histograms" else np.zeros((1, 2), np.float32)})
        with pytest.raises(CalibrationError):
            olac.approximate(net(), changed)


def test_merging() -> None:
    model, x = net(), images(160)
    first, second = olac.calibrate(model, x[:80]), olac.calibrate(model, x[80:])
    before = first.histograms["m1"].counts.copy()
    merged, whole = first.merge(second), olac.calibrate(model, x)
    # 80 is a multiple of 8, so that the same images are held out.
    assert merged.images == whole.images
    for name, histogram in whole.histograms.items():
        assert merged.histograms[name].count == histogram.count
        assert np.abs(merged.histograms[name].counts - histogram.counts).sum() <= 4  # of values at the bins' edges
        assert merged.ranges[name].magnitude == pytest.approx(whole.ranges[name].magnitude, rel=1e-5)
        assert merged.channels[name] == pytest.approx(whole.channels[name], rel=1e-5, abs=1e-5)
    assert np.array_equal(merged.held_out, whole.held_out) and np.array_equal(merged.sample, whole.sample)
    assert np.array_equal(first.histograms["m1"].counts, before)
    olac.approximate(model, merged)


def test_merging_keeps_the_bounds() -> None:
    model = net()
    first = olac.calibrate(model, images(1500), sample_images=64)
    second = olac.calibrate(model, images(1000, seed=1), sample_images=512)
    assert (first.sample_every, second.sample_every) == (32, 2)
    merged = first.merge(second, sample_images=64)
    together = np.concatenate([first.sample, second.sample[::16]])
    assert len(together) > 64
    assert merged.sample_every == 64 and np.array_equal(merged.sample, together[::2])
    assert len(merged.held_out) == len(merged.held_out_outputs) == 188 + 125
    assert len(first.merge(second, sample_images=20).sample) <= 20


@pytest.mark.parametrize(("count", "most"), [(1, 4), (5, 8), (100, 8), (100, 64), (1000, 7)])
def test_the_sample_is_spread_evenly(count: int, most: int) -> None:
    x = images(count)
    calibration = olac.calibrate(net(), x.split(9), sample_images=most)
    fitted = x[torch.arange(count) % 8 != 0] if count > 1 else x
    every = calibration.sample_every
    assert np.array_equal(calibration.sample, fitted[::every].numpy())
    assert calibration.sample.dtype == np.float32
    assert len(calibration.sample) <= most and (every == 1 or len(calibration.sample) > most // 2 - 1)


def test_the_sample_is_bounded_in_bytes() -> None:
    calibration = olac.calibrate(net(), images(100), sample_bytes=10 * 4 * 36)
    assert 5 <= len(calibration.sample) <= 10


# Files that arrive ---------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    olac.calibrate(net(), images(20)).save(tmp_path / "c")
    return tmp_path / "c"


def rewrite(path: Path, change: Any) -> None:
    """Change the manifest or arrays of a file, and correct its hash."""
    arrays = load_file(path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    manifest = json.loads(json.loads(header["__metadata__"][files.FILES.entry])["manifest"])
    change(manifest, arrays)
    text = json.dumps(manifest)
    entry = {"version": CALIBRATIONS.current, "sha256": files.FILES.digest(text, arrays), "manifest": text}
    save_file(arrays, path, metadata={files.FILES.entry: json.dumps(entry)})


def put(name: str, value: Any, at: Any = ...) -> Any:
    def change(manifest: dict[str, Any], arrays: dict[str, Any]) -> None:
        if name in manifest:
            manifest[name] = value
        else:
            arrays[name] = arrays[name].copy()
            arrays[name][at] = value

    return change


def shape(name: str, *sizes: int) -> Any:
    def change(manifest: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays[name] = np.zeros(sizes, arrays[name].dtype)

    return change


def test_rewriting_alone_changes_nothing(path: Path) -> None:
    before = olac.Calibration.load(path)
    rewrite(path, lambda manifest, arrays: None)
    assert_same(olac.Calibration.load(path), before)


@pytest.mark.parametrize(
    "change",
    [
        put("images", 0),
        put("images", True),
        put("images", 1.5),
        put("sample_every", 3),
        put("sample_every", -2),
        put("fingerprint", "x" * 64),
        put("fingerprint", 5),
        put("nodes", ["x"]),
        put("nodes", "x"),
        put("nodes", {"x": 1}),
        put("activations", {"m1": 3}),
        put("activations", {"m1": 1 << 40, "m5": 4}),
        put("activations", {"m1": -1, "m5": 8}),
        put("activations", {"nothing": 3, "m5": 4}),
        put("activations", [3, 4]),
        put("channels", {"x": 2}),
        put("channels", {"nothing": 1}),
        put("channels", [1]),
        put("channel_ranges", np.nan, (0, 0)),
        put("channel_ranges", 1e9, (0, 0)),
        shape("channel_ranges", 3, 2),
        lambda manifest, arrays: manifest.pop("channels"),
        lambda manifest, arrays: arrays.pop("channel_ranges"),
        put("ranges", np.nan, (0, 0)),
        put("ranges", 1e9, (0, 0)),
        put("held_out", np.inf, 0),
        put("held_out_outputs", np.nan, 0),
        put("sample", np.nan, 0),
        put("counts", -1, (0, 5)),
        put("counts", 0),
        put("counts", 1 << 60, (0, 1000)),
        put("counts", 3, (0, 0)),
        put("exponents", -1000, 0),
        put("exponents", 2000, 0),
        put("exponents", 60, 0),
        put("low", 1e9, 0),
        put("high", np.nan, 0),
        put("sums", 1e30, 0),
        put("squares", -1.0, 0),
        shape("counts", 7, 5),
        shape("counts", 7),
        shape("low", 6),
        shape("ranges", 7, 3),
        shape("held_out", 0, 1, 6, 6),
        shape("held_out", 3),
        shape("held_out", 2, 1, 6, 6),
        shape("held_out_outputs", 3, 0),
        shape("sample", 5, 1, 6, 7),
        shape("sample"),
        lambda manifest, arrays: arrays.pop("low"),
        lambda manifest, arrays: arrays.update(more=arrays["low"]),
        lambda manifest, arrays: arrays.update(low=arrays["low"].astype(np.float32)),
        lambda manifest, arrays: manifest.update(more=1),
        lambda manifest, arrays: manifest.pop("nodes"),
    ],
)
def test_what_does_not_fit_together_is_refused(path: Path, change: Any) -> None:
    rewrite(path, change)
    with pytest.raises(ArtifactError):
        olac.Calibration.load(path)


def test_ranges_of_channels_may_be_unknown(path: Path) -> None:
    """As in files of version 1."""

    def without(manifest: Any, arrays: Any) -> None:
        manifest.pop("channels")
        arrays.pop("channel_ranges")

    known = olac.Calibration.load(path)
    assert known.channels["x"].shape == (1, 2) and known.channels.keys() == known.ranges.keys()
    rewrite(path, without)
    older = olac.Calibration.load(path)
    assert older.channels == {} and older.ranges == known.ranges
    assert older.merge(known).channels == known.merge(older).channels == {}
    program = olac.compile(net(), older, degree=3, log_ring=12, insecure=True)
    assert program.input.type.channels == program.output.type.channels == ()


@pytest.mark.parametrize("position", [0, 3, 9, 200, 1500, 20_000, -1])
def test_damage_is_found(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError):
        olac.Calibration.load(path)


def test_other_files(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    for part in (b"", b"OLAC" * 9, data[:5], data[:1000], data[:-1], data + b"x"):
        (tmp_path / "part").write_bytes(part)
        with pytest.raises(ArtifactError):
            olac.Calibration.load(tmp_path / "part")
    save_file({"x": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(ArtifactError, match="not a calibration"):
        olac.Calibration.load(tmp_path / "other")
    for version in (0, CALIBRATIONS.current + 1, "1"):
        entry = json.dumps({"version": version, "sha256": "", "manifest": ""})
        save_file(load_file(path), tmp_path / "newer", metadata={files.FILES.entry: entry})
        with pytest.raises(ArtifactError, match="version"):
            olac.Calibration.load(tmp_path / "newer")
    save_file(load_file(path), tmp_path / "list", metadata={files.FILES.entry: "[1]"})
    with pytest.raises(ArtifactError):
        olac.Calibration.load(tmp_path / "list")
    with pytest.raises(ArtifactError, match="does not exist"):
        olac.Calibration.load(tmp_path / "missing")
    with pytest.raises(ArtifactError):
        olac.Calibration.load(path).save(tmp_path / "no" / "folder")
    program = olac.compile(net(), [images(20)], degree=3, log_ring=12, insecure=True)
    program.save(tmp_path / "program")
    with pytest.raises(ArtifactError, match="not a calibration"):
        olac.Calibration.load(tmp_path / "program")
