"""Runs for a person at a command line: shown while they last, interrupted between two nodes, and summed up."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olac.backends.session import Preparing
from olac.errors import plain
from olac.pages.text import duration
from olac.progress import Event, Reporter, showing
from olac.progress.display import is_terminal
from olac.runtime import commands
from olac.runtime.estimates import Forecast
from olac.runtime.progress import RUNNING, Progress
from olac.system.output import tell

log = logging.getLogger(__name__)
PREPARING = "getting the engine ready"


@dataclass
class Shown:
    """A run on display.

    Attributes:
        say: who is told.
        last: the node that was computed last.
    """

    say: Reporter
    last: Progress | None = None

    def node(self, progress: Progress) -> None:
        """A node is computed: the bar moves; without one, or if stdout is no terminal, it gets a line."""
        self.last = progress
        self.say(progress)
        if not self.say.heard or not is_terminal(sys.stdout):
            tell(str(progress))


@contextmanager
def showing_run() -> Iterator[Shown]:
    """A bar on stderr if that is a terminal, and a line for each node on stdout if that is none."""
    with showing(None, RUNNING, "ran", log, closing=False) as say:
        say(Event("loading keys", "loading keys"))
        yield Shown(say)


def preparing(say: Reporter) -> Preparing:
    """Shows what an engine does to get ready: on the display, or a line for each new thing on stderr."""
    told: set[str] = set()

    def show(what: str, done: int, total: int) -> None:
        say(Event(f"{what} ({done} of {total})", PREPARING, done, total))
        if not say.heard and what not in told:
            told.add(what)
            with suppress(OSError):
                print(what, file=sys.stderr, flush=True)

    return show


def run(
    program: Path,
    evaluation_keys: Path,
    encrypted: Path,
    output: Path,
    *,
    checkpoint: Path | None = None,
    **choices: Any,
) -> int:
    """`commands.run` as `olac run` shows it.

    Args:
        choices: as of `commands.run`.

    Returns:
        the exit status: 0, or 130 if the run was interrupted.

    Raises:
        OlacError: as `commands.run`.
    """
    ended: list[commands.Ran] = []
    with showing_run() as shown:
        try:
            commands.run(
                program,
                evaluation_keys,
                encrypted,
                output,
                checkpoint=checkpoint,
                progress=shown.node,
                preparing=preparing(shown.say),
                announce=_announce(shown.say),
                ended=ended.append,
                **choices,
            )
        except KeyboardInterrupt:
            stopped = interrupted(shown.last, checkpoint)
        else:
            stopped = ""
    if stopped:
        print(stopped, file=sys.stderr)
        return 130
    for one in ended:
        _tell_end(str(one), output)
    return 0


def _announce(say: Reporter) -> Callable[[Forecast], None]:
    def announce(found: Forecast) -> None:
        # The first set takes longer, as weights are encoded for it.
        first, further = found.estimate.first_seconds, sum(found.estimate.node_seconds.values())
        tell(
            f"predicted {plain(found.where)}: {duration(first)}, and {duration(further)} for each further set of "
            "ciphertexts"
        )
        say("loading keys")

    return announce


def _tell_end(line: str, output: Path) -> None:
    """The last line, kept out of a result that goes to standard output."""
    if os.path.realpath(output) != os.path.realpath("/dev/stdout"):
        tell(line)
        return
    with suppress(OSError):
        print(line, file=sys.stderr)


def interrupted(last: Progress | None, checkpoint: Path | None) -> str:
    """One line: where a run was interrupted, and whether it can be continued."""
    where = "before the first layer" if last is None else f"after {plain(last.node)} ({last.done} of {last.total})"
    if checkpoint is None:
        kept = "no checkpoint was kept (--checkpoint FILE keeps one)"
    elif not checkpoint.exists():
        kept = "there was no checkpoint yet"
    else:
        upto = f"up to {plain(last.checkpoint)}" if last is not None and last.checkpoint else "as it was before"
        kept = f"{plain(checkpoint)} holds the run {upto}: the same command continues from there"
    return f"interrupted {where}; {kept}"
