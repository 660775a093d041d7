"""What `olac decrypt` shows of outputs, one line for each input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from olac.ir.head import Outputs
from olac.ir.names import Names

SHOWN_INPUTS = 20
SHOWN_NUMBERS = 10
"""More numbers of an input are not shown, but the largest ones among them."""
LARGEST = 5


def outcome_lines(outputs: Outputs, shown: str, names: Names, where: str) -> Iterator[str]:
    """A line for each of the first inputs, and one that says where the others are.

    Args:
        outputs: (n, *output shape).
        shown: the format of a number.
        names: of classes or numbers, or none.
        where: the file that holds all outputs.
    """
    for row in outputs[:SHOWN_INPUTS].reshape(min(len(outputs), SHOWN_INPUTS), -1):
        yield _outcome(row, shown, names)
    if len(outputs) > SHOWN_INPUTS:
        yield f"and {len(outputs) - SHOWN_INPUTS} more: {where} holds all {len(outputs)}"


def _outcome(row: Outputs, shown: str, names: Names) -> str:
    """The outputs for one input, and the class if there is a choice."""
    if row.dtype.kind == "i":
        more = f" and {len(row) - SHOWN_NUMBERS} more" if len(row) > SHOWN_NUMBERS else ""
        return "class " + " ".join(names[i] if names else str(i) for i in row[:SHOWN_NUMBERS]) + more
    if len(row) == 1:
        return f"{names[0]} {row[0]:{shown}}" if names else format(row[0], shown)
    first = int(row.argmax())
    if len(row) > SHOWN_NUMBERS:
        kept = np.argsort(-row, kind="stable")[:LARGEST]
        numbers = ", ".join(f"{names[i] if names else i} {row[i]:{shown}}" for i in kept)
        return ("" if names else f"class {first}: ") + f"{numbers} (the largest of {len(row)})"
    if not names:
        return f"class {first}: " + " ".join(format(value, shown) for value in row)
    return ", ".join(f"{name} {value:{shown}}" for name, value in zip(names, row, strict=True)) + (
        f"; largest: {names[first]}"
    )


__all__ = ["SHOWN_INPUTS", "outcome_lines"]
