"""Names of outputs: one for each class or number, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest

from olac.ir.head import ArgMax, OutputHead, Softmax
from olac.ir.names import LONGEST, Named, Names, check_names, outputs_to_name, part_names

PLAIN, DECIDES = OutputHead(), OutputHead((Softmax(0), ArgMax(0)))
PETS = ("cat", "dog", "eel")


class Model(Named):
    def __init__(self, names: Names, head: OutputHead = PLAIN) -> None:
        self.output_names, self.head = names, head


def test_each_output_has_one_name() -> None:
    assert outputs_to_name(PLAIN, (3,)) == outputs_to_name(DECIDES, (3,)) == 3
    assert outputs_to_name(OutputHead((ArgMax(0),)), (5, 8, 8)) == 5 and outputs_to_name(PLAIN, (5, 2, 2)) == 20
    assert check_names(list(PETS), DECIDES, (3,)) == PETS and check_names((), PLAIN, (3,)) == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog"], "2 class_names for 3 outputs"),
        ([*PETS, "fox"], "4 class_names for 3 outputs"),
        (["cat", "dog", "dog"], "'dog' is given twice"),
        (["cat", "dog", " "], "empty"),
        (["cat", "dog", "\x1b[2J"], "can't be shown"),
        (["cat", "dog", "x" * (LONGEST + 1)], "too long"),
        ("cat", "a list of texts"),
        ([0, 1, 2], "a list of texts"),
    ],
)
def test_names_that_are_refused(names: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_names(names, PLAIN, (3,))


def test_outputs_by_name() -> None:
    scores = np.array([[0.5, 2.0, -1.0]])
    assert Model(PETS).named(scores) == [{"cat": 0.5, "dog": 2.0, "eel": -1.0}]
    assert Model(()).named(scores) == [{"0": 0.5, "1": 2.0, "2": -1.0}]
    assert Model(("price",)).named(np.array([4.5, 7.0])) == [{"price": 4.5}, {"price": 7.0}]
    assert Model(PETS, DECIDES).named(np.array([2, 0])) == ["eel", "cat"]
    assert Model((), DECIDES).named(np.array([2, 0])) == ["2", "0"]
    assert Model(PETS, DECIDES).named(np.array([[[2, 0], [1, 1]]])) == [[["eel", "cat"], ["dog", "dog"]]]


def test_outputs_of_another_model() -> None:
    for model, outputs in (
        (Model(PETS), np.zeros((2, 4))),
        (Model(PETS), np.zeros(())),
        (Model(PETS), np.array([1])),
        (Model(PETS, DECIDES), np.array([3])),
        (Model(PETS, DECIDES), np.array([-1])),
        (Model(PETS, DECIDES), np.zeros((1, 3))),
    ):
        with pytest.raises(ValueError, match="outputs"):
            model.named(outputs)


def test_parts_of_a_joined_output() -> None:
    assert part_names({"price": (), "risk": (1,), "box": (2,), "map": (1, 2)}) == (
        "price",
        "risk",
        "box[0]",
        "box[1]",
        "map[0, 0]",
        "map[0, 1]",
    )
    assert part_names({"map": (1 << 9, 1 << 9)}) == ()  # too many to keep
