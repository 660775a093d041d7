"""Words for what a person gives: its type and shape, what an input is called, and the line that makes it fit.

Nothing here shows a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from olac.errors import plain

Shape = tuple[int, ...]
NAMED = 6
"""So many parts of a tuple or a dict are described."""
LONGEST = 40
"""The longest name of a part that is shown, in characters."""
PICTURE_CHANNELS = (1, 3)


def noun(shape: Sequence[int], count: int = 1) -> str:
    """What an input of this shape is called: "row" of a table, "image" (one or three channels), or else "input".

    Args:
        shape: of one input, without the batch axis.
        count: the plural is given unless this is 1.
    """
    if len(shape) == 1:
        one = "row"
    elif len(shape) == 3 and shape[0] in PICTURE_CHANNELS:
        one = "image"
    else:
        one = "input"
    return one if count == 1 else f"{one}s"


def counted(count: int, shape: Sequence[int]) -> str:
    """A number of inputs in words: "1 row", "12 images"."""
    return f"{count} {noun(shape, count)}"


def one_of(shape: Sequence[int]) -> str:
    """`noun` with its article: "a row", "an image", "an input"."""
    name = noun(shape)
    return f"{'a' if name == 'row' else 'an'} {name}"


def shape_of(value: Any) -> Shape | None:
    """The shape of a tensor or an array; None for anything else."""
    try:
        return tuple(int(size) for size in value.shape)
    except (AttributeError, TypeError, ValueError):
        return None


def described(value: Any) -> str:
    """The type of an object, and its shape if it has one: "Tensor (float32, shape (8, 3))", "a dict of x: ...".

    The parts of tuples, lists and dicts are described as well, the first few.
    """
    if isinstance(value, Mapping):
        parts = [f"{_name(key)}: {_part(one)}" for key, one in list(value.items())[:NAMED]]
        return f"{_article(value)} of {_listed(parts, len(value))}" if parts else f"an empty {type(value).__name__}"
    if isinstance(value, (tuple, list)):
        if not value:
            return f"an empty {type(value).__name__}"
        return f"{_article(value)} of {_listed([_part(one) for one in value[:NAMED]], len(value))}"
    return _part(value, alone=True)


def fitting(given: Sequence[int], wanted: Sequence[int], name: str = "x", tensor: bool = False) -> str:
    """The expression that makes a batch of inputs of an array; "" if none is likely to be right.

    Args:
        given: the shape of the array.
        wanted: the shape of one input; -1 for a size that may be any.
        name: of the array, in the expression.
        tensor: whether it is one of torch's, and not of numpy's.
    """
    given, wanted = tuple(given), tuple(wanted)
    move = f"{name}.permute" if tensor else f"{name}.transpose"
    axes, grey = len(wanted), wanted[:1] == (1,) and len(wanted) > 1
    if _fits(given, wanted):
        return f"{name}[None]"
    if axes == 3 and len(given) == 4 and _fits((given[3], given[1], given[2]), wanted):
        return f"{move}(0, 3, 1, 2)"
    if axes == 2 and len(given) == 3 and _fits((given[2], given[1]), wanted):
        return f"{move}(0, 2, 1)"
    if grey and len(given) == axes and _fits((1, *given[1:]), wanted):
        return f"{name}[:, None]"
    if axes == 3 and len(given) == 3 and _fits((given[2], given[0], given[1]), wanted):
        return f"{move}(2, 0, 1)[None]"
    flat = _reshaped(given, wanted, name)
    if grey and _fits((1, *given), wanted) and (not flat or given[0] == given[-1]):
        return f"{name}[None, None]"
    if axes == 3 and len(given) == 4 and (given[1], wanted[0]) == (1, 3) and _fits((3, *given[2:]), wanted):
        return f"{name}[:, [0, 0, 0]]"
    if len(given) == 2 and wanted == (given[1] - 1,):
        return f"{name}[:, :-1]  # if the last column holds labels"
    return flat


def _reshaped(given: Shape, wanted: Shape, name: str) -> str:
    """`fitting` by the same numbers in other axes."""
    known = -1 not in wanted and len(given) > 1 and len(wanted) != len(given) - 1
    if known and math.prod(given[1:]) == math.prod(wanted):
        return f"{name}.reshape({', '.join(map(str, (-1, *wanted)))})"
    if len(given) == 2 and len(wanted) == 3 and wanted[0] > 0 and given[1] % wanted[0] == 0:
        side = math.isqrt(given[1] // wanted[0])
        if side * side * wanted[0] == given[1] and side > 1 and wanted[1:] in ((-1, -1), (side, side)):
            return f"{name}.reshape(-1, {wanted[0]}, {side}, {side})"
    return ""


def _fits(shape: Shape, wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))


def _article(value: Any) -> str:
    name = plain(type(value).__name__)
    return f"{'an' if name[:1] in 'aeiouAEIOU' or name == 'ndarray' else 'a'} {name}"


def _name(key: Any) -> str:
    """The key of a dict, as a person writes it."""
    if not isinstance(key, str):
        return plain(type(key).__name__)
    text = plain(key)
    return repr(text if len(text) <= LONGEST else text[:LONGEST] + "...")


def _listed(parts: Sequence[str], count: int) -> str:
    more = f" and {count - len(parts)} more" if count > len(parts) else ""
    return ", ".join(parts) + more


def _part(value: Any, alone: bool = False) -> str:
    if value is None:
        return "None"
    shape, dtype = shape_of(value), getattr(value, "dtype", None)
    name = _article(value) if alone else plain(type(value).__name__)
    if shape is None:
        return name
    kind = f"{plain(dtype).removeprefix('torch.')[:LONGEST]}, " if dtype is not None else ""
    return f"{name} ({kind}shape {shape})"


__all__ = ["counted", "described", "fitting", "noun", "one_of", "shape_of"]
