"""What caches of test modules hold is dropped when it is not needed any more."""

from __future__ import annotations

import functools
import sys
import weakref
from pathlib import Path
from types import ModuleType

import pytest

from tests.caches import forget


class Keys:
    """Something large."""


def module(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType(name)
    made.__file__ = str(file)

    def keys(number: int) -> Keys:
        return Keys()

    keys.__module__ = name
    vars(made)["keys"] = functools.lru_cache(maxsize=4)(keys)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_caches_are_cleared_by_file_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (module(f"made.{one}", tmp_path / f"{one}.py", monkeypatch) for one in ("first", "second"))
    below = module("made.more.below", tmp_path / "more" / "below.py", monkeypatch)
    vars(second)["imported"] = first.keys
    held = [weakref.ref(one.keys(number)) for one in (first, second, below) for number in (0, 1)]
    assert forget(tmp_path / "second.py") == 2
    assert [one() is None for one in held] == [False, False, True, True, False, False]
    assert forget(tmp_path) == 2  # those of the second are gone
    assert [one() is None for one in held] == [True, True, True, True, False, False]
    assert forget(tmp_path) == 0
