"""Candidates: prices of programs that are never lowered to the end, with and without bootstraps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from olac.analysis.bootstrap_problem import Placements
from olac.analysis.levels import multiplicative_depth
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.candidates import BUDGETS, candidates, deep_chains
from olac.ckks.engines import OPENFHE, VECTOR, EngineModel
from olac.ckks.parameters import BOOTSTRAP_FIRST_BITS, BOOTSTRAP_SCALE_BITS, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import SecurityError
from olac.kernels.record import record
from olac.options import CompileOptions
from olac.polynomials.modes import FitOptions
from olac.selection import generate
from olac.selection.generate import _on_fewer_slots, _planned, least_cost, with_bootstraps
from olac.selection.job import Job
from olac.selection.price import Candidate, preferred
from tests.networks import Growing, cubic_blocks, images_for, key_steps, normalized, residual_network
from tests.selection.jobs import TABLE, finished, job_of

GB = 1e9


def never(parameters: Parameters, why: str) -> None:
    raise AssertionError(why)


def test_digits_are_priced_as_whole_programs_are() -> None:
    graph = residual_network()
    graph, calibration = normalized(graph, images_for(graph, 16))
    choices = candidates(multiplicative_depth(graph), 34, 41, log_rings=(14, 15))
    choices = [one for one in choices if one.log_ring == 15]
    assert len(choices) > 2
    job = job_of(graph, calibration)
    draft = job.levelled(choices[0])
    found = [job.price(parameters, draft) for parameters in choices]
    for one in found:
        assert one.keys.steps == key_steps(one.graph, one.parameters)  # memory is small beside what a machine has
        assert job.finished(one) is one
        _, whole = finished(job, one)
        assert one.seconds == pytest.approx(whole.seconds_per_image)
        assert one.server_bytes / GB == pytest.approx(whole.server_gb)
    assert len({round(one.server_bytes) for one in found}) == len(found)


def check_price(job: Job, one: Candidate) -> None:
    """Seconds within what a bootstrap's drops to a level take, and bytes."""
    program, made = finished(job, one)
    whole, profiles = program.graph, one.draft.profiles
    operands = {
        node.id: node.type.state.level + node.levels(whole.constants) for node in whole.nodes if node.type.state
    }
    recorder = record(whole, one.parameters)
    assert profiles.uses(operands) == recorder.uses()
    own = {what: n for what, n in recorder.counts().items() if what[0] not in ("bootstrap", "drop")}
    assert {what: n for what, n in profiles.counts(operands).items() if what[0] != "drop"} == own
    assert profiles.order == tuple(event.step for event in recorder.events if event.step)
    assert set(program.rotations) == bootstrap_model(one.parameters).keys_for(profiles.steps)
    assert one.server_bytes / GB == pytest.approx(made.server_gb)
    assert one.seconds == pytest.approx(made.seconds_per_image, rel=0.05)


@pytest.fixture
def all_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bootstraps are placed on every chain, not only on those that may be the best."""
    monkeypatch.setattr(generate, "least_cost", lambda *_: 0.0)


@pytest.mark.usefixtures("all_chains")
def test_plans_with_bootstraps_are_priced_as_whole_programs_are() -> None:
    graph, calibration, _ = cubic_blocks(3)
    chains = [
        Parameters(11, setup.depth, 40, 47, digits, FLEXIBLE, 0, setup)
        for digits, setup in itertools.product((2, 3), (Bootstrapping(6), Bootstrapping(5, (4, 3)), Bootstrapping(2)))
    ]
    job = job_of(graph, calibration)
    refused: list[tuple[Parameters, str]] = []
    found = with_bootstraps(job, chains, None, lambda parameters, why: refused.append((parameters, why)))
    found = [one for one in found if bootstrap_model(one.parameters).log_slots is None]
    assert {parameters for parameters, _ in refused} == {c for c in chains if c.bootstrapping == Bootstrapping(2)}
    assert all("levels" in why for _, why in refused)
    assert [(p.digits, p.depth) for p in job.packs[:2]] == [(2, 22), (2, 22)]
    assert {one.parameters for one in found} == set(chains) - {parameters for parameters, _ in refused}
    for one in found:
        check_price(job, one)


@pytest.mark.usefixtures("all_chains")
def test_bootstraps_work_on_a_part_of_the_slots_if_values_repeat() -> None:
    graph, calibration, _ = cubic_blocks(8)
    chains = [
        Parameters(13, setup.depth, 40, 47, digits, FLEXIBLE, 0, setup)
        for digits, setup in itertools.product((2, 3), (Bootstrapping(6), Bootstrapping(5, (4, 3))))
    ]
    job = job_of(graph, calibration)
    found = with_bootstraps(job, chains, None, never)
    full = [one for one in found if one.parameters in chains]
    sparse = [one for one in found if one.parameters not in chains]
    assert len(full) == len(chains)
    best = preferred(found, None)[0]
    setup = best.parameters.bootstrapping
    assert setup is not None and setup.log_slots is not None
    # Of each budget a plan for every number of slots, and those of one with lowerings of its own.
    anew = job.packs[-1]
    assert len(job.packs) == 3 and anew.bootstrapping == replace(setup, rest=anew.depth - setup.depth + setup.rest)
    first, second = sparse[:-2], sparse[-2:]
    drafts = {id(one.draft) for one in full}
    assert len(drafts) == 2 and {id(one.draft) for one in first} == drafts
    assert id(second[0].draft) == id(second[1].draft) not in drafts
    assert {one.parameters.digits for one in second} == {2, 3}
    assert {one.parameters.bootstrapping for one in second} == {setup}
    for one in sparse:
        largest = max(one.graph[name].type.layout.repeats_after for _, name in one.placements)  # type: ignore[union-attr]
        assert largest <= 1 << one.parameters.log_bootstrap_slots < one.parameters.slots
        check_price(job, one)
    fastest = preferred(full, None)[0]
    assert best.seconds < fastest.seconds and best.server_bytes < fastest.server_bytes


@pytest.mark.parametrize(
    ("blocks", "engine", "choices", "most"),
    [
        (3, OPENFHE, {}, None),
        (3, VECTOR, {}, None),
        (8, OPENFHE, {"max_memory": 1e9}, None),
        (8, VECTOR, {"max_memory": 1e9}, None),
        (8, OPENFHE, {"batch": 4}, None),
        (8, VECTOR, {"batch": 4}, None),
        (8, VECTOR, {"max_memory": 1e6}, None),
        (8, VECTOR, {"max_memory": 1e9}, 1),
    ],
)
def test_chains_that_are_left_out_are_not_the_best(
    blocks: int, engine: EngineModel, choices: dict[str, Any], most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every chain costs at least its bound, and the best is the same as if bootstraps were placed on all of them."""
    graph, calibration, _ = cubic_blocks(blocks)
    setups = [Bootstrapping(rest, recipe=engine.recipe) for rest in (5, 6, 8, 24)]
    chains = [
        Parameters(13, setup.depth, 40, 46, digits, FLEXIBLE, 0, setup)
        for digits, setup in itertools.product((2, 3, 4), setups)
    ]
    table = CostTable.default(engine)
    options = CompileOptions(FitOptions(max_bootstraps=most), engine=engine.name, threads=1, costs=table)
    job = job_of(graph, calibration, options, **choices)
    tried, some = _planned(job, chains, never), _planned(job, chains, never, some=True)
    bounds = [least_cost(job, one.draft, one.parameters) for one in tried]
    bounds_of_some = [least_cost(job, one.draft, one.parameters, some=True) for one in some]
    monkeypatch.setattr(generate, "least_cost", lambda *_: 0.0)
    monkeypatch.setattr(generate, "bootstraps_may_pay", lambda *_: True)
    every = _planned(job, chains, never)
    placed = [one for one in every if one.placements]
    assert len(every) == len(chains) and placed

    def kept(found: Sequence[Candidate]) -> tuple[Parameters, Placements] | None:
        best = job.best(found)
        return None if best is None else (best.parameters, best.placements)

    assert kept(tried) == kept(every)
    assert kept(some) == kept(placed)
    assert all(0 < bound <= job.cost(one) for bound, one in zip(bounds, tried, strict=True))
    assert all(0 < bound <= job.cost(one) for bound, one in zip(bounds_of_some, some, strict=True))
    if kept(every) is None:  # nothing fits, and a refusal says what comes nearest
        assert len(tried) == len(every) and len(some) == len(placed)
    elif most is None:
        assert len(some) < len(placed)


def test_values_that_take_all_slots_are_bootstrapped_on_all() -> None:
    g = Growing(3, (8, 8, 8))
    cubic = np.array([[0.1, 0.5, 0.15, 0.03]])
    value = g.polynomial(g.conv(g.input, 8), cubic)
    for _ in range(9):
        value = g.polynomial(g.conv(value, 8), cubic)
    graph, calibration = normalized(g.graph(value), g.images)
    setup = Bootstrapping(6)
    small, large = (Parameters(ring, setup.depth, 40, 47, 2, FLEXIBLE, 0, setup) for ring in (10, 13))
    job = job_of(graph, calibration)
    found = with_bootstraps(job, [small], None, never)
    assert [one.parameters for one in found] == [small] == job.packs and found[0].placements
    # Nothing fits in so little memory, so nothing is lowered for it.
    tight = job_of(graph, calibration, max_memory=1e6)
    assert [one.parameters for one in with_bootstraps(tight, [large], None, never)] == [large] == tight.packs
    sparse = _on_fewer_slots(job, _planned(job, [large], never))
    assert sparse and all(one.parameters.log_bootstrap_slots >= 9 for one in sparse)


def test_plans_keep_to_a_number_of_bootstraps_if_they_can() -> None:
    graph, calibration, _ = cubic_blocks(8)
    setup = Bootstrapping(6)
    chain = Parameters(11, setup.depth, 40, 47, 2, FLEXIBLE, 0, setup)

    def found(most: int | None) -> Candidate:
        options = CompileOptions(FitOptions(max_bootstraps=most), threads=1, costs=TABLE)
        (one,) = _planned(job_of(graph, calibration, options), [chain], never)
        return one

    fastest = found(None)
    count = len(fastest.placements)
    assert count > 1 and not fastest.exceeds
    for most in range(1, count + 2):
        one = found(most)
        assert one.seconds >= fastest.seconds
        if one.exceeds:
            assert most < count and one.placements == fastest.placements
        else:
            assert len(one.placements) <= most
    assert not found(count).exceeds and found(1).exceeds
    assert preferred([found(1), found(count)], None)[0].exceeds is False
    assert preferred([found(1)], None)[0].exceeds


def test_all_chains_that_keep_the_security_and_no_others() -> None:
    found = deep_chains(log_rings=(16,))
    seen = {(p.digits, p.bootstrapping.budget, p.bootstrapping.rest) for p in found if p.bootstrapping}
    assert len(seen) == len(found) > 100
    assert {budget for _, budget, _ in seen} == set(BUDGETS)
    for digits, budget, rest in itertools.product((2, 3, 6), BUDGETS[:2], range(2, 16)):
        setup = Bootstrapping(rest, budget, BOOTSTRAP_FIRST_BITS - BOOTSTRAP_SCALE_BITS)
        if not Parameters.valid_digits(setup.depth, digits):
            continue
        try:
            bits = BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS
            Parameters(16, setup.depth, *bits, digits, FLEXIBLE, 128, setup).check_security()
            secure = True
        except SecurityError:
            secure = False
        assert secure == ((digits, budget, rest) in seen)
    assert deep_chains(security=192) == []
    assert all(p.scale_bits == 45 and p.first_bits == 53 for p in deep_chains(scale_bits=45, first_bits=53))
    short = deep_chains(log_rings=(16,), most_rest=2)
    assert set(short) == {p for p in found if p.bootstrapping and p.bootstrapping.rest == 2} and short
