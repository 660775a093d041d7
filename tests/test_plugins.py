from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from olac import plugins


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    plugins.load_plugins.cache_clear()
    yield
    plugins.load_plugins.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    (folder / "some_plugin.py").write_text(body)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, "some_plugin", raising=False)
    entry = EntryPoint("some", "some_plugin:register", "olac.plugins")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == "olac.plugins" else [])


def test_an_extension_is_called_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marker = tmp_path / "calls"
    install(monkeypatch, tmp_path, f"def register(): open({str(marker)!r}, 'a').write('called ')\n")
    assert plugins.load_plugins() == ("some",)
    assert plugins.load_plugins() == ("some",)
    assert marker.read_text() == "called "


def test_a_broken_extension_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "def register(): raise RuntimeError('broken')\n")
    with pytest.raises(plugins.PluginError, match=r"some \(some_plugin:register\) failed: RuntimeError: broken"):
        plugins.load_plugins()
