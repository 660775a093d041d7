"""Loads the openfhe extension, or says why it can't be loaded, and sets how many threads its loops use."""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

from olac.errors import BackendError
from olac.system.forks import check_fork
from olac.system.logs import warn
from olac.system.threads import MOST, follow_threads, usable_threads

log = logging.getLogger(__name__)

CORE = "libOPENFHEcore.so.1"
CONTROLS = "_ZN8lbcrypto23OpenFHEParallelControlsE"
"""The object that OpenFHE's loops ask how many threads they may use. Its one field is that number, an int."""


def load() -> Any:
    """The openfhe module.

    Raises:
        ForkError: the process was forked after OpenFHE was used.
        BackendError: no wheel of it loads on this Python.
    """
    check_fork()
    return _module()


def why_missing() -> str:
    """Why OpenFHE can't be loaded here, in a clause; empty if it can."""
    try:
        _module()
    except BackendError as error:
        return f"it does not load on this Python ({error.__cause__})"
    return ""


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
            "glibc >= 2.34 or on CPython 3.12 with glibc >= 2.38, on Linux x86_64. The vector engine works "
            "without it."
        ) from error
    follow_threads(functools.partial(set_loops, module, usable_threads()))
    return module


def set_loops(module: Any, usual: int, threads: int) -> None:
    """Have OpenFHE's loops use so many threads. By itself it takes the number that OpenMP has while it is loaded.

    Args:
        usual: that number.
    """
    found = loops(module)
    if found is not None:
        found.value = threads
    elif threads != usual:
        warn(
            log,
            f"this build of OpenFHE takes its number of threads when it is loaded and keeps {usual}: "
            "set OMP_NUM_THREADS before",
            stacklevel=2,
        )


def loops(module: Any) -> ctypes.c_int | None:
    """The number of threads of OpenFHE's loops; None if this build of it hides the number."""
    try:
        path = Path(module.__file__).parent / "lib" / CORE
        library = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        found = ctypes.c_int.in_dll(library, CONTROLS)
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found if 1 <= found.value <= MOST else None
