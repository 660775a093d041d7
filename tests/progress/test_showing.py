"""Who is told of work that takes long, and what a terminal shows of it."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import pickle
import re
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from olac.progress import Event, Reporter, at_stage, counting, display, reporter, showing, with_counts
from olac.progress.course import MOST, Course
from olac.system.logs import FIELDS

LOG = logging.getLogger("olac.tests")


def work(asked: Any, **choices: Any) -> None:
    """Two stages of two steps, the second three times as long as the first."""
    with showing(asked, "working", "worked", LOG, {"first": 1.0, "second": 3.0}, **choices) as say:
        for stage in ("first", "second"):
            for done in (1, 2):
                say(Event(f"{stage}: {done} of 2", stage, done, 2))
        say.result = "4 steps"


class Terminal(io.StringIO):
    """What a terminal gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._monkeypatch = monkeypatch

    def isatty(self) -> bool:
        return True

    def connect(self) -> None:
        """Have it in place of stdout and stderr. A fixture can't: pytest sets these when the test begins."""
        for name in ("stdout", "stderr"):
            self._monkeypatch.setattr(sys, name, self)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal of 80 columns, on which every event is drawn."""
    shown = Terminal(monkeypatch)
    monkeypatch.setattr(display, "console", lambda: Console(force_terminal=True, file=shown, width=80, height=24))
    monkeypatch.setattr(display, "PER_SECOND", 1e9)
    monkeypatch.setenv("TERM", "xterm")
    yield shown
    assert reporter._displayed is None


def test_an_event_is_its_line() -> None:
    event = Event("calibrating: 64 images", "calibrating", 64, 512, 0.25, 3.0, 0.5)
    assert event == str(event) == f"{event}" == "calibrating: 64 images" and "64" in event
    assert json.loads(json.dumps({"say": event})) == {"say": "calibrating: 64 images"}
    again = pickle.loads(pickle.dumps(event))
    assert vars(again) == vars(event) and again == event
    later = replace(event, share=0.5)
    assert later.share == 0.5 and later.stage == "calibrating" and later == event
    with pytest.raises(AttributeError):
        event.share = 1.0  # type: ignore[misc]


def test_the_share_never_falls_and_is_one_at_the_end() -> None:
    events: list[Event] = []
    work(events.append)
    assert [event.share for event in events] == pytest.approx([0.125, 0.25, 0.625, MOST, 1.0])
    assert [str(event) for event in events[:4]] == [
        "first: 1 of 2",
        "first: 2 of 2",
        "second: 1 of 2",
        "second: 2 of 2",
    ]
    assert events[-1].startswith("worked in ") and events[-1].endswith(" s: 4 steps") and events[-1].stays
    assert all(event.memory_gb > 0 for event in events)
    assert events[-1].eta_seconds == 0


def test_a_course_goes_on_when_stages_are_left_out_or_begin_again() -> None:
    course = Course()
    course.plan({"a": 1.0, "b": 1.0, "c": 2.0}, in_seconds=True)
    shares = []
    for stage, done, total in (("a", 1, 2), ("c", 0, 4), ("a", 1, 4), ("unheard of", 1, 2), ("c", 2, 4), ("c", 1, 4)):
        course.reach(stage, done, total)
        shares.append(course.share)
    assert shares == sorted(shares) and shares[0] == pytest.approx(0.125)
    assert shares[1] == pytest.approx(0.5, abs=0.01) and shares[-1] == pytest.approx(0.75)
    eta = course.eta_seconds
    assert eta is not None and eta == pytest.approx(1.0 / 4.0, rel=0.1), "1 s is left, and 3 took no time"


def test_time_of_unplanned_stages_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    course = Course()
    course.plan({"a": 2.0, "b": 2.0}, in_seconds=True)
    course.reach("a", 1, 1)
    now = 2.0
    course.reach("getting ready", 0, 4)
    now = 102.0
    course.reach("getting ready", 1, 4)
    assert course.eta_seconds == pytest.approx(300 + 2)
    course.reach("b", 0, 1)
    assert course.eta_seconds == pytest.approx(2)


def test_silent_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    work(None)
    work(False)
    assert capfd.readouterr() == ("", "")


def test_lines_without_a_terminal_if_asked(capfd: pytest.CaptureFixture[str]) -> None:
    work(True)
    out, err = capfd.readouterr()
    *lines, last = err.splitlines()
    assert out == "" and lines == ["first: 1 of 2", "second: 1 of 2"] and last.startswith("worked in ")


def test_a_terminal_shows_a_bar_and_keeps_the_last_line(terminal: Terminal) -> None:
    terminal.connect()
    work(None)
    text = terminal.getvalue()
    for part in ("first 1/2", "second 2/2", "━━━", " 62%", " GB"):
        assert part in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is hidden once, and shown again"
    assert text.split("\x1b[2K")[-1].startswith("worked in 0.0 s: 4 steps\n"), "the bar is gone"
    for row in text.replace("\r", "\n").splitlines():
        assert len(re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", row)) <= 80


def test_nothing_is_shown_if_nobody_wants_it(terminal: Terminal) -> None:
    terminal.connect()
    work(False)
    work(lambda event: None)
    assert terminal.getvalue() == ""


def test_work_within_work_shares_the_display(terminal: Terminal) -> None:
    terminal.connect()
    events: list[Event] = []
    with showing(True, "all", "did all", LOG, {"outer": 1.0}) as say:
        say(Event("outer: 1 of 2", "outer", 1, 2))
        for asked in (None, True, False, say, events.append):
            work(asked)
        assert say.share == 0.5, "parts do not know their share of the whole"
    text = terminal.getvalue()
    assert text.count("\x1b[?25l") == 1 and text.count("worked in") == 0 and text.count("did all in") == 1
    assert "second 2/2" not in text.split("did all in")[1]
    assert events[-1].share == 1.0


def test_another_thread_shows_nothing(terminal: Terminal) -> None:
    terminal.connect()
    thread = threading.Thread(target=work, args=(None,))
    thread.start()
    thread.join()
    assert terminal.getvalue() == ""
    with showing(True, "all", "did all", LOG):
        thread = threading.Thread(target=work, args=(True,))
        thread.start()
        thread.join()
    assert "second" not in terminal.getvalue()


def test_no_thread_draws(terminal: Terminal) -> None:
    terminal.connect()
    before = threading.enumerate()
    with showing(True, "working", "worked", LOG) as say:
        say(Event("first", "first"))
        assert threading.enumerate() == before
    assert threading.enumerate() == before


def test_what_is_printed_warned_and_logged_meanwhile_stands_above_the_bar(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.connect()
    streams = sys.stdout, sys.stderr
    handler: logging.StreamHandler[Any] = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("tests.of.progress")
    logger.addHandler(handler)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: print(message, file=sys.stderr))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with showing(True, "working", "worked", LOG) as say:
                say(Event("first", "first"))
                print("printed")
                warnings.warn("warned", stacklevel=1)
                logger.warning("logged")
                Console(force_terminal=True, width=80).print("by rich", highlight=False)
                print("in two", end=" ")
                print("parts")
                say(Event("told", "first", stays=True))
                print("not ended", end="")
                say(Event("second", "second"))
    finally:
        logger.removeHandler(handler)
    text = terminal.getvalue()
    for line in ("printed", "warned", "logged", "by rich", "in two parts", "told", "not ended"):
        assert f"\x1b[2K{line}\n" in text, "the bar is erased, and drawn again below the line"
    assert (sys.stdout, sys.stderr) == streams and handler.stream is streams[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_errors_leave_a_clean_terminal(terminal: Terminal, error: type[BaseException]) -> None:
    terminal.connect()
    streams = sys.stdout, sys.stderr
    with pytest.raises(error), showing(None, "working", "worked", LOG) as say:
        say(Event("first", "first"))
        raise error
    text = terminal.getvalue()
    assert text.endswith("\x1b[?25h\r\x1b[1A\x1b[2K") and "worked" not in text
    assert (sys.stdout, sys.stderr) == streams and reporter._displayed is None


def test_a_forked_process_shows_nothing(terminal: Terminal) -> None:
    terminal.connect()
    streams = sys.stdout, sys.stderr
    with showing(True, "working", "worked", LOG) as say:
        say(Event("first", "first"))
        before = terminal.getvalue()
        child = os.fork()
        if not child:
            ok = False
            try:
                say(Event("child", "child"))
                work(None)
                print("child", file=terminal)
                ok = (sys.stdout, sys.stderr) == streams and terminal.getvalue() == f"{before}child\n"
            finally:
                os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        say(Event("second", "second"))
    assert "second" in terminal.getvalue()


def test_short_work_is_shown_only_if_asked(terminal: Terminal) -> None:
    terminal.connect()
    work(None, after=3600.0)
    assert terminal.getvalue() == ""
    work(True, after=3600.0)
    assert "worked in" in terminal.getvalue()


def test_work_that_lasts_is_shown_from_then_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.connect()
    with showing(None, "working", "worked", LOG, after=5.0) as say:
        say(Event("first", "first"))
        say(Event("kept", "first", stays=True))
        assert terminal.getvalue() == ""
        later = time.monotonic() + 5
        monkeypatch.setattr(time, "monotonic", lambda: later)
        say(Event("second", "second"))
        assert "kept\n" in terminal.getvalue() and "second" in terminal.getvalue()


def test_it_is_drawn_a_few_times_a_second(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.connect()
    monkeypatch.setattr(display, "PER_SECOND", 1e-3)
    with showing(True, "working", "worked", LOG) as say:
        for number in range(1000):
            say(Event(f"step {number}", f"stage {number}"))
    assert "stage 0" in terminal.getvalue() and "stage 1" not in terminal.getvalue()


def test_a_terminal_that_is_gone_ends_no_work(terminal: Terminal) -> None:
    terminal.connect()
    with showing(True, "working", "worked", LOG) as say:
        say(Event("first", "first"))
        terminal.close()
        say(Event("second", "second"))
        say(Event("told", "second", stays=True))


def test_notebooks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without ipywidgets there are lines in the cell's output; with it, rich's widget, which is closed at the end."""
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "console", lambda: Console(force_jupyter=True, file=io.StringIO(), width=80))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    work(None)
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == ["first: 1 of 2", "second: 1 of 2"] and err == ""

    drawn: list[object] = []

    class Output:
        """As ipywidgets has it."""

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

        def clear_output(self, wait: bool) -> None: ...

        def close(self) -> None:
            drawn.append("closed")

    widgets, ipython = types.ModuleType("ipywidgets"), types.ModuleType("IPython.display")
    widgets.Output = Output  # type: ignore[attr-defined]
    ipython.display = lambda *given, **_: drawn.extend(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    work(None)
    assert drawn and "closed" in drawn and reporter._displayed is None


def test_errors_of_a_function_pass_as_the_callers_own() -> None:
    def fails(event: Event) -> None:
        raise KeyError("the caller's own")

    with pytest.raises(KeyError) as caught:
        work(fails)
    assert caught.value._olac_callers  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [3, "yes", 1.0])
def test_what_is_no_way_to_show_progress_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="give a function that takes an event, True, False, or None"):
        work(wrong)


def test_functions_of_two_numbers_are_called_as_before() -> None:
    pairs: list[tuple[int, int]] = []
    events: list[Event] = []
    takes: tuple[Callable[..., Any], ...] = (lambda done, total: pairs.append((done, total)), events.append, print)
    for take in takes:
        with showing(with_counts(take), "making", "made", LOG, told=False) as say:
            counting(say, "making")(3, 20)
    assert pairs == [(3, 20)] and events == ["making: 3 of 20"] and events[0].done == 3
    assert with_counts(None) is None and with_counts(False) is False


def test_lines_of_one_stage() -> None:
    events: list[Event] = []
    with showing(events.append, "working", "worked", LOG) as say:
        told = at_stage(say, "fitting")
        assert told is not None and at_stage(None, "fitting") is None
        told("a line")
        told(Event("counted", "", 1, 2))
    assert [(event.stage, event.done) for event in events[:2]] == [("fitting", 0), ("fitting", 1)]


def test_stages_are_logged_with_their_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "olac")
    work(False, fields={"program": "abc"})
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:2] == ["working begins", "working: first begins"]
    assert [message.split(" after")[0] for message in messages[2:5]] == [
        "working: first ends",
        "working: second begins",
        "working: second ends",
    ]
    last = getattr(caplog.records[-1], FIELDS)
    assert messages[-1].startswith("worked in ") and last["program"] == "abc" and last["seconds"] >= 0
    caplog.clear()
    with pytest.raises(ValueError, match="7"), showing(False, "working", "worked", LOG):
        raise ValueError("a value: 7")
    assert caplog.records[-1].getMessage() == "working ends by ValueError"


def test_a_reporter_passes_through() -> None:
    with showing(False, "working", "worked", LOG) as outer, showing(outer, "other", "others", LOG) as inner:
        assert inner is outer and isinstance(inner, Reporter) and not inner.heard
