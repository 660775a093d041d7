"""Which line of a model's own code is running, or failed."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType, TracebackType

import torch
from torch import fx

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


_PLACE: ContextVar[tuple[str, str]] = ContextVar("place", default=("", ""))
"""Module path and source line of the operation of an exported program that is running."""


@contextlib.contextmanager
def at_place(path: str, source: str) -> Iterator[None]:
    """Within this, operations come from a module path and a source line that a graph has kept; "" if it has not."""
    token = _PLACE.set((path, source))
    try:
        yield
    finally:
        _PLACE.reset(token)


def current_path(module_path: str) -> str:
    """The path of the module that is running: of the module that the tracer knows, and of what a graph has kept."""
    return ".".join(part for part in (module_path, _PLACE.get()[0]) if part)


def source_of_text(stack: str) -> str:
    """The innermost line of the model's own code in the text of a stack; "" if there is none."""
    lines = [(name, int(line)) for name, line in re.findall(r'File "(.*?)", line (\d+)', stack)]
    return next((_where(name, line) for name, line in reversed(lines) if _is_user_file(name)), "")


def error_text(error: BaseException) -> str:
    """The first line of an error's message, or the line of code that raised it if there is no message."""
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    frames = traceback.extract_tb(error.__traceback__)
    return (frames[-1].line if frames else "") or "no message"


def _is_user_file(name: str) -> bool:
    path = os.path.abspath(name)
    return not path.startswith(_TORCH) and not path.startswith(_HERE) and not name.startswith("<eval_with_key>")


def _where(name: str, line: int) -> str:
    return f"{os.path.basename(name)}:{line}"


def source_of_error(trace_back: TracebackType | None) -> str:
    found = ""
    while trace_back is not None:
        name = trace_back.tb_frame.f_code.co_filename
        if _is_user_file(name):
            found = _where(name, trace_back.tb_lineno)
        trace_back = trace_back.tb_next
    return found


def current_source() -> str:
    """File and line of the innermost frame of the model's own code, or "" if there is none."""
    if _PLACE.get()[1]:
        return _PLACE.get()[1]
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not fx.Tracer.trace.__code__:
        if _is_user_file(frame.f_code.co_filename):
            return _where(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""
