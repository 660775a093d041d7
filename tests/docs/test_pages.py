"""Every block of every page runs as it stands, or says why it does not."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.docs.pages import ROOT, Block, PageError, blocks_of, pages
from tests.docs.registries import registries_kept
from tests.docs.runner import run_page
from tests.docs.torchvision_stand_in import torchvision_there

BLOCKS: dict[str, list[Block]] = {}
REFUSED: dict[str, str] = {}
"""Pages that can't be read, and why."""
for _path in pages():
    _name = _path.relative_to(ROOT).as_posix()
    try:
        BLOCKS[_name] = blocks_of(_path.read_text(encoding="utf-8"))
    except PageError as error:
        REFUSED[_name] = str(error)
RUN = [name for name, blocks in BLOCKS.items() if any(block.is_code for block in blocks)]
GUIDE_SECTIONS = 5
"""Worked examples of CONTRIBUTING.md, each with an assertion (tests/test_contributing.py)."""


def readme(folder: Path, printed: str) -> None:
    """The README's example prints the largest error of the encrypted outputs."""
    error = re.search(r"^largest error of the encryption: (\S+)$", printed, re.MULTILINE)
    assert error is not None and float(error[1]) < 1e-2
    assert (folder / "model.olac").exists()


CHECKS: dict[str, Callable[[Path, str], None]] = {"README.md": readme}
"""What more has to hold after the blocks of a page."""


def test_all_pages_can_be_read() -> None:
    assert not REFUSED


@pytest.mark.encrypted
@pytest.mark.parametrize("name", RUN)
def test_page(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    with registries_kept(), torchvision_there():
        printed = run_page(name, BLOCKS[name], folder)
    if name in CHECKS:
        CHECKS[name](folder, printed)


def test_what_is_not_run_says_why(record_property: Callable[[str, object], None]) -> None:
    skipped = [(f"{name}:{b.line}", b.skipped) for name, blocks in BLOCKS.items() for b in blocks if b.skipped]
    for where, reason in skipped:
        record_property(where, reason)
        print(f"{where}: not run: {reason}")
    short = [where for where, reason in skipped if len((reason or "").split()) < 2]
    assert not short, f"a reason is more than one word: {short}"


def test_pages_that_matter_are_run() -> None:
    """A page whose blocks are all marked would pass without a test of anything."""
    for name in ("README.md", "CONTRIBUTING.md", "docs/doors.md", "docs/serving.md"):
        assert any(block.is_code and not block.skipped for block in BLOCKS[name]), name
    assert sum(block.fresh for block in BLOCKS["CONTRIBUTING.md"]) == GUIDE_SECTIONS


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    top = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:18]
    assert any("make demo" in line for line in top)
    assert any("make test" in line for line in top)


# docs/doors.md: ONNX, where onnx2torch is installed.


def doors_block(containing: str) -> Block:
    (found,) = [block for block in BLOCKS["docs/doors.md"] if containing in block.source]
    return found


def run_onnx(folder: Path, monkeypatch: pytest.MonkeyPatch, *sources: str) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "doors"}
    for source in (BLOCKS["docs/doors.md"][0].source, *sources):
        exec(compile(source, "docs/doors.md", "exec"), names)
    return names


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
    before = run_onnx(tmp_path, monkeypatch)
    onnx_file(tmp_path / "net.onnx", batch, {k: v.numpy() for k, v in before["net"].state_dict().items()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of onnx2torch
        names = run_onnx(tmp_path, monkeypatch, doors_block("import onnx2torch").source)
    images = before["images"]
    approximated = names["olac"].approximate(names["module"], images)
    same = before["olac"].approximate(before["net"], images)
    assert np.allclose(approximated.simulate(images.numpy()), same.simulate(images.numpy()), atol=1e-3)
