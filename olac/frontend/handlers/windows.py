"""Arguments of operations on windows, as convolutions and pools take them: a number, or a number for each axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from olac.frontend.lifter import (
    FunctionHandler,
    Lifter,
    ModuleHandler,
    Unsupported,
    Value,
    register_function,
    register_module,
)
from olac.ir.ops import Shape

_LAYOUTS = {1: "(channels, length)", 2: "(channels, height, width)", 3: "(channels, d, h, w)"}


def per_axis(value: Any, count: int) -> tuple[int, ...]:
    """One number for each of `count` axes, from a number, or from one or `count` of them."""
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * count if len(values) == 1 else values


def pair(value: Any) -> tuple[int, int]:
    """One number for each axis of a picture."""
    first, second = per_axis(value, 2)
    return first, second


@dataclass(frozen=True)
class Windows:
    """Windows over lines, planes or volumes: for each axis their size, the steps between them and the padding.

    Attributes:
        sides: elements of padding before and after each axis.
        dilation: the distance of neighbours in a window.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    sides: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, count: int, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1) -> Windows:
        """From torch's arguments: no stride is that of the kernel, and padding may be "same" or "valid"."""
        sizes, apart = per_axis(kernel, count), per_axis(dilation, count)
        steps = sizes if stride in (None, (), []) else per_axis(stride, count)
        if padding == "same":
            totals = [a * (k - 1) for a, k in zip(apart, sizes, strict=True)]
            sides = tuple((total // 2, total - total // 2) for total in totals)
        else:
            sides = tuple((n, n) for n in per_axis(0 if padding == "valid" else padding, count))
        return cls(sizes, steps, sides, apart)

    @property
    def reach(self) -> tuple[int, ...]:
        """The distance of the first and the last element of a window on each axis."""
        return tuple(a * (k - 1) for a, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def on_planes(self) -> Windows:
        """Windows over lines as windows over planes of one row."""
        return Windows((1, *self.kernel), (1, *self.stride), ((0, 0), *self.sides), (1, *self.dilation))

    @property
    def of_planes(self) -> Windows:
        """Those of the last two axes of volumes."""
        return Windows(self.kernel[1:], self.stride[1:], self.sides[1:], self.dilation[1:])

    @property
    def of_columns(self) -> Windows:
        """Those of the first axis of volumes (d, h, w), as windows over planes (d, h w)."""
        return Windows((self.kernel[0], 1), (self.stride[0], 1), (self.sides[0], (0, 0)), (self.dilation[0], 1))


def sizes_of(x: Value, count: int, what: str) -> Shape:
    """The sizes of the `count` axes after the channels; `Unsupported` if there are more or fewer."""
    if len(x.shape) != count + 1:
        raise Unsupported(f"{what} of a value of shape {x.shape}", f"Reshape to {_LAYOUTS[count]}")
    return x.shape[1:]


def lines(lifter: Lifter, x: Value, what: str) -> Value:
    """A value (channels, length) as planes of one row."""
    (length,) = sizes_of(x, 1, what)
    return lifter.reshape(x, (x.shape[0], 1, length))


def from_lines(lifter: Lifter, x: Value) -> Value:
    """Planes of one row as (channels, length)."""
    return lifter.reshape(x, (x.shape[0], x.shape[2]))


def register_each(
    over: Callable[[int], FunctionHandler],
    of_module: Callable[[FunctionHandler], ModuleHandler],
    *rows: tuple[int, tuple[Any, ...], type[nn.Module]],
) -> None:
    """Register the handlers of an operation over one, two or three axes.

    Args:
        over: the handler of the functions, from the number of axes.
        of_module: the handler of the module, which calls that of the functions.
        rows: the number of axes, the functions and the module.
    """
    for count, functions, cls in rows:
        handler = register_function(*functions)(over(count))
        register_module(cls)(of_module(handler))
