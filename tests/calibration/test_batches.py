"""Wrong calibration data: one error that says what was given and what to write instead, which then works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import olac
from olac.calibration.batches import first_batch
from olac.errors import CalibrationError, UnsupportedModelError

X, Y = torch.rand(12, 1, 6, 6), torch.randint(0, 3, (12,))
ROWS = torch.rand(12, 5)


class Dicts(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"scan": X[place], "label": int(Y[place])}


class Table:
    """As of pandas: a loop over it gives the names of columns."""

    def __iter__(self) -> Iterator[str]:
        return iter(["age", "height"])

    def to_numpy(self, dtype: str) -> Any:
        return ROWS.numpy().astype(dtype)


def pairs() -> list[tuple[torch.Tensor, int]]:
    return [(x, int(y)) for x, y in zip(X, Y, strict=True)]


def said(given: Any) -> str:
    with pytest.raises(CalibrationError) as caught:
        first_batch(given)
    return str(caught.value)


def instead(given: Any, **names: Any) -> torch.Tensor:
    """The first batch of what the message says to give."""
    found = re.search(r"[Gg]ive (.+?)(, where .*|, without .*|, or x alone)?$", said(given))
    assert found
    return first_batch(eval(found[1], {"torch": torch, **names}))[0]


@pytest.mark.parametrize("dataset", [TensorDataset(X, Y), pairs()], ids=["dataset", "pairs"])
def test_a_dataset_in_place_of_a_loader(dataset: Any) -> None:
    assert torch.equal(instead(dataset, dataset=dataset), X)


def test_labels_first() -> None:
    for labels in (Y, Y.float()):
        loader = DataLoader(TensorDataset(labels, X), batch_size=4)
        assert "float32, shape (4, 1, 6, 6)" in said(loader) and "labels" in said(loader)
        assert torch.equal(instead(loader, loader=loader), X[:4])


def test_an_unknown_key_of_a_dict() -> None:
    loader = DataLoader(Dicts(), batch_size=4)
    assert "'scan': Tensor (float32, shape (4, 1, 6, 6)), 'label': Tensor (int64, shape (4,))" in said(loader)
    assert torch.equal(instead(loader, loader=loader), X[:4])
    one_by_one = [Dicts()[i] for i in range(12)]
    assert torch.equal(instead(one_by_one, dataset=one_by_one), X)
    assert torch.equal(instead({"scan": X}, data={"scan": X}), X)
    assert torch.equal(instead({"images": X}, batch={"images": X}), X)
    assert "after its embedding" in said([{"input_ids": Y[None], "attention_mask": torch.ones(1, 12)}])
    assert torch.equal(first_batch([{"pixel_values": X, "labels": Y}])[0], X)


def test_a_pair_a_table_and_rows_of_numbers() -> None:
    assert torch.equal(instead((X, Y), x=X, y=Y), X)
    assert torch.equal(instead(Table(), table=Table()), ROWS)
    assert "[torch.tensor(rows)]" in said(ROWS.tolist())
    assert len(first_batch([(X, X)])[0]) == 12  # two batches of inputs are no inputs with their labels
    assert len(list(first_batch((X, X))[1])) == 2


def test_what_is_no_loader() -> None:
    def batches() -> Iterator[torch.Tensor]:
        yield X

    used = batches()
    list(used)
    assert "loader()" in said(batches)
    assert "has nothing left" in said(used)
    assert "empty (an empty list)" in said([])
    assert "The model comes first" in said(nn.Linear(2, 2))
    assert "Read the file first" in said("secret.npy") and "secret" not in said("secret.npy")
    assert "is None" in said(None)
    assert "an int" in said(3)


def test_batches_that_hold_no_inputs() -> None:
    assert "batch 0 has type torch.int64, shape (12, 5)" in said([(9 * ROWS).long()])
    assert "without a batch axis" in said(ROWS[0])
    assert "is an empty" not in said([()]) and "batch 0 is empty" in said([()])
    with pytest.raises(CalibrationError, match=r"batch 1 has inputs of shape \(4,\), and the first has \(5,\)"):
        list(first_batch([ROWS, ROWS[:, :4]])[1])
    bad = ROWS.clone()
    bad[3, 2] = float("nan")
    expression = said(bad).rpartition(": ")[2]
    assert len(eval(expression, {"x": bad, "torch": torch})) == 11
    assert len(first_batch(np.asarray(ROWS))[0]) == 12


NETWORKS: list[tuple[nn.Module, torch.Tensor, str]] = [
    (nn.Conv2d(3, 2, 3), torch.rand(5, 8, 6, 3), "0 (Conv2d), takes (n, 3, height, width)"),
    (nn.Conv2d(1, 2, 3), torch.rand(5, 8, 6), "(n, 1, height, width)"),
    (nn.Conv2d(3, 2, 3), torch.rand(3, 8, 6), "x[None] for one input"),
    (nn.Conv1d(2, 2, 3), torch.rand(5, 20, 2), "(n, 2, length)"),
    (nn.Linear(12, 2), torch.rand(5, 3, 4, 1), "(n, 12)"),
    (nn.Linear(7, 2), torch.rand(5, 8), "if the last column holds labels"),
]


@pytest.mark.parametrize(
    ("layer", "given", "shown"),
    NETWORKS,
    ids=["nhwc", "no channels", "one image", "channels last", "not flat", "labels"],
)
def test_the_first_layer_says_what_it_takes(layer: nn.Module, given: torch.Tensor, shown: str) -> None:
    model = nn.Sequential(layer, nn.ReLU()).eval()
    with pytest.raises((CalibrationError, UnsupportedModelError)) as caught:  # torch runs some of them, as one input
        olac.approximate(model, given)
    text = str(caught.value)
    assert shown in text
    expression = "x" + text.partition("): x")[2].partition(" for ")[0]
    model(eval(expression, {"x": given}))  # which failed before


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (nn.Linear, r"Make one: Linear\("),
        (nn.Linear(2, 2).state_dict(), "load_state_dict"),
        ("model.pt", "Load the model"),
        (ROWS, "The model comes first"),
        (lambda x: x, "forward of a module"),
        (None, "not None"),
    ],
    ids=["class", "weights", "path", "array", "function", "nothing"],
)
def test_what_is_no_model(given: Any, advice: str) -> None:
    with pytest.raises(TypeError, match=advice):
        olac.approximate(given, ROWS)


def test_an_estimator_is_no_model() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    estimator = linear.LinearRegression().fit(ROWS.numpy(), ROWS[:, 0].numpy())
    with pytest.raises(TypeError, match=r"a LinearRegression. Give olac\.from_sklearn\(estimator\)"):
        olac.approximate(estimator, ROWS)
