"""Curves of activations: what they say of functions, histograms and polynomials, and their file beside the program."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.calibration.histogram import Histogram
from olac.errors import ArtifactError
from olac.polynomials.curves import BINS, POINTS, curve, padded_ranges
from olac.program.curves import Curves, beside
from olac.program.program import ApproximatedModel, CompiledProgram
from tests.pages.examples import relu_curve, shown_program

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")


def test_the_band_holds_the_polynomial_of_every_channel_where_it_is_fitted() -> None:
    histogram = Histogram(2)
    values = np.stack([np.linspace(-1, 1, 400), np.linspace(0, 4, 400)], 0)[None]
    histogram.add(values)
    ranges = padded_ranges(histogram, 1.5)
    assert ranges.tolist() == [[-1.5, 1.5], [-1.0, 5.0]]
    made = curve("a", "f", 1, histogram, [np.abs], [np.positive, lambda x: 10 - x], ranges)
    x = np.linspace(made.low, made.high, POINTS)
    assert np.allclose(made.exact_low, np.abs(x), atol=1e-3) and made.exact_low == made.exact_high
    first, both, second = x < -1, (x >= -1) & (x <= 1.5), x > 1.5
    low, high = np.array(made.fitted_low), np.array(made.fitted_high)
    assert np.allclose(low[first], x[first], atol=1e-2) and np.allclose(high[first], x[first], atol=1e-2)
    assert np.allclose(low[both], x[both], atol=1e-2) and np.allclose(high[both], 10 - x[both], atol=1e-2)
    assert np.allclose(low[second], 10 - x[second], atol=1e-2)
    assert sum(made.shares) == pytest.approx(1, abs=1e-3) and len(made.shares) == BINS


def test_values_between_channels_and_polynomials_that_explode_are_drawn() -> None:
    histogram = Histogram(2)
    histogram.add(np.stack([np.linspace(-9, -8, 50), np.linspace(8, 9, 50)], 0)[None])
    made = curve("a", "f", 1, histogram, [np.log], [lambda x: 1e300 * x**40, np.abs], padded_ranges(histogram, 1.0))
    assert all(abs(value) <= 1e30 for value in (*made.fitted_low, *made.fitted_high, *made.exact_low))


@pytest.mark.parametrize(
    "change",
    [
        {"low": 3.0, "high": 2.0},
        {"shares": (0.5, 0.5)},
        {"exact_low": (0.0,)},
        {"fitted_high": (float("nan"),) * POINTS},
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="act: "):
        replace(relu_curve(), **change)  # type: ignore[arg-type]


# Files ---------------------------------------------------------------------------------------------------------------


def test_saving_writes_curves_beside_the_program_and_never_into_it(tmp_path: Path) -> None:
    program, path = shown_program(), tmp_path / "m.olac"
    program.save(path)
    assert beside(path).name == "m.olac.report"
    assert stat.S_IMODE(beside(path).stat().st_mode) == 0o600
    assert Curves.load(beside(path), program.fingerprint) == program.curves
    plain = tmp_path / "plain.olac"
    replace(program, curves=None).save(plain)
    assert path.read_bytes() == plain.read_bytes() == program.to_bytes() and not beside(plain).exists()
    assert b"SmallNet" not in path.read_bytes() and b"SmallNet" not in program.client().to_bytes()
    loaded = CompiledProgram.load(path)
    assert loaded.curves is None and loaded == program


def test_curves_of_another_program_are_replaced_when_a_program_is_saved(tmp_path: Path) -> None:
    program, path = shown_program(), tmp_path / "m.olac"
    beside(path).write_text("what an earlier program left")
    program.save(path)
    assert Curves.load(beside(path), program.fingerprint) == program.curves


def test_curves_are_left_out_if_asked_and_where_nothing_can_lie_beside(tmp_path: Path) -> None:
    program = shown_program()
    program.save(tmp_path / "m.olac", curves=False)
    program.save("/dev/null")
    assert [one.name for one in tmp_path.iterdir()] == ["m.olac"] and not Path("/dev/null.report").exists()


def test_curves_are_small(tmp_path: Path) -> None:
    path = tmp_path / "m.olac"
    shown_program().save(path)
    assert beside(path).stat().st_size < 5000


def test_files_of_others_damaged_ones_and_too_large_ones_are_refused(tmp_path: Path) -> None:
    program, path = shown_program(), tmp_path / "m.olac"
    program.save(path)
    good = json.loads(beside(path).read_text())
    assert good["format"] == "olac-curves"

    def refused(change: object, message: str) -> None:
        other = tmp_path / "other"
        other.write_bytes(change if isinstance(change, bytes) else json.dumps(change).encode())
        with pytest.raises(ArtifactError, match=message):
            Curves.load(other, program.fingerprint)

    refused(good | {"fingerprint": "0" * 64}, "belongs to the program 0000000000000000")
    refused(good | {"fingerprint": 3}, "names no program")
    refused(good | {"version": 99}, "format version 99")
    refused(good | {"format": "olac-run"}, "not the curves of a program")
    refused(good | {"content": {"model": "x"}}, "not the curves of a program: content is")
    refused(good | {"content": good["content"] | {"model": 3}}, "content.model is a int, expected str")
    refused(b"[" * 100_000, "or damaged")
    refused(b"\x80", "or damaged")
    refused(b'{"format": NaN}', "or damaged")
    refused(b"OLAC" + bytes(20), "it holds keys or ciphertexts")
    refused(b" " * 64_000_002, "more than 64000000 bytes")


# Compiled programs ---------------------------------------------------------------------------------------------------


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.c(torch.relu(self.b(torch.sigmoid(self.a(x)))))
        return result


def _approximated(**choices: object) -> ApproximatedModel:
    torch.manual_seed(0)
    return olac.approximate(_Net(), [torch.randn(256, 6)], effort="fast", **choices)  # type: ignore[arg-type]


def test_approximations_have_a_curve_for_each_activation() -> None:
    model = _approximated()  # a search of degrees, which measures effects
    assert model.curves is not None and model.curves.model == "_Net"
    assert [one.function for one in model.curves.activations] == ["sigmoid", "relu"]
    for one, fit in zip(model.curves.activations, model.report.fits, strict=True):
        assert (one.node, one.degree) == (fit.node, fit.degree)
        assert one.low == pytest.approx(fit.low, rel=1e-3) and one.high == pytest.approx(fit.high, rel=1e-3)
        assert one.effect is not None and one.effect >= 0
        assert one.outside is not None and 0 <= one.outside < 0.1


def test_effects_are_unknown_if_nothing_measured_them() -> None:
    model = _approximated(degree=4)
    assert model.curves is not None
    assert all(one.effect is None and one.outside is not None for one in model.curves.activations)


def test_images_beyond_the_calibration_are_counted_as_outside() -> None:
    torch.manual_seed(0)
    images = torch.randn(256, 6)
    images[::8] *= 100.0  # every eighth is held out of all fits
    model = olac.approximate(_Net(), [images], degree=2, effort="fast")
    assert model.curves is not None
    first = model.curves.activations[0]
    assert first.outside is not None and first.outside > 0.5


def test_compositions_have_curves_within_their_error() -> None:
    class Relu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.b(torch.relu(self.a(x)))
            return result

    torch.manual_seed(0)
    model = olac.approximate(Relu(), [torch.randn(64, 6)], method="minimax")
    assert model.curves is not None
    (one,) = model.curves.activations
    gap = np.abs(np.array(one.fitted_high) - np.array(one.exact_high)).max()
    assert 0 < gap <= 1.01 * model.report.fits[0].max_error + 1e-3
