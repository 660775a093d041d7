"""The lines of `olac decrypt`."""

from __future__ import annotations

import numpy as np

from olac.cli import _seconds
from olac.ir.head import Outputs
from olac.ir.names import Names
from olac.outcome import SHOWN_INPUTS, outcome_lines


def lines(outputs: Outputs, names: Names = ()) -> list[str]:
    return list(outcome_lines(outputs, ".4g", names, "out.npy"))


def test_scores_and_their_names() -> None:
    scores = np.array([[0.5, 2.0, -1e-7]])
    assert lines(scores) == ["class 1: 0.5 2 -1e-07"]
    assert lines(scores, ("cat", "dog", "eel")) == ["cat 0.5, dog 2, eel -1e-07; largest: dog"]
    assert lines(np.array([[4.25]])) == ["4.25"] and lines(np.array([4.25]), ("price",)) == ["price 4.25"]


def test_chosen_classes_and_their_names() -> None:
    assert lines(np.array([1, 0])) == ["class 1", "class 0"]
    assert lines(np.array([1, 0]), ("cat", "dog")) == ["class dog", "class cat"]
    assert lines(np.zeros((1, 4, 4), dtype=np.int64)) == ["class " + " ".join("0" * 10) + " and 6 more"]


def test_of_many_numbers_the_largest_are_shown() -> None:
    scores = np.arange(1000.0)[None]
    assert lines(scores) == ["class 999: 999 999, 998 998, 997 997, 996 996, 995 995 (the largest of 1000)"]
    names = tuple(f"kind{i}" for i in range(1000))
    assert lines(scores, names)[0].startswith("kind999 999, kind998 998, ") and len(lines(scores, names)[0]) < 90


def test_of_many_inputs_the_first_are_shown() -> None:
    shown = lines(np.zeros((1000, 1)))
    assert len(shown) == SHOWN_INPUTS + 1 and shown[-1] == "and 980 more: out.npy holds all 1000"


def test_seconds_are_shown_with_two_digits_at_least() -> None:
    assert [_seconds(value) for value in (123.456, 1.5, 0.1, 0.00712)] == ["123.46 s", "1.50 s", "0.10 s", "0.0071 s"]
