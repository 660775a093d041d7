"""Known answers hold on this machine, and each kernel that is broken fails one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from olac.backends import vector
from olac.backends.vector import answers, available, compiled
from olac.backends.vector.ring import Tables

pytestmark = pytest.mark.skipif(available.obstacle() != "", reason="the vector engine is not available here")
for module in pkgutil.iter_modules(vector.__path__):
    importlib.import_module(f"{vector.__name__}.{module.name}")
KERNELS = sorted(available.own_kernels())


@pytest.fixture(autouse=True)
def fresh_tables() -> Any:
    """Tables that a test breaks are not those of others."""
    answers.tables.cache_clear()
    yield
    answers.tables.cache_clear()


def test_all_answers_are_right() -> None:
    answers.transforms_are_right()  # kernels are compiled, or loaded
    assert available.wrong_answers() == ""
    answers.tables.cache_clear()
    start = time.process_time()
    assert available.wrong_answers() == ""
    assert time.process_time() - start < 1.0


def answered_in(name: str) -> Any:
    """The module whose known answer tests a kernel."""
    (first, *_) = [answer for answer in compiled.ANSWERS if name in answer.kernels]
    return importlib.import_module(first.right.__module__)


def off(made: Callable[..., None], where: float, by: float) -> Callable[..., None]:
    """A kernel that gives a wrong result: of what changes in `out`, or in `low`, the one at a fraction of the whole."""
    names = list(inspect.signature(made).parameters)
    place = names.index("out" if "out" in names else "low")

    def broken(*args: Any) -> None:
        out = args[place].reshape(-1)
        before = out.copy()
        made(*args)
        changed = np.flatnonzero(out != before)
        out[changed[int(where * (len(changed) - 1))]] += by

    return broken


@pytest.mark.parametrize(("where", "by"), [(0.0, 1), (0.7, 1), (1.0, 0.5)])
@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch, name: str, where: float, by: float) -> None:
    module, short = answered_in(name), name.rpartition(".")[2]
    by = 1 if short == "split" else by  # its results have integer types
    monkeypatch.setattr(module, short, off(getattr(module, short), where, by))
    wrong = available.wrong_answers()
    assert name in wrong and "give wrong results on this machine" in wrong


@pytest.mark.parametrize("table", ["w0", "w1", "i0", "i1", "p", "pinv"])
@pytest.mark.parametrize("where", [0.1, 0.9])
def test_a_wrong_table_is_found(monkeypatch: pytest.MonkeyPatch, table: str, where: float) -> None:
    made = Tables.__init__

    def broken(self: Tables, log_ring: int, primes: Any) -> None:
        made(self, log_ring, primes)
        found = getattr(self, table)
        found[int(where * len(found))] *= 1 + 2.0**-30 if table == "pinv" else -1

    monkeypatch.setattr(Tables, "__init__", broken)
    assert "give wrong results on this machine" in available.wrong_answers()


def test_every_kernel_is_tested_by_name() -> None:
    tested = {name for answer in compiled.ANSWERS for name in answer.kernels}
    assert set(KERNELS) <= tested
    assert all(inspect.getdoc(answer.right) for answer in compiled.ANSWERS if answer.kernels[0] in KERNELS)
