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
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from olac.errors import plain
from olac.progress.events import Event

if TYPE_CHECKING:
    from rich.console import Console

PER_SECOND = 5.0
"""Most drawings of a bar in a second."""
ERASE = "\r\x1b[2K"
"""Takes away the line that the cursor is in."""
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


def exact_duration(seconds: float) -> str:
    """The same to a tenth of a second: 12.3 s, 12 min, 3.5 h."""
    return f"{seconds:.1f} s" if seconds < 100 else duration(seconds)


def console() -> Console:
    """The console of the display: stderr, or the output of a notebook's cell."""
    from rich.console import Console

    return Console(stderr=True, file=sys.stderr)  # this stream, not what takes its place while a bar is shown


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
    return is_terminal(sys.stderr) or in_notebook()


def open_display() -> Display:
    """A bar if there is a place for one, otherwise lines of text."""
    if is_terminal(sys.stderr) or in_notebook():
        found = console()
        if found.is_jupyter:
            drawn = importlib.util.find_spec("ipywidgets") is not None  # rich needs it there
            return Bar(found) if drawn else Lines(sys.stdout)
        if found.is_terminal and not found.is_dumb_terminal:
            return Bar(found)
    return Lines(sys.stderr)


def is_terminal(stream: Any) -> bool:
    """Whether what is written to a stream appears on a terminal."""
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

        room = max(8, min(WIDEST, console.width) - BAR - REST)
        left = Column(width=11, justify="right", no_wrap=True)
        memory = Column(width=8, justify="right", no_wrap=True)
        self._console, self._lock = console, threading.RLock()
        self._progress = Progress(
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(width=room, no_wrap=True, overflow="ellipsis"),
            ),
            BarColumn(bar_width=BAR),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", markup=False, table_column=left),
            TextColumn("{task.fields[memory]}", markup=False, table_column=memory),
            console=console,
            auto_refresh=False,  # which would be a thread
            transient=True,
            redirect_stdout=False,  # `_Above` does this: consoles of rich would go around rich's own
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("", total=1.0, left="", memory="")
        self._next, self._open, self._partial = 0.0, True, False
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        with suppress(OSError, ValueError):
            self._progress.start()
        self._streams = sys.stdout, sys.stderr
        if not console.is_jupyter:
            sys.stdout, sys.stderr = (_Above(one, self) if is_terminal(one) else one for one in self._streams)
            self._lead_logs()

    def _lead_logs(self) -> None:
        """Logs that go to the terminal appear above the bar as well."""
        now = dict(zip(map(id, self._streams), (sys.stdout, sys.stderr), strict=True))
        for logger in (logging.getLogger(), *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                stream = getattr(handler, "stream", None)
                if isinstance(handler, logging.StreamHandler) and now.get(id(stream), stream) is not stream:
                    handler.setStream(now[id(stream)])
                    self._handlers.append((handler, stream))

    def _let_streams(self) -> None:
        for given, own in zip(("stdout", "stderr"), self._streams, strict=True):
            if isinstance(getattr(sys, given), _Above):
                setattr(sys, given, own)
        for handler, stream in self._handlers:
            handler.stream = stream  # setStream would take a lock that nobody gives back in a forked process
        self._handlers.clear()

    def show(self, event: Event) -> None:
        """Draw the bar, unless it was drawn just before."""
        if not self._open:
            return
        with self._lock, suppress(OSError, ValueError):
            if event.stays:
                self._say(event.text)
            elif time.monotonic() < self._next:
                return
            self._progress.update(
                self._task,
                completed=event.share,
                description=plain(event.label),
                left="" if event.eta_seconds is None else f"{duration(event.eta_seconds)} left",
                memory=f"{event.memory_gb:.2f} GB",
            )
            self._draw()
            if event.stays:
                self._next = 0.0

    def _draw(self) -> None:
        self._next = time.monotonic() + 1.0 / PER_SECOND
        if self._partial:
            self._console.file.write("\n")
            self._partial = False
        self._progress.refresh()

    def above(self, stream: TextIO, text: str) -> int:
        """Write text of others where the bar is; the bar is drawn again below it."""
        if not self._open:
            return stream.write(text)
        with self._lock:
            if not self._partial:
                with suppress(OSError, ValueError):
                    self._console.file.write(ERASE)
                    self._console.file.flush()
            written = stream.write(text)
            stream.flush()
            if text:
                self._partial = not text.endswith("\n")
            if not self._partial and time.monotonic() >= self._next:
                with suppress(OSError, ValueError):
                    self._draw()
            return written

    def close(self, text: str) -> None:
        """Take the bar away, and print the last line."""
        if not self._open:
            return
        with self._lock:
            self._let_streams()
            with suppress(OSError, ValueError):
                if self._partial:
                    self._console.file.write("\n")
                self._progress.stop()
            self._open = False
            if text:
                with suppress(OSError, ValueError):
                    self._say(text)

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(plain(text)), soft_wrap=True)

    def abandon(self) -> None:
        """Give back the streams that were replaced."""
        self._open = False
        self._let_streams()


class _Above:
    """A stream of the terminal that has a bar: what is written to it appears above the bar."""

    def __init__(self, stream: TextIO, bar: Bar) -> None:
        self._stream, self._bar = stream, bar

    def write(self, text: str) -> int:
        """Write text above the bar."""
        return self._bar.above(self._stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write lines above the bar."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
