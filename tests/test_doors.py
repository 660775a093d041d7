"""Every block of docs/doors.md runs as it stands."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "doors.md"
FIRST, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SECTIONS = re.findall(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def run(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "doors"}
    for part in (FIRST, block):
        exec(compile(part, str(PAGE), "exec"), names)
    return names


@pytest.mark.parametrize("block", [block for block in BLOCKS if "onnx" not in block])
def test_the_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sklearn" in block:
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    run(block, tmp_path, monkeypatch)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 7 and "onnx2torch" in BLOCKS[-1] and "ONNX" in SECTIONS


def onnx_file(path: Path, batch: int | str, weights: dict[str, Any]) -> None:
    """The network of the page, as ONNX; with a batch of one its reshape fixes that."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    flat = node("Reshape", ["p", "shape"], ["f"]) if batch == 1 else node("Flatten", ["p"], ["f"])
    nodes = [
        node("Conv", ["x", "0.weight", "0.bias"], ["c"], kernel_shape=[3, 3]),
        node("Relu", ["c"], ["r"]),
        node("AveragePool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        flat,
        node("Gemm", ["f", "4.weight", "4.bias"], ["y"], transB=1),
    ]
    constants = {**weights, "shape": np.array([1, -1])}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), path)


@pytest.mark.skipif(importlib.util.find_spec("onnx2torch") is None, reason="onnx2torch is not installed")
@pytest.mark.parametrize("batch", [1, "n"])
def test_onnx(batch: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run("", tmp_path, monkeypatch)
    onnx_file(tmp_path / "net.onnx", batch, {k: v.numpy() for k, v in before["net"].state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnx2torch
        names = run(BLOCKS[-1], tmp_path, monkeypatch)
    images = before["images"]
    approximated = names["olac"].approximate(names["module"], images)
    same = before["olac"].approximate(before["net"], images)
    assert np.allclose(approximated.simulate(images.numpy()), same.simulate(images.numpy()), atol=1e-3)
