"""Functions that stand in for others while a model is traced."""

from __future__ import annotations

import contextlib
import gc
import types
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def replaced_functions(replacements: Mapping[Any, Any]) -> Iterator[None]:
    """Within this, each function is another one, in every namespace and closure that refers to it."""
    undo: list[tuple[Any, Any, Any]] = []
    try:
        for key, replacement in replacements.items():
            _put(replacement, key, undo)
        yield
    finally:
        for holder, name, key in reversed(undo):
            if name is None:
                holder.cell_contents = key
            else:
                holder[name] = key


def _put(leaf: Any, key: Any, undo: list[tuple[Any, Any, Any]]) -> None:
    """Put a leaf in the place of a function in every namespace and closure, and note how to undo it."""
    for holder in gc.get_referrers(key):
        if isinstance(holder, types.CellType):
            undo.append((holder, None, key))
            holder.cell_contents = leaf
        elif type(holder) is dict:
            # A loop, because a comprehension would hold `key` in a cell of its own.
            for name, value in list(holder.items()):
                if value is key and isinstance(name, str):
                    undo.append((holder, name, key))
                    holder[name] = leaf
