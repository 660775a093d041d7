"""Lifting of the last steps that only the client computes: softmax, argmax and the like."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from olac.frontend.lifter import Lifter, Unsupported, Value, register_function, register_module
from olac.ir.head import ArgMax, Elementwise, LogSoftmax, Max, Normalize, Softmax


def _axis(lifter: Lifter, x: Value, dim: Any) -> int:
    if not isinstance(dim, int):
        raise Unsupported(f"{lifter.called} over the whole batch", "Give the axis, dim=1 for classes")
    return lifter.axes(dim, x)[0]


def _class_axis(lifter: Lifter, x: Value, dim: Any) -> int:
    """The axis of a softmax; if it is not given, torch has a rule of its own."""
    return _axis(lifter, x, (0 if len(x.shape) in (0, 2) else 1) if dim is None else dim)


def _reduced(
    lifter: Lifter, x: Value, kind: type[ArgMax] | type[Max], dim: Any, keepdim: Any, suffix: str = ""
) -> Value:
    """One element for all along an axis. One number an image keeps its axis in the graph, as everywhere."""
    axis, vector = _axis(lifter, x, dim), len(x.shape) == 1
    made = lifter.at_client(x, kind(axis, bool(keepdim) or vector), suffix)
    return Value(made.id, ()) if vector and not keepdim else made


@register_module(nn.Softmax)
def _module_softmax(lifter: Lifter, m: nn.Softmax, x: Value) -> Any:
    return lifter.at_client(x, Softmax(_class_axis(lifter, x, m.dim)))


@register_module(nn.Softmax2d)
def _module_softmax2d(lifter: Lifter, m: nn.Softmax2d, x: Value) -> Any:
    return lifter.at_client(x, Softmax(_axis(lifter, x, -3)))


@register_module(nn.LogSoftmax)
def _module_log_softmax(lifter: Lifter, m: nn.LogSoftmax, x: Value) -> Any:
    return lifter.at_client(x, LogSoftmax(_class_axis(lifter, x, m.dim)))


@register_module(nn.Softmin)
def _module_softmin(lifter: Lifter, m: nn.Softmin, x: Value) -> Any:
    return _softmin(lifter, x, m.dim)


@register_function(F.softmax, torch.softmax, torch.special.softmax, "softmax")
def _softmax(lifter: Lifter, input: Value, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return lifter.at_client(input, Softmax(_class_axis(lifter, input, dim)))


@register_function(F.log_softmax, torch.log_softmax, torch.special.log_softmax, "log_softmax")
def _log_softmax(lifter: Lifter, input: Value, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return lifter.at_client(input, LogSoftmax(_class_axis(lifter, input, dim)))


@register_function(F.softmin)
def _softmin(lifter: Lifter, input: Value, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    axis = _class_axis(lifter, input, dim)
    return lifter.at_client(lifter.affine(input, scale=-1.0, suffix="negative"), Softmax(axis))


@register_function(torch.argmax, "argmax")
def _argmax(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
    return _reduced(lifter, input, ArgMax, dim, keepdim)


@register_function(torch.argmin, "argmin")
def _argmin(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
    return _reduced(lifter, lifter.affine(input, scale=-1.0, suffix="negative"), ArgMax, dim, keepdim)


@register_function(torch.amax, "amax")
def _amax(lifter: Lifter, input: Value, dim: Any = (), keepdim: bool = False) -> Any:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if len(dims) != 1:
        raise Unsupported(f"{lifter.called} over {len(dims)} axes", "Take it over one axis, or use MaxPool2d")
    return _reduced(lifter, input, Max, dims[0], keepdim)


@register_function(torch.max, "max")
def _max(lifter: Lifter, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
    values = _reduced(lifter, input, Max, dim, keepdim, "values")
    return values, _reduced(lifter, input, ArgMax, dim, keepdim, "indices")


@register_function(F.normalize)
def _normalize(lifter: Lifter, input: Value, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Any:
    if not (isinstance(p, (int, float)) and 1 <= p < math.inf):
        raise Unsupported(f"normalises by a {p}-norm", "Use p=2 or p=1")
    return lifter.at_client(input, Normalize(_axis(lifter, input, dim), float(p), float(eps)))


@register_function(torch.exp, "exp")
def _exp(lifter: Lifter, input: Value) -> Any:
    return lifter.at_client(input, Elementwise("exp"))


@register_function(torch.expm1, torch.special.expm1, "expm1")
def _expm1(lifter: Lifter, input: Value) -> Any:
    return lifter.at_client(input, Elementwise("expm1"))
