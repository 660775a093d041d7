"""Which parameters a program gets: seconds against bytes, and prices of programs that are never lowered."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from olac.analysis.bootstraps import Profiles
from olac.analysis.estimate import estimate
from olac.analysis.levels import multiplicative_depth
from olac.ckks.bootstrapping import steps_with_keys
from olac.ckks.candidates import BUDGETS, candidates, deep_chains
from olac.ckks.parameters import BOOTSTRAP_FIRST_BITS, BOOTSTRAP_SCALE_BITS, Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.costs.table import CostTable
from olac.errors import SecurityError
from olac.ir.graph import Graph
from olac.kernels.record import record
from olac.passes.assign_layouts import AssignLayouts
from olac.passes.assign_levels import AssignLevels
from olac.passes.base import PassContext, PassManager
from olac.passes.choose_lowerings import ChooseLowerings
from olac.passes.place_bootstraps import PlaceBootstraps
from olac.program.program import CompiledProgram
from olac.selection.lower import key_steps
from olac.selection.search import (
    MACHINE_BYTES,
    NEARLY,
    Deep,
    Packed,
    preferred,
    preferred_deep,
    price_deep,
    price_digits,
    price_sparse,
)
from tests.networks import Growing, cubic_blocks, images_for, normalized, residual_network

GB = 1e9
TABLE = CostTable.default()


@dataclass(frozen=True)
class Choice:
    seconds: float
    server_bytes: float


def test_without_a_limit_memory_is_weighed_against_time() -> None:
    large, small, tiny = Choice(10.0, 20 * GB), Choice(12.0, 9 * GB), Choice(30.0, 6 * GB)
    assert preferred([large, small, tiny], None) == [small, large, tiny]
    assert preferred([Choice(1.0, 0.6 * GB), Choice(1.2, 0.2 * GB)], None)[0].seconds == 1.0
    assert (MACHINE_BYTES + 20 * GB) / (MACHINE_BYTES + 9 * GB) > 12 / 10


def test_within_a_limit_the_fastest_is_best_and_the_smallest_of_those_that_nearly_are() -> None:
    fast, near, slow = Choice(10.0, 11 * GB), Choice(10.0 * NEARLY, 10 * GB), Choice(10.5, 3 * GB)
    assert preferred([slow, fast, near], 12 * GB) == [near, fast, slow]
    assert preferred([slow, fast, near], 10.5 * GB) == [near, slow]
    assert preferred([slow, fast, near], 2 * GB) == []


def small_network() -> Graph:
    graph = residual_network()
    return normalized(graph, images_for(graph, 16))[0]


def test_digits_are_priced_as_whole_programs_are() -> None:
    graph = small_network()
    choices = candidates(multiplicative_depth(graph), 34, 41, log_rings=(14, 15))
    choices = [one for one in choices if one.log_ring == 15]
    assert len(choices) > 2
    passes = (AssignLayouts(), ChooseLowerings(), PlaceBootstraps(), AssignLevels())
    lowered = PassManager(passes).run(graph, PassContext(parameters=choices[0], costs=TABLE, threads=1))
    found = price_digits(lowered, choices, TABLE, 1)
    assert [one.parameters for one in found] == choices
    for one in found:
        assert one.keys.steps == key_steps(lowered, one.parameters)  # memory is small beside what a machine has
        whole = estimate(CompiledProgram(lowered, one.parameters, one.keys.steps), 1, TABLE)
        assert one.seconds == pytest.approx(whole.seconds_per_image)
        assert one.server_bytes / GB == pytest.approx(whole.server_gb)
    assert len({round(one.server_bytes) for one in found}) == len(found)


def test_plans_with_bootstraps_are_priced_as_whole_programs_are() -> None:
    """Seconds within what a bootstrap's drops to a level take, and bytes."""
    graph, _, _ = cubic_blocks(3)
    chains = [
        Parameters(11, boots.depth, 40, 47, digits, FLEXIBLE, 0, boots)
        for digits, boots in itertools.product((2, 3), (Bootstrapping(6), Bootstrapping(5, (4, 3)), Bootstrapping(2)))
    ]
    packs = []

    def pack(parameters: Parameters) -> Packed:
        packs.append(parameters)
        context = PassContext(parameters=parameters, costs=TABLE, threads=1)
        packed = PassManager((AssignLayouts(), ChooseLowerings())).run(graph, context)
        return Packed(packed, Profiles(packed, parameters))

    refused: list[tuple[Parameters, str]] = []
    found = price_deep(graph, chains, pack, TABLE, 1, lambda parameters, why: refused.append((parameters, why)))
    assert {parameters for parameters, _ in refused} == {c for c in chains if c.bootstrapping == Bootstrapping(2)}
    assert all("levels" in why for _, why in refused)
    assert [(p.digits, p.depth) for p in packs] == [(2, 22), (2, 22)]
    assert {one.parameters for one in found} == set(chains) - {parameters for parameters, _ in refused}
    for one in found:
        passes = (PlaceBootstraps(one.boots), AssignLevels())
        context = PassContext(parameters=one.parameters, costs=TABLE, threads=1)
        whole = PassManager(passes).run(one.packed.graph, context)
        program = CompiledProgram(whole, one.parameters, key_steps(whole, one.parameters))
        made = estimate(program, 1, TABLE)
        operands = {
            node.id: node.type.state.level + node.levels(whole.constants) for node in whole.nodes if node.type.state
        }
        assert one.packed.profiles.uses(operands) == record(whole, one.parameters).uses()
        assert one.packed.profiles.order == tuple(e.step for e in record(whole, one.parameters).events if e.step)
        assert set(program.rotations) == steps_with_keys(one.packed.profiles.steps, one.parameters)
        assert one.server_bytes / GB == pytest.approx(made.server_gb)
        assert one.seconds == pytest.approx(made.seconds_per_image, rel=0.05)


def pack_of(graph: Graph, packs: list[Parameters]) -> Callable[[Parameters], Packed]:
    """Layouts and lowerings; `packs` gets what they were made for."""

    def pack(parameters: Parameters) -> Packed:
        packs.append(parameters)
        context = PassContext(parameters=parameters, costs=TABLE, threads=1)
        packed = PassManager((AssignLayouts(), ChooseLowerings())).run(graph, context)
        return Packed(packed, Profiles(packed, parameters))

    return pack


def never(parameters: Parameters, why: str) -> None:
    raise AssertionError(why)


def test_bootstraps_work_on_a_part_of_the_slots_where_values_repeat() -> None:
    graph, _, _ = cubic_blocks(8)
    chains = [
        Parameters(13, boots.depth, 40, 47, digits, FLEXIBLE, 0, boots)
        for digits, boots in itertools.product((2, 3), (Bootstrapping(6), Bootstrapping(5, (4, 3))))
    ]
    packs: list[Parameters] = []
    pack = pack_of(graph, packs)
    found = price_deep(graph, chains, pack, TABLE, 1, never)
    assert len(packs) == 2
    sparse = price_sparse(graph, found, pack, TABLE, 1, None)
    best = preferred_deep([*found, *sparse], None)[0]
    boots = best.parameters.bootstrapping
    assert boots is not None and boots.log_slots is not None
    # Of each budget a plan for every number of slots, and those of one with lowerings of its own.
    (anew,) = packs[2:]
    assert anew.bootstrapping == replace(boots, rest=anew.depth - boots.depth + boots.rest)
    first, second = sparse[:-2], sparse[-2:]
    lowered = {id(one.packed) for one in found}
    assert len(lowered) == 2 and {id(one.packed) for one in first} == lowered
    assert id(second[0].packed) == id(second[1].packed) not in lowered
    assert {one.parameters.digits for one in second} == {2, 3}
    assert {one.parameters.bootstrapping for one in second} == {boots}
    for one in sparse:
        context = PassContext(parameters=one.parameters, costs=TABLE, threads=1)
        whole = PassManager((PlaceBootstraps(one.boots), AssignLevels())).run(one.packed.graph, context)
        largest = max(whole[name].type.layout.repeats_after for _, name in one.boots)  # type: ignore[union-attr]
        assert largest <= 1 << one.parameters.log_bootstrap_slots < one.parameters.slots
        made = estimate(CompiledProgram(whole, one.parameters, key_steps(whole, one.parameters)), 1, TABLE)
        assert one.server_bytes / GB == pytest.approx(made.server_gb)
        assert one.seconds == pytest.approx(made.seconds_per_image, rel=0.05)
    full = preferred_deep(found, None)[0]
    assert best.seconds < full.seconds and best.server_bytes < full.server_bytes


def test_values_that_take_all_slots_are_bootstrapped_on_all() -> None:
    g = Growing(3, (8, 8, 8))
    cubic = np.array([[0.1, 0.5, 0.15, 0.03]])
    value = g.polynomial(g.conv(g.input, 8), cubic)
    for _ in range(9):
        value = g.polynomial(g.conv(value, 8), cubic)
    graph, _ = normalized(g.graph(value), g.images)
    packs: list[Parameters] = []
    pack = pack_of(graph, packs)
    boots = Bootstrapping(6)
    small, large = (Parameters(ring, boots.depth, 40, 47, 2, FLEXIBLE, 0, boots) for ring in (10, 13))
    found = price_deep(graph, [small], pack, TABLE, 1, never)
    assert found[0].boots
    assert price_sparse(graph, found, pack, TABLE, 1, None) == [] and packs == [small]
    found = price_deep(graph, [large], pack, TABLE, 1, never)
    # Nothing fits in so little memory, so nothing is lowered for it.
    assert price_sparse(graph, found, pack, TABLE, 1, 1.0) == [] and packs == [small, large]
    sparse = price_sparse(graph, found, pack, TABLE, 1, None)
    assert sparse and all(one.parameters.log_bootstrap_slots >= 9 for one in sparse)


def test_plans_keep_to_a_number_of_bootstraps_where_they_can() -> None:
    graph, _, _ = cubic_blocks(8)
    boots = Bootstrapping(6)
    chain = Parameters(11, boots.depth, 40, 47, 2, FLEXIBLE, 0, boots)
    packed = PassManager((AssignLayouts(), ChooseLowerings())).run(
        graph, PassContext(parameters=chain, costs=TABLE, threads=1)
    )

    def refuse(parameters: Parameters, why: str) -> None:
        raise AssertionError(why)

    def found(most: int | None) -> Deep:
        (one,) = price_deep(graph, [chain], lambda _: Packed(packed, Profiles(packed, chain)), TABLE, 1, refuse, most)
        return one

    fastest = found(None)
    count = len(fastest.boots)
    assert count > 1
    for most in range(count + 2):
        one = found(most)
        assert one.seconds >= fastest.seconds
        if one.within:
            assert len(one.boots) <= most
        else:
            assert most < count and one.boots == fastest.boots
    assert found(count).within and not found(0).within


def test_all_chains_that_keep_the_security_and_no_others() -> None:
    found = deep_chains(log_rings=(16,))
    seen = {(p.digits, p.bootstrapping.budget, p.bootstrapping.rest) for p in found if p.bootstrapping}
    assert len(seen) == len(found) > 100
    assert {budget for _, budget, _ in seen} == set(BUDGETS)
    for digits, budget, rest in itertools.product((2, 3, 6), BUDGETS[:2], range(2, 16)):
        boots = Bootstrapping(rest, budget, BOOTSTRAP_FIRST_BITS - BOOTSTRAP_SCALE_BITS)
        if not Parameters.valid_digits(boots.depth, digits):
            continue
        try:
            bits = BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS
            Parameters(16, boots.depth, *bits, digits, FLEXIBLE, 128, boots).check_security()
            secure = True
        except SecurityError:
            secure = False
        assert secure == ((digits, budget, rest) in seen)
    assert deep_chains(security=192) == []
    assert all(p.scale_bits == 45 and p.first_bits == 53 for p in deep_chains(scale_bits=45, first_bits=53))
