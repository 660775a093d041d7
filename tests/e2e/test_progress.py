"""Progress of compiling, from the first stage to the line that says what was made."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import olac
from olac.progress import Event
from olac.progress.stages import STAGES, TRACING
from olac.system.logs import FIELDS

IMAGES = torch.rand(256, 6, generator=torch.Generator().manual_seed(0))


def compiled(progress: Any) -> olac.CompiledProgram:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return olac.compile(
        model, list(IMAGES.split(64)), progress=progress, effort="fast", log_ring=12, insecure=True, engine="openfhe"
    )


@pytest.fixture(scope="module")
def told() -> tuple[olac.CompiledProgram, list[Event], list[logging.LogRecord]]:
    """A program, the events while it was compiled, and the log records."""
    events: list[Event] = []
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    log, keep = logging.getLogger("olac"), Keep()
    log.addHandler(keep)
    log.setLevel(logging.INFO)
    try:
        program = compiled(events.append)
    finally:
        log.removeHandler(keep)
        log.setLevel(logging.NOTSET)
    return program, events, records


def test_events_tell_stages_in_order_and_the_share_of_the_whole(
    told: tuple[olac.CompiledProgram, list[Event], list[logging.LogRecord]],
) -> None:
    _, events, _ = told
    shares = [event.share for event in events]
    assert shares == sorted(shares) and shares[0] == 0 and 0 < shares[-2] < 1 == shares[-1]
    stages = list(dict.fromkeys(event.stage for event in events[:-1]))
    order = [TRACING, *STAGES]
    assert stages == sorted(stages, key=order.index) and {"calibrating", "fitting polynomials"} <= set(stages)
    assert events[0] == "tracing the model" and "pass fold_affine" in events and "choosing parameters" in events
    counts = [(event.done, event.total) for event in events if event.startswith("calibrating: ")]
    assert counts == [(64, 256), (128, 256), (192, 256), (256, 256)]
    assert all(event.eta_seconds is not None and event.memory_gb > 0 for event in events[1:])


def test_the_last_line_says_what_was_made(
    told: tuple[olac.CompiledProgram, list[Event], list[logging.LogRecord]],
) -> None:
    program, events, records = told
    made = (
        r"compiled in \d+\.\d s: OpenFHE, ring 2\^12; predicted: \d+\.\d GB for a server, \S+ m?s an? (image|row|input)"
    )
    assert re.fullmatch(made, events[-1]) and program.parameters.log_ring == 12
    messages = [record.getMessage() for record in records if record.name == "olac.compiler"]
    assert messages[0] == "compiling begins" and messages[-1] == events[-1]
    ended = [getattr(record, FIELDS) for record in records if " ends after " in record.getMessage()]
    assert {one["stage"] for one in ended} == {event.stage for event in events[:-1]}
    assert all(one["seconds"] >= 0 for one in ended)


@pytest.mark.parametrize(
    ("call", "last"),
    [
        (lambda model, **how: olac.calibrate(model, list(IMAGES.split(64)), **how), "calibrated in .* s: 256 images"),
        (
            lambda model, **how: olac.approximate(model, list(IMAGES.split(64)), degree=3, effort="fast", **how),
            "approximated in .* s: 1 polynomial of degree 3",
        ),
    ],
)
def test_lines_if_asked_and_silence_otherwise(
    call: Callable[..., object], last: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    call(model)
    assert capfd.readouterr() == ("", "")
    call(model, progress=True)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and lines[0] == "tracing the model" and re.fullmatch(last, lines[-1])
    with pytest.raises(TypeError, match="progress is of type int"):
        call(model, progress=3)
