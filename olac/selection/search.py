"""Which parameters a program gets: every feasible set is priced, in seconds and in bytes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from olac.analysis.bootstrap_problem import Boots, Plan, Problem
from olac.analysis.bootstraps import Profiles, place_bootstraps
from olac.analysis.estimate import Sizes, sizes
from olac.analysis.levels import required_levels
from olac.analysis.rotation_keys import KeyChoice, Uses, fewer_keys, within
from olac.backends.cost import CostEvaluator
from olac.ckks.bootstrapping import steps_with_keys
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.errors import InfeasibleError
from olac.ir.graph import Graph
from olac.kernels.execute import build_weightless_kernels
from olac.kernels.record import record
from olac.passes.base import PassTiming
from olac.passes.place_bootstraps import insert

MACHINE_BYTES = 8e9
"""Memory that comes with the cores of a server; what a program takes beyond it has to be paid with them."""
NEARLY = 1.02
"""Predictions are not good to 2 %: among sets of parameters so close the one of least memory is taken."""


class Priced(Protocol):
    """What a choice is made by."""

    @property
    def seconds(self) -> float:
        """Predicted for one run."""

    @property
    def server_bytes(self) -> float:
        """Predicted peak memory of a server."""


AnyPriced = TypeVar("AnyPriced", bound=Priced)


def preferred(found: Iterable[AnyPriced], max_memory: float | None) -> list[AnyPriced]:
    """The sets that fit, the best first.

    With a limit, memory within it is free: the fastest are best, and of those that nearly are, the smallest. Without
    one the machine is not known, and a run is charged what it keeps others from: the product of its seconds and of its
    bytes and those that come with the cores anyway. So twice the memory has to save up to half the time, and where a
    program is small anyway, the fastest is best.
    """
    fitting = [one for one in found if max_memory is None or one.server_bytes <= max_memory]
    if not fitting:
        return []
    if max_memory is None:
        return sorted(fitting, key=lambda one: one.seconds * (MACHINE_BYTES + one.server_bytes))
    fastest = min(one.seconds for one in fitting)
    return sorted(
        fitting,
        key=lambda one: (0, one.server_bytes) if one.seconds <= NEARLY * fastest else (1, one.seconds),
    )


def _occupied(seconds: float, server_bytes: float) -> float:
    """What a run keeps others from, where the machine is not known."""
    return seconds * (MACHINE_BYTES + server_bytes)


def with_keys(
    uses: Uses,
    order: Sequence[int],
    pricer: CostEvaluator,
    seconds: float,
    size: Sizes,
    encoding: float,
    max_memory: float | None,
) -> KeyChoice:
    """The steps that get keys, by the rule of `preferred`.

    Without a limit a key goes where a run occupies less without it. With one keys go, or wait in their file, where the
    program would not fit and that is the fastest way.

    Args:
        uses: how often each step is taken, by level.
        order: all steps that a run takes.
        pricer: for the parameters.
        seconds, size: with keys for all steps.
        encoding: seconds to encode all weights.
    """
    given = uses, pricer.parameters, pricer.price, seconds, size
    if max_memory is None:
        *_, last = fewer_keys(*given, _occupied)
        return last
    return within(fewer_keys(*given, lambda _, needed: needed), order, pricer, encoding, max_memory)


@dataclass(frozen=True)
class Digits:
    """A levelled program, at one number of digits of key switching, with the rotation steps that get keys."""

    parameters: Parameters
    lowered: Graph
    keys: KeyChoice
    timings: tuple[PassTiming, ...] = ()

    @property
    def seconds(self) -> float:
        """Predicted for one run."""
        return self.keys.seconds

    @property
    def server_bytes(self) -> float:
        """Predicted peak memory of a server."""
        return self.keys.sizes.server_bytes


def price_digits(
    lowered: Graph,
    choices: Sequence[Parameters],
    table: CostTable,
    threads: int,
    max_memory: float | None = None,
    timings: tuple[PassTiming, ...] = (),
) -> list[Digits]:
    """One levelled graph under parameters that differ in digits alone: its ops and levels are the same in all."""
    kernels = build_weightless_kernels(lowered)
    recorder = record(lowered, choices[0], kernels)
    events, uses = recorder.counts(), recorder.uses()
    order = [event.step for event in recorder.events if event.step]
    encodes = Counter({level: count for (primitive, level), count in events.items() if primitive == "encode"})
    levels = {node.id: node.type.state.level for node in lowered.nodes if node.type.state is not None}
    found = []
    for parameters in choices:
        pricer = CostEvaluator(parameters, table, threads)
        seconds = sum(
            count * pricer.price(primitive, level)
            for (primitive, level), count in events.items()
            if primitive != "encode" or parameters.bootstrapping is not None
        )
        steps = steps_with_keys(recorder.rotations, parameters)
        size = sizes(lowered, kernels, parameters, len(steps), encodes, levels)
        encoding = sum(count * pricer.price("encode", level) for level, count in encodes.items())
        chosen = with_keys(uses, order, pricer, seconds, size, encoding, max_memory)
        found.append(Digits(parameters, lowered, chosen, timings))
    return found


@dataclass(frozen=True)
class Packed:
    """A graph with layouts and lowerings for one ring and one way to bootstrap: a budget and a number of slots."""

    graph: Graph
    profiles: Profiles
    timings: tuple[PassTiming, ...] = ()
    dumps: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Deep:
    """A plan of bootstraps under one set of parameters; `within` the number of them that was asked for, if any was."""

    parameters: Parameters
    packed: Packed
    boots: Boots
    seconds: float
    server_bytes: float
    within: bool = True


def check_reach(graph: Graph, parameters: Parameters) -> None:
    """`InfeasibleError` where the levels between bootstraps do not reach from one place for one to the next."""
    boots = parameters.bootstrapping
    assert boots is not None
    Problem(graph, boots, parameters.depth, lambda node, level: 0.0).highest()


def price_deep(
    graph: Graph,
    choices: Sequence[Parameters],
    pack: Callable[[Parameters], Packed],
    table: CostTable,
    threads: int,
    refuse: Callable[[Parameters, str], None],
    most: int | None = None,
    max_memory: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Deep]:
    """Every set of parameters with the plan of bootstraps of least predicted time.

    Args:
        graph: at stage POLYNOMIAL.
        choices: of any rings; where they are many, those that can't hold the graph cost little.
        pack: layouts and lowerings; called once for each ring, budget and number of slots of bootstraps, whose keys
            lowerings share.
        refuse: called with what can't hold the graph, and why.
        most: bootstraps that plans should take at most; where a set of parameters takes more, its plan says so.
        max_memory: bytes that a server may take; what takes more is returned, too.
        progress: called with a line of text for each set.
    """
    packed: dict[_Way, Packed] = {}
    usual: dict[_Way, Parameters] = {}
    found = []
    for parameters in choices:  # the longest chain with the fewest digits stands for its budget
        held = usual.setdefault(_way(parameters), parameters)
        if (parameters.digits, -parameters.depth) < (held.digits, -held.depth):
            usual[_way(parameters)] = parameters
    for number, parameters in enumerate(choices, 1):
        key = _way(parameters)
        if progress is not None:
            progress(f"placing bootstraps: {number} of {len(choices)} sets of parameters")
        try:
            check_reach(graph, parameters)
            if key not in packed:
                packed[key] = pack(usual[key])
            one = packed[key]
            plan, few = _plan(one, parameters, table, threads, most)
        except InfeasibleError as error:
            refuse(parameters, str(error))
            continue
        found.append(_deep(parameters, one, plan, few, CostEvaluator(parameters, table, threads), max_memory))
    return found


_Way = tuple[int, tuple[int, int], int | None]
"""To bootstrap: the ring, the budget and the slots."""


def _way(parameters: Parameters) -> _Way:
    boots = parameters.bootstrapping
    assert boots is not None
    return parameters.log_ring, boots.budget, boots.log_slots


def _deep(
    parameters: Parameters, packed: Packed, plan: Plan, few: bool, pricer: CostEvaluator, max_memory: float | None
) -> Deep:
    """A plan with the steps that get keys, and the memory that a server takes."""
    boots = parameters.bootstrapping
    assert boots is not None
    whole = insert(packed.graph, plan.boots, boots.correction, "place_bootstraps")
    levels = required_levels(whole, boots.input_level)
    steps = len(steps_with_keys(packed.profiles.steps, parameters))
    nothing: Mapping[int, int] = {}  # weights are encoded when they are needed
    size = sizes(whole, packed.profiles.kernels, parameters, steps, nothing, levels)
    operands = {node.id: levels[node.id] + node.levels(packed.graph.constants) for node in packed.graph.nodes}
    uses, order = packed.profiles.uses(operands), packed.profiles.order
    keys = with_keys(uses, order, pricer, plan.seconds, size, 0.0, max_memory)
    return Deep(parameters, packed, plan.boots, keys.seconds, keys.sizes.server_bytes, few)


def preferred_deep(found: Sequence[Deep], max_memory: float | None) -> list[Deep]:
    """As `preferred`; more bootstraps than were asked for only where memory leaves no choice."""
    return preferred([one for one in found if one.within], max_memory) or preferred(found, max_memory)


def price_sparse(
    graph: Graph,
    found: Sequence[Deep],
    pack: Callable[[Parameters], Packed],
    table: CostTable,
    threads: int,
    max_memory: float | None,
    most: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Deep]:
    """Plans with bootstraps on a part of the slots, after which all values repeat that they bootstrap.

    First each ring and budget with its preferred parameters, the lowerings as they are, on every number of slots after
    which values repeat. Where one of these plans would be taken, there are lowerings made for its ring, budget and
    number of slots, as other keys are there to share, and plans for all chains.

    Args:
        graph, pack, table, threads, most, progress: as of `price_deep`.
        found: plans with bootstraps on all slots.
        max_memory: that programs may take, by which it is decided whether one would be taken.
    """
    by_way: dict[_Way, list[Deep]] = {}
    for one in found:
        by_way.setdefault(_way(one.parameters), []).append(one)
    sparse: list[Deep] = []
    for same in by_way.values():
        for one in preferred_deep([one for one in same if one.boots], max_memory)[:1]:
            for log_slots in _numbers_of_slots(one):
                parameters = _on_slots(one.parameters, log_slots)
                with contextlib.suppress(InfeasibleError):  # too few places for bootstraps
                    plan, few = _plan(one.packed, parameters, table, threads, most)
                    pricer = CostEvaluator(parameters, table, threads)
                    sparse.append(_deep(parameters, one.packed, plan, few, pricer, max_memory))
    best = preferred_deep([*found, *sparse], max_memory)
    log_ring, budget, taken = _way(best[0].parameters) if best else (0, (0, 0), None)
    if taken is None:
        return sparse
    chains = [_on_slots(one.parameters, taken) for one in by_way[log_ring, budget, None]]
    more = price_deep(graph, chains, pack, table, threads, lambda parameters, why: None, most, max_memory, progress)
    return sparse + more


def _numbers_of_slots(one: Deep) -> list[int]:
    """Their log2: after which values repeat, and that the budget takes; all slots are not among them."""
    boots = one.parameters.bootstrapping
    assert boots is not None
    layouts = (node.type.layout for node in one.packed.graph.nodes)
    found = {max(layout.repeats_after.bit_length() - 1, *boots.budget) for layout in layouts if layout is not None}
    return sorted(found - {one.parameters.log_bootstrap_slots})


def _on_slots(parameters: Parameters, log_slots: int) -> Parameters:
    assert parameters.bootstrapping is not None
    return replace(parameters, bootstrapping=replace(parameters.bootstrapping, log_slots=log_slots))


def _plan(
    packed: Packed, parameters: Parameters, table: CostTable, threads: int, most: int | None
) -> tuple[Plan, bool]:
    """The fastest plan of so few bootstraps, or where there is none the fastest of all; and which of them it is."""
    if most is not None:
        with contextlib.suppress(InfeasibleError):
            return place_bootstraps(packed.graph, parameters, packed.profiles, table, threads, most), True
    return place_bootstraps(packed.graph, parameters, packed.profiles, table, threads), most is None
