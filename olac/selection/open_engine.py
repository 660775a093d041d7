"""The engine that programs are planned for if the caller leaves it open."""

from __future__ import annotations

from dataclasses import replace

from olac.backends.session import Preparing, find_engine
from olac.ckks.engines import FALLBACK
from olac.options import AUTO_ENGINE, CompileOptions, Stages, telling
from olac.progress import Event, Reporter


def for_this_machine(options: CompileOptions, progress: Stages | None) -> tuple[CompileOptions, tuple[str, ...]]:
    """The options, with `FALLBACK` in place of an open engine that this machine can't use, and a note if that is so.

    An engine that is named, or whose prices are given, is taken as it is: the program may be for another machine.

    Args:
        progress: told what is done to make the engine ready, which takes up to a minute at its first use on a machine.
    """
    first = options.planned_for
    if options.engine != AUTO_ENGINE or options.costs is not None or first is FALLBACK:
        return options, ()
    reason = find_engine(first.name).unavailable(_steps(progress))
    if not reason:
        return options, ()
    note = f"the program is for {FALLBACK.title}, as {first.title} can't be used on this machine: {reason}"
    return replace(options, engine=FALLBACK.name), (note,)


def _steps(progress: Stages | None) -> Preparing | None:
    """A line for each new thing that is done; None if nobody is told."""
    if progress is None or (isinstance(progress, Reporter) and not progress.heard):
        return None
    say, said = telling(progress), set[str]()

    def preparing(what: str, done: int, total: int) -> None:
        if what not in said:
            said.add(what)
            say(Event(what, "getting the engine ready", done, total))

    return preparing
