"""Data and functions that are bad for fits: a clear error or a sound result, whatever the fits are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.errors import CalibrationError
from olac.frontend.lifter import MODULES
from olac.frontend.tracer import LEAVES
from olac.ir.functions import FUNCTIONS, activation
from olac.ir.ops import Activation
from olac.program.program import ApproximatedModel


class Snake(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.sin(x) ** 2


class Apply(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def net(act: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), act or nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3), nn.Tanh()
    ).eval()


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def sound(model: nn.Module, approximated: ApproximatedModel, x: torch.Tensor, share: float) -> None:
    """All polynomials are finite, and outputs are right up to a share of the largest."""
    assert all(np.isfinite(array).all() for array in approximated.graph.constants.values())
    with torch.no_grad():
        expected = model(x).numpy().reshape(len(x), -1)
    got = approximated.simulate(x.numpy()).reshape(expected.shape)
    assert np.abs(got - expected).max() <= share * np.abs(expected).max()


def notes_on_values(approximated: ApproximatedModel) -> list[str]:
    """Notes other than those on how few images there are, and on how well the program agrees."""
    expected = ("the agreement is", "the decisions agree", "64 calibration", "200 calibration")
    return [n for n in approximated.report.notes if not n.startswith(expected) and " copies of calibration" not in n]


def test_a_constant_channel() -> None:
    model = net()
    conv: Any = model[0]
    with torch.no_grad():
        conv.weight[1:3] = 0
        conv.bias[1], conv.bias[2] = 0.7, -0.3
    approximated = olac.approximate(model, images())
    sound(model, approximated, images(), 0.5)
    assert not notes_on_values(approximated)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.5, -3.0, 1e4])
def test_a_range_without_width(value: float) -> None:
    first = nn.Linear(36, 4)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        first.weight.zero_()
        first.bias.fill_(value)
    approximated = olac.approximate(model, images())
    sound(model, approximated, images(), 0.05)


def test_images_that_are_all_the_same() -> None:
    model = net()
    x = images(1).expand(20, -1, -1, -1)
    sound(model, olac.approximate(model, x), x, 0.5)


def test_a_module_that_is_never_called() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.idle = net(), nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.body(x)

    assert len(olac.approximate(Idle(), images(), client_head=False).report.fits) == 2


@pytest.mark.parametrize("loader", [[], iter(()), torch.zeros(0, 1, 6, 6), [torch.zeros(0, 1, 6, 6)]])
def test_no_images(loader: Any) -> None:
    with pytest.raises(CalibrationError, match="empty"):
        olac.approximate(net(), loader)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_few_images(count: int) -> None:
    model = net()
    approximated = olac.approximate(model, images(count))
    sound(model, approximated, images(count), 0.5)
    assert approximated.report.check is not None
    assert approximated.report.check.images == 1
    assert approximated.report.check.explained is None  # one image has no variance
    assert any("rest on too little" in note for note in approximated.report.notes)


def test_outliers_are_noted() -> None:
    model, x = net(), images()
    x[3, 0, 2, 2] = 1e6
    approximated = olac.approximate(model, x)
    assert all(np.isfinite(array).all() for array in approximated.graph.constants.values())
    assert np.isfinite(approximated.simulate(images().numpy())).all()
    (first, *_) = notes_on_values(approximated)
    assert first.startswith("m1 (1): outliers stretch the range")
    program = olac.compile(model, x, degree=3, log_ring=13, insecure=True)
    assert first in program.report.notes
    assert not notes_on_values(olac.approximate(model, images()))


def test_nan_in_one_batch() -> None:
    x = images()
    x[40, 0, 1, 1] = float("nan")
    with pytest.raises(CalibrationError, match="batch 2 holds NaN"):
        olac.approximate(net(), x.split(16))


def test_images_of_different_shapes() -> None:
    def loader() -> Iterator[torch.Tensor]:
        yield images(4)
        yield images(4)
        yield torch.zeros(4, 1, 6, 5)

    with pytest.raises(CalibrationError, match="batch 2 has inputs of shape"):
        olac.approximate(net(), loader())


# Functions that a caller gave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, lambda x: x + np.sin(x) ** 2])
def test_own_modules(given: Any) -> None:
    model = net(Snake())
    approximated = olac.approximate(model, images(), activations={Snake: given}, client_head=False)
    assert [fit.function for fit in approximated.report.fits] == ["Snake", "tanh"]
    sound(model, approximated, images(), 0.5)
    options = olac.CompileOptions(activations={Snake: given}, client_head=False)
    assert olac.approximate(model, images(), options).graph == approximated.graph
    program = olac.compile(model, images(), activations={"1": given}, degree=3, log_ring=12, insecure=True)
    assert program.report.fits[0].function == "Snake"
    assert not olac.check(model, images(), activations={Snake: given})
    calibration = olac.calibrate(model, images(), activations={Snake: given})
    assert olac.approximate(model, calibration, options).graph == approximated.graph


def test_own_functions() -> None:
    def wave(x: Any) -> Any:
        return torch.cos(x) * x

    model = net(Apply(lambda x: wave(x)))
    approximated = olac.approximate(model, images(), activations={wave: None})
    assert approximated.report.fits[0].function == "wave"
    sound(model, approximated, images(), 0.7)


def test_a_fit_is_the_one_of_the_function_that_is_known() -> None:
    class Own(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.where(x > 0, x, torch.zeros_like(x))

    known, own = net(nn.ReLU()), net(Own())
    a = olac.approximate(known, images())
    b = olac.approximate(own, images(), activations={Own: None})
    assert np.allclose(a.simulate(images().numpy()), b.simulate(images().numpy()), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: 1 / x, "pole at"),
        (lambda x: 1 / (x - 0.3), "pole at 0.3"),
        (lambda x: 1e-4 / (x - 0.3) + x, "pole at 0.3"),
        (lambda x: torch.tan(4 * x), "pole at"),
        (lambda x: 1 / (x - 0.3).abs().sqrt(), "pole at 0.3"),
    ],
)
def test_poles_are_refused(function: Any, message: str) -> None:
    model = net(Apply(function))
    with pytest.raises(CalibrationError, match=rf"m1 \(1\): the function Apply isn't finite or has a {message}"):
        olac.approximate(model, images(), activations={"1": None})


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, lambda x: torch.log(x + 0.2)])
def test_nan_within_the_range_is_refused(function: Any) -> None:
    with pytest.raises(CalibrationError, match=r"NaN or infinite values at m1 \(1\), for a negative input"):
        olac.approximate(net(Apply(function)), images(), activations={"1": None})


@pytest.mark.parametrize(
    "function", [lambda x: 1 / (0.05 + x * x), lambda x: torch.exp(3 * x), lambda x: torch.sign(x), lambda x: x.round()]
)
def test_steep_functions_are_no_poles(function: Any) -> None:
    approximated = olac.approximate(net(Apply(function)), images(), activations={"1": None})
    assert np.isfinite(approximated.simulate(images().numpy())).all() and not notes_on_values(approximated)


@pytest.mark.parametrize("function", [torch.log, torch.sqrt, torch.reciprocal, lambda x: 1 / x**3])
def test_what_is_beyond_the_range_is_continued(function: Any) -> None:
    class Positive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act, self.out = nn.Linear(3, 5), Apply(function), nn.Linear(5, 2)

        def forward(self, x: Any) -> Any:
            return self.out(self.act(self.fc(x).sigmoid() + 0.5))

    torch.manual_seed(0)
    model, x = Positive().eval(), torch.rand(200, 3)
    # The input is at least 0.5: what lies beyond, and would break a fit on a wider range, isn't needed.
    approximated = olac.approximate(model, x, activations={Apply: None})
    assert [fit.function for fit in approximated.report.fits] == ["sigmoid", "Apply_clamped"]
    (note,) = notes_on_values(approximated)
    assert note.startswith("act (act): the function Apply isn't finite") and "constant" in note
    sound(model, approximated, x, 0.5)


class Root(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.abs().rsqrt()


class Shifted(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.fc, self.sigmoid, self.act, self.out = nn.Linear(3, 5), nn.Sigmoid(), Root(), nn.Linear(5, 2)
        self.shift = shift

    def forward(self, x: Any) -> Any:
        return self.out(self.act(self.sigmoid(self.fc(x)) + self.shift))


@pytest.fixture
def registered_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An inverse square root in the registries, as CONTRIBUTING describes it."""
    monkeypatch.setitem(FUNCTIONS, "rsqrt", lambda: lambda x: 1 / np.sqrt(np.where(x > 0, x, np.nan)))
    monkeypatch.setitem(MODULES, Root, lambda lifter, module, x: lifter.add(Activation("rsqrt"), x))
    LEAVES.add(Root)
    yield
    LEAVES.discard(Root)


OLA: dict[str, Any] = {"method": "normal", "degrees": "ola", "max_depth": 6}


@pytest.mark.parametrize("options", [{}, {"degree": 5}, {"method": "empirical", "degree": 5}, OLA])
def test_a_registered_function_is_checked_within_the_range(
    options: dict[str, Any], registered_root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The model's own values are finite: only the registered function is not.
    monkeypatch.setattr(Root, "forward", lambda self, x: x.clamp_min(0.01).rsqrt())
    torch.manual_seed(0)
    message = r"act \(act\): the function rsqrt isn't finite .* within the calibrated range -0\..* \.\.\. 0\..*"
    with pytest.raises(CalibrationError, match=message):
        olac.approximate(Shifted(-0.5).eval(), torch.rand(200, 3), **options)


@pytest.mark.parametrize("options", [{}, {"degree": 5}, {"method": "empirical", "degree": 5}, OLA])
def test_a_registered_function_is_continued_beyond_the_range(options: dict[str, Any], registered_root: None) -> None:
    torch.manual_seed(0)
    model, x = Shifted(0.1).eval(), torch.rand(200, 3)
    approximated = olac.approximate(model, x, **options)
    assert [fit.function for fit in approximated.report.fits] == ["sigmoid", "rsqrt_clamped"]
    assert all(np.isfinite(fit.rmse) for fit in approximated.report.fits)
    (note,) = notes_on_values(approximated)
    assert note.startswith("act (act): the function rsqrt isn't finite") and "constant" in note
    sound(model, approximated, x, 0.5)


def test_prelu_of_one_slope() -> None:
    model = net(nn.PReLU(init=-0.5))
    sound(model, olac.approximate(model, images()), images(), 0.5)


class Slopes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.tensor([-0.5, 0.0, 0.2, 1.0]).reshape(1, -1, 1, 1))

    def forward(self, x: Any) -> Any:
        return torch.where(x > 0, x, self.slopes * x)


@pytest.mark.parametrize("own", [False, True])
def test_functions_for_each_channel(own: bool) -> None:
    act = nn.PReLU(4)
    act.load_state_dict({"weight": Slopes().slopes.detach().flatten()})
    model = net(Slopes() if own else act)
    approximated = olac.approximate(model, images(), activations={Slopes: None} if own else {})
    sound(model, approximated, images(), 0.5)


def test_no_state_is_left() -> None:
    approximated = olac.approximate(net(Snake()), images(), activations={Snake: None})
    assert approximated.report.fits[0].function == "Snake"
    with pytest.raises(KeyError):
        activation("Snake")
