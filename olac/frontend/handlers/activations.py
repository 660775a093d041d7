"""Activations, by their names in `olac.ir.functions`."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.lifter import Lifter, Unsupported, Value, any_order, register_function, register_module
from olac.ir.ops import (
    Activation,
)

LEAST_THRESHOLD = 5.0
"""Beyond it softplus is linear in torch, which differs from the function by at most 0.007 / beta there."""


def activate(lifter: Lifter, x: Value, function: str, *parameters: float) -> Any:
    op = Activation(function, tuple(float(p) for p in parameters))
    if function == "prelu" and len(parameters) > 1:
        (channels,) = lifter.axes(1, x)  # these must be the first axis
        x = lifter.settle(x, (channels, *(a for a in x.axes if a != channels)))
    return lifter.elementwise(op, x)


def _plain_activation(name: str, classes: Sequence[type[nn.Module]], targets: Sequence[Any]) -> None:
    @register_module(*classes)
    @any_order
    def module(lifter: Lifter, m: nn.Module, x: Value) -> Any:
        return activate(lifter, x, name)

    @register_function(*targets)
    @any_order
    def function(lifter: Lifter, input: Value, inplace: bool = False) -> Any:
        return activate(lifter, input, name)


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


_plain_activation("log", [], [torch.log, "log"])
_plain_activation("log1p", [], [torch.log1p, torch.special.log1p, "log1p"])
_plain_activation("sqrt", [], [torch.sqrt, "sqrt"])
_plain_activation("sin", [], [torch.sin, "sin"])
_plain_activation("cos", [], [torch.cos, "cos"])
_plain_activation("atan", [], [torch.atan, torch.arctan, "atan", "arctan"])
_plain_activation("erf", [], [torch.erf, torch.special.erf, "erf"])
_plain_activation("abs", [], [torch.abs, torch.absolute, "abs", "absolute", "__abs__", operator.abs])
_plain_activation("sign", [], [torch.sign, torch.sgn, "sign", "sgn"])


@register_function(torch.rsqrt, "rsqrt")
@any_order
def _rsqrt(lifter: Lifter, input: Value) -> Any:
    return activate(lifter, input, "rsqrt", 0.0)


@register_function(F.relu6)
@any_order
def _relu6(lifter: Lifter, input: Value, inplace: bool = False) -> Any:
    return activate(lifter, input, "hardtanh", 0.0, 6.0)


@register_function(F.hardtanh)
@any_order
def _hardtanh(lifter: Lifter, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
    return activate(lifter, input, "hardtanh", min_val, max_val)


@register_module(nn.Hardtanh, nn.ReLU6)
@any_order
def _module_hardtanh(lifter: Lifter, m: nn.Hardtanh, x: Value) -> Any:
    return activate(lifter, x, "hardtanh", m.min_val, m.max_val)


@register_function(torch.clamp, torch.clip, "clamp", "clip")
@any_order
def _clamp(lifter: Lifter, input: Value, min: Any = None, max: Any = None) -> Any:
    bounds = [b.item() if isinstance(b, torch.Tensor) and b.numel() == 1 else b for b in (min, max)]
    if not all(b is None or isinstance(b, (int, float)) for b in bounds):
        raise Unsupported("clamps by tensors", "Clamp by numbers")
    low, high = bounds
    return activate(lifter, input, "hardtanh", -math.inf if low is None else low, math.inf if high is None else high)


@register_function(torch.clamp_min, "clamp_min")
@any_order
def _clamp_min(lifter: Lifter, input: Value, min: Any) -> Any:
    return _clamp(lifter, input, min=min)


@register_function(torch.clamp_max, "clamp_max")
@any_order
def _clamp_max(lifter: Lifter, input: Value, max: Any) -> Any:
    return _clamp(lifter, input, max=max)


@register_function(F.threshold, torch.threshold)
@any_order
def _threshold(lifter: Lifter, input: Value, threshold: float, value: float, inplace: bool = False) -> Any:
    return activate(lifter, input, "threshold", threshold, value)


@register_module(nn.Threshold)
@any_order
def _module_threshold(lifter: Lifter, m: nn.Threshold, x: Value) -> Any:
    return activate(lifter, x, "threshold", m.threshold, m.value)


@register_function(F.softshrink)
@any_order
def _softshrink(lifter: Lifter, input: Value, lambd: float = 0.5) -> Any:
    return activate(lifter, input, "softshrink", lambd)


@register_module(nn.Softshrink)
@any_order
def _module_softshrink(lifter: Lifter, m: nn.Softshrink, x: Value) -> Any:
    return activate(lifter, x, "softshrink", m.lambd)


@register_function(F.hardshrink, torch.hardshrink, "hardshrink")
@any_order
def _hardshrink(lifter: Lifter, input: Value, lambd: float = 0.5) -> Any:
    return activate(lifter, input, "hardshrink", lambd)


@register_module(nn.Hardshrink)
@any_order
def _module_hardshrink(lifter: Lifter, m: nn.Hardshrink, x: Value) -> Any:
    return activate(lifter, x, "hardshrink", m.lambd)


@register_function(F.celu, torch.celu)
@any_order
def _celu(lifter: Lifter, input: Value, alpha: float = 1.0, inplace: bool = False) -> Any:
    return activate(lifter, input, "celu", alpha)


@register_module(nn.CELU)
@any_order
def _module_celu(lifter: Lifter, m: nn.CELU, x: Value) -> Any:
    return activate(lifter, x, "celu", m.alpha)


@register_function(F.elu)
@any_order
def _elu(lifter: Lifter, input: Value, alpha: float = 1.0, inplace: bool = False) -> Any:
    return activate(lifter, input, "elu", alpha)


@register_module(nn.ELU)
@any_order
def _module_elu(lifter: Lifter, m: nn.ELU, x: Value) -> Any:
    return activate(lifter, x, "elu", m.alpha)


@register_function(F.softplus)
@any_order
def _softplus(lifter: Lifter, input: Value, beta: float = 1.0, threshold: float = 20.0) -> Any:
    if threshold < LEAST_THRESHOLD:
        raise Unsupported(f"softplus with a threshold of {threshold}", "Use the default threshold, 20")
    return activate(lifter, input, "softplus", beta)


@register_module(nn.Softplus)
@any_order
def _module_softplus(lifter: Lifter, m: nn.Softplus, x: Value) -> Any:
    return _softplus(lifter, x, m.beta, m.threshold)


@register_function(F.leaky_relu)
@any_order
def _leaky_relu(lifter: Lifter, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return activate(lifter, input, "leaky_relu", negative_slope)


@register_module(nn.LeakyReLU)
@any_order
def _module_leaky_relu(lifter: Lifter, m: nn.LeakyReLU, x: Value) -> Any:
    return activate(lifter, x, "leaky_relu", m.negative_slope)


@register_function(F.rrelu, torch.rrelu)
@any_order
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
    return activate(lifter, input, "leaky_relu", (lower + upper) / 2)


@register_module(nn.RReLU)
@any_order
def _module_rrelu(lifter: Lifter, m: nn.RReLU, x: Value) -> Any:
    return _rrelu(lifter, x, m.lower, m.upper)


@register_function(F.prelu, torch.prelu, "prelu")
@any_order
def _prelu(lifter: Lifter, input: Value, weight: Any) -> Any:
    if not isinstance(weight, torch.Tensor):
        raise Unsupported("prelu whose slopes are encrypted", "Use constant slopes")
    slopes = weight.detach().cpu().double().reshape(-1).tolist()
    return activate(lifter, input, "prelu", *(slopes[:1] if len(set(slopes)) == 1 else slopes))


@register_module(nn.PReLU)
@any_order
def _module_prelu(lifter: Lifter, m: nn.PReLU, x: Value) -> Any:
    return _prelu(lifter, x, m.weight)


@register_function(F.gelu)
@any_order
def _gelu(lifter: Lifter, input: Value, *, approximate: str = "none") -> Any:
    return activate(lifter, input, "gelu_tanh" if approximate == "tanh" else "gelu")


@register_module(nn.GELU)
@any_order
def _module_gelu(lifter: Lifter, m: nn.GELU, x: Value) -> Any:
    return _gelu(lifter, x, approximate=m.approximate)
