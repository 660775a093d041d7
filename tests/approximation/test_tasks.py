"""Nets of every task with the default fit, judged on inputs that nobody has seen, as their users would judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

import olac
from olac.approximation.common import diverged
from olac.approximation.criterion import Criterion, Regression, Spread, Task
from olac.program.program import ApproximatedModel
from olac.system.arrays import Array
from tests.approximation.task_nets import TASKS, in_units, trained

FRESH = 600
SIZES = torch.tensor([1.0, 30.0, 1000.0])


def other_class(ours: Array, clean: Array) -> float:
    """The share of inputs of another class."""
    return float((ours.argmax(1) != clean.argmax(1)).mean())


def other_labels(ours: Array, clean: Array) -> float:
    """The share of labels that are different."""
    return float(((ours > 0.5) != (clean > 0.5)).mean())


def worst_output(ours: Array, clean: Array) -> float:
    """The mean squared error of the worst output, in units of its own variance."""
    return float((np.square(ours - clean).mean(0) / clean.var(0)).max())


def turned(ours: Array, clean: Array) -> float:
    """One less the mean cosine."""
    return float(1 - cosines(ours, clean).mean())


def cosines(ours: Array, clean: Array) -> Array:
    return np.asarray((ours * clean).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(clean, axis=1))


def relative(ours: Array, clean: Array) -> float:
    """The mean squared error of all outputs, in units of their variance."""
    return float(np.square(ours - clean).mean() / clean.var())


def outputs(approximated: ApproximatedModel, net: torch.nn.Module, inputs: torch.Tensor) -> tuple[Array, Array]:
    """Of the approximated and of the clean net, in double precision."""
    with torch.no_grad():
        clean = net(inputs).double().numpy()
    return np.asarray(approximated.simulate(inputs.numpy()), dtype=np.float64), clean


@pytest.mark.parametrize(
    ("name", "task", "degree", "error", "bound", "spread"),
    [
        ("convolutional", "classification", 3, other_class, 0.02, "together"),
        ("depthwise", "classification", 3, other_class, 0.03, "together"),
        ("keywords", "classification", 3, other_class, 0.12, "together"),
        ("regression", "regression", 7, worst_output, 0.02, "each"),
        ("embedding", "embedding", 7, turned, 0.01, "direction"),
        ("autoencoder", "map", 3, relative, 0.015, "together"),
        ("smooth", "multilabel", 7, other_labels, 0.06, "each"),
    ],
)
def test_the_default_fit_holds_on_unseen_inputs(
    name: str, task: Task, degree: int, error: Callable[[Array, Array], float], bound: float, spread: Spread
) -> None:
    net, data = trained(name), TASKS[name].data
    approximated = olac.approximate(net, [data(256, 1)[0]], degree=degree, task=task)
    ours, clean = outputs(approximated, net, data(FRESH, 2)[0])
    found = error(ours, clean)
    print(f"{name} at degree {degree}: {found:.4f}")
    assert found < bound
    assert not diverged(torch.from_numpy(ours), torch.from_numpy(clean), spread).any()


class Together(Regression):
    """A wrong criterion for outputs of different sizes: small ones do not count."""

    spread = "together"


@pytest.mark.parametrize(
    ("task", "holds"), [("regression", True), (Together(), False), ("classification", False)], ids=str
)
def test_small_outputs_count_as_much_as_large_ones(task: Task | Criterion, holds: bool) -> None:
    net, data = in_units(trained("regression"), SIZES), TASKS["regression"].data
    approximated = olac.approximate(net, [data(1024, 1)[0]], degree=3, task=task)
    found = worst_output(*outputs(approximated, net, data(FRESH, 2)[0]))
    print(f"{found:.4f}")
    assert (found < 0.04) == holds


def test_units_of_outputs_do_not_matter() -> None:
    data, errors = TASKS["regression"].data, []
    for sizes in (torch.ones(3), SIZES):
        net = in_units(trained("regression"), sizes)
        approximated = olac.approximate(net, [data(512, 1)[0]], degree=3, task="regression")
        ours, clean = outputs(approximated, net, data(FRESH, 2)[0])
        errors.append(np.square(ours - clean).mean(0) / clean.var(0))
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


@pytest.mark.parametrize(("task", "holds"), [("embedding", True), ("classification", False)])
def test_a_plan_for_directions_keeps_directions(task: Literal["embedding", "classification"], holds: bool) -> None:
    """A plan that keeps the largest output on nearly all inputs turns many directions by more than is asked for."""
    net, data = trained("embedding"), TASKS["embedding"].data
    approximated = olac.approximate(net, [data(256, 1)[0]], min_agreement=0.7, task=task)
    share = float((cosines(*outputs(approximated, net, data(FRESH, 2)[0])) >= 0.99).mean())
    print(f"{share:.3f}")
    assert (share >= 0.7) == holds
