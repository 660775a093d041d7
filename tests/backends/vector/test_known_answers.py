from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from olac.backends.vector import available, compiled, key_known_answers, known_answers
from olac.backends.vector.bootstrap import known_answers as of_bootstraps
from olac.backends.vector.elementwise import add_constant
from olac.backends.vector.ring import Tables

MODULES = {module.__name__: module for module in (known_answers, key_known_answers, of_bootstraps)}
ANSWERS = {answer.right.__name__: answer for answer in compiled.ANSWERS if answer.right.__module__ in MODULES}
DIRECT = sorted(
    (answer.right.__name__, name)
    for answer in ANSWERS.values()
    for name in (kernel.rpartition(".")[2] for kernel in answer.kernels)
    if f"{name}(" in inspect.getsource(answer.right)
)
"""Each answer with the kernels that it calls itself."""


def test_every_kernel_has_an_answer() -> None:
    assert available.wrong_answers() == ""
    called = {kernel for _, kernel in DIRECT}
    assert {name.rpartition(".")[2] for name in available.own_kernels()} - called <= {
        "forward_rows",
        "inverse_rows",
        "inverse_columns",
    }  # parts of the transforms


@pytest.mark.parametrize(("answer", "kernel"), DIRECT)
def test_one_wrong_value_is_noticed(answer: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = MODULES[ANSWERS[answer].right.__module__]
    usual: Any = getattr(module, kernel)
    names = list(inspect.signature(usual.py_func).parameters)
    result = names.index("high" if kernel == "split_words" else "out")

    def wrong(*arguments: Any) -> Any:
        before = arguments[result].copy()
        found = usual(*arguments)
        out = arguments[result].reshape(-1)
        at = int(np.flatnonzero(out != before.reshape(-1))[-1])
        out[at] -= 1
        return found

    monkeypatch.setattr(module, kernel, wrong)
    assert not ANSWERS[answer].right()


def test_values_that_are_too_large_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are right modulo the prime, and kernels do not allow them."""
    usual = add_constant
    prime = known_answers._rings()[0].primes[0]

    def wrong(*arguments: Any) -> None:
        usual(*arguments)
        arguments[6][0] += 2.0 * prime

    monkeypatch.setattr(known_answers, "add_constant", wrong)
    assert not ANSWERS["_sums_and_products_are_right"].right()


@pytest.mark.parametrize("table", ["w0", "w1", "i0", "i1", "p", "pinv"])
@pytest.mark.parametrize("where", [0.1, 0.9])
def test_a_wrong_table_is_noticed(monkeypatch: pytest.MonkeyPatch, table: str, where: float) -> None:
    usual = Tables.__init__

    def wrong(self: Tables, *arguments: Any) -> None:
        usual(self, *arguments)
        found = getattr(self, table).reshape(-1)
        found[int(where * len(found))] *= 1 + 2.0**-30 if table == "pinv" else -1

    monkeypatch.setattr(Tables, "__init__", wrong)
    known_answers._rings.cache_clear()
    try:
        assert "give wrong results on this machine" in available.wrong_answers()
    finally:
        known_answers._rings.cache_clear()
