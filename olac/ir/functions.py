"""The univariate functions that olac replaces by polynomials: one definition of each, in numpy.

Torch gets them from here, too, with gradients (see `olac.approximation.tensors`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from olac.system.arrays import Array as Array

Function = Callable[[Array], Array]
Parameters = tuple[float, ...]

STEP = 1e-5
"""The step of numerical derivatives, relative to inputs beyond 1. Even single precision gives two digits with it."""
JUMP = 10.0
"""If a central difference is more than this many times the smaller one-sided one, it crosses a jump or a bend."""


@dataclass(frozen=True)
class Family:
    """A registered function and its parameters.

    Attributes:
        make: gives the function of x for the parameters.
        per_channel: whether there is a parameter for each channel, or a single one for all channels.
        torch: the name of the same function in `torch.nn.functional` or `torch`, if it is faster there; it takes x and
            the parameters. Without it torch computes the definition here.
        options: further arguments of that function.
    """

    make: Callable[..., Function]
    per_channel: bool = False
    torch: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *parameters: float) -> Function:
        return self.make(*parameters)

    def channels(self, parameters: Parameters) -> int:
        """The number of channels that have parameters of their own; 1 if all channels have the same."""
        return len(parameters) if self.per_channel else 1

    @staticmethod
    def of(registered: Callable[..., Function]) -> Family:
        """The family of what was registered, which may also be just a function of the parameters."""
        return registered if isinstance(registered, Family) else Family(registered)


def _over_channels(values: Parameters, x: Array) -> Array:
    """One value per channel, to broadcast against x of shape (n, channels, ...)."""
    if len(values) == 1:
        return np.asarray(values[0])
    if x.ndim < 2 or x.shape[1] != len(values):
        raise ValueError(f"a function of {len(values)} channels on values of shape {x.shape}")
    return np.asarray(values).reshape(-1, *(1,) * (x.ndim - 2))


def _quiet(function: Function) -> Function:
    """A function that is not defined everywhere; where it is not, it gives NaN or infinities without a warning."""

    def quiet(x: Array) -> Array:
        with np.errstate(all="ignore"):
            return function(x)

    return quiet


def _elu(alpha: float) -> Function:
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def _hardsigmoid(x: Array) -> Array:
    return np.clip(x / 6 + 0.5, 0.0, 1.0)


def _selu(x: Array) -> Array:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * _elu(alpha)(x)


FUNCTIONS: dict[str, Callable[..., Function]] = {
    "relu": Family(lambda: lambda x: np.maximum(x, 0.0), torch="relu"),
    "leaky_relu": Family(lambda slope: lambda x: np.where(x > 0, x, slope * x), torch="leaky_relu"),
    "prelu": Family(lambda *slopes: lambda x: np.where(x > 0, x, _over_channels(slopes, x) * x), per_channel=True),
    "gelu": Family(lambda: lambda x: x * special.ndtr(x), torch="gelu"),
    "gelu_tanh": Family(
        lambda: lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        torch="gelu",
        options={"approximate": "tanh"},
    ),
    "silu": Family(lambda: lambda x: x * special.expit(x), torch="silu"),
    "sigmoid": Family(lambda: lambda x: np.asarray(special.expit(x)), torch="sigmoid"),
    "tanh": Family(lambda: np.tanh, torch="tanh"),
    "hardtanh": lambda low, high: lambda x: np.clip(x, low, high),
    "elu": _elu,
    "softplus": lambda beta: lambda x: np.logaddexp(0.0, beta * x) / beta,
    "hardsigmoid": lambda: _hardsigmoid,
    "hardswish": lambda: lambda x: x * _hardsigmoid(x),
    "mish": lambda: lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "selu": lambda: _selu,
    "softsign": lambda: lambda x: x / (1 + np.abs(x)),
    "celu": lambda alpha: lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0) / alpha)),
    "log_sigmoid": lambda: lambda x: -np.logaddexp(0.0, -x),
    "tanhshrink": lambda: lambda x: x - np.tanh(x),
    "softshrink": lambda width: lambda x: x - np.clip(x, -width, width),
    "hardshrink": lambda width: lambda x: np.where(np.abs(x) > width, x, 0.0),
    "exp": Family(lambda: np.exp, torch="exp"),
    "expm1": Family(lambda: np.expm1, torch="expm1"),
    "log": Family(lambda: _quiet(np.log), torch="log"),
    "log1p": Family(lambda: _quiet(np.log1p), torch="log1p"),
    "sqrt": Family(lambda: _quiet(np.sqrt), torch="sqrt"),
    "rsqrt": lambda least: _quiet(lambda x: 1 / np.sqrt(x + least)),
    "reciprocal": Family(lambda: _quiet(np.reciprocal), torch="reciprocal"),
    "power": Family(lambda exponent: _quiet(lambda x: np.power(x, exponent)), torch="pow"),
    "sin": Family(lambda: np.sin, torch="sin"),
    "cos": Family(lambda: np.cos, torch="cos"),
    "atan": Family(lambda: np.arctan, torch="atan"),
    "erf": Family(lambda: special.erf, torch="erf"),
    "abs": Family(lambda: np.abs, torch="abs"),
    "sign": Family(lambda: np.sign, torch="sign"),
    "positive": Family(lambda: lambda x: np.where(x > 0, 1.0, 0.0)),
    "threshold": lambda threshold, value: lambda x: np.where(x > threshold, x, value),
}
"""By name: a function of the parameters that gives the function of x, or a `Family`."""

_OWN = dict(FUNCTIONS)


def is_own(name: str) -> bool:
    """Whether the function of that name is olac's, and not one that was registered from outside."""
    return name in _OWN and FUNCTIONS.get(name) is _OWN[name]


CLIENT_FUNCTIONS: dict[str, Callable[..., Function]] = {
    "exp": lambda: np.exp,
    "expm1": lambda: np.expm1,
}
"""As `FUNCTIONS`, but never replaced by polynomials: only a client computes them, as a model's last step."""


@dataclass(frozen=True, eq=False)
class Definition:
    """A function that a caller gave, under the name that an `Activation` has for it.

    Attributes:
        name: the unique name, under which the function is found as long as an op holds the definition.
        label: the name that the caller gave.
        function: takes float64 arrays of any shape; if `channels` is given, of shape (n, channels, *trailing axes).
        derivative: takes the same arrays; None to compute it by differences.
    """

    name: str
    label: str
    function: Function
    channels: int | None = None
    trailing: int = 0
    derivative: Function | None = None


# A definition is found by its name for as long as an op of some graph holds it.
_DEFINITIONS: weakref.WeakValueDictionary[str, Definition] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def define(
    name: str,
    function: Function,
    channels: int | None = None,
    trailing: int = 0,
    derivative: Function | None = None,
) -> Definition:
    """Define a function for as long as the result is held, under a free name: `name`, or `name` and a number."""
    with _LOCK:
        free, number = name, 1
        while free in FUNCTIONS or free in _DEFINITIONS:
            number += 1
            free = f"{name}_{number}"
        made = Definition(free, name, function, channels, trailing, derivative)
        _DEFINITIONS[free] = made
    return made


def activation(name: str, parameters: Parameters = ()) -> Function:
    """The function of that name, over float64 arrays of any shape; of (n, channels, ...) if it is per channel.

    KeyError for a name that is neither registered nor defined.
    """
    definition = _DEFINITIONS.get(name)
    return FUNCTIONS[name](*parameters) if definition is None else definition.function


def derivative(name: str, parameters: Parameters = ()) -> Function:
    """The derivative of `activation(name, parameters)`: the one given with the function, or else differences."""
    function, definition = activation(name, parameters), _DEFINITIONS.get(name)
    given = None if definition is None else definition.derivative

    def slopes(x: Array) -> Array:
        if given is None:
            return _differences(function, x)
        exact = given(x)
        return exact if np.isfinite(exact).all() else np.where(np.isfinite(exact), exact, _differences(function, x))

    return slopes


def _differences(function: Function, x: Array) -> Array:
    """Central differences; one-sided ones, to the flatter side, if there is a jump, a bend or the domain's end."""
    h = STEP * np.maximum(1.0, np.abs(x))
    with np.errstate(all="ignore"):
        y = function(x)
        left, right = (y - function(x - h)) / h, (function(x + h) - y) / h
        flatter = np.where(np.isfinite(left) & ~(np.abs(right) < np.abs(left)), left, right)
        central = (left + right) / 2
        return np.where(2 * np.abs(central) <= JUMP * np.abs(flatter), central, flatter)


def registered(name: str) -> Family | None:
    """The family of that name in `FUNCTIONS`, or None."""
    return Family.of(FUNCTIONS[name]) if name in FUNCTIONS else None


def channel_count(name: str, parameters: Parameters = ()) -> int | None:
    """The number of channels that have functions of their own; None if there is one function for any number."""
    definition = _DEFINITIONS.get(name)
    if definition is not None:
        return definition.channels
    family = registered(name)
    return None if family is None or family.channels(parameters) == 1 else family.channels(parameters)


def is_per_channel(name: str, parameters: Parameters = ()) -> bool:
    """Whether channels have functions of their own."""
    return channel_count(name, parameters) is not None


def channel_function(name: str, parameters: Parameters, channel: int) -> Function:
    """The univariate function of one channel, over float64 arrays of any shape."""
    definition = _DEFINITIONS.get(name)
    if definition is None:
        return activation(name, (parameters[channel],) if is_per_channel(name, parameters) else parameters)
    return definition.function if definition.channels is None else _one_channel(definition, channel)


def _one_channel(definition: Definition, channel: int) -> Function:
    channels = definition.channels or 1

    def function(x: Array) -> Array:
        x = np.asarray(x, dtype=np.float64)
        shape = (x.size, channels, *(1,) * definition.trailing)
        every = np.broadcast_to(x.reshape(-1, *(1,) * (len(shape) - 1)), shape)
        return definition.function(np.ascontiguousarray(every))[:, channel].reshape(x.shape)

    return function


def channel_functions(name: str, parameters: Parameters, channels: int) -> list[Function]:
    """The univariate function of each channel; a single one if it is the same for all channels."""
    if is_per_channel(name, parameters):
        return [channel_function(name, parameters, channel) for channel in range(channels)]
    return [activation(name, parameters)]
