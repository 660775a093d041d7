"""A promise that is missed gives a note, or an error if the caller is strict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import olac
from olac.approximation import ImageFitter
from olac.approximation.criterion import Classification, Regression, Task
from olac.calibration.statistics import CHOOSING_MOST, Calibration, calibration_images, held_out_limit
from olac.errors import CalibrationError, InfeasibleError
from olac.ir.graph import GraphBuilder
from olac.ir.ops import Array, Input
from olac.polynomials.modes import Effects
from olac.program.program import ApproximatedModel
from olac.program.promises import goal_shortfalls, self_check
from olac.program.report import SelfCheck
from olac.report import parameter_lines

QUICK: dict[str, Any] = {"method": "channel"}


def network(outputs: int, last: nn.Module | None = None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs)]
    return nn.Sequential(*layers, *([] if last is None else [last]))


def inputs(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def calibration_of(images: npt.NDArray[Any], outputs: npt.NDArray[Any]) -> Calibration:
    return Calibration(len(images), {}, {}, images, outputs)


# What judges --------------------------------------------------------------------------------------------------------


def test_what_judges_has_decided_nothing() -> None:
    for count in (2, 3, 100, 512, 513, 2000):
        one = np.arange(float(count))[:, None]
        calibration = calibration_of(one, 10 * one)
        judged, choosing = set(calibration.judged[:, 0]), set(calibration.choosing[:, 0])
        assert not judged & choosing
        assert len(choosing) == min((count + 1) // 2, CHOOSING_MOST)
        if count <= 2 * CHOOSING_MOST:
            assert judged | choosing == set(one[:, 0])
        assert len(judged) >= count // 2
        assert np.array_equal(calibration.judged_outputs, 10 * calibration.judged)
    single = calibration_of(np.ones((1, 2)), np.ones((1, 2)))
    assert len(single.judged) == len(single.choosing) == 1


def test_large_images_are_held_out_less() -> None:
    assert held_out_limit(8) == 2048
    assert held_out_limit(1 << 19) == 1024
    assert held_out_limit(1 << 30) == 2 * CHOOSING_MOST


@pytest.mark.parametrize("judged", [1, 100, 256, 257, 900])
def test_as_many_images_as_the_report_says(judged: int) -> None:
    count = calibration_images(judged)
    assert count is not None
    held = np.zeros((count // 8, 1))
    assert len(calibration_of(held, held).judged) >= judged
    assert calibration_images(2000) is None


def test_plans_and_fits_never_see_what_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Array] = []

    def spy(images: Array, held_out: Array, *others: Any) -> ImageFitter:
        seen.extend([images, held_out])
        return ImageFitter(images, held_out, *others)

    monkeypatch.setattr("olac.compiler.ImageFitter", spy)
    calibration = olac.calibrate(network(3), [inputs(300)])
    olac.approximate(network(3), calibration)
    used = {row.tobytes() for part in seen for row in np.asarray(part, dtype=np.float32)}
    judged = {row.tobytes() for row in calibration.judged.astype(np.float32)}
    assert used and judged and not used & judged


# Notes --------------------------------------------------------------------------------------------------------------


def test_a_goal_that_is_missed_gives_a_note() -> None:
    """Also for goals of 90 to 98 %."""
    theirs = np.eye(4)[np.arange(200) % 4]
    ours = theirs.copy()
    ours[1::20] = ours[1::20, ::-1]  # 5 % of all images, 10 % of those that judge
    images = np.arange(200.0)[:, None]
    calibration = calibration_of(images, theirs)

    class Known(ApproximatedModel):
        def simulate(self, batch: Any, observe: Any = None, *, raw: bool = False) -> Array:
            return np.asarray(ours[batch[:, 0].astype(int)], dtype=np.float64)

    builder = GraphBuilder()
    graph = builder.build([builder.add(Input((1,)), name="x")])
    check = self_check(Known(graph), graph, calibration, Classification(), 0.98, 0.0)
    assert check.images == 100 and check.agreement == pytest.approx(0.9)
    assert check.low < 0.9 < check.high and check.images_to_goal is None
    (note,) = goal_shortfalls(check)
    assert "90.0%" in note and "below 98.0%" in note
    assert goal_shortfalls(replace(check, goal=0.9)) == ()


def test_decisions_that_agree_although_values_do_not_give_a_note() -> None:
    """If one output is always the largest, decisions agree however wrong the others are."""
    model = network(2)
    with torch.no_grad():
        model[2].bias[0] += 1.0  # type: ignore[index]
    options: dict[str, Any] = {"task": "classification", "reconstruct": 0}
    rough = olac.approximate(model, [inputs(2500)], degree=1, refit=False, **options)
    check = rough.report.check
    assert check is not None and check.agreement >= 0.98 and check.explained is not None and check.explained < 0.9
    (note,) = rough.report.notes
    assert "values of the outputs are off by" in note and 'task="regression"' in note
    assert not olac.approximate(model, [inputs(2500)], degree=7, **options).report.notes


def test_degrees_that_are_too_low_are_said_and_refused() -> None:
    model, loader = network(5), [inputs(600)]
    program = olac.approximate(model, loader, degree=1, refit=False, **QUICK)
    check = program.report.check
    assert check is not None and check.agreement < 0.98
    assert any(note.startswith("the agreement is") for note in program.report.notes)
    with pytest.raises(InfeasibleError, match="strict: the agreement is"):
        olac.approximate(model, loader, degree=1, refit=False, strict=True, **QUICK)
    fine = olac.approximate(model, loader, degree=1, min_agreement=0.05, strict=True, **QUICK)
    assert fine.report.notes == ()


@pytest.mark.parametrize("count", [1, 2, 9, 255])
def test_few_images_are_said_and_refused(count: int) -> None:
    model, loader = network(3), [inputs(count)]
    program = olac.approximate(model, loader, degree=3, **QUICK)
    assert any(note.startswith(f"{count} calibration row") for note in program.report.notes)
    begun: list[str] = []
    with pytest.raises(CalibrationError, match=f"strict: {count} calibration row"):
        olac.approximate(model, loader, degree=3, strict=True, progress=begun.append, **QUICK)
    assert "fitting polynomials" not in begun  # notes that need no fit come before the fits


def test_enough_images_need_no_note() -> None:
    program = olac.approximate(network(3), [inputs(256)], degree=7, min_agreement=0.5, strict=True, **QUICK)
    assert program.report.notes == ()


def test_a_channel_that_hardly_ever_varies_is_said() -> None:
    x = inputs(400)
    x[:, 2] = 0.0
    x[5, 2], x[77, 2] = 3.0, -2.0
    model = nn.Sequential(nn.ReLU(), nn.Linear(6, 3))
    program = olac.approximate(model, [x], degree=3, **QUICK)
    assert any("fewer than 8 calibration values differ" in note for note in program.report.notes)
    with pytest.raises(CalibrationError, match="fewer than 8 calibration values differ"):
        olac.approximate(model, [x], degree=3, strict=True, **QUICK)


def test_the_report_says_how_sure_it_is() -> None:
    program = olac.compile(network(3), [inputs(400)], degree=7, **QUICK)
    check = program.report.check
    assert check is not None and check.goal == 0.98
    assert check.low < check.agreement <= check.high and check.mean_error < check.max_error
    text = "\n".join(parameter_lines(program))
    for part in ("self-check as classification on 25", "95% confidence", "output error: mean", "R2 0.9"):
        assert part in text
    sure = replace(check, agreement=1.0, low=0.87, images_to_goal=189)
    text = "\n".join(parameter_lines(replace(program, report=replace(program.report, check=sure))))
    assert "189 such rows show at least 98.0%: calibrate with about 3024 in all" in text


def test_errors_of_classes_are_those_of_their_scores() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network(4)

        def forward(self, x: Tensor) -> Tensor:
            classes: Tensor = self.inner(x).argmax(1)
            return classes

    check = olac.approximate(Decides(), [inputs(300)], degree=7, **QUICK).report.check
    plain = olac.approximate(network(4), [inputs(300)], degree=7, **QUICK).report.check
    assert check is not None and plain is not None and check.task == "classification"
    assert check.agreement == plain.agreement
    assert check.mean_error == pytest.approx(plain.mean_error, rel=1e-3) and check.explained is not None


@pytest.mark.parametrize(
    ("last", "client_head", "task"),
    [(nn.Sigmoid(), True, "binary"), (nn.Sigmoid(), False, "binary"), (None, True, "regression")],
)
def test_the_last_function_tells_the_task(last: nn.Module | None, client_head: bool, task: str) -> None:
    options: dict[str, Any] = {"degree": 7, "client_head": client_head, **QUICK}
    check = olac.approximate(network(1, last), [inputs(300)], **options).report.check
    assert check is not None and check.task == task
    if task == "binary":
        assert "same side of 0.5 and within 0.1" in check.meaning


# Tasks --------------------------------------------------------------------------------------------------------------


def test_a_regression_is_no_matter_of_its_largest_output() -> None:
    """One output is always the largest, so as decisions all would agree, even with the lowest degrees."""
    program = olac.approximate(network(1), [inputs(512)])
    check = program.report.check
    assert check is not None and check.task == "regression"
    assert check.explained is not None and check.explained > 0.98
    asked = olac.approximate(network(1), [inputs(512)], min_agreement=0.3)
    assert max(fit.degree for fit in asked.report.fits) <= max(fit.degree for fit in program.report.fits)


@pytest.mark.parametrize("alphas", ["ola", "measured"])
def test_plans_of_regressions_know_the_sizes_of_outputs(alphas: Effects) -> None:
    """An output that is in the thousands must not hide the errors of one that is near 1."""
    model = network(2)
    linear = model[2]  # type: ignore[index]
    with torch.no_grad():
        linear.weight[1] *= 1000
    program = olac.approximate(model, [inputs(512)], task=Regression(0.3), degrees=alphas, min_agreement=0.7)
    outputs = model(inputs(300, 5)).detach().double().numpy()
    error = program.simulate(inputs(300, 5).numpy()) - outputs
    assert np.all(np.mean(error**2, 0) < 0.1 * outputs.var(0))


TASKS: list[tuple[Any, int, str]] = [
    ("binary", 1, "same side of 0"),
    ("multilabel", 3, "labels"),
    ("embedding", 4, "cosine"),
    (Regression(0.25), 2, "within 25%"),
    (lambda ours, theirs: np.ones(len(ours)), 2, "score of"),
]


@pytest.mark.parametrize(("task", "outputs", "meaning"), TASKS)
def test_tasks_that_are_given(task: Task | Callable[[Array, Array], Array], outputs: int, meaning: str) -> None:
    check = olac.approximate(network(outputs), [inputs(300)], task=task, degree=7, **QUICK).report.check
    assert check is not None and meaning in check.meaning and check.agreement > 0.8


def broken(ours: Array, theirs: Array) -> Array:
    raise KeyError("of the caller's")


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        ("classification", ValueError, "^task=.classification. compares"),
        (lambda ours, theirs: ours, ValueError, "^the given task's function must give"),
        (broken, KeyError, "of the caller's"),
    ],
)
def test_what_is_wrong_with_a_task_is_no_bug_of_ours(task: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        olac.approximate(network(1), [inputs(300)], task=task, **QUICK)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="task 'rank' is not one of"):
        olac.CompileOptions(task="rank")  # type: ignore[arg-type]


def test_files_that_do_not_say_are_classification() -> None:
    assert SelfCheck(8, 1.0, 0.1, 0.05, 1e-7).task == "classification"
