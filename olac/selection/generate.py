"""Candidates: programs under every set of parameters worth trying, without bootstraps and with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from olac.analysis.bootstrap_problem import PlacementProblem
from olac.analysis.bootstraps import place_bootstraps
from olac.analysis.estimate import Sizes, evaluation_key_bytes
from olac.analysis.noise import MAX_SCALE_BITS
from olac.backends.cost import predicted_seconds
from olac.ckks.bootstrapping import BOOTSTRAP_NOISE, bootstrap_model
from olac.ckks.candidates import candidates, deep_chains
from olac.ckks.parameters import BOOTSTRAP_FIRST_BITS, BOOTSTRAP_SCALE_BITS, Parameters
from olac.errors import InfeasibleError
from olac.ir.graph import Graph
from olac.selection.job import Job
from olac.selection.price import Candidate, Draft, Terms, preferred, price

INTEGER_BITS = 7
"""Bits of the first prime beyond the scale: slots up to 2^6 decrypt, where calibrated ones stay within 1."""

MAX_DEPTH = 100

FEW_DIGITS = 3

USUAL_KEYS = 64
"""Rotation keys of a convolutional network, about."""

FAR = 1.5
"""If bootstraps in one budget of levels cost so many times what a program without bootstraps does, nothing else with
bootstraps is looked at: between two budgets there is less, and between lowerings."""

Refuse = Callable[[Parameters, str], None]
"""Called with what can't hold a graph, and why."""


# Without bootstraps ---------------------------------------------------------------------------------------------------


def without_bootstraps(job: Job) -> list[Candidate]:
    """Programs at the smallest ring that has one that fits, and at the next if that ring has long keys only.

    Parameters of one ring differ in digits alone, so their program is the same and is lowered once.
    """
    found: list[Candidate] = []
    for chains in chains_without_bootstraps(job):
        first = _representative(chains, job.terms)
        job.say(f"lowering at ring 2^{first.log_ring}")
        draft = job.levelled(first)
        found += [job.price(parameters, draft) for parameters in chains]
        if _preferred(job, found) and not _is_tight(chains):
            break
    return found


def chains_without_bootstraps(job: Job) -> list[list[Parameters]]:
    """Parameters worth trying: for each ring, the smallest first, those that differ in digits alone."""
    options, found = job.options, list[list[Parameters]]()
    if options.parameters is not None:
        planned = options.parameters.bootstrapping is not None and job.places_bootstraps
        return [] if planned else [[options.parameters]]
    if job.depth > MAX_DEPTH:
        return []
    for log_ring in job.rings:
        bits = job.scale_bits(log_ring)
        if bits > MAX_SCALE_BITS or not job.holds_batch(log_ring):
            continue
        chains = candidates(
            job.depth,
            bits,
            min(60, bits + INTEGER_BITS),
            technique=options.technique,
            security=job.security,
            log_rings=(log_ring,),
        )
        found += [chains] if chains else []
        if chains and job.terms.max_memory is None and not _is_tight(chains):
            break
    return found


def _is_tight(chains: Sequence[Parameters]) -> bool:
    """Whether a ring holds the chain with many digits only: the next ring may be faster then, and its keys smaller."""
    return min(parameters.digits for parameters in chains) > FEW_DIGITS


def _representative(chains: Sequence[Parameters], terms: Terms) -> Parameters:
    """Whose prices lowerings are chosen by, before it is known how many keys there will be.

    What the number of digits decides is key switching over the chain, and the size of keys.
    """

    def cost(parameters: Parameters) -> float:
        seconds = sum(
            predicted_seconds(terms.table, primitive, parameters, level, terms.threads)
            for level in range(1, parameters.depth + 1)
            for primitive in ("rotate", "multiply")
        )
        return replace(terms, max_memory=None).cost(seconds, USUAL_KEYS * evaluation_key_bytes(parameters))

    return min(chains, key=cost)


# With bootstraps ------------------------------------------------------------------------------------------------------


def chains_with_bootstraps(job: Job, best: Candidate | None) -> Iterator[list[Parameters]]:
    """Sets of parameters with bootstraps that the options allow, one for each scale.

    They are for one image; what is pinned is not replaced. If there is a precision to meet there are all scales that
    bootstraps were measured at, the smallest first: the one that was asked for, or that of the best program without
    bootstraps. Otherwise there is the usual scale alone.

    Args:
        best: of the programs without bootstraps. If it costs less than any bootstrap there is nothing to try.
    """
    options, usual = job.options, (BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS)
    if options.parameters is not None:
        if options.parameters.bootstrapping is not None and job.places_bootstraps:
            yield [options.parameters]
        return
    if not job.places_bootstraps or options.scale_bits is not None or options.insecure or options.batch > 1:
        return
    rings = (15, 16) if options.log_ring is None else (options.log_ring,)
    if best is not None and _cost(job, best) <= _least_cost(job, rings):
        return
    if job.noise.scale_bits(rings[0], job.precision) > MAX_SCALE_BITS:
        return
    scales = [usual] if best is None else [one for one in sorted(BOOTSTRAP_NOISE) if one >= usual]
    for scale, first in scales if options.precision is None else sorted(BOOTSTRAP_NOISE):
        chains = deep_chains(scale_bits=scale, first_bits=first, security=options.security, log_rings=rings)
        if chains:
            yield chains


def _least_cost(job: Job, log_rings: tuple[int, ...]) -> float:
    """What any program with bootstraps costs at least: one of the cheapest bootstraps, and what these hold."""
    least = float("inf")
    for chain in deep_chains(security=job.options.security, log_rings=log_rings, most_rest=2):
        assert chain.bootstrapping is not None
        parameters = _on_slots(chain, max(chain.bootstrapping.budget))
        model = bootstrap_model(parameters)
        keys = (len(model.steps) + 1 + model.large_special_keys) * evaluation_key_bytes(parameters)
        size = Sizes(keys, model.precomputed_bytes, 0, model.working_bytes, 0, model.keeps_plaintexts)
        seconds = job.terms.pricer(parameters).price("bootstrap", model.input_level)
        least = min(least, job.terms.cost(seconds, size.server_bytes))
    return least


def with_bootstraps(job: Job, chains: Sequence[Parameters], best: Candidate | None, refuse: Refuse) -> list[Candidate]:
    """Programs with the plan of bootstraps of least predicted time, under each set of parameters that can hold one.

    If the best of these has bootstraps on a part of the slots, there are lowerings made for its ring, budget and number
    of slots, as other keys are there to share, and plans for all chains.

    Args:
        chains: of any rings; if they are many, those that can't hold the graph cost little.
        best: of the programs without bootstraps, if there is one.
        refuse: called with what can't hold the graph.
    """
    by_way: dict[_Way, list[Parameters]] = {}
    for parameters in chains:
        by_way.setdefault(_way(parameters), []).append(parameters)
    found: list[Candidate] = []
    for same in by_way.values():
        here = _planned(job, same, refuse)
        if job.options.parameters is None:
            here += _on_fewer_slots(job, here)
        if best is not None:  # which serves as well if nothing is bootstrapped
            here = [one for one in here if one.placements]
        found += here
        if best is not None and any(_cost(job, one) > FAR * _cost(job, best) for one in _preferred(job, here)[:1]):
            return found
    for one in _preferred(job, found)[:1]:
        log_ring, budget, log_slots = _way(one.parameters)
        if log_slots is not None and job.options.parameters is None:
            part = [_on_slots(parameters, log_slots) for parameters in by_way[log_ring, budget, None]]
            again = _planned(job, part, lambda parameters, why: None)
            found += again if best is None else [one for one in again if one.placements]
    return found


_Way = tuple[int, tuple[int, int], int | None]
"""To bootstrap: the ring, the budget and the slots."""


def _way(parameters: Parameters) -> _Way:
    setup = parameters.bootstrapping
    return parameters.log_ring, (0, 0) if setup is None else setup.budget, None if setup is None else setup.log_slots


def _cost(job: Job, one: Candidate) -> float:
    return job.terms.cost(one.seconds, one.server_bytes)


def _preferred(job: Job, found: Sequence[Candidate]) -> list[Candidate]:
    return preferred(found, job.terms.max_memory)


def _planned(job: Job, chains: Sequence[Parameters], refuse: Refuse) -> list[Candidate]:
    """A candidate for each chain that can hold the graph, with layouts and lowerings that all of them share.

    The longest chain with the fewest digits stands for all: what matters is which keys bootstraps have anyway.
    """
    found: list[Candidate] = []
    draft: Draft | None = None
    for number, parameters in enumerate(chains, 1):
        job.say(f"placing bootstraps: {number} of {len(chains)} sets of parameters")
        try:
            _check_reach(job.graph, parameters)
            draft = draft or _pack(job, min(chains, key=lambda one: (one.digits, -one.depth)))
            found.append(_with_plan(job, draft, parameters))
        except InfeasibleError as error:
            refuse(parameters, str(error))
    return found


def _check_reach(graph: Graph, parameters: Parameters) -> None:
    """`InfeasibleError` if the levels between bootstraps do not reach from one place for one to the next."""
    PlacementProblem(graph, bootstrap_model(parameters), parameters.depth, lambda node, level: 0.0).highest()


def _pack(job: Job, parameters: Parameters) -> Draft:
    log_ring, budget, log_slots = _way(parameters)
    slots = "" if log_slots is None else f" on 2^{log_slots} slots"
    job.say(f"lowering at ring 2^{log_ring}, with bootstraps in {budget[0]} + {budget[1]} levels{slots}")
    return job.packed(parameters)


def _with_plan(job: Job, draft: Draft, parameters: Parameters) -> Candidate:
    """With the fastest plan of so few bootstraps as were asked for, or if there is none the fastest of all."""
    most, pricer = job.options.fit.max_bootstraps, job.terms.pricer(parameters)
    exceeds = False
    try:
        plan = place_bootstraps(draft.graph, draft.profiles, pricer, most)
    except InfeasibleError:
        if most is None:
            raise
        plan, exceeds = place_bootstraps(draft.graph, draft.profiles, pricer), True
    return price(pricer, draft, draft.planned(plan, parameters), job.terms.max_memory, plan.placements, exceeds)


def _on_fewer_slots(job: Job, found: Sequence[Candidate]) -> list[Candidate]:
    """The preferred of some candidates with bootstraps on a part of the slots, its lowerings as they are.

    There is one for each number of slots after which values repeat; all that it bootstraps have to.
    """
    sparse: list[Candidate] = []
    for one in _preferred(job, [one for one in found if one.placements])[:1]:
        for log_slots in _numbers_of_slots(one):
            with contextlib.suppress(InfeasibleError):  # too few places for bootstraps
                sparse.append(_with_plan(job, one.draft, _on_slots(one.parameters, log_slots)))
    return sparse


def _numbers_of_slots(one: Candidate) -> list[int]:
    """Their log2: after which values repeat, and that the budget takes; all slots are not among them."""
    _, budget, _ = _way(one.parameters)
    found = {max(node.layout.repeats_after.bit_length() - 1, *budget) for node in one.graph.nodes}
    return sorted(found - {one.parameters.log_bootstrap_slots})


def _on_slots(parameters: Parameters, log_slots: int) -> Parameters:
    assert parameters.bootstrapping is not None
    return replace(parameters, bootstrapping=replace(parameters.bootstrapping, log_slots=log_slots))
