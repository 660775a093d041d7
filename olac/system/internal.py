"""Unexpected errors become one of olac's own, which says which step failed, at which node, and what to report.

`guard` stands around a step of olac. It finds the node at work among the variables of the frames that an error came
through, so no pass needs to name it, whether it is olac's or from outside. Errors about the caller's arguments, and
those from a function or a loader of the caller's (`callers`, `callers_own`, `callers_items`), pass unchanged.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from olac.errors import InfeasibleError, OlacError, VerificationError
from olac.system.memory import ran_out

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
LONGEST = 300
"""Longest part of a foreign error's own message that is shown, in characters."""

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@contextlib.contextmanager
def guard(doing: str) -> Iterator[None]:
    """Turn unexpected errors into olac's own.

    Args:
        doing: the step, as the beginning of "... failed at node".

    Raises:
        VerificationError: for any exception that is neither one of olac's nor from the caller's own functions.
        InfeasibleError: there is not enough memory.
    """
    try:
        yield
    except OlacError:
        raise
    except Exception as error:
        if is_callers(error):
            raise
        raise _meant(doing, error) from error


def _meant(doing: str, error: Exception) -> OlacError:
    place = _place(error.__traceback__)
    where = f" at {place}" if place else ""
    text = str(error).strip()
    if ran_out(error):
        return InfeasibleError(
            f"{doing} takes more memory than this process gets{where}. Free some, raise the limit, or take a smaller "
            "model or fewer calibration inputs."
        )
    said = f": {_short(text)}" if text else ""
    return VerificationError(f"{doing} failed{where}: {type(error).__name__}{said} ({_line(error)})")


def _place(trace_back: TracebackType | None) -> str:
    """The innermost node that was at work: its id, op, module path and source line. "" if there was none."""
    found = ""
    while trace_back is not None:
        variables = trace_back.tb_frame.f_locals
        places = (_place_of(value) for value in (variables.get("node"), *variables.values()))
        found = next((place for place in places if place), found)
        trace_back = trace_back.tb_next
    return found


def _place_of(value: Any) -> str:
    """`_place` of one value: a node of a graph, or an operation that was traced; "" for anything else."""
    place = getattr(value, "place", None) if hasattr(type(value), "place") else None
    if isinstance(place, str):
        return place
    meta = getattr(value, "meta", None) if hasattr(type(value), "format_node") else None
    if isinstance(meta, dict) and "source" in meta:
        source = f", {meta['source']}" if meta["source"] else ""
        return f"the operation {value.name} (from {meta.get('path') or 'the model itself'}{source})"
    return ""


def _short(text: str) -> str:
    line = text.splitlines()[0]
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."


def _line(error: Exception) -> str:
    """The line of olac's own that failed, or the innermost line if none is olac's."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "no line is known"
    ours = [frame for frame in frames if os.path.abspath(frame.filename).startswith(_HERE)]
    frame = (ours or list(frames))[-1]
    name = os.path.abspath(frame.filename)
    short = name.removeprefix(os.path.dirname(_HERE[:-1]) + os.sep) if ours else os.path.basename(name)
    source = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{short}:{frame.lineno}" + (f": {_short(source)}" if source else "")


@contextlib.contextmanager
def callers() -> Iterator[None]:
    """Marks what is raised within as the caller's, about its arguments or from its code: guards let it pass."""
    try:
        yield
    except Exception as error:
        error._olac_callers = True  # type: ignore[attr-defined]
        raise


def is_callers(error: BaseException) -> bool:
    """Whether an error came through `callers`."""
    return getattr(error, "_olac_callers", False)


def callers_own(function: F) -> F:
    """The same function of the caller's; guards let its errors pass."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with callers():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def callers_items(items: Iterable[T]) -> Iterator[T]:
    """The items of the caller's loader; guards let its errors pass."""
    with callers():
        iterator = iter(items)
    while True:
        with callers():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item
