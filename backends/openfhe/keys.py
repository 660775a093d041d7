"""Key pairs and sets of evaluation keys that live in this process.

OpenFHE keeps evaluation keys in static maps of the process, by the tag of their secret key. Every set here has a tag of
its own, so that clients and servers in one process don't touch each other's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from olac.backends.openfhe.library import load
from olac.backends.openfhe.wire import Words, new_tag, wire
from olac.bootstrapping import SPECIAL_KEYS
from olac.errors import BackendError
from olac.parameters import Parameters
from olac.threads import helpers, in_threads, usable_threads

KEY_MAKERS = 3
"""Threads that make keys from words; as many as one thread that reads and hashes can feed."""


@dataclass
class KeySet:
    """Evaluation keys that OpenFHE can use, under `tag`."""

    parameters: Parameters
    tag: str
    steps: tuple[int, ...]
    relinearisation: Any = None
    special: dict[int, Words] = field(default_factory=dict)
    _maps: list[tuple[tuple[int, ...], Any]] = field(default_factory=list)

    def words(self) -> Iterator[Words]:
        """The relinearisation key, where there is one, then the rotation keys as in `steps`, and special ones last.

        Only for sets that were made here. Copies of a few keys, at most twice as many as there are threads, are alive.
        """
        ready = wire(self.parameters)
        if self.relinearisation is not None:
            yield ready.relinearisation_key_words(self.relinearisation)
        index = {step: ready.automorphism_index(step) for step in self.steps}

        def words(entry: tuple[tuple[int, ...], Any]) -> list[Words]:
            steps, keys = entry
            by_index = sorted(steps, key=index.__getitem__)
            found = dict(zip(by_index, ready.rotation_key_words(keys, len(steps)), strict=True))
            return [found[step] for step in steps]

        for part in in_threads(words, self._maps, helpers(1)):
            yield from part
        yield from self.special.values()


def new_secret_key(parameters: Parameters) -> Any:
    """A ternary secret key under a tag of its own: uniform, or sparse where the parameters have bootstraps."""
    key = wire(parameters).context.KeyGen().secretKey
    key.SetKeyTag(new_tag())
    return key


def make_keys(
    parameters: Parameters,
    secret_key: Any,
    steps: Sequence[int],
    relinearise: bool,
    progress: Callable[[int, int], None] | None = None,
) -> KeySet:
    """Evaluation keys of a secret key; `progress(done, total)` is called as they come."""
    ready = wire(parameters)
    context = ready.context
    fhe = load()
    total, done = len(steps) + int(relinearise) + (SPECIAL_KEYS if parameters.bootstrapping else 0), 0
    tag = secret_key.GetKeyTag()
    made = KeySet(parameters, tag, tuple(steps))

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    try:
        if parameters.bootstrapping is not None:
            keys, made.special = ready.special_keys(secret_key)
            fhe.CryptoContext.InsertEvalAutomorphismKey(keys, tag)
            report(SPECIAL_KEYS)
        if relinearise:
            context.EvalMultKeyGen(secret_key)
            made.relinearisation = fhe.CryptoContext.GetEvalMultKeyVector(tag)[0]
            report(1)
        for chunk in _chunks(steps):
            keys = context.EvalAutomorphismKeyGen(secret_key, [ready.automorphism_index(s) for s in chunk])
            if not made._maps and not made.special:
                # OpenFHE takes the first map as its own and puts the later keys into it: a copy stays as it is.
                keys = fhe.DeserializeEvalKeyMapString(fhe.Serialize(keys, fhe.BINARY), fhe.BINARY)
            made._maps.append((tuple(chunk), keys))
            report(len(chunk))
    except RuntimeError as error:
        raise BackendError(f"OpenFHE can't make the evaluation keys: {error}") from error
    _check(made)
    return made


def install_keys(
    parameters: Parameters,
    steps: Sequence[int],
    relinearise: bool,
    words: Iterator[Words],
    progress: Callable[[int, int], None] | None = None,
) -> KeySet:
    """Keys from words that came from outside, in the order of `KeySet.words`, under a new tag.

    Raises:
        ArtifactError: words that are no residues; whatever `words` raises.
    """
    ready = wire(parameters)
    fhe = load()
    made = KeySet(parameters, new_tag(), tuple(steps))
    ready.prepare_keys(relinearise)
    makers: list[Callable[[Words], Any]] = []
    if relinearise:
        makers.append(lambda given: ready.relinearisation_key(given, made.tag))
    for step in steps:
        makers.append(partial(ready.rotation_key, index=ready.automorphism_index(step), tag=made.tag))
    for index in ready.special_indices if parameters.bootstrapping is not None else ():
        makers.append(partial(ready.special_key, index=index, tag=made.tag))

    def make(given: tuple[Callable[[Words], Any], Words]) -> Any:
        maker, part = given
        return maker(part)

    # One thread reads, the others check words and make keys of them; OpenFHE's maps are filled here alone.
    pairs = ((maker, next(words)) for maker in makers)
    for done, key in enumerate(in_threads(make, pairs, helpers(KEY_MAKERS)), 1):
        if relinearise and done == 1:
            made.relinearisation = key
            fhe.CryptoContext.InsertEvalMultKey([key], made.tag)
        else:
            fhe.CryptoContext.InsertEvalAutomorphismKey(key, made.tag)
        if progress is not None:
            progress(done, len(makers))
    _check(made)
    return made


def _check(made: KeySet) -> None:
    """OpenFHE must hold the keys of the set under its tag, and with bootstraps the special ones."""
    ready = wire(made.parameters)
    wanted = {ready.automorphism_index(step) for step in made.steps}
    if made.parameters.bootstrapping is not None:
        wanted |= set(ready.special_indices)
    held = set(load().CryptoContext.GetExistingEvalAutomorphismKeyIndices(made.tag)) if wanted else set()
    if not held >= wanted:
        raise BackendError(f"OpenFHE lacks {len(wanted - held)} of {len(wanted)} keys for rotations and bootstraps")


def _chunks(steps: Sequence[int]) -> Iterable[Sequence[int]]:
    """One step, then as many at a time as OpenFHE makes keys for in parallel."""
    if steps:
        yield steps[:1]
    size = usable_threads()
    for start in range(1, len(steps), size):
        yield steps[start : start + size]
