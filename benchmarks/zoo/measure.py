"""What olac makes of one case: whether it takes the module, whether it lifts it right, and what that took.

A row never ends the run: every exception becomes an outcome, and so does a row that takes too long.
"""

from __future__ import annotations

import gc
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from benchmarks.results import MODEL, Row
from benchmarks.zoo.cases import Case
from benchmarks.zoo.outcomes import ABSENT, CLOSE, CRASH, MEMORY, REFUSED, RIGHT, SLOW, UNCLEAR, WRONG, ZOO
from benchmarks.zoo.subject import TRACED, Lifted, Subject, subject_of
from olac.approximation import tensors
from olac.errors import InfeasibleError, UnsupportedModelError, UnsupportedNode
from olac.system.memory import ran_out

FOREIGN = "can't be traced ("
"""Refusals with these words pass on the error of another library."""
COMPARED = 3
"""Images, others than those that are traced, that the lifted graph is compared on."""
EXACT_CONSTANTS = 200_000
"""Graphs with fewer constants are also evaluated by the reference semantics, in double precision."""
LONGEST = 160
"""Characters of an error that a row keeps."""
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class OutOfTimeError(BaseException):
    """A row takes too long. It is no `Exception`, so that nothing in between takes it for a failure of the model."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `OutOfTimeError` after some seconds; without a limit outside the main thread, where signals can't come."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(gigabytes: float | None) -> Iterator[None]:
    """Within this, the process takes no more memory than it has and that: further allocations fail.

    Without a number, or on a system that doesn't say what a process has, there is no limit.
    """
    taken = _of_status("VmData")
    if gigabytes is None or taken is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    lowest = min([int((taken + gigabytes) * 1e9), *(limit for limit in before if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def reset_peak() -> bool:
    """Forget the largest memory of this process so far; False if this system can't."""
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_gb() -> float | None:
    """The largest memory of this process since `reset_peak`, in GB; None if this system doesn't say."""
    return _of_status("VmHWM")


def _of_status(name: str) -> float | None:
    """A line of the process's status, in GB."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{name}:")), None)


def exact_error(lifted: Lifted, images: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of a graph of exact activations from torch, relative to the largest output.

    The graph is evaluated in torch, in single precision; small ones also by the ops' own `evaluate`.
    """
    graph = lifted.graph
    found = [tensors.real_outputs(graph, tensors.tensors(graph), images).double().numpy()]
    if sum(constant.size for constant in graph.constants.values()) < EXACT_CONSTANTS:
        found.append(graph.evaluate(images.double().numpy()))
    return max(relative(lifted.head.apply(one), expected) for one in found)


def relative(ours: Any, theirs: torch.Tensor) -> float:
    """The largest difference relative to the largest of the other's numbers; infinite for other shapes or NaN."""
    given, wanted = np.asarray(ours, dtype=np.float64), theirs.detach().double().numpy()
    if given.size != wanted.size:
        return float("inf")
    error = float(np.max(np.abs(given.reshape(wanted.shape) - wanted))) / max(float(np.max(np.abs(wanted))), 1e-12)
    return error if np.isfinite(error) else float("inf")


def outcome_of(nodes: Sequence[UnsupportedNode]) -> str:
    """Whether a refusal is clear."""
    return UNCLEAR if any(FOREIGN in node.problem for node in nodes) else REFUSED


def measure(case: Case, approximate: bool = False, seconds: float | None = None, gigabytes: float | None = None) -> Row:
    """The row of a case; see `benchmarks.results.MODEL`.

    Args:
        approximate: whether the levels are found, with fits of polynomials where that is quick.
        seconds: the limit of lifting, and again of what `approximate` adds.
        gigabytes: the memory that the process may take beyond what it has.
    """
    _free(case)
    reset = reset_peak()
    start = time.monotonic()
    row: Row = {
        "kind": MODEL,
        "family": case.kind,
        "model": case.name,
        "variant": case.variant,
        "inputs": [list(shape) for shape in case.shapes],
    }
    try:
        with torch.no_grad(), memory_limit(gigabytes):
            row |= _measured(case, approximate, seconds)
    except OutOfTimeError:
        row["outcome"] = SLOW
    except Exception as error:
        row |= _failure(error)
    row["seconds"] = round(time.monotonic() - start, 2)
    row["peak_gb"] = round(peak_gb() or 0.0, 2) if reset else None
    return row


def _free(case: Case) -> None:
    """Give back the memory of what was lifted before, whose parts refer to one another; it counts for networks only."""
    if case.kind == ZOO:
        gc.collect()


def _failure(error: Exception) -> Row:
    if isinstance(error, ImportError):
        return {"outcome": ABSENT, "error": f"{error}"}
    if isinstance(error, InfeasibleError) or ran_out(error):
        return {"outcome": MEMORY}
    return {"outcome": CRASH, "error": text_of(error)}


def text_of(error: BaseException) -> str:
    """An error in one line, with its type, cut if it is long."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _refusal(nodes: Sequence[UnsupportedNode]) -> Row:
    counts = Counter(node.problem for node in nodes)
    return {"outcome": outcome_of(nodes), "places": len(nodes), "problems": dict(counts.most_common())}


def _measured(case: Case, approximate: bool, seconds: float | None) -> Row:
    with time_limit(seconds):
        subject = subject_of(case)
        row: Row = {"parameters": sum(parameter.numel() for parameter in subject.given.parameters())}
        subject.expected(TRACED)  # if this fails, the case is wrong, not olac
        try:
            problems = subject.problems(case.client_head)
            joined = subject.joined() if problems else None
            if joined is not None:
                subject, problems = joined, joined.problems(case.client_head)
                row["joined"] = True
            if problems:
                row |= _refusal(problems)
                if not case.client_head and not subject.problems(True):
                    row["last_step"] = True
                return row
            _free(case)
            found = subject.lifted()
            difference = exact_error(found, subject.images(COMPARED, seed=2), subject.expected(COMPARED, seed=2))
        except UnsupportedModelError as error:
            return row | {"outcome": CRASH, "error": f"check finds nothing, then {text_of(error)}"}
        except Exception as error:
            return row | _failure(error)
        row |= {
            "outcome": RIGHT if difference <= CLOSE else WRONG,
            "error_of_lifting": difference,
            "steps_of_client": len(found.head.steps),
        }
    if approximate and difference <= CLOSE:
        row |= _approximated(subject, found, seconds)
        del subject, found  # a network takes gigabytes
        _free(case)
        if case.smallest is not None:
            row["smallest"] = _of_smallest(case.smallest, seconds)
    return row


def _approximated(subject: Subject, found: Lifted, seconds: float | None) -> Row:
    """The parts of a row that come with polynomials. A failure is noted, and leaves the outcome of lifting."""
    from benchmarks.zoo.levels import structural_levels
    from benchmarks.zoo.polynomials import approximated

    def of_case() -> Row:
        if subject.case.approximates:
            return approximated(subject, found)
        return {"levels": structural_levels(subject, found)}

    return _noted(of_case, seconds)


def _of_smallest(case: Case, seconds: float | None) -> Row:
    """What is found by fits for the smallest inputs of a network, with their shapes."""
    from benchmarks.zoo.polynomials import approximated

    def of_case() -> Row:
        subject = subject_of(case)
        return approximated(subject, subject.lifted())

    return {"inputs": [list(shape) for shape in case.shapes], **_noted(of_case, seconds)}


def _noted(work: Callable[[], Row], seconds: float | None) -> Row:
    """A part of a row, or why it is missing."""
    try:
        with time_limit(seconds):
            return work()
    except OutOfTimeError:
        return {"approximation": SLOW}
    except Exception as error:
        return {"approximation": MEMORY if ran_out(error) else text_of(error)}
