"""The scripts of examples/: they open as notebooks, are listed, and the smallest runs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.examples import FOLDER, run_one, scripts

SMALLEST = "client_and_server.py"
"""It has two processes and the smallest network."""


def test_there_are_examples() -> None:
    assert {"digits.py", "tabular.py", "ecg.py", SMALLEST} <= {path.name for path in scripts()}


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_it_opens_as_a_notebook(path: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed (it is in olac[dev])")
    notebook = jupytext.read(path)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and notebook.cells[0].source.startswith("# ")
    assert kinds.count("code") >= 2
    assert notebook.metadata["kernelspec"]["language"] == "python"
    assert all(ast.parse(cell.source).body for cell in notebook.cells if cell.cell_type == "code")
    text = jupytext.writes(notebook, fmt="ipynb")
    again = jupytext.reads(text, fmt="ipynb")
    assert [cell.source for cell in again.cells] == [cell.source for cell in notebook.cells]


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.name)
def test_it_stands_alone_and_checks_itself(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    own = {script.stem for script in scripts()} | {"tests", "benchmarks", "examples"}
    assert not {name.split(".")[0] for name in names} & own, "shared code is out of sight"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def test_all_are_listed() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in scripts() if f"`{path.name}`" not in text]


@pytest.mark.encrypted
def test_the_smallest_runs() -> None:
    ran = run_one(FOLDER / SMALLEST)
    assert not ran.error, ran.error
    assert 0 < ran.peak_gb < 4


def test_an_example_that_fails_is_found(tmp_path: Path) -> None:
    path = tmp_path / "fails.py"
    path.write_text("import subprocess\nsubprocess.run(['olac', 'nothing'], check=True)\n")
    assert "exit code 1" in run_one(path).error
