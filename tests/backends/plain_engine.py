"""A second engine, as small as one can be: OpenFHE, as if it had neither hoisting nor lazy relinearisation.

It has no plaintext cache and no threads, its plaintexts know their scale, and its sessions are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from olac.backends.base import Array, Ciphertext, Evaluator, Slots
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.key_maps import KEY_MAPS
from olac.backends.openfhe.keys import KeySet, install_keys, make_keys, new_secret_key
from olac.backends.openfhe.session import PagedTags
from olac.backends.openfhe.wire import wire
from olac.backends.openfhe.words import is_tag_of, new_tag
from olac.backends.session import (
    ClientSession,
    Engine,
    KeyPages,
    KeyProgress,
    Keys,
    Piece,
    PlaintextCache,
    ServerSession,
)
from olac.ckks.parameters import Parameters
from olac.ckks.words import Words
from olac.ir.types import CipherState


class PlainEvaluator(OpenFHEEvaluator):
    """All hooks that have defaults are left at them."""

    _multiply_unit = Evaluator._multiply_unit
    _multiply_no_relin = Evaluator._multiply_no_relin
    _relinearize = Evaluator._relinearize
    _hoist = Evaluator._hoist
    _hoisted_rotate = Evaluator._hoisted_rotate
    _extended_rotate = Evaluator._extended_rotate
    _extended_add = Evaluator._extended_add
    _key_switch_down = Evaluator._key_switch_down

    def _encode(self, values: Callable[[], Slots], level: int, scale: float) -> Any:
        return super()._encode(values, level, scale), scale

    def _add_plain(self, a: Any, p: Any, state: CipherState) -> Any:
        return super()._add_plain(a, p[0], state)

    def _multiply_plain(self, a: Any, p: Any, state: CipherState) -> Any:
        plain, scale = p
        out = super()._multiply_plain(a, plain, state)
        if scale == 1.0:
            out.SetNoiseScaleDeg(a.GetNoiseScaleDeg())
            out.SetScalingFactor(a.GetScalingFactor())
        return out


class PlainClient(ClientSession):
    def __init__(self, engine: Engine, parameters: Parameters, key: Any) -> None:
        self.engine, self.parameters, self.key = engine, parameters, key
        self.evaluator = PlainEvaluator(wire(parameters).context, parameters)

    def ciphertext(self, words: Words, level: int) -> Any:
        return wire(self.parameters).ciphertext(words, level, self.key.GetKeyTag())

    def adopt(self, ciphertext: Any) -> Any:
        return renamed(ciphertext, self.key.GetKeyTag())

    def secret_words(self) -> Words:
        return wire(self.parameters).secret_key_words(self.key)

    def make_keys(
        self,
        steps: Mapping[int, int],
        relinearise: int | None,
        progress: KeyProgress | None = None,
        *,
        bootstraps: bool = True,
    ) -> KeySet:
        return make_keys(self.parameters, self.key, tuple(steps), relinearise is not None, progress, bootstraps)

    def encrypt(self, slots: Array, level: int) -> Any:
        return self.evaluator.encrypt(self.key, slots, level).payload

    def decrypt(self, a: Ciphertext[Any]) -> Array:
        return self.evaluator.decrypt(self.key, a)


class PlainServer(ServerSession):
    def __init__(self, engine: Engine, keys: KeySet, steps: Iterable[int], pages: KeyPages | None) -> None:
        self.engine, self.keys, parameters = engine, keys, keys.parameters
        self.prepared = None if parameters.bootstrapping is None else wire(parameters).prepare_bootstraps()
        tags = None if pages is None else PagedTags(parameters, pages)
        self.evaluator = PlainEvaluator(wire(parameters).context, parameters, steps, tags=tags)

    def ciphertext(self, words: Words, level: int) -> Any:
        return wire(self.keys.parameters).ciphertext(words, level, self.keys.tag)

    def adopt(self, ciphertext: Any) -> Any:
        return renamed(ciphertext, self.keys.tag)

    def uncached(self) -> Evaluator[Any, Any]:
        return self.evaluator

    def running(self) -> AbstractContextManager[None]:
        return KEY_MAPS.changing()

    def resting(self) -> AbstractContextManager[None]:
        return KEY_MAPS.resting()


class PlainEngine(Engine):
    title = "the plain engine"

    def client(
        self, parameters: Parameters, identity: str, words: Words | None = None, secrets: str | None = None
    ) -> PlainClient:
        if words is None:
            return PlainClient(self, parameters, new_secret_key(parameters, identity))
        return PlainClient(self, parameters, wire(parameters).secret_key(words, new_tag(identity)))

    def install_keys(
        self,
        parameters: Parameters,
        steps: Mapping[int, int],
        relinearise: int | None,
        blocks: Callable[[int], Iterator[Piece]],
        progress: KeyProgress | None = None,
        identity: str | None = None,
        *,
        bootstraps: bool = True,
    ) -> KeySet:
        return install_keys(parameters, tuple(steps), relinearise is not None, blocks, progress, identity, bootstraps)

    def server(
        self,
        parameters: Parameters,
        keys: Keys,
        steps: Mapping[int, int],
        cache: PlaintextCache,
        pages: KeyPages | None = None,
    ) -> PlainServer:
        assert isinstance(keys, KeySet)
        return PlainServer(self, keys, steps, pages)

    def words(self, parameters: Parameters, ciphertext: Any, level: int) -> Words:
        return wire(parameters).ciphertext_words(ciphertext, level)

    def state(self, parameters: Parameters, ciphertext: Any) -> CipherState:
        level = parameters.depth - ciphertext.GetLevel()
        return CipherState(level, ciphertext.GetNoiseScaleDeg(), ciphertext.GetScalingFactor())

    def belongs(self, ciphertext: Any, identity: str) -> bool:
        return is_tag_of(ciphertext.GetKeyTag(), identity)


def renamed(ciphertext: Any, tag: str) -> Any:
    copy = ciphertext.Clone()
    copy.SetKeyTag(tag)
    return copy


ENGINE = PlainEngine()
