"""Reconstruction: it improves a graph or leaves it as it is, changes only numbers, and is deterministic."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from olac.approximation.common import output_error
from olac.approximation.floors import LOW
from olac.approximation.reconstruct import LEAST_IMAGES, reconstruct
from olac.approximation.steps import SLOWER, Schedule, Steps
from olac.approximation.sweep import sweep
from olac.approximation.tensors import run, tensors
from olac.ir.graph import Graph, GraphBuilder, Node
from olac.ir.ops import Conv2d, Linear, Polynomial, PolynomialProduct, SparseLinear
from olac.passes.base import PassContext, PassManager
from olac.passes.expand_max_pool import ExpandMaxPool
from olac.polynomials.fit import SQUARE
from olac.polynomials.modes import Compensated, Empirical
from tests.approximation.nets import activations, error, folded, from_histograms, images, residual, values
from tests.networks import calibration_of

TRAIN, HELD, UNSEEN = images(160, 1), images(50, 2), images(120, 3)
NET = residual(1)


def start(degree: int, graph: Graph = NET) -> Graph:
    return from_histograms(graph, TRAIN, dict.fromkeys(activations(graph), degree))


def spoilt(graph: Graph) -> Graph:
    """The graph with an error in the slope and the constant of every polynomial."""

    def step(node: Node, builder: GraphBuilder, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Polynomial):
            return None
        c = graph.constants[node.op.coefficients] * 1.0
        c[:, :2] *= 1.06
        name = builder.constant(f"{node.id}.spoilt", c)
        return builder.keep(node, inputs, op=replace(node.op, coefficients=name))

    return graph.rewrite(step, by="test")


def held_error(graph: Graph) -> float:
    name = NET.inputs[0].id
    ours, clean = (run(g, tensors(g), {name: HELD})[g.outputs[0]] for g in (graph, NET))
    return output_error(ours, clean)


@pytest.mark.parametrize("degree", [2, 3, 7])
@pytest.mark.parametrize("refit", [False, True])
def test_it_gains_on_images_not_seen(monkeypatch: pytest.MonkeyPatch, degree: int, refit: bool) -> None:
    """Without the option that trades accuracy for safety, which the other tests use."""
    monkeypatch.setattr("olac.approximation.reconstruct.TAIL", 0.0)
    monkeypatch.setattr("olac.approximation.reconstruct.STRESSED", 0.0)
    monkeypatch.setattr("olac.approximation.reconstruct.WORST", 0.0)
    before = start(degree)
    passes = 6 if degree <= LOW else 20  # steps of high degrees are small, so that they stay bounded
    after = reconstruct(NET, before, images(400, 9), HELD, passes, refit=refit, enough=0.0)
    assert held_error(after) < 0.9 * held_error(before)
    assert error(NET, after, UNSEEN) < 0.97 * error(NET, before, UNSEEN)


@pytest.mark.parametrize("seed", range(4))
def test_the_error_on_held_out_images_never_grows(seed: int) -> None:
    """Even from a good start, with steps on images that have nothing to do with those held out."""
    graph = residual(1, seed=seed)
    held = images(40, 50 + seed)
    swept = sweep(graph, images(90, 20), held, dict.fromkeys(activations(graph), 7), Compensated()).graph
    other = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 3
    after = reconstruct(graph, swept, other, held, 2)
    assert error(graph, after, held) <= error(graph, swept, held) * (1 + 1e-4)


def test_a_bad_start_is_put_right() -> None:
    bad = spoilt(start(3))
    after = reconstruct(NET, bad, TRAIN, HELD, 25)
    assert error(NET, after, UNSEEN) < 0.35 * error(NET, bad, UNSEEN)


def pooled() -> Graph:
    """A small network with max-pooling between its activations, already expanded into compositions."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    graph = folded(model, TRAIN)
    context = PassContext(calibration=calibration_of(graph, TRAIN.double().numpy()))
    return PassManager([ExpandMaxPool()]).run(graph, context)


def test_polynomials_that_stand_for_no_activation_stay() -> None:
    """The compositions of a max-pooling stay as they are; the rest improves, also for images out of range."""
    graph = pooled()
    before = start(2, graph)
    after = reconstruct(graph, before, images(320, 9), HELD, 8, enough=0.0)
    assert error(graph, after, UNSEEN) < 0.97 * error(graph, before, UNSEEN)
    fitted = set(activations(graph))
    given = [node for node in after.nodes if isinstance(node.op, Polynomial | PolynomialProduct | SparseLinear)]
    assert len([node for node in given if node.id not in fitted]) == 8
    for node in given:
        same = all(
            np.array_equal(after.constants[n], before.constants[n])
            for n in node.op.constant_names()
            if n in before.constants
        )
        assert (node.op == before[node.id].op and same) == (node.id not in fitted)


def test_parameters_are_averaged_over_a_pass_and_start_again_where_they_are_put() -> None:
    theta = torch.zeros(3, requires_grad=True)
    steps = Steps({"theta": theta}, 0.1, 10, Schedule(40))
    assert torch.equal(steps.mean()["theta"], torch.zeros(3))
    first = []
    for place in (0.0, 5.0):
        passed: list[torch.Tensor] = []
        for _ in range(10):
            before = theta.detach().clone()
            steps.take((theta - 9).square().sum())
            assert bool((theta > before).all())
            passed.append(theta.detach().clone())
        assert torch.allclose(steps.mean()["theta"], torch.stack(passed).mean(0))
        first.append(float(passed[0][0]) - place)
        assert bool((passed[-1] > place).all())
        steps.restart({"theta": torch.full((3,), 5.0)})
        assert torch.equal(theta, torch.full((3,), 5.0))
    assert first[1] == pytest.approx(SLOWER * first[0] * (1 + math.cos(math.pi / 4)) / 2, rel=1e-3)
    taken = theta.detach().clone()
    steps.take((theta * torch.inf).sum())  # an image may overflow
    assert torch.equal(theta, taken)


def test_passes_that_break_something_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, restarts, restart = [0.5, 2.0, 0.4, 0.5, 0.7, 0.45], [], Steps.restart

    def watched(self: Steps, thetas: Mapping[str, torch.Tensor]) -> None:
        restarts.append((len(errors), sum(float(theta.abs().sum()) for theta in thetas.values())))
        restart(self, thetas)

    monkeypatch.setattr("olac.approximation.reconstruct.LEAST_INTERVAL", 1)
    monkeypatch.setattr("olac.approximation.reconstruct.output_error", lambda *outputs: errors.pop(0))
    monkeypatch.setattr("olac.approximation.reconstruct.diverged", lambda *outputs: torch.zeros(1, dtype=torch.bool))
    monkeypatch.setattr(Steps, "restart", watched)
    before = start(3)
    assert reconstruct(NET, before, TRAIN, HELD, 5) is not before and errors == []
    (first, at_start), (second, at_best) = restarts
    assert (first, second) == (4, 1) and at_start == 0 < at_best


def test_steps_that_are_far_too_large_get_smaller_until_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olac.approximation.reconstruct.RATES", (0.5, 0.5))
    monkeypatch.setattr("olac.approximation.reconstruct.LEAST_INTERVAL", 1)
    before = start(3)
    after = reconstruct(NET, before, images(400, 9), HELD, 12, enough=0.0)
    monkeypatch.setattr("olac.approximation.reconstruct.WORSE", math.inf)
    assert reconstruct(NET, before, images(400, 9), HELD, 12, enough=0.0) is before
    assert error(NET, after, UNSEEN) < 0.8 * error(NET, before, UNSEEN)


def test_what_does_not_gain_is_the_graph_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    before = start(3)
    monkeypatch.setattr("olac.approximation.reconstruct.RATES", (0.0, 0.0))
    assert reconstruct(NET, before, TRAIN, HELD, 2) is before
    monkeypatch.setattr("olac.approximation.reconstruct.RATES", (30.0, 30.0))
    assert reconstruct(NET, before, TRAIN, HELD, 2) is before


def test_only_numbers_change() -> None:
    before = start(3)
    after = reconstruct(NET, before, TRAIN, HELD, 2)
    assert after is not before and after.stage == before.stage and after.outputs == before.outputs
    assert [(n.id, type(n.op), n.inputs, n.type) for n in after.nodes] == [
        (n.id, type(n.op), n.inputs, n.type) for n in before.nodes
    ]
    for old, new in zip(before.nodes, after.nodes, strict=True):
        changed = not all(
            np.array_equal(before.constants[a], after.constants[b])
            for a, b in zip(old.op.constant_names(), new.op.constant_names(), strict=True)
        )
        assert changed == isinstance(old.op, Polynomial | Conv2d | Linear), old.id
        for a, b in zip(old.op.constant_names(), new.op.constant_names(), strict=True):
            assert before.constants[a].shape == after.constants[b].shape
        if isinstance(old.op, Polynomial):
            assert isinstance(new.op, Polynomial) and new.op.half_width == old.op.half_width


def test_without_refit_only_coefficients_change() -> None:
    before = start(3)
    after = reconstruct(NET, before, TRAIN, HELD, 2, refit=False)
    for old, new in zip(before.nodes, after.nodes, strict=True):
        if isinstance(old.op, Polynomial):
            assert isinstance(new.op, Polynomial)
            assert not np.array_equal(before.constants[old.op.coefficients], after.constants[new.op.coefficients])
        else:
            assert new.op == old.op
            assert all(np.array_equal(before.constants[n], after.constants[n]) for n in old.op.constant_names())


def test_two_runs_are_the_same() -> None:
    before = start(3)
    torch.manual_seed(1)
    first = reconstruct(NET, before, TRAIN, HELD, 2)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert reconstruct(NET, before, TRAIN, HELD, 2) == first
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"


def test_few_images_or_no_passes_leave_it_as_it_is() -> None:
    before = start(3)
    assert reconstruct(NET, before, TRAIN[: LEAST_IMAGES - 1], HELD, 6) is before
    assert reconstruct(NET, before, TRAIN, HELD, 0) is before
    assert reconstruct(NET, spoilt(before), TRAIN[:LEAST_IMAGES], HELD, 20) != spoilt(before)
    assert LEAST_IMAGES == 64


def test_quadratics_keep_the_bound_of_their_square() -> None:
    before = start(2)
    after = reconstruct(NET, before, TRAIN, HELD, 3)
    largest = {name: float(np.abs(value).max()) for name, value in values(before, TRAIN[:96]).items()}
    for node in after.nodes:
        if isinstance(node.op, Polynomial):
            _, c1, c2 = after.constants[node.op.coefficients].T
            assert np.all(c1**2 / (8 * np.abs(c2)) <= SQUARE * largest[node.id] * (1 + 1e-4))


def test_one_polynomial_for_a_layer() -> None:
    before = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 3), Empirical())
    after = reconstruct(NET, before, TRAIN, HELD, 25)
    assert error(NET, after, UNSEEN) < 0.7 * error(NET, before, UNSEEN)
    assert all(len(after.constants[n.op.coefficients]) == 1 for n in after.nodes if isinstance(n.op, Polynomial))


def test_an_image_that_overflows_does_not_stop_it() -> None:
    given = TRAIN.clone()
    given[5] *= 1e6
    before = start(7)
    after = reconstruct(NET, before, given, HELD, 3)
    assert all(np.isfinite(array).all() for array in after.constants.values())
    assert held_error(after) <= held_error(before)


def test_progress() -> None:
    lines: list[str] = []
    reconstruct(NET, start(3), TRAIN, HELD, 3, progress=lines.append)
    assert [line.split(",")[0] for line in lines] == [f"reconstructing: {k}%" for k in (33, 67, 100)]
    assert lines[-1].startswith(f"reconstructing: 100%, {3 * len(TRAIN)} images seen, error ")


def test_it_ends_after_the_seconds_that_it_may_take() -> None:
    lines: list[str] = []
    begun = time.monotonic()
    reconstruct(NET, start(3), TRAIN, HELD, 100000, seconds=1.0, progress=lines.append)
    assert time.monotonic() - begun < 20
    assert lines[-1].startswith("reconstructing: 100%")


def test_many_images_are_judged_before_a_pass_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("olac.approximation.reconstruct.INTERVAL", 64)
    lines: list[str] = []
    reconstruct(NET, start(3), TRAIN, HELD, 2, progress=lines.append)
    assert [line.split(",")[1].split()[0] for line in lines] == ["64", "128", "192", "256", "320"]


def test_what_is_good_enough_is_left_alone() -> None:
    before = start(7)
    assert reconstruct(NET, before, TRAIN, HELD, 2, enough=1.01 * held_error(before) + 10.0) is before
