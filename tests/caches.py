"""Caches of functions in test modules, which would hold keys and networks as long as the process lives."""

from __future__ import annotations

import gc
import sys
from pathlib import Path


def forget(place: Path) -> int:
    """Clear the caches of all functions in a loaded module, by its file, or in all those of one folder.

    Returns:
        the number of results that were held.
    """
    held = 0
    for module in tuple(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is None or place not in (Path(file), Path(file).parent):
            continue
        for function in vars(module).values():
            # A function that was imported is cleared with the module that it is in.
            if getattr(function, "__module__", None) == module.__name__ and hasattr(function, "cache_clear"):
                held += function.cache_info().currsize
                function.cache_clear()
    if held:
        gc.collect()
    return held
