"""The names of a model's outputs: of classes, or of each number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from olac.errors import plain
from olac.ir.head import ArgMax, OutputHead, Outputs, Shape

MOST_NAMES = 1 << 16
LONGEST = 200
"""The longest name, in characters."""

Names = tuple[str, ...]


def outputs_to_name(head: OutputHead, raw: Shape) -> int:
    """How many names a model's outputs take: one for each class if a step chooses them, otherwise one for each number.

    Args:
        head: what the client computes.
        raw: the shape of what it is applied to, of one input.
    """
    if not head.decides:
        return math.prod(head.output_shape(raw))
    chooses = head.steps[len(head.scores.steps)]
    assert isinstance(chooses, ArgMax)
    return head.scores.output_shape(raw)[chooses.axis]


def check_names(names: Sequence[str], head: OutputHead, raw: Shape) -> Names:
    """The names as a tuple; none is allowed.

    Raises:
        ValueError: there are fewer or more names than outputs, one is no text that can be shown, or two are the same.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError('class_names are a list of texts, such as ["cat", "dog"]')
    found = tuple(names)
    if not found:
        return found
    wanted = outputs_to_name(head, raw)
    if len(found) != wanted:
        what = "classes" if head.decides else "outputs"
        raise ValueError(f"{len(found)} class_names for {wanted} {what} of shape {raw}: give one for each, in order")
    if len(found) > MOST_NAMES:
        raise ValueError(f"{len(found)} class_names, more than {MOST_NAMES}")
    bad = next((name for name in found if not name.strip() or len(name) > LONGEST or not name.isprintable()), None)
    if bad is not None:
        raise ValueError(f"the class name {plain(bad)[:LONGEST]!r} is empty, too long, or can't be shown in a line")
    twice = {name for name in found if found.count(name) > 1} if len(set(found)) < len(found) else set()
    if twice:
        raise ValueError(f"the class name {min(twice)!r} is given twice")
    return found


def named(names: Names, head: OutputHead, outputs: Outputs) -> list[Any]:
    """The outputs of each input by name: see `CompiledProgram.named`."""
    if head.decides:
        chosen: list[Any] = (np.array(names, dtype=object)[outputs] if names else outputs.astype(str)).tolist()
        return chosen
    rows = outputs.reshape(len(outputs), -1)
    known = names or tuple(str(i) for i in range(rows.shape[1]))
    return [dict(zip(known, map(float, row), strict=True)) for row in rows]


class Named:
    """What has outputs with names: a program, what clients know of one, or an approximated model."""

    head: OutputHead
    output_names: Names

    def named(self, outputs: Any) -> list[Any]:
        """The outputs of each input by name, as `simulate` and `Client.decrypt` give them, (n, *output shape).

        For each input it is a dict of numbers by their names, or the name of the class if the model's last step chooses
        one (nested lists of names if it chooses one at each place). Outputs without names are called by their places.

        Raises:
            ValueError: the outputs are not those of this model, or classes that it does not have.
        """
        given = np.asarray(outputs)
        if self.head.decides != (given.dtype.kind == "i"):
            kind = "classes (integers)" if self.head.decides else "numbers"
            raise ValueError(f"outputs of type {given.dtype}: the model gives {kind}. Leave out raw=True")
        if given.ndim == 0:
            raise ValueError("outputs without an axis of inputs: give those of simulate or decrypt, (n, *output shape)")
        if self.output_names and self.head.decides and not _within(given, len(self.output_names)):
            raise ValueError(f"the model has {len(self.output_names)} classes, and some outputs are none of them")
        if self.output_names and not self.head.decides and math.prod(given.shape[1:]) != len(self.output_names):
            raise ValueError(f"outputs of shape {given.shape}: there are {len(self.output_names)} for each input")
        return named(self.output_names, self.head, given)


def _within(classes: Outputs, count: int) -> bool:
    return classes.size == 0 or (int(classes.min()) >= 0 and int(classes.max()) < count)


def part_names(shapes: dict[str, Shape]) -> Names:
    """Names for the numbers of a joined output: "name" for a part of one number, "name[2]" and "name[0, 1]" otherwise.

    No names if there are more than are kept.
    """
    if sum(math.prod(shape) for shape in shapes.values()) > MOST_NAMES:
        return ()
    made: list[str] = []
    for name, shape in shapes.items():
        if math.prod(shape) == 1:
            made.append(name)
        else:
            made += [f"{name}[{', '.join(map(str, at))}]" for at in np.ndindex(*shape)]
    return tuple(made)


__all__ = ["MOST_NAMES", "Named", "Names", "check_names", "named", "outputs_to_name", "part_names"]
