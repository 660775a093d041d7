"""What client and server send each other: evaluation keys, encrypted inputs, encrypted results.

Each holds either objects of an engine in this process, which are used as they are if client and server share a process
and an engine, or the content of a frame (see `olac.runtime.envelope`). None of them holds a secret key.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from olac.backends.session import DEFAULT, Engine, Keys, Piece, Session, find_engine
from olac.ckks.key_list import BOOTSTRAPS, KeyList
from olac.ckks.parameters import Parameters
from olac.ckks.sizes import ciphertext_bytes
from olac.ckks.words import WORD_BYTES, Words, as_bytes, check_words
from olac.errors import ArtifactError, BackendError, ClosedError, plain
from olac.ir.graph import Node
from olac.program.client_program import Port
from olac.program.program import AnyProgram
from olac.runtime import envelope
from olac.runtime.envelope import DAMAGED, WITHOUT_LEVELS, Header, Part, Payload, open_frame
from olac.runtime.framed import Framed, FramedKeys
from olac.runtime.stored_words import StoredWords
from olac.system.files import Output, Source, check_writable, write_files
from olac.system.memory import check_room, memory_for
from olac.system.shapes import counted, described

if TYPE_CHECKING:
    from typing_extensions import Self


def new_identity() -> str:
    """A random name for a key pair. What is made with the pair carries the name, so that mix-ups are found early."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class StoredKey:
    """A key that came from outside.

    Attributes:
        header: of the frame that it came in.
        part: where it is in the frame.
    """

    header: Header
    part: Part


class EvaluationKeys(FramedKeys):
    """The public keys that a server needs: for relinearisation, for each rotation step and for bootstraps.

    `Client.generate_keys` makes them, and `load`, `from_bytes` and `load_keys` read them.

    They belong to a key pair and to parameters. They serve every program with these parameters that takes none but
    these keys, so new weights need no new keys.

    Keys that were made in this process are held until this object and all servers with it are closed or deleted. Keys
    that came from outside are held by servers alone, and read again for the next server.

    Attributes:
        parameters: those that they are for.
        identity: the name of their key pair.
        listed: which keys there are, and up to which level each serves.
        outside: whether they came from outside.
        name: of the file or files that they came in, for messages.
    """

    kind = envelope.EVALUATION_KEYS
    contents = "the evaluation keys"

    def __init__(
        self,
        parameters: Parameters,
        identity: str,
        listed: KeyList,
        engine: Engine,
        *,
        live: Keys | None = None,
        stored: tuple[StoredKey, ...] = (),
        name: str = "",
    ) -> None:
        self.parameters = parameters
        self.identity = identity
        self.listed = listed
        self.outside = live is None
        self._made = live
        self._stored = stored
        self.name = name
        self._maker = self._engine = engine
        self._installed: weakref.ref[Keys] | None = None
        self._some: dict[KeyList, EvaluationKeys] = {}
        self._closed = False

    @property
    def _live(self) -> Keys | None:
        """What `_engine` holds of them now."""
        return self._made or (None if self._installed is None else self._installed())

    def close(self) -> None:
        """Delete the keys that no server holds. They can't be used or saved any more."""
        self._closed = True
        self._made = self._installed = None
        self._stored = ()
        self._some.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_open(self) -> None:
        """Raise `ClosedError` after `close`."""
        if self._closed:
            raise ClosedError("the evaluation keys are closed. Load them again, or make others.")

    @property
    def steps(self) -> tuple[int, ...]:
        """The rotation steps that there are keys for."""
        return self.listed.steps

    @property
    def relinearisation(self) -> bool:
        """Whether there is a relinearisation key."""
        return self.listed.relinearise is not None

    @property
    def count(self) -> int:
        """Keys for relinearisation and rotations."""
        return self.listed.count

    @cached_property
    def sizes(self) -> Sequence[int]:
        """Bytes of each key in a file, in the order of `Keys.blocks`."""
        return key_sizes(self._maker, self.parameters, self.listed)

    @cached_property
    def held_sizes(self) -> Sequence[int]:
        """Bytes of each key in the memory of a server."""
        keys = self.listed
        return self._maker.held_key_sizes(self.parameters, keys.by_step, keys.relinearise, bootstraps=keys.bootstraps)

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

        Args:
            wanted: an engine or its name.

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
        return f" in {self.name}" if self.name else ""

    def install(
        self, progress: Callable[[int, int], None] | None = None, *, engine: Engine | str | None = None
    ) -> Keys:
        """The keys as an engine uses them while the result is there, read key by key if they came from outside.

        Args:
            progress: called as progress(keys so far, keys in all).
            engine: that uses them; None for the one that they are for.

        Raises:
            ArtifactError: a key in the file changed after it was opened, its bytes are no residues, or another engine
                made the keys in this process.
            ClosedError: after `close`.
        """
        self.check_open()
        by = self.choose_engine(engine)
        live = self._live
        if live is None or by is not self._engine:
            if not self.outside:
                raise ArtifactError(
                    f"the evaluation keys were made in this process for another engine than {by.title}. Save them, and "
                    "load them for that engine."
                )
            keys = self.listed
            with self.named_in_errors():
                live = by.install_keys(
                    self.parameters,
                    keys.by_step,
                    keys.relinearise,
                    self.blocks,
                    progress,
                    self.identity,
                    bootstraps=keys.bootstraps,
                )
            self._engine, self._installed = by, weakref.ref(live)
        return live

    # Some of them, and more ------------------------------------------------------------------------------------------

    def some(self, wanted: KeyList) -> EvaluationKeys:
        """Those of keys from outside that are in a list, each as far as it reaches; they stay if these are closed.

        Servers of the same program share what they hold of them. Keys that were made in this process stay together.

        Args:
            wanted: the list.
        """
        part = self.listed.within(wanted.steps, wanted.relinearise is not None, wanted.bootstraps)
        if not self.outside or part == self.listed:
            return self
        self.check_open()
        if part not in self._some:
            places = self._places
            stored = tuple(one for each in part.parts for one in places[_key_of(each)])
            self._some[part] = EvaluationKeys(
                self.parameters, self.identity, part, self._maker, stored=stored, name=self.name
            )
        return self._some[part]

    def apart(self) -> EvaluationKeys:
        """The same keys that came from outside, which stay as they are when these are closed."""
        return EvaluationKeys(
            self.parameters, self.identity, self.listed, self._maker, stored=self._stored, name=self.name
        )

    @property
    def _places(self) -> dict[Place, tuple[StoredKey, ...]]:
        """The keys from outside by what they are for."""
        parts, count = self.listed.parts, self.count
        found = {_key_of(part): (one,) for part, one in zip(parts, self._stored[:count], strict=False)}
        return found | ({BOOTSTRAPS: self._stored[count:]} if self.listed.bootstraps else {})

    def with_more(self, *others: EvaluationKeys) -> EvaluationKeys:
        """These keys and others of the same pair, such as those of `Client.more_keys`; none of them may be closed.

        Of two keys for the same, the one that reaches further is taken. Keys that were made in this process are copied.

        Args:
            others: the other keys.

        Raises:
            ArtifactError: the others are of another pair, or for other parameters or another engine.
            InfeasibleError: there is no memory for a copy.
        """
        everyone = [one if one.outside else one._copied() for one in (self, *others)]
        whole, best = everyone[0].listed, dict(everyone[0]._places)
        for one in everyone[1:]:
            self._check_fits(one)
            one.check_open()
            ours = {_key_of(part): part for part in whole.parts}
            for part in one.listed.parts:
                what = _key_of(part)
                if what not in ours or part.lacking(ours[what]):
                    best[what] = one._places[what]
            whole = whole.with_more(one.listed)
        stored = tuple(key for part in whole.parts for key in best[_key_of(part)])
        names = dict.fromkeys(one.name for one in everyone if one.name)
        name = ", ".join(list(names)[:NAMED_SOURCES]) + (" and others" if len(names) > NAMED_SOURCES else "")
        return EvaluationKeys(self.parameters, self.identity, whole, self._maker, stored=stored, name=name)

    def _check_fits(self, other: EvaluationKeys) -> None:
        for ours, theirs, what in (
            (self.identity, other.identity, "of another key pair"),
            (self.parameters, other.parameters, "for other parameters"),
            (self.for_engine, other.for_engine, "for another engine"),
        ):
            if ours != theirs:
                raise ArtifactError(
                    f"the evaluation keys{other._source} are {what} than those{self._source}. Take keys that the same "
                    "client made for the same parameters and engine."
                )

    def _copied(self) -> EvaluationKeys:
        return EvaluationKeys.from_bytes(self.parameters, self.to_bytes())

    # Bytes -----------------------------------------------------------------------------------------------------------

    def blocks(self, place: int) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes of one key that came from outside, N words at a time, valid until the next are asked for.

        Any thread may read any key, in any order. Whether the key has changed is known at the end of the iteration.

        Args:
            place: of the key, in the order of `Keys.blocks`.

        Raises:
            ArtifactError: the key changed after the first reading, or can't be read.
        """
        key, room = self._stored[place], bytearray(self.parameters.ring_dimension * WORD_BYTES)
        with key.header.named_in_errors(), key.header.source.reader() as reader:
            for piece in key.part.pieces(reader, memoryview(room)):
                yield np.frombuffer(piece, dtype=np.uint8)

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Errors that are raised within, by checks of an engine that does not know where the keys are from, say it."""
        try:
            yield
        except ArtifactError as error:
            if not self.name or any(key.header.names(error) for key in self._stored):
                raise
            raise ArtifactError(
                f"{self.name} ({self.kind}): {error}. Nothing of it was used: get it again from who made it."
            ) from error

    def payload(self) -> Iterator[memoryview]:
        """The bytes of all keys, in the order of `Keys.blocks`; a piece is valid until the next is asked for."""
        self.check_open()
        if self._made is not None:
            yield from map(_bytes_of, self._made.blocks())
            return
        for place in range(len(self._stored)):
            yield from (block.data for block in self.blocks(place))

    def _pieces(self) -> Iterator[bytes | memoryview]:
        yield from keys_frame(self.parameters, self.identity, self.listed, self._maker, self.payload())

    def to_bytes(self) -> bytes:
        """See `Framed.to_bytes`."""
        check_room(2 * self.payload_bytes, "a frame of the evaluation keys")
        return super().to_bytes()

    @classmethod
    def _of(cls, given: AnyProgram | Parameters, payload: Payload) -> Self:
        header = payload.header
        engine = _engine_of(header)
        parameters = given if isinstance(given, Parameters) else given.parameters
        if header.version <= WITHOUT_LEVELS:
            listed = _list_of_a_program(header, given, engine)
        else:
            listed = _list_of(header, parameters)
        header.expect_payload(sum(key_sizes(engine, parameters, listed)))
        parts = payload.parts(key_sizes(engine, parameters, listed))
        stored = tuple(StoredKey(header, part) for part in parts)
        name = header.source.name
        return cls(parameters, header.identity("keys"), listed, engine, stored=stored, name=name)


Place = int | str
"""What a key is for: a rotation step, "relinearise" or "bootstraps"."""
NAMED_SOURCES = 3


def _key_of(part: KeyList) -> Place:
    """What the only key of a list is for."""
    if part.rotations:
        return part.steps[0]
    return BOOTSTRAPS if part.bootstraps else "relinearise"


def key_sizes(engine: Engine, parameters: Parameters, keys: KeyList) -> Sequence[int]:
    """Bytes of each key of a list in a file, in the order of `Keys.blocks`."""
    return engine.key_sizes(parameters, keys.by_step, keys.relinearise, bootstraps=keys.bootstraps)


def keys_frame(
    parameters: Parameters,
    identity: str,
    keys: KeyList,
    engine: Engine,
    payload: Iterable[memoryview],
) -> Iterator[bytes | memoryview]:
    """The frame of evaluation keys with these bytes, in pieces."""
    fields: dict[str, Any] = {
        "keys": identity,
        "steps": list(keys.by_step),
        "levels": list(keys.by_step.values()),
        "relinearisation": keys.relinearise,
        "bootstraps": keys.bootstraps,
    }
    if engine.key_files != DEFAULT:
        fields[ENGINE_FIELD] = engine.key_files
    size = sum(key_sizes(engine, parameters, keys))
    yield from envelope.frame(envelope.EVALUATION_KEYS, parameters, fields, payload, size)


def _list_of(header: Header, parameters: Parameters) -> KeyList:
    """The keys that a frame says it holds."""
    steps, levels = header.integers("steps"), header.integers("levels")
    relinearise = None
    if header.fields.get("relinearisation") is not None:
        relinearise = header.integer("relinearisation", 0, parameters.depth)
    if len(steps) != len(levels):
        raise header.error(f"{len(levels)} levels for {len(steps)} steps", DAMAGED)
    try:
        found = KeyList(tuple(zip(steps, levels, strict=True)), relinearise, header.flag("bootstraps"))
        found.check(parameters)
    except ValueError as error:
        raise header.error(str(error), "Make the keys anew.") from error
    return found


def _list_of_a_program(header: Header, given: AnyProgram | Parameters, engine: Engine) -> KeyList:
    """The keys of a frame of an older version, which belongs to one program."""
    if isinstance(given, Parameters):
        raise header.error(
            f"format version {header.version} of keys belongs to one program", "Load it with that program."
        )
    header.expect("program", given.fingerprint)
    steps = header.integers("steps")
    if list(steps) != sorted(set(steps) & set(given.rotations)):
        raise header.error("its steps repeat, or the program does not use them", "Make the keys anew for this program.")
    needed = given.keys_for(engine.model)
    return needed.within(steps, header.flag("relinearisation"), True)


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


MOST_IMAGES = 1 << 24
"""In one message."""


def sets_of(program: AnyProgram, images: int) -> int:
    """Sets of ciphertexts that this many images take."""
    return -(-images // program.batch)


class _Ciphertexts(Framed):
    """The ciphertexts of one value, as they are sent: noise degree 1, canonical scale, level as in its type.

    Images beyond `program.batch` are in further sets of ciphertexts, one after the other. These are live, or words in
    memory, or words that stay in a file (`open`).

    Attributes:
        called: what errors call an object of this kind.
        made_by: what makes one, for errors.
        name: what errors call this one.
    """

    contents = "ciphertexts"
    called: ClassVar[str]
    made_by: ClassVar[str]

    def __init__(
        self,
        program: AnyProgram,
        identity: str,
        images: int,
        *,
        live: tuple[Any, ...] | None = None,
        words: Words | StoredWords | None = None,
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

    def __repr__(self) -> str:
        """What is encrypted, in one line; no values."""
        return f"<{type(self).__name__} of {counted(self.images, self.program.input_shape)}>"

    @classmethod
    def check_kind(cls, given: object) -> None:
        """Raise `ArtifactError` unless an object is of this kind, as for files."""
        if not isinstance(given, cls):
            what = given.called if isinstance(given, _Ciphertexts) else described(given)
            raise ArtifactError(f"{what} was given, expected {cls.called}, which {cls.made_by} makes")

    @classmethod
    @abstractmethod
    def _node(cls, program: AnyProgram) -> Node | Port:
        """The node of the program whose value these ciphertexts hold."""

    @classmethod
    def _shape(cls, program: AnyProgram, images: int) -> tuple[int, int, int, int]:
        """(ciphertexts of all sets, 2, limbs, N)."""
        node = cls._node(program)
        count = sets_of(program, images) * node.layout.ciphertexts
        return count, 2, node.state.level + 1, program.parameters.ring_dimension

    @classmethod
    def bytes_of(cls, program: AnyProgram, images: int) -> int:
        count, _, limbs, _ = cls._shape(program, images)
        return count * ciphertext_bytes(program.parameters.log_ring, limbs)

    @property
    def sets(self) -> int:
        """Sets of ciphertexts, each of `program.batch` images; the last may have fewer."""
        return sets_of(self.program, self.images)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the coefficients."""
        return self.bytes_of(self.program, self.images)

    @property
    def _belongs_to(self) -> AnyProgram:
        return self.program

    def payloads(self, session: Session) -> Iterator[Any]:
        """The ciphertexts as a session uses them, one after the other.

        Raises:
            ArtifactError: they are not as the value's type in the program says, or the file that they are in changed.
        """
        if self._words is None and self.engine is session.engine:
            return (session.adopt(part) for part in self._checked())
        level = self._shape(self.program, self.images)[2] - 1
        return (session.ciphertext(words, level) for words in self.words())

    def part(self, first: int, count: int) -> Self:
        """Some sets of ciphertexts, from set number `first` on, as a message of their own; nothing is copied."""
        one, batch = self._node(self.program).layout.ciphertexts, self.program.batch
        some = slice(first * one, (first + count) * one)
        return type(self)(
            self.program,
            self.identity,
            min(self.images - first * batch, count * batch),
            live=None if self._live is None else self._live[some],
            words=None if self._words is None else self._words[some],
            name=self.name,
            engine=self._engine,
        )

    @property
    def engine(self) -> Engine:
        """The engine that made the live ciphertexts."""
        return find_engine(self._engine)

    def _checked(self) -> tuple[Any, ...]:
        """The live ciphertexts, which must be such as a file may hold."""
        assert self._live is not None
        engine, parameters = self.engine, self.program.parameters
        count, _, limbs, _ = self._shape(self.program, self.images)
        if not 1 <= self.images <= MOST_IMAGES:
            raise ArtifactError(f"{self.name}: {self.images} inputs, 1 to {MOST_IMAGES} are possible")
        if len(self._live) != count:
            raise ArtifactError(f"{self.name}: {len(self._live)} ciphertexts, expected {count}. {REPLACED}")
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

    def words(self) -> Iterator[Words]:
        """The words of one ciphertext after the other, each of shape (2, limbs, N).

        Raises:
            ArtifactError: as `payloads`.
        """
        if self._words is not None:
            return iter(self._words)
        engine, parameters, level = self.engine, self.program.parameters, self._shape(self.program, self.images)[2] - 1
        return (engine.words(parameters, part, level) for part in self._checked())

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits, other for other ciphertexts; the same if they are live, as bytes or in a file."""
        found = hashlib.sha256(f"{self.kind} {self.identity} {self.images} ".encode())
        for words in self.words():
            found.update(as_bytes(words))
        return found.hexdigest()[:32]

    def _pieces(self) -> Iterator[bytes | memoryview]:
        yield from self._frame(self.program, self.identity, self.images, self.words(), self._fields())

    @classmethod
    def _frame(
        cls, program: AnyProgram, identity: str, images: int, words: Iterable[Words], more: Mapping[str, Any]
    ) -> Iterator[bytes | memoryview]:
        shape, payload = cls._shape(program, images), map(as_bytes, words)
        fields = {"keys": identity, "images": images, "ciphertexts": shape[0], "limbs": shape[2], **more}
        yield from envelope.frame(cls.kind, program, fields, payload, cls.bytes_of(program, images))

    @classmethod
    def write(
        cls, path: str | Path, program: AnyProgram, identity: str, images: int, words: Iterable[Words], **more: Any
    ) -> None:
        """Write what `save` writes, each ciphertext as soon as it is made. The file is complete or absent.

        Args:
            path: of the file.
            program, identity, images: as in the constructor.
            words: of all ciphertexts, one after the other; they are made while they are written.
            more: further fields of the header.

        Raises:
            ArtifactError: the file can't be written.
        """
        size = cls.bytes_of(program, images)
        check_writable(path, size=size)
        # No file is begun before there is something to write: most runs are of one set.
        made = iter(words)
        every = itertools.chain([next(made)], made)
        write_files([Output(Path(path), cls._frame(program, identity, images, every, more), size=size)])

    @classmethod
    def open(cls, program: AnyProgram, path: str | Path) -> Self:
        """As `load`, but the ciphertexts stay in the file, which is read whenever they are needed.

        The file is checked at once, and each ciphertext again when it is read. It has to stay as it is meanwhile.
        Memory does not grow with the number of images.
        """
        with memory_for(f"reading {cls.contents}"), open_frame(Source.of_file(path), cls.kind, program) as payload:
            return cls._parsed(program, payload, stays=True)

    @classmethod
    def _of(cls, program: AnyProgram, payload: Payload) -> Self:
        return cls._parsed(program, payload, stays=False)

    @classmethod
    def _parsed(cls, program: AnyProgram, payload: Payload, stays: bool) -> Self:
        header = payload.header
        images = header.integer("images", 1, MOST_IMAGES)
        (count, parts, limbs, length), size = cls._shape(program, images), cls.bytes_of(program, images)
        header.integer("ciphertexts", count, count)
        header.integer("limbs", limbs, limbs)
        identity, more = header.identity("keys"), cls._from_fields(header)
        header.expect_payload(size)
        primes = program.parameters.primes[:limbs]
        words: Words | StoredWords
        if stays:
            words = StoredWords.of(payload, count, (parts, limbs, length), primes)
        else:
            check_room(size, f"reading {header.source.name}")
            words = np.frombuffer(payload.read(size), "<u8").reshape(count, parts, limbs, length)
            payload.finish()
            with header.named_in_errors():
                for ciphertext in words:
                    check_words(ciphertext.reshape(-1, length), primes * parts, length)
        return cls(program, identity, images, words=words, name=header.source.name, **more)

    def _fields(self) -> dict[str, Any]:
        """Further fields of this kind's header."""
        return {}

    @classmethod
    def _from_fields(cls, header: Header) -> dict[str, Any]:
        """Arguments of the constructor from `_fields`."""
        return {}


class EncryptedInput(_Ciphertexts):
    """Encrypted images; where the last set of ciphertexts has room for more, the others are zeros.

    `Client.encrypt` and `Encryptor.encrypt` make it, and `load` reads it.
    """

    kind = envelope.INPUT
    called = "an encrypted input"
    made_by = "client.encrypt(x)"

    @classmethod
    def _node(cls, program: AnyProgram) -> Node | Port:
        return program.input


class EncryptedResult(_Ciphertexts):
    """The encrypted outputs of some images; the first `images` count. `Server.run` makes it, and `load` reads it.

    Attributes:
        input: the digest of the `EncryptedInput` that it is said to be of; None if an older olac wrote the file. It
            serves to find results that were mixed up. It proves nothing: a dishonest server may write any digest.
    """

    kind = envelope.RESULT
    called = "an encrypted result"
    made_by = "server.run(encrypted)"

    def __init__(
        self,
        program: AnyProgram,
        identity: str,
        images: int,
        *,
        live: tuple[Any, ...] | None = None,
        words: Words | StoredWords | None = None,
        name: str = "",
        engine: Engine | None = None,
        input: str | None = None,
    ) -> None:
        super().__init__(program, identity, images, live=live, words=words, name=name, engine=engine)
        self.input = input

    def check_input(self, given: EncryptedInput) -> None:
        """Raise `ArtifactError` unless this is said to be the result of an input.

        Args:
            given: the input.
        """
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
    def _node(cls, program: AnyProgram) -> Node | Port:
        return program.output


REPLACED = "It is not what olac made: encrypt or run anew."
