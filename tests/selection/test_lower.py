"""The choice: programs with bootstraps and without compete, the best of all sets is taken, and refusals name limits."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import pytest

from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import InfeasibleError, SecurityError
from olac.ir.ops import Bootstrap
from olac.passes.place_bootstraps import PlaceBootstraps
from olac.selection import generate
from olac.selection.job import DEFAULT_PRECISION, Job
from olac.selection.lower import choose
from olac.selection.price import Candidate
from tests.networks import cubic_blocks
from tests.selection.jobs import job_of, lowered

SETUPS = (Bootstrapping(6), Bootstrapping(5, (4, 3)), Bootstrapping(6, (3, 3), 8, 5), Bootstrapping(2))


def given_sets(
    monkeypatch: pytest.MonkeyPatch, levelled: list[Parameters], bootstrapped: list[Parameters]
) -> list[Parameters]:
    """Nothing but these sets is tried."""
    monkeypatch.setattr(generate, "candidates", lambda *_, log_rings, **__: levelled if log_rings == (13,) else [])
    monkeypatch.setattr(generate, "deep_chains", lambda **_: bootstrapped)
    monkeypatch.setattr(generate, "_on_fewer_slots", lambda *_: [])
    return levelled + bootstrapped


def small_sets(depth: int) -> tuple[list[Parameters], list[Parameters]]:
    """A chain with few digits and with many, and chains with bootstraps; without security."""
    levelled = [Parameters(13, depth, 29, 36, digits, security=0) for digits in (2, depth + 1)]
    bootstrapped = [
        Parameters(13, setup.depth, 40, 47, digits, FLEXIBLE, 0, setup)
        for setup, digits in itertools.product(SETUPS, (2, 3))
    ]
    return levelled, bootstrapped


def cost(job: Job, seconds: float, server_bytes: float) -> float:
    return job.terms.cost(seconds, server_bytes)


@pytest.mark.parametrize(("blocks", "tight"), [(2, False), (4, False), (4, True), (12, False)])
def test_the_choice_is_the_best_of_every_program_lowered_on_its_own(
    blocks: int, tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brute force: each set by itself through all passes; a chain that barely holds the graph has long keys only."""
    graph, calibration, _ = cubic_blocks(blocks)
    job = job_of(graph, calibration, precision=0.5)
    levelled, bootstrapped = small_sets(job.depth)
    sets = given_sets(monkeypatch, levelled[tight:], bootstrapped)
    made: dict[Parameters, float] = {}
    for parameters in sets:
        try:
            program, found = lowered(graph, parameters)
        except InfeasibleError:
            assert parameters.bootstrapping == Bootstrapping(2)
            continue
        if parameters.bootstrapping is None or any(isinstance(node.op, Bootstrap) for node in program.graph.nodes):
            made[parameters] = cost(job, found.seconds_per_image, found.server_gb * 1e9)
    chosen, _ = choose(job)
    best = min(made.values())
    assert made[chosen.parameters] <= 1.05 * best  # plans leave out what bootstraps drop to a level
    assert (chosen.parameters.bootstrapping is None) == (chosen.placements == ()) == (blocks < 12 and not tight)


def test_a_program_without_bootstraps_keeps_its_precision_if_bootstraps_would_be_cheaper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Left open, the precision is that of programs without bootstraps as long as there is one."""
    graph, calibration, _ = cubic_blocks(4)
    levelled, bootstrapped = small_sets(28)
    given_sets(monkeypatch, levelled[1:], bootstrapped)
    open_, met = job_of(graph, calibration), job_of(graph, calibration, precision=0.5)
    assert choose(open_)[0].parameters == levelled[1]
    chosen, error = choose(met)
    assert chosen.parameters in bootstrapped and error is not None and DEFAULT_PRECISION < error <= 0.5
    given_sets(monkeypatch, [], bootstrapped)
    alone, error = choose(open_)
    assert alone.parameters == chosen.parameters and error is not None and error > DEFAULT_PRECISION


def without_bootstraps(job: Job) -> Candidate:
    """The choice of passes that place none."""
    passes = tuple(one for one in job.passes if not isinstance(one, PlaceBootstraps))
    return choose(replace(job, passes=passes))[0]


def test_bootstraps_win_over_a_chain_that_barely_holds_a_network() -> None:
    graph, calibration, _ = cubic_blocks(7)
    job = job_of(graph, calibration)
    levelled = without_bootstraps(job)
    assert levelled.parameters.log_ring == 16 and levelled.parameters.digits > 4
    chosen, error = choose(job)
    assert chosen.placements and error is not None and error <= DEFAULT_PRECISION
    assert chosen.parameters.secure and chosen.parameters.bootstrapping is not None
    assert cost(job, chosen.seconds, chosen.server_bytes) < cost(job, levelled.seconds, levelled.server_bytes)
    assert chosen.seconds < levelled.seconds


@pytest.mark.parametrize(("blocks", "looks"), [(2, False), (4, True)])
def test_a_chain_that_holds_a_network_easily_is_kept(blocks: int, looks: bool) -> None:
    """If it is cheaper than any bootstrap, programs with bootstraps are not looked at."""
    graph, calibration, _ = cubic_blocks(blocks)
    job = job_of(graph, calibration)
    chosen, error = choose(job)
    assert chosen.parameters.bootstrapping is None and error is None and not chosen.placements
    assert chosen.keys == without_bootstraps(job).keys
    assert bool(job.packs) == looks


@pytest.mark.parametrize("max_memory", [None, 4e9, 64e9])
def test_no_program_with_bootstraps_costs_less_than_the_bound(max_memory: float | None) -> None:
    graph, calibration, _ = cubic_blocks(5)
    job = job_of(graph, calibration, max_memory=max_memory)
    (chains,) = itertools.islice(generate.chains_with_bootstraps(job, ()), 1)
    found = [one for one in generate.with_bootstraps(job, chains[::7], None, lambda *_: None) if one.placements]
    least, held = generate._least(job, (15, 16))
    assert found and 0 < least < min(cost(job, one.seconds, one.server_bytes) for one in found)
    assert 0 < held < min(one.server_bytes for one in found)


@pytest.mark.parametrize(("blocks", "max_memory", "looks"), [(5, 5e8, False), (8, 5e8, True), (8, 3e9, True)])
def test_bootstraps_are_not_looked_at_if_any_takes_more_than_there_is(
    blocks: int, max_memory: float, looks: bool
) -> None:
    """Unless the smallest program without bootstraps takes even more, so that a refusal has to say what would do."""
    graph, calibration, _ = cubic_blocks(blocks)
    job = job_of(graph, calibration, max_memory=max_memory)
    with contextlib.suppress(InfeasibleError):
        choose(job)
    assert bool(job.packs) == looks


@pytest.mark.parametrize(
    ("blocks", "choices", "error", "message"),
    [
        (40, {"scale_bits": 40}, InfeasibleError, "takes 244 levels, 100 at most are possible without bootstrapping"),
        (12, {"scale_bits": 40}, InfeasibleError, "no ring up to 2.16 holds 76 levels of .* bits at 128-bit security"),
        (12, {"security": 192}, InfeasibleError, "at 192-bit security without bootstrapping"),
        (2, {"precision": 1e-13}, InfeasibleError, "a precision of 1e-13 takes a scale of .* bits, 50 at most"),
        (2, {"log_ring": 13}, SecurityError, "ring 2.13 does not hold 16 levels of .* bits at 128-bit security"),
        (2, {"max_memory": 2e8}, InfeasibleError, r"(?s)no parameters fit in max_memory = 0\.20 GB.*Allow at least"),
        (10, {"precision": 1e-9}, InfeasibleError, "do not keep a precision of 1e-09.*Ask for a precision of"),
        (
            2,
            {"parameters": Parameters(13, 3, 30, 37, 4)},
            InfeasibleError,
            "takes 16 levels, the pinned parameters have 3",
        ),
        (
            6,
            {"parameters": Parameters(11, 18, 40, 47, 3, FLEXIBLE, 0, Bootstrapping(2)), "insecure": True},
            InfeasibleError,
            r"(?s)not even with bootstraps.*levels run out at .* from ",
        ),
    ],
)
def test_a_refusal_names_the_limit(blocks: int, choices: dict[str, Any], error: type[Exception], message: str) -> None:
    graph, calibration, _ = cubic_blocks(blocks)
    with pytest.raises(error, match=message):
        choose(job_of(graph, calibration, **choices))
