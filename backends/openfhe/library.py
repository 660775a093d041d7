"""Loads the openfhe extension, or says why it can't be loaded."""

from __future__ import annotations

import functools
import importlib
import platform
import sys
from typing import Any

from olac.errors import BackendError
from olac.system.forks import check_fork


def load() -> Any:
    """The openfhe module.

    Raises:
        ForkError: the process was forked after OpenFHE was used.
        BackendError: no wheel of it loads on this Python.
    """
    check_fork()
    return _module()


@functools.lru_cache(maxsize=1)
def _module() -> Any:
    try:
        module = importlib.import_module("openfhe")
        # A wheel for another Python installs without complaint and lacks its extension.
        module.FIXEDMANUAL  # noqa: B018
    except (ImportError, AttributeError) as error:
        libc, version = platform.libc_ver()
        raise BackendError(
            f"OpenFHE can't be loaded on this Python ({sys.implementation.name} {platform.python_version()}, "
            f"{libc or 'libc'} {version}, {sys.executable}): {error}. Its wheels load on CPython 3.10 with "
            "glibc >= 2.34 or on CPython 3.12 with glibc >= 2.38, on Linux x86_64. Compiling, simulating and "
            "saving work without it; making keys and running encrypted do not."
        ) from error
    return module
