"""What client and server send each other: evaluation keys, encrypted inputs, encrypted results.

Each holds either objects of an engine in this process, which are used as they are if client and server share a process
and an engine, or the content of a frame (see `olac.runtime.envelope`). None of them holds a secret key.
"""

from __future__ import annotations

import hashlib
import secrets
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from olac.backends.session import DEFAULT, Engine, Keys, Piece, Session, find_engine
from olac.ckks.sizes import ciphertext_bytes
from olac.ckks.words import WORD_BYTES, Words, as_bytes, check_words
from olac.errors import ArtifactError, BackendError, ClosedError, plain
from olac.ir.graph import Node
from olac.program.program import CompiledProgram
from olac.runtime import envelope
from olac.runtime.envelope import Header, Part, Payload
from olac.runtime.framed import Framed
from olac.system.files import Reader
from olac.system.memory import check_room

if TYPE_CHECKING:
    from typing_extensions import Self


def new_identity() -> str:
    """A random name for a key pair. What is made with the pair carries the name, so that mix-ups are found early."""
    return secrets.token_hex(16)


def needs_relinearisation(program: CompiledProgram) -> bool:
    """Whether the program multiplies ciphertexts, as bootstraps do."""
    return program.multiplies_ciphertexts or program.parameters.bootstrapping is not None


def wanted_keys(
    program: CompiledProgram, steps: Iterable[int], relinearisation: bool
) -> tuple[dict[int, int], int | None]:
    """`steps` and `relinearise` as `Engine.key_sizes` takes them."""
    levels = program.rotation_levels
    return {step: levels.get(step, 0) for step in steps}, (program.product_level or 0) if relinearisation else None


class EvaluationKeys(Framed):
    """The public keys that a server needs: for relinearisation, for each rotation step and for bootstraps.

    Keys that were made in this process are held until this object and all servers with it are closed or deleted. Keys
    that came from outside are held by servers alone, and read again for the next server.

    Attributes:
        identity: the name of their key pair.
        steps: rotation steps that there are keys for.
        relinearisation: whether there is a relinearisation key.
        header: of the frame that they came in; None if they were made in this process.
    """

    kind = envelope.EVALUATION_KEYS
    contents = "the evaluation keys"

    def __init__(
        self,
        program: CompiledProgram,
        identity: str,
        steps: tuple[int, ...],
        relinearisation: bool,
        *,
        live: Keys | None = None,
        header: Header | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.program = program
        self.identity = identity
        self.steps = steps
        self.relinearisation = relinearisation
        self.header = header
        self._made = live
        self._parts: tuple[Part, ...] = ()
        self._engine = engine
        self._installed: weakref.ref[Keys] | None = None
        self._closed = False
        self._maker = find_engine(engine) if header is None else _engine_of(header)

    @property
    def _live(self) -> Keys | None:
        """What `_engine` holds of them now."""
        return self._made or (None if self._installed is None else self._installed())

    def close(self) -> None:
        """Delete the keys that no server holds. They can't be used or saved any more."""
        self._closed = True
        self._made = self.header = self._installed = None
        self._parts = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_open(self) -> None:
        """Raise `ClosedError` after `close`."""
        if self._closed:
            raise ClosedError("the evaluation keys are closed. Load them again, or make others.")

    @property
    def count(self) -> int:
        """Keys for relinearisation and rotations."""
        return len(self.steps) + int(self.relinearisation)

    @cached_property
    def wanted(self) -> tuple[dict[int, int], int | None]:
        """See `wanted_keys`."""
        return wanted_keys(self.program, self.steps, self.relinearisation)

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of each key in a file, in the order of `Keys.blocks`."""
        return self._maker.key_sizes(self.program.parameters, *self.wanted)

    @cached_property
    def held_sizes(self) -> list[int]:
        """Bytes of each key in the memory of a server."""
        return self._maker.held_key_sizes(self.program.parameters, *self.wanted)

    @property
    def for_engine(self) -> str:
        """The name of the engine that they are for (`Engine.key_files`)."""
        return self._maker.key_files

    @property
    def payload_bytes(self) -> int:
        """Bytes of all keys: nearly all of a file."""
        return sum(self.sizes)

    @property
    def memory_bytes(self) -> int:
        """Bytes that a server takes for all keys."""
        return sum(self.held_sizes)

    @property
    def installed(self) -> bool:
        """Whether an engine holds them in this process."""
        return self._live is not None

    def choose_engine(self, wanted: Engine | str | None) -> Engine:
        """The engine that is wanted; None for the one that made the keys in this process or that they are for.

        Raises:
            ArtifactError: the engine that is wanted can't use these keys.
        """
        if wanted is None:
            return self._maker
        engine = find_engine(wanted)
        if engine.key_files != self.for_engine:
            raise ArtifactError(
                f"the evaluation keys{self._source} were made for the engine {self.for_engine!r}, and {engine.title} "
                f"can't use them. Use them with engine={self.for_engine!r}, or make keys for {engine.title}: "
                f"Client(program, engine={engine.key_files!r}).generate_keys()."
            )
        return engine

    @property
    def _source(self) -> str:
        return "" if self.header is None else f" in {self.header.source.name}"

    def install(
        self, progress: Callable[[int, int], None] | None = None, *, engine: Engine | str | None = None
    ) -> Keys:
        """The keys as an engine uses them while the result is there, read key by key if they came from outside.

        Raises:
            ArtifactError: a key in the file changed after it was opened, its bytes are no residues, or another engine
                made the keys in this process.
            ClosedError: after `close`.
        """
        self.check_open()
        by = self.choose_engine(engine)
        live = self._live
        if live is None or by is not self._engine:
            if self.header is None:
                raise ArtifactError(
                    f"the evaluation keys were made in this process for another engine than {by.title}. Save them, and "
                    "load them for that engine."
                )
            with self.header.source.reader() as reader, self.header.named_in_errors():
                live = by.install_keys(
                    self.program.parameters, *self.wanted, partial(self.blocks, reader), progress, self.identity
                )
            self._engine, self._installed = by, weakref.ref(live)
        return live

    def apart(self) -> EvaluationKeys:
        """The same keys that came from outside, which stay as they are when these are closed."""
        assert self.header is not None
        other = EvaluationKeys(self.program, self.identity, self.steps, self.relinearisation, header=self.header)
        other._parts = self._parts
        return other

    def blocks(self, reader: Reader, place: int) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of one key that came from outside, N words at a time, valid until the next are asked for.

        Any thread may read any key, in any order. Whether the key has changed is known at the end of the iteration.

        Args:
            reader: of the source that the keys came from.
            place: of the key, in the order of `Keys.blocks`.

        Raises:
            ArtifactError: the key changed after the first reading. The error names no file.
        """
        room = bytearray(self.program.parameters.ring_dimension * WORD_BYTES)
        for piece in self._parts[place].pieces(reader, memoryview(room)):
            yield np.frombuffer(piece, dtype=np.uint8)

    def _pieces(self) -> Iterator[bytes | memoryview]:
        self.check_open()
        if self.header is not None:
            yield from self._received(self.header)
            return
        assert self._made is not None
        fields = {"keys": self.identity, "steps": list(self.steps), "relinearisation": self.relinearisation}
        if self.for_engine != DEFAULT:
            fields[ENGINE_FIELD] = self.for_engine
        payload = map(_bytes_of, self._made.blocks())
        yield from envelope.frame(envelope.EVALUATION_KEYS, self.program, fields, payload, self.payload_bytes)

    def _received(self, header: Header) -> Iterator[bytes | memoryview]:
        """The frame that they came in, which must be what it was when it was checked."""
        yield header.start
        buffer = memoryview(bytearray(envelope.CHUNK))
        with header.source.reader() as reader, header.named_in_errors():
            for part in self._parts:
                yield from part.pieces(reader, buffer)
        yield self._parts[-1].after if self._parts else hashlib.sha256(header.start).digest()

    def to_bytes(self) -> bytes:
        """See `Framed.to_bytes`."""
        check_room(2 * self.payload_bytes, "a frame of the evaluation keys")
        return super().to_bytes()

    @classmethod
    def _of(cls, program: CompiledProgram, payload: Payload) -> Self:
        header = payload.header
        steps = header.integers("steps", program.rotations)
        keys = cls(program, header.identity("keys"), steps, header.flag("relinearisation"), header=header)
        header.expect_payload(keys.payload_bytes)
        keys._parts = payload.parts(keys.sizes)
        return keys


def _bytes_of(piece: Piece) -> memoryview:
    return (piece.data if isinstance(piece, np.ndarray) else memoryview(piece)).cast("B")


ENGINE_FIELD = "engine"
"""The field of a header that names the engine that the keys are for; files without it are for OpenFHE."""


def _engine_of(header: Header) -> Engine:
    """The engine that the keys of a frame are for; raises `ArtifactError` if there is none of that name."""
    name = header.fields.get(ENGINE_FIELD, DEFAULT)
    if isinstance(name, str) and name.isidentifier():
        try:
            engine = find_engine(name)
        except BackendError:
            pass
        else:
            if engine.key_files == name:
                return engine
    raise header.error(
        f"its keys are for the engine {plain(name)[:40]!r}, which this version of olac does not have",
        "Update olac, or make keys for another engine.",
    )


class _Ciphertexts(Framed):
    """The ciphertexts of one value, as they are sent: noise degree 1, canonical scale, level as in its type.

    Attributes:
        called: what errors call an object of this kind.
        name: what errors call this one.
    """

    contents = "ciphertexts"
    called: ClassVar[str]

    def __init__(
        self,
        program: CompiledProgram,
        identity: str,
        images: int,
        *,
        live: tuple[Any, ...] | None = None,
        words: Words | None = None,
        name: str = "",
        engine: Engine | None = None,
    ) -> None:
        self.program = program
        self.identity = identity
        self.images = images
        self.name = name or f"the {self.kind}"
        self._live = live
        self._engine = engine
        self._words = words

    @classmethod
    def check_kind(cls, given: object) -> None:
        """Raise `ArtifactError` unless an object is of this kind, as for files."""
        if not isinstance(given, cls):
            what = given.called if isinstance(given, _Ciphertexts) else f"an object of type {type(given).__name__}"
            raise ArtifactError(f"{what} was given, expected {cls.called}. Check that the right one was given.")

    @classmethod
    @abstractmethod
    def _node(cls, program: CompiledProgram) -> Node:
        """The node of the program whose value these ciphertexts hold."""

    @classmethod
    def _shape(cls, program: CompiledProgram) -> tuple[int, int, int, int]:
        """(ciphertexts, 2, limbs, N)."""
        node = cls._node(program)
        return node.layout.ciphertexts, 2, node.state.level + 1, program.parameters.ring_dimension

    @classmethod
    def _bytes(cls, program: CompiledProgram) -> int:
        count, _, limbs, _ = cls._shape(program)
        return count * ciphertext_bytes(program.parameters.log_ring, limbs)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the coefficients."""
        return self._bytes(self.program)

    def payloads(self, session: Session) -> tuple[Any, ...]:
        """The ciphertexts as a session uses them.

        Raises:
            ArtifactError: they are not as the value's type in the program says.
        """
        if self._words is None and self.engine is session.engine:
            return tuple(session.adopt(part) for part in self._checked())
        level = self._shape(self.program)[2] - 1
        return tuple(session.ciphertext(words, level) for words in self._all_words())

    @property
    def engine(self) -> Engine:
        """The engine that made the live ciphertexts."""
        return find_engine(self._engine)

    def _checked(self) -> tuple[Any, ...]:
        """The live ciphertexts, which must be such as a file may hold."""
        assert self._live is not None
        engine, parameters = self.engine, self.program.parameters
        count, _, limbs, _ = self._shape(self.program)
        if len(self._live) != count:
            raise ArtifactError(f"{self.name}: {len(self._live)} ciphertexts, expected {count}. {REPLACED}")
        if not 1 <= self.images <= self.program.batch:
            raise ArtifactError(f"{self.name}: {self.images} images, the program takes 1 to {self.program.batch}")
        for part in self._live:
            found = engine.state(parameters, part)
            if found.level + 1 != limbs or found.noise_degree != 1:
                raise ArtifactError(
                    f"{self.name}: a ciphertext of {found.level + 1} limbs and noise degree {found.noise_degree}, "
                    f"expected {limbs} and 1. {REPLACED}"
                )
            if not engine.belongs(part, self.identity):
                raise ArtifactError(f"{self.name}: a ciphertext under another key than the rest says. {REPLACED}")
        return self._live

    def _all_words(self) -> Iterator[Words]:
        """The words of one ciphertext after the other."""
        if self._words is not None:
            return iter(self._words)
        engine, parameters, level = self.engine, self.program.parameters, self._shape(self.program)[2] - 1
        return (engine.words(parameters, part, level) for part in self._checked())

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits, other for other ciphertexts; the same if they are live, as bytes or in a file."""
        found = hashlib.sha256(f"{self.kind} {self.identity} {self.images} ".encode())
        for words in self._all_words():
            found.update(as_bytes(words))
        return found.hexdigest()[:32]

    def _pieces(self) -> Iterator[bytes | memoryview]:
        shape, payload = self._shape(self.program), (as_bytes(words) for words in self._all_words())
        fields = {"keys": self.identity, "images": self.images, "ciphertexts": shape[0], "limbs": shape[2]}
        yield from envelope.frame(self.kind, self.program, fields | self._fields(), payload, self.payload_bytes)

    @classmethod
    def _of(cls, program: CompiledProgram, payload: Payload) -> Self:
        header, shape = payload.header, cls._shape(program)
        size = cls._bytes(program)
        header.integer("ciphertexts", shape[0], shape[0])
        header.integer("limbs", shape[2], shape[2])
        images = header.integer("images", 1, program.batch)
        identity, more = header.identity("keys"), cls._from_fields(header)
        header.expect_payload(size)
        words = np.frombuffer(payload.read(size), "<u8").reshape(shape)
        payload.finish()
        with header.named_in_errors():
            for part in words:
                check_words(part.reshape(-1, shape[3]), program.parameters.primes[: shape[2]] * 2, shape[3])
        return cls(program, identity, images, words=words, name=header.source.name, **more)

    def _fields(self) -> dict[str, Any]:
        """Further fields of this kind's header."""
        return {}

    @classmethod
    def _from_fields(cls, header: Header) -> dict[str, Any]:
        """Arguments of the constructor from `_fields`."""
        return {}


class EncryptedInput(_Ciphertexts):
    """A batch of encrypted images; the first `images` are given, the others are zeros."""

    kind = envelope.INPUT
    called = "an encrypted input"

    @classmethod
    def _node(cls, program: CompiledProgram) -> Node:
        return program.input


class EncryptedResult(_Ciphertexts):
    """The encrypted outputs of a batch; the first `images` count.

    Attributes:
        input: the digest of the `EncryptedInput` that it is said to be of; None if an older olac wrote the file. It
            serves to find results that were mixed up. It proves nothing: a dishonest server may write any digest.
    """

    kind = envelope.RESULT
    called = "an encrypted result"

    def __init__(
        self,
        program: CompiledProgram,
        identity: str,
        images: int,
        *,
        live: tuple[Any, ...] | None = None,
        words: Words | None = None,
        name: str = "",
        engine: Engine | None = None,
        input: str | None = None,
    ) -> None:
        super().__init__(program, identity, images, live=live, words=words, name=name, engine=engine)
        self.input = input

    def check_input(self, given: EncryptedInput) -> None:
        """Raise `ArtifactError` unless this is said to be the result of an input."""
        EncryptedInput.check_kind(given)
        if self.input is None:
            raise ArtifactError(f"{self.name} does not say which input it is of: an older olac made it. Run it anew.")
        if self.input != given.digest:
            raise ArtifactError(
                f"{self.name} is of another input than {given.name}: {self.input[:16]}..., expected "
                f"{given.digest[:16]}.... Results were mixed up: find the result of this input, or run it anew."
            )

    def _fields(self) -> dict[str, Any]:
        return {} if self.input is None else {"input": self.input}

    @classmethod
    def _from_fields(cls, header: Header) -> dict[str, Any]:
        return {"input": header.identity("input") if "input" in header.fields else None}

    @classmethod
    def _node(cls, program: CompiledProgram) -> Node:
        return program.output


REPLACED = "It is not what olac made: encrypt or run anew."
