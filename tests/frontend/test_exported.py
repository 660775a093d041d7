"""Programs of torch.export: as exported and in core ATen, with batches of one size and of any, and from files."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram, export

import olac
from olac.errors import ArtifactError, UnsupportedModelError
from olac.frontend import check, lift, trace
from olac.frontend.exported import Exported

Function = Callable[[Any, Any], Any]


class Body(nn.Module):
    """A function of the input and of some layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.conv, self.norm, self.prelu = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4), nn.PReLU(4)
        self.linear = nn.Linear(64, 5)
        self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)
        self.norm.running_mean = torch.full((4,), 0.3)
        self.norm.running_var = torch.full((4,), 2.0)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def agrees(given: Any, model: nn.Module) -> Any:
    """Lift what was exported and compare it with the model on batches of other sizes; returns the lifted graph."""
    graph = lift(trace(given, images(5)))
    for count in (1, 2, 7):
        x = images(count)
        with torch.no_grad():
            expected = model(x).double().numpy()
        assert np.abs(graph.evaluate(x.double().numpy()) - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
    return graph


OPS: dict[str, Function] = {
    "conv, norm, relu": lambda m, x: F.relu(m.norm(m.conv(x)), inplace=True),
    "strides and dilation": lambda m, x: F.conv2d(x, m.conv.weight, None, (2, 1), (1, 2), (1, 2), 2),
    "linear": lambda m, x: m.linear(x.flatten(1)),
    "linear without bias": lambda m, x: F.linear(x.flatten(1), m.linear.weight),
    "max pooling": lambda m, x: F.max_pool2d(x, 2),
    "average pooling": lambda m, x: F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 2),
    "reshapes": lambda m, x: x.view(x.shape[0], 2, -1).unsqueeze(1).squeeze(1).reshape(-1, 64),
    "slices": lambda m, x: x[:, 1:3, ::2, -1] + x.select(1, 0)[:, :2, :2],
    "split": lambda m, x: x.chunk(2, 1)[0] * x.split([1, 3], 1)[1][:, 1:],
    "padding": lambda m, x: F.pad(x, (1, 0, 0, 2), value=0.5),
    "arithmetic": lambda m, x: (2 - x * m.scale) / 3.0 + torch.add(x, x, alpha=0.5) - (-x) ** 3,
    "in place": lambda m, x: x.mul(2).add_(1).mul_(m.scale),
    "means": lambda m, x: x.mean((2, 3)) + x.sum(dim=(2, 3)) / 7,
    "constants": lambda m, x: x + torch.arange(4.0, device=x.device) * torch.ones_like(x) + x.new_zeros(4),
    "types": lambda m, x: x.to(torch.float64).float().clone().contiguous().detach(),
    "dropout": lambda m, x: F.dropout(x, 0.5, training=False),
    "no gradients": lambda m, x: _without_gradients(m, x),
    "relu6, hardtanh, clamp": lambda m, x: F.relu6(x) + F.hardtanh(x, -0.5, 2.0) + x.clamp(-1, 0.3),
    "gelu": lambda m, x: F.gelu(x) + F.gelu(x, approximate="tanh"),
    "elu, selu": lambda m, x: F.elu(x, 0.7) + F.selu(x),
    "leaky relu": lambda m, x: F.leaky_relu(x, 0.2),
    "sigmoid, tanh, silu": lambda m, x: torch.sigmoid(x) * F.silu(x).tanh(),
    "hardswish, hardsigmoid": lambda m, x: F.hardswish(x) - F.hardsigmoid(x),
    "softmax at the end": lambda m, x: m.linear(x.flatten(1)).softmax(1),
}
AS_EXPORTED: dict[str, Function] = {
    "prelu": lambda m, x: m.prelu(x),
    "celu, mish, softplus": lambda m, x: F.celu(x, 0.6) + F.mish(x) + F.softplus(x),
}
"""Core ATen has these in parts, among them comparisons."""


def _without_gradients(m: Any, x: Any) -> Any:
    with torch.no_grad():
        y = m.conv(x)
    return y + x


def exported(function: Function, size: int | None) -> tuple[nn.Module, ExportedProgram]:
    model = Body(function).eval()
    free = None if size else ({0: Dim("batch", min=1, max=64)},)
    return model, export(model, (images(size or 2),), dynamic_shapes=free)


@pytest.mark.parametrize("name", [*OPS, *AS_EXPORTED])
def test_operations(name: str) -> None:
    model, program = exported({**OPS, **AS_EXPORTED}[name], None)
    agrees(program, model)
    if name in OPS:
        agrees(program.run_decompositions(), model)


def whole(m: Any, x: Any) -> Any:
    y = F.max_pool2d(F.silu(m.norm(m.conv(x))) + x, 2)
    return m.linear(F.pad(y, (1, 1, 1, 1)).reshape(x.shape[0], -1))


@pytest.mark.parametrize("size", [None, 1, 2, 4])
def test_sizes_of_batches(size: int | None) -> None:
    model, program = exported(whole, size)
    for given in (program, program.module(), nn.Sequential(program.module(), nn.Identity())):
        agrees(given, model)
    decomposed = program.run_decompositions()
    for given in (decomposed, decomposed.module()):
        agrees(given, model)


def test_compiled_and_the_same_as_the_model() -> None:
    model, program = exported(whole, 1)
    keywords: dict[str, Any] = {"degree": 3, "insecure": True, "log_ring": 12, "method": "normal"}
    a = olac.approximate(model, images(40), degree=3, method="normal")
    b = olac.compile(program, images(40), **keywords)
    x = images(9).numpy()
    assert np.allclose(a.simulate(x), b.simulate(x), atol=1e-4)
    assert not check(program, images(3))


class Bessel(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.special.bessel_j0(x)


def test_places_are_those_of_the_model_that_was_exported() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.ReLU(), Bessel())

        def forward(self, x: Any) -> Any:
            return torch.special.bessel_j1(self.body(x))

    for given in (export(Net().eval(), (images(2),)), nn.Sequential(export(Net().eval(), (images(2),)).module())):
        nodes = check(given, images(3))
        prefix = "" if isinstance(given, ExportedProgram) else "0"
        assert [node.path.removeprefix(f"{prefix}.") for node in nodes] == ["body.1", prefix]
        assert [node.problem for node in nodes] == [f"special_bessel_j{k} is not supported" for k in (0, 1)]
        assert not check(given, images(3), {torch.special.bessel_j0: None, torch.special.bessel_j1: None})
        assert all(node.source.startswith("test_exported.py:") for node in nodes)


class Branches(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x + 1, (x,))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.cell(x[:, 0])[0]


class Autocast(Body):
    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.conv(x).float()


@pytest.mark.parametrize(
    ("model", "path", "problem"),
    [
        (Branches(), "", "uses cond, which chooses by data"),
        (Recurrent(), "cell", "lstm in an exported program"),
        (Autocast(whole), "conv", "computes under autocast"),
    ],
)
def test_refused(model: nn.Module, path: str, problem: str) -> None:
    node, *_ = check(export(model.eval(), (images(3),)), images(3))
    assert node.path == path and problem in node.problem and node.source.startswith("test_exported.py:")


def test_exported_in_training_mode() -> None:
    found = check(export(nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout()), (images(2),)), images(3))
    assert [node.path for node in found] == ["1"] and "dropout that stays on" in found[0].problem


# Files ---------------------------------------------------------------------------------------------------------------


def saved(path: Path) -> nn.Module:
    model, program = exported(whole, None)
    torch.export.save(program, path)
    return model


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    model = saved(path)
    loaded = olac.load_exported(path)
    assert isinstance(loaded, Exported)
    agrees(loaded, model)
    with torch.no_grad():
        assert torch.allclose(loaded(images(3)), model(images(3)), atol=1e-6)


class Opens:
    """An object whose unpickling runs code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_objects_in_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, mark = tmp_path / "net.pt2", tmp_path / "ran"
    saved(path)
    torch.save((Opens(str(mark)),), tmp_path / "inputs.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as new:
        for item in old.infolist():
            inputs = item.filename.endswith("sample_inputs/model.pt")
            new.writestr(item, (tmp_path / "inputs.pt").read_bytes() if inputs else old.read(item))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    with pytest.raises(ArtifactError, match="with weights only"):
        olac.load_exported(tmp_path / "bad.pt2")
    assert not mark.exists() and os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"
    with contextlib.suppress(Exception):  # torch's own warning about it fails where logging is watched
        torch.export.load(tmp_path / "bad.pt2")
    assert mark.exists(), "without this the file would have run code"


@pytest.mark.parametrize("name", ["data/aotinductor/model/code.so", "data/constants/custom_obj_0"])
def test_compiled_code_in_files_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"net/{name}", b"")
    with pytest.raises(ArtifactError, match="compiled code or objects"):
        olac.load_exported(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("a", b"b")
    for name in ("text.pt2", "empty.pt2", "missing.pt2"):
        with pytest.raises(ArtifactError, match=name):
            olac.load_exported(tmp_path / name)


def test_a_program_that_needs_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Any, y: Any) -> Any:
            return x + y

    with pytest.raises(UnsupportedModelError, match="takes 2 inputs"):
        trace(export(Two(), (images(2), images(2))), images(2))
