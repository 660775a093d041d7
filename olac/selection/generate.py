"""Candidates: programs under every set of parameters worth trying, without bootstraps and with them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from olac.analysis.bootstrap_problem import PlacementProblem
from olac.analysis.bootstraps import bootstraps_may_pay, least_seconds, place_bootstraps
from olac.analysis.estimate import Sizes
from olac.analysis.key_levels import key_levels
from olac.analysis.noise import MAX_SCALE_BITS
from olac.backends.cost import predicted_seconds
from olac.ckks.candidates import candidates, deep_chains
from olac.ckks.parameters import BOOTSTRAP_FIRST_BITS, BOOTSTRAP_SCALE_BITS, Parameters
from olac.ckks.primes import MOST_FIRST_BITS
from olac.errors import InfeasibleError
from olac.selection.job import INTEGER_BITS, Job
from olac.selection.price import NEARLY, Candidate, Draft, Terms

MAX_DEPTH = 100

FEW_DIGITS = 3

USUAL_KEYS = 64
"""Rotation keys of a convolutional network, about."""

FAR = 1.5
"""The search for programs with bootstraps ends if the best of one budget costs this many times as much as the best
program without them: another budget, or another lowering, changes the cost by less."""

ROUNDING = 1 - 1e-9
"""A bound and a price add up the same numbers in another order."""

Refuse = Callable[[Parameters, str], None]
"""Called with parameters that can't hold a graph, and the reason."""


# Without bootstraps ---------------------------------------------------------------------------------------------------


def without_bootstraps(job: Job) -> list[Candidate]:
    """Programs at the smallest ring that has one that fits; if its keys are all long, the next ring competes as well.

    Parameters of one ring differ in digits alone, so their program is the same and is lowered once.
    """
    found: list[Candidate] = []
    for chains in chains_without_bootstraps(job):
        first = _representative(chains, job.terms)
        job.say(f"lowering at ring 2^{first.log_ring}")
        draft = job.levelled(first)
        here = [job.price(parameters, draft) for parameters in chains]
        found += here + _with_other_lanes(job, chains, here)
        if job.best(found) and not _is_tight(chains):
            break
    return found


def _with_other_lanes(job: Job, chains: Sequence[Parameters], found: Sequence[Candidate]) -> list[Candidate]:
    """Programs with other numbers of images in a ciphertext.

    With one image alone, so that a batch is never predicted to take more time an image than one image does. And with
    more than a ciphertext holds whole values of, as long as each is better than the last: values then take several
    ciphertexts, but with fewer slots an image there are fewer rotations, and none in the end.
    """
    more: list[Candidate] = []
    first = _representative(chains, job.terms)

    def priced(lanes: int) -> list[Candidate]:
        job.say(f"lowering at ring 2^{first.log_ring}, {lanes} inputs in a ciphertext")
        draft = job.levelled(first, lanes)
        return [job.price(parameters, draft) for parameters in chains]

    best, lanes = job.best(found), job.lanes(first.log_ring)
    if lanes > 1:
        more += priced(1)
    while best is not None and lanes < min(job.options.batch, first.slots):
        lanes *= 2
        here = priced(lanes)
        better = job.best([best, *here])
        if better is best:
            break
        more += here
        best = better
    return more


def chains_without_bootstraps(job: Job) -> list[list[Parameters]]:
    """Parameters worth trying: for each ring, the smallest first, a list of those that differ in digits alone."""
    options, found = job.options, list[list[Parameters]]()
    if options.parameters is not None:
        planned = options.parameters.bootstrapping is not None and job.places_bootstraps
        return [] if planned else [[options.parameters]]
    if job.depth > MAX_DEPTH:
        return []
    for log_ring in job.rings:
        bits = job.scale_bits(log_ring)
        if bits > MAX_SCALE_BITS or job.with_primes(log_ring, bits) != bits:
            continue
        chains = job.taken(
            candidates(
                job.depth,
                bits,
                min(MOST_FIRST_BITS, bits + INTEGER_BITS),
                technique=options.technique,
                security=job.security,
                log_rings=(log_ring,),
            )
        )
        found += [chains] if chains else []
        if chains and job.terms.max_memory is None and not _is_tight(chains):
            break
    return found


def _is_tight(chains: Sequence[Parameters]) -> bool:
    """Whether a ring holds the chain only with many digits: the next ring may then be faster and have smaller keys."""
    return min(parameters.digits for parameters in chains) > FEW_DIGITS


def _representative(chains: Sequence[Parameters], terms: Terms) -> Parameters:
    """The parameters by whose prices lowerings are chosen, before the number of keys is known.

    The number of digits decides the time of key switching over the chain, and the size of keys.
    """

    def cost(parameters: Parameters) -> float:
        seconds = sum(
            predicted_seconds(terms.table, primitive, parameters, level, terms.threads)
            for level in range(1, parameters.depth + 1)
            for primitive in ("rotate", "multiply")
        )
        # A key is used half-way down the chain on average.
        keys = USUAL_KEYS * terms.engine.key_bytes(parameters, parameters.depth // 2)
        return replace(terms, max_memory=None).cost(seconds, keys)

    return min(chains, key=cost)


# With bootstraps ------------------------------------------------------------------------------------------------------


def chains_with_bootstraps(job: Job, without: Sequence[Candidate]) -> Iterator[list[Parameters]]:
    """Sets of parameters with bootstraps that the options allow: a list for each scale, the smallest scale first.

    Pinned parameters are the only ones, and a pinned scale has none. If a precision is asked
    for, the scales are all those that bootstraps were measured at. If only the best program without bootstraps has one
    to keep, they begin with the usual scale; if there is neither, the usual scale is the only one.

    Args:
        without: the programs without bootstraps. There is nothing to try if the best of them costs less than any
            bootstrap, or if any bootstrap holds more than the smallest of them and than the limit of memory.
    """
    options, usual, best = job.options, (BOOTSTRAP_SCALE_BITS, BOOTSTRAP_FIRST_BITS), job.best(without)
    if options.parameters is not None:
        if options.parameters.bootstrapping is not None and job.places_bootstraps:
            yield [options.parameters]
        return
    if not job.places_bootstraps or options.scale_bits is not None or options.insecure:
        return
    rings = (15, 16) if options.log_ring is None else (options.log_ring,)
    if without:
        cost, held = _least(job, rings)
        limits = job.terms.max_memory, min(one.server_bytes for one in without)
        if (best and job.cost(best) <= cost) or all(limit is not None and limit < held for limit in limits):
            return
    if job.noise.scale_bits(rings[0], job.precision) > MAX_SCALE_BITS:
        return
    measured, recipe = sorted(job.engine.bootstrap_noise), job.engine.recipe
    scales = [usual] if best is None else [one for one in measured if one >= usual]
    for scale, first in scales if options.precision is None else measured:
        chains = job.taken(
            deep_chains(scale_bits=scale, first_bits=first, security=options.security, log_rings=rings, recipe=recipe)
        )
        if chains:
            yield chains


def _least(job: Job, log_rings: tuple[int, ...]) -> tuple[float, float]:
    """Lower bounds of the cost and of the bytes of programs with bootstraps: those of a single one, the cheapest."""
    least = held = float("inf")
    chains = deep_chains(security=job.options.security, log_rings=log_rings, most_rest=2, recipe=job.engine.recipe)
    for chain in job.taken(chains):
        assert chain.bootstrapping is not None
        parameters = _on_slots(chain, max(chain.bootstrapping.budget))
        server_bytes = _bootstrap_bytes(job, parameters)
        seconds = job.terms.pricer(parameters).price("bootstrap", job.engine.bootstraps(parameters).input_level)
        least = min(least, job.terms.cost(seconds * job.share(job.lanes(parameters.log_ring)).each, server_bytes))
        held = min(held, server_bytes)
    return least, held


def _bootstrap_bytes(job: Job, parameters: Parameters) -> float:
    """What a server holds for bootstraps alone."""
    engine, model = job.engine, job.engine.bootstraps(parameters)
    return Sizes(
        engine.keys_bytes(parameters, key_levels((), (), model).of(model.steps, parameters, model)),
        model.precomputed_bytes,
        0,
        model.working_bytes,
        0,
        model.keeps_plaintexts,
        engine.library_bytes(parameters),
    ).server_bytes


def with_bootstraps(job: Job, chains: Sequence[Parameters], best: Candidate | None, refuse: Refuse) -> list[Candidate]:
    """Programs with the plan of bootstraps of least predicted time, under each set of parameters that can hold one.

    If the best of these has bootstraps on a part of the slots, lowerings are made anew for its ring, budget and number
    of slots, because there are other keys to share, and all of its chains get plans for them.

    Args:
        chains: of any rings; those that can't hold the graph take little time.
        best: of the programs without bootstraps, if there is one.
        refuse: called with each set of parameters that can't hold the graph.
    """
    pinned = job.options.parameters is not None
    by_way: dict[_Way, list[Parameters]] = {}
    for parameters in chains:
        by_way.setdefault(_way(parameters), []).append(parameters)
    some = best is not None  # if nothing is bootstrapped, `best` will do
    found: list[Candidate] = []
    for same in by_way.values():
        here = _planned(job, same, refuse, some)
        if not pinned:
            here += _on_fewer_slots(job, here)
        here = [one for one in here if one.placements or not some]
        found += here
        first = job.best(here)
        if best is not None and first is not None and job.cost(first) > FAR * job.cost(best):
            return found
    first = job.best(found)
    if first is not None and not pinned:
        log_ring, budget, log_slots = _way(first.parameters)
        if log_slots is not None:
            part = [_on_slots(parameters, log_slots) for parameters in by_way[log_ring, budget, None]]
            found += _planned(job, part, lambda parameters, why: None, some, found)
    return found


_Way = tuple[int, tuple[int, int], int | None]
"""How bootstraps work: ring, budget and slots."""


def _way(parameters: Parameters) -> _Way:
    setup = parameters.bootstrapping
    assert setup is not None
    return parameters.log_ring, setup.budget, setup.log_slots


def _planned(
    job: Job, chains: Sequence[Parameters], refuse: Refuse, some: bool = False, rivals: Sequence[Candidate] = ()
) -> list[Candidate]:
    """A candidate for each chain that can hold the graph and may be the best; all of them share layouts and lowerings.

    These are made for the longest chain with the fewest digits: what matters is which keys bootstraps have anyway, and
    all chains have the same. To place bootstraps takes most of the time, so the chains are tried in the order of what
    they cost at least (`least_cost`), until no other can be the best.

    Args:
        refuse: called with each set of parameters that can't hold the graph.
        some: whether candidates without bootstraps are left out.
        rivals: other candidates, which the best has to beat.
    """
    bounds: list[tuple[float, int]] = []
    draft: Draft | None = None
    for number, parameters in enumerate(chains):
        try:
            _check_reach(job, parameters)
            draft = draft or _pack(job, min(chains, key=lambda one: (one.digits, -one.depth)))
            bounds.append((least_cost(job, draft, parameters, some), number))
        except InfeasibleError as error:
            refuse(parameters, str(error))
    found: dict[int, Candidate] = {}
    for bound, number in sorted(bounds):
        parameters = chains[number]
        if bound > _most_cost(job, [*rivals, *found.values()]):
            break
        assert draft is not None
        if some and not bootstraps_may_pay(draft.graph, draft.profiles, job.terms.pricer(parameters)):
            continue
        job.say(f"placing bootstraps: {number + 1} of {len(chains)} sets of parameters")
        one = _with_plan(job, draft, parameters)
        if one.placements or not some:
            found[number] = one
    return [one for _, one in sorted(found.items())]  # of two that cost the same, the first of the chains is taken


def least_cost(job: Job, draft: Draft, parameters: Parameters, some: bool = False) -> float:
    """A lower bound on the cost (`Job.cost`) of a draft under parameters, whatever its plan of bootstraps.

    It takes the dearest path through the graph, and a server holds at least what one bootstrap takes, if there is one.

    Args:
        some: whether plans without bootstraps are left out.

    Raises:
        InfeasibleError: places for bootstraps are further apart than the levels between two reach.
    """
    terms, engine = job.terms, job.engine
    model, share = engine.bootstraps(parameters), job.share(draft.graph.inputs[0].layout.batch)
    # A server that may keep encoded weights may do without the time to encode them.
    encoding = 0.0 if model.keeps_plaintexts else 1.0 / (share.images * share.each)
    some = some or draft.depth > parameters.depth
    seconds = share.each * least_seconds(draft.graph, draft.profiles, terms.pricer(parameters), encoding, some)
    # Clients that have keys already may do without some of those that bootstraps take.
    held = _bootstrap_bytes(job, parameters) if some and terms.kept is None else 0.0
    return ROUNDING * terms.cost(seconds, held)


def _most_cost(job: Job, found: Sequence[Candidate]) -> float:
    """The most that a candidate may cost to be preferred to those that there are."""
    best = job.best(found)
    if best is None or best.exceeds:
        return float("inf")
    return job.cost(best) if job.terms.max_memory is None else NEARLY * job.cost(best)


def _check_reach(job: Job, parameters: Parameters) -> None:
    """`InfeasibleError` if the levels between bootstraps do not reach from one place for a bootstrap to the next."""
    bootstraps = job.engine.bootstraps(parameters)
    PlacementProblem(job.graph, bootstraps, parameters.depth, lambda node, level: 0.0).highest()


def _pack(job: Job, parameters: Parameters) -> Draft:
    log_ring, budget, log_slots = _way(parameters)
    slots = "" if log_slots is None else f" on 2^{log_slots} slots"
    job.say(f"lowering at ring 2^{log_ring}, with bootstraps in {budget[0]} + {budget[1]} levels{slots}")
    return job.packed(parameters)


def _with_plan(job: Job, draft: Draft, parameters: Parameters) -> Candidate:
    """With the fastest plan of as many bootstraps as are allowed, or the fastest of all if there is none."""
    most, pricer = job.options.fit.max_bootstraps, job.terms.pricer(parameters)
    exceeds = False
    try:
        plan = place_bootstraps(draft.graph, draft.profiles, pricer, most)
    except InfeasibleError:
        if most is None:
            raise
        plan, exceeds = place_bootstraps(draft.graph, draft.profiles, pricer), True
    work = draft.planned(plan, parameters, job.engine)
    return job.priced(parameters, draft, work, plan.placements, exceeds)


def _on_fewer_slots(job: Job, found: Sequence[Candidate]) -> list[Candidate]:
    """The best of some candidates with bootstraps on a part of the slots instead, its lowerings as they are.

    There is one for each number of slots after which a value repeats. It bootstraps only values that do.
    """
    sparse: list[Candidate] = []
    best = job.best(one for one in found if one.placements)
    if best is not None:
        for log_slots in _numbers_of_slots(best):
            with contextlib.suppress(InfeasibleError):  # too few places for bootstraps
                sparse.append(_with_plan(job, best.draft, _on_slots(best.parameters, log_slots)))
    return sparse


def _numbers_of_slots(one: Candidate) -> list[int]:
    """log2 of the numbers of slots after which values repeat and that the budget takes, without that of all slots."""
    _, budget, _ = _way(one.parameters)
    found = {max(node.layout.ciphertext_repeats_after.bit_length() - 1, *budget) for node in one.graph.nodes}
    return sorted(found - {one.parameters.log_bootstrap_slots})


def _on_slots(parameters: Parameters, log_slots: int) -> Parameters:
    assert parameters.bootstrapping is not None
    return replace(parameters, bootstrapping=replace(parameters.bootstrapping, log_slots=log_slots))
