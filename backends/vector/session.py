"""The vector engine as an engine of the runtime.

Secret keys, encryption and decryption are OpenFHE's where it loads, and otherwise the engine's own
(`olac.backends.vector.secret_choice`). Evaluation keys are made from the words of the secret key.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import numpy as np

from olac.backends.base import Array, Ciphertext
from olac.backends.session import (
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
from olac.backends.vector.available import prepare, why_unavailable
from olac.backends.vector.bootstrap.circuit import Bootstrap
from olac.backends.vector.buffers import Buffers, buffers_for
from olac.backends.vector.ciphertext import Residues
from olac.backends.vector.evaluator import VectorEvaluator
from olac.backends.vector.key_making import KeyMaker, NewKey
from olac.backends.vector.keys import KeyForm, check_security, key_forms, read_limbs
from olac.backends.vector.keyset import Place, VectorKeys, packed_key, places
from olac.backends.vector.packed import PackedKey, packed_bytes
from olac.backends.vector.public import OwnPublic
from olac.backends.vector.ring import Ring, ring
from olac.backends.vector.secret import SecretKey, secret_coefficients
from olac.backends.vector.secret_choice import OpenFHEPublic, chosen_public, chosen_secret
from olac.backends.vector.team import Team
from olac.ckks.parameters import Parameters
from olac.ckks.words import Words
from olac.costs.table import CostTable
from olac.errors import MissingKeyError
from olac.ir.types import CipherState
from olac.system.internal import callers
from olac.system.threads import helpers, in_threads, usable_threads

KEY_MAKERS = 3
"""Threads that make keys or read them."""

SUMMED = 8
"""Products in the sum that is measured."""
_PROCESS = secrets.token_bytes(32)


def _mark(identity: str) -> str:
    """What the ciphertexts of a key pair carry in this process."""
    return hmac.digest(_PROCESS, identity.encode(), "sha256").hex()[:32]


class _Marked(Session):
    """A session whose ciphertexts have one mark."""

    def __init__(self, engine: Engine, parameters: Parameters, mark: str) -> None:
        self.engine = engine
        self._ring, self._own, self._buffers = ring(parameters), mark, buffers_for(parameters)

    def ciphertext(self, words: Words, level: int) -> Residues:
        return residues(self._ring, self._buffers, words, level, self._own)

    def adopt(self, ciphertext: Residues) -> Residues:
        c = ciphertext
        return Residues(c.buffer, c.parts, c.limbs, c.specials, c.room, c.degree, c.scale, self._own)


def residues(own: Ring, buffers: Buffers, words: Words, level: int, mark: str) -> Residues:
    """A ciphertext of words of shape (2, level + 1, N), or of as many in the same order."""
    limbs, n = level + 1, own.N
    buffer = buffers.take(2 * limbs * n)
    into = buffer.data[: 2 * limbs * n].reshape(2, limbs, n)
    for part, given in enumerate(words.reshape(2, limbs, n)):
        into[part] = own.from_words(given, range(limbs))
    return Residues(buffer, 2, limbs, 0, limbs, 1, own.parameters.scale(level), mark)


def uniform_residues(own: Ring, buffers: Buffers, level: int, random: np.random.Generator) -> Residues:
    """Uniform residues, to be measured: to primitives one ciphertext is like another."""
    primes = own.parameters.primes[: level + 1]
    words = np.stack([[random.integers(0, p, own.N, np.uint64) for p in primes] for _ in range(2)])
    return residues(own, buffers, words, level, "")


class VectorClient(_Marked, ClientSession):
    """Has `secret`, the secret key."""

    def __init__(self, engine: Engine, parameters: Parameters, identity: str, secret: SecretKey) -> None:
        super().__init__(engine, parameters, _mark(identity))
        self._parameters = parameters
        self.secret = secret

    def secret_words(self) -> Words:
        return self.secret.words()

    def make_keys(
        self,
        steps: Mapping[int, int],
        relinearise: int | None,
        progress: KeyProgress | None = None,
        *,
        bootstraps: bool = True,
    ) -> VectorKeys:
        check_security(self._parameters)
        made = VectorKeys(self._parameters, self._own)
        total = len(key_forms(self._parameters, steps, relinearise, bootstraps))

        def packed(new: tuple[Place, NewKey]) -> tuple[Place, KeyForm, PackedKey]:
            place, key = new
            return place, key.form, packed_key(self._ring, key.form, key.limbs, key.seed)

        found = in_threads(packed, self._new_keys(steps, relinearise, bootstraps), helpers(KEY_MAKERS))
        for done, one in enumerate(found, 1):
            made.add(*one)
            if progress is not None:
                with callers():
                    progress(done, total)
        return made

    def _new_keys(
        self, steps: Mapping[int, int], relinearise: int | None, bootstraps: bool
    ) -> Iterator[tuple[Place, NewKey]]:
        """Each key by its place in `VectorKeys`; one has to be used up before its memory is free for others."""
        parameters, model = self._parameters, ENGINE.model.bootstraps(self._parameters)
        maker = KeyMaker(self._ring, parameters, secret_coefficients(self._ring, self.secret_words()))
        encapsulation = maker.encapsulation(model.from_sparse_steps, model.raised_level)
        forms = key_forms(parameters, steps, relinearise, bootstraps)
        for place, form in zip(places(parameters, steps, relinearise, bootstraps), forms, strict=True):
            if isinstance(place, int):
                yield place, maker.rotation(place, form.limbs - 1)
            elif place == "relinearise":
                yield place, maker.relinearisation(form.limbs - 1)
            else:
                yield place, next(encapsulation)

    def encrypt(self, slots: Array, level: int) -> Residues:
        return self.ciphertext(self.secret.encrypt(slots, level), level)

    def decrypt(self, a: Ciphertext[Any]) -> Array:
        return self.secret.decrypt(ENGINE.words(self._parameters, a.payload, a.state.level), a.state)


class VectorEncryptor(_Marked, EncryptorSession):
    """Has `public`, the public key."""

    def __init__(
        self, engine: Engine, parameters: Parameters, identity: str, public: OpenFHEPublic | OwnPublic
    ) -> None:
        super().__init__(engine, parameters, _mark(identity))
        self.public = public

    def encrypt(self, slots: Array, level: int) -> Residues:
        return self.ciphertext(self.public.encrypt(slots, level), level)


class _Pages(KeyStore):
    """Rotation keys that are read when they are needed."""

    def __init__(self, parameters: Parameters, keys: VectorKeys, steps: Mapping[int, int], pages: KeyPages) -> None:
        self._ring, self._keys, self._pages = ring(parameters), keys, pages
        self._forms = dict(zip(steps, key_forms(parameters, steps, None), strict=False))
        self._held: dict[int, PackedKey] = {}

    def rotation(self, step: int) -> PackedKey:
        """The key of a step, after it is there."""
        self._pages.need(step, self)
        return self._held[step] if step in self._held else self._keys.rotation(step)

    def relinearisation(self) -> PackedKey:
        """The relinearisation key, which is never paged."""
        return self._keys.relinearisation()

    def bootstraps(self, team: Team) -> Bootstrap:
        """Bootstraps, whose keys are never paged."""
        return self._keys.bootstraps(team)

    def put(self, step: int, blocks: Iterable[Piece]) -> None:
        form = self._forms[step]
        self._held[step] = packed_key(self._ring, form, read_limbs(form, blocks))

    def take_out(self, step: int) -> None:
        if step not in self._held:
            raise MissingKeyError(f"there is no key for rotation step {step}")
        del self._held[step]


class VectorServer(_Marked, ServerSession):
    """Has `keys`, the evaluation keys that are never paged."""

    def __init__(
        self,
        engine: Engine,
        keys: VectorKeys,
        steps: Mapping[int, int],
        cache: PlaintextCache,
        pages: KeyPages | None,
        mark: str,
    ) -> None:
        super().__init__(engine, keys.parameters, mark)
        self.keys = keys
        self._parameters, self._steps = keys.parameters, tuple(steps)
        self._found = keys if pages is None else _Pages(keys.parameters, keys, steps, pages)
        self._team = Team(usable_threads())
        self.evaluator = self.uncached(cache)
        if self._parameters.bootstrapping is not None:
            keys.bootstraps(self._team)

    def uncached(self, cache: PlaintextCache | None = None) -> VectorEvaluator:
        return VectorEvaluator(self._parameters, self._found, self._steps, cache, self._team, self._own)

    def running(self) -> AbstractContextManager[None]:
        return nullcontext()

    def resting(self) -> AbstractContextManager[None]:
        return nullcontext()


class Vector(Engine):
    title = "the vector engine"
    key_files = "vector"

    def unavailable(self, preparing: Preparing | None = None) -> str:
        return why_unavailable(preparing)

    def samples(self, parameters: Parameters) -> list[Sample]:
        prepare()
        made, keys, random = ring(parameters), VectorKeys(parameters), np.random.default_rng(0)
        evaluator = VectorEvaluator(parameters, keys, team=Team(usable_threads()))

        def fresh(_: Array, level: int) -> Ciphertext[Any]:
            state = CipherState(level, 1, parameters.scale(level))
            return Ciphertext(uniform_residues(made, evaluator.buffers, level, random), state)

        own = Operands(evaluator, fresh)

        def settled(a: Ciphertext[Any]) -> Ciphertext[Any]:
            return Ciphertext(evaluator.settled(a.payload), a.state)

        products = own.in_turns(lambda: settled(own.product()))

        def lift() -> object:
            digits = evaluator.decompose(own.ciphertext().payload, 1)
            evaluator.lift(digits, made.specials)
            return digits

        # Products are computed when their sum is needed.
        return [
            Sample(
                {"multiply_plain": 8, "add": 7},
                lambda: settled(reduce(evaluator.add, [own.product() for _ in range(8)])),
            ),
            Sample({"normalize": 1}, lambda: evaluator.rescale(next(products))),
            Sample({"hoist": 1}, lift),
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
        from olac.backends.vector.measure import MEASURER

        chosen = RINGS if rings is None else rings
        return measure_costs(MEASURER, threads, chosen, quick=quick, passes=passes, progress=progress)

    def client(
        self, parameters: Parameters, identity: str, words: Words | None = None, secrets: str | None = None
    ) -> VectorClient:
        prepare()
        return VectorClient(self, parameters, identity, chosen_secret(parameters, identity, words, secrets))

    def encryptor(
        self, parameters: Parameters, identity: str, words: Words, secrets: str | None = None
    ) -> VectorEncryptor:
        prepare()
        return VectorEncryptor(self, parameters, identity, chosen_public(parameters, identity, words, secrets))

    def key_sizes(
        self, parameters: Parameters, steps: Mapping[int, int], relinearise: int | None, *, bootstraps: bool = True
    ) -> list[int]:
        return [form.bytes for form in key_forms(parameters, steps, relinearise, bootstraps)]

    def held_key_sizes(
        self, parameters: Parameters, steps: Mapping[int, int], relinearise: int | None, *, bootstraps: bool = True
    ) -> list[int]:
        forms = key_forms(parameters, steps, relinearise, bootstraps)
        return [packed_bytes(form.primes, form.digits, form.length, parameters) for form in forms]

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
    ) -> VectorKeys:
        prepare()
        own, made = ring(parameters), VectorKeys(parameters, "" if identity is None else _mark(identity))
        forms = key_forms(parameters, steps, relinearise, bootstraps)

        def read(number: int) -> PackedKey:
            return packed_key(own, forms[number], read_limbs(forms[number], blocks(number)))

        found = in_threads(read, range(len(forms)), helpers(KEY_MAKERS))
        named = places(parameters, steps, relinearise, bootstraps)
        for number, (place, form, key) in enumerate(zip(named, forms, found, strict=True)):
            made.add(place, form, key)
            if progress is not None:
                with callers():
                    progress(number + 1, len(forms))
        return made

    def server(
        self,
        parameters: Parameters,
        keys: Keys,
        steps: Mapping[int, int],
        cache: PlaintextCache,
        pages: KeyPages | None = None,
    ) -> VectorServer:
        assert isinstance(keys, VectorKeys)
        prepare()
        return VectorServer(self, keys, steps, cache, pages, keys.mark)

    def words(self, parameters: Parameters, ciphertext: Residues, level: int) -> Words:
        own, c = ring(parameters), ciphertext
        out = np.empty((2, level + 1, own.N), dtype=np.uint64)
        for part in range(2):
            rows = c.data[part * c.room * own.N :][: (level + 1) * own.N].reshape(level + 1, own.N)
            out[part] = own.to_words(rows, range(level + 1))
        return out

    def state(self, parameters: Parameters, ciphertext: Residues) -> CipherState:
        return CipherState(ciphertext.limbs - 1, ciphertext.degree, ciphertext.scale)

    def belongs(self, ciphertext: Residues, identity: str) -> bool:
        return ciphertext.mark == _mark(identity)


ENGINE = Vector()
