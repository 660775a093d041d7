"""Activations that a caller names: the caller's own modules and functions, taken unchanged if they work elementwise.

`activations` maps a module class, a module's qualified name or a function that `forward` calls to an elementwise
function over numpy arrays or torch tensors, or to None for the module or function itself.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from olac.errors import CalibrationError
from olac.frontend.replaced import replaced_functions
from olac.frontend.unwrap import unwrapped_path
from olac.ir.functions import Array, Definition, Function, define
from olac.ir.ops import Shape

Activations = Mapping[Any, Callable[[Any], Any] | None]

SAMPLES = 2
"""Images in the sample that tells whether a function works elementwise."""


class NotElementwiseError(Exception):
    """A function that a caller named can't be an activation; the message says why."""


class Custom:
    """The activations that a caller named, checked against a model.

    Raises:
        TypeError: a key that is no module class, name or function; a value that can't be called.
        ValueError: a name that the model has no module for.
    """

    def __init__(self, activations: Activations | None, model: nn.Module) -> None:
        self.classes: dict[type[nn.Module], Callable[[Any], Any] | None] = {}
        self.names: dict[str, Callable[[Any], Any] | None] = {}
        self.functions: dict[Any, Callable[[Any], Any] | None] = {}
        if activations is not None and not isinstance(activations, Mapping):
            raise TypeError(
                f"activations is a {type(activations).__name__}, expected a mapping such as {{Snake: None}}"
            )
        for key, given in (activations or {}).items():
            if given is not None and not callable(given):
                raise TypeError(f"activations[{key!r}] is a {type(given).__name__}, expected a function or None")
            if isinstance(key, type) and issubclass(key, nn.Module):
                self.classes[key] = given
            elif isinstance(key, str):
                self.names[unwrapped_path(model, key)] = given
            elif callable(key) and not isinstance(key, (type, nn.Module)):
                self.functions[key] = given
            else:
                raise TypeError(
                    f"activations has the key {key!r}, expected a module class, a module's qualified name or a function"
                )
        known = {unwrapped_path(model, name) for name, _ in model.named_modules(remove_duplicate=False)} - {""}
        unknown = sorted(
            key for key in activations or {} if isinstance(key, str) and unwrapped_path(model, key) not in known
        )
        if unknown:
            raise ValueError(f"activations names {', '.join(unknown)}, which the model has no module for")
        self.leaves = {key: _leaf(key) for key in self.functions}
        self._keys = {leaf: key for key, leaf in self.leaves.items()}
        # Only the graph's ops hold them, so they are freed with the graph.
        self._definitions: weakref.WeakValueDictionary[tuple[int, Shape], Definition] = weakref.WeakValueDictionary()

    def holds(self, module: nn.Module, path: str) -> bool:
        """Whether a module is one of the activations."""
        return path in self.names or any(cls in self.classes for cls in type(module).__mro__)

    def key_of(self, target: Any) -> Any:
        """The function among the activations that a traced call calls, or None."""
        key = self._keys.get(target, target)
        return key if not isinstance(key, str) and key in self.functions else None

    def of_module(self, module: nn.Module, path: str, shape: Shape) -> Definition:
        """The function of a module on values of a shape. `NotElementwiseError` if it is not elementwise."""
        if path in self.names:
            given = self.names[path]
        else:
            given = next(self.classes[cls] for cls in type(module).__mro__ if cls in self.classes)
        share = (id(module if given is None else given), shape)
        made = self._definitions.get(share)
        if made is None:
            double = copy.deepcopy(module).double()
            made = self._definitions[share] = _define(type(module).__name__, given, double, module, shape)
        return made

    def of_function(self, key: Any, call: Callable[[Any, Any], Any], alone: bool, shape: Shape) -> Definition:
        """The function x -> call(key, x). `NotElementwiseError` if it is not elementwise; `alone`: x is its only
        argument.
        """
        given = self.functions[key]
        own = functools.partial(call, key)
        share = (id(key), shape)
        made = self._definitions.get(share) if alone else None
        if made is None:
            replaced = None if given is None else functools.partial(call, given)
            made = _define(plain_name(key), replaced, own, own, shape)
            if alone:
                self._definitions[share] = made
        return made

    @contextlib.contextmanager
    def patched(self) -> Iterator[None]:
        """Within this, functions among the activations are leaves of tracing, wherever Python code finds them.

        fx can wrap functions only if they are globals of modules; they may also be attributes or in closures.
        Everything that refers to such a function holds a leaf in the meantime, which does the same on plain tensors.
        """
        # Tracing sees torch's own functions.
        with replaced_functions({key: leaf for key, leaf in self.leaves.items() if not _of_torch(key)}):
            yield


def _of_torch(function: Any) -> bool:
    if isinstance(function, types.BuiltinFunctionType):
        return True
    module = getattr(function, "__module__", None) or ""
    return module == "torch" or module.startswith("torch.")


def plain_name(function: Any) -> str:
    """A function's name as an identifier."""
    name = re.sub(r"\W", "_", getattr(function, "__name__", "")).strip("_")
    return "function" if name in ("", "lambda") else name


def _leaf(function: Any) -> Any:
    """A function that does the same and that the tracer takes as one operation (see `Custom.patched`)."""

    held = (function,)  # in a tuple, where `patched` does not replace it

    def leaf(*args: Any, **kwargs: Any) -> Any:
        tracer = next((a.tracer for a in (*args, *kwargs.values()) if isinstance(a, torch.fx.Proxy)), None)
        if tracer is None:
            return held[0](*args, **kwargs)
        return tracer.create_proxy("call_function", leaf, args, kwargs)

    leaf.__name__ = leaf.__qualname__ = f"olac_{plain_name(function)}"
    return leaf


# What a function computes ----------------------------------------------------------------------------------------


def _define(
    name: str,
    given: Callable[[Any], Any] | None,
    double: Callable[[Any], Any],
    single: Callable[[Any], Any],
    shape: Shape,
) -> Definition:
    """The definition of what the model itself computes, or of `given` if that is the same."""
    sample = _sample(shape)
    own = _first_that_runs([_OnTensors(double, torch.float64), _OnTensors(single, torch.float32)], sample)
    if given is None:
        function = own
    else:
        function = _first_that_runs([_on_arrays(given), _OnTensors(given, torch.float64)], sample)
        _check_same(function, own, sample)
    slopes: Function | None = None
    if isinstance(function, _OnTensors) and function.has_derivative(sample):
        slopes = function.derivative
    if _is_per_channel(function, sample):
        return define(name, _told(name, function), shape[0], len(shape) - 1, slopes)
    if slopes is not None:
        slopes = _of_any_shape(slopes, len(shape))
    return define(name, _told(name, _of_any_shape(function, len(shape))), derivative=slopes)


def _told(name: str, function: Function) -> Function:
    """The same function; if it fails, the error says which function and on what."""

    def call(x: Array) -> Array:
        try:
            return function(x)
        except Exception as error:
            raise CalibrationError(
                f"the function {name} fails on values from {np.min(x):.6g} to {np.max(x):.6g}: "
                f"{type(error).__name__}: {error}. It has to accept every number of its calibrated range and around it"
            ) from error

    return call


def _sample(shape: Shape) -> Array:
    """Values of both signs over some orders of magnitude, rounded to single precision, in which the model computes."""
    random = np.random.default_rng(0)
    values = random.normal(size=(SAMPLES, *shape)) * 10 ** random.uniform(-1, 1, size=(SAMPLES, *shape))
    return values.astype(np.float32).astype(np.float64)


def _on_arrays(call: Callable[[Any], Any]) -> Function:
    def function(x: Array) -> Array:
        with np.errstate(all="ignore"):
            result = call(np.array(x, dtype=np.float64))
        if isinstance(result, torch.Tensor):
            result = result.detach().cpu().numpy()
        return np.asarray(result, dtype=np.float64)

    return function


@dataclass(frozen=True)
class _OnTensors:
    """A function over tensors of some precision as one over arrays, and its derivative by torch."""

    call: Callable[[Any], Any]
    dtype: torch.dtype

    def __call__(self, x: Array) -> Array:
        with torch.no_grad():
            result = self.call(torch.tensor(x, dtype=self.dtype))
        if not isinstance(result, torch.Tensor) or result.is_complex():
            raise TypeError(f"it gives a {'complex tensor' if torch.is_tensor(result) else type(result).__name__}")
        return _as_array(result)

    def derivative(self, x: Array) -> Array:
        with torch.enable_grad():
            given = torch.tensor(x, dtype=self.dtype, requires_grad=True)
            # A copy, as a function may work in place.
            (slopes,) = torch.autograd.grad(self.call(given.clone()).sum(), given)
        return _as_array(slopes)

    def has_derivative(self, x: Array) -> bool:
        """Whether torch knows the derivative: functions may leave torch, or detach what they compute."""
        try:
            self.derivative(x)
        except Exception:
            return False
        return True


def _as_array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _first_that_runs(functions: Sequence[Function], sample: Array) -> Function:
    """The first of several ways to call a function that works on a sample."""
    problem = ""
    for function in functions:
        try:
            result = function(sample)
        except Exception as error:
            problem = f"it fails on values of shape {sample.shape}: {type(error).__name__}: {error}"
            continue
        if result.shape == sample.shape:
            return function
        problem = f"it gives {result.shape} for values of shape {sample.shape}"
    raise NotElementwiseError(problem)


def _close(a: Array, b: Array, tolerance: float = 1e-5) -> bool:
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True))


def _is_per_channel(function: Function, sample: Array) -> bool:
    """Whether channels differ; `NotElementwiseError` if the result for an element depends on anything else."""
    random = np.random.default_rng(1)
    result = function(sample)
    if not _close(function(sample), result):
        raise NotElementwiseError("it gives other results for the same values: it is random, or keeps a state")
    other = random.random(sample.shape) < 0.5
    changed = np.where(other, -3.0 * sample[::-1] + 0.5, sample)
    if not _close(function(changed)[~other], result[~other]):
        raise NotElementwiseError("the result for an element depends on other elements")

    order = random.permutation(sample.size)
    mixed = function(sample.reshape(-1)[order].reshape(sample.shape))
    if _close(mixed.reshape(-1), result.reshape(-1)[order]):
        # Even if the constants of all channels happen to be equal, they fix the number of channels.
        probe = sample.reshape(-1, *(1,) * (sample.ndim - 1))[:64]
        try:
            if _close(function(probe).reshape(-1), result.reshape(-1)[:64]):
                return False
        except Exception:
            pass
        return True
    channels = np.moveaxis(sample, 1, 0).reshape(sample.shape[1], -1)
    results = np.moveaxis(result, 1, 0).reshape(channels.shape)
    order = random.permutation(channels.shape[1])
    back = (sample.shape[1], sample.shape[0], *sample.shape[2:])
    mixed = np.moveaxis(function(np.moveaxis(channels[:, order].reshape(back), 0, 1)), 1, 0)
    if not _close(mixed.reshape(channels.shape), results[:, order]):
        raise NotElementwiseError("elements of one channel at different places get different results")
    return True


def _of_any_shape(function: Function, rank: int) -> Function:
    """The function over arrays of any shape, called as the model calls it: on arrays of rank + 1 axes."""
    return lambda x: function(np.asarray(x).reshape(-1, *(1,) * rank)).reshape(np.shape(x))


def _check_same(given: Function, own: Function, sample: Array) -> None:
    ours, theirs = given(sample), own(sample)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    differs = np.zeros(sample.shape, dtype=bool)
    differs[finite] = ~np.isclose(ours[finite], theirs[finite], rtol=1e-3, atol=1e-4)
    if differs.any():
        at = tuple(np.argwhere(differs)[0])
        raise NotElementwiseError(
            f"the function given for it gives {ours[at]:.6g} for {sample[at]:.6g}, but the model gives {theirs[at]:.6g}"
        )
