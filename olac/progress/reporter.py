"""Who is told of the steps of some work, and the log records of its stages."""

from __future__ import annotations

import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from olac.progress import display as displays
from olac.progress.course import Course
from olac.progress.display import Display
from olac.progress.display import duration as duration
from olac.progress.display import exact_duration as exact_duration
from olac.progress.events import Event, ShownCounts
from olac.system.internal import callers
from olac.system.logs import event as log_event
from olac.system.memory import GB, current_rss_bytes

_lock = threading.Lock()
_displayed: Reporter | None = None
"""Whose events are on display in this process; at most one."""
_forked = False
"""Whether this process was forked by one that may show progress itself."""


def _after_fork() -> None:
    global _displayed, _forked, _lock
    _lock, _forked = threading.Lock(), True
    if _displayed is not None:
        _displayed.abandon()
    _displayed = None


os.register_at_fork(after_in_child=_after_fork)


class Reporter:
    """Is called with a line or an event for each step; completes it, and tells who wants to know.

    Args:
        doing, done: the work, as in "compiling" and "compiled".
        log: where stages are logged.
        listener: the caller's function.
        display: where events are shown.
        outer: the reporter on display that this work is a part of.
        fields: of the log records of the whole work.

    Attributes:
        result: what was made, for the last line.
        share: of the whole that is done.
    """

    def __init__(
        self,
        doing: str,
        done: str,
        log: logging.Logger,
        listener: Callable[[Event], Any] | None = None,
        display: Display | None = None,
        outer: Reporter | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.doing, self.result = doing, ""
        self.thread = threading.get_ident()
        self._done, self._log, self._listener, self._display, self._outer = done, log, listener, display, outer
        self._course, self._stage = Course(), ""
        self._begun = self._stage_begun = time.monotonic()
        self._fields: dict[str, Any] = {"task": doing, **(fields or {})}
        log_event(log, f"{doing} begins", **self._fields)

    @property
    def heard(self) -> bool:
        """Whether anybody is told."""
        return self._listener is not None or self._display is not None or self._outer is not None

    @property
    def share(self) -> float:
        """Of the whole, 0 to 1."""
        return self._course.share

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    def plan(self, weights: Mapping[str, float], in_seconds: bool = False) -> None:
        """Expect these stages, in their order; see `Course.plan`."""
        self._course.plan(weights, in_seconds)

    def __call__(self, line: str) -> None:
        """A step is done: a line of text of the present stage, or an event with its stage and counts."""
        given = line if isinstance(line, Event) else Event(line)
        stage = given.stage or self._stage
        if stage != self._stage:
            self._leave()
            self._stage, self._stage_begun = stage, time.monotonic()
            if stage != self.doing:
                log_event(self._log, f"{self.doing}: {stage} begins", task=self.doing, stage=stage)
        if not self.heard:
            return
        self._course.reach(stage, given.done, given.total, given.share)
        eta = self._course.eta_seconds if given.eta_seconds is None else given.eta_seconds
        memory = given.memory_gb or current_rss_bytes() / GB
        self._tell(replace(given, stage=stage, share=self._course.share, eta_seconds=eta, memory_gb=memory))

    def _tell(self, event: Event) -> None:
        if self._listener is not None:
            with callers():
                self._listener(event)
        if self._display is not None:
            self._display.show(event)
        if self._outer is not None:
            self._outer.part(event)

    def part(self, event: Event) -> None:
        """A step of work that is a part of this one: it is shown, and the share of the whole stays."""
        if self.heard:
            eta = self._course.eta_seconds
            self._tell(replace(event, share=self._course.share, eta_seconds=eta, done=0, total=0, stays=False))

    def _leave(self) -> None:
        if self._stage not in ("", self.doing):
            seconds = round(time.monotonic() - self._stage_begun, 3)
            message = f"{self.doing}: {self._stage} ends after {seconds} s"
            log_event(self._log, message, task=self.doing, stage=self._stage, seconds=seconds)

    def end(self, told: bool = True, closing: bool = True) -> None:
        """The work is done; `told` and `closing` are as in `showing`."""
        self._leave()
        seconds = self.seconds
        text = f"{self._done} in {exact_duration(seconds)}" + (f": {self.result}" if self.result else "")
        log_event(self._log, text, **self._fields, seconds=round(seconds, 3))
        if self.heard:
            self._course.share = 1.0
            event = Event(text, self._done, 0, 0, 1.0, 0.0, current_rss_bytes() / GB, True)
            if told and self._listener is not None:
                with callers():
                    self._listener(event)
            if self._outer is not None:
                self._outer.part(event)
            if self._display is not None:
                self._display.close(text if closing else "")

    def fail(self, error: BaseException) -> None:
        """The work has ended by an error; its message is not logged, as it may be about the caller's data."""
        if self._display is not None:
            self._display.close("")
        seconds = round(self.seconds, 3)
        kind = type(error).__name__
        log_event(self._log, f"{self.doing} ends by {kind}", **self._fields, seconds=seconds, error=kind)

    def abandon(self) -> None:
        """Show nothing any more: this process was forked, and the display is its parent's."""
        if self._display is not None:
            self._display.abandon()
            self._display = None


@contextmanager
def showing(
    asked: bool | Callable[[Any], Any] | None,
    doing: str,
    done: str,
    log: logging.Logger,
    plan: Mapping[str, float] | None = None,
    *,
    told: bool = True,
    closing: bool = True,
    after: float = 0.0,
    fields: Mapping[str, Any] | None = None,
) -> Iterator[Reporter]:
    """Stands around work that takes long; gives what is called for each of its steps.

    If a part of the work is itself surrounded by this, all share one display.

    Args:
        asked: how progress is shown; or the reporter of work that this is a part of, which is told in place of another.
        doing, done: the work, as in "compiling" and "compiled".
        log: where stages are logged.
        plan: weights of the stages, in their order, if they are known beforehand.
        told: whether a caller's function is told of the end as well.
        closing: whether a display ends with a line that says what was done and how long it took.
        after: seconds from which on work is shown, if nobody asked for it.
        fields: of the log records of the whole work.

    Raises:
        TypeError: `asked` is no way to show progress.
    """
    if isinstance(asked, Reporter):
        yield asked
        return
    if not (asked is None or isinstance(asked, bool) or callable(asked)):
        raise TypeError(
            f"progress is of type {type(asked).__name__}: give a function that takes an event, True, False, or None"
        )
    global _displayed
    listener = asked if not isinstance(asked, bool) and callable(asked) else None
    display, outer = None, None
    with _lock:
        if listener is None and asked is not False:
            if _displayed is not None:
                outer = _displayed if _displayed.thread == threading.get_ident() else None
            elif asked or (not _forked and displays.shows_itself()):
                display = displays.open_display() if asked or not after else displays.Later(after)
        reporter = Reporter(doing, done, log, listener, display, outer, fields)
        if plan is not None:
            reporter.plan(plan)
        if display is not None:
            _displayed = reporter
    try:
        yield reporter
        reporter.end(told, closing)
    except BaseException as error:
        reporter.fail(error)
        raise
    finally:
        if display is not None and _displayed is reporter:
            _displayed = None


def at_stage(say: Callable[[str], None] | None, stage: str) -> Callable[[str], None] | None:
    """The same, with all lines as those of one stage; None for None."""
    if say is None:
        return None

    def tell(line: str) -> None:
        say(replace(line, stage=stage) if isinstance(line, Event) else Event(line, stage))

    return tell


def counting(say: Callable[[str], None], stage: str) -> Callable[[int, int], None]:
    """What takes (done, total) and tells a stage's line, such as "making keys: 3 of 20"."""

    def tell(done: int, total: int) -> None:
        say(Event(f"{stage}: {done} of {total}", stage, done, total, done / max(1, total)))

    return tell


def with_counts(asked: ShownCounts | Reporter) -> bool | Callable[[Any], Any] | None:
    """The same, with a function of two numbers (done, total), as these were called before, as one of events."""
    if asked is None or isinstance(asked, (bool, Reporter)) or not callable(asked):
        return asked
    given: Callable[..., Any] = asked
    try:
        inspect.signature(given).bind(0)
    except TypeError:
        return lambda event: given(event.done, event.total)
    except ValueError:  # nothing is known of it
        pass
    return given
