"""Choices by name: what there is, and the nearest to what there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def require_one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """ValueError, which lists what is allowed, for a value that is not among it."""
    known = tuple(allowed)
    if value not in known:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")


def require_known(names: Iterable[str], known: Iterable[str], others: Iterable[str] = ()) -> None:
    """TypeError for the first name that is no option; it says which option, or which of `others`, is nearest."""
    options = sorted(known)
    for name in sorted(set(names) - set(options)):
        nearest = difflib.get_close_matches(name, [*options, *others], n=1)
        hint = f": did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(options)}"
        raise TypeError(f"there is no option {name!r}{hint}")
