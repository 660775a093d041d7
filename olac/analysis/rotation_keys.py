"""Which rotation steps of a program get keys, and which of these keys a server reads when they are needed.

Rare steps are composed of others if that pays. If memory is limited and does not hold the keys that remain, a server
holds those of bootstraps and as many others as fit, and reads one when it is needed.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from olac.analysis.estimate import (
    LOADING_KEYS,
    UNUSED_SHARE,
    Estimate,
    Lowered,
    Sizes,
    estimate,
    key_reading_seconds,
)
from olac.analysis.key_levels import key_levels
from olac.backends.cost import CostEvaluator, Slowdown
from olac.ckks.engines import OPENFHE, EngineModel
from olac.ckks.key_list import KeyList
from olac.ckks.key_pool import evictions
from olac.ckks.parameters import Parameters
from olac.ckks.rotations import composition
from olac.costs.table import CostTable
from olac.kernels.record import record
from olac.system.memory import GB
from olac.system.threads import usable_threads

Uses = Mapping[tuple[int, int], float]
"""How often each (step, level) is taken in one run, if there is a key for every step. For runs of several images it may
be the share of one."""


@dataclass(frozen=True)
class KeyChoice:
    """Which steps get keys, and what the program takes then.

    Attributes:
        steps: that get keys, increasing.
        seconds: of a run. A composed step is priced as its rotations, which is a little too much if several
            compositions share their first.
        sizes: bytes of a server.
        pool: the number of steps that neither bootstraps nor conjugation need.
        held: how many of their keys a server holds at once.
        reads: keys that a run reads from their file because of that.
        levels: the highest level at which each step with a key is taken; 0 for one that is not named.
    """

    steps: tuple[int, ...]
    seconds: float
    sizes: Sizes
    pool: int
    held: int
    reads: int = 0
    levels: Mapping[int, int] = field(default_factory=dict)


def fewer_keys(
    uses: Uses,
    parameters: Parameters,
    price: Callable[[str, int], float],
    seconds: float,
    sizes: Sizes,
    cost: Callable[[float, float], float],
    engine: EngineModel = OPENFHE,
    *,
    last_only: bool = False,
) -> Iterator[KeyChoice]:
    """Keys for all steps, and then one key less each time: the one that is missed least is given up first.

    A step that others are composed of keeps its key, so a composition found once stays what `composition` finds. Keys
    of bootstraps and of conjugation stay. The keys that a step is composed of reach as far as it is taken.

    Args:
        uses: of all steps.
        price: seconds of a primitive at a level.
        seconds, sizes: of the program with a key for every step.
        cost: by seconds and bytes of a server; every key that is given up has to lower it.
        last_only: leave out all choices but the last.
    """
    bootstraps = engine.bootstraps(parameters)
    steps = bootstraps.keys_for(step for step, _ in uses)
    levels = dict(key_levels(uses, (), bootstraps).steps)
    held = {step % parameters.slots for step in steps} - {0}
    pool = held - bootstraps.steps
    missed = _missed(uses, pool, price)
    composed: set[int] = set()
    parts: set[int] = set()

    @functools.cache
    def key_bytes(level: int) -> int:
        return engine.key_bytes(parameters, level)

    def growth(step: int, level: int) -> int:
        """Bytes that a key takes more if it has to reach a level as well."""
        reach = levels[step]
        return key_bytes(max(reach, level)) - key_bytes(reach)

    def pays(slower: float, smaller: Sizes) -> bool:
        return cost(slower, smaller.server_bytes) < cost(seconds, sizes.server_bytes)

    def choice() -> KeyChoice:
        left = len(pool) - len(composed)
        return KeyChoice(tuple(sorted(steps - composed)), seconds, sizes, left, left, levels=dict(levels))

    if not last_only:
        yield choice()
    for most in (2, 3):  # steps that two rotations compose come before those that take three
        for step, one_rotation in missed:
            if step in composed or step in parts:
                continue
            slower, level = seconds + (most - 1) * one_rotation, levels[step]
            smaller = replace(sizes, key_bytes=sizes.key_bytes - key_bytes(level))
            if not pays(slower, smaller):
                continue
            path = composition(step, frozenset(held - {step}), parameters.slots)
            if path is None or len(path) > most:
                continue
            grown = sum(growth(part, level) for part in set(path))
            if grown:
                smaller = replace(smaller, key_bytes=smaller.key_bytes + grown)
                if not pays(slower, smaller):
                    continue
            seconds, sizes = slower, smaller
            held.remove(step)
            composed.add(step)
            parts.update(path)
            levels |= {part: max(level, levels[part]) for part in path}
            if not last_only:
                yield choice()
    if last_only:
        yield choice()


def composed_of(
    kept: KeyList,
    uses: Uses,
    parameters: Parameters,
    price: Callable[[str, int], float],
    seconds: float,
    sizes: Sizes,
    engine: EngineModel = OPENFHE,
) -> KeyChoice:
    """Keys for a program whose clients have some already: of those what it takes, and new ones only where it must.

    A step gets a new key if there is none for it and it can't be composed of those that reach as far as it is taken.

    Args:
        kept: the keys that clients have, those of bootstraps among them.
        uses, parameters, price, seconds, sizes, engine: as in `fewer_keys`.
    """
    bootstraps, slots = engine.bootstraps(parameters), parameters.slots
    steps = bootstraps.keys_for(step for step, _ in uses)
    levels = dict(key_levels(uses, (), bootstraps).steps)
    there = frozenset(kept.steps)

    def composable(step: int) -> bool:
        least = engine.key_level(parameters, levels[step])
        reaching = frozenset(one for one, reach in kept.rotations if reach >= least) - {slots}
        return step % slots != 0 and composition(step, reaching, slots) is not None

    composed = set(filter(composable, steps - there))
    held = frozenset(step % slots for step in (steps - composed) | there) - {0}
    paths = {step: composition(step, held, slots) or () for step in composed}
    size = sizes.key_bytes - sum(engine.key_bytes(parameters, levels[step]) for step in composed)
    own = {step: levels[step] for step in steps - composed}
    for step, path in paths.items():
        for part in path:
            before = engine.key_bytes(parameters, own[part]) if part in own else 0
            own[part] = max(levels[step], own.get(part, 0))
            size += engine.key_bytes(parameters, own[part]) - before
        times = ((count, level) for (used, level), count in uses.items() if used == step)
        seconds += (len(path) - 1) * sum(count * price("rotate", level) for count, level in times)
    pool = len({step % slots for step in own} - {0} - bootstraps.steps)
    chosen = tuple(sorted(own))
    return KeyChoice(chosen, seconds, replace(sizes, key_bytes=size), pool, pool, levels=levels | own)


def within(
    choices: Iterable[KeyChoice], order: Sequence[int], evaluator: CostEvaluator, encoding: float, max_memory: float
) -> KeyChoice:
    """The fastest way to fit in `max_memory` bytes, or the smallest if nothing fits.

    As a server does, each choice first gives up encoded weights that it would keep, and then reads keys as needed.

    Args:
        choices: from `fewer_keys`.
        order: all steps that a run takes, as if each had a key.
        evaluator: for the parameters; prices what is read.
        encoding: seconds to encode all weights.
    """
    best: KeyChoice | None = None
    smallest: KeyChoice | None = None
    for choice in choices:
        if best is not None and choice.seconds >= best.seconds:
            break
        one = _with_fewer_plaintexts(choice, encoding, max_memory)
        if one.sizes.server_bytes > max_memory and one.pool > 1 + LOADING_KEYS:
            one = _read_when_needed(one, order, evaluator, max_memory)
        if one.sizes.server_bytes <= max_memory and (best is None or one.seconds < best.seconds):
            best = one
        if smallest is None or one.sizes.server_bytes < smallest.sizes.server_bytes:
            smallest = one
    assert smallest is not None
    return best or smallest


def estimate_within(
    program: Lowered,
    found: Estimate,
    max_memory: float,
    threads: int | None = None,
    costs: CostTable | None = None,
    slowdown: Slowdown | None = None,
) -> Estimate:
    """The estimate of a server that stays within `max_memory` bytes, from that of a server without a limit."""
    chosen = held_within(
        program,
        max_memory,
        costs or CostTable.default(program.planned_for),
        threads or usable_threads(),
        slowdown,
        found,
    )
    sizes = chosen.sizes
    return replace(
        found,
        seconds_per_image=chosen.seconds / program.batch,
        first_seconds=max(found.first_seconds, chosen.seconds),
        server_gb=sizes.server_bytes / GB,
        server_gb_without_kept_weights=sizes.least_server_bytes / GB,
        process_gb=found.process_gb + (sizes.held_bytes - found.sizes.held_bytes) / GB,
        sizes=sizes,
    )


def held_within(
    program: Lowered,
    max_memory: float,
    table: CostTable,
    threads: int,
    slowdown: Slowdown | None = None,
    found: Estimate | None = None,
) -> KeyChoice:
    """What a server of a compiled program has to do to stay within `max_memory` bytes, or the least if it can't.

    Args:
        found: the estimate without a limit; None makes one.
    """
    found = found or estimate(program, threads, table, slowdown)
    parameters, bootstraps = program.parameters, table.engine.bootstraps(program.parameters)
    evaluator = CostEvaluator(
        parameters,
        table,
        threads,
        encoded=bootstraps.keeps_plaintexts,
        slowdown=slowdown,
        rotations=program.rotations,
    )
    record(program.graph, parameters, recorder=evaluator)
    order = [event.step for event in evaluator.events if event.step]
    pool = len(set(program.rotations) - bootstraps.steps - {parameters.conjugation_step})
    levels = key_levels(evaluator.uses(), (), bootstraps).steps
    whole = KeyChoice(program.rotations, evaluator.seconds, found.sizes, pool, pool, levels=levels)
    return within([whole], order, evaluator, found.first_seconds - evaluator.seconds, max_memory)


def _with_fewer_plaintexts(choice: KeyChoice, encoding: float, max_memory: float) -> KeyChoice:
    """As many encoded weights as fit; the others are encoded in every run."""
    sizes = choice.sizes
    if not sizes.keeps_plaintexts or not sizes.plaintext_bytes:
        return choice
    over = max(0.0, sizes.server_bytes - max_memory) / (1 + UNUSED_SHARE)
    kept = max(0, math.floor(sizes.plaintext_bytes - over))
    return replace(
        choice,
        seconds=choice.seconds + encoding * (1 - kept / sizes.plaintext_bytes),
        sizes=replace(sizes, plaintext_bytes=kept),
    )


def _read_when_needed(
    choice: KeyChoice, order: Sequence[int], evaluator: CostEvaluator, max_memory: float
) -> KeyChoice:
    """As many keys of the pool as fit, at least one. If they differ in size, the largest are taken to be held."""
    engine, parameters, slots = evaluator.engine, evaluator.parameters, evaluator.slots
    with_keys = frozenset(step % slots for step in choice.steps) - {0}
    pool = with_keys - engine.bootstraps(parameters).steps
    reach = {step: engine.key_level(parameters, choice.levels.get(step, 0)) for step in pool}
    smallest = sorted(engine.key_bytes(parameters, level) for level in reach.values())
    held, sizes = choice.pool - LOADING_KEYS, choice.sizes
    while sizes.server_bytes > max_memory and held > 1:
        sizes = replace(sizes, key_bytes=sizes.key_bytes - smallest[choice.pool - LOADING_KEYS - held])
        held -= 1
    paths = {step: composition(step, with_keys, slots) or () for step in set(order)}
    again = evictions([part for step in order for part in paths[step] if part in pool], held)
    by_reach: Counter[int] = Counter()
    for step, times in again.items():
        by_reach[reach[step]] += times
    return replace(
        choice,
        seconds=choice.seconds + sum(times * key_reading_seconds(evaluator, at) for at, times in by_reach.items()),
        sizes=sizes,
        held=held,
        reads=again.total(),
    )


def _missed(uses: Uses, steps: Iterable[int], price: Callable[[str, int], float]) -> list[tuple[int, float]]:
    """Steps with the seconds that one more rotation takes wherever they are used; the least first."""
    found = dict.fromkeys(steps, 0.0)
    for (step, level), times in uses.items():
        if step in found:
            found[step] += times * price("rotate", level)
    return sorted(found.items(), key=lambda item: (item[1], item[0]))


def memory_line(keys: KeyChoice, max_memory: float) -> str:
    """One line about what a server does to stay within `max_memory` bytes (see `held_within`)."""
    needed, seconds = keys.sizes.server_bytes, f"{keys.seconds:.2f} s"
    if needed > max_memory:
        return f"{max_memory / GB:.2f} GB: a server takes at least {math.ceil(needed / GB * 100) / 100:.2f} GB"
    if keys.held == keys.pool:
        return f"{max_memory / GB:.2f} GB: a server holds all keys, and a run takes {seconds}"
    return (
        f"{max_memory / GB:.2f} GB: of the {keys.pool} rotation keys beside those of bootstraps, a server holds "
        f"{keys.held} at a time. A run reads {keys.reads} keys from their file, and takes {seconds}"
    )
