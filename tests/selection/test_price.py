"""Which of several programs is preferred, by seconds against bytes, and when encoding counts among the seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from olac.analysis.estimate import Sizes
from olac.analysis.rotation_keys import KeyChoice
from olac.backends.cost import CostEvaluator
from olac.ckks.parameters import Parameters
from olac.selection.price import MACHINE_BYTES, NEARLY, Candidate, Draft, Terms, preferred, with_keys
from tests.networks import residual_network
from tests.selection.jobs import TABLE

GB = 1e9
PARAMETERS = Parameters(12, 4, 35, 42, 2, security=0)
DRAFT = Draft(PARAMETERS, residual_network())
EMPTY = Sizes(0, 0, 0, 0, 0, True)


def choice(seconds: float, server_bytes: float, exceeds: bool = False) -> Candidate:
    table = (server_bytes - EMPTY.server_bytes) / (replace(EMPTY, table_bytes=1).server_bytes - EMPTY.server_bytes)
    keys = KeyChoice((), seconds, replace(EMPTY, table_bytes=round(table)), 0, 0)
    return Candidate(PARAMETERS, DRAFT, keys, exceeds=exceeds)


def test_without_a_limit_memory_is_weighed_against_time() -> None:
    large, small, tiny = choice(10.0, 20 * GB), choice(12.0, 9 * GB), choice(30.0, 6 * GB)
    assert preferred([large, small, tiny], None) == [small, large, tiny]
    assert preferred([choice(1.0, 0.6 * GB), choice(1.2, 0.2 * GB)], None)[0].seconds == 1.0
    assert (MACHINE_BYTES + 20 * GB) / (MACHINE_BYTES + 9 * GB) > 12 / 10


def test_within_a_limit_the_fastest_is_best_and_the_smallest_of_those_that_nearly_are() -> None:
    fast, near, slow = choice(10.0, 11 * GB), choice(10.0 * NEARLY, 10 * GB), choice(10.5, 3 * GB)
    assert preferred([slow, fast, near], 12 * GB) == [near, fast, slow]
    assert preferred([slow, fast, near], 10.5 * GB) == [near, slow]
    assert preferred([slow, fast, near], 2 * GB) == []


@pytest.mark.parametrize("max_memory", [None, 12 * GB])
def test_more_bootstraps_than_asked_for_only_if_nothing_else_fits(max_memory: float | None) -> None:
    fast, slow, huge = choice(10.0, 9 * GB, exceeds=True), choice(50.0, 9 * GB), choice(1.0, 90 * GB)
    assert preferred([fast, slow], max_memory) == [slow]
    assert preferred([fast, huge], 12 * GB) == [fast]


@pytest.mark.parametrize("seed", range(20))
def test_the_first_is_the_best_of_all(seed: int) -> None:
    """Against the rule as it is told, over all pairs."""
    random = np.random.default_rng(seed)
    found = [choice(*one) for one in zip(random.uniform(1, 9, 12), random.uniform(1, 40, 12) * GB, strict=True)]
    terms = Terms(TABLE, 1)
    best = preferred(found, None)[0]
    assert all(terms.cost(best.seconds, best.server_bytes) <= terms.cost(o.seconds, o.server_bytes) for o in found)
    within = preferred(found, 20 * GB)
    fitting = [one for one in found if one.server_bytes <= 20 * GB]
    assert {id(one) for one in within} == {id(one) for one in fitting}
    for other in fitting:
        first = within[0]
        nearly = other.seconds <= NEARLY * min(one.seconds for one in fitting)
        assert first.server_bytes <= other.server_bytes if nearly else first.seconds < other.seconds


def kept_weights(seconds: float, encoding: float, plaintext_bytes: float, max_memory: float | None = None) -> KeyChoice:
    pricer = CostEvaluator(PARAMETERS, TABLE, 1)
    size = replace(EMPTY, plaintext_bytes=round(plaintext_bytes))
    return with_keys({}, [], pricer, seconds, size, encoding, max_memory)


def test_encoding_counts_if_kept_weights_would_cost_more() -> None:
    """Without a limit exactly if seconds x bytes say so; with one, as far as the weights do not fit."""
    few = kept_weights(100.0, 50.0, 1 * GB)
    assert few.sizes.keeps_plaintexts and few.seconds == 100.0
    base = EMPTY.server_bytes
    even = 50.0 / 100.0 * (MACHINE_BYTES + base) / 1.035  # bytes of weights at which both are the same
    before, after = kept_weights(100.0, 50.0, 0.999 * even), kept_weights(100.0, 50.0, 1.001 * even)
    assert before.seconds == 100.0 and before.sizes.server_bytes == pytest.approx(base + 0.999 * 1.035 * even)
    assert (after.seconds, after.sizes.server_bytes) == (150.0, base)
    assert after.sizes.plaintext_bytes == round(1.001 * even)  # a server that has the memory keeps them still
    half = kept_weights(100.0, 50.0, 2 * even, base + 1.035 * even)
    assert half.seconds == pytest.approx(125.0) and half.sizes.server_bytes == pytest.approx(base + 1.035 * even)


@pytest.mark.parametrize("seed", range(10))
def test_no_share_of_kept_weights_is_better_than_all_or_none(seed: int) -> None:
    random = np.random.default_rng(seed)
    seconds, encoding, size = random.uniform(1, 100), random.uniform(0, 100), random.uniform(0, 40) * GB
    chosen, terms = kept_weights(seconds, encoding, size), Terms(TABLE, 1)
    cost = terms.cost(chosen.seconds, chosen.sizes.server_bytes)
    for share in np.linspace(0, 1, 21):
        held = replace(EMPTY, plaintext_bytes=round(share * size)).server_bytes
        assert cost <= terms.cost(seconds + (1 - share) * encoding, held) * (1 + 1e-9)
