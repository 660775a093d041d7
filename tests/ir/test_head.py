"""Heads compute the same as torch, and heads that can't be computed are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from olac.ir.functions import CLIENT_FUNCTIONS, FUNCTIONS
from olac.ir.head import (
    MAX_STEPS,
    STEPS,
    Affine,
    ArgMax,
    Elementwise,
    LogSoftmax,
    Max,
    Normalize,
    OutputHead,
    Reshape,
    Slice,
    Softmax,
    Step,
)

SHAPE = (3, 4, 2)


@pytest.mark.parametrize(
    ("step", "function"),
    [
        (Elementwise("sigmoid"), torch.sigmoid),
        (Elementwise("hardtanh", (-0.5, 0.25)), lambda x: x.clamp(-0.5, 0.25)),
        (Elementwise("prelu", (0.1, 0.2, 0.3)), lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3], dtype=x.dtype))),
        (Elementwise("exp"), torch.exp),
        (Elementwise("expm1"), torch.expm1),
        (Affine((2.0,), (-1.0,)), lambda x: 2 * x - 1),
        (
            Affine((1.0, 2.0, 3.0), (0.0, 1.0, 0.0), (3, 1, 1)),
            lambda x: x * torch.tensor([1.0, 2, 3])[:, None, None] + torch.tensor([0.0, 1, 0])[:, None, None],
        ),
        (Softmax(0), lambda x: x.softmax(1)),
        (Softmax(2), lambda x: x.softmax(3)),
        (LogSoftmax(1), lambda x: x.log_softmax(2)),
        (ArgMax(0), lambda x: x.argmax(1)),
        (ArgMax(2, keepdim=True), lambda x: x.argmax(3, keepdim=True)),
        (Max(1), lambda x: x.amax(2)),
        (Max(0, keepdim=True), lambda x: x.amax(1, keepdim=True)),
        (Normalize(0), lambda x: F.normalize(x)),
        (Normalize(1, 1.0, 2.0), lambda x: F.normalize(x, 1.0, 2, 2.0)),
        (Slice(((0, 2, 1), (1, 4, 2), (0, 2, 1))), lambda x: x[:, :2, 1:4:2]),
        (Reshape((24,)), lambda x: x.flatten(1)),
    ],
    ids=lambda one: str(one) if isinstance(one, Step) else "torch",
)
def test_steps_are_torchs(step: Step, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = 3 * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = function(x).numpy()
    ours = step.apply(x.numpy())
    assert ours.dtype == expected.dtype
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
    assert step.infer(SHAPE) == expected.shape[1:]
    assert STEPS[step.kind] is type(step)


def test_large_values_do_not_overflow() -> None:
    x = np.array([[1000.0, -1000.0, 0.0]])
    np.testing.assert_array_equal(Softmax(0).apply(x), [[1, 0, 0]])
    np.testing.assert_array_equal(LogSoftmax(0).apply(x), [[0, -2000, -1000]])
    np.testing.assert_array_equal(Elementwise("sigmoid").apply(x), [[1, 0, 0.5]])


def test_a_chain() -> None:
    head = OutputHead((Affine((0.5,), (0.0,)), Softmax(0), Slice(((1, 2, 1),)), Reshape(())))
    x = np.random.default_rng(0).normal(size=(6, 3))
    expected = torch.tensor(x / 2).softmax(1)[:, 1].numpy()
    np.testing.assert_allclose(head.apply(x), expected, rtol=1e-12)
    assert head.output_shape((3,)) == ()
    assert head.names == ("affine", "softmax", "slice", "reshape")
    assert str(head) == "times 0.5, softmax along axis 0, [1:2:1], shape ()"
    assert head and not head.decides and head.scores == head


def test_nothing() -> None:
    x = np.ones((2, 3))
    assert not OutputHead() and OutputHead().apply(x) is x
    assert OutputHead().output_shape((3,)) == (3,) and str(OutputHead()) == "nothing"


def test_how_far_scores_of_other_classes_lie_below_the_largest() -> None:
    head = OutputHead((Affine((2.0,), (0.0,)), ArgMax(0), Reshape(())))
    scores = head.scores.apply(np.array([[1.0, 2.0, 3.0], [3.0, 2.5, 1.0]]))
    assert head.decides and head.scores.names == ("affine",)
    assert head.shortfall(scores, np.array([2, 0])) == 0
    assert head.shortfall(scores, np.array([2, 1])) == 1.0
    assert head.shortfall(scores, np.array([0.0, 0.0])) == 4.0
    for no_class in ([3, 0], [-1, 0], [1.5, 0]):
        assert head.shortfall(scores, np.array(no_class)) == np.inf


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) | set(CLIENT_FUNCTIONS)))
def test_numbers_of_parameters_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=r"no parameters|does not take \d"):
        for count in range(6):
            if count != 1 or name != "prelu":
                Elementwise(name, (1.0,) * count)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Elementwise("no such function"),
        lambda: Elementwise("hardtanh", (0.0, float("inf"))),
        lambda: Elementwise("leaky_relu", (float("nan"),)),
        lambda: Affine((1.0, 2.0), (1.0,), (2,)),
        lambda: Affine((1.0, 2.0), (1.0, 2.0)),
        lambda: Affine((), (), (0,)),
        lambda: Affine((float("inf"),), (0.0,)),
        lambda: Affine((1.0,), (float("nan"),)),
        lambda: Normalize(0, 0.5),
        lambda: Normalize(0, float("nan")),
        lambda: Normalize(0, 2.0, -1.0),
    ],
)
def test_impossible_steps(make: Callable[[], Step]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


@pytest.mark.parametrize(
    "step",
    [
        Softmax(1),
        Softmax(-1),
        LogSoftmax(1),
        ArgMax(5),
        Max(-2),
        Normalize(1),
        Slice(((0, 2, 1), (0, 2, 1))),
        Slice(((2, 2, 1),)),
        Slice(((0, 2, -1),)),
        Slice(((0, 2, 0),)),
        Reshape((2,)),
        Reshape((-3, -1)),
        Reshape((0,)),
        Reshape((3, *(1,) * 16)),
        Affine((1.0, 2.0), (0.0, 0.0), (2,)),
        Affine((1.0,) * 3, (0.0,) * 3, (3, 1)),
        Elementwise("prelu", (0.1, 0.2)),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit(step: Step) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        OutputHead((step,)).output_shape((3,))


def test_the_number_of_steps_is_bounded() -> None:
    OutputHead((Softmax(0),) * MAX_STEPS).output_shape((3,))
    with pytest.raises(ValueError, match="1001 steps"):
        OutputHead((Softmax(0),) * (MAX_STEPS + 1)).output_shape((3,))
