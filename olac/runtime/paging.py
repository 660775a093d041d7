"""Rotation keys that stay in their file until a run needs them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

from olac.backends.recorder import RecorderEvaluator
from olac.backends.session import Engine, Keys, KeyStore, Piece
from olac.ckks.bootstrapping import bootstrap_model
from olac.ckks.key_pool import KeyPool
from olac.errors import ArtifactError
from olac.ir.graph import Node
from olac.kernels.base import Value
from olac.kernels.record import record
from olac.program.program import CompiledProgram
from olac.runtime.messages import EvaluationKeys


class KeyFile:
    """Single rotation keys of a file, each checked to be what it was when the whole file was checked."""

    def __init__(self, keys: EvaluationKeys) -> None:
        self._keys = keys.apart()
        self._places = {step: int(keys.relinearisation) + i for i, step in enumerate(keys.steps)}

    def put(self, step: int, store: KeyStore) -> None:
        """Put the key of a step into a store.

        Raises:
            ArtifactError: the file is gone, or the key has changed.
        """
        try:
            store.put(step, self._keys.blocks(self._places[step]))
        except ArtifactError as error:
            raise ArtifactError(
                f"{self._keys.name}: the key for rotation step {step} can't be read again: {error}. Leave the file as "
                "it is while a server uses it."
            ) from error


def pinned_steps(program: CompiledProgram) -> frozenset[int]:
    """Steps whose keys are always held: engines look up the keys of bootstraps and of conjugation themselves."""
    return bootstrap_model(program.parameters).steps | {program.parameters.conjugation_step}


def install_pinned(
    keys: EvaluationKeys,
    pinned: Collection[int],
    engine: Engine,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Keys, KeyFile]:
    """Install keys from outside, but leave those for rotations by other steps than `pinned` in their file.

    Raises:
        ArtifactError: as `EvaluationKeys.install`.
    """
    listed, first = keys.listed, int(keys.relinearisation)
    held = {step: level for step, level in listed.rotations if step in pinned}
    special = first + len(keys.steps)
    places = [*range(first), *(first + i for i, step in enumerate(keys.steps) if step in pinned)]
    places += range(special, len(keys.sizes))

    def blocks(place: int) -> Iterator[Piece]:
        return keys.blocks(places[place])

    with keys.named_in_errors():
        live = engine.install_keys(
            keys.parameters,
            held,
            listed.relinearise,
            blocks,
            progress,
            keys.identity,
            bootstraps=listed.bootstraps,
        )
    return live, KeyFile(keys)


def needed_order(
    program: CompiledProgram, steps: Collection[int], pinned: Collection[int]
) -> tuple[tuple[int, ...], dict[str, int]]:
    """The steps that are not `pinned` in the order of their uses in a run, and the number of uses up to each node."""
    recorder = RecorderEvaluator(program.parameters, steps)
    events: dict[str, int] = {}

    def after(node: Node, value: Value) -> None:
        events[node.id] = len(recorder.events)

    record(program.graph, program.parameters, recorder=recorder, after=after)
    apart = {0, *pinned}
    before = np.cumsum([0, *(event.step not in apart for event in recorder.events)])
    order = tuple(event.step for event in recorder.events if event.step not in apart)
    return order, {name: int(before[count]) for name, count in events.items()}


class KeyPager:
    """Reads keys when they are needed, and evicts the key whose next use is furthest away (see `KeyPages`).

    Args:
        program: the program that is run.
        steps: the steps that there are keys for.
        pinned: those of the steps whose keys are held all the time.
        file: the keys of the others.
        capacity: the number of the others that may be held at once, at least 1.
    """

    def __init__(
        self,
        program: CompiledProgram,
        steps: Collection[int],
        pinned: Collection[int],
        file: KeyFile,
        capacity: int,
    ) -> None:
        order, self._ends = needed_order(program, steps, pinned)
        self.pages = KeyPool(order, capacity)
        self._pinned = frozenset(pinned)
        self._file = file
        self._there: set[int] = set()
        self._sets, self._calls = 1, 0

    def restart(self, after: str | None = None, sets: int = 1) -> None:
        """Begin a run, or continue one after a node.

        Args:
            sets: of ciphertexts that are computed together: each rotation is then taken so many times in a row.
        """
        self._sets, self._calls = sets, 0
        # A run that failed while it read a key has not installed it.
        self.pages.held = {step: place for step, place in self.pages.held.items() if step in self._there}
        self.pages.restart(0 if after is None else self._ends[after])

    def need(self, step: int, store: KeyStore) -> None:
        """See `KeyPages`."""
        if step in self._pinned:
            return
        self._calls += 1
        if (self._calls - 1) % self._sets:
            return  # the key is there since the first set
        missing, evicted = self.pages.need(step)
        if evicted is not None:
            self._there.discard(evicted)
            store.take_out(evicted)
        if missing:
            self._file.put(step, store)
            self._there.add(step)
