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
from olac.errors import UnsupportedModelError
from olac.frontend.lifter import FUNCTIONS, MODULES
from olac.ir.head import Normalize
from olac.ir.ops import Square
from olac.training import PolynomialActivation
from olac.training.network import ClientStep, GraphOp

VECTOR, IMAGE = (6,), (2, 4, 4)
LINE, VOLUME, TOKENS = (2, 8), (2, 4, 4, 2), (3, 4)
EXACT, FITTED, COMPARED, COMPARED_FULLY = 1e-5, 0.35, 0.15, 0.6
"""Largest root mean square error, in standard deviations of the outputs: of exact operations, of activations, which are
fitted, of maxima, and of comparisons of numbers that may be nearly equal.
"""
REFUSED = -1.0
"""In place of an error: the operation is refused, with a message of its own."""

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

_POSITIVE = "log log1p sqrt rsqrt reciprocal"
_EVERYWHERE = "sin cos atan arctan erf special_erf special_log1p"
_PRODUCTS = "matmul mm bmm mv dot inner __matmul__ __rmatmul__ addmm baddbmm"
_LOGIC = (
    "logical_and logical_or logical_not and_ or_ invert bitwise_and bitwise_or bitwise_not __and__ __or__ __invert__"
)
_BITWISE = "bitwise_and bitwise_or bitwise_not __and__ __or__ __invert__"
_COMPARED = "gt ge greater greater_equal __gt__ __ge__ lt le less less_equal __lt__ __le__"

_LAST_ALONG_AN_AXIS = (
    "softmax special_softmax log_softmax special_log_softmax softmin argmax argmin max amax min amin normalize"
)
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
    **dict.fromkeys(_POSITIVE.split(), case(VECTOR, error=FITTED)),
    **dict.fromkeys(
        ["sin", "cos", "atan", "arctan", "erf", "special_erf", "special_log1p"], case(VECTOR, error=FITTED)
    ),
    **dict.fromkeys(("abs", "absolute", "__abs__"), case(VECTOR, error=FITTED)),
    **dict.fromkeys(("sign", "sgn"), case(VECTOR, error=COMPARED_FULLY)),
    **dict.fromkeys(_COMPARED.split(), case(VECTOR, 0.25, error=COMPARED_FULLY)),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), case(VECTOR, weights(6), error=FITTED)),
    **dict.fromkeys(["transpose", "swapaxes", "swapdims"], case(TOKENS, 1, 2)),
    "t": case(VECTOR),
    "adjoint": case(TOKENS),
    "permute": case(IMAGE, (0, 2, 3, 1)),
    **dict.fromkeys(("movedim", "moveaxis"), case(IMAGE, 1, -1)),
    "getattr": case(TOKENS, "mT"),
    "unbind": case(TOKENS, 1),
    **dict.fromkeys(["cat", "concat", "concatenate", "stack", "hstack", "for_each_image"], case(TOKENS)),
    "flip": case(TOKENS, (1,)),
    "roll": case(TOKENS, 1, 2),
    "index_select": case(TOKENS, 2, torch.tensor([2, 0])),
    **dict.fromkeys(("repeat", "tile"), case(TOKENS, (1, 1, 2))),
    "repeat_interleave": case(TOKENS, 2, 1),
    "unfold": case(IMAGE, 2),
    "pixel_shuffle": case((4, 2, 2), 2),
    "pixel_unshuffle": case(IMAGE, 2),
    "channel_shuffle": case((4, 2, 2), 2),
    "addcmul": case(VECTOR, weights(6), weights(6)),
    "addcdiv": case(VECTOR, weights(6), weights(6)),
    "lerp": case(VECTOR, weights(6), 0.25),
    "prod": case((2, 3), 1),
    "cumsum": case(VECTOR, 1),
    **dict.fromkeys(
        ["matmul", "mm", "bmm", "mv", "dot", "inner", "__matmul__", "__rmatmul__", "addmm", "baddbmm"], case(VECTOR)
    ),
    "einsum": case(TOKENS),
    "bilinear": case(VECTOR),
    "scaled_dot_product_attention": case(TOKENS, error=FITTED),
    "conv1d": case(LINE, weights(3, 2, 3), weights(3)),
    "conv3d": case(VOLUME, weights(3, 2, 2, 2, 2)),
    "conv_transpose1d": case(LINE, weights(2, 3, 2), weights(3), 2),
    "conv_transpose2d": case(IMAGE, weights(2, 3, 2, 2), weights(3), 2),
    "avg_pool1d": case(LINE, 2),
    "avg_pool3d": case(VOLUME, 2),
    "max_pool1d": case(LINE, 2, error=COMPARED),
    "max_pool3d": case(VOLUME, (2, 1, 1), error=COMPARED),
    "adaptive_avg_pool1d": case(LINE, 2),
    "adaptive_avg_pool3d": case(VOLUME, (2, 2, 1)),
    "adaptive_max_pool1d": case(LINE, 4, error=COMPARED),
    "layer_norm": case(TOKENS, (4,), error=FITTED),
    "rms_norm": case(TOKENS, (4,), error=FITTED),
    "group_norm": case(IMAGE, 1, error=FITTED),
    "instance_norm": case(IMAGE, error=FITTED),
    **dict.fromkeys(("var", "std", "var_mean"), case(TOKENS, 2, error=FITTED)),
    **dict.fromkeys(("norm", "linalg_norm", "vector_norm", "linalg_vector_norm"), case(VECTOR, dim=1, error=FITTED)),
    "cosine_similarity": case(TOKENS, weights(1, 1, 4), 2, error=FITTED),
    "interpolate": case(IMAGE, None, 2),
    **dict.fromkeys(["eq", "ne", "__eq__", "__ne__"], case(VECTOR, 0.5, error=REFUSED)),
    **dict.fromkeys(
        ["logical_and", "logical_or", "logical_not", "and_", "or_", "invert"], case(VECTOR, error=COMPARED_FULLY)
    ),
    **dict.fromkeys(
        ["bitwise_and", "bitwise_or", "bitwise_not", "__and__", "__or__", "__invert__"], case(VECTOR, error=FITTED)
    ),
    "where": case(VECTOR),
    "masked_fill": case(VECTOR, weights(6) > 0.8, 0.5),
    **dict.fromkeys(_LAST_ALONG_AN_AXIS.split(), case(VECTOR, dim=1)),
    **dict.fromkeys(_LAST_ELEMENTWISE.split(), case(VECTOR)),
}
"""By name of a function or method."""

SPECIAL: dict[str, Callable[[Callable[..., Any], Any], Any]] = {
    **dict.fromkeys(_POSITIVE.split(), lambda f, x: f(x.square() + 0.5)),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), lambda f, x: f([x, 2 * x], 1)),
    "hstack": lambda f, x: f([x, 2 * x]),
    "for_each_image": lambda f, x: torch.cat([torch.ones(len(x), 1, 4), x], 1),
    "matmul": lambda f, x: f(x, weights(6, 3)),
    "einsum": lambda f, x: f("bij,bkj->bik", x, x),
    "addmm": lambda f, x: f(weights(3), x, weights(6, 3)),
    "bilinear": lambda f, x: f(x[:, :3], x[:, 3:], weights(2, 3, 3)),
    "scaled_dot_product_attention": lambda f, x: f(0.5 * x, 0.5 * x, x),
    "logical_and": lambda f, x: f(x > 0.2, x > -0.5) * 1.0,
    "logical_or": lambda f, x: f(x > 0.2, x < -0.5) * 1.0,
    "logical_not": lambda f, x: f(x > 0.2) * 1.0,
    "t": lambda f, x: f(f(x)),
    "gt": lambda f, x: f(x, 0.25) * 1.0,
    "lt": lambda f, x: f(x, 0.25) * 1.0,
}
"""How some are called that take other tensors, or only some numbers."""

LAST = {*_LAST_ALONG_AN_AXIS.split(), *_LAST_ELEMENTWISE.split()}
LAST_MODULES = {nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, ClientStep}
"""What the client computes, as a model's last step."""


class Attention(nn.Module):
    """A module that attends to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.attention(x, x, x)[0]
        return made


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
    nn.BatchNorm3d: (VOLUME, lambda: nn.BatchNorm3d(2), EXACT),
    nn.Conv1d: (LINE, lambda: nn.Conv1d(2, 3, 3), EXACT),
    nn.Conv3d: (VOLUME, lambda: nn.Conv3d(2, 2, 2), EXACT),
    nn.ConvTranspose1d: (LINE, lambda: nn.ConvTranspose1d(2, 2, 2, 2), EXACT),
    nn.ConvTranspose2d: (IMAGE, lambda: nn.ConvTranspose2d(2, 2, 3, 2), EXACT),
    nn.Unfold: (IMAGE, lambda: nn.Unfold(2), EXACT),
    nn.PixelShuffle: ((4, 2, 2), lambda: nn.PixelShuffle(2), EXACT),
    nn.PixelUnshuffle: (IMAGE, lambda: nn.PixelUnshuffle(2), EXACT),
    nn.ChannelShuffle: ((4, 2, 2), lambda: nn.ChannelShuffle(2), EXACT),
    nn.LayerNorm: (TOKENS, lambda: nn.LayerNorm(4), FITTED),
    nn.RMSNorm: (TOKENS, lambda: nn.RMSNorm(4), FITTED),
    nn.GroupNorm: (IMAGE, lambda: nn.GroupNorm(2, 2), FITTED),
    nn.InstanceNorm1d: (LINE, lambda: nn.InstanceNorm1d(2), FITTED),
    nn.InstanceNorm2d: (IMAGE, lambda: nn.InstanceNorm2d(2), FITTED),
    nn.InstanceNorm3d: (VOLUME, lambda: nn.InstanceNorm3d(2), FITTED),
    nn.AvgPool1d: (LINE, lambda: nn.AvgPool1d(2), EXACT),
    nn.AvgPool3d: (VOLUME, lambda: nn.AvgPool3d(2), EXACT),
    nn.AdaptiveAvgPool1d: (LINE, lambda: nn.AdaptiveAvgPool1d(3), EXACT),
    nn.AdaptiveAvgPool3d: (VOLUME, lambda: nn.AdaptiveAvgPool3d(2), EXACT),
    nn.MaxPool1d: (LINE, lambda: nn.MaxPool1d(2), COMPARED),
    nn.MaxPool3d: (VOLUME, lambda: nn.MaxPool3d((1, 2, 1)), COMPARED),
    nn.AdaptiveMaxPool1d: (LINE, lambda: nn.AdaptiveMaxPool1d(4), COMPARED),
    nn.LSTM: ((2, 3), lambda: nn.LSTM(3, 2, batch_first=True), FITTED),
    nn.GRU: ((2, 3), lambda: nn.GRU(3, 2, batch_first=True), FITTED),
    nn.RNN: ((2, 3), lambda: nn.RNN(3, 2, batch_first=True), FITTED),
    nn.LSTMCell: (VECTOR, lambda: nn.LSTMCell(6, 2), FITTED),
    nn.GRUCell: (VECTOR, lambda: nn.GRUCell(6, 2), FITTED),
    nn.RNNCell: (VECTOR, lambda: nn.RNNCell(6, 2), FITTED),
    nn.Upsample: (IMAGE, lambda: nn.Upsample(scale_factor=2), EXACT),
    nn.UpsamplingNearest2d: (IMAGE, lambda: nn.UpsamplingNearest2d(scale_factor=2), EXACT),
    nn.UpsamplingBilinear2d: (IMAGE, lambda: nn.UpsamplingBilinear2d(scale_factor=2), EXACT),
    **{cls: (LINE, partial(cls, 1), EXACT) for cls in (nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d)},
    **{cls: (IMAGE, partial(cls, 1), EXACT) for cls in (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)},
    **{cls: (VOLUME, partial(cls, 1), EXACT) for cls in (nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d)},
    nn.ConstantPad1d: (LINE, lambda: nn.ConstantPad1d(1, 0.5), EXACT),
    nn.ConstantPad3d: (VOLUME, lambda: nn.ConstantPad3d(1, 0.5), EXACT),
    nn.ZeroPad1d: (LINE, lambda: nn.ZeroPad1d(1), EXACT),
    nn.ZeroPad3d: (VOLUME, lambda: nn.ZeroPad3d(1), EXACT),
    nn.MultiheadAttention: (TOKENS, lambda: Attention(), FITTED),
    nn.TransformerEncoderLayer: (TOKENS, lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), FITTED),
    nn.TransformerEncoder: (
        TOKENS,
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1),
        FITTED,
    ),
    PolynomialActivation: (VECTOR, lambda: PolynomialActivation(np.array([[0.1, 0.5, 0.2, -0.05]]), 2.0), EXACT),
    GraphOp: (VECTOR, lambda: GraphOp(Square("shift"), {"shift": np.array([0.5])}), EXACT),
    ClientStep: (VECTOR, lambda: ClientStep(Normalize(0)), EXACT),
}
"""By class, with the shape of the value; activations are made without arguments, on vectors."""


class Net(nn.Module):
    """A layer that mixes, the operation, and a layer that reads its result, or the first two of several results."""

    def __init__(self, shape: tuple[int, ...], operation: Callable[..., Any]) -> None:
        super().__init__()
        mixing: dict[int, Any] = {1: nn.Linear, 2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
        kernel = (1,) if len(shape) > 1 else ()
        self.first: nn.Module = mixing[len(shape)](shape[0], shape[0], *kernel)
        self.operation = operation
        with torch.no_grad():
            width = self.values(torch.zeros(3, *shape))[0].numel()
        self.last = nn.Linear(width, 3)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        y = self.operation(self.first(x))
        if isinstance(y, (tuple, list)):
            first, second = (one[0] if isinstance(one, tuple) else one for one in y[:2])
            y = first * 0.5 + second.reshape(first.shape) if first.numel() == second.numel() else first
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

        def plain(*operands: Any) -> Any:
            return getattr(operands[0], target)(*operands[1:]) if isinstance(target, str) else target(*operands)

        if target == "where":
            return x.where(weights(6) > 0.8, weights(6))
        if target is torch.where:
            return torch.where(weights(6) > 0.8, x, 2 * x)

        if (special := SPECIAL.get(name_of(target))) is not None:
            return special(plain, x)
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
    if error == REFUSED:
        with pytest.raises(UnsupportedModelError, match="equal"):
            check(shape, operation(target, args, kwargs), error)
        assert reached
        return
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
