"""Programs for one engine or another: which parameters it takes, what is refused, and where programs go instead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olac.backends.session import Preparing, find_engine
from olac.ckks import engines
from olac.ckks.candidates import BUDGETS
from olac.ckks.engines import OPENFHE, VECTOR
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import InfeasibleError
from olac.options import CompileOptions
from olac.program.program import ApproximatedModel, CompiledProgram
from olac.report import parameter_lines
from olac.selection import generate
from olac.selection.lower import lower
from tests.ckks.picky_engine import MOST_BITS, PICKY
from tests.networks import cubic_blocks
from tests.selection.jobs import TABLE, job_of

PRICES = replace(TABLE, engine=PICKY)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.ENGINES, PICKY.name, PICKY)


def made(blocks: int = 1, say: list[str] | None = None, **choices: object) -> CompiledProgram:
    graph, calibration, _ = cubic_blocks(blocks)
    options = CompileOptions(**{"threads": 1, "precision": 1e-3, **choices})  # type: ignore[arg-type]
    return lower(ApproximatedModel(graph), calibration, options, progress=None if say is None else say.append)


def test_a_program_is_for_the_engine_that_is_asked_for() -> None:
    program = made(engine="picky", costs=PRICES)
    assert program.engine == "picky" and program.planned_for is PICKY
    assert max(program.parameters.primes).bit_length() <= MOST_BITS
    assert "planned for the picky engine" in parameter_lines(program)[0]
    usual = made(engine="openfhe")
    assert usual.engine == "openfhe" and "planned for OpenFHE" in parameter_lines(usual)[0]
    assert program.fingerprint != usual.fingerprint


def test_what_the_engine_refuses_is_named() -> None:
    with pytest.raises(InfeasibleError) as caught:
        made(engine="picky", costs=PRICES, precision=1e-5)
    text = str(caught.value)
    assert text.startswith("the picky engine does not take the program: ")
    assert f" has more than {MOST_BITS} bits (ring 2^" in text and 'OpenFHE takes them: engine="openfhe"' in text


def test_open_engines_leave_such_programs_to_openfhe() -> None:
    said: list[str] = []
    program = made(say=said, costs=PRICES, precision=1e-5)
    assert program.engine == "openfhe" and program.fingerprint == made(engine="openfhe", precision=1e-5).fingerprint
    (note,) = [one for one in program.report.notes if "engine" in one]
    assert note.startswith("the program is for OpenFHE, as the picky engine does not take it: ") and note in said
    taken = made(costs=PRICES)
    assert taken.engine == "picky" and not any("engine" in one for one in taken.report.notes)


def test_a_refusal_for_another_reason_says_that_there_is_more_elsewhere() -> None:
    with pytest.raises(InfeasibleError) as caught:
        made(engine="picky", costs=PRICES, max_memory=1e7)
    first, *_, last = str(caught.value).splitlines()
    assert first.startswith("no parameters fit in max_memory = 0.01 GB")
    assert last.startswith("the picky engine does not take other parameters: ")
    with pytest.raises(InfeasibleError) as caught:
        made(engine="openfhe", max_memory=1e7)
    assert "does not take" not in str(caught.value)


@pytest.mark.parametrize("setup", [None, Bootstrapping(6)])
def test_pinned_parameters_that_the_engine_refuses(setup: Bootstrapping | None) -> None:
    depth = 16 if setup is None else setup.depth
    pinned = Parameters(13, depth, 40, 47, 2, FLEXIBLE, 0, setup)
    with pytest.raises(InfeasibleError, match=r"the picky engine does not take the program: \d+ has more"):
        made(engine="picky", costs=PRICES, parameters=pinned, insecure=True)
    program = made(costs=PRICES, parameters=pinned, insecure=True)
    assert program.engine == "openfhe" and program.parameters == pinned


def test_chains_with_bootstraps_are_those_that_the_engine_takes() -> None:
    graph, calibration, _ = cubic_blocks(12)
    job = job_of(graph, calibration, costs=PRICES, engine="picky")
    chains = [one for same in generate.chains_with_bootstraps(job, ()) for one in same]
    assert not chains and job.refused  # all have a first prime of 40 bits or more
    bound = generate._least(job_of(graph, calibration), (16,))
    assert all(0 < one < float("inf") for one in bound) and len(BUDGETS) > 1
    assert generate._least(job, (16,)) == (float("inf"), float("inf"))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"engine": "seal"}, "engine 'seal' is not one of auto, openfhe"),
        ({"engine": "openfhe", "costs": PRICES}, "the costs are those of the picky engine, not of engine 'openfhe'"),
        ({"engine": "picky", "costs": TABLE}, "the costs are those of OpenFHE, not of engine 'picky'"),
    ],
)
def test_options_that_do_not_fit(choices: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompileOptions(**choices)  # type: ignore[arg-type]


def test_the_open_choice_is_made_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CompileOptions().planned_for is engines.AUTO and CompileOptions().table.engine is engines.AUTO
    assert CompileOptions(costs=PRICES).planned_for is PICKY and CompileOptions(costs=PRICES).table is PRICES
    assert CompileOptions(engine="openfhe").planned_for is OPENFHE and engines.AUTO is VECTOR
    monkeypatch.setattr("olac.options.AUTO", PICKY)
    assert CompileOptions().planned_for is PICKY
    assert engines.FALLBACK.takes(Parameters(12, 5, 55, 60, 2, security=0))


def test_the_open_choice_is_openfhe_where_the_first_engine_can_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made(engine="openfhe").fingerprint
    assert made().engine == "vector" and not any("engine" in one for one in made().report.notes)
    monkeypatch.setattr(find_engine("vector"), "unavailable", lambda preparing=None: "it was sold out")
    said: list[str] = []
    program = made(say=said)
    note = "the program is for OpenFHE, as the vector engine can't be used on this machine: it was sold out"
    assert program.engine == "openfhe" and program.fingerprint == expected
    assert program.report.notes.count(note) == 1 == said.count(note)
    # An engine that is named, or whose prices are given, may be for another machine.
    assert made(engine="vector").engine == "vector"
    assert made(costs=CostTable.default(VECTOR)).engine == "vector"
    assert made(costs=PRICES).engine == "picky"


def test_progress_tells_what_makes_the_engine_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(preparing: Preparing | None = None) -> str:
        assert preparing is not None
        for done in range(3):
            preparing("melting the kernels", done, 3)
        return ""

    monkeypatch.setattr(find_engine("vector"), "unavailable", unavailable)
    said: list[str] = []
    made(say=said)
    assert said.count("melting the kernels") == 1
