"""Functions that stand in for others while a model is traced."""

from __future__ import annotations

import contextlib
import gc
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def replaced_functions(replacements: Mapping[Any, Any]) -> Iterator[None]:
    """Within this, each function is another one, in every namespace and closure that refers to it."""
    undo: list[tuple[Any, Any, Any]] = []
    counts = _references(replacements)
    try:
        for (key, replacement), count in zip(replacements.items(), counts, strict=True):
            # The search for what refers to a function goes through all objects; most often it is its module alone.
            home = getattr(sys.modules.get(getattr(key, "__module__", "")), "__dict__", {})
            known = sum(value is key for value in home.values())
            _put(replacement, key, [home] if count == _UNREFERRED + known else gc.get_referrers(key), undo)
        yield
    finally:
        for holder, name, key in reversed(undo):
            if name is None:
                holder.cell_contents = key
            else:
                holder[name] = key


def _references(functions: Mapping[Any, Any]) -> list[int]:
    """How many references there are to each key."""
    return [sys.getrefcount(key) for key in functions]


_UNREFERRED = _references({object(): None})[0]
"""What `_references` counts if nothing but the mapping refers to a key."""


def _put(leaf: Any, key: Any, holders: Iterable[Any], undo: list[tuple[Any, Any, Any]]) -> None:
    """Put a leaf in the place of a function in every namespace and closure of these, and note how to undo it."""
    for holder in holders:
        if isinstance(holder, types.CellType):
            undo.append((holder, None, key))
            holder.cell_contents = leaf
        elif type(holder) is dict:
            # A loop, because a comprehension would hold `key` in a cell of its own.
            for name, value in list(holder.items()):
                if value is key and isinstance(name, str):
                    undo.append((holder, name, key))
                    holder[name] = leaf
