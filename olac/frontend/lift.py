"""Lifting: a traced torch.fx graph becomes a graph of the IR at stage TRACED.

Each torch operation has a small handler, found by module class, function or method name. `register_module` and
`register_function` add handlers from outside.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from olac.errors import UnsupportedModelError, UnsupportedNode, VerificationError
from olac.frontend.custom import NotElementwiseError, plain_name
from olac.frontend.trace import LEAVES, Traced
from olac.internal import guard
from olac.ir.functions import Definition
from olac.ir.graph import Graph, GraphBuilder, Origin
from olac.ir.head import Reshape as LastReshape
from olac.ir.head import Step
from olac.ir.ops import (
    Activation,
    Add,
    Affine,
    Array,
    AtClient,
    AveragePool,
    Conv2d,
    Input,
    Linear,
    MaxPool2d,
    Multiply,
    Op,
    Pad,
    Reshape,
    Shape,
    ShapeError,
    Slice,
)
from olac.ir.split import step_of
from olac.ir.types import Stage


class Unsupported(Exception):
    """Raised by a handler for an operation that can't be compiled; `lift` collects all of them."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.problem, self.advice = problem, advice


class Value:
    """An encrypted value while lifting: the id of its IR node and its shape without the batch axis.

    The shape is torch's: () for one number an image, for which the IR node has an axis of length 1.
    """

    def __init__(self, id: str, shape: Shape) -> None:
        self.id, self.shape = id, shape


class _Unknown:
    """The result of an operation that can't be compiled and that isn't one tensor with a batch axis."""


UNKNOWN = _Unknown()

ModuleHandler = Callable[["Lifter", Any, Value], Any]
FunctionHandler = Callable[..., Any]

MODULES: dict[type[nn.Module], ModuleHandler] = {}
"""By module class: handler(lifter, module, value) -> value. Subclasses are found too."""

FUNCTIONS: dict[Any, FunctionHandler] = {}
"""By function, or by method name: handler(lifter, *args, **kwargs) -> value, called with the call's own arguments."""


def register_module(*classes: type[nn.Module]) -> Callable[[ModuleHandler], ModuleHandler]:
    """Register handler(lifter, module, value) -> value for module classes and their subclasses.

    Classes that are registered aren't traced into. A handler adds IR nodes by `lifter.add` and raises `Unsupported`
    where it can't.
    """

    def decorate(handler: ModuleHandler) -> ModuleHandler:
        for cls in classes:
            MODULES[cls] = handler
            LEAVES.add(cls)
        return handler

    return decorate


def register_function(*targets: Any) -> Callable[[FunctionHandler], FunctionHandler]:
    """Register handler(lifter, *args, **kwargs) -> value for torch functions and, by name, for tensor methods.

    The handler gets the call's arguments with encrypted tensors as `Value` and constant ones as torch.Tensor.
    """

    def decorate(handler: FunctionHandler) -> FunctionHandler:
        for target in targets:
            FUNCTIONS[target] = handler
        return handler

    return decorate


class Lifter:
    """What handlers work with: it adds IR nodes for the fx node at hand.

    Attributes:
        batch: images in the traced example.
        client_head: whether the client computes the model's last steps.
        called: the plain name of the operation at hand, for messages.
        shape: torch's shape of the fx node's result with the batch axis, or None where it isn't one tensor.
    """

    def __init__(self, traced: Traced, client_head: bool = True) -> None:
        self.builder = GraphBuilder(by="lift")
        self.batch = len(traced.example)
        self.client_head = client_head
        self.called = ""
        self.shape: tuple[int, ...] | None = None
        self._origin = Origin()
        self._name = ""
        self.made: list[str] = []

    def at(self, node: fx.Node, name: str) -> None:
        """Turn to an fx node; what is added from now on comes from there, and is called `name`."""
        self._origin = Origin(node.meta.get("path", ""), node.meta.get("source", ""))
        self._name = name
        self.shape = node.meta.get("shape")
        self.made = []

    def add(self, op: Op, *inputs: Value, suffix: str = "") -> Value:
        """Append an IR node. ShapeError for operands that don't fit."""
        name = f"{self._name}_{suffix}" if suffix else self._name
        made = self.builder.add(op, [v.id for v in inputs], name=name, origin=self._origin)
        self.made.append(made)
        shape = self.builder[made].type.shape
        return Value(made, () if shape == (1,) and inputs and not any(v.shape for v in inputs) else shape)

    def at_client(self, x: Value, step: Step, suffix: str = "") -> Value:
        """Append a step that only the client can take, as one of the model's last. `Unsupported` without a head."""
        if not self.client_head:
            raise Unsupported(f"{self.called} is not supported", _advice(self.called))
        return self.add(AtClient(step), x, suffix=suffix)

    def constant(self, name: str, value: Any) -> str:
        """Add an array or tensor as float64 constant; returns its name."""
        array = value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else value
        return self.builder.constant(f"{self._name}.{name}", array)

    def affine(self, x: Value, scale: Any = 1.0, shift: Any = 0.0, suffix: str = "") -> Value:
        """scale * x + shift, with arrays that broadcast to the value's shape; the value itself where it is the same."""
        scale, shift = np.asarray(scale, dtype=np.float64), np.asarray(shift, dtype=np.float64)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Unsupported("a constant isn't finite", "Remove NaN and infinities from the model's constants")
        if (scale == 1).all() and (shift == 0).all():
            return x
        return self.add(Affine(self.constant("scale", scale), self.constant("shift", shift)), x, suffix=suffix)

    def reshape(self, x: Value, shape: Shape) -> Value:
        """The value in another shape, row-major; () for one number an image."""
        shape = tuple(int(s) for s in shape)
        laid = shape or (1,)
        if self.builder[x.id].type.shape != laid:
            x = self.add(Reshape(laid), x, suffix="reshape" if self.made else "")
        return Value(x.id, shape)

    def broadcast(self, x: Value, shape: Shape) -> Value:
        """The value repeated along axes of length 1 (or missing) to a shape. `Unsupported` where that can't be."""
        if x.shape == shape:
            return x
        full = (1,) * (len(shape) - len(x.shape)) + x.shape
        if len(full) != len(shape) or any(a not in (1, b) for a, b in zip(full, shape, strict=True)):
            raise Unsupported(f"shapes {x.shape} and {shape} don't fit", "Give both operands the same shape")
        x = self.reshape(x, full)
        if len(shape) == 1:
            return self.add(Linear(self.constant("repeat", np.ones((shape[0], 1)))), x, suffix="repeat")
        if len(shape) != 3:
            raise Unsupported(f"broadcasts {full} to {shape}", "Broadcast values of shape (channels, height, width)")
        if full[1:] != shape[1:]:
            rows, columns = (np.ones((b, 1)) if a != b else np.eye(a) for a, b in zip(full[1:], shape[1:], strict=True))
            pool = AveragePool(self.constant("rows", rows), self.constant("columns", columns))
            x = self.add(pool, x, suffix="repeat")
        if full[0] != shape[0]:
            weight = self.constant("repeat", np.ones((shape[0], 1, 1, 1)))
            x = self.add(Conv2d(weight), x, suffix="repeat")
        return x

    def axes(self, dims: Any, x: Value) -> list[int]:
        """Axes of the value (without the batch axis), from torch's dimensions. `Unsupported` for the batch axis."""
        rank = len(x.shape) + 1
        given = [dims] if isinstance(dims, int) else list(dims)
        axes = [d % rank for d in given]
        if 0 in axes:
            raise Unsupported("works along the batch axis", "Treat each image alone")
        return [a - 1 for a in axes]


# Constants and arithmetic


def _is_constant(value: Any) -> bool:
    return isinstance(value, (bool, int, float, torch.Tensor))


def _array(lifter: Lifter, constant: Any, rank: int) -> Array:
    """A constant operand as an array that broadcasts against values of that rank, without the batch axis."""
    if not isinstance(constant, torch.Tensor):
        return np.asarray(float(constant))
    if constant.is_complex():
        raise Unsupported("uses a complex constant", "Use real tensors")
    array = np.asarray(constant.detach().cpu().double().numpy())
    if array.ndim > rank + 1:
        raise Unsupported(
            f"a constant of shape {array.shape} has more axes than the value", "Give constants the value's rank"
        )
    if array.ndim == rank + 1:
        if (np.isfinite(array).all() and not (array == array[:1]).all()) or len(array) not in (1, lifter.batch):
            raise Unsupported("a constant differs between the images of a batch", "Use one constant for all images")
        array = array[0]
    return array


def _with_constant(lifter: Lifter, x: Value, constant: Any, scale: bool) -> Value:
    array = _array(lifter, constant, len(x.shape))
    try:
        shape = np.broadcast_shapes(x.shape, array.shape)
    except ValueError as error:
        raise Unsupported(f"a constant of shape {array.shape} on {x.shape}", "Make the shapes broadcast") from error
    x = lifter.broadcast(x, shape)
    return lifter.affine(x, scale=array) if scale else lifter.affine(x, shift=array)


def _common(lifter: Lifter, a: Value, b: Value) -> tuple[Value, Value]:
    if a.shape == b.shape:
        return a, b
    if len(a.shape) != len(b.shape):
        # Torch would align one operand's batch axis with another axis of the other.
        raise Unsupported(
            f"combines values of shapes {a.shape} and {b.shape}", "Give both operands the same number of axes"
        )
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise Unsupported(
            f"combines values of shapes {a.shape} and {b.shape}", "Give both operands the same shape"
        ) from error
    return lifter.broadcast(a, shape), lifter.broadcast(b, shape)


@register_function(operator.add, torch.add, "add", "__add__", "__radd__")
def _add(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if isinstance(a, Value) and isinstance(b, Value):
        a, b = _common(lifter, a, lifter.affine(b, scale=alpha, suffix="alpha"))
        return lifter.add(Add(), a, b)
    if isinstance(a, Value):
        return _with_constant(lifter, a, b * alpha, scale=False)
    return _with_constant(lifter, lifter.affine(b, scale=alpha, suffix="alpha"), a, scale=False)


@register_function(operator.sub, torch.sub, torch.subtract, "sub", "subtract", "__sub__")
def _sub(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    if isinstance(b, Value):
        if not isinstance(a, Value):
            array = _array(lifter, a, len(b.shape))
            b = lifter.broadcast(b, np.broadcast_shapes(b.shape, array.shape))
            return lifter.affine(b, scale=-float(alpha), shift=array)
        a, b = _common(lifter, a, lifter.affine(b, scale=-float(alpha), suffix="negative"))
        return lifter.add(Add(), a, b)
    return _with_constant(lifter, a, b * -alpha, scale=False)


@register_function(torch.rsub, "rsub", "__rsub__")
def _rsub(lifter: Lifter, a: Any, b: Any, *, alpha: float = 1) -> Any:
    return _sub(lifter, b, a, alpha=alpha)


@register_function(operator.mul, torch.mul, torch.multiply, "mul", "multiply", "__mul__", "__rmul__")
def _mul(lifter: Lifter, a: Any, b: Any) -> Any:
    if isinstance(a, Value) and isinstance(b, Value):
        return lifter.add(Multiply(), *_common(lifter, a, b))
    return _with_constant(lifter, a, b, True) if isinstance(a, Value) else _with_constant(lifter, b, a, True)


@register_function(operator.truediv, torch.div, torch.divide, torch.true_divide)
@register_function("div", "divide", "true_divide", "__truediv__")
def _div(lifter: Lifter, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise Unsupported("rounds a division", "Leave rounding out")
    if isinstance(b, Value):
        raise Unsupported("divides by an encrypted value", "Multiply by a polynomial of it, or by a constant")
    with np.errstate(divide="ignore"):
        return _with_constant(
            lifter, a, b.double().reciprocal() if isinstance(b, torch.Tensor) else 1 / np.float64(b), True
        )


@register_function(operator.neg, torch.neg, torch.negative, "neg", "negative", "__neg__")
def _neg(lifter: Lifter, x: Value) -> Any:
    return lifter.affine(x, scale=-1.0)


@register_function(operator.pos, torch.positive, "positive")
def _pos(lifter: Lifter, x: Value) -> Any:
    return x


@register_function(torch.square, "square")
def _square(lifter: Lifter, x: Value) -> Any:
    return lifter.add(Multiply(), x, x)


@register_function(operator.pow, torch.pow, "pow", "__pow__")
def _pow(lifter: Lifter, x: Any, exponent: Any) -> Any:
    if isinstance(exponent, torch.Tensor) and exponent.numel() == 1:
        exponent = exponent.item()
    if not isinstance(x, Value) or not isinstance(exponent, (int, float)) or exponent not in range(1, 17):
        raise Unsupported(
            "a power whose exponent isn't an integer from 1 to 16", "Use small integer powers, such as x * x"
        )
    # Square and multiply: the depth is the least, ceil(log2(exponent)).
    remaining, power = int(exponent), x
    result: Value | None = None
    while True:
        if remaining & 1:
            result = power if result is None else lifter.add(Multiply(), result, power)
        remaining >>= 1
        if not remaining:
            return result
        power = lifter.add(Multiply(), power, power)


# Convolutions and linear layers


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    pair = tuple(int(v) for v in value)
    return (pair[0], pair[0]) if len(pair) == 1 else (pair[0], pair[1])


def _conv2d(
    lifter: Lifter,
    x: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not isinstance(weight, torch.Tensor) or isinstance(bias, Value):
        raise Unsupported("a convolution whose weights are encrypted", "Use constant weights")
    if len(x.shape) != 3:
        raise Unsupported(f"a convolution of a value of shape {x.shape}", "Reshape to (channels, height, width)")
    dilation, stride = _pair(dilation), _pair(stride)
    kernel = weight.shape[2:]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    elif padding == "valid":
        sides = (0, 0, 0, 0)
    else:
        vertical, horizontal = _pair(padding)
        sides = (vertical, vertical, horizontal, horizontal)
    op = Conv2d(
        lifter.constant("weight", weight),
        None if bias is None else lifter.constant("bias", bias),
        stride,
        sides,
        dilation,
        int(groups),
    )
    return lifter.add(op, x)


@register_function(F.conv2d)
def _function_conv2d(
    lifter: Lifter,
    input: Value,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    return _conv2d(lifter, input, weight, bias, stride, padding, dilation, groups)


@register_module(nn.Conv2d)
def _module_conv2d(lifter: Lifter, m: nn.Conv2d, x: Value) -> Any:
    if m.padding_mode != "zeros":
        raise Unsupported(
            f"Conv2d with padding_mode {m.padding_mode!r}", "Use padding_mode='zeros' and train the model with it"
        )
    return _conv2d(lifter, x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)


@register_function(F.linear)
def _linear(lifter: Lifter, input: Value, weight: Any, bias: Any = None) -> Any:
    if not isinstance(weight, torch.Tensor) or isinstance(bias, Value):
        raise Unsupported("a linear layer whose weights are encrypted", "Use constant weights")
    if len(input.shape) != 1:
        raise Unsupported(
            f"Linear on values of shape {input.shape}, along their last axis only",
            "Flatten first (torch.flatten(x, 1)), or use Conv2d with a 1x1 kernel over channels",
        )
    bias_name = None if bias is None else lifter.constant("bias", bias)
    return lifter.add(Linear(lifter.constant("weight", weight), bias_name), input)


@register_module(nn.Linear)
def _module_linear(lifter: Lifter, m: nn.Linear, x: Value) -> Any:
    return _linear(lifter, x, m.weight, m.bias)


def _over_channels(array: Array, x: Value) -> Array:
    return array.reshape(-1, *(1,) * (len(x.shape) - 1))


def _normalise(lifter: Lifter, x: Value, mean: Any, variance: Any, weight: Any, bias: Any, eps: float) -> Any:
    if mean is None or variance is None:
        raise Unsupported(
            "batch normalisation without running statistics",
            "Use track_running_stats=True and train, so that evaluation doesn't depend on the batch",
        )
    if len(x.shape) not in (1, 3):
        raise Unsupported(
            f"batch normalisation of values of shape {x.shape}", "Use shape (f,) or (channels, height, width)"
        )
    scale = 1.0 / torch.sqrt(variance.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return lifter.affine(x, _over_channels(scale.detach().numpy(), x), _over_channels(shift.detach().numpy(), x))


@register_module(nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
def _batch_norm(lifter: Lifter, m: nn.BatchNorm2d, x: Value) -> Any:
    return _normalise(lifter, x, m.running_mean, m.running_var, m.weight, m.bias, m.eps)


@register_function(F.batch_norm)
def _function_batch_norm(
    lifter: Lifter,
    input: Value,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training:
        running_mean = None
    return _normalise(lifter, input, running_mean, running_var, weight, bias, eps)


# Activations


def _activate(lifter: Lifter, x: Value, function: str, *parameters: float) -> Any:
    return lifter.add(Activation(function, tuple(float(p) for p in parameters)), x)


def _plain_activation(name: str, classes: Sequence[type[nn.Module]], targets: Sequence[Any]) -> None:
    @register_module(*classes)
    def module(lifter: Lifter, m: nn.Module, x: Value) -> Any:
        return _activate(lifter, x, name)

    @register_function(*targets)
    def function(lifter: Lifter, input: Value, inplace: bool = False) -> Any:
        return _activate(lifter, input, name)


_plain_activation("relu", [nn.ReLU], [F.relu, torch.relu, "relu"])
_plain_activation("silu", [nn.SiLU], [F.silu])
_plain_activation("sigmoid", [nn.Sigmoid], [F.sigmoid, torch.sigmoid, torch.special.expit, "sigmoid"])
_plain_activation("tanh", [nn.Tanh], [F.tanh, torch.tanh, "tanh"])
_plain_activation("hardswish", [nn.Hardswish], [F.hardswish])
_plain_activation("hardsigmoid", [nn.Hardsigmoid], [F.hardsigmoid])
_plain_activation("mish", [nn.Mish], [F.mish])
_plain_activation("selu", [nn.SELU], [F.selu, torch.selu])
_plain_activation("softsign", [nn.Softsign], [F.softsign])
_plain_activation("log_sigmoid", [nn.LogSigmoid], [F.logsigmoid])
_plain_activation("tanhshrink", [nn.Tanhshrink], [F.tanhshrink])


@register_function(F.relu6)
def _relu6(lifter: Lifter, input: Value, inplace: bool = False) -> Any:
    return _activate(lifter, input, "hardtanh", 0.0, 6.0)


@register_function(F.hardtanh)
def _hardtanh(lifter: Lifter, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return _activate(lifter, input, "hardtanh", min_val, max_val)


@register_module(nn.Hardtanh, nn.ReLU6)
def _module_hardtanh(lifter: Lifter, m: nn.Hardtanh, x: Value) -> Any:
    return _activate(lifter, x, "hardtanh", m.min_val, m.max_val)


@register_function(torch.clamp, torch.clip, "clamp", "clip")
def _clamp(lifter: Lifter, input: Value, min: Any = None, max: Any = None) -> Any:
    bounds = [b.item() if isinstance(b, torch.Tensor) and b.numel() == 1 else b for b in (min, max)]
    if not all(b is None or isinstance(b, (int, float)) for b in bounds):
        raise Unsupported("clamps by tensors", "Clamp by numbers")
    low, high = bounds
    return _activate(lifter, input, "hardtanh", -math.inf if low is None else low, math.inf if high is None else high)


@register_function(torch.clamp_min, "clamp_min")
def _clamp_min(lifter: Lifter, input: Value, min: Any) -> Any:
    return _clamp(lifter, input, min=min)


@register_function(torch.clamp_max, "clamp_max")
def _clamp_max(lifter: Lifter, input: Value, max: Any) -> Any:
    return _clamp(lifter, input, max=max)


@register_function(F.threshold, torch.threshold)
def _threshold(lifter: Lifter, input: Value, threshold: float, value: float, inplace: bool = False) -> Any:
    return _activate(lifter, input, "threshold", threshold, value)


@register_module(nn.Threshold)
def _module_threshold(lifter: Lifter, m: nn.Threshold, x: Value) -> Any:
    return _activate(lifter, x, "threshold", m.threshold, m.value)


@register_function(F.softshrink)
def _softshrink(lifter: Lifter, input: Value, lambd: float = 0.5) -> Any:
    return _activate(lifter, input, "softshrink", lambd)


@register_module(nn.Softshrink)
def _module_softshrink(lifter: Lifter, m: nn.Softshrink, x: Value) -> Any:
    return _activate(lifter, x, "softshrink", m.lambd)


@register_function(F.hardshrink, torch.hardshrink, "hardshrink")
def _hardshrink(lifter: Lifter, input: Value, lambd: float = 0.5) -> Any:
    return _activate(lifter, input, "hardshrink", lambd)


@register_module(nn.Hardshrink)
def _module_hardshrink(lifter: Lifter, m: nn.Hardshrink, x: Value) -> Any:
    return _activate(lifter, x, "hardshrink", m.lambd)


@register_function(F.celu, torch.celu)
def _celu(lifter: Lifter, input: Value, alpha: float = 1.0, inplace: bool = False) -> Any:
    return _activate(lifter, input, "celu", alpha)


@register_module(nn.CELU)
def _module_celu(lifter: Lifter, m: nn.CELU, x: Value) -> Any:
    return _activate(lifter, x, "celu", m.alpha)


@register_function(F.elu)
def _elu(lifter: Lifter, input: Value, alpha: float = 1.0, inplace: bool = False) -> Any:
    return _activate(lifter, input, "elu", alpha)


@register_module(nn.ELU)
def _module_elu(lifter: Lifter, m: nn.ELU, x: Value) -> Any:
    return _activate(lifter, x, "elu", m.alpha)


@register_function(F.softplus)
def _softplus(lifter: Lifter, input: Value, beta: float = 1.0, threshold: float = 20.0) -> Any:
    return _activate(lifter, input, "softplus", beta)


@register_module(nn.Softplus)
def _module_softplus(lifter: Lifter, m: nn.Softplus, x: Value) -> Any:
    return _activate(lifter, x, "softplus", m.beta)


@register_function(F.leaky_relu)
def _leaky_relu(lifter: Lifter, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return _activate(lifter, input, "leaky_relu", negative_slope)


@register_module(nn.LeakyReLU)
def _module_leaky_relu(lifter: Lifter, m: nn.LeakyReLU, x: Value) -> Any:
    return _activate(lifter, x, "leaky_relu", m.negative_slope)


@register_function(F.rrelu, torch.rrelu)
def _rrelu(
    lifter: Lifter,
    input: Value,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Any:
    if training:
        raise Unsupported("rrelu that stays random in evaluation", "Pass training=self.training")
    return _activate(lifter, input, "leaky_relu", (lower + upper) / 2)


@register_module(nn.RReLU)
def _module_rrelu(lifter: Lifter, m: nn.RReLU, x: Value) -> Any:
    return _rrelu(lifter, x, m.lower, m.upper)


@register_function(F.prelu, torch.prelu, "prelu")
def _prelu(lifter: Lifter, input: Value, weight: Any) -> Any:
    if not isinstance(weight, torch.Tensor):
        raise Unsupported("prelu whose slopes are encrypted", "Use constant slopes")
    slopes = weight.detach().cpu().double().reshape(-1).tolist()
    return _activate(lifter, input, "prelu", *(slopes[:1] if len(set(slopes)) == 1 else slopes))


@register_module(nn.PReLU)
def _module_prelu(lifter: Lifter, m: nn.PReLU, x: Value) -> Any:
    return _prelu(lifter, x, m.weight)


@register_function(F.gelu)
def _gelu(lifter: Lifter, input: Value, *, approximate: str = "none") -> Any:
    return _activate(lifter, input, "gelu_tanh" if approximate == "tanh" else "gelu")


@register_module(nn.GELU)
def _module_gelu(lifter: Lifter, m: nn.GELU, x: Value) -> Any:
    return _gelu(lifter, x, approximate=m.approximate)


# Pooling


def _windows(
    size: int, kernel: int, stride: int, padding: int, ceil_mode: bool, include_pad: bool, divide: bool
) -> Array:
    """The matrix (windows, size) of one axis of a pooling: 1 / divisor in each window's elements, or 1."""
    last = size + 2 * padding - kernel
    count = (-(-last // stride) if ceil_mode else last // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        # Torch leaves out a last window that would start in the padding on the right.
        count -= 1
    matrix = np.zeros((count, size))
    for i in range(count):
        start = i * stride - padding
        end = min(start + kernel, size + padding)
        inside = range(max(start, 0), min(end, size))
        divisor = end - start if include_pad else len(inside)
        matrix[i, inside.start : inside.stop] = 1.0 / divisor if divide else 1.0
    return matrix


def _pool(lifter: Lifter, x: Value, rows: Array, columns: Array, stride: tuple[int, int]) -> Any:
    if all(np.array_equal(m, np.eye(len(m))) for m in (rows, columns)):
        return x
    return lifter.add(AveragePool(lifter.constant("rows", rows), lifter.constant("columns", columns), stride), x)


def _planes(x: Value, what: str) -> tuple[int, int, int]:
    if len(x.shape) != 3:
        raise Unsupported(f"{what} of a value of shape {x.shape}", "Reshape to (channels, height, width)")
    return x.shape[0], x.shape[1], x.shape[2]


@register_function(F.avg_pool2d)
def _avg_pool2d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    sizes = _planes(input, "average pooling")[1:]
    kernels, paddings = _pair(kernel_size), _pair(padding)
    strides = kernels if stride is None or stride == [] else _pair(stride)
    divide = divisor_override is None
    rows, columns = (
        _windows(size, kernel, step, pad, ceil_mode, count_include_pad, divide)
        for size, kernel, step, pad in zip(sizes, kernels, strides, paddings, strict=True)
    )
    if divisor_override is not None:
        rows = rows / divisor_override
    return _pool(lifter, input, rows, columns, strides)


@register_module(nn.AvgPool2d)
def _module_avg_pool2d(lifter: Lifter, m: nn.AvgPool2d, x: Value) -> Any:
    return _avg_pool2d(
        lifter, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    )


@register_function(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(lifter: Lifter, input: Value, output_size: Any) -> Any:
    sizes = _planes(input, "adaptive pooling")[1:]
    wanted = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
    matrices, steps = [], []
    for size, out in zip(sizes, wanted, strict=True):
        count = size if out is None else int(out)
        matrix = np.zeros((count, size))
        for i in range(count):
            start, end = i * size // count, -(-(i + 1) * size // count)
            matrix[i, start:end] = 1.0 / (end - start)
        matrices.append(matrix)
        steps.append(size // count if size % count == 0 else 0)
    return _pool(lifter, input, matrices[0], matrices[1], (steps[0], steps[1]) if all(steps) else (0, 0))


@register_module(nn.AdaptiveAvgPool2d)
def _module_adaptive_avg_pool2d(lifter: Lifter, m: nn.AdaptiveAvgPool2d, x: Value) -> Any:
    return _adaptive_avg_pool2d(lifter, x, m.output_size)


@register_function(F.max_pool2d, torch.max_pool2d)
def _max_pool2d(
    lifter: Lifter,
    input: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if return_indices:
        raise Unsupported("max-pooling that returns indices", "Leave return_indices out: indices are not polynomial")
    _planes(input, "max-pooling")
    kernel = _pair(kernel_size)
    strides = kernel if stride is None or stride in ((), []) else _pair(stride)
    op = MaxPool2d(kernel, strides, _pair(padding), _pair(dilation), bool(ceil_mode))
    return input if (kernel, strides) == ((1, 1), (1, 1)) else lifter.add(op, input)


@register_module(nn.MaxPool2d)
def _module_max_pool2d(lifter: Lifter, m: nn.MaxPool2d, x: Value) -> Any:
    return _max_pool2d(lifter, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)


@register_function(F.adaptive_max_pool2d)
def _adaptive_max_pool2d(lifter: Lifter, input: Value, output_size: Any, return_indices: bool = False) -> Any:
    sizes = _planes(input, "adaptive max-pooling")[1:]
    wanted = (output_size, output_size) if output_size is None or isinstance(output_size, int) else output_size
    counts = [size if out is None else int(out) for size, out in zip(sizes, wanted, strict=True)]
    if any(size % count for size, count in zip(sizes, counts, strict=True)):
        raise Unsupported(
            f"adaptive max-pooling of {sizes[0]}x{sizes[1]} to {counts[0]}x{counts[1]}, by windows of several sizes",
            "Use MaxPool2d, or an output size that divides the input's",
        )
    kernel = tuple(size // count for size, count in zip(sizes, counts, strict=True))
    return _max_pool2d(lifter, input, kernel, return_indices=return_indices)


@register_module(nn.AdaptiveMaxPool2d)
def _module_adaptive_max_pool2d(lifter: Lifter, m: nn.AdaptiveMaxPool2d, x: Value) -> Any:
    return _adaptive_max_pool2d(lifter, x, m.output_size, m.return_indices)


def _reduce(lifter: Lifter, x: Value, dim: Any, keepdim: bool, mean: bool) -> Any:
    if dim is None or dim == () or dim == []:
        raise Unsupported("reduces over the whole batch", "Give the axes to reduce over, without the batch axis")
    axes = sorted(lifter.axes(dim, x))
    kept = tuple(1 if i in axes else s for i, s in enumerate(x.shape))
    weight = {s: 1.0 / s if mean else 1.0 for s in (*x.shape, 1)}
    shape = kept if keepdim else tuple(s for i, s in enumerate(x.shape) if i not in axes)
    if len(x.shape) == 2:
        x = lifter.reshape(x, (*x.shape, 1))
    y = x
    if len(x.shape) == 1:
        y = lifter.add(Linear(lifter.constant("weights", np.full((1, x.shape[0]), weight[x.shape[0]]))), y)
    else:
        _planes(x, "a mean" if mean else "a sum")
        if set(axes) & {1, 2}:
            rows, columns = (
                np.full((1, x.shape[i]), weight[x.shape[i]]) if i in axes else np.eye(x.shape[i]) for i in (1, 2)
            )
            stride = (x.shape[1] if 1 in axes else 1, x.shape[2] if 2 in axes else 1)
            y = _pool(lifter, y, rows, columns, stride)
        if 0 in axes:
            channels = np.full((1, x.shape[0], 1, 1), weight[x.shape[0]])
            y = lifter.add(Conv2d(lifter.constant("weights", channels)), y)
    return lifter.reshape(y, shape)


@register_function(torch.mean, "mean")
def _mean(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _reduce(lifter, input, dim, keepdim, mean=True)


@register_function(torch.sum, "sum")
def _sum(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return _reduce(lifter, input, dim, keepdim, mean=False)


# Shapes


@register_function("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze", "ravel")
@register_function(torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze, torch.ravel)
def _reshape(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    # Torch's own shape says what comes out: all of these keep the elements in row-major order.
    shape = lifter.shape
    assert shape is not None
    if shape[:1] != (lifter.batch,) or math.prod(shape[1:]) != math.prod(x.shape):
        raise Unsupported("merges or moves the batch axis", "Keep the batch axis first, e.g. x.flatten(1)")
    return lifter.reshape(x, shape[1:])


@register_module(nn.Flatten, nn.Unflatten)
def _module_reshape(lifter: Lifter, m: nn.Module, x: Value) -> Any:
    return _reshape(lifter, x)


def _pad_amounts(lifter: Lifter, x: Value, pad: Sequence[int]) -> tuple[tuple[int, int], ...]:
    pairs = [(int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)][::-1]
    missing = len(x.shape) + 1 - len(pairs)
    pairs = [(0, 0)] * missing + pairs
    if pairs[0] != (0, 0):
        raise Unsupported("pads the batch axis", "Treat each image alone")
    return tuple(pairs[1:])


@register_function(F.pad)
def _pad(lifter: Lifter, input: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    if mode != "constant":
        raise Unsupported(f"pads in mode {mode!r}", "Pad with a constant, e.g. zeros, and train the model with it")
    amounts = _pad_amounts(lifter, input, pad)
    if not any(any(pair) for pair in amounts):
        return input
    return lifter.add(Pad(amounts, float(value or 0.0)), input)


@register_module(nn.ConstantPad2d, nn.ZeroPad2d)
def _module_pad(lifter: Lifter, m: nn.ConstantPad2d, x: Value) -> Any:
    return _pad(lifter, x, m.padding, value=m.value)


def _slice(lifter: Lifter, x: Value, slices: Sequence[tuple[int, int, int]], shape: Shape) -> Any:
    whole = all(s == (0, n, 1) for s, n in zip(slices, x.shape, strict=True))
    y = x if whole else lifter.add(Slice(tuple(slices)), x)
    return lifter.reshape(y, shape)


def _bounds(item: slice, size: int) -> tuple[int, int, int]:
    start, stop, step = item.indices(size)
    return start, max(start, stop), step


@register_function(operator.getitem, "__getitem__")
def _getitem(lifter: Lifter, x: Any, index: Any) -> Any:
    if isinstance(x, (tuple, list)):
        return x[index]
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(i is None or i is Ellipsis or type(i) in (int, slice) for i in items):
        raise Unsupported("indexes by a tensor or a list", "Use slices, or a constant matrix by F.linear")
    if not any(i is Ellipsis for i in items):
        items.append(Ellipsis)
    at = next(n for n, i in enumerate(items) if i is Ellipsis)
    used = sum(i is not None and i is not Ellipsis for i in items)
    items[at : at + 1] = [slice(None)] * (len(x.shape) + 1 - used)
    if items[0] != slice(None) and not (isinstance(items[0], slice) and items[0] == slice(0, None)):
        raise Unsupported("takes single images of the batch", "Treat each image alone: x[:, ...]")
    slices: list[tuple[int, int, int]] = []
    shape: list[int] = []
    axis = 0
    for item in items[1:]:
        if item is None:
            shape.append(1)
            continue
        size = x.shape[axis]
        axis += 1
        if isinstance(item, slice):
            bounds = _bounds(item, size)
            shape.append(len(range(*bounds)))
        else:
            bounds = (item % size, item % size + 1, 1)
        slices.append(bounds)
    return _slice(lifter, x, slices, tuple(shape))


def _along(lifter: Lifter, x: Value, dim: int, start: int, stop: int, drop: bool = False) -> Any:
    axis = lifter.axes(dim, x)[0]
    slices = [(0, n, 1) for n in x.shape]
    slices[axis] = (start, stop, 1)
    shape = list(x.shape)
    shape[axis] = stop - start
    if drop:
        del shape[axis]
    return _slice(lifter, x, slices, tuple(shape))


@register_function(torch.narrow, "narrow")
def _narrow(lifter: Lifter, input: Value, dim: int, start: int, length: int) -> Any:
    start = int(start) % input.shape[lifter.axes(dim, input)[0]]
    return _along(lifter, input, dim, start, start + length)


@register_function(torch.select, "select")
def _select(lifter: Lifter, input: Value, dim: int, index: int) -> Any:
    index = index % input.shape[lifter.axes(dim, input)[0]]
    return _along(lifter, input, dim, index, index + 1, drop=True)


@register_function(torch.split, "split")
def _split(lifter: Lifter, tensor: Value, split_size_or_sections: Any, dim: int = 0) -> Any:
    size = tensor.shape[lifter.axes(dim, tensor)[0]]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        sizes = [min(step, size - at) for at in range(0, size, step)]
    else:
        sizes = [int(s) for s in split_size_or_sections]
    ends = np.cumsum(sizes).tolist()
    return tuple(_along(lifter, tensor, dim, e - s, e) for s, e in zip(sizes, ends, strict=True))


@register_function(torch.chunk, "chunk")
def _chunk(lifter: Lifter, input: Value, chunks: int, dim: int = 0) -> Any:
    size = input.shape[lifter.axes(dim, input)[0]]
    return _split(lifter, input, -(-size // chunks), dim)


# What changes nothing


@register_module(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
@register_module(nn.FeatureAlphaDropout)
def _nothing(lifter: Lifter, m: nn.Module, x: Value) -> Any:
    return x


@register_function("contiguous", "clone", "detach", "cpu", "requires_grad_", "double", "float")
@register_function(torch.clone, torch.detach)
def _same(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    return x


@register_function("to", "type", "type_as")
def _to(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.dtype) and not argument.is_floating_point:
            raise Unsupported(f"converts to {argument}", "Leave conversions to integers out")
    return x


@register_function("half", "bfloat16")
def _half(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    return x


@register_function("expand", "expand_as")
@register_function("broadcast_to", torch.broadcast_to)
def _expand(lifter: Lifter, x: Value, *args: Any, **kwargs: Any) -> Any:
    shape = lifter.shape
    assert shape is not None
    if len(shape) != len(x.shape) + 1 or shape[0] != lifter.batch:
        raise Unsupported("adds an axis before the batch axis", "Keep the batch axis first")
    return lifter.broadcast(x, shape[1:])


@register_function(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
@register_function(torch.dropout)
def _dropout(lifter: Lifter, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise Unsupported("dropout that stays on in evaluation", "Pass training=self.training")
    return input


# Advice, by a name within the operation's own; the first that fits is given.
_ADVICE: tuple[tuple[str, str], ...] = (
    ("maxpool|max_pool", "Use MaxPool2d, with a kernel (1, k) for sequences"),
    (
        "instance_?norm|layer_?norm|group_?norm|rms_?norm|local_?response",
        "Use BatchNorm2d or BatchNorm1d, whose statistics are constants in evaluation",
    ),
    ("batch_?norm", "Use BatchNorm1d or BatchNorm2d"),
    ("softmax|softmin", "End the model in it, so that the client computes it, or apply it to the decrypted outputs"),
    ("attention|transformer", "Attention divides and exponentiates encrypted data; use a convolutional model"),
    ("embedding|one_hot", "Look embeddings up before encryption and give the model their values"),
    ("^cat$|concat|stack", "Use sums (residual connections), or convolutions that are added up"),
    ("conv_?transpose|upsample|interpolate|pixel_?shuffle", "Upsample before encryption, or use Conv2d only"),
    ("conv1d|conv3d", "Use Conv2d, with a kernel (1, k) for sequences"),
    ("lstm|gru|rnn", "Recurrent layers are too deep for one ciphertext; use convolutions"),
    ("max|min|topk|sort|argmax|argmin|median", "Comparisons are not polynomial; take it on the decrypted outputs"),
    (
        "^(gt|lt|ge|le|eq|ne|where|sign|heaviside|isnan)$",
        "Comparisons are not polynomial; use ReLU or another smooth activation",
    ),
    ("matmul|bmm|einsum|^mm$|addmm|baddbmm", "Use Linear or Conv2d with constant weights, or elementwise products"),
    ("transpose|permute|movedim|swapaxes|^t$|^mt$", "Keep the order of the axes; permute weights instead"),
    ("avg_?pool1d|avg_?pool3d|lp_?pool", "Use AvgPool2d"),
    ("reflect|replicat|circular", "Pad with zeros"),
    (
        "abs|exp|log|sqrt|norm|div|reciprocal|std|var",
        "Only polynomials can be computed on encrypted data; move it behind decryption, use a supported activation, or "
        "name the elementwise module or function that it is a part of in activations=",
    ),
    ("rand|bernoulli|dropout", "Remove randomness from the forward pass"),
    ("copy_|fill_|zero_|index|scatter|gather", "Use operations that make new tensors, with constant slices"),
)
_GENERIC = (
    "Express it by convolutions, linear layers, average pooling, sums, products and supported activations, or register "
    "a lifting for it"
)


def _advice(name: str) -> str:
    return next((text for pattern, text in _ADVICE if re.search(pattern, name.lower())), _GENERIC)


# The walk


def _identifier(path: str, operation: str) -> str:
    name = re.sub(r"\W", "_", f"{path}_{operation}".strip("_") if operation else path, flags=re.ASCII)
    if not name or not (name[0].isalpha() or name[0] == "_"):
        name = f"m{name}"
    return f"{name}_" if keyword.iskeyword(name) else name


def _operation(node: fx.Node) -> str:
    """The operation's plain name: "add", "relu", "getitem"."""
    target = node.meta.get("called") or node.target
    if target is getattr:
        target = node.args[1]
    name = target if isinstance(target, str) else getattr(target, "__name__", "function")
    return name.strip("_") or name


def _handler_of(module: nn.Module) -> ModuleHandler | None:
    for base in type(module).__mro__:
        if base in MODULES:
            return MODULES[base]
        if "forward" in vars(base):
            return None
    return None


def _stand_in(lifter: Lifter, node: fx.Node) -> Any:
    """A value in the place of what can't be compiled, so that all of the rest is looked at too."""
    shape = node.meta.get("shape")
    if shape is None or len(shape) < 1 or shape[0] != lifter.batch or math.prod(shape) == 0:
        return UNKNOWN
    return Value(lifter.add(Input(tuple(shape[1:]) or (1,)), suffix="unsupported").id, tuple(shape[1:]))


def _find(value: Any, kind: type) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_find(v, kind) for v in value)
    if isinstance(value, dict):
        return any(_find(v, kind) for v in value.values())
    return isinstance(value, kind)


_ELEMENTWISE = "An activation gives each element by itself, or by itself and its channel; see activations="


def _lift_custom(lifter: Lifter, traced: Traced, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The value of a module or function that the caller named as an activation; None for other nodes."""
    custom = traced.custom
    if custom is None:
        return None
    path = str(node.target)
    module = traced.module.get_submodule(path) if node.op == "call_module" else None
    key = custom.key_of(node.target) if module is None else None
    if (module is None and key is None) or (module is not None and not custom.holds(module, path)):
        return None
    operands = [*args, *kwargs.values()]
    values = [v for v in operands if isinstance(v, (Value, _Unknown))]
    if len(values) != 1 or _find([v for v in operands if v is not values[0]], Value):
        raise Unsupported(f"{_operation(node)} is called with {len(values)} values", _ELEMENTWISE)
    x = values[0]
    if isinstance(x, _Unknown):
        return UNKNOWN

    def call(function: Any, given: Any) -> Any:
        return function(
            *(given if a is x else a for a in args), **{k: given if a is x else a for k, a in kwargs.items()}
        )

    try:
        if module is None:
            made: Definition = custom.of_function(key, call, len(operands) == 1, x.shape)
        elif len(operands) != 1:
            raise Unsupported(
                f"{type(module).__name__} with more than its input", "Call the module with one tensor only"
            )
        else:
            made = custom.of_module(module, path, x.shape)
    except NotElementwiseError as error:
        what = plain_name(key) if module is None else type(module).__name__
        raise Unsupported(f"{what} can't be an activation: {error}", _ELEMENTWISE) from error
    return lifter.add(Activation(made.name, (), made), x)


def _lift_node(lifter: Lifter, traced: Traced, node: fx.Node, args: Any, kwargs: Any) -> Any:
    operation = lifter.called = _operation(node)
    own = _lift_custom(lifter, traced, node, args, kwargs)
    if own is not None:
        return own
    if node.op == "call_module":
        module = traced.module.get_submodule(str(node.target))
        lifter.called = type(module).__name__
        handler = _handler_of(module)
        if handler is None:
            name = type(module).__name__
            if type(module).__module__.startswith("torch.ao."):
                raise Unsupported(f"{name} is quantised", "Compile the model as it was before quantisation")
            raise Unsupported(f"{name} is not supported", _advice(name))
        operands = [*args, *kwargs.values()]
        if len(operands) != 1 or not isinstance(operands[0], (Value, _Unknown)):
            raise Unsupported(
                f"{type(module).__name__} with more than its input", "Call the module with one tensor only"
            )
        return UNKNOWN if isinstance(operands[0], _Unknown) else handler(lifter, module, operands[0])
    function = FUNCTIONS.get(node.target)
    if function is None and node.op == "call_method" and str(node.target).startswith("__"):
        function = FUNCTIONS.get(operation)
    if function is None:
        raise Unsupported(f"{operation} is not supported", _advice(operation))
    if _find((args, kwargs), _Unknown):
        return UNKNOWN
    if not _find((args, kwargs), Value):
        raise VerificationError(f"{node.format_node()} works on constants only")
    try:
        return function(lifter, *args, **kwargs)
    except TypeError as error:
        raise Unsupported(f"{operation} with arguments that aren't supported ({error})", _advice(operation)) from error


def _constant_value(traced: Traced, target: str) -> Any:
    value: Any = traced.module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _resolve(value: Any, environment: dict[fx.Node, Any]) -> Any:
    """An fx argument with values in the place of nodes."""
    if isinstance(value, fx.Node):
        return environment[value]
    if isinstance(value, tuple):
        return tuple(_resolve(v, environment) for v in value)
    if isinstance(value, list):
        return [_resolve(v, environment) for v in value]
    if isinstance(value, dict):
        return {k: _resolve(v, environment) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolve(v, environment) for v in (value.start, value.stop, value.step)))
    return value


def _check_shape(lifter: Lifter, node: fx.Node, result: Any) -> None:
    shape = node.meta.get("shape")
    if isinstance(result, Value) and shape is not None and (lifter.batch, *result.shape) != tuple(shape):
        raise VerificationError(
            f"{node.format_node()}: lifted to {result.shape}, where torch gives {tuple(shape)} with the batch axis"
        )


def _check_type(node: fx.Node, result: Any, classes: bool) -> None:
    """An encrypted value is a real number: what torch makes integers, booleans or complex of is something else.

    `classes` says that the client computes the value and that it is a class, an integer.
    """
    dtype = node.meta.get("dtype")
    allowed = dtype is None or dtype.is_floating_point or (classes and dtype == torch.int64)
    if isinstance(result, Value) and not allowed:
        raise Unsupported(f"converts to {dtype}", "Leave conversions to anything but real numbers out")


def _ids(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_ids(v) for v in value)
    return value.id if isinstance(value, Value) else None


def _values(value: Any) -> Iterator[Value]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _values(part)
    elif isinstance(value, Value):
        yield value


@dataclass(frozen=True)
class _OnlyAtClient:
    """An fx node whose value only the client can compute, its plain name, and whether the value is a class."""

    node: fx.Node
    called: str
    decides: bool


class _LastSteps:
    """Follows what only the client can compute: nothing but further steps of a head may come of it."""

    def __init__(self, lifter: Lifter) -> None:
        self._lifter = lifter
        self._known: dict[str, _OnlyAtClient] = {}

    def decided(self, values: Any) -> bool:
        """Whether one of the values is a class."""
        return any((v.id in self._known and self._known[v.id].decides) or self._chosen(v) for v in _values(values))

    def _chosen(self, value: Value) -> bool:
        op = self._lifter.builder[value.id].op
        return isinstance(op, AtClient) and op.step.decides

    def follow(self, node: fx.Node, arguments: Sequence[Any], result: Any) -> _OnlyAtClient | None:
        """Take notice of what was made for an fx node; what it reads although it may not."""
        builder = self._lifter.builder
        made = [builder[i] for i in self._lifter.made]
        read = next((self._known[v.id] for v in _values(arguments) if v.id in self._known), None)
        steps = [step_of(one, builder.constants) for one in made]
        if read is not None and not all(
            isinstance(step, LastReshape) if read.decides else step is not None for step in steps
        ):
            return read
        here = [one.op.step for one in made if isinstance(one.op, AtClient)]
        if read is not None or here:
            called = self._lifter.called
            for value in _values(result):
                decides = self._chosen(value)
                self._known[value.id] = (
                    _OnlyAtClient(node, called, decides)
                    if read is None
                    else replace(read, decides=read.decides or decides)
                )
        return None


@guard("lifting the model")
def lift(traced: Traced, client_head: bool = True) -> Graph:
    """The traced model as a graph at stage TRACED, with one input, `x`, and one output.

    With `client_head`, the last ops may be some that only clients compute, such as softmax, and one number an image is
    an output of shape (): `olac.ir.split.split_head` takes these off.

    Node ids come from module paths ("layer1_0_conv1"); constants are float64. Fills `traced.lifted` and
    `traced.results`, from which calibration knows the fx node of each IR node.

    Raises:
        UnsupportedModelError: with every place that can't be compiled, also those that tracing found.
        VerificationError: where a shape of the IR is not torch's.
    """
    lifter = Lifter(traced, client_head)
    last = _LastSteps(lifter)
    problems = list(traced.problems)
    environment: dict[fx.Node, Any] = {}
    output: Any = None
    lifted: dict[str, tuple[str, ...]] = {}

    def report(node: fx.Node, problem: str, advice: str) -> None:
        found = UnsupportedNode(node.meta.get("path", ""), node.meta.get("source", ""), problem, advice)
        if found not in problems:
            problems.append(found)

    for node in traced.module.graph.nodes:
        path = node.meta.get("path", "")
        if node.op == "placeholder":
            shape = traced.input_shape
            lifter.at(node, "x")
            if len(shape) not in (1, 3):
                report(
                    node,
                    f"inputs of shape {shape} for one image are not supported",
                    "Give (features,) or (channels, height, width) for each image, e.g. images.unsqueeze(1)",
                )
            environment[node] = lifter.add(Input(shape))
        elif node.op == "get_attr":
            environment[node] = _constant_value(traced, str(node.target))
            continue
        elif node.op == "output":
            result = node.args[0]
            output = environment.get(result) if isinstance(result, fx.Node) else None
            given = result.meta.get("shape") if isinstance(result, fx.Node) else None
            if isinstance(result, (tuple, list, dict)):
                report(
                    node,
                    f"forward returns a {'dict' if isinstance(result, dict) else 'tuple'} of {len(result)} values",
                    "Return one tensor; wrap the model in a module that picks it",
                )
            elif not isinstance(output, (Value, _Unknown)):
                report(node, "the output does not depend on the input", "Return a tensor computed from the input")
            elif isinstance(output, _Unknown) and not problems:
                report(node, f"the output of shape {given} has no batch axis", "Return one row for each image")
            elif isinstance(output, Value) and not output.shape:
                lifter.at(node, "output")
                output = environment[node] = lifter.add(AtClient(LastReshape(())), output)
                lifted[node.name] = tuple(lifter.made)
            continue
        else:
            lifter.at(node, _identifier(path, "" if node.op == "call_module" else _operation(node)))
            args, kwargs = _resolve(node.args, environment), _resolve(dict(node.kwargs), environment)
            try:
                result = _lift_node(lifter, traced, node, args, kwargs)
                _check_type(node, result, last.decided([args, list(kwargs.values()), result]))
                _check_shape(lifter, node, result)
            except (Unsupported, ShapeError) as error:
                if isinstance(error, Unsupported):
                    report(node, error.problem, error.advice)
                else:
                    report(node, str(error), _GENERIC)
                result = _stand_in(lifter, node)
            misplaced = last.follow(node, [args, list(kwargs.values())], result)
            if misplaced is not None:
                report(
                    misplaced.node,
                    f"{misplaced.called} is supported as one of the last steps only, which the client computes",
                    _advice(misplaced.called),
                )
            environment[node] = result
        lifted[node.name] = tuple(lifter.made)
    if not problems and traced.batch_problem is not None:
        problems.append(traced.batch_problem)
    if problems:
        raise UnsupportedModelError(problems)
    placeholder = next(n for n in traced.module.graph.nodes if n.op == "placeholder")
    graph = lifter.builder.build([output.id], Stage.TRACED, inputs=[environment[placeholder].id])
    traced.lifted = lifted
    traced.results = {node.name: _ids(value) for node, value in environment.items()}
    return graph
