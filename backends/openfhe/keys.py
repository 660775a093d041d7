"""Key pairs and sets of evaluation keys of this process.

OpenFHE keeps evaluation keys in static maps of the process, by the tag of their secret key. Every set here has a tag of
its own, so that clients and servers in one process don't change each other's keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from olac.backends.openfhe.key_bytes import KeyMaker, WrittenKeys, written_keys
from olac.backends.openfhe.key_maps import KEY_MAPS, Held, others_aside, put_all
from olac.backends.openfhe.library import load
from olac.backends.openfhe.memory_files import MemoryFile
from olac.backends.openfhe.special_keys import make_bootstrap_keys
from olac.backends.openfhe.wire import wire
from olac.backends.openfhe.words import new_tag
from olac.backends.session import Piece
from olac.ckks.bootstrapping import SPECIAL_KEYS
from olac.ckks.parameters import Parameters
from olac.ckks.words import Words
from olac.errors import BackendError
from olac.system.internal import callers, is_callers
from olac.system.memory import ran_out
from olac.system.threads import helpers, in_threads, usable_threads

KEY_MAKERS = 3
"""Threads that make keys from words, each with a buffer of its own."""


@dataclass
class KeySet:
    """The `olac.backends.session.Keys` of OpenFHE, which holds them under `tag`."""

    parameters: Parameters
    tag: str
    steps: tuple[int, ...]
    relinearisation: Any = None
    special: dict[int, Words] = field(default_factory=dict)
    _maps: list[tuple[tuple[int, ...], Any]] = field(default_factory=list)
    """Neighbours in `steps` and OpenFHE's map of their keys, in the order of `steps`."""

    def __post_init__(self) -> None:
        self._held = Held(self.tag)

    def blocks(self) -> Iterator[Words]:
        """See `Keys`. One entry of `_maps` more than there are threads is in memory as bytes."""
        ready = wire(self.parameters)
        index = {step: ready.automorphism_index(step) for step in self.steps}
        one = ready.evaluation_key_primes
        entries = list(self._maps)
        if self.relinearisation is not None:
            entries.insert(0, ((), self.relinearisation))
        files: list[MemoryFile] = []
        free: list[MemoryFile] = []

        def written(entry: tuple[tuple[int, ...], Any]) -> tuple[tuple[int, ...], WrittenKeys]:
            steps, keys = entry
            try:
                file = free.pop()
            except IndexError:
                file = MemoryFile()
                files.append(file)
            return steps, written_keys(ready, keys, one * max(1, len(steps)), file)

        try:
            for steps, found in in_threads(written, entries, helpers(1)):
                by_index = sorted(steps, key=index.__getitem__)
                for step in steps or (None,):
                    yield from found.blocks(0 if step is None else by_index.index(step) * len(one), len(one))
                free.append(found.file)
        finally:
            for file in files:
                file.close()
        for words in self.special.values():
            yield from words


def new_secret_key(parameters: Parameters, identity: str | None = None) -> Any:
    """A ternary secret key under a tag of its own: uniform, or sparse if the parameters have bootstraps."""
    key = wire(parameters).context.KeyGen().secretKey
    key.SetKeyTag(new_tag(identity))
    return key


def make_keys(
    parameters: Parameters,
    secret_key: Any,
    steps: Sequence[int],
    relinearise: bool,
    progress: Callable[[int, int], None] | None = None,
    bootstraps: bool = True,
) -> KeySet:
    """Evaluation keys of a secret key; `progress(done, total)` is called after each.

    Args:
        bootstraps: whether to make those that only bootstraps take, if the parameters have bootstraps.
    """
    bootstraps = bootstraps and parameters.bootstrapping is not None
    ready = wire(parameters)
    context = ready.context
    fhe = load()
    total, done = len(steps) + int(relinearise) + (SPECIAL_KEYS if bootstraps else 0), 0
    tag = secret_key.GetKeyTag()
    made = KeySet(parameters, tag, tuple(steps))

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            with callers():
                progress(done, total)

    try:
        if bootstraps:
            _make_special(made, secret_key)
            report(SPECIAL_KEYS + len(made._maps))
        if relinearise:
            with KEY_MAPS.changing():
                context.EvalMultKeyGen(secret_key)
                made.relinearisation = fhe.CryptoContext.GetEvalMultKeyVector(tag)[0]
            report(1)
        there = {step for entry, _ in made._maps for step in entry}
        for chunk in _chunks(steps, there):
            with KEY_MAPS.using() if made._maps or made.special else KEY_MAPS.changing():
                keys = context.EvalAutomorphismKeyGen(secret_key, [ready.automorphism_index(s) for s in chunk])
            if not made._maps and not made.special:
                # OpenFHE keeps the first map itself and puts later keys into it. A copy is not changed by that.
                keys = fhe.DeserializeEvalKeyMapString(fhe.Serialize(keys, fhe.BINARY), fhe.BINARY)
            made._maps.append((tuple(chunk), keys))
            report(len(chunk))
        place = {step: i for i, step in enumerate(steps)}
        made._maps.sort(key=lambda entry: place[entry[0][0]])
    except RuntimeError as error:
        if is_callers(error) or ran_out(error):
            raise
        raise BackendError(f"OpenFHE can't make the evaluation keys: {error}") from error
    _check(made, bootstraps)
    return made


def _make_special(made: KeySet, secret_key: Any) -> None:
    """Put the special keys into an empty set, and those of its rotation keys that OpenFHE makes together with them."""
    ready, fhe, tag = wire(made.parameters), load(), new_tag()
    container, steps = fhe.CryptoContext, {ready.automorphism_index(step): step for step in made.steps}
    with MemoryFile() as file:
        with others_aside():
            make_bootstrap_keys(ready, ready.context, secret_key, tag)
            indices = sorted(container.GetExistingEvalAutomorphismKeyIndices(tag))
            parts = [
                ready.special_key_primes(i) if i in ready.special_indices else ready.evaluation_key_primes
                for i in indices
            ]
            keys = container.GetEvalAutomorphismKeyMap(tag)
            found = written_keys(ready, keys, tuple(prime for part in parts for prime in part), file)
            del keys
        # OpenFHE keeps the first map itself and puts later keys into it; here that is the map of a special key.
        with KeyMaker(ready, made.tag, False, 0) as maker:
            places = dict(zip(indices, itertools.accumulate(map(len, parts), initial=0), strict=False))
            sizes = dict(zip(indices, map(len, parts), strict=True))
            maps = []
            for index in ready.special_indices:
                blocks = [block.copy() for block in found.blocks(places[index], sizes[index])]
                made.special[index] = np.stack(blocks)
                maps.append(maker.special(index, made.special[index]))
            for index in indices:
                if index in steps:
                    maps.append(maker.rotations([(index, found.blocks(places[index], sizes[index]))]))
                    made._maps.append(((steps[index],), maps[-1]))
        put_all(maps, made.tag)


def install_keys(
    parameters: Parameters,
    steps: Sequence[int],
    relinearise: bool,
    blocks: Callable[[int], Iterator[Piece]],
    progress: Callable[[int, int], None] | None = None,
    identity: str | None = None,
    bootstraps: bool = True,
) -> KeySet:
    """See `olac.backends.session.Engine.install_keys`; the keys are under a new tag, all of them for every level."""
    bootstraps = bootstraps and parameters.bootstrapping is not None
    ready = wire(parameters)
    made = KeySet(parameters, new_tag(identity), tuple(steps))
    first = int(relinearise)
    special = ready.special_indices if bootstraps else ()
    rotations = [(ready.automorphism_index(step), first + i) for i, step in enumerate(steps)]
    total, done = first + len(steps) + len(special), 0

    with KeyMaker(ready, made.tag, relinearise, len(rotations)) as maker:

        def several(part: Sequence[tuple[int, int]]) -> Any:
            return maker.rotations([(index, blocks(place)) for index, place in part])

        def single(index: int, place: int) -> Any:
            return maker.special(index, blocks(place))

        jobs: list[tuple[int, Callable[[], Any]]] = []
        """Each with the number of keys that it makes."""
        if relinearise:
            jobs.append((1, lambda: maker.relinearisation(blocks(0))))
        whole = len(rotations) - len(rotations) % maker.together
        for start in range(0, whole, maker.together):
            jobs.append((maker.together, partial(several, rotations[start : start + maker.together])))
        jobs += [(1, partial(several, [entry])) for entry in rotations[whole:]]
        for place, index in enumerate(special, first + len(rotations)):
            jobs.append((1, partial(single, index, place)))

        def run(job: tuple[int, Callable[[], Any]]) -> tuple[int, Any]:
            count, make = job
            return count, make()

        # The threads read, check and make keys. OpenFHE's maps are filled at the end, so that runs pause only once.
        keys = []
        for count, key in in_threads(run, jobs, helpers(KEY_MAKERS)):
            if relinearise and not done:
                made.relinearisation = key
            else:
                keys.append(key)
            for _ in range(count):
                done += 1
                if progress is not None:
                    progress(done, total)
    put_all(keys, made.tag, made.relinearisation)
    _check(made, bootstraps)
    return made


def _check(made: KeySet, bootstraps: bool = True) -> None:
    """OpenFHE must hold the keys of the set under its tag, and if it is for bootstraps the special ones."""
    ready = wire(made.parameters)
    wanted = {ready.automorphism_index(step) for step in made.steps}
    if bootstraps and made.parameters.bootstrapping is not None:
        wanted |= set(ready.special_indices)
    with KEY_MAPS.using():
        held = set(load().CryptoContext.GetExistingEvalAutomorphismKeyIndices(made.tag)) if wanted else set()
    if not held >= wanted:
        raise BackendError(f"OpenFHE lacks {len(wanted - held)} of {len(wanted)} keys for rotations and bootstraps")


def _chunks(steps: Sequence[int], there: Container[int]) -> Iterator[Sequence[int]]:
    """Neighbours among the steps that are not there yet: first one, then as many as OpenFHE makes in parallel."""
    chunk: list[int] = []
    first = True
    for step in steps:
        if step not in there:
            chunk.append(step)
        if chunk and (first or step in there or len(chunk) == usable_threads()):
            yield tuple(chunk)
            chunk, first = [], False
    if chunk:
        yield tuple(chunk)
