"""One lowering: what is lowered, by which passes, and what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from olac.analysis.bootstrap_problem import Placements
from olac.analysis.noise import OutputNoise
from olac.calibration.statistics import Calibration
from olac.ckks.engines import EngineModel
from olac.ckks.parameters import Parameters
from olac.ckks.primes import fewest_bits
from olac.errors import VerificationError
from olac.ir.graph import Graph
from olac.ir.head import OutputHead
from olac.ir.layout import TensorLayout, next_power_of_two
from olac.ir.ops import Input, LinearOp
from olac.ir.types import Stage
from olac.options import CompileOptions, Stages, telling
from olac.passes.base import Pass, PassContext, PassManager
from olac.passes.choose_lowerings import lowered_depth
from olac.passes.place_bootstraps import PlaceBootstraps
from olac.selection.price import Candidate, Draft, Share, Terms, Work, preferred, price
from olac.system.internal import callers_own
from olac.system.threads import usable_threads

INTEGER_BITS = 7
"""Bits of the first prime above those of the scale: slots up to 2^6 decrypt, and calibrated ones stay within 1."""

DEFAULT_PRECISION = 1e-3
UNUSABLE = 0.1
"""The largest error of outputs by noise, relative to their range, if there are bootstraps and no precision to meet."""
"""The precision of programs without bootstraps, if none is asked for."""

RINGS = (12, 13, 14, 15, 16)


@dataclass(frozen=True)
class Job:
    """What is lowered, by which passes, and what was asked for.

    Attributes:
        graph: at stage POLYNOMIAL.
        calibration: of the model.
        options: of the caller.
        passes: from stage POLYNOMIAL to LEVELLED.
        head: what the client computes of the outputs.
        say: called with a line of text as each step begins.
        refused: why the engine does not take parameters that were tried, with the first of those parameters.
    """

    graph: Graph
    calibration: Calibration
    options: CompileOptions
    passes: tuple[Pass, ...]
    head: OutputHead = field(default_factory=OutputHead)
    say: Stages = field(default_factory=lambda: telling(None))
    refused: dict[str, Parameters] = field(default_factory=dict, compare=False)

    @cached_property
    def terms(self) -> Terms:
        """What prices depend on."""
        options = self.options
        kept = None if options.like is None else options.like.keys_for(options.planned_for)
        return Terms(options.table, options.threads or usable_threads(), options.memory_limit, kept)

    @property
    def engine(self) -> EngineModel:
        """The engine that the program is planned for."""
        return self.terms.engine

    def taken(self, chains: Iterable[Parameters]) -> list[Parameters]:
        """The parameters that the engine takes; `refused` gets the reasons for the others."""
        found = []
        for parameters in chains:
            why = self.engine.refuses(parameters)
            if why is None:
                found.append(parameters)
            else:
                self.refused.setdefault(why, parameters)
        return found

    @cached_property
    def noise(self) -> OutputNoise:
        """What noise does to the outputs."""
        return OutputNoise(self.graph, self.calibration, self.head, self.options.seed, self.options.public_key)

    @cached_property
    def depth(self) -> int:
        """Levels of a program without bootstraps, at least 1: the scale of a chain of one prime is that prime."""
        return max(1, lowered_depth(self.graph, self.passes))

    @property
    def security(self) -> int:
        """Bits of security that are asked for; 0 if the check is waived."""
        return 0 if self.options.insecure else self.options.security

    @property
    def precision(self) -> float:
        """The precision of programs without bootstraps."""
        return self.options.precision or DEFAULT_PRECISION

    @property
    def rings(self) -> tuple[int, ...]:
        """log2 of the rings that programs without bootstraps may have."""
        return RINGS if self.options.log_ring is None else (self.options.log_ring,)

    def scale_bits(self, log_ring: int) -> int:
        """Bits of the scale of a program without bootstraps, at a ring.

        Those that are asked for, or the fewest that keep the precision and for which there are enough primes.
        """
        if self.options.scale_bits is not None:
            return self.options.scale_bits
        least = max(self.noise.scale_bits(log_ring, self.precision), log_ring + 6)
        return self.with_primes(log_ring, least) or least

    def with_primes(self, log_ring: int, least: int) -> int | None:
        """The fewest bits of scale, `least` or more, for which a ring has enough primes for a chain of this depth."""
        return fewest_bits(log_ring, self.depth, INTEGER_BITS, self.options.technique, least)

    def lanes(self, log_ring: int) -> int:
        """Images in one ciphertext at a ring: as many as are asked for, if the values of that many fit in one.

        Values are taken to lie in dense planes. If not even one image fits, each has ciphertexts of its own.
        """
        slots = 1 << (log_ring - 1)
        wanted = slots if self.options.objective == "throughput" else self.options.batch
        return min(next_power_of_two(wanted), max(1, slots // self._largest))

    def share(self, lanes: int) -> Share:
        """How the images of a batch share a run. Those that have no room in one ciphertext are computed beside it."""
        images = max(self.options.batch, lanes if self.options.objective == "throughput" else 1)
        return Share(images, -(-images // lanes))

    @cached_property
    def _largest(self) -> int:
        """Slots of the largest value of one image, a power of two."""
        shapes = {node.type.shape for node in self.graph.nodes if isinstance(node.op, Input | LinearOp)}
        return max(next_power_of_two(TensorLayout.dense(shape, 1).extent) for shape in shapes)

    @cached_property
    def _place(self) -> int | None:
        """The index of the pass that waits for a plan of bootstraps, if there is one."""
        found = (i for i, one in enumerate(self.passes) if isinstance(one, PlaceBootstraps) and one.placements is None)
        return next(found, None)

    @property
    def places_bootstraps(self) -> bool:
        """Whether there is a pass that waits for a plan of bootstraps."""
        return self._place is not None

    # Passes ----------------------------------------------------------------------------------------------------------

    def levelled(self, parameters: Parameters, lanes: int | None = None) -> Draft:
        """The graph after all passes.

        Args:
            lanes: images in a ciphertext; None for `self.lanes`.
        """
        return self._run(self.passes, self.graph, parameters, lanes)

    def packed(self, parameters: Parameters) -> Draft:
        """The graph before the pass that places bootstraps."""
        return self._run(self.passes[: self._place], self.graph, parameters)

    def finished(self, candidate: Candidate) -> Candidate:
        """A candidate after all passes, priced by the primitives that it takes then."""
        draft, parameters = candidate.draft, candidate.parameters
        if draft.graph.stage is Stage.LEVELLED:
            return candidate
        assert self._place is not None
        rest = (PlaceBootstraps(candidate.placements), *self.passes[self._place + 1 :])
        after = self._run(rest, draft.graph, parameters)
        whole = replace(after, timings=draft.timings + after.timings, dumps=draft.dumps + after.dumps)
        priced = self.price(parameters, whole)
        return replace(priced, placements=candidate.placements, exceeds=candidate.exceeds)

    def price(self, parameters: Parameters, draft: Draft) -> Candidate:
        """A levelled draft under parameters."""
        return self.priced(parameters, draft, draft.work)

    def priced(
        self, parameters: Parameters, draft: Draft, work: Work, placements: Placements = (), exceeds: bool = False
    ) -> Candidate:
        """A draft under parameters, from the work of one set of ciphertexts."""
        pricer, share = self.terms.pricer(parameters), self.share(draft.graph.inputs[0].layout.batch)
        return price(pricer, draft, work, self.terms.max_memory, placements, exceeds, share, self.terms.kept)

    def cost(self, one: Candidate) -> float:
        """What candidates are compared by."""
        return self.terms.cost(one.seconds, one.server_bytes)

    def best(self, found: Iterable[Candidate]) -> Candidate | None:
        """The preferred of the candidates that fit."""
        return next(iter(preferred(found, self.terms.max_memory)), None)

    def dump(self, dumps: Iterable[tuple[str, str]]) -> None:
        """Hand the caller what passes left, if the caller asked for it."""
        if self.options.dump is not None:
            for name, text in dumps:
                callers_own(self.options.dump)(name, text)

    def _run(self, passes: Sequence[Pass], graph: Graph, parameters: Parameters, lanes: int | None = None) -> Draft:
        dumps: list[tuple[str, str]] = []  # many graphs are lowered, and only those of the chosen one are handed over
        manager = PassManager(passes, self.options.dump_after, lambda *one: dumps.append(one), self.say)
        context = PassContext(
            calibration=self.calibration,
            parameters=parameters,
            costs=self.terms.table,
            threads=self.terms.threads,
            batch=lanes or self.lanes(parameters.log_ring),
        )
        try:
            made = manager.run(graph, context)
        except VerificationError:
            self.dump(dumps)
            raise
        return Draft(parameters, made, tuple(manager.timings), tuple(dumps))
