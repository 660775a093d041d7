"""`python -m benchmarks models`: which operations, nets and networks olac takes as they come."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import ResultsError, ResultsFile, Row
from benchmarks.zoo.outcomes import KINDS
from olac.progress import Event, showing

if TYPE_CHECKING:
    from benchmarks.zoo.cases import Case


log = logging.getLogger("olac.benchmarks")


def add_arguments(parser: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """Add the command's options."""
    parser.add_argument("--kind", choices=KINDS, help="single operations, small nets, or networks; default: all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the cases of these names alone")
    parser.add_argument("--approximate", action="store_true", help="fit polynomials, too, where that takes seconds")
    parser.add_argument("--seconds", type=count, default=600, metavar="S", help="for each case at most; default 600")
    parser.add_argument("--memory", type=count, default=4, metavar="GB", help="for each case at most; default 4")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write all rows of the file as docs/models.md")


def chosen(kind: str | None, only: Sequence[str] | None) -> list[Case]:
    """The cases of a kind, or all, and of those the ones with some names.

    Raises:
        ResultsError: for a name that no case has.
    """
    from benchmarks.zoo.catalogue import CASES

    cases = [case for case in CASES if kind is None or case.kind == kind]
    unknown = sorted(set(only or ()) - {case.name for case in cases})
    if unknown:
        raise ResultsError(f"there is no case {', '.join(unknown)}; there are {', '.join(c.name for c in cases)}")
    return [case for case in cases if only is None or case.name in only]


def run(options: argparse.Namespace, command: str) -> list[Row]:
    """Measure the chosen cases, with progress on stderr; returns their rows."""
    from benchmarks.zoo.document import document
    from benchmarks.zoo.measure import measure

    cases = chosen(options.kind, options.only)
    results = ResultsFile.open(options.json, command, options.append)
    rows: list[Row] = []
    with showing(None, "measuring", "measured", log) as say:
        for number, case in enumerate(cases):
            say(Event(case.title, case.title, number, len(cases), number / len(cases)))
            row = measure(case, options.approximate, options.seconds, options.memory)
            results.add(row)
            rows.append(row)
            print(f"{case.kind} {case.title}: {row['outcome']}, {row['seconds']:.1f} s", file=sys.stderr, flush=True)
        say.result = f"{len(rows)} cases"
    if options.markdown is not None:
        options.markdown.write_text(document(_ordered(results.rows)), encoding="utf-8")
    return rows


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of the cases; those of cases that there are no more are left out."""
    from benchmarks.zoo.catalogue import CASES

    places = {(case.kind, case.name, case.variant): place for place, case in enumerate(CASES)}
    found = {places.get((row["family"], row["model"], row["variant"]), -1): row for row in rows if "family" in row}
    return [found[place] for place in sorted(found) if place >= 0]
