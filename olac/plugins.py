"""Extensions from other packages: entry points of the group `olac.plugins` are imported and called.

A package that adds ops, kernels or frontend handlers registers them in a function of its own and names it in its
setup.cfg:

    [options.entry_points]
    olac.plugins =
        mine = mine.olac_plugin:register
"""

from __future__ import annotations

import functools
from importlib.metadata import entry_points

from olac.errors import OlacError


class PluginError(OlacError):
    """An installed extension can't be loaded."""


@functools.lru_cache(maxsize=1)
def load_plugins() -> tuple[str, ...]:
    """Load every installed extension once; returns their names."""
    names = []
    for entry in sorted(entry_points(group="olac.plugins"), key=lambda entry: entry.name):
        try:
            entry.load()()
        except Exception as error:
            raise PluginError(
                f"the extension {entry.name} ({entry.value}) failed: {type(error).__name__}: {error}. "
                "Fix it, or uninstall its package."
            ) from error
        names.append(entry.name)
    return tuple(names)
