"""OpenFHE as an engine of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from olac.backends.base import Array, Ciphertext
from olac.backends.openfhe.context import make_context
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.key_bytes import KeyMaker
from olac.backends.openfhe.key_maps import KEY_MAPS, Held, put_all, take_out
from olac.backends.openfhe.keys import KeySet, install_keys, make_keys, new_secret_key
from olac.backends.openfhe.library import why_missing
from olac.backends.openfhe.wire import wire
from olac.backends.openfhe.words import is_tag_of, new_tag
from olac.backends.session import (
    OPENFHE_SECRETS,
    ClientSession,
    EncryptorSession,
    Engine,
    KeyPages,
    KeyProgress,
    Keys,
    KeyStore,
    Piece,
    PlaintextCache,
    Preparing,
    ServerSession,
    Session,
)
from olac.backends.speed import Operands, Sample
from olac.ckks.parameters import Parameters
from olac.ckks.words import Words
from olac.costs.table import CostTable
from olac.errors import BackendError, plain
from olac.ir.types import CipherState


class _Tagged(Session):
    """A session whose ciphertexts have one key tag."""

    def __init__(self, engine: Engine, parameters: Parameters, tag: str) -> None:
        self.engine = engine
        self._ready, self._tag = wire(parameters), tag

    def ciphertext(self, words: Words, level: int) -> Any:
        return self._ready.ciphertext(words, level, self._tag)

    def adopt(self, ciphertext: Any) -> Any:
        if ciphertext.GetKeyTag() == self._tag:
            return ciphertext
        copy = ciphertext.Clone()
        copy.SetKeyTag(self._tag)
        return copy


class OpenFHEClient(_Tagged, ClientSession):
    """Has `secret_key`, OpenFHE's object."""

    def __init__(self, engine: Engine, parameters: Parameters, secret_key: Any) -> None:
        super().__init__(engine, parameters, secret_key.GetKeyTag())
        self.secret_key = secret_key
        self._evaluator = OpenFHEEvaluator(self._ready.context, parameters)

    def secret_words(self) -> Words:
        return self._ready.secret_key_words(self.secret_key)

    def make_keys(
        self,
        steps: Mapping[int, int],
        relinearise: int | None,
        progress: KeyProgress | None = None,
        *,
        bootstraps: bool = True,
    ) -> KeySet:
        parameters = self._ready.parameters
        return make_keys(parameters, self.secret_key, tuple(steps), relinearise is not None, progress, bootstraps)

    def encrypt(self, slots: Array, level: int) -> Any:
        return self._evaluator.encrypt(self.secret_key, slots, level).payload

    def decrypt(self, a: Ciphertext[Any]) -> Array:
        return self._evaluator.decrypt(self.secret_key, a)


class OpenFHEEncryptor(_Tagged, EncryptorSession):
    """Has `public_key`, OpenFHE's object."""

    def __init__(self, engine: Engine, parameters: Parameters, words: Words, tag: str) -> None:
        super().__init__(engine, parameters, tag)
        self.public_key = self._ready.public_key(words, tag)
        self._evaluator = OpenFHEEvaluator(self._ready.context, parameters)

    def encrypt(self, slots: Array, level: int) -> Any:
        return self._evaluator.encrypt(self.public_key, slots, level).payload


class PagedTags(KeyStore):
    """Holds each rotation key under a tag of its own; only while `KEY_MAPS.changing()`."""

    def __init__(self, parameters: Parameters, pages: KeyPages) -> None:
        self._ready, self._pages = wire(parameters), pages
        self._tags: dict[int, str] = {}
        self._held = Held()

    def tag(self, step: int) -> str | None:
        """See `KeyTags`."""
        self._pages.need(step, self)
        return self._tags.get(step)

    def put(self, step: int, blocks: Iterable[Piece]) -> None:
        tag = new_tag()
        self._held.add(tag)
        with KeyMaker(self._ready, tag, False, 0) as maker:
            keys = maker.rotations([(self._ready.automorphism_index(step), blocks)])
        put_all([keys], tag)
        self._tags[step] = tag

    def take_out(self, step: int) -> None:
        tag = self._tags.pop(step)
        take_out(tag)
        self._held.discard(tag)


class OpenFHEServer(_Tagged, ServerSession):
    """Has `keys`, the evaluation keys that are never paged."""

    def __init__(
        self,
        engine: Engine,
        keys: KeySet,
        steps: Iterable[int],
        cache: PlaintextCache,
        pages: KeyPages | None,
    ) -> None:
        super().__init__(engine, keys.parameters, keys.tag)
        self.keys = keys
        self._bootstraps = None if keys.parameters.bootstrapping is None else self._ready.prepare_bootstraps()
        self._paged = None if pages is None else PagedTags(keys.parameters, pages)
        self._steps = tuple(steps)
        self.evaluator = self.uncached(cache)

    def uncached(self, cache: PlaintextCache | None = None) -> OpenFHEEvaluator:
        ready = self._ready
        return OpenFHEEvaluator(ready.context, ready.parameters, self._steps, cache, tags=self._paged)

    def running(self) -> AbstractContextManager[None]:
        return KEY_MAPS.using() if self._paged is None else KEY_MAPS.changing()

    def resting(self) -> AbstractContextManager[None]:
        return KEY_MAPS.resting()


class OpenFHE(Engine):
    title = "OpenFHE"

    def unavailable(self, preparing: Preparing | None = None) -> str:
        return why_missing()

    def samples(self, parameters: Parameters) -> list[Sample]:
        context = make_context(parameters)
        evaluator, key = OpenFHEEvaluator(context, parameters), context.KeyGen().secretKey
        own = Operands(evaluator, partial(evaluator.encrypt, key))
        products = own.in_turns(own.product)

        def hoist() -> Any:
            a = own.ciphertext()
            return evaluator._hoist(a.payload, a.state)

        return [
            Sample({"multiply_plain": 1}, own.product),
            Sample({"add": 1}, lambda: evaluator.add(own.ciphertext(), own.ciphertext())),
            Sample({"normalize": 1}, lambda: evaluator.rescale(next(products))),
            Sample({"hoist": 1}, hoist),
            Sample({"encode": 1}, own.encode),
        ]

    def measure_costs(
        self,
        threads: Sequence[int],
        rings: Sequence[int] | None = None,
        *,
        quick: bool = False,
        passes: int = 1,
        progress: Callable[[str], None] | None = None,
    ) -> CostTable:
        from olac.backends.measure import RINGS, measure_costs  # servers do without scipy's solvers
        from olac.backends.openfhe.measure import MEASURER

        chosen = RINGS if rings is None else rings
        return measure_costs(MEASURER, threads, chosen, quick=quick, passes=passes, progress=progress)

    def client(
        self, parameters: Parameters, identity: str, words: Words | None = None, secrets: str | None = None
    ) -> OpenFHEClient:
        if secrets not in (None, OPENFHE_SECRETS):
            raise BackendError(f"{self.title} has its own secret keys, not those by the name {plain(secrets)[:40]!r}")
        if words is None:
            return OpenFHEClient(self, parameters, new_secret_key(parameters, identity))
        return OpenFHEClient(self, parameters, wire(parameters).secret_key(words, new_tag(identity)))

    def encryptor(
        self, parameters: Parameters, identity: str, words: Words, secrets: str | None = None
    ) -> OpenFHEEncryptor:
        if secrets not in (None, OPENFHE_SECRETS):
            raise BackendError(f"{self.title} encrypts by itself, not by the name {plain(secrets)[:40]!r}")
        return OpenFHEEncryptor(self, parameters, words, new_tag(identity))

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
    ) -> OpenFHEServer:
        assert isinstance(keys, KeySet)
        return OpenFHEServer(self, keys, steps, cache, pages)

    def words(self, parameters: Parameters, ciphertext: Any, level: int) -> Words:
        return wire(parameters).ciphertext_words(ciphertext, level)

    def state(self, parameters: Parameters, ciphertext: Any) -> CipherState:
        level = parameters.depth - ciphertext.GetLevel()
        return CipherState(level, ciphertext.GetNoiseScaleDeg(), ciphertext.GetScalingFactor())

    def belongs(self, ciphertext: Any, identity: str) -> bool:
        return is_tag_of(ciphertext.GetKeyTag(), identity)


ENGINE = OpenFHE()
