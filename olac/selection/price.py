"""What a program takes under a set of parameters, in seconds and in bytes, and which of several is preferred."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from olac.analysis.bootstrap_problem import BootstrapPlan, Placements
from olac.analysis.bootstraps import Profiles
from olac.analysis.estimate import Sizes, sizes
from olac.analysis.key_levels import key_levels
from olac.analysis.levels import required_levels
from olac.analysis.rotation_keys import KeyChoice, Uses, composed_of, fewer_keys, within
from olac.backends.cost import CostEvaluator
from olac.ckks.engines import EngineModel
from olac.ckks.key_list import KeyList
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from olac.ir.graph import Graph
from olac.kernels.base import Kernel
from olac.kernels.execute import build_weightless_kernels
from olac.kernels.record import record
from olac.passes.base import PassContext, PassTiming
from olac.passes.place_bootstraps import PlaceBootstraps

MACHINE_BYTES = 8e9
"""Memory that comes with the cores of a server; what a program takes beyond it costs extra."""
NEARLY = 1.02
"""Predictions are not exact to 2 %: of sets of parameters that are this close, the one of least memory is taken."""


@dataclass(frozen=True)
class Terms:
    """What prices depend on beside the program: prices of primitives, threads, and the bytes that a server may take.

    If clients have keys already, `kept` lists them.
    """

    table: CostTable
    threads: int
    max_memory: float | None = None
    kept: KeyList | None = None

    @property
    def engine(self) -> EngineModel:
        """The engine whose prices they are."""
        return self.table.engine

    def pricer(self, parameters: Parameters) -> CostEvaluator:
        """Prices of primitives under a set of parameters."""
        return CostEvaluator(parameters, self.table, self.threads)

    def cost(self, seconds: float, server_bytes: float) -> float:
        """What programs are compared by: seconds if memory has a limit, otherwise what a run occupies."""
        return seconds if self.max_memory is not None else _occupied(seconds, server_bytes)


@dataclass(frozen=True)
class Share:
    """How the images of a batch share a run.

    Attributes:
        images: of a run.
        sets: of ciphertexts that hold them. Each takes all primitives but the encoding of weights, which serves all.
    """

    images: int = 1
    sets: int = 1

    @property
    def each(self) -> float:
        """Sets of ciphertexts an image."""
        return self.sets / self.images


@dataclass(frozen=True)
class Work:
    """What one set of ciphertexts takes, for any number of digits of key switching.

    Attributes:
        graph: at stage PACKED or LEVELLED, with its bootstraps.
        kernels: of its nodes, with or without weights; those of bootstraps need not be there.
        levels: of all values.
        counts: how often each (primitive, level) runs.
        uses: how often each (rotation step, level) is taken.
        order: all rotation steps in the order of the run.
    """

    graph: Graph
    kernels: Mapping[str, Kernel]
    levels: Mapping[str, int]
    counts: Mapping[tuple[str, int], int]
    uses: Uses
    order: Sequence[int]


@dataclass(frozen=True)
class Draft:
    """A graph that was lowered for one set of parameters, and that others share: they differ in digits or in the chain.

    Attributes:
        parameters: those that it was lowered for.
        graph: at stage LEVELLED, or at stage PACKED if a plan of bootstraps is still to come.
        timings, dumps: of its passes.
    """

    parameters: Parameters
    graph: Graph
    timings: tuple[PassTiming, ...] = ()
    dumps: tuple[tuple[str, str], ...] = ()

    @cached_property
    def depth(self) -> int:
        """The levels that the graph takes without bootstraps."""
        return max(required_levels(self.graph).values())

    @cached_property
    def profiles(self) -> Profiles:
        """What the kernels take, at any level."""
        return Profiles(self.graph, self.parameters)

    @cached_property
    def work(self) -> Work:
        """The work of a levelled graph, by a run on no data."""
        kernels = build_weightless_kernels(self.graph)
        recorder = record(self.graph, self.parameters, kernels)
        order = [event.step for event in recorder.events if event.step]
        levels = {node.id: node.type.state.level for node in self.graph.nodes if node.type.state is not None}
        return Work(self.graph, kernels, levels, recorder.counts(), recorder.uses(), order)

    def planned(self, plan: BootstrapPlan, parameters: Parameters, engine: EngineModel) -> Work:
        """The work of a packed graph with bootstraps, without the level reductions before these."""
        input_level = engine.bootstraps(parameters).input_level
        graph = PlaceBootstraps(plan.placements).run(self.graph, PassContext(parameters=parameters))
        levels = required_levels(graph, input_level)
        operands = {node.id: levels[node.id] + node.levels(self.graph.constants) for node in self.graph.nodes}
        counts = self.profiles.counts(operands)
        counts["bootstrap", input_level] += plan.bootstraps
        uses, order = self.profiles.uses(operands), self.profiles.order
        return Work(graph, self.profiles.kernels, levels, counts, uses, order)


@dataclass(frozen=True)
class Candidate:
    """A program under one set of parameters.

    Attributes:
        parameters: those that it would run with.
        draft: its graph, as far as it is lowered.
        keys: the rotation steps that get keys, and what the program takes with them.
        placements: of its bootstraps.
        exceeds: whether these are more than are allowed.
    """

    parameters: Parameters
    draft: Draft
    keys: KeyChoice
    placements: Placements = ()
    exceeds: bool = False

    @property
    def graph(self) -> Graph:
        """At stage PACKED, without its bootstraps, or LEVELLED."""
        return self.draft.graph

    @property
    def seconds(self) -> float:
        """Predicted for one image, with its share of the encoding of all weights that are not kept."""
        return self.keys.seconds

    @property
    def server_bytes(self) -> float:
        """Predicted peak memory of a server, with the encoded weights that are kept."""
        return self.keys.sizes.server_bytes


def price(
    pricer: CostEvaluator,
    draft: Draft,
    work: Work,
    max_memory: float | None = None,
    placements: Placements = (),
    exceeds: bool = False,
    share: Share | None = None,
    kept: KeyList | None = None,
) -> Candidate:
    """A draft under the pricer's parameters.

    Args:
        share: of an image in a run; None for one image in a run.
        kept: keys that clients have already.
    """
    parameters, share = pricer.parameters, share or Share()
    encodes = {level: count for (primitive, level), count in work.counts.items() if primitive == "encode"}
    encoding = sum(count * pricer.price("encode", level) for level, count in encodes.items()) / share.images
    seconds = sum(count * pricer.price(*what) for what, count in work.counts.items() if what[0] != "encode")
    seconds *= share.each
    uses = {what: count * share.each for what, count in work.uses.items()}
    engine, bootstraps = pricer.engine, pricer.engine.bootstraps(parameters)
    steps = bootstraps.keys_for(step for step, _ in work.uses)
    keys = key_levels(work.uses, work.counts, bootstraps).of(steps, parameters, bootstraps)
    size = sizes(work.graph, work.kernels, parameters, keys, encodes, work.levels, engine)
    if not size.keeps_plaintexts:
        seconds, encoding = seconds + encoding, 0.0
    chosen = with_keys(uses, work.order, pricer, seconds, size, encoding, max_memory, kept)
    return Candidate(parameters, draft, chosen, placements, exceeds)


def preferred(found: Iterable[Candidate], max_memory: float | None) -> list[Candidate]:
    """The candidates that fit, the best first; those with more bootstraps than are allowed only if no others fit.

    With a limit, memory within it is free: the fastest is best, and of those that are nearly as fast, the smallest.
    Without one the machine is not known, and a run is charged for what it occupies: its seconds times the sum of its
    bytes and of those that come with the cores anyway. So twice the memory has to save up to half the time, and of
    small programs the fastest is best.
    """
    fitting = [one for one in found if max_memory is None or one.server_bytes <= max_memory]
    fitting = [one for one in fitting if not one.exceeds] or fitting
    if max_memory is None:
        return sorted(fitting, key=lambda one: _occupied(one.seconds, one.server_bytes))
    fastest = min((one.seconds for one in fitting), default=0.0)
    return sorted(
        fitting,
        key=lambda one: (0, one.server_bytes) if one.seconds <= NEARLY * fastest else (1, one.seconds),
    )


def _occupied(seconds: float, server_bytes: float) -> float:
    """What a run occupies: seconds times bytes, with those that come with the cores."""
    return seconds * (MACHINE_BYTES + server_bytes)


def with_keys(
    uses: Uses,
    order: Sequence[int],
    pricer: CostEvaluator,
    seconds: float,
    size: Sizes,
    encoding: float,
    max_memory: float | None,
    kept: KeyList | None = None,
) -> KeyChoice:
    """The steps that get keys, and whether encoded weights are kept, by the rule of `preferred`.

    Without a limit, a key is given up if a run occupies less without it, and weights are encoded in each run if it
    occupies less then. With a limit, a program that fits keeps all. Of the ways to make another fit (giving up keys,
    reading them when they are needed, encoding weights in each run) the fastest is taken.

    Args:
        uses: how often each step is taken, by level.
        order: all steps that a run takes.
        pricer: for the parameters.
        seconds, size: with keys for all steps, and with all encoded weights if they are ever kept.
        encoding: seconds to encode all weights, if they are ever kept.
        kept: keys that clients have already: steps without one are composed of those with one, where that is possible.
    """
    if kept is not None:
        alike = composed_of(kept, uses, pricer.parameters, pricer.price, seconds, size, pricer.engine)
        if max_memory is not None:
            return within([alike], order, pricer, encoding, max_memory)
        without = alike.seconds + encoding, replace(alike.sizes, keeps_plaintexts=False)
        if _occupied(without[0], without[1].server_bytes) < _occupied(alike.seconds, alike.sizes.server_bytes):
            return replace(alike, seconds=without[0], sizes=without[1])
        return alike
    if max_memory is not None:
        choices = fewer_keys(
            uses, pricer.parameters, pricer.price, seconds, size, lambda _, needed: needed, pricer.engine
        )
        return within(choices, order, pricer, encoding, max_memory)
    # What a run occupies is a concave function of the share of kept weights, so all or none of them is best.
    without = seconds + encoding, replace(size, keeps_plaintexts=False)
    if _occupied(without[0], without[1].server_bytes) < _occupied(seconds, size.server_bytes):
        seconds, size = without
    (last,) = fewer_keys(uses, pricer.parameters, pricer.price, seconds, size, _occupied, pricer.engine, last_only=True)
    return last
