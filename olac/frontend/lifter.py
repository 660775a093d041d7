"""What handlers use: values, the lifter that adds ops, and the registries of handlers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from olac.frontend.advice import advice_for
from olac.frontend.trace import Traced
from olac.frontend.tracer import LEAVES
from olac.ir.graph import GraphBuilder, Origin
from olac.ir.head import Step
from olac.ir.ops import (
    Affine,
    AtClient,
    AveragePool,
    Conv2d,
    Linear,
    Op,
    Reshape,
    Shape,
)


class Unsupported(Exception):
    """Raised by a handler for an operation that can't be compiled; `lift` collects all of them."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.problem, self.advice = problem, advice


class Value:
    """An encrypted value while lifting: the id of its IR node and its shape without the batch axis.

    The shape is torch's: () for one number per image, for which the IR node has an axis of length 1.
    """

    def __init__(self, id: str, shape: Shape) -> None:
        self.id, self.shape = id, shape


class Unknown:
    """The result of an operation that can't be compiled and that isn't one tensor with a batch axis."""


UNKNOWN = Unknown()

ModuleHandler = Callable[["Lifter", Any, Value], Any]
FunctionHandler = Callable[..., Any]

MODULES: dict[type[nn.Module], ModuleHandler] = {}
"""By module class: handler(lifter, module, value) -> value. Subclasses are found, too."""

FUNCTIONS: dict[Any, FunctionHandler] = {}
"""By function, or by method name: handler(lifter, *args, **kwargs) -> value, called with the call's own arguments."""


def register_module(*classes: type[nn.Module]) -> Callable[[ModuleHandler], ModuleHandler]:
    """Register handler(lifter, module, value) -> value for module classes and their subclasses.

    Registered classes aren't traced into. A handler adds IR nodes by `lifter.add` and raises `Unsupported` if it can't.
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
    """Adds IR nodes for the current fx node; handlers work with it.

    Attributes:
        batch: images in the traced example.
        client_head: whether the client computes the model's last steps.
        called: the plain name of the current operation, for messages.
        shape: torch's shape of the fx node's result with the batch axis, or None if it isn't one tensor.
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
        """Go on to an fx node: nodes that are added from now on have it as origin and are called `name`."""
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
        """Append a step that only the client can compute, as one of the model's last. `Unsupported` without a head."""
        if not self.client_head:
            raise Unsupported(f"{self.called} is not supported", advice_for(self.called))
        return self.add(AtClient(step), x, suffix=suffix)

    def constant(self, name: str, value: Any) -> str:
        """Add an array or tensor as float64 constant; returns its name."""
        array = value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else value
        return self.builder.constant(f"{self._name}.{name}", array)

    def affine(self, x: Value, scale: Any = 1.0, shift: Any = 0.0, suffix: str = "") -> Value:
        """scale * x + shift, with arrays that broadcast to the value's shape; x itself if that changes nothing."""
        scale, shift = np.asarray(scale, dtype=np.float64), np.asarray(shift, dtype=np.float64)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Unsupported("a constant isn't finite", "Remove NaN and infinities from the model's constants")
        if (scale == 1).all() and (shift == 0).all():
            return x
        return self.add(Affine(self.constant("scale", scale), self.constant("shift", shift)), x, suffix=suffix)

    def reshape(self, x: Value, shape: Shape) -> Value:
        """The value in another shape, row-major; () for one number per image."""
        shape = tuple(int(s) for s in shape)
        laid = shape or (1,)
        if self.builder[x.id].type.shape != laid:
            x = self.add(Reshape(laid), x, suffix="reshape" if self.made else "")
        return Value(x.id, shape)

    def broadcast(self, x: Value, shape: Shape) -> Value:
        """The value repeated along axes of length 1 (or missing) to a shape. `Unsupported` if that is impossible."""
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
