"""A fit that is killed goes on where it was, and gives what it would have given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from olac.approximation import reconstruct as module
from olac.approximation.checkpoint import Checkpoint
from olac.approximation.engine import ImageFitter
from olac.approximation.reconstruct import reconstruct
from olac.errors import ArtifactError
from olac.ir.graph import Graph
from olac.polynomials.modes import Compensated
from tests.approximation.nets import activations, from_histograms, images, residual

NET, TRAIN, HELD = residual(1), images(160, 1), images(50, 2)
START = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 3))


class KilledError(Exception):
    """In place of a kill."""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge after each pass."""
    monkeypatch.setattr(module, "LEAST_INTERVAL", 1)


def fit(folder: Path | None, progress: Callable[[str], None] | None = None, start: Graph = START) -> Graph:
    settings = {"epochs": 6, "seed": 3}
    checkpoint = None if folder is None else Checkpoint.of(folder, (NET, start), (TRAIN, HELD), settings)
    return reconstruct(NET, start, TRAIN, HELD, 6, seed=3, enough=0.0, progress=progress, checkpoint=checkpoint)


def killed_after(passes: int) -> Callable[[str], None]:
    lines: list[str] = []

    def progress(line: str) -> None:
        lines.append(line)
        if len(lines) == passes:
            raise KilledError

    return progress


def same(one: Graph, other: Graph) -> bool:
    return one.nodes == other.nodes and all(
        np.array_equal(array, other.constants[name]) for name, array in one.constants.items()
    )


@pytest.mark.parametrize("passes", [(1,), (4,), (6,), (2, 1, 2)])
def test_a_killed_fit_gives_what_it_would_have_given(tmp_path: Path, passes: tuple[int, ...]) -> None:
    whole = fit(None)
    assert whole is not START
    for number in passes:
        with pytest.raises(KilledError):
            fit(tmp_path, killed_after(number))
    lines: list[str] = []
    assert same(fit(tmp_path, lines.append), whole)
    assert len(lines) == 6 - sum(passes), "passes are not taken twice"
    assert same(fit(tmp_path, lines.append), whole) and len(lines) == 6 - sum(passes)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0, "only its owner may read it"


def test_passes_that_are_taken_back_are_kept_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are too large are undone, and the rate stays lower after a kill."""
    monkeypatch.setattr(module, "RATES", (0.2, 0.2))
    whole = fit(None)
    for _ in range(3):
        with pytest.raises(KilledError):
            fit(tmp_path, killed_after(2))
    assert same(fit(tmp_path), whole)


def test_another_fit_has_a_state_of_its_own(tmp_path: Path) -> None:
    other = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 2))
    files = {
        Checkpoint.of(tmp_path, (NET, start), (x, HELD), {"seed": seed}).path
        for start in (START, other)
        for x in (TRAIN, TRAIN + 1e-3)
        for seed in (0, 1)
    }
    assert len(files) == 8


def test_the_time_between_runs_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("olac.approximation.steps.time.monotonic", lambda: clock[0])

    def run(progress: Callable[[str], None]) -> None:
        checkpoint = Checkpoint(tmp_path / "state")
        reconstruct(NET, START, TRAIN, HELD, 6, seconds=100, enough=0.0, progress=progress, checkpoint=checkpoint)

    def late(line: str) -> None:
        raise KilledError

    clock[0] = 0.0
    with pytest.raises(KilledError):
        run(late)
    clock[0] = 1e6
    lines: list[str] = []
    run(lines.append)
    assert len(lines) == 5


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data[:-9] + b"\1" * 9])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(KilledError):
        fit(tmp_path, killed_after(2))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ArtifactError, match=r"fit-.*Delete it: the fit then begins anew"):
        fit(tmp_path)


def test_a_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state")
    other = from_histograms(NET, TRAIN, dict.fromkeys(activations(NET), 2))
    reconstruct(NET, other, TRAIN, HELD, 1, enough=0.0, checkpoint=checkpoint)
    with pytest.raises(ArtifactError, match="Delete it"):
        reconstruct(NET, START, TRAIN, HELD, 6, enough=0.0, checkpoint=checkpoint)
    with pytest.raises(ArtifactError, match=r"not one of these images\. Delete it"):
        reconstruct(NET, other, TRAIN[:100], HELD, 6, enough=0.0, checkpoint=checkpoint)


def test_fitters_keep_their_state_in_a_folder(tmp_path: Path) -> None:
    method = Compensated(reconstruct=2)
    made = []
    for folder in (None, tmp_path, tmp_path):
        fitter = ImageFitter(TRAIN.numpy(), HELD.numpy(), folder=folder)
        made.append(fitter.compensate(NET, dict.fromkeys(activations(NET), 2), method))
    assert same(made[0], made[1]) and same(made[0], made[2])
    assert len(list(tmp_path.iterdir())) == 1
