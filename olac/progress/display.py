"""Where progress is shown: a bar in a terminal or notebook, or lines of text.

A bar is drawn on stderr by rich, without rich's thread: only when an event comes, and at most `PER_SECOND` times a
second. What the caller's code prints meanwhile, warns of or logs to the terminal appears above the bar.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from olac.errors import plain
from olac.progress.events import Event

if TYPE_CHECKING:
    from rich.console import Console

PER_SECOND = 5.0
"""Most drawings of a bar in a second."""
WIDEST, BAR, REST = 100, 20, 29
"""Columns of a terminal that are used at most, those of the bar, and those of the numbers beside it."""


class Display(Protocol):
    """Shows events."""

    def show(self, event: Event) -> None:
        """A step is done."""

    def close(self, text: str) -> None:
        """The work has ended; `text` is the line that says so, or empty if it failed."""

    def abandon(self) -> None:
        """Undo what the display has changed in this process, a forked one, and draw no more."""


def duration(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def console() -> Console:
    """The console of the display: stderr, or the output of a notebook's cell."""
    from rich.console import Console

    return Console(stderr=True)


def in_notebook() -> bool:
    """Whether this process computes the cells of a notebook."""
    return "ipykernel" in sys.modules


def shows_itself() -> bool:
    """Whether progress is shown if nothing is said of it.

    That is so in the main thread of a process that was not started by another of Python's, if stderr is a terminal, or
    in a notebook.
    """
    if threading.current_thread() is not threading.main_thread() or multiprocessing.parent_process() is not None:
        return False
    return _is_terminal(sys.stderr) or in_notebook()


def open_display() -> Display:
    """A bar if there is a place for one, otherwise lines of text."""
    if _is_terminal(sys.stderr) or in_notebook():
        found = console()
        if found.is_jupyter:
            drawn = importlib.util.find_spec("ipywidgets") is not None  # rich needs it there
            return Bar(found) if drawn else Lines(sys.stdout)
        if found.is_terminal and not found.is_dumb_terminal:
            return Bar(found)
    return Lines(sys.stderr)


def _is_terminal(stream: Any) -> bool:
    with suppress(ValueError, AttributeError):  # a closed stream, or none
        return bool(stream.isatty())
    return False


class Later:
    """Opens a display once the work has lasted some time; what is over by then is not shown at all."""

    def __init__(self, seconds: float) -> None:
        self._from = time.monotonic() + seconds
        self._display: Display | None = None
        self._kept: list[Event] = []

    def show(self, event: Event) -> None:
        """Show it if it is time."""
        if self._display is None:
            if event.stays:
                self._kept.append(event)
            if time.monotonic() < self._from:
                return
            self._display = open_display()
            for one in self._kept:
                self._display.show(one)
        self._display.show(event)

    def close(self, text: str) -> None:
        """Close it if it was opened."""
        if self._display is not None:
            self._display.close(text)

    def abandon(self) -> None:
        """Show nothing more."""
        if self._display is not None:
            self._display.abandon()
        self._from = float("inf")


class Lines:
    """A line for each stage, and each line that is to stay."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._stage = stream, ""

    def show(self, event: Event) -> None:
        """Print the first line of a stage."""
        if event.stage != self._stage or event.stays:
            self._stage = event.stage
            self._print(event.text)

    def close(self, text: str) -> None:
        """Print the last line."""
        if text:
            self._print(text)

    def abandon(self) -> None:
        """Print no more."""
        self._stream = None

    def _print(self, text: str) -> None:
        if self._stream is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more
                print(plain(text), file=self._stream, flush=True)


class Bar:
    """A bar with the share of the whole; it disappears at the end."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._console = console
        self._room = max(8, min(WIDEST, console.width) - BAR - REST)
        ends = {"justify": "right", "no_wrap": True}
        columns = (
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(width=self._room, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=BAR),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", markup=False, table_column=Column(width=11, **ends)),  # type: ignore[arg-type]
            TextColumn("{task.fields[memory]}", markup=False, table_column=Column(width=8, **ends)),  # type: ignore[arg-type]
        )
        terminals = not console.is_jupyter
        self._streams = sys.stdout, sys.stderr
        self._progress = Progress(
            *columns,
            console=console,
            auto_refresh=False,  # which would be a thread
            transient=True,
            redirect_stdout=terminals and _is_terminal(sys.stdout),
            redirect_stderr=terminals and _is_terminal(sys.stderr),
        )
        self._task = self._progress.add_task("", total=1.0, left="", memory="")
        self._next = 0.0
        self._open = True
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        with suppress(OSError, ValueError):
            self._progress.start()
        self._lead_logs()

    def _lead_logs(self) -> None:
        """Logs that go to the terminal go through rich meanwhile, so that they appear above the bar."""
        now = dict(zip(map(id, self._streams), (sys.stdout, sys.stderr), strict=True))
        loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
        for logger in loggers:
            for handler in getattr(logger, "handlers", ()):
                stream = getattr(handler, "stream", None)
                if isinstance(handler, logging.StreamHandler) and now.get(id(stream), stream) is not stream:
                    handler.setStream(now[id(stream)])
                    self._handlers.append((handler, stream))

    def _let_logs(self) -> None:
        for handler, stream in self._handlers:
            handler.stream = stream  # setStream would flush, and wait for a lock that a forked process has no owner of
        self._handlers.clear()

    def show(self, event: Event) -> None:
        """Draw the bar, unless it was drawn just before."""
        if not self._open:
            return
        now = time.monotonic()
        with suppress(OSError, ValueError):
            if event.stays:
                self._say(event.text)
            elif now < self._next:
                return
            else:
                self._next = now + 1.0 / PER_SECOND
            self._progress.update(
                self._task,
                completed=event.share,
                description=plain(event.label),
                left="" if event.eta_seconds is None else f"{duration(event.eta_seconds)} left",
                memory=f"{event.memory_gb:.2f} GB",
            )
            self._progress.refresh()

    def close(self, text: str) -> None:
        """Take the bar away, and print the last line."""
        if not self._open:
            return
        self._open = False
        with suppress(OSError, ValueError):
            self._progress.stop()
        self._let_logs()
        if text:
            with suppress(OSError, ValueError):
                self._say(text)

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(plain(text)), soft_wrap=True)

    def abandon(self) -> None:
        """Give back the streams that rich has replaced."""
        self._open = False
        sys.stdout, sys.stderr = self._streams
        self._let_logs()
