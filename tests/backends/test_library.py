"""A Python on which OpenFHE can't be loaded: said in plain words, and at once."""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olac import demo
from olac.backends.openfhe import library
from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.backends.vector.session import ENGINE as VECTOR
from olac.errors import BackendError


@pytest.fixture(params=["missing", "of another Python"])
def no_openfhe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = importlib.import_module

    def fake(name: str, package: str | None = None) -> Any:
        if name != "openfhe":
            return real(name, package)
        if request.param == "missing":
            raise ModuleNotFoundError("No module named 'openfhe'")
        return types.ModuleType("openfhe")  # what a wheel for another Python leaves

    monkeypatch.setattr(importlib, "import_module", fake)
    library._module.cache_clear()
    yield
    library._module.cache_clear()


@pytest.mark.usefixtures("no_openfhe")
def test_the_error_says_which_pythons_would_do() -> None:
    with pytest.raises(BackendError, match=r"CPython 3\.10 with glibc >= 2\.34 or on CPython 3\.12"):
        library.load()


@pytest.mark.usefixtures("no_openfhe")
def test_the_engine_says_so() -> None:
    assert OPENFHE.unavailable().startswith("it does not load on this Python (")


@pytest.mark.usefixtures("no_openfhe")
def test_the_demo_says_so_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no other engine can be used, either."""
    monkeypatch.setattr(demo, "train", lambda digits: pytest.fail("it trained first"))
    monkeypatch.setattr(type(VECTOR), "unavailable", lambda self, preparing=None: "it is on strike")
    with pytest.raises(BackendError, match=r"OpenFHE can't be used here: it does not load.*on strike"):
        demo.run_demo(tmp_path / "demo.json")
