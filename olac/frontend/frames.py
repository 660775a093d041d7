"""Where the batch axis is: a model may move it, or merge it with the axis that follows.

`x.permute(1, 0, 2)` moves the batch axis, `x.reshape(-1, features)` of (batch, tokens, features) merges it with the
axis of tokens. Each image is still treated alone, so such a value is one of an image as any other. A `Frame` says how
its axes in torch are those of the image and the batch axis. `find_frames` finds the frame of each node of a traced
graph, and makes its reshapes run on batches of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

Shape = tuple[int, ...]

RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze", "unsqueeze"}) | {
    "ravel"
}
"""Operations that keep elements in row-major order, whose arguments may hold the size of the batch."""
EXPANDS = frozenset({"expand", "expand_as", "broadcast_to"})


@dataclass(frozen=True)
class Frame:
    """How a value's axes in torch follow from its axes for one image.

    Attributes:
        at: the position of the batch axis in torch.
        merged: elements of the axis that is merged into the batch axis, which follows it; 1 if there is none.
    """

    at: int = 0
    merged: int = 1

    def shape(self, dims: Sequence[int]) -> Shape:
        """The shape for one image, from torch's."""
        own = (self.merged,) if self.merged > 1 else ()
        return (*dims[: self.at], *own, *dims[self.at + 1 :])

    def dims(self, shape: Sequence[int], batch: int) -> Shape:
        """Torch's shape for so many images, from that of one."""
        own = 1 if self.merged > 1 else 0
        return (*shape[: self.at], batch * self.merged, *shape[self.at + own :])

    def rank(self, shape: Sequence[int]) -> int:
        """Torch's number of axes."""
        return len(shape) + (0 if self.merged > 1 else 1)

    def axis(self, dim: int) -> int | None:
        """The image's axis that torch's axis `dim`, from 0 on, is; None for the batch axis."""
        if dim < self.at:
            return dim
        if dim == self.at:
            return None
        return dim if self.merged > 1 else dim - 1

    def images_first(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor in this frame as one with the batch axis first and the image's axes after it."""
        if self == FIRST:
            return value
        split = value.unflatten(self.at, (value.shape[self.at] // self.merged, self.merged))
        first: torch.Tensor = split.movedim(self.at, 0)
        return first if self.merged > 1 else first.squeeze(self.at + 1)


FIRST = Frame()
"""The batch axis is the first one and holds no other."""

Frames = Any
"""The frame of a node that gives a tensor; a tuple of them, with None for other parts, if it gives several."""


def find_frames(module: fx.GraphModule, batch: int) -> None:
    """Set `meta["frame"]` of each node to the frame of its value, or None; `batch` images were traced.

    Reshapes get arguments that leave the size of the batch open. If a node's result has no batch axis, or one that is
    mixed with others, its frame is None.
    """
    for node in module.graph.nodes:
        node.meta["frame"] = None
        if node.op == "placeholder":
            node.meta["frame"] = FIRST
        elif node.op in ("call_function", "call_method", "call_module"):
            source = next((n for n in node.all_input_nodes if n.meta.get("frame") is not None), None)
            if source is not None:
                node.meta["frame"] = _frame(module, node, source, batch)
    module.recompile()


def _frame(module: fx.GraphModule, node: fx.Node, source: fx.Node, batch: int) -> Frames:
    name, dims, given = called(node), node.meta.get("shape"), source.meta["frame"]
    if isinstance(given, tuple):
        index = node.args[1] if len(node.args) > 1 else None
        return given[index] if name == "getitem" and isinstance(index, int) and index < len(given) else None
    if given == FIRST and node.op == "call_module" and dims is not None and dims[:1] == (batch,):
        return given
    if dims is not None and name in RESHAPES:
        return _reshaped(node, source, given, dims, batch)
    if dims is not None and name in EXPANDS:
        return _expanded(node, source, given, dims, batch)
    found = _by_trial(module, node, batch)
    if found is None and dims is not None and source.meta.get("shape") is not None:
        # The trial failed, perhaps by a constant of the batch's size. Torch aligns axes at the end.
        at = given.at + len(dims) - len(source.meta["shape"])
        if 0 <= at < len(dims) and dims[at] == batch * given.merged:
            return Frame(at, given.merged)
    return found


def called(node: fx.Node) -> str:
    """The plain name of a function or method; "" for a module."""
    if node.op == "call_module":
        return ""
    target = node.target
    return (target if isinstance(target, str) else getattr(target, "__name__", "")).strip("_")


def _reshaped(node: fx.Node, source: fx.Node, given: Frame, dims: Shape, batch: int) -> Frame | None:
    """The frame after a reshape, which gets the result's shape, with the batch axis open, as its argument."""
    before = source.meta["shape"]
    left = math.prod(before[: given.at])
    for at, size in enumerate(dims):
        # The batch axis is the one that starts where it did; axes of length 1 may lie before it.
        if math.prod(dims[:at]) == left and (size > 1 or batch == 1):
            if size % batch:
                return None
            shape = tuple(-1 if i == at else one for i, one in enumerate(dims))
            node.meta["called"] = node.meta.get("called") or called(node)
            node.op, node.target, node.args, node.kwargs = "call_method", "reshape", (source, shape), {}
            return Frame(at, size // batch)
    return None


def _expanded(node: fx.Node, source: fx.Node, given: Frame, dims: Shape, batch: int) -> Frame | None:
    at = given.at + len(dims) - len(source.meta["shape"])
    if dims[at] != batch * given.merged:
        return None
    sizes = tuple(-1 if i == at else one for i, one in enumerate(dims))
    node.meta["called"] = node.meta.get("called") or called(node)
    node.op, node.target, node.args, node.kwargs = "call_method", "expand", (source, *sizes), {}
    return Frame(at, given.merged)


def _by_trial(module: fx.GraphModule, node: fx.Node, batch: int) -> Frames:
    """The frames of a node's results by their shapes for two sizes of the batch; None if torch gives none."""
    try:
        small, large = (_results(module, node, images) for images in (batch, batch + 1))
    except Exception:  # whatever torch has to say about other sizes, there is another way
        return None
    return _compared(small, large, batch)


def _results(module: fx.GraphModule, node: fx.Node, batch: int) -> Any:
    """What a node gives for a batch of that size, as tensors without values."""

    def stand_in(argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        if argument.op == "get_attr":
            value: Any = module
            for part in str(argument.target).split("."):
                value = getattr(value, part)
            return value.to("meta") if isinstance(value, torch.Tensor) else value
        frame, dims = argument.meta["frame"], argument.meta["shape"]
        return torch.empty(frame.dims(frame.shape(dims), batch), dtype=argument.meta["dtype"], device="meta")

    args, kwargs = map_aggregate((node.args, node.kwargs), stand_in)
    with torch.no_grad():
        if node.op == "call_function":
            function: Callable[..., Any] = node.target  # type: ignore[assignment]
            return function(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        own = module.get_submodule(str(node.target))
        state = {name: one.to("meta") for name, one in (*own.named_parameters(), *own.named_buffers())}
        return torch.func.functional_call(own, state, args, kwargs)


def _compared(small: Any, large: Any, batch: int) -> Frames:
    if isinstance(small, torch.Tensor):
        if small.ndim != large.ndim:
            return None
        different = [i for i, (a, b) in enumerate(zip(small.shape, large.shape, strict=True)) if a != b]
        if len(different) != 1:
            return None
        (at,) = different
        merged = small.shape[at] // batch
        return Frame(at, merged) if (batch + 1) * merged == large.shape[at] else None
    if isinstance(small, (tuple, list)):
        return tuple(_compared(a, b, batch) for a, b in zip(small, large, strict=True))
    return None
