"""What olac says where an optional package is not installed: the line that installs it."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

import olac
from olac.cli import main


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of modules whose import by name fails as if this package were absent."""
    names: set[str] = set()
    real = importlib.import_module

    def find(name: str, package: str | None = None) -> ModuleType:
        if name in names or (name == "olac.compiler" and "torch" in names):
            absent = "torch" if name == "olac.compiler" else name
            raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", find)
    return names


def test_compiling_without_torch_says_what_to_install(missing: set[str]) -> None:
    missing.add("torch")
    with pytest.raises(ModuleNotFoundError, match=r"olac.compile needs torch.*pip install 'olac\[torch\]'"):
        _ = olac.compile


def test_another_missing_module_is_not_taken_for_torch(missing: set[str]) -> None:
    missing.add("olac.serving.remote")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'olac.serving.remote'$"):
        _ = olac.RemoteServer


def test_the_demo_without_scikit_learn_says_what_to_install(
    missing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    missing.add("sklearn")
    assert main(["demo"]) == 1
    assert "pip install 'olac[demo]'" in capsys.readouterr().err
