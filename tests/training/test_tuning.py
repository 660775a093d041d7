"""`olac.finetune`, as a user calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import olac
from olac.errors import CalibrationError
from olac.ir.ops import Polynomial, Square
from olac.training.loop import TrainingOptions
from olac.tuning import FineTuned
from tests.approximation.nets import Residual, images
from tests.e2e.test_networks import batch_norm

X, HELD = images(256, 1), images(96, 2)


def small() -> nn.Module:
    """With outputs of mean 0 and deviation 1, so that it is a classifier."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        batch_norm(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 4),
    ).eval()
    last = model[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        outputs = model(X)
        last.weight /= outputs.std(0)[:, None]
        last.bias.sub_(outputs.mean(0)).div_(outputs.std(0))
    return model


MODEL = small()
with torch.no_grad():
    LABELS, HELD_LABELS = ((MODEL(x) + torch.tensor([0.5, 0.0, 0.0, -0.5])).argmax(1) for x in (X, HELD))


def loader(labels: Tensor | None = LABELS) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X) if labels is None else TensorDataset(X, labels), 32, shuffle=True)


def tuned(**more: Any) -> FineTuned:
    choices: dict[str, Any] = {"epochs": 2, "effort": "fast"}
    return olac.finetune(MODEL, loader(), **(choices | more))


@pytest.fixture(scope="module")
def made() -> FineTuned:
    return tuned(val_loader=[(HELD, HELD_LABELS)])


def test_defaults_make_and_train_squares() -> None:
    found = olac.finetune(MODEL, loader())
    assert [epoch.number for epoch in found.history] == list(range(1, 11))
    assert [fit.depth for fit in found.approximated.report.fits] == [1, 1]
    with torch.no_grad():
        right = [float((model(HELD).argmax(1) == HELD_LABELS).float().mean()) for model in (MODEL, found.module)]
    assert right[1] > right[0]


def test_every_activation_is_a_square_of_one_level(made: FineTuned) -> None:
    nodes = made.approximated.graph.nodes
    assert sum(isinstance(node.op, Square) for node in nodes) == 2
    assert not any(isinstance(node.op, Polynomial) for node in nodes)
    assert [fit.degree for fit in made.approximated.report.fits] == [2, 2]
    assert [fit.depth for fit in made.approximated.report.fits] == [1, 1]


def test_the_module_and_simulate_are_the_same(made: FineTuned) -> None:
    with torch.no_grad():
        theirs = made.module(HELD).double().numpy()
    np.testing.assert_allclose(made.approximated.simulate(HELD), theirs, atol=1e-5 * np.abs(theirs).max())


def test_it_has_learnt_the_labels(made: FineTuned) -> None:
    with torch.no_grad():
        right = [float((model(HELD).argmax(1) == HELD_LABELS).float().mean()) for model in (MODEL, made.module)]
    assert right[1] > right[0]
    assert len(made.history) == 2 and made.history[-1].score == pytest.approx(right[1], abs=0.05)


def test_the_report_is_against_the_original_model_on_validation_images(made: FineTuned) -> None:
    check = made.approximated.report.check
    assert check is not None and check.task == "classification"
    judged = torch.from_numpy(made.calibration.judged).float()
    assert all(any(torch.equal(one, x) for x in HELD) for one in judged)
    assert any("chosen" in note for note in made.approximated.report.notes)
    with torch.no_grad():
        same = float((MODEL(judged).argmax(1) == made.module(judged).argmax(1)).float().mean())
    assert check.agreement == pytest.approx(same)
    assert check.agreement < 1


def test_without_validation_images_a_note_says_that_training_saw_them() -> None:
    assert any("training saw" in note for note in tuned(epochs=1).approximated.report.notes)


def test_reports_of_fits_are_of_the_trained_polynomials() -> None:
    fits = [tuned(epochs=epochs).approximated.report.fits for epochs in (0, 2)]
    assert [fit.node for fit in fits[0]] == [fit.node for fit in fits[1]]
    assert all(a.rmse != b.rmse for a, b in zip(*fits, strict=True))


def test_the_seed_decides_however_torch_was_seeded() -> None:
    made = []
    for number in (1, 2):
        torch.manual_seed(number)
        made.append(tuned(epochs=1).approximated.graph)
    assert made[0] == made[1]
    assert tuned(epochs=1, seed=5).approximated.graph != made[0]


def test_a_max_pooling_keeps_its_compositions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    found = olac.finetune(model, [X], epochs=1, effort="fast")
    with torch.no_grad():
        theirs = found.module(HELD).double().numpy()
    np.testing.assert_allclose(found.approximated.simulate(HELD), theirs, atol=1e-3 * np.abs(theirs).max())


def test_a_list_of_models_is_trained_as_one() -> None:
    found = olac.finetune([MODEL, small()], loader(), epochs=1, effort="fast")
    assert found.approximated.output_shape == (4,)
    assert len(found.history) == 1


def test_integer_labels_make_a_classifier_of_small_outputs() -> None:
    torch.manual_seed(3)
    last = nn.Linear(96, 4)
    with torch.no_grad():
        last.weight *= 1e-3
    model = nn.Sequential(*list(MODEL.children())[:-1], last)
    found = olac.finetune(model, loader(), epochs=1, effort="fast")
    check = found.approximated.report.check
    assert check is not None and check.task == "classification"


def test_a_state_dict_fits_the_module_of_no_epoch(made: FineTuned) -> None:
    other = tuned(epochs=0).module
    other.load_state_dict(made.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(HELD), made.module(HELD))


def test_the_model_is_left_alone(made: FineTuned) -> None:
    torch.testing.assert_close(MODEL.state_dict(), small().state_dict())
    assert not MODEL.training and not made.module.training


def test_it_compiles_and_so_does_its_module(made: FineTuned) -> None:
    program = made.compile(threads=1)
    np.testing.assert_allclose(program.simulate(HELD), made.approximated.simulate(HELD), rtol=0, atol=1e-6)
    again = olac.compile(made.module, loader(), threads=1)
    np.testing.assert_allclose(again.simulate(HELD), program.simulate(HELD), rtol=0, atol=1e-3)
    assert again.parameters.depth == program.parameters.depth


def test_its_module_can_be_trained_on(made: FineTuned) -> None:
    module = olac.finetune(MODEL, loader(), epochs=0, effort="fast").module.train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(module(X), LABELS) + 0.1 * olac.RangePenalty(module)()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_no_epoch_gives_what_approximate_gives() -> None:
    mine = olac.finetune(MODEL, [X], epochs=0, effort="fast").approximated
    theirs = olac.approximate(MODEL, [X], degree=2, effort="fast")
    np.testing.assert_allclose(mine.simulate(HELD), theirs.simulate(HELD), atol=1e-5)


def test_images_alone_are_enough_and_may_come_in_dicts() -> None:
    plain = olac.finetune(MODEL, loader(None), epochs=1, effort="fast")
    dicts = [{"images": X[:128], "labels": LABELS[:128]}, {"images": X[128:], "labels": LABELS[128:]}]
    named = olac.finetune(MODEL, dicts, epochs=1, effort="fast")
    assert plain.history[0].images == named.history[0].images == len(X)


def test_other_degrees_are_trained_as_well() -> None:
    cubics = tuned(target="options", degree=3, epochs=1)
    assert [fit.degree for fit in cubics.approximated.report.fits] == [3, 3]
    mixed = tuned(target="options", plan=(3, 2), epochs=1)
    assert [fit.depth for fit in mixed.approximated.report.fits] == [2, 1]


def test_a_residual_network_keeps_a_level_an_activation() -> None:
    torch.manual_seed(0)
    net = Residual(2).eval()
    found = olac.finetune(net, [(X, None)], epochs=1, effort="fast")
    assert sum(isinstance(node.op, Square) for node in found.approximated.graph.nodes) == 5
    with torch.no_grad():
        theirs = found.module(HELD[:20]).double().numpy()
    np.testing.assert_allclose(found.approximated.simulate(HELD[:20]), theirs, atol=1e-4 * np.abs(theirs).max())


def test_a_model_without_activations_has_nothing_to_train() -> None:
    torch.manual_seed(0)
    found = olac.finetune(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), loader(), epochs=2)
    assert found.history == ()
    assert any("nothing to train" in note for note in found.approximated.report.notes)


def test_its_state_is_kept_and_the_end_is_not_trained_again(tmp_path: Path) -> None:
    data = [(X[:128], LABELS[:128]), (X[128:], LABELS[128:])]
    first = olac.finetune(MODEL, data, epochs=2, effort="fast", checkpoint=tmp_path)
    lines: list[str] = []
    again = olac.finetune(MODEL, data, epochs=2, effort="fast", checkpoint=tmp_path, progress=lines.append)
    assert any("goes on after epoch 2" in line for line in lines)
    assert again.history == first.history
    assert again.approximated.graph == first.approximated.graph
    lines.clear()
    others = [(x, 3 - y) for x, y in data]
    olac.finetune(MODEL, others, epochs=1, effort="fast", checkpoint=tmp_path, progress=lines.append)
    assert not any("goes on after" in line for line in lines), "other labels are another training"


# What it refuses -----------------------------------------------------------------------------------------------------


def test_a_loader_that_is_read_only_once_is_refused() -> None:
    def once() -> Iterator[Tensor]:
        yield X

    with pytest.raises(CalibrationError, match="train_loader can be read only once"):
        olac.finetune(MODEL, once(), epochs=1)
    with pytest.raises(CalibrationError, match="val_loader can be read only once"):
        olac.finetune(MODEL, loader(), once(), epochs=1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"epochs": -1}, "epochs"),
        ({"target": "cubes"}, "target"),
        ({"max_depth": 10}, 'target="options" with max_depth'),
        ({"degree": 3}, 'target="options" with degree'),
        ({"max_bootstraps": 2}, 'target="options" with max_bootstraps'),
        ({"epochs": 1.5}, "epochs"),
        ({"method": "minimax"}, "not trained"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuned(**more)


def test_labels_that_fit_no_loss_are_named() -> None:
    with pytest.raises(CalibrationError, match=r"shape \(\d+, 7\)"):
        olac.finetune(MODEL, loader(torch.zeros(len(X), 7)), epochs=1, effort="fast")
    with pytest.raises(CalibrationError, match="256 inputs and labels of shape"):
        olac.finetune(MODEL, [(X, LABELS[:-1])], epochs=1, effort="fast")
    with pytest.raises(CalibrationError, match="not among 4 classes"):
        olac.finetune(MODEL, [(X, LABELS + 1)], epochs=1, effort="fast")
    with pytest.raises(CalibrationError, match="batch 0 of train_loader has labels"):
        olac.finetune(MODEL, [(X, "cats")], epochs=1, effort="fast")


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ([], "val_loader is empty"),
        ([(HELD, HELD_LABELS), HELD], "some batches of val_loader have labels"),
        ([HELD[:, :, :4]], "held out have shape"),
        ([HELD, HELD[:, :, :4]], "batch 1 of val_loader has inputs of shape"),
    ],
)
def test_validation_images_that_can_not_be_used_are_refused(validation: list[Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        tuned(val_loader=validation, epochs=1)


def test_a_device_that_is_not_there_is_said_at_once() -> None:
    lines: list[str] = []
    with pytest.raises((RuntimeError, AssertionError)):
        tuned(device="cuda:99", progress=lines.append)
    assert lines == []


def test_errors_of_the_callers_loss_are_the_callers_own() -> None:
    def loss(raw: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        tuned(loss=loss, epochs=1)


def test_the_callers_loss_and_options_are_used() -> None:
    seen: list[tuple[int, ...]] = []

    def loss(raw: Tensor, labels: Tensor) -> Tensor:
        seen.append(tuple(raw.shape))
        return nn.functional.cross_entropy(raw, labels)

    tuned(loss=loss, epochs=1, training=TrainingOptions(features=0.0, stressed=0.0))
    assert seen == [(32, 4)] * 8
    seen.clear()
    tuned(loss=loss, epochs=1, training=TrainingOptions(stressed=0.25))
    assert seen == [(24, 4)] * 8  # stressed images have no labels
