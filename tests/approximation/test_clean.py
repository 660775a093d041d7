"""Values of the clean network that trials share."""

from __future__ import annotations

import pytest
import torch

from olac.approximation import ImageFitter, clean, common, engine
from olac.approximation.clean import KeptClean, clean_values
from olac.approximation.sweep import sweep
from olac.ir.graph import Graph
from olac.polynomials.modes import Compensated
from tests.approximation.nets import activations, images, residual

TRAIN, HELD = images(80, 1), images(40, 2)
PLAIN = Compensated(refit=False)


def test_known_values_change_nothing() -> None:
    graph = residual(2)
    degrees = {name: 2 + k for k, name in enumerate(activations(graph)) if k != 1}
    known = clean_values(graph, TRAIN, HELD)
    for choose in (False, True):
        given, computed = (
            sweep(graph, TRAIN, HELD, degrees, PLAIN, choose=choose, probes=(5,), clean=one) for one in (known, None)
        )
        assert given.graph == computed.graph and given.effects == computed.effects
        assert torch.equal(given.clean, computed.clean) and given.error == computed.error


def test_values_are_computed_once_for_several_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Graph] = []

    def spy(graph: Graph, *others: torch.Tensor) -> clean.Clean:
        asked.append(graph)
        return clean_values(graph, *others)

    monkeypatch.setattr(clean, "clean_values", spy)
    first, second = residual(1), residual(1, seed=1)
    fitter = ImageFitter(TRAIN.numpy(), HELD.numpy())
    for graph, degree in ((first, 2), (first, 3), (second, 2)):
        fitter.trial(graph, dict.fromkeys(activations(graph), degree), PLAIN)
    assert [one is first for one in asked] == [True, False]
    fitter.compensate(second, dict.fromkeys(activations(second), 2), Compensated(reconstruct=0))
    assert not fitter._clean._kept, "fits need the memory"


def test_values_that_take_much_memory_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, kept = residual(1), KeptClean()
    size = 4 * 3 * 8 * 64 * len(TRAIN)
    monkeypatch.setattr(common, "MEMORY", 2 * size)
    assert kept.values(graph, TRAIN, HELD) is not None
    monkeypatch.setattr(common, "MEMORY", 2 * size - 1)
    assert KeptClean().values(graph, TRAIN, HELD) is None


def test_trials_take_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def spy(graph: Graph, given: torch.Tensor, *others: object, **options: object) -> object:
        taken.append(len(given))
        return sweep(graph, given, *others, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "sweep", spy)
    monkeypatch.setattr(engine, "TRIAL_IMAGES", 30)
    graph = residual(1)
    ImageFitter(TRAIN.numpy(), HELD.numpy()).trial(graph, dict.fromkeys(activations(graph), 3), PLAIN)
    assert taken == [30]
