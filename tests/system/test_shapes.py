"""What inputs are called, how objects are described, and the expression that makes a batch of an array."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olac.system.shapes import counted, described, fitting, noun

BATCHES = [
    ((8, 8), (1, 8, 8)),
    ((1, 8, 8), (1, 8, 8)),
    ((5, 8, 8), (1, 8, 8)),
    ((5, 8, 6, 3), (3, 8, 6)),
    ((8, 6, 3), (3, 8, 6)),
    ((8, 6, 1), (1, 8, 6)),
    ((5, 1, 8, 6), (3, 8, 6)),
    ((5, 48), (3, 4, 4)),
    ((5, 3, 4, 4), (48,)),
    ((5, 20, 2), (2, 20)),
    ((2, 20), (2, 20)),
    ((7,), (7,)),
    ((5, 8), (7,)),
]


@pytest.mark.parametrize(("given", "wanted"), BATCHES)
def test_the_line_makes_a_batch(given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    array = np.arange(float(np.prod(given))).reshape(given)
    of_numpy = eval(fitting(given, wanted), {"x": array})
    of_torch = eval(fitting(given, wanted, tensor=True), {"x": torch.from_numpy(array)})
    assert of_numpy.shape[1:] == wanted and np.array_equal(of_numpy, of_torch.numpy())
    if given[-1:] == wanted[:1] and len(given) == 4:  # channels were last, so pixels stay together
        assert np.array_equal(of_numpy[0, :, 2, 1], array[0, 2, 1])


@pytest.mark.parametrize(
    ("given", "wanted"), [((5, 9), (7,)), ((5, 3, 8, 8), (3, 9, 9)), ((), (4,)), ((5, 50), (3, 4, 4))]
)
def test_no_line_is_given_for_what_cannot_fit(given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    assert fitting(given, wanted) == ""


def test_sizes_that_may_be_any() -> None:
    picture = (3, -1, -1)
    assert fitting((5, 8, 6, 3), picture) == "x.transpose(0, 3, 1, 2)"
    assert fitting((3, 8, 6), picture) == "x[None]"
    assert fitting((5, 8, 6), (1, -1, -1)) == "x[:, None]"
    assert fitting((48, 30), (1, -1, -1)) == fitting((64, 64), (1, -1, -1)) == "x[None, None]"
    assert fitting((5, 784), (1, -1, -1)) == "x.reshape(-1, 1, 28, 28)"


def test_inputs_are_called_what_they_are() -> None:
    assert [noun(shape) for shape in ((4,), (3, 8, 8), (1, 8, 8), (16, 8, 8), (2, 40), ())] == [
        "row",
        "image",
        "image",
        "input",
        "input",
        "input",
    ]
    assert counted(1, (4,)) == "1 row" and counted(12, (3, 8, 8)) == "12 images"


def test_objects_are_described_without_their_values() -> None:
    assert described(torch.full((8, 3), 4.25)) == "a Tensor (float32, shape (8, 3))"
    assert described(np.full(4, 4.25)) == "an ndarray (float64, shape (4,))"
    assert described((np.ones(2), 7)) == "a tuple of ndarray (float64, shape (2,)), int"
    assert described({"x": torch.ones(2), 3: "secret"}) == "a dict of 'x': Tensor (float32, shape (2,)), int: str"
    assert described([4.25] * 9) == "a list of float, float, float, float, float, float and 3 more"
    assert (described([]), described(None), described(4.25)) == ("an empty list", "None", "a float")
    assert "\x1b" not in described({"\x1b[2J" + "x" * 99: 1}) and len(described({"x" * 99: 1})) < 80
