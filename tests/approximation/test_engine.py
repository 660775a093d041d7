"""The fitter that passes reach: which images it takes, and the ranges that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from olac.analysis.degree_choice import functions
from olac.approximation import ImageFitter, common, engine
from olac.approximation.common import fitting, live_bytes
from olac.approximation.sweep import sweep
from olac.ir.graph import Graph
from olac.ir.types import Range, Stage
from olac.polynomials.fit import Fit, fit
from olac.polynomials.modes import Compensated
from tests.approximation.nets import activations, error, from_histograms, histograms, images, residual, values

TRAIN, HELD = images(100, 1), images(40, 2)
NET = residual(1)
DEGREES = dict.fromkeys(activations(NET), 3)
FITTER = ImageFitter(TRAIN.numpy(), HELD.numpy())
QUICK = Compensated(reconstruct=2)


def test_live_bytes_by_hand() -> None:
    """The most is at the sum; the stem's activation, the block's two and the sum are never alive at once."""
    live: set[str] = set()
    most = 0
    for k, node in enumerate(NET.nodes):
        live.add(node.id)
        most = max(most, sum(NET[i].type.size for i in live))
        live = {i for i in live if any(i in later.inputs for later in NET.nodes[k + 1 :]) or i in NET.outputs}
    assert live_bytes(NET) == 4 * most == 4 * 3 * 8 * 64


@pytest.mark.parametrize(("copies", "share"), [(1, 0.5), (2, 0.5), (8, 0.31), (1, 5.0)])
def test_memory_bounds_the_number_of_images(monkeypatch: pytest.MonkeyPatch, copies: int, share: float) -> None:
    monkeypatch.setattr(common, "MEMORY", share * len(TRAIN) * live_bytes(NET) * copies)
    taken = fitting(NET, TRAIN, copies)
    assert len(taken) == min(len(TRAIN), int(share * len(TRAIN)))
    assert torch.equal(taken[0], TRAIN[0]) and torch.equal(taken[-1], TRAIN[-1]), "they are spread evenly"
    assert len({image.sum().item() for image in taken}) == len(taken)
    assert len(fitting(NET, TRAIN, copies * 2)) == min(len(TRAIN), int(share * len(TRAIN) / 2))


def test_at_least_one_image_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "MEMORY", 1.0)
    assert len(fitting(NET, TRAIN)) == 1


def test_little_memory_means_fits_to_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def spy(graph: Graph, given: torch.Tensor, *others: object, **options: object) -> object:
        taken.append(len(given))
        return sweep(graph, given, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "sweep", spy)
    FITTER.compensate(NET, DEGREES, Compensated(reconstruct=0))
    FITTER.trial(NET, DEGREES, QUICK)
    monkeypatch.setattr(common, "MEMORY", 2 * 30 * live_bytes(NET))
    made = FITTER.compensate(NET, DEGREES, Compensated(reconstruct=0))
    FITTER.trial(NET, DEGREES, QUICK)
    assert taken == [100, 50, 30, 15]
    assert error(NET, made, HELD) < 0.5


def test_effects_are_measured_on_a_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.Tensor] = []

    def spy(
        graph: Graph, given: torch.Tensor, fits: Mapping[str, Sequence[Fit]], *others: object
    ) -> dict[str, list[float]]:
        taken.append(given)
        return {}

    monkeypatch.setattr(engine, "effects", spy)
    many = ImageFitter(images(300, 5).numpy(), images(150, 6).numpy())
    for fitter in (many, FITTER):
        fitter.effects(NET, {})
    assert [len(given) for given in taken] == [engine.EFFECT_IMAGES, 140]
    assert torch.equal(taken[0][:96], images(150, 6)[:96]) and torch.equal(taken[0][96:], images(300, 5)[:96])
    monkeypatch.setattr(common, "MEMORY", 8 * 20 * live_bytes(NET))
    many.effects(NET, {})
    assert len(taken[-1]) == 20


def test_effects_and_sensitivities_are_by_activation() -> None:
    seen = histograms(NET, TRAIN)
    fits = {n: [fit(functions(NET[n]), seen[n], Compensated(), d) for d in (3, 7)] for n in DEGREES}
    found = FITTER.effects(NET, fits)
    assert list(found) == list(DEGREES) and all(row[0] > row[1] > 0 for row in found.values())
    assert all(alpha > 0 for alpha in FITTER.sensitivities(NET).values())


def test_a_trial_is_a_sweep_that_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    forecast = FITTER.trial(NET, DEGREES, QUICK)[1]
    monkeypatch.setattr(engine, "after_fit", lambda error, visits, enough: error)  # as if nothing were gained later
    found, share, effects = FITTER.trial(NET, DEGREES, QUICK, (1, 7))
    assert forecast > share
    made = sweep(NET, TRAIN[::2], HELD, DEGREES, Compensated(refit=False), choose=False)
    assert found == made.error
    given = images(1000, 7).double().numpy()  # 40 images would tell a share of 0.85 within 0.06 only
    same = made.graph.evaluate(given).argmax(1) == NET.evaluate(given).argmax(1)
    assert share == pytest.approx(same.mean(), abs=0.03)
    assert {tuple(row) for row in effects.values()} == {(1, 3, 7)}
    # With 50 images ranges are wide at degree 7, so it may gain nothing over degree 3 in a layer.
    assert all(row[1] > 3 * max(row[3], row[7]) for row in effects.values())
    assert sum(row[7] for row in effects.values()) < sum(row[3] for row in effects.values())


def test_compensate_and_error() -> None:
    before = from_histograms(NET, TRAIN, DEGREES)
    made = FITTER.compensate(NET, DEGREES, QUICK)
    assert made.stage == Stage.POLYNOMIAL
    found, share = FITTER.error(NET, made)
    assert found == pytest.approx(error(NET, made, HELD), rel=1e-3)
    given = HELD.double().numpy()
    assert share == pytest.approx((made.evaluate(given).argmax(1) == NET.evaluate(given).argmax(1)).mean(), abs=0.03)
    assert found < FITTER.error(NET, before)[0]
    assert FITTER.error(NET, NET) == (0.0, 1.0)
    assert FITTER.compensate(NET, DEGREES, QUICK) == made


def test_reconstruction_is_part_of_it_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "olac.approximation.reconstruct.TAIL", 0.0
    )  # with few images and a small net, only tails become safer
    monkeypatch.setattr("olac.approximation.reconstruct.STRESSED", 0.0)
    plain, more = (FITTER.compensate(NET, DEGREES, Compensated(reconstruct=n)) for n in (0, 3))
    assert FITTER.error(NET, more)[0] < FITTER.error(NET, plain)[0]


def test_bounds_hold_what_all_images_give() -> None:
    made = FITTER.with_bounds(from_histograms(NET, TRAIN, DEGREES))
    seen = [values(made, x) for x in (TRAIN, HELD)]
    for node in made.nodes:
        bound = node.type.bound
        assert bound is not None
        low = min(float(v[node.id].min()) for v in seen)
        high = max(float(v[node.id].max()) for v in seen)
        assert (bound.low, bound.high) == pytest.approx((low, high), rel=1e-4, abs=1e-4)


def test_bounds_are_joined_to_those_there_are() -> None:
    before = from_histograms(NET, TRAIN, DEGREES)
    first = before.inputs[0].id
    wide = Range(-100.0, 0.01)

    def at_input(graph: Graph, bound: Range) -> Graph:
        from dataclasses import replace

        return graph.rewrite(
            lambda n, b, i: b.keep(n, i, type=replace(n.type, bound=bound)) if n.id == first else None, by="test"
        )

    made = FITTER.with_bounds(at_input(before, wide))
    bound = made[first].type.bound
    assert bound is not None
    assert bound.low == -100.0 and bound.high == pytest.approx(float(torch.cat([TRAIN, HELD]).max()))


def test_values_that_overflow_have_no_part_in_bounds() -> None:
    given = TRAIN.clone()
    given[0] = 3e38
    made = ImageFitter(given.numpy(), HELD.numpy()).with_bounds(from_histograms(NET, TRAIN, DEGREES))
    assert all(n.type.bound is None or np.isfinite(n.type.bound.magnitude) for n in made.nodes)
