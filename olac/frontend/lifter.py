"""What handlers use: values, the lifter that adds ops, and the registries of handlers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import fx, nn

from olac.frontend.advice import advice_for
from olac.frontend.frames import FIRST, Frame
from olac.frontend.trace import Traced
from olac.frontend.tracer import LEAVES, WHOLE
from olac.ir.graph import GraphBuilder, Origin
from olac.ir.head import Step
from olac.ir.ops import (
    Affine,
    Array,
    AtClient,
    AveragePool,
    Conv2d,
    Gather,
    Linear,
    Op,
    Repeat,
    Reshape,
    Shape,
)


class Unsupported(Exception):
    """Raised by a handler for an operation that can't be compiled; `lift` collects all of them."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.problem, self.advice = problem, advice


@dataclass(frozen=True)
class Place:
    """Where the value of an IR node is in torch: its axis k is axis axes[k] of an image, which `frame` finds."""

    id: str
    axes: tuple[int, ...]
    frame: Frame

    def laid(self, value: torch.Tensor) -> torch.Tensor:
        """The IR node's value, with the batch axis first, from torch's tensor."""
        images = self.frame.images_first(value)
        if not self.axes:
            return images.reshape(len(images), 1)
        return images.permute(0, *(1 + a for a in self.axes))


class Value:
    """An encrypted value while lifting.

    The IR node of a value may have its axes in another order than torch: axes that a model moves stay where they are
    until an operation needs them elsewhere. So features that a transformer has last are the channels of convolutions.

    Attributes:
        id: of the IR node.
        shape: of one image, as torch has it: () for one number per image, for which the IR node has an axis of
            length 1.
        order: axis k of the IR node is axis order[k] of `shape`; None if the order is the same.
        frame: where the batch axis is in torch; the first one for values that a handler made within.
        placed: whether that is known, because the value is an operand or a result of an operation of the model.
        truth: whether torch has truth values, which are 0 and 1 here.
    """

    def __init__(
        self,
        id: str,
        shape: Shape,
        order: tuple[int, ...] | None = None,
        frame: Frame | None = None,
        truth: bool = False,
    ) -> None:
        self.id, self.shape, self.truth = id, shape, truth
        self.frame, self.placed = frame or FIRST, frame is not None
        self.order = None if order is None or order == tuple(range(len(shape))) else order

    @property
    def axes(self) -> tuple[int, ...]:
        """`order`, also if it is the same."""
        return tuple(range(len(self.shape))) if self.order is None else self.order

    @property
    def laid(self) -> Shape:
        """The shape of the IR node."""
        return tuple(self.shape[a] for a in self.axes) or (1,)

    @property
    def rank(self) -> int:
        """Torch's number of axes."""
        return self.frame.rank(self.shape)

    @property
    def place(self) -> Place:
        """What is needed to find the IR node's value in torch's tensor."""
        return Place(self.id, self.axes, self.frame)


class Unknown:
    """The result of an operation that can't be compiled and that isn't one tensor with a batch axis."""


UNKNOWN = Unknown()


class Absent:
    """A part of a result that is not computed, such as the places of largest elements."""


ABSENT = Absent()

ModuleHandler = Callable[..., Any]
FunctionHandler = Callable[..., Any]
Handler = TypeVar("Handler", bound=Callable[..., Any])

MODULES: dict[type[nn.Module], ModuleHandler] = {}
"""By module class: handler(lifter, module, value) -> value. Subclasses are found, too."""

FUNCTIONS: dict[Any, FunctionHandler] = {}
"""By function, or by method name: handler(lifter, *args, **kwargs) -> value, called with the call's own arguments."""


def register_module(*classes: type[nn.Module]) -> Callable[[ModuleHandler], ModuleHandler]:
    """Register handler(lifter, module, value) -> value for module classes and their subclasses.

    Registered classes aren't traced into. A handler adds IR nodes by `lifter.add` and raises `Unsupported` if it can't.
    A handler with further parameters gets the other operands that the module is called with.
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
            WHOLE.add(target)
        return handler

    return decorate


def any_order(handler: Handler) -> Handler:
    """Mark a handler that takes values whose IR nodes have another order of axes (see `Value.order`)."""
    handler.any_order = True  # type: ignore[attr-defined]
    return handler


class Lifter:
    """Adds IR nodes for the current fx node; handlers work with it.

    Attributes:
        batch: images in the traced example.
        client_head: whether the client computes the model's last steps.
        called: the plain name of the current operation, for messages.
        dims: torch's shape of the fx node's result, or None if it isn't one tensor.
        frame: where the batch axis is in it, or None if there is none; for several results a tuple.
        encrypted: whether the current operation is not one of the last, so that the client can't compute it.
    """

    def __init__(self, traced: Traced, client_head: bool = True) -> None:
        self.builder = GraphBuilder(by="lift")
        self.batch = len(traced.example)
        self.client_head = client_head
        self.called = ""
        self.dims: tuple[int, ...] | None = None
        self.frame: Any = None
        self.encrypted = not client_head
        self._origin = Origin()
        self._name = ""
        self.made: list[str] = []

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of the fx node's result for one image, or None if it isn't one tensor with a batch axis."""
        return None if self.dims is None or not isinstance(self.frame, Frame) else self.frame.shape(self.dims)

    def at(self, node: fx.Node, name: str) -> None:
        """Go on to an fx node: nodes that are added from now on have it as origin and are called `name`."""
        self._origin = Origin(node.meta.get("path", ""), node.meta.get("source", ""))
        self._name = name
        self.dims, self.frame = node.meta.get("shape"), node.meta.get("frame")
        self.made = []

    def add(self, op: Op, *inputs: Value, suffix: str = "") -> Value:
        """Append an IR node. ShapeError for operands that don't fit."""
        inputs = tuple(self.settle(x) for x in inputs)
        made = self._append(op, *(v.id for v in inputs), suffix=suffix)
        shape = self.builder[made].type.shape
        return Value(made, () if shape == (1,) and inputs and not any(v.shape for v in inputs) else shape)

    def _append(self, op: Op, *inputs: str, suffix: str = "") -> str:
        name = f"{self._name}_{suffix}" if suffix else self._name
        made = self.builder.add(op, inputs, name=name, origin=self._origin)
        self.made.append(made)
        return made

    def elementwise(self, op: Op, *inputs: Value, suffix: str = "") -> Value:
        """Append an op that works on each element alone; operands have one shape and one order of axes."""
        first = inputs[0]
        return Value(self._append(op, *(v.id for v in inputs), suffix=suffix), first.shape, first.order)

    def along(self, op: Op, x: Value, shape: Shape, order: tuple[int, ...] | None, suffix: str = "") -> Value:
        """Append an op of the IR node as it lies, whose result has a shape of one image and an order of axes."""
        return Value(self._append(op, x.id, suffix=suffix), shape, order)

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
        scale, shift = (_laid(np.asarray(one, dtype=np.float64), x) for one in (scale, shift))
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            raise Unsupported("a constant isn't finite", "Remove NaN and infinities from the model's constants")
        if (scale == 1).all() and (shift == 0).all():
            return x
        op = Affine(self.constant("scale", scale), self.constant("shift", shift))
        return self.elementwise(op, x, suffix=suffix)

    def settle(self, x: Value, axes: tuple[int, ...] | None = None) -> Value:
        """The value with the axes of its IR node in this order, or in torch's."""
        wanted = tuple(range(len(x.shape))) if axes is None else axes
        if x.axes == wanted:
            return x
        laid, moved = x.laid, [x.axes.index(a) for a in wanted]
        long = [p for p in moved if laid[p] > 1]
        shape = tuple(laid[p] for p in moved)
        if long == sorted(long):  # axes of length 1 are anywhere
            op: Op = Reshape(shape)
        else:
            numbers = np.arange(math.prod(laid)).reshape(laid).transpose(moved)
            op = Gather(self.constant("moved", numbers.reshape(-1)), shape)
        made = self._append(op, x.id, suffix="moved" if self.made else "")
        return Value(made, x.shape, wanted, x.frame if x.placed else None, x.truth)

    def permute(self, x: Value, axes: Sequence[int]) -> Value:
        """The value with axis k of its shape being axis axes[k] of the old one. Nothing moves in the IR."""
        shape = tuple(x.shape[a] for a in axes)
        return Value(x.id, shape, tuple(list(axes).index(a) for a in x.axes))

    def reshape(self, x: Value, shape: Shape) -> Value:
        """The value in another shape, row-major; () for one number per image."""
        shape = tuple(int(s) for s in shape)
        order = None if x.order is None else _order_after(x, shape)
        if order is None:
            x = self.settle(x)
        laid = tuple(shape[a] for a in order) if order is not None else shape or (1,)
        made = x.id
        if self.builder[made].type.shape != laid:
            made = self._append(Reshape(laid), made, suffix="reshape" if self.made else "")
        return Value(made, shape, order)

    def gather(self, x: Value, indices: Any, suffix: str = "") -> Value:
        """A result whose elements are those of the value with these numbers, an array of the result's shape.

        Numbers count the elements in row-major order; -1 stands for 0.
        """
        numbers = np.asarray(indices)
        if x.order is not None:
            places = np.empty(math.prod(x.shape), dtype=np.int64)
            places[np.arange(len(places)).reshape(x.shape).transpose(x.axes).reshape(-1)] = np.arange(len(places))
            numbers = np.where(numbers < 0, -1, places[numbers])
        op = Gather(self.constant("indices", numbers.reshape(-1)), numbers.shape or (1,))
        return Value(self._append(op, x.id, suffix=suffix), numbers.shape)

    def broadcast(self, x: Value, shape: Shape, axes: tuple[int, ...] | None = None) -> Value:
        """The value repeated along axes of length 1 (or missing) to a shape, with its IR node's axes in an order.

        `Unsupported` if that is impossible.
        """
        full = (1,) * (len(shape) - len(x.shape)) + x.shape
        if len(full) != len(shape) or any(a not in (1, b) for a, b in zip(full, shape, strict=True)):
            raise Unsupported(f"shapes {x.shape} and {shape} don't fit", "Give both operands the same shape")
        wanted = tuple(range(len(shape))) if axes is None else axes
        if x.shape == shape:
            return self.settle(x, wanted)
        x = self.reshape(x, full)
        laid = tuple(shape[a] for a in wanted)
        x = self.settle(x, wanted)
        if len(laid) not in (1, 3):
            return Value(self._append(Repeat(laid), x.id, suffix="repeat"), shape, wanted)
        one, made = x.laid, x.id
        if len(laid) == 1:
            op: Op = Linear(self.constant("repeat", np.ones((laid[0], 1))))
            return Value(self._append(op, made, suffix="repeat"), shape, wanted)
        if one[1:] != laid[1:]:
            rows, columns = (np.ones((b, 1)) if a != b else np.eye(a) for a, b in zip(one[1:], laid[1:], strict=True))
            op = AveragePool(self.constant("rows", rows), self.constant("columns", columns))
            made = self._append(op, made, suffix="repeat")
        if one[0] != laid[0]:
            op = Conv2d(self.constant("repeat", np.ones((laid[0], 1, 1, 1))))
            made = self._append(op, made, suffix="repeat")
        return Value(made, shape, wanted)

    def axes(self, dims: Any, x: Value) -> list[int]:
        """Axes of one image, from torch's dimensions. `Unsupported` for the batch axis."""
        given = [dims] if isinstance(dims, int) else list(dims)
        axes = [x.frame.axis(d % x.rank) for d in given]
        if any(a is None for a in axes):
            raise Unsupported("works along the batch axis", "Treat each input alone")
        return [a for a in axes if a is not None]


def _laid(array: Array, x: Value) -> Array:
    """An array that broadcasts to a value's shape as one that broadcasts to the shape of its IR node."""
    if x.order is None or array.ndim == 0:
        return array
    full = array.reshape((1,) * (len(x.shape) - array.ndim) + array.shape)
    return full.transpose(x.axes)


def _order_after(x: Value, shape: Shape) -> tuple[int, ...] | None:
    """The order of axes after a reshape that needs no move; None if it needs one.

    Axes of the old and the new shape fall into groups with the same numbers of elements. Nothing moves if the axes of
    a group lie together in the IR, in their order.
    """
    old = [a for a, size in enumerate(x.shape) if size > 1]
    new = [a for a, size in enumerate(shape) if size > 1]
    groups: list[tuple[list[int], list[int]]] = []
    while old or new:
        before, after = old[:1], new[:1]
        del old[:1], new[:1]
        while (a := math.prod(x.shape[i] for i in before)) != (b := math.prod(shape[i] for i in after)):
            source, part = (old, before) if a < b else (new, after)
            part.append(source.pop(0))
        groups.append((before, after))
    lying = [a for a in x.axes if x.shape[a] > 1]
    order: list[int] = []
    while lying:
        found = next((after for before, after in groups if lying[: len(before)] == before), None)
        if found is None:
            return None
        before = next(before for before, after in groups if after is found)
        order += found
        del lying[: len(before)]
    ones = [a for a, size in enumerate(shape) if size <= 1]
    return (*order, *ones)
