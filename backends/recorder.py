"""Runs a program on no data and keeps the stream of primitives: for golden files, rotation keys and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from olac.backends.base import Ciphertext, Evaluator, Plaintext, R, Slots, T
from olac.ckks.parameters import Parameters
from olac.ir.types import CipherState


@dataclass(frozen=True)
class Event:
    """One primitive: its name, the level of its operand, and the step of a rotation."""

    primitive: str
    level: int
    step: int = 0

    def __str__(self) -> str:
        return f"{self.primitive} level {self.level}" + (f" step {self.step}" if self.step else "")


class RecorderEvaluator(Evaluator[None, None]):
    """Payloads are None; `events` grows with every primitive, in the order in which a real run takes them."""

    def __init__(self, parameters: Parameters, rotations: Iterable[int] | None = None) -> None:
        super().__init__(parameters, rotations)
        self.events: list[Event] = []
        self._kinds: dict[tuple[str, int, int], Event] = {}
        """Runs of large networks have millions of events, of a few kinds."""

    def fresh(self, level: int) -> Ciphertext[None]:
        """A ciphertext as the client sends it."""
        return Ciphertext(None, CipherState(level, 1, self.parameters.scale(level)))

    @property
    def rotations(self) -> tuple[int, ...]:
        """All steps that were used, sorted; parts in place of composed steps, and conjugation as the largest step."""
        return tuple(sorted({event.step for event in self.events if event.step}))

    def counts(self) -> Counter[tuple[str, int]]:
        """How often each primitive ran at each level."""
        return Counter((event.primitive, event.level) for event in self.events)

    def uses(self) -> Counter[tuple[int, int]]:
        """How often each step was used at each level."""
        return Counter((event.step, event.level) for event in self.events if event.step)

    def _record(self, primitive: str, level: int, step: int = 0) -> None:
        what = (primitive, level, step)
        event = self._kinds.get(what)
        if event is None:
            event = self._kinds[what] = Event(primitive, level, step)
        self.events.append(event)

    def _encode(self, values: Callable[[], Slots], level: int, scale: float) -> None:
        self._record("encode", level)

    def _add(self, a: None, b: None, state: CipherState) -> None:
        self._record("add", state.level)

    def _add_plain(self, a: None, p: None, state: CipherState) -> None:
        self._record("add_plain", state.level)

    def _add_scalar(self, a: None, value: float, state: CipherState) -> None:
        self._record("add_scalar", state.level)

    def _multiply_plain(self, a: None, p: None, state: CipherState) -> None:
        self._record("multiply_plain", state.level)

    def _multiply(self, a: None, b: None, state: CipherState) -> None:
        self._record("multiply", state.level)

    def _multiply_no_relin(self, a: None, b: None, state: CipherState) -> None:
        self._record("multiply_no_relin", state.level)

    def _relinearize(self, a: None, state: CipherState) -> None:
        self._record("relinearize", state.level)

    def _rescale(self, a: None, state: CipherState) -> None:
        self._record("normalize", state.level)

    def _level_reduce(self, a: None, state: CipherState, level: int) -> None:
        self._record("drop", state.level)

    def _bootstrap(self, a: None, state: CipherState) -> None:
        self._record("bootstrap", state.level)

    def _rotate(self, a: None, step: int, state: CipherState) -> None:
        self._record("rotate", state.level, step)

    def _hoist(self, a: None, state: CipherState) -> None:
        self._record("hoist", state.level)

    def _hoisted_rotate(self, a: None, digits: None, step: int, state: CipherState) -> None:
        self._record("hoisted_rotate", state.level, step)

    def _extended_rotate(self, a: None, digits: None, step: int, state: CipherState) -> None:
        self._record("ext_rotate", state.level, step)

    def _extended_add(self, a: None, b: None, state: CipherState) -> None:
        self._record("ext_add", state.level)

    def _key_switch_down(self, a: None, state: CipherState) -> None:
        self._record("key_switch_down", state.level)


class Encoder(RecorderEvaluator):
    """Encodes what a run of another evaluator encodes, in the same order, and computes nothing else."""

    def __init__(self, evaluator: Evaluator[Any, Any]) -> None:
        # With the same keys, because the places of plaintexts count the parts of composed steps.
        super().__init__(evaluator.parameters, evaluator.rotation_steps)
        self._evaluator = evaluator

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """As the run does."""
        return self._evaluator.each(function, items)

    def encode(self, values: Callable[[], Slots], level: int, scale: float) -> Plaintext[None]:
        """Encode for the run."""
        self._evaluator.encode(values, level, scale)
        return Plaintext(None, level, scale)

    def encode_unit(self, level: int) -> Plaintext[None]:
        """Encode for the run."""
        self._evaluator.encode_unit(level)
        return Plaintext(None, level, 1.0)
