"""`python -m benchmarks faults`: causes many faults of every kind, and shows a table of what each led to."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.faults.kinds import KINDS, MUTATIONS
from benchmarks.faults.material import prepare
from benchmarks.faults.outcomes import FAULTS, Finding, Outcome, markdown, rows
from benchmarks.faults.pool import MEMORY_BYTES, Worker
from olac.ckks.engines import AUTO, ENGINES

LARGE: dict[str, int] = {
    "networks": 1000,
    **dict.fromkeys(MUTATIONS, 10_000),
    "failed writes": 1000,
    "failed allocations": 1000,
    "limited files": 500,
    "killed": 300,
    "forks": 80,
    "threads": 40,
    "constant memory": 4,
}
"""Number of cases of each kind."""
SAYS_EVERY = 20.0
FORKING = ("killed", "forks")
"""Kinds whose processes fork, and set their own limits."""
TWO_THREADS = ("forks",)
"""Kinds that need OpenMP's threads, because a fork does not copy these."""


def worker(kinds: Sequence[str], folder: Path) -> Worker:
    """A process for these kinds, which share it."""
    threads = 2 if all(name in TWO_THREADS for name in kinds) else 1
    return Worker(kinds, folder, 0 if any(name in FORKING for name in kinds) else MEMORY_BYTES, threads)


def find(
    counts: dict[str, int], folder: Path, first: int, seconds: float | None, say: Callable[[str], None]
) -> Iterator[Finding]:
    """All cases of some kinds, kind by kind.

    Args:
        counts: number of cases of each kind.
        folder: with the material.
        first: seed of the first case of each kind.
        seconds: after which a kind ends early; None for never.
    """
    for name, count in counts.items():
        start = said = time.monotonic()
        faults = 0
        with worker([name], folder) as process:
            for done, seed in enumerate(range(first, first + count), 1):
                found = process.case(name, seed)
                if found.verdict.outcome in FAULTS:
                    faults += 1
                    say(str(found))
                yield found
                now = time.monotonic()
                if now - said > SAYS_EVERY or done == count:
                    say(f"{name}: {done} of {count}, {faults} faults, {now - start:.0f} s")
                    said = now
                if seconds is not None and now - start > seconds:
                    break


def add_arguments(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Add the command's options."""
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--count", type=count, metavar="N", help="cases of each kind; else as in docs/reliability.md")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="seed of the first case; default 0")
    parser.add_argument("--minutes", type=count, metavar="M", help="minutes for each kind at most")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep programs, keys and ciphertexts there")
    parser.add_argument("--engine", choices=tuple(ENGINES), default=AUTO.name, help="that runs all but the networks")
    parser.add_argument("--refused", action="store_true", help="show refused cases, too, with their errors")


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> int:
    """Run the command; 1 if any case was wrong, crashed, hung or ended in a foreign exception."""
    names = options.kinds or tuple(KINDS)
    counts = {name: options.count or LARGE[name] for name in names}
    with tempfile.TemporaryDirectory() as made:
        folder = (options.folder or Path(made)) / options.engine
        if not (folder / "deep" / "sizes.json").exists():
            say("making programs, keys and ciphertexts")
            prepare(folder, options.engine)
        seconds = None if options.minutes is None else 60.0 * options.minutes
        findings: list[Finding] = []
        for found in find(counts, folder, options.first, seconds, say):
            if options.refused and found.verdict.outcome == Outcome.REFUSED:
                say(str(found))
            findings.append(found)
    lines = rows(findings)
    print(markdown(lines))
    return 1 if any(line.faults for line in lines) else 0
