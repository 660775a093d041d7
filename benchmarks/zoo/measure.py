"""What olac makes of one case: whether it takes the module, whether it lifts it right, and what that took.

A row never ends the run: every exception becomes an outcome, and so does a row that takes too long.
"""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.results import MODEL, Row
from benchmarks.zoo.cases import Case
from benchmarks.zoo.outcomes import ABSENT, CLOSE, CRASH, MEMORY, REFUSED, RIGHT, SLOW, UNCLEAR, WRONG, ZOO
from olac.approximation import tensors
from olac.errors import InfeasibleError, UnsupportedModelError, UnsupportedNode
from olac.frontend import Traced, check, lift, trace
from olac.ir.graph import Graph
from olac.ir.head import OutputHead
from olac.ir.ops import Array
from olac.ir.split import split_head

FOREIGN = "can't be traced ("
"""Refusals with these words pass on the error of another library."""
TRACED, COMPARED = 2, 3
"""Images that a case is traced with, and other images that the lifted graph is compared on."""
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


def reset_peak() -> bool:
    """Forget the largest memory of this process so far; False if this system can't."""
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_gb() -> float | None:
    """The largest memory of this process since `reset_peak`, in GB; None if this system doesn't say."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM:")), None)


def flat(outputs: Any) -> list[torch.Tensor]:
    """All tensors of what a module returns, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        return [tensor for value in outputs.values() for tensor in flat(value)]
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        return [tensor for value in outputs for tensor in flat(value)]
    return []


def example(inputs: tuple[torch.Tensor, ...]) -> Any:
    """Inputs as `olac.check` takes them: a tensor, or a tuple of several."""
    return inputs[0] if len(inputs) == 1 else inputs


def problems_of(
    case: Case, model: nn.Module, inputs: tuple[torch.Tensor, ...], client_head: bool
) -> list[UnsupportedNode]:
    """What `olac.check` reports."""
    activations = dict(case.activations) or None
    try:
        return check(model, example(inputs), activations, client_head)
    except TypeError as error:
        if len(inputs) == 1 or "is a torch.Tensor" not in str(error):
            raise
        # This olac takes one tensor only, and says for a model of several inputs what to do.
        return check(model, inputs[0], activations, client_head)


@dataclass(frozen=True)
class Lifted:
    """A traced model, all of it as a graph, and this graph without the steps of the client, which are the head."""

    traced: Traced
    whole: Graph
    graph: Graph
    head: OutputHead


def lifted(case: Case, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Lifted:
    """A model that `olac.check` found no problem in."""
    traced = trace(model, example(inputs), dict(case.activations) or None)
    whole = lift(traced, case.client_head)
    return Lifted(traced, whole, *split_head(whole, case.client_head))


def exact_error(graph: Graph, head: OutputHead, inputs: tuple[torch.Tensor, ...], expected: Any) -> float:
    """The largest difference of a graph of exact activations from torch, relative to the largest output.

    The graph is evaluated in torch, in single precision; small ones also by the ops' own `evaluate`.
    """
    found = [tensors.real_outputs(graph, tensors.tensors(graph), example(inputs)).double().numpy()]
    if sum(constant.size for constant in graph.constants.values()) < EXACT_CONSTANTS:
        found.append(graph.evaluate(inputs[0].double().numpy()))
    return max(relative(head.apply(one), expected) for one in found)


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference of outputs, each relative to the largest number of the other's.

    It is infinite for another number of outputs, other shapes or NaN.
    """
    found = [ours] if isinstance(ours, np.ndarray) else list(ours.values() if isinstance(ours, Mapping) else ours)
    wanted = [output.detach().double().numpy() for output in flat(theirs)]
    if [one.size for one in found] != [one.size for one in wanted]:
        return float("inf")
    return max(_relative(np.asarray(a, dtype=np.float64), b) for a, b in zip(found, wanted, strict=True))


def _relative(ours: Array, theirs: Array) -> float:
    difference = float(np.max(np.abs(ours.reshape(theirs.shape) - theirs)))
    error = difference / max(float(np.max(np.abs(theirs))), 1e-12)
    return error if np.isfinite(error) else float("inf")


def outcome_of(nodes: Sequence[UnsupportedNode]) -> str:
    """Whether a refusal is clear."""
    return UNCLEAR if any(FOREIGN in node.problem for node in nodes) else REFUSED


def measure(case: Case, approximate: bool = False, seconds: float | None = None) -> Row:
    """The row of a case; see `benchmarks.results.MODEL`.

    Args:
        approximate: whether the levels are found, with fits of polynomials where that is quick.
        seconds: the limit of lifting, and again of what `approximate` adds.
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
        with torch.no_grad():
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
    if isinstance(error, (MemoryError, InfeasibleError)):
        return {"outcome": MEMORY, "error": text_of(error)}
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
        model = case.model()
        row: Row = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        inputs = case.inputs(TRACED)
        model(*inputs)  # if this fails, the case is wrong, not olac
        try:
            problems = problems_of(case, model, inputs, case.client_head)
            if problems:
                row |= _refusal(problems)
                if not case.client_head and not problems_of(case, model, inputs, True):
                    row["last_step"] = True
                return row
            _free(case)
            found = lifted(case, model, inputs)
            others = case.inputs(COMPARED, seed=2)
            difference = exact_error(found.graph, found.head, others, model(*others))
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
        row |= _approximated(case, model, found, seconds)
    return row


def _approximated(case: Case, model: nn.Module, found: Lifted, seconds: float | None) -> Row:
    """The parts of a row that come with polynomials. A failure is noted, and leaves the outcome of lifting."""
    from benchmarks.zoo.levels import structural_levels
    from benchmarks.zoo.polynomials import approximated

    try:
        with time_limit(seconds):
            if case.approximates:
                return approximated(case, model, found)
            return {"levels": structural_levels(case, found)}
    except OutOfTimeError:
        return {"approximation": SLOW}
    except Exception as error:
        return {"approximation": text_of(error)}
