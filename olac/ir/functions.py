"""The univariate functions that olac replaces by polynomials, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Function = Callable[[Array], Array]


def _leaky_relu(slope: float) -> Function:
    return lambda x: np.where(x > 0, x, slope * x)


def _gelu(x: Array) -> Array:
    return np.asarray(x * special.ndtr(x))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _silu(x: Array) -> Array:
    return np.asarray(x * special.expit(x))


def _hardtanh(low: float, high: float) -> Function:
    return lambda x: np.clip(x, low, high)


def _elu(alpha: float) -> Function:
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def _softplus(beta: float) -> Function:
    return lambda x: np.asarray(np.logaddexp(0.0, beta * x) / beta)


def _hardsigmoid(x: Array) -> Array:
    return np.clip(x / 6 + 0.5, 0.0, 1.0)


def _mish(x: Array) -> Array:
    return np.asarray(x * np.tanh(np.logaddexp(0.0, x)))


def _selu(x: Array) -> Array:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * _elu(alpha)(x)


FUNCTIONS: dict[str, Callable[..., Function]] = {
    "relu": lambda: lambda x: np.maximum(x, 0.0),
    "leaky_relu": _leaky_relu,
    "gelu": lambda: _gelu,
    "gelu_tanh": lambda: _gelu_tanh,
    "silu": lambda: _silu,
    "sigmoid": lambda: lambda x: np.asarray(special.expit(x)),
    "tanh": lambda: np.tanh,
    "hardtanh": _hardtanh,
    "elu": _elu,
    "softplus": _softplus,
    "hardsigmoid": lambda: _hardsigmoid,
    "hardswish": lambda: lambda x: x * _hardsigmoid(x),
    "mish": lambda: _mish,
    "selu": lambda: _selu,
    "softsign": lambda: lambda x: x / (1 + np.abs(x)),
}
"""By name: a function of the parameters that gives the function of x."""


def activation(name: str, parameters: tuple[float, ...] = ()) -> Function:
    """The function of that name, over float64 arrays of any shape. KeyError for a name that isn't registered."""
    return FUNCTIONS[name](*parameters)
