"""Several sets of ciphertexts in one run: every primitive acts on all of them, and each weight is encoded once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from olac.backends.base import Ciphertext, Evaluator, Plaintext, R, Slots, T
from olac.ir.types import CipherState
from olac.kernels.base import Value

Payloads = tuple[Any, ...]
"""One payload of the other evaluator for each set."""


def together(values: Sequence[Value]) -> Value:
    """One value of a `SetsEvaluator` from those of the sets, which are all in the same state."""
    return tuple(
        Ciphertext(tuple(part.payload for part in parts), parts[0].state) for parts in zip(*values, strict=True)
    )


def apart(value: Value) -> list[Value]:
    """The inverse of `together`."""
    sets = zip(*(part.payload for part in value), strict=True)
    return [tuple(Ciphertext(p, part.state) for p, part in zip(payloads, value, strict=True)) for payloads in sets]


class SetsEvaluator(Evaluator[Payloads, Any]):
    """Another evaluator's primitives on several sets of ciphertexts at once.

    Args:
        inner: computes, with its own keys and plaintexts.
    """

    def __init__(self, inner: Evaluator[Any, Any]) -> None:
        super().__init__(inner.parameters, inner.rotation_steps)
        self._inner = inner

    def restart(self) -> None:
        """As of the other evaluator."""
        self._inner.restart()

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """As of the other evaluator."""
        return self._inner.each(function, items)

    def encode(self, values: Callable[[], Slots], level: int, scale: float) -> Plaintext[Any]:
        """Encode once, for all sets."""
        return self._inner.encode(values, level, scale)

    def encode_unit(self, level: int) -> Plaintext[Any]:
        """As of the other evaluator."""
        return self._inner.encode_unit(level)

    _encode = cast(Any, None)  # `encode` is the other evaluator's

    def _add(self, a: Payloads, b: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._add(x, y, state) for x, y in zip(a, b, strict=True))

    def _add_plain(self, a: Payloads, p: Any, state: CipherState) -> Payloads:
        return tuple(self._inner._add_plain(x, p, state) for x in a)

    def _add_scalar(self, a: Payloads, value: float, state: CipherState) -> Payloads:
        return tuple(self._inner._add_scalar(x, value, state) for x in a)

    def _multiply_plain(self, a: Payloads, p: Any, state: CipherState) -> Payloads:
        return tuple(self._inner._multiply_plain(x, p, state) for x in a)

    def _multiply_unit(self, a: Payloads, p: Any, state: CipherState) -> Payloads:
        return tuple(self._inner._multiply_unit(x, p, state) for x in a)

    def _multiply(self, a: Payloads, b: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._multiply(x, y, state) for x, y in zip(a, b, strict=True))

    def _multiply_no_relin(self, a: Payloads, b: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._multiply_no_relin(x, y, state) for x, y in zip(a, b, strict=True))

    def _relinearize(self, a: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._relinearize(x, state) for x in a)

    def _rescale(self, a: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._rescale(x, state) for x in a)

    def _level_reduce(self, a: Payloads, state: CipherState, level: int) -> Payloads:
        return tuple(self._inner._level_reduce(x, state, level) for x in a)

    def _bootstrap(self, a: Payloads, state: CipherState) -> Payloads:
        pairs = (self._inner._bootstrap_two(x, y, state) for x, y in zip(a[::2], a[1::2], strict=False))
        last = (self._inner._bootstrap(x, state) for x in a[len(a) // 2 * 2 :])
        return (*itertools.chain.from_iterable(pairs), *last)

    def _bootstrap_two(self, a: Payloads, b: Payloads, state: CipherState) -> tuple[Payloads, Payloads]:
        pairs = [self._inner._bootstrap_two(x, y, state) for x, y in zip(a, b, strict=True)]
        return tuple(x for x, _ in pairs), tuple(y for _, y in pairs)

    def _rotate(self, a: Payloads, step: int, state: CipherState) -> Payloads:
        return tuple(self._inner._rotate(x, step, state) for x in a)

    def _add_conjugate(self, a: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._add_conjugate(x, state) for x in a)

    def _hoist(self, a: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._hoist(x, state) for x in a)

    def _hoisted_rotate(self, a: Payloads, digits: Payloads, step: int, state: CipherState) -> Payloads:
        return tuple(self._inner._hoisted_rotate(x, d, step, state) for x, d in zip(a, digits, strict=True))

    def _extended_rotate(self, a: Payloads, digits: Payloads, step: int, state: CipherState) -> Payloads:
        return tuple(self._inner._extended_rotate(x, d, step, state) for x, d in zip(a, digits, strict=True))

    def _extended_add(self, a: Payloads, b: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._extended_add(x, y, state) for x, y in zip(a, b, strict=True))

    def _key_switch_down(self, a: Payloads, state: CipherState) -> Payloads:
        return tuple(self._inner._key_switch_down(x, state) for x in a)
