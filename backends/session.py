"""The interface between the runtime and an engine: all that clients and servers ask of a library of CKKS.

An engine NAME is a folder `olac/backends/NAME` whose module `session` holds an `Engine` called ENGINE. Coefficient
words (`olac.ckks.words`) and the bytes of evaluation keys travel between processes; all other objects that an engine
returns are its own.

If the library refuses an operation, an engine raises RuntimeError, which the runtime translates. It raises
ArtifactError for words or bytes that are no residues, and ForkError in a process that was forked after the engine was
used.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from olac.backends.base import Array, Ciphertext, Evaluator
from olac.backends.cost import Slowdown as Slowdown
from olac.backends.speed import Measurement, Sample, measure, short_chain, slowdown
from olac.ckks.bootstrapping import SPECIAL_KEYS
from olac.ckks.engines import ENGINES, EngineModel, engine_model
from olac.ckks.parameters import Parameters
from olac.ckks.sizes import rotation_key_bytes
from olac.ckks.words import WORD_BYTES, Words
from olac.costs.table import CostTable
from olac.errors import BackendError, InfeasibleError
from olac.ir.types import CipherState
from olac.system.logs import warn

log = logging.getLogger(__name__)

DEFAULT = "openfhe"
OPENFHE_SECRETS, OWN_SECRETS = "openfhe", "olac"
"""Whose secret keys a client has: who makes them, encrypts and decrypts."""
KeyProgress = Callable[[int, int], None]
"""Called as progress(keys so far, keys in all)."""
Preparing = Callable[[str, int, int], None]
"""Called as preparing(what is being done, steps so far, steps in all) while an engine is made ready for a machine."""
Place = tuple[int, ...]
Piece = bytes | bytearray | memoryview | npt.NDArray[np.uint64] | npt.NDArray[np.uint8]
"""A part of the bytes of an evaluation key, contiguous, valid until the next part is asked for."""


class Keys(Protocol):
    """Evaluation keys that the engine holds until this object, and every other of the same key pair, is deleted."""

    def blocks(self) -> Iterator[Piece]:
        """The bytes of all keys, piece by piece; each key has as many as `Engine.key_sizes` says.

        First the relinearisation key, if there is one, then the rotation keys in the order of the steps that they were
        made for, then the keys of bootstraps. Only for keys that were made in this process.
        """


class KeyStore(Protocol):
    """Single rotation keys that are added and evicted during a run."""

    def put(self, step: int, blocks: Iterable[Piece]) -> None:
        """Add the key of a step; raises `ArtifactError` for bytes that are no residues."""

    def take_out(self, step: int) -> None:
        """Evict the key of a step."""


class KeyPages(Protocol):
    """Decides which keys are in a `KeyStore`."""

    def need(self, step: int, store: KeyStore) -> None:
        """Called before every rotation, in the order of the run; makes sure that the store has the key of the step."""


class PlaintextCache:
    """Plaintexts of a program by their places in a run, kept from one run to the next.

    A program encodes the same plaintexts in every run, so their places identify them. Those that do not fit in `budget`
    bytes are encoded anew in every run.

    Attributes:
        budget, bytes: the bytes that may be kept, and those that are.
        seconds: wall time of all plaintexts made so far. Threads that make plaintexts at the same time count a share.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.bytes = 0
        self.seconds = 0.0
        self._kept: dict[Place, Any] = {}
        self._lock = threading.Lock()

    def get(self, place: Place, size: int, make: Callable[[], Any], share: float = 1.0) -> Any:
        """The plaintext of a place, of `size` bytes, made if it isn't kept; `share` of the time that takes counts."""
        if place in self._kept:
            return self._kept[place]
        start = time.perf_counter()
        made = make()
        with self._lock:
            self.seconds += share * (time.perf_counter() - start)
            if self.bytes + size <= self.budget:
                self._kept[place] = made
                self.bytes += size
        return made

    def clear(self) -> None:
        """Delete all plaintexts."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0


class Session(ABC):
    """The client's or the server's side of a key pair in this process.

    Attributes:
        engine: the engine that made it.
    """

    engine: Engine

    @abstractmethod
    def ciphertext(self, words: Words, level: int) -> Any:
        """A ciphertext of noise degree 1 and its level's canonical scale from words of shape (2, level + 1, N)."""

    @abstractmethod
    def adopt(self, ciphertext: Any) -> Any:
        """A ciphertext that another session of the pair made in this process: the same object if it can be used."""


class ClientSession(Session):
    """The side that holds the secret key."""

    @abstractmethod
    def secret_words(self) -> Words:
        """The words of the secret key, shape (limbs, N)."""

    @abstractmethod
    def make_keys(
        self,
        steps: Mapping[int, int],
        relinearise: int | None,
        progress: KeyProgress | None = None,
        *,
        bootstraps: bool = True,
    ) -> Keys:
        """Evaluation keys for rotation steps and, if the parameters have bootstraps, for these.

        Args:
            steps, relinearise, bootstraps: as in `Engine.key_sizes`.
        """

    @abstractmethod
    def encrypt(self, slots: Array, level: int) -> Any:
        """A fresh ciphertext; raises `VerificationError` for slots that are too large for one."""

    @abstractmethod
    def decrypt(self, a: Ciphertext[Any]) -> Array:
        """The slots, shape (slots,); raises RuntimeError if they are noise."""


class EncryptorSession(Session):
    """The side that holds a public key: it encrypts and can't decrypt."""

    @abstractmethod
    def encrypt(self, slots: Array, level: int) -> Any:
        """As `ClientSession.encrypt`, with `PUBLIC_NOISE` times the noise of a rescale."""


class ServerSession(Session):
    """The side that computes. All that it holds is freed after this object, as soon as no run can be using it.

    Attributes:
        evaluator: keeps plaintexts in the cache; each run begins with its `restart`.
    """

    evaluator: Evaluator[Any, Any]

    @abstractmethod
    def uncached(self) -> Evaluator[Any, Any]:
        """An evaluator that keeps no plaintexts, for a run that begins in the middle."""

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """While a run uses the keys; with `KeyPages`, no other run does at the same time."""

    @abstractmethod
    def resting(self) -> AbstractContextManager[None]:
        """Between two nodes of a run that is `running`, while it uses no keys and other runs may use theirs."""


class Engine(ABC):
    """A library of CKKS. There is one object for each library, and it holds no data.

    Attributes:
        title: the name of the library in messages.
        key_files: the name of the engine whose key files it writes and reads: its own, or another's if both have the
            same keys. `olac.ckks.engines` has what planners know of that engine.
    """

    title: ClassVar[str]
    key_files: ClassVar[str] = DEFAULT

    def unavailable(self, preparing: Preparing | None = None) -> str:
        """Why the engine can't be used on this machine, in a clause; empty if it can.

        The first call on a machine may take a minute, and the first in a process a second.

        Args:
            preparing: told what is being done meanwhile; without it, a warning says so if it takes long.
        """
        return ""

    @property
    def model(self) -> EngineModel:
        """What planners know of it."""
        return engine_model(self.key_files)

    def check_takes(self, parameters: Parameters) -> None:
        """Raise `InfeasibleError` if the engine can't run programs with these parameters."""
        why = self.model.refuses(parameters)
        if why is not None:
            raise InfeasibleError(
                f"{self.title} does not take the program: {why} ({parameters.describe()}). Run it on another engine."
            )

    def instead(self, parameters: Parameters) -> str:
        """What a server can do where its keys are for this engine, and the engine can't be used; a sentence."""
        usual = find_engine(DEFAULT)
        if self is usual or not usual.model.takes(parameters):
            return f"Use a machine where {self.title} can be used."
        return f"Make keys for {usual.title}: Client(program, engine={DEFAULT!r}).generate_keys()."

    # The speed of this machine ---------------------------------------------------------------------------------------

    def samples(self, parameters: Parameters) -> Sequence[Sample]:
        """What is measured of it to tell how fast a machine is; raises `BackendError` if it can't be measured."""
        raise BackendError(f"{self.title} can't be measured")

    def slowdown(self, parameters: Parameters, costs: CostTable, threads: int) -> Slowdown:
        """Seconds on this machine now over those of a table, for programs with these parameters.

        A short measurement, made once in a process for each ring, scale and technique; it takes up to a few seconds.

        Args:
            costs: prices of this engine.
            threads: that the engine uses in this process.

        Raises:
            BackendError: it can't be measured.
        """
        chain = short_chain(parameters)
        known = (self.title, chain, threads)
        if known not in _MEASURED:
            _MEASURED[known] = measure(self.samples(chain))
        return slowdown(_MEASURED[known], chain, costs, threads)

    def measure_costs(
        self,
        threads: Sequence[int],
        rings: Sequence[int] | None = None,
        *,
        quick: bool = False,
        passes: int = 1,
        progress: Callable[[str], None] | None = None,
    ) -> CostTable:
        """Measure all primitives on this machine, as `olac calibrate-costs` does.

        Args:
            threads: numbers of threads to measure.
            rings: log2 of the rings to measure; None for all that the shipped table has.
            quick: few settings and calls, for a rough table.
            passes: how often everything is measured; the fastest counts.
            progress: called with a line of text after each setting.

        Raises:
            ValueError: no threads or passes, or a ring that is never measured.
            BackendError: a measurement failed.
        """
        raise BackendError(f"{self.title} has no table of costs of its own")

    # Sessions --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def client(
        self, parameters: Parameters, identity: str, words: Words | None = None, secrets: str | None = None
    ) -> ClientSession:
        """A session with a secret key: a new one, or that of words of shape (limbs, N).

        Args:
            identity: of the key pair, for `belongs`.
            secrets: `OPENFHE_SECRETS` or `OWN_SECRETS`; None for what the engine takes on this machine.

        Raises:
            BackendError: the engine does not have such secret keys, or can't have them on this machine.
        """

    def encryptor(
        self, parameters: Parameters, identity: str, words: Words, secrets: str | None = None
    ) -> EncryptorSession:
        """A session with a public key, from the words of shape (2, limbs, N) of an encryption of zero.

        Args:
            identity: of the key pair.
            secrets: whose code encrypts, as in `client`.

        Raises:
            ArtifactError: words that are no residues.
            BackendError: the engine has no encryption with public keys, or not by that code on this machine.
        """
        raise BackendError(f"{self.title} does not encrypt with public keys")

    def key_sizes(
        self, parameters: Parameters, steps: Mapping[int, int], relinearise: int | None, *, bootstraps: bool = True
    ) -> list[int]:
        """Bytes of each key in a file, in the order of `Keys.blocks`. The default has the sizes of OpenFHE's keys.

        Args:
            steps: the rotation steps that there are keys for, each with the highest level at which the program's
                kernels take it; 0 for those that only bootstraps take.
            relinearise: the highest level at which the kernels multiply ciphertexts; 0 if only bootstraps do, None if
                there is no relinearisation key.
            bootstraps: whether the keys that only bootstraps take are there, if the parameters have bootstraps.
        """
        length, special = parameters.ring_dimension, len(parameters.special_primes)
        one = rotation_key_bytes(parameters.log_ring, parameters.limbs, parameters.digits, special)
        sizes = [one] * (len(steps) + (relinearise is not None))
        if bootstraps and parameters.bootstrapping is not None:
            short = 2 * len(parameters.encapsulation_primes) * length * WORD_BYTES
            sizes += [short, *[one] * (SPECIAL_KEYS - 1)]
        return sizes

    def held_key_sizes(
        self, parameters: Parameters, steps: Mapping[int, int], relinearise: int | None, *, bootstraps: bool = True
    ) -> list[int]:
        """Bytes of each key in memory while the engine holds it; the default: as many as in a file."""
        return self.key_sizes(parameters, steps, relinearise, bootstraps=bootstraps)

    @abstractmethod
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
    ) -> Keys:
        """Keys from bytes that came from outside.

        Args:
            steps, relinearise, bootstraps: as in `key_sizes`.
            blocks: the bytes of a key by its place in the order of `Keys.blocks`, in pieces of N words, the last one
                maybe shorter. Several threads may call it, once for each key, in any order. A key must not be used
                before the iteration over its bytes has ended.

        Raises:
            ArtifactError: bytes that are no residues; whatever `blocks` raises.
        """

    @abstractmethod
    def server(
        self,
        parameters: Parameters,
        keys: Keys,
        steps: Mapping[int, int],
        cache: PlaintextCache,
        pages: KeyPages | None = None,
    ) -> ServerSession:
        """A session that is ready for runs, with all that bootstraps need.

        Args:
            keys: of this engine.
            steps: as in `key_sizes`, including those of `pages`.
            cache: where the evaluator keeps plaintexts.
            pages: adds the keys for rotations that `keys` lacks.
        """

    @abstractmethod
    def words(self, parameters: Parameters, ciphertext: Any, level: int) -> Words:
        """The words, shape (2, level + 1, N), of a ciphertext of noise degree 1."""

    @abstractmethod
    def state(self, parameters: Parameters, ciphertext: Any) -> CipherState:
        """Level, noise degree and scale as the library has them."""

    @abstractmethod
    def belongs(self, ciphertext: Any, identity: str) -> bool:
        """Whether a session of a key pair made a ciphertext, in this process."""


def check_engines(preparing: Preparing | None = None) -> None:
    """Raise `BackendError` if no engine can be used on this machine."""
    reasons = []
    for name in ENGINES:
        reason = find_engine(name).unavailable(preparing)
        if not reason:
            return
        reasons.append(f"{find_engine(name).title} can't be used here: {reason}.")
    raise BackendError(" ".join(reasons))


def available_engine(given: Engine | str, parameters: Parameters, preparing: Preparing | None = None) -> Engine:
    """The engine, if it can be used on this machine; otherwise OpenFHE or, if that can't be used either, another one.

    A warning says why it is another.

    Raises:
        BackendError: no engine can be used here that takes programs with these parameters.
    """
    engine = find_engine(given)
    reason = engine.unavailable(preparing)
    if not reason:
        return engine
    obstacles = f"{engine.title} can't be used here: {reason}."
    for name in ENGINES:
        other = find_engine(name)
        if other is engine:
            continue
        refused = other.model.refuses(parameters)
        why = f"does not take the program: {refused}" if refused is not None else other.unavailable(preparing)
        if not why:
            # From one place, so that Python shows it once in a process.
            warn(log, f"{other.title} is used, as {engine.title} can't be: {reason}", stacklevel=1)
            return other
        obstacles += (
            f" {other.title} {why}." if refused is not None else f" {other.title} can't be used, either: {why}."
        )
    raise BackendError(
        f"{obstacles} Use a machine where {engine.title} can be used, or compile the program for an engine that can be "
        "used here."
    )


_MEASURED: dict[tuple[str, Parameters, int], tuple[Measurement, ...]] = {}
"""Seconds of primitives in this process."""


def find_engine(given: Engine | str | None = None) -> Engine:
    """An engine by the name of its folder in `olac/backends`; None for OpenFHE."""
    if isinstance(given, Engine):
        return given
    name = f"olac.backends.{given or DEFAULT}.session"
    try:
        found = importlib.import_module(name).ENGINE
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the engine is there, but a module that it imports is not
        raise BackendError(f"there is no engine {given!r}: olac.backends holds no {given}/session.py") from error
    assert isinstance(found, Engine)
    return found
