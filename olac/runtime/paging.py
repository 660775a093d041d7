"""Rotation keys that stay in their file until a run needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from olac.backends.openfhe.key_maps import put, take_out
from olac.backends.openfhe.keys import KeySet, install_keys
from olac.backends.openfhe.wire import Words, new_tag, wire
from olac.backends.recorder import RecorderEvaluator
from olac.bootstrapping import bootstrap_steps
from olac.envelope import Header
from olac.errors import ArtifactError
from olac.ir.graph import Node
from olac.kernels.base import Value
from olac.kernels.record import record
from olac.paging import Pages
from olac.program import CompiledProgram
from olac.runtime.messages import EvaluationKeys, named, one_key_bytes, special_key_bytes


class KeyFile:
    """Single keys of a frame, each the same as when the whole frame was checked.

    Args:
        header: of the frame.
        program: that the keys are for.
        places: of each step, how many keys lie before its own.
        digests: SHA-256 of each step's key.
    """

    def __init__(
        self, header: Header, program: CompiledProgram, places: dict[int, int], digests: dict[int, bytes]
    ) -> None:
        self._header = header
        self._program = program
        self._places = places
        self._digests = digests

    def key(self, step: int, tag: str) -> Any:
        """An EvalKeyMap with the key of a step, under a tag.

        Raises:
            ArtifactError: the file is gone, or the key is another than it was.
        """
        header, size = self._header, one_key_bytes(self._program)
        with header.source.open() as stream:
            stream.seek(header.payload_start + self._places[step] * size)
            data = stream.read(size)
        if hashlib.sha256(data).digest() != self._digests[step]:
            raise header.error(
                f"the key for rotation step {step} is another than when the run's keys were checked",
                "Leave the file as it is while a server uses it.",
            )
        ready = wire(self._program.parameters)
        words = np.frombuffer(data, "<u8").reshape(-1, self._program.parameters.ring_dimension)
        return ready.rotation_key(words, ready.automorphism_index(step), tag)


def pinned_steps(program: CompiledProgram) -> frozenset[int]:
    """Steps whose keys are always held: OpenFHE looks up those of bootstraps and of conjugation itself."""
    return bootstrap_steps(program.parameters) | {program.parameters.conjugation_step}


def install_pinned(
    keys: EvaluationKeys, pinned: Collection[int], progress: Callable[[int, int], None] | None = None
) -> tuple[KeySet, KeyFile]:
    """Keys of a frame, of which those for rotations by other steps than `pinned` stay where they are.

    Raises:
        ArtifactError: as `EvaluationKeys.install`.
    """
    header, program = keys.header, keys.program
    assert header is not None
    one, length = one_key_bytes(program), program.parameters.ring_dimension
    digests: dict[int, bytes] = {}
    with header.payload() as payload:

        def words() -> Iterator[Words]:
            def some(size: int) -> Words:
                return np.frombuffer(payload.read(size), "<u8").reshape(-1, length)

            if keys.relinearisation:
                yield some(one)
            for step in keys.steps:
                if step in pinned:
                    yield some(one)
                else:
                    digests[step] = hashlib.sha256(payload.read(one)).digest()
            for size in special_key_bytes(program):
                yield some(size)

        given = words()
        try:
            held = tuple(step for step in keys.steps if step in pinned)
            live = install_keys(program.parameters, held, keys.relinearisation, given, progress)
            for _ in given:
                raise AssertionError("more keys than were asked for")
        except ArtifactError as error:
            raise named(error, header) from error
        payload.finish()
    places = {step: place + int(keys.relinearisation) for place, step in enumerate(keys.steps)}
    return live, KeyFile(header, program, places, digests)


def needed_order(
    program: CompiledProgram, steps: Collection[int], pinned: Collection[int]
) -> tuple[tuple[int, ...], dict[str, int]]:
    """The steps beside `pinned` in the order in which a run takes them, and how many lie before each node's end."""
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
    """Reads keys before they are needed and lets go those that are needed last; only while `KEY_MAPS.changing()`.

    Args:
        program: whose runs need the keys.
        steps: that there are keys for.
        pinned: of these, the ones that are held anyway.
        file: of the others.
        capacity: how many of the others may be held at once, at least 1.
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
        self.pages = Pages(order, capacity)
        self._pinned = frozenset(pinned)
        self._file = file
        self._tags: dict[int, str] = {}

    def restart(self, behind: str | None = None) -> None:
        """Begin a run, or continue one behind a node."""
        # What a failed run left is not known to be whole.
        self.pages.held = {step: place for step, place in self.pages.held.items() if step in self._tags}
        self.pages.restart(0 if behind is None else self._ends[behind])

    def tag(self, step: int) -> str | None:
        """The tag that a step's key is held under now; None for that of the ciphertext."""
        if step in self._pinned:
            return None
        missing, gone = self.pages.need(step)
        if gone is not None:
            take_out(self._tags.pop(gone))
        if missing:
            tag = new_tag()
            put(self._file.key(step, tag), tag)
            self._tags[step] = tag
        return self._tags[step]
