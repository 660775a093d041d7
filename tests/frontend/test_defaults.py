"""Every operation that the frontend supports, compiled with default options, against torch on held-out images.

The operations are those of the registry: an operation without a case here fails.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import olac
from olac.frontend.lifter import FUNCTIONS, MODULES
from olac.ir.head import Normalize
from olac.ir.ops import Square
from olac.training import PolynomialActivation
from olac.training.network import ClientStep, GraphOp

VECTOR, IMAGE = (6,), (2, 4, 4)
EXACT, FITTED, COMPARED = 1e-5, 0.35, 0.15
"""Largest root mean square error, in standard deviations of the outputs: of exact operations, of activations, which are
fitted, and of maxima.
"""

Case = tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any], float]


def case(shape: tuple[int, ...], *args: Any, error: float = EXACT, **kwargs: Any) -> Case:
    """How an operation is tried: the shape of the value, further arguments, and the error."""
    return shape, args, kwargs, error


def weights(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.25


_ACTIVATIONS = (
    "relu relu6 silu sigmoid special_expit tanh hardswish hardsigmoid mish selu softsign logsigmoid log_sigmoid "
    "tanhshrink hardtanh celu elu softplus leaky_relu rrelu gelu softshrink hardshrink"
)
_NOTHING = "contiguous clone detach cpu requires_grad_ double float"
_DROPOUT = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"

_LAST_ALONG_AN_AXIS = "softmax special_softmax log_softmax special_log_softmax softmin argmax argmin max amax normalize"
_LAST_ELEMENTWISE = "exp expm1 special_expm1"

CASES: dict[str, Case] = {
    **dict.fromkeys(_ACTIVATIONS.split(), case(VECTOR, error=FITTED)),
    **dict.fromkeys(("clamp", "clip"), case(VECTOR, -0.5, 0.75, error=FITTED)),
    "clamp_min": case(VECTOR, -0.5, error=FITTED),
    "clamp_max": case(VECTOR, 0.5, error=FITTED),
    "threshold": case(VECTOR, 0.1, 0.05, error=FITTED),
    "_threshold": case(VECTOR, 0.1, 0.05, error=FITTED),
    "prelu": case(VECTOR, torch.full((1,), 0.25), error=FITTED),
    **dict.fromkeys(_NOTHING.split(), case(VECTOR)),
    **dict.fromkeys(("half", "bfloat16"), case(VECTOR, error=0.02)),
    **dict.fromkeys(_DROPOUT.split(), case(VECTOR, 0.5, False)),
    **dict.fromkeys(("dropout2d", "dropout3d"), case(IMAGE, 0.5, False)),
    **dict.fromkeys(("add", "__add__", "__radd__", "sub", "subtract", "__sub__"), case(VECTOR, weights(6))),
    **dict.fromkeys(("rsub", "__rsub__", "mul", "multiply", "__mul__", "__rmul__"), case(VECTOR, weights(6))),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv", "__truediv__"), case(VECTOR, weights(6))),
    **dict.fromkeys(("neg", "negative", "__neg__", "pos", "positive", "square"), case(VECTOR)),
    **dict.fromkeys(("pow", "__pow__"), case(VECTOR, 3)),
    "conv2d": case(IMAGE, weights(3, 2, 3, 3), weights(3)),
    "linear": case(VECTOR, weights(5, 6), weights(5)),
    "batch_norm": case(IMAGE, weights(2), weights(2), weights(2), weights(2)),
    "avg_pool2d": case(IMAGE, 2),
    "adaptive_avg_pool2d": case(IMAGE, 2),
    "max_pool2d": case(IMAGE, (1, 2), error=COMPARED),
    "adaptive_max_pool2d": case(IMAGE, (4, 2), error=COMPARED),
    "mean": case(IMAGE, (2, 3)),
    "sum": case(VECTOR, 1, True),
    **dict.fromkeys(("view", "reshape"), case(IMAGE, (-1, 32))),
    "flatten": case(IMAGE, 1),
    "unflatten": case(VECTOR, 1, (2, 3)),
    "view_as": case(IMAGE, torch.zeros(1)),
    "reshape_as": case(IMAGE, torch.zeros(1)),
    "squeeze": case((2, 4, 1), 3),
    "unsqueeze": case(VECTOR, 1),
    "ravel": case(VECTOR),
    "pad": case(IMAGE, (1, 0, 1, 1)),
    **dict.fromkeys(("getitem", "__getitem__"), case(VECTOR, (slice(None), slice(1, 4)))),
    "narrow": case(VECTOR, 1, 1, 3),
    "select": case(IMAGE, 1, 1),
    "split": case(VECTOR, 2, 1),
    "chunk": case(VECTOR, 3, 1),
    "to": case(VECTOR, torch.float64),
    "type": case(VECTOR, torch.float64),
    "type_as": case(VECTOR, torch.zeros(1)),
    **dict.fromkeys(("broadcast_to", "expand"), case((2, 1, 4), (-1, 2, 4, 4))),
    "expand_as": case((2, 1, 4), torch.zeros(1)),
    **dict.fromkeys(_LAST_ALONG_AN_AXIS.split(), case(VECTOR, dim=1)),
    **dict.fromkeys(_LAST_ELEMENTWISE.split(), case(VECTOR)),
}
"""By name of a function or method."""

LAST = {*_LAST_ALONG_AN_AXIS.split(), *_LAST_ELEMENTWISE.split()}
LAST_MODULES = {nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, ClientStep}
"""What the client computes, as a model's last step."""

BY_MODULE: dict[type[nn.Module], tuple[tuple[int, ...], Callable[[], nn.Module], float]] = {
    nn.Conv2d: (IMAGE, lambda: nn.Conv2d(2, 3, 3, 2, 1), EXACT),
    nn.Linear: (VECTOR, lambda: nn.Linear(6, 5), EXACT),
    nn.BatchNorm1d: (VECTOR, lambda: nn.BatchNorm1d(6), EXACT),
    nn.BatchNorm2d: (IMAGE, lambda: nn.BatchNorm2d(2), EXACT),
    nn.SyncBatchNorm: (IMAGE, lambda: nn.SyncBatchNorm(2), EXACT),
    nn.Threshold: (VECTOR, lambda: nn.Threshold(0.1, 0.05), FITTED),
    nn.AvgPool2d: (IMAGE, lambda: nn.AvgPool2d(2), EXACT),
    nn.AdaptiveAvgPool2d: (IMAGE, lambda: nn.AdaptiveAvgPool2d(2), EXACT),
    nn.MaxPool2d: (IMAGE, lambda: nn.MaxPool2d((1, 2)), COMPARED),
    nn.AdaptiveMaxPool2d: (IMAGE, lambda: nn.AdaptiveMaxPool2d((4, 2)), COMPARED),
    nn.Flatten: (IMAGE, nn.Flatten, EXACT),
    nn.Unflatten: (VECTOR, lambda: nn.Unflatten(1, (2, 3)), EXACT),
    nn.ConstantPad2d: (IMAGE, lambda: nn.ConstantPad2d(1, 0.5), EXACT),
    nn.ZeroPad2d: (IMAGE, lambda: nn.ZeroPad2d(1), EXACT),
    nn.Dropout2d: (IMAGE, nn.Dropout2d, EXACT),
    nn.Dropout3d: (IMAGE, nn.Dropout3d, EXACT),
    **{cls: (VECTOR, cls, EXACT) for cls in (nn.Identity, nn.Dropout, nn.Dropout1d, nn.AlphaDropout)},
    nn.FeatureAlphaDropout: (VECTOR, nn.FeatureAlphaDropout, EXACT),
    **{cls: (VECTOR, partial(cls, 1), EXACT) for cls in (nn.Softmax, nn.LogSoftmax, nn.Softmin)},
    nn.Softmax2d: (IMAGE, nn.Softmax2d, EXACT),
    PolynomialActivation: (VECTOR, lambda: PolynomialActivation(np.array([[0.1, 0.5, 0.2, -0.05]]), 2.0), EXACT),
    GraphOp: (VECTOR, lambda: GraphOp(Square("shift"), {"shift": np.array([0.5])}), EXACT),
    ClientStep: (VECTOR, lambda: ClientStep(Normalize(0)), EXACT),
}
"""By class, with the shape of the value; activations are made without arguments, on vectors."""


class Net(nn.Module):
    """A layer that mixes, the operation, and a layer that reads its result, or the first two of several results."""

    def __init__(self, shape: tuple[int, ...], operation: Callable[..., Any]) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(6, 6) if shape == VECTOR else nn.Conv2d(shape[0], shape[0], 1)
        self.operation = operation
        with torch.no_grad():
            width = self.values(torch.zeros(3, *shape))[0].numel()
        self.last = nn.Linear(width, 3)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        y = self.operation(self.first(x))
        y = y[0] * 0.5 + y[1] if isinstance(y, (tuple, list)) else y
        flat: torch.Tensor = y.reshape(x.shape[0], -1).float()
        return flat

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.values(x))
        return out


class Ending(Net):
    """A layer that mixes, and the operation, or the second of two results."""

    def values(self, x: torch.Tensor) -> torch.Tensor:
        y = self.operation(self.first(x))
        ending: torch.Tensor = y[1] if isinstance(y, tuple) else y
        return ending

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.values(x)


def check(shape: tuple[int, ...], operation: Callable[..., Any], error: float, last: bool = False) -> None:
    """Compile with default options, and compare with torch on images that calibration never saw."""
    torch.manual_seed(5)
    net = (Ending if last else Net)(shape, operation).eval()
    program = olac.compile(net, torch.randn(72, *shape).split(24))
    images = torch.randn(64, *shape) * 0.9
    with torch.no_grad():
        expected = net(images).numpy()
    difference = program.simulate(images.numpy()) - expected
    assert np.sqrt(np.mean(difference**2)) <= error * expected.std()


def own(registry: dict[Any, Any]) -> list[tuple[Any, Any]]:
    """The operations that olac itself registers, without those that tests of extensions register."""
    return [(key, handler) for key, handler in registry.items() if handler.__module__.startswith("olac.")]


def name_of(target: Any) -> str:
    return target if isinstance(target, str) else target.__name__


def operation(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
    """The target as a function of one value."""

    def call(x: Any) -> Any:
        given = args
        if target == "expand_as":
            given = (x.new_zeros(x.shape[0], *IMAGE),)
        elif target in ("view_as", "reshape_as"):
            given = (x.flatten(1),)
        return getattr(x, target)(*given, **kwargs) if isinstance(target, str) else target(x, *given, **kwargs)

    return call


HANDLERS = {handler: target for target, handler in reversed(own(FUNCTIONS))}
"""For each handler one of its functions and methods; test_lift has all spellings."""


@pytest.mark.parametrize("target", HANDLERS.values(), ids=lambda t: t if isinstance(t, str) else t.__name__)
def test_functions(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = FUNCTIONS[target]
    assert name_of(target) in CASES, f"{name_of(target)} is supported, but has no case here"
    reached = []

    def seen(*args: Any, **kwargs: Any) -> Any:
        reached.append(target)
        return handler(*args, **kwargs)

    for other, its in list(FUNCTIONS.items()):
        if its is handler:
            monkeypatch.setitem(FUNCTIONS, other, seen)
    shape, args, kwargs, error = CASES[name_of(target)]
    check(shape, operation(target, args, kwargs), error, name_of(target) in LAST)
    assert reached


def test_every_function_and_method_has_a_case() -> None:
    assert {name_of(target) for target, _ in own(FUNCTIONS)} <= set(CASES)


@pytest.mark.parametrize("cls", [cls for cls, _ in own(MODULES)], ids=lambda cls: cls.__name__)
def test_modules(cls: type[nn.Module]) -> None:
    shape, make, error = BY_MODULE.get(cls, (VECTOR, cls, FITTED))
    check(shape, make(), error, cls in LAST_MODULES)


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(3))


POOLED: dict[str, Callable[[], nn.Module]] = {
    "after ReLU": lambda: pooled(nn.ReLU(), nn.MaxPool2d(2)),
    "before ReLU": lambda: pooled(nn.MaxPool2d(2), nn.ReLU()),
    "after GELU": lambda: pooled(nn.GELU(), nn.MaxPool2d(2)),
    "alone": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)),
    "kernel 3, stride 2": lambda: pooled(nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "between activations": lambda: pooled(
        nn.BatchNorm2d(2), nn.SiLU(), nn.MaxPool2d((2, 1)), nn.Conv2d(2, 2, 1), nn.Tanh()
    ),
    "twice": lambda: pooled(nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.MaxPool2d((2, 1))),
    "at the end": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
    "beside a product": lambda: Squared(),
}


class Squared(nn.Module):
    """Squares and a residual sum beside activation and max-pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        y = torch.relu(y) + 0.1 * y * y
        out: torch.Tensor = self.last(nn.functional.max_pool2d(y, 2).flatten(1).square())
        return out


@pytest.mark.parametrize("name", POOLED)
def test_max_pooling_beside_activations(name: str) -> None:
    torch.manual_seed(4)
    net = POOLED[name]().eval()
    net(torch.zeros(1, 1, 4, 4))
    program = olac.compile(net, torch.rand(96, 1, 4, 4).split(32))
    images = torch.rand(500, 1, 4, 4)
    with torch.no_grad():
        expected = net(images).numpy()
    difference = program.simulate(images.numpy()) - expected
    assert np.sqrt(np.mean(difference**2)) <= FITTED * expected.std()
    assert "max_pool2d" in {fit.function for fit in program.report.fits}
