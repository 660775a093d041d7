"""What agreement means, task by task, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from olac.approximation import ImageFitter
from olac.approximation.common import image_errors, output_error
from olac.approximation.confidence import images_for, interval
from olac.approximation.criterion import (
    Binary,
    Classification,
    Criterion,
    Embedding,
    Map,
    Multilabel,
    Own,
    Regression,
    criterion_for,
    explained,
    finished,
)
from olac.ir.head import ArgMax, OutputHead
from olac.ir.ops import Array

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(200, 4))


def array(*rows: object) -> Array:
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize(
    ("criterion", "ours", "theirs", "agreement"),
    [
        (Classification(), array([1, 2], [5, 4], [0, 1]), array([0, 9], [3, 4], [0, 1]), 2 / 3),
        (Classification(), array(1, 2, 3), array(1, 2, 4), 2 / 3),
        (Binary(), array([-0.1], [0.1], [3.0]), array([-9.0], [9.0], [-1.0]), 2 / 3),
        (Binary(0.5, 0.1), array(0.36, 0.45, 0.52, 0.9), array(0.001, 0.42, 0.48, 0.95), 0.5),
        (Multilabel(), array([1, -1], [1, 1]), array([2, -2], [3, -1]), 0.75),
        (Regression(), array([0.05, 1], [1, 0]), array([0, 1], [1, 0.2]), 0.5),
        (Embedding(), array([2, 0], [0, 1]), array([1, 0], [0.2, 1]), 0.5),
        (Map("classes"), array([[[1, 5]], [[2, 4]]]), array([[[0, 1]], [[1, 2]]]), 0.5),
        (Map("decisions", 0.5), array([[[0.1, 0.9]]]), array([[[0.4, 0.4]]]), 0.5),
        (Map("numbers"), array([[[0, 1.0, 2, 3]]]), array([[[0, 1.01, 2, 4]]]), 0.75),
        (Own(lambda ours, theirs: np.exp(-np.abs(ours - theirs)[:, 0])), array([0], [1]), array([0], [1]), 1.0),
    ],
)
def test_agreement_by_hand(criterion: Criterion, ours: Array, theirs: Array, agreement: float) -> None:
    assert criterion.agreement(ours, theirs) == pytest.approx(agreement)
    assert criterion.agreement(theirs, theirs) == 1.0
    assert criterion.meaning


@pytest.mark.parametrize(
    "criterion", [Classification(), Binary(), Multilabel(), Regression(), Embedding(), Map("numbers")]
)
def test_outputs_that_are_not_finite_agree_with_nothing(criterion: Criterion) -> None:
    theirs = RANDOM.normal(size=(4, 2, 1, 3))
    ours = theirs.copy()
    ours[1, 0, 0, 0], ours[2, 1, 0, 1] = np.nan, np.inf
    assert criterion.agreement(ours, theirs) == 0.5
    assert criterion.agreement(np.full_like(theirs, np.nan), theirs) == 0.0


@pytest.mark.parametrize(
    ("outputs", "last", "image_shape", "expected"),
    [
        (LOGITS, None, (20,), Classification()),
        (LOGITS, "softmax", (20,), Classification()),
        (LOGITS, "log_softmax", (20,), Classification()),
        (LOGITS[:, 0], "argmax", (20,), Classification()),
        (LOGITS[:, :1], None, (20,), Regression()),
        (LOGITS[:, 0], None, (20,), Regression()),
        (LOGITS[:, :1], "sigmoid", (20,), Binary(0.5, 0.1)),
        (LOGITS[:, 0], "sigmoid", (20,), Binary(0.5, 0.1)),
        (LOGITS[:, 0], "softmax", (20,), Binary(0.5, 0.1)),
        (LOGITS[:, :1], "log_softmax", (20,), Binary(float(np.log(0.5)), None)),
        (LOGITS[:, 0], "max", (20,), Regression()),
        (LOGITS, "normalize", (20,), Embedding()),
        (LOGITS, "sigmoid", (20,), Multilabel(0.5, 0.1)),
        (LOGITS + array(100, 0, 0, 0), None, (20,), Regression()),  # the first is always the largest: no class
        (LOGITS + array(100, 0, 0, 0), "softmax", (20,), Classification()),
        (LOGITS.reshape(50, 4, 2, 2), None, (3, 2, 2), Map("classes")),
        (LOGITS.reshape(50, 4, 2, 2), None, (4, 2, 2), Map("numbers")),
        (LOGITS.reshape(200, 1, 2, 2), None, (3, 2, 2), Map("numbers")),
        (LOGITS.reshape(200, 1, 2, 2), "sigmoid", (3, 2, 2), Map("decisions", 0.5)),
    ],
)
def test_auto_tells_the_task(outputs: Array, last: str | None, image_shape: tuple[int, ...], expected: object) -> None:
    assert criterion_for("auto", outputs, last, image_shape) == expected


def test_tasks_that_are_given() -> None:
    assert criterion_for("binary", LOGITS[:, :1], None) == Binary(0.0, None)
    assert criterion_for("binary", LOGITS[:, :1], "sigmoid") == Binary(0.5, 0.1)
    assert criterion_for("embedding", LOGITS, None) == Embedding()
    assert criterion_for(Regression(0.3), LOGITS, "sigmoid") == Regression(0.3)

    def nearness(ours: Array, theirs: Array) -> Array:
        return np.ones(len(ours))

    assert criterion_for(nearness, LOGITS, None).meaning == "the score of nearness"
    with pytest.raises(ValueError, match="'ranking' is not one of auto, classification"):
        criterion_for("ranking", LOGITS, None)
    with pytest.raises(ValueError, match="neither"):
        criterion_for(3, LOGITS, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='task="binary"'):
        criterion_for("classification", LOGITS[:, :1], None)
    assert criterion_for("classification", array(0, 1, 2), "argmax") == Classification()


@pytest.mark.parametrize("scores", [np.ones((2, 3)), np.array([0.5, 1.5]), np.array([np.nan, 1.0]), 1.0])
def test_scores_of_the_caller_are_checked(scores: Array) -> None:
    with pytest.raises(ValueError, match="must give 2 scores of 0 to 1"):
        Own(lambda ours, theirs: scores).agreement(LOGITS[:2], LOGITS[:2])


def test_each_output_counts_by_its_own_size() -> None:
    clean = torch.tensor([[0.0, 0.0], [2.0, 2000.0]])
    off = clean + torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert output_error(off, clean) < 1e-5
    assert output_error(off, clean, "each") == pytest.approx(0.5, rel=1e-3)
    assert explained(off.double().numpy(), clean.double().numpy()) == pytest.approx(0.5, rel=1e-3)


def test_images_that_diverge_do_not_agree_whatever_a_client_makes_of_them() -> None:
    raw = np.array([[1.0, 2.0], [np.nan, 1.0], [np.inf, 0.0], [3.0, 1.0]])
    theirs = np.array([1.0, 0.0, 0.0, 0.0])
    classes = OutputHead((ArgMax(0),)).apply
    assert Classification().agreement(classes(raw), theirs) == 1.0  # a class is always finite
    assert Classification().agreement(finished(classes, raw), theirs) == 0.5
    fitter = ImageFitter(raw, raw, finish=classes)
    assert fitter._agreement(torch.tensor(raw), torch.tensor([[1.0, 2.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])) == 0.5


def test_lengths_do_not_count_for_directions() -> None:
    clean = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert output_error(3 * clean, clean, "direction") == pytest.approx(0.0, abs=1e-12)
    turned = torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    assert image_errors(turned, clean, "direction").tolist() == pytest.approx([4.0, 0.0])


def test_explained_variance() -> None:
    theirs = RANDOM.normal(size=(1000, 2)) * [1, 1000]
    assert explained(theirs, theirs) == 1.0
    assert explained(np.broadcast_to(theirs.mean(0), theirs.shape), theirs) == pytest.approx(0.0, abs=1e-9)
    assert explained(np.full_like(theirs, np.nan), theirs) == -np.inf
    assert explained(theirs.mean(0) + 0 * theirs, theirs, "together") == pytest.approx(0.0, abs=1e-9)
    off = theirs + np.array([10, 0])
    assert explained(off, theirs) < -40 and explained(off, theirs, "together") > 0.999


def test_intervals_hold_the_true_share() -> None:
    """Of many samples, about 95 % have an interval that holds the share that they were drawn with."""
    random = np.random.default_rng(1)
    for share, count in ((0.98, 64), (0.9, 20), (0.5, 200), (0.999, 1000)):
        seen = random.binomial(count, share, 4000) / count
        held = np.mean([low <= share <= high for low, high in (interval(s, count) for s in seen)])
        assert 0.92 < held <= 1.0
    assert interval(1.0, 0) == (0.0, 1.0)


def test_the_number_of_images_is_the_least_that_will_do() -> None:
    for share, goal in ((1.0, 0.98), (0.99, 0.98), (0.95, 0.9)):
        count = images_for(share, goal)
        assert count is not None
        assert interval(share, count)[0] >= goal > interval(share, count - 2)[0]
    assert images_for(0.97, 0.98) is None and images_for(1.0, 1.0) is None
