"""Functions are replaced wherever something refers to them, and put back."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from olac.frontend.replaced import replaced_functions


@pytest.fixture(name="home")
def _home(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A module whose function `one` nothing else refers to."""
    module = types.ModuleType("home_of_one")
    exec("def one():\n    return 1\n\ndef call():\n    return one()\n", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module


def two() -> int:
    return 2


def refuse(*_: Any) -> list[Any]:
    raise AssertionError("searched all objects")


def test_a_function_of_its_module_alone_is_replaced_without_a_search(
    home: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gc, "get_referrers", refuse)
    vars(home)["another_name"] = home.one
    with replaced_functions({home.one: two}):
        assert home.call() == home.another_name() == 2
    assert home.call() == home.another_name() == 1


def test_other_namespaces_and_closures_are_found(home: types.ModuleType) -> None:
    def closure(function: Callable[[], int]) -> Callable[[], int]:
        return lambda: function()

    namespace, call = {"imported": home.one}, closure(home.one)
    with replaced_functions({home.one: two}):
        assert home.call() == namespace["imported"]() == call() == 2
    assert home.call() == namespace["imported"]() == call() == 1
