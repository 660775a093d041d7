"""Which line of a model's own code is running, or failed."""

from __future__ import annotations

import os
import sys
import traceback
from types import FrameType, TracebackType

import torch
from torch import fx

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


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
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not fx.Tracer.trace.__code__:
        if _is_user_file(frame.f_code.co_filename):
            return _where(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""
