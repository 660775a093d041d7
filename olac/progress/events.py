"""What is told of work that takes long, one event a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Self


SHOWN_AFTER = 0.5
"""Seconds from which on work is shown that may be short and come again and again, such as a run."""


@dataclass(frozen=True, eq=False)
class Event(str):
    """One step of work that takes long.

    An event is its line of text with data beside it. So a function that takes text, such as `print` or the `append` of
    a list, can be told of events as well.

    Attributes:
        text: the line, for people.
        stage: the part of the work that the step belongs to, such as "calibrating".
        done, total: steps of this stage so far and in all; 0 if they are not counted.
        share: of the whole work, from 0 to 1. It never falls, and is 1 at the end.
        eta_seconds: predicted seconds to the end of the whole work; None if nothing is known of them.
        memory_gb: resident memory of this process.
        stays: whether the line tells more than what is done at the moment, so that displays keep it.
    """

    text: str
    stage: str = ""
    done: int = 0
    total: int = 0
    share: float = 0.0
    eta_seconds: float | None = None
    memory_gb: float = 0.0
    stays: bool = False

    def __new__(cls, text: str, *_: Any, **__: Any) -> Self:
        """The text itself; the fields are set as those of any dataclass."""
        return super().__new__(cls, text)

    def __str__(self) -> str:
        """The line."""
        return self.text

    @property
    def label(self) -> str:
        """A few words for a display that has little room."""
        counted = f" {self.done}/{self.total}" if self.total else ""
        return f"{self.stage}{counted}" if self.stage else self.text


Shown: TypeAlias = bool | Callable[[Event], Any] | None
"""How progress is shown. None: a bar, if stderr is a terminal or in a notebook. False: not at all. True: always, as
lines, one for each stage, if there is no terminal. A function: it is called with each event, and nothing is shown."""
ShownCounts: TypeAlias = Shown | Callable[[int, int], Any]
"""The same; or a function that is called with two numbers, those of steps that are done and in all."""
