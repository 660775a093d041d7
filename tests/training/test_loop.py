"""Training: it gains by labels and by the original, keeps the best, goes on where it was, and depends on its seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from olac.approximation.checkpoint import Checkpoint
from olac.approximation.common import output_error
from olac.approximation.criterion import Classification, Criterion, Embedding, Multilabel, Regression
from olac.approximation.steps import Steps
from olac.approximation.tensors import outputs_of, tensors
from olac.errors import ArtifactError, CalibrationError
from olac.ir.graph import Graph
from olac.ir.head import Affine as HeadAffine
from olac.ir.head import ArgMax, Elementwise, OutputHead, Reshape, Softmax
from olac.ir.ops import Polynomial
from olac.training.judge import Judge
from olac.training.labels import loss_for
from olac.training.loop import FALLEN, Epoch, Judgement, Trainer, TrainingOptions
from olac.training.measure import measured_ranges
from tests.approximation.nets import activations, from_histograms, images, residual

TRAIN, HELD = images(256, 1), images(200, 2)
NET = residual(1)
START = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 2))
TAUGHT = replace(TrainingOptions(), labels=0.0)


def outputs(graph: Graph, x: Tensor) -> Tensor:
    with torch.no_grad():
        return outputs_of(graph, tensors(graph), x)


# Classes that are not quite those of the network, so that labels say more than it does.
SHIFT = torch.tensor([1.0, 0.0, 0.0, 0.0, -1.0])
LABELS, HELD_LABELS = ((outputs(NET, x) + SHIFT).argmax(1) for x in (TRAIN, HELD))


class Loader:
    """Shuffled batches of 32, by torch's random numbers."""

    def __init__(self, labels: Tensor | None = LABELS) -> None:
        self.labels = labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for chosen in torch.randperm(len(TRAIN)).split(32):
            yield TRAIN[chosen], None if self.labels is None else self.labels[chosen]


def judge(labels: Tensor | None = HELD_LABELS) -> Judge:
    return Judge.of(NET, HELD, labels, Classification(), lambda raw: raw, TRAIN, 0)


def trainer(options: TrainingOptions | None = None, labelled: bool = True, **more: object) -> Trainer:
    ranges = measured_ranges(NET, START, TRAIN)
    found = judge(HELD_LABELS if labelled else None)
    return Trainer(NET, START, ranges, TRAIN, options or TrainingOptions(), functional.cross_entropy, found, **more)  # type: ignore[arg-type]


def accuracy(graph: Graph) -> float:
    return float((outputs(graph, HELD).argmax(1) == HELD_LABELS).float().mean())


def test_labels_teach_what_the_original_does_not_know() -> None:
    made, history = trainer().train(Loader(), 8, 6)
    assert accuracy(made) > accuracy(START) + 0.05
    assert accuracy(made) > accuracy(NET) + 0.05
    assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5, 6]
    assert all(epoch.images == len(TRAIN) for epoch in history)
    assert history[-1].loss < history[0].loss


def test_without_labels_the_original_teaches() -> None:
    made, _ = trainer(labelled=False).train(Loader(None), 8, 6)
    before, after = (output_error(outputs(g, HELD), outputs(NET, HELD)) for g in (START, made))
    assert after < before


def test_mixed_images_teach_as_well() -> None:
    mixed = replace(TrainingOptions(), mixed=1.0)
    made, _ = trainer(mixed).train(Loader(), 8, 6)
    assert accuracy(made) > accuracy(START) + 0.05
    assert made != trainer().train(Loader(), 8, 6)[0]
    by_original, _ = trainer(mixed, labelled=False).train(Loader(None), 8, 6)
    before, after = (output_error(outputs(g, HELD), outputs(NET, HELD)) for g in (START, by_original))
    assert after < before


def test_a_mixture_has_the_labels_of_both_images() -> None:
    """The loss by labels is that of both images, weighted by their parts."""
    seen: list[torch.Tensor] = []

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(labels)
        return functional.cross_entropy(outputs, labels)

    made = trainer(replace(TrainingOptions(), mixed=1.0))
    made._loss = loss
    made.train(Loader(), 8, 1)
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert len(pairs) == 8
    assert all(torch.equal(a.sort().values, b.sort().values) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_only_numbers_change() -> None:
    made, _ = trainer().train(Loader(), 8, 1)
    assert [(n.id, n.inputs, type(n.op)) for n in made.nodes] == [(n.id, n.inputs, type(n.op)) for n in START.nodes]
    assert made != START


def test_it_depends_on_its_seed_alone() -> None:
    first, _ = trainer(seed=1).train(Loader(), 8, 1)
    torch.manual_seed(123)
    again, _ = trainer(seed=1).train(Loader(), 8, 1)
    other, _ = trainer(seed=2).train(Loader(), 8, 1)
    assert first == again
    assert first != other


def test_the_best_epoch_is_kept() -> None:
    seen: list[Graph] = []
    worths = iter([0.5, 0.4, 0.9, 0.2])

    def judged(graph: Graph) -> Judgement:
        seen.append(graph)
        return Judgement(0.5, 0, next(worths))

    made = trainer()
    made._judge = judged
    best, _ = made.train(Loader(), 8, 3)
    assert best == seen[2]


@pytest.mark.parametrize(
    ("worth", "undone"), [(0.9 - 2 * FALLEN, True), (0.9 - FALLEN / 2, False), (float("nan"), True)]
)
def test_an_epoch_that_ruins_the_network_is_undone(monkeypatch: pytest.MonkeyPatch, worth: float, undone: bool) -> None:
    restarts: list[Mapping[str, Tensor]] = []
    real = Steps.restart

    def restart(self: Steps, thetas: Mapping[str, Tensor]) -> None:
        restarts.append(thetas)
        real(self, thetas)

    monkeypatch.setattr(Steps, "restart", restart)
    worths = iter([0.9, worth, 0.95])
    made = trainer()
    made._judge = lambda graph: Judgement(0.5, 0, next(worths))
    made.train(Loader(), 8, 2)
    assert len(restarts) == undone
    if undone:  # it goes on from the start, which was the best
        assert all(not value.any() for value in restarts[0].values())


@pytest.mark.parametrize("labels", [True, False])
def test_it_goes_on_where_it_was_stopped(tmp_path: Path, labels: bool) -> None:
    loader = Loader() if labels else Loader(None)
    whole, history = trainer(labelled=labels).train(loader, 8, 3)

    class Killed(Exception):
        pass

    def say(line: str) -> None:
        if "epoch 3 of 3" in line:
            raise Killed

    file = Checkpoint(tmp_path / "state")
    with pytest.raises(Killed):
        trainer(labelled=labels, say=say, checkpoint=file).train(loader, 8, 3)
    lines: list[str] = []
    resumed, again = trainer(labelled=labels, say=lines.append, checkpoint=file).train(loader, 8, 3)
    assert "goes on after epoch 2" in lines[0]
    assert resumed == whole
    assert [replace(epoch, seconds=0) for epoch in again] == [replace(epoch, seconds=0) for epoch in history]


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    file = Checkpoint(tmp_path / "state")
    trainer(checkpoint=file).train(Loader(), 8, 1)
    other = residual(2)
    start = from_histograms(other, TRAIN, dict.fromkeys(activations(other), 2))
    ranges = measured_ranges(other, start, TRAIN)
    with pytest.raises(ArtifactError, match="Delete it"):
        Trainer(other, start, ranges, TRAIN, TAUGHT, None, lambda graph: Judgement(1.0, 0, 1.0), checkpoint=file).train(
            Loader(), 8, 2
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate"),
        ({"labels": -1.0}, "labels"),
        ({"distillation": float("nan")}, "distillation"),
        ({"stressed": 1.0}, "stressed"),
        ({"averaged": 0.0}, "averaged"),
        ({"mixed": 1.5}, "mixed"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingOptions(**options)


def test_history_is_plain_data() -> None:
    _, history = trainer().train(Loader(), 8, 1)
    (epoch,) = history
    assert isinstance(epoch, Epoch)
    assert all(isinstance(value, int | float) for value in epoch.__dict__.values())


# The judge -----------------------------------------------------------------------------------------------------------


def test_the_judge_scores_by_labels_or_by_agreement() -> None:
    assert judge()(START).score == pytest.approx(accuracy(START))
    same = float((outputs(START, HELD).argmax(1) == outputs(NET, HELD).argmax(1)).float().mean())
    assert judge(None)(START).score == pytest.approx(same)
    assert judge(None)(NET).score == 1.0
    assert judge(None)(NET).diverged == 0


def test_the_judge_scores_what_users_see() -> None:
    """Of outputs whose sign the head changes, and of outputs with axes of length 1."""
    lowest = Judge.of(NET, HELD, outputs(NET, HELD).argmin(1), Classification(), lambda raw: -raw, TRAIN, 0)
    assert lowest(NET).score == 1.0
    spread = Judge.of(NET, HELD, HELD_LABELS, Classification(), lambda raw: raw[:, :, None, None], TRAIN, 0)
    assert spread(START).score == pytest.approx(accuracy(START))
    chosen = Judge.of(NET, HELD, HELD_LABELS, Classification(), lambda raw: raw.argmax(1), TRAIN, 0)
    assert chosen(START).score == pytest.approx(accuracy(START))


def test_images_that_diverge_count_against_a_network() -> None:
    found = judge(None)(START)
    copies = judge(None).copies
    assert len(copies) == 1024
    assert found.worth <= found.score
    assert (found.worth < found.score) == (found.diverged > 0)


# Losses --------------------------------------------------------------------------------------------------------------


RAW = torch.tensor([[2.0, -1.0], [0.5, 1.0], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("criterion", "head", "labels"),
    [
        (Classification(), OutputHead(), torch.tensor([0, 1, 1])),
        (Classification(), OutputHead((Softmax(0),)), torch.tensor([0, 1, 1])),
        (Classification(), OutputHead((ArgMax(0),)), torch.tensor([0, 1, 1], dtype=torch.uint8)),
        (Multilabel(), OutputHead((Elementwise("sigmoid"),)), torch.tensor([[1, 0], [0, 1], [1, 1]])),
        (Regression(), OutputHead(), RAW + 1),
        (Regression(), OutputHead((Reshape((2, 1)),)), (RAW + 1)[:, :, None]),
        (Classification(), OutputHead((HeadAffine((-0.5,), (1.0,)),)), torch.tensor([0, 1, 1])),
    ],
)
def test_the_usual_losses(criterion: Criterion, head: OutputHead, labels: Tensor) -> None:
    found = loss_for(None, criterion, head)(RAW, labels)
    if isinstance(criterion, Regression):
        wanted = functional.mse_loss(RAW, labels.reshape(RAW.shape))
    elif isinstance(criterion, Multilabel):
        wanted = functional.binary_cross_entropy_with_logits(RAW, labels.float())
    else:
        logits = 1 - 0.5 * RAW if head.names == ("affine",) else RAW
        wanted = functional.cross_entropy(logits, labels.long())
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("criterion", "head", "labels"),
    [
        (Classification(), OutputHead(), torch.tensor([[0.5], [0.1], [0.2]])),
        (Regression(), OutputHead((Elementwise("exp"),)), RAW),
        (Classification(), OutputHead(), torch.tensor([0, 1])[:, None, None]),
        (Embedding(), OutputHead(), torch.tensor([0, 1, 1])),
    ],
)
def test_labels_without_a_usual_loss_are_refused(criterion: Criterion, head: OutputHead, labels: Tensor) -> None:
    with pytest.raises(CalibrationError, match="give loss="):
        loss_for(None, criterion, head)(RAW, labels)


@pytest.mark.parametrize("labels", [[1, 2, 2], [-1, 0, 1]])
def test_classes_that_the_outputs_do_not_have_are_refused(labels: list[int]) -> None:
    with pytest.raises(CalibrationError, match="not among 2 classes"):
        loss_for(None, Classification(), OutputHead())(RAW, torch.tensor(labels))


def test_a_callers_loss_is_taken_and_must_give_one_number() -> None:
    found = loss_for(nn.L1Loss(), Classification(), OutputHead())(RAW, RAW + 2)
    assert found.item() == pytest.approx(2.0) and found.ndim == 0
    with pytest.raises(CalibrationError, match=r"shape \(3, 2\)"):
        loss_for(nn.L1Loss(reduction="none"), Classification(), OutputHead())(RAW, RAW)


def test_random_numbers_are_given_back_even_if_a_step_fails() -> None:
    def loss(raw: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("mine")

    torch.manual_seed(4)
    before = torch.get_rng_state()
    made = trainer()
    made._loss = loss
    with pytest.raises(RuntimeError, match="mine"):
        made.train(Loader(), 8, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loader_that_ends_for_good_is_refused() -> None:
    with pytest.raises(CalibrationError, match="empty when it is read again"):
        trainer().train(iter([(TRAIN, LABELS)]), 1, 2)


def test_weights_may_stay_as_they_are() -> None:
    made, _ = trainer(refit=False).train(Loader(), 8, 1)
    changed = {type(a.op) for a, b in zip(made.nodes, START.nodes, strict=True) if a.op != b.op}
    assert changed == {Polynomial}
