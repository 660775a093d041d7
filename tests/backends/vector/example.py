"""A module with kernels that is made for a test, under a name in the engine's package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from olac.backends.vector import available, compiled
from olac.backends.vector.kernel_cache import KernelStore, sources_digest

NAME = "olac.backends.vector.example"
SOURCE = """
from __future__ import annotations
import numpy as np
from olac.backends.vector.compiled import fma, inline, kernel, known_answer, wide

@inline
def low(x, y):
    return fma(x, y, -(x * y))

@kernel("void(f8[::1], f8[::1], i8, i8)", "void(f8[:, ::1], f8[:, ::1], i8, i8)")
def products(a, out, lo, hi):
    wide()
    for i in range(lo, hi):
        out[i] = low(a[i], a[i]) if a.ndim == 1 else 0.0

@kernel("f8(f8[::1])")
def total(a):
    wide()
    s = 0.0
    for i in range(a.shape[0]):
        s = fma(a[i], 1.0, s)
    return s

@kernel("void(f8[:, ::1], f8)")
def scale(a, by):
    wide()
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            a[i, j] = fma(a[i, j], by, 1.0)

@kernel("void(f8[:, ::1], f8)")
def twice(a, by):
    scale(a, by)
    scale(a, by)

@known_answer(total, scale, twice)
def sums_are_right():
    a = np.ones((2, 8))
    twice(a, 3.0)
    return bool(np.all(a == 13.0)) and total(a[0]) == 104.0

@known_answer(products)
def products_are_right():
    a, out = np.full(8, 1.0 + 2.0**-30), np.zeros(8)
    products(a, out, 0, 8)
    return bool(np.all(out == 2.0**-60))
"""


class Example:
    """Makes the module in a folder, with a store and registries of its own, as a new process would have it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = folder / "example.py"
        self.path.write_text(SOURCE)
        self._patch = patch
        patch.setenv("OLAC_CACHE_DIR", str(folder / "cache"))

    def fresh(self) -> ModuleType:
        """The module as it is now in its file, compiled nowhere in this process."""
        sources_digest.cache_clear()
        store = KernelStore(compiled.numba)
        self._patch.setattr(compiled, "store", lambda: store)
        self._patch.setattr(compiled, "KERNELS", {})
        self._patch.setattr(compiled, "ANSWERS", [])
        self._patch.setattr(available, "_checked", None)
        spec = importlib.util.spec_from_file_location(NAME, self.path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        self._patch.setitem(sys.modules, NAME, module)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            spec.loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = before
        return module

    def edit(self, old: str, new: str) -> None:
        """Change the source."""
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))

    def files(self) -> list[Path]:
        """The kernels on disk."""
        return sorted(compiled.store().files.path().glob("*.kernel"))
