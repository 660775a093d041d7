"""What a fault led to: the outcomes that a case can have, and how an exception is judged."""

from __future__ import annotations

import enum
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from olac.errors import OlacError, VerificationError


class Outcome(enum.Enum):
    """The outcome of one case.

    RIGHT: the right result came out, or what was accepted is complete and consistent.
    REFUSED: one of olac's errors for callers, and nothing was left over.
    WRONG: a result that is not right, a file that is incomplete or a file that is lost, without an error.
    FOREIGN: an exception that is not olac's, or an error that says itself that it is a bug of olac.
    CRASHED: the process died.
    HUNG: no end within the limit.
    """

    RIGHT = "right"
    REFUSED = "refused"
    WRONG = "wrong"
    FOREIGN = "foreign"
    CRASHED = "crashed"
    HUNG = "hung"


FAULTS = (Outcome.WRONG, Outcome.FOREIGN, Outcome.CRASHED, Outcome.HUNG)


@dataclass(frozen=True)
class Verdict:
    """How a case ended, with details."""

    outcome: Outcome
    what: str = ""


@dataclass(frozen=True)
class Finding:
    """A case of a kind with its verdict; the seed makes the same case again."""

    kind: str
    seed: int
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.kind} {self.seed}: {self.verdict.outcome.value}: {self.verdict.what}"


@dataclass(frozen=True)
class Row:
    """One line of the table: the cases of a kind, by outcome."""

    kind: str
    counts: Counter[Outcome]

    @property
    def tried(self) -> int:
        """Number of cases."""
        return self.counts.total()

    @property
    def faults(self) -> int:
        """Number of cases with an outcome that must not happen."""
        return sum(self.counts[one] for one in FAULTS)


def rows(findings: Iterable[Finding]) -> list[Row]:
    """The table's lines, in the order in which the kinds first occur."""
    counted: dict[str, Counter[Outcome]] = {}
    for one in findings:
        counted.setdefault(one.kind, Counter())[one.verdict.outcome] += 1
    return [Row(kind, counts) for kind, counts in counted.items()]


def markdown(lines: Sequence[Row]) -> str:
    """The table in Markdown, with a line for the sums."""
    total: Counter[Outcome] = sum((line.counts for line in lines), Counter())
    names = [one.value for one in Outcome]
    out = [f"| kind | tried | {' | '.join(names)} |", f"|---|{'--:|' * (len(names) + 1)}"]
    for line in (*lines, Row("all", total)):
        out.append(f"| {line.kind} | {line.tried} | {' | '.join(str(line.counts[one]) for one in Outcome)} |")
    return "\n".join(out)


def right(what: str = "") -> Verdict:
    """The case ended well."""
    return Verdict(Outcome.RIGHT, what)


def wrong(what: str) -> Verdict:
    """The case ended with something wrong and no error."""
    return Verdict(Outcome.WRONG, what)


def judged(case: Callable[[], Verdict]) -> Verdict:
    """The verdict of a case, or of the exception that it ended with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return case()
        except VerificationError as error:
            return Verdict(Outcome.FOREIGN, f"VerificationError: {error}"[:500])
        except OlacError as error:
            return Verdict(Outcome.REFUSED, f"{type(error).__name__}: {error}"[:300])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} at {where.filename}:{where.lineno}"
            return Verdict(Outcome.FOREIGN, text[:500])
