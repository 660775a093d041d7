"""What client and server send each other: evaluation keys, encrypted inputs, encrypted results.

Each holds either OpenFHE objects of this process, which are used as they are when client and server share a process,
or a frame (see `olac.runtime.envelope`) that came from outside. None of them holds a secret key.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from olac.backends.openfhe.keys import KeySet, install_keys
from olac.backends.openfhe.wire import wire
from olac.backends.openfhe.words import is_tag_of
from olac.ckks.bootstrapping import SPECIAL_KEYS
from olac.ckks.sizes import ciphertext_bytes, rotation_key_bytes
from olac.ckks.words import WORD_BYTES, Words, check_words, raw
from olac.errors import ArtifactError, ClosedError
from olac.ir.types import ValueType
from olac.program.program import CompiledProgram
from olac.runtime import envelope
from olac.runtime.envelope import Header, Part, open_frame
from olac.system.files import Output, Reader, Source, check_writable, write_files
from olac.system.memory import check_room, memory_for

if TYPE_CHECKING:
    from typing_extensions import Self


def new_identity() -> str:
    """A random name for one key pair: what was made with it carries the name, so that mix-ups are found early."""
    return secrets.token_hex(16)


def needs_relinearisation(program: CompiledProgram) -> bool:
    """Whether the program multiplies ciphertexts; bootstraps do."""
    return program.multiplies_ciphertexts or program.parameters.bootstrapping is not None


def one_key_bytes(program: CompiledProgram) -> int:
    """Bytes of the coefficients of one evaluation key."""
    p = program.parameters
    return 2 * p.digits * (p.limbs + len(p.special_primes)) * p.ring_dimension * WORD_BYTES


def special_key_bytes(program: CompiledProgram) -> list[int]:
    """Bytes of the coefficients of each key that only bootstraps take."""
    p = program.parameters
    if p.bootstrapping is None:
        return []
    short = 2 * len(p.encapsulation_primes) * p.ring_dimension * WORD_BYTES
    return [short, *[one_key_bytes(program)] * (SPECIAL_KEYS - 1)]


class EvaluationKeys:
    """The public keys that a server needs: for relinearisation, for each rotation step and for bootstraps.

    Keys that were made in this process are held until this object and all servers with it are closed or gone. Of keys
    that came from outside only servers hold any; they are read again for the next.

    Attributes:
        identity: which key pair they belong to.
        steps: rotation steps that there are keys for.
        relinearisation: whether the relinearisation key is there.
    """

    def __init__(
        self,
        program: CompiledProgram,
        identity: str,
        steps: tuple[int, ...],
        relinearisation: bool,
        *,
        live: KeySet | None = None,
        header: Header | None = None,
    ) -> None:
        self.program = program
        self.identity = identity
        self.steps = steps
        self.relinearisation = relinearisation
        self._made = live
        self._header = header
        self._parts: tuple[Part, ...] = ()
        self._installed: weakref.ref[KeySet] | None = None
        self._closed = False

    @property
    def _live(self) -> KeySet | None:
        """What OpenFHE holds of them now."""
        return self._made or (None if self._installed is None else self._installed())

    def close(self) -> None:
        """Let keys go that no server holds. They can't be used or saved any more."""
        self._closed = True
        self._made = self._header = self._installed = None
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

    @property
    def _sizes(self) -> list[int]:
        """Bytes of the words of each key, in the order of `KeySet.blocks`."""
        return [*[one_key_bytes(self.program)] * self.count, *special_key_bytes(self.program)]

    @property
    def _payload_bytes(self) -> int:
        return sum(self._sizes)

    @property
    def key_bytes(self) -> int:
        """Bytes that the keys take in memory, and about as many in a file."""
        p = self.program.parameters
        one = rotation_key_bytes(p.log_ring, p.limbs, p.digits, len(p.special_primes))
        return self.count * one + sum(special_key_bytes(self.program))

    @property
    def header(self) -> Header | None:
        """Of the frame that they came in; None where they were made in this process."""
        return self._header

    @property
    def installed(self) -> bool:
        """Whether OpenFHE holds them in this process."""
        return self._live is not None

    def install(self, progress: Callable[[int, int], None] | None = None) -> KeySet:
        """The keys as OpenFHE uses them while the result is there, read key by key where they came from outside.

        Raises:
            ArtifactError: a key in the file changed after it was opened, or its words are no residues.
            ClosedError: after `close`.
        """
        self.check_open()
        live = self._live
        if live is None:
            assert self._header is not None
            header = self._header
            with header.source.reader() as reader:
                try:
                    live = install_keys(
                        self.program.parameters,
                        self.steps,
                        self.relinearisation,
                        partial(self.blocks, reader),
                        progress,
                        self.identity,
                    )
                except ArtifactError as error:
                    raise named(error, header) from error
            self._installed = weakref.ref(live)
        return live

    def apart(self) -> EvaluationKeys:
        """The same keys that came from outside, which stay as they are when these are closed."""
        assert self._header is not None
        other = EvaluationKeys(self.program, self.identity, self.steps, self.relinearisation, header=self._header)
        other._parts = self._parts
        return other

    def blocks(self, reader: Reader, place: int) -> Iterator[Words]:
        """The words of one key that came from outside, block by block, each valid until the next is asked for.

        Any thread may read any key, in any order. Only the end says that it is what it was when all was checked.

        Args:
            reader: of the source that they came from.
            place: of the key: relinearisation, where it is there, rotations as in `steps`, special ones.

        Raises:
            ArtifactError: the key changed after the first reading. It names no file.
        """
        room = np.empty(self.program.parameters.ring_dimension, dtype="<u8")
        for _ in self._parts[place].pieces(reader, room.data.cast("B")):
            yield room

    def _pieces(self) -> Iterator[bytes | memoryview]:
        self.check_open()
        if self._header is not None:
            yield from self._received(self._header)
            return
        assert self._made is not None
        fields = {"keys": self.identity, "steps": list(self.steps), "relinearisation": self.relinearisation}
        payload = (raw(words) for words in self._made.blocks())
        yield from envelope.frame(envelope.EVALUATION_KEYS, self.program, fields, payload, self._payload_bytes)

    def _received(self, header: Header) -> Iterator[bytes | memoryview]:
        """The frame that they came in, which must be what it was when it was checked."""
        yield header.start
        buffer = memoryview(bytearray(envelope.CHUNK))
        with header.source.reader() as reader:
            try:
                for part in self._parts:
                    yield from part.pieces(reader, buffer)
            except ArtifactError as error:
                raise named(error, header) from error
        yield self._parts[-1].after if self._parts else hashlib.sha256(header.start).digest()

    @memory_for("writing the evaluation keys")
    def to_bytes(self) -> bytes:
        """One frame; large keys are better saved to a file, which takes no memory."""
        check_room(2 * self._payload_bytes, "a frame of the evaluation keys")
        out = io.BytesIO()
        for piece in self._pieces():  # each is valid until the next is asked for
            out.write(piece)
        return out.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a file, key by key.

        Raises:
            ArtifactError: the file can't be written (see `olac.system.files.write_file`).
            InfeasibleError: memory ran out.
        """
        output = self.output(path)
        check_writable(path, size=output.size)
        with memory_for("saving the evaluation keys"):
            write_files([output])

    def output(self, path: str | Path) -> Output:
        """What `save` writes, for `olac.system.files.write_files`: beside the secret key, say."""
        return Output(Path(path), self._pieces(), size=self._payload_bytes)

    def __reduce__(self) -> tuple[Callable[[CompiledProgram, bytes], EvaluationKeys], tuple[CompiledProgram, bytes]]:
        """Pickles and copies go by `to_bytes`, so that what comes back has been checked as files are."""
        return type(self).from_bytes, (self.program, self.to_bytes())

    @classmethod
    def from_bytes(cls, program: CompiledProgram, data: bytes) -> Self:
        """Check a frame; raises `ArtifactError` for anything that is no set of evaluation keys of the program."""
        return cls._read(program, Source(data=data))

    @classmethod
    def load(cls, program: CompiledProgram, path: str | Path) -> Self:
        """Check a file and its hash; the keys themselves are read when a server takes them.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind, version or program.
        """
        return cls._read(program, Source.of_file(path))

    @classmethod
    @memory_for("reading the evaluation keys")
    def _read(cls, program: CompiledProgram, source: Source) -> Self:
        CompiledProgram.check_kind(program)
        with open_frame(source, envelope.EVALUATION_KEYS, program) as payload:
            header = payload.header
            steps = header.integers("steps", program.rotations)
            keys = cls(program, header.identity("keys"), steps, header.flag("relinearisation"), header=header)
            header.expect_payload(keys._payload_bytes)
            keys._parts = payload.parts(keys._sizes)
        return keys


class _Ciphertexts(ABC):
    """The ciphertexts of one value, as they are sent: noise degree 1, canonical scale, level as in its type."""

    kind: ClassVar[str]

    def __init__(
        self,
        program: CompiledProgram,
        identity: str,
        images: int,
        *,
        live: tuple[Any, ...] | None = None,
        words: Words | None = None,
        name: str = "",
    ) -> None:
        self.program = program
        self.identity = identity
        self.images = images
        self._live = live
        self._words = words
        self._name = name

    @classmethod
    def check_kind(cls, given: object) -> None:
        """Raise `ArtifactError` unless an object is of this kind, as for files."""
        if not isinstance(given, cls):
            what = given._called() if isinstance(given, _Ciphertexts) else f"an object of type {type(given).__name__}"
            raise ArtifactError(f"{what} was given, expected {cls._called()}. Check that the right one was given.")

    @classmethod
    @abstractmethod
    def _called(cls) -> str:
        """How errors call the kind."""

    @classmethod
    @abstractmethod
    def _type(cls, program: CompiledProgram) -> ValueType:
        """The type of the value in the program that these ciphertexts hold."""

    @classmethod
    def _shape(cls, program: CompiledProgram) -> tuple[int, int, int, int]:
        """(ciphertexts, 2, limbs, N)."""
        type_ = cls._type(program)
        assert type_.layout is not None and type_.state is not None
        return type_.layout.ciphertexts, 2, type_.state.level + 1, program.parameters.ring_dimension

    @property
    def ciphertext_bytes(self) -> int:
        """Bytes of all ciphertexts, in memory and about as many in a file."""
        count, _, limbs, _ = self._shape(self.program)
        return count * ciphertext_bytes(self.program.parameters.log_ring, limbs)

    def payloads(self, tag: str) -> tuple[Any, ...]:
        """OpenFHE ciphertexts under a key tag of this process.

        Raises:
            ArtifactError: they are not what the program's type says.
        """
        ready = wire(self.program.parameters)
        _, _, limbs, _ = self._shape(self.program)
        if self._words is not None:
            return tuple(ready.ciphertext(words, limbs - 1, tag) for words in self._words)
        return tuple(tagged(payload, tag) for payload in self._checked())

    def _checked(self) -> tuple[Any, ...]:
        """The live ciphertexts, which must be what a file would have to hold."""
        assert self._live is not None
        parameters = self.program.parameters
        count, _, limbs, _ = self._shape(self.program)
        if len(self._live) != count:
            raise ArtifactError(f"{self.name}: {len(self._live)} ciphertexts, expected {count}. {REPLACED}")
        if not 1 <= self.images <= self.program.batch:
            raise ArtifactError(f"{self.name}: {self.images} images, the program takes 1 to {self.program.batch}")
        for part in self._live:
            found = parameters.limbs - part.GetLevel()
            if found != limbs or part.GetNoiseScaleDeg() != 1:
                raise ArtifactError(
                    f"{self.name}: a ciphertext of {found} limbs and noise degree {part.GetNoiseScaleDeg()}, expected "
                    f"{limbs} and 1. {REPLACED}"
                )
            if not is_tag_of(part.GetKeyTag(), self.identity):
                raise ArtifactError(f"{self.name}: a ciphertext under another key than the rest says. {REPLACED}")
        return self._live

    def _payload(self) -> Iterator[memoryview]:
        if self._words is not None:
            return (raw(words) for words in self._words)
        ready, level = wire(self.program.parameters), self._shape(self.program)[2] - 1
        return (raw(ready.ciphertext_words(part, level)) for part in self._checked())

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that tell these ciphertexts from all others; the same live, as bytes and as a file."""
        found = hashlib.sha256(f"{self.kind} {self.identity} {self.images} ".encode())
        for piece in self._payload():
            found.update(piece)
        return found.hexdigest()[:32]

    def _pieces(self) -> Iterator[bytes | memoryview]:
        shape, payload = self._shape(self.program), self._payload()
        fields = {"keys": self.identity, "images": self.images, "ciphertexts": shape[0], "limbs": shape[2]}
        fields |= self._fields()
        yield from envelope.frame(
            self.kind, self.program, fields, payload, int(np.prod(shape, dtype=np.int64)) * WORD_BYTES
        )

    @memory_for("writing ciphertexts")
    def to_bytes(self) -> bytes:
        """One frame."""
        return b"".join(self._pieces())

    def save(self, path: str | Path) -> None:
        """Write one frame to a file.

        Raises:
            ArtifactError: the file can't be written (see `olac.system.files.write_file`).
            InfeasibleError: memory ran out.
        """
        size = int(np.prod(self._shape(self.program), dtype=np.int64)) * WORD_BYTES
        check_writable(path, size=size)
        with memory_for(f"saving the {self.kind}"):
            write_files([Output(Path(path), self._pieces(), size=size)])

    def __reduce__(self) -> tuple[Callable[[CompiledProgram, bytes], _Ciphertexts], tuple[CompiledProgram, bytes]]:
        """Pickles and copies go by `to_bytes`, so that what comes back has been checked as files are."""
        return type(self).from_bytes, (self.program, self.to_bytes())

    @classmethod
    def from_bytes(cls, program: CompiledProgram, data: bytes) -> Self:
        """Check a frame; raises `ArtifactError` for anything that isn't right for the program."""
        return cls._read(program, Source(data=data))

    @classmethod
    def load(cls, program: CompiledProgram, path: str | Path) -> Self:
        """Read and check a file.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind, version or program.
        """
        return cls._read(program, Source.of_file(path))

    @classmethod
    @memory_for("reading ciphertexts")
    def _read(cls, program: CompiledProgram, source: Source) -> Self:
        CompiledProgram.check_kind(program)
        shape = cls._shape(program)
        size = int(np.prod(shape, dtype=np.int64)) * WORD_BYTES
        with open_frame(source, cls.kind, program) as payload:
            header = payload.header
            header.integer("ciphertexts", shape[0], shape[0])
            header.integer("limbs", shape[2], shape[2])
            images = header.integer("images", 1, program.batch)
            identity, more = header.identity("keys"), cls._from_fields(header)
            header.expect_payload(size)
            words = np.frombuffer(payload.read(size), "<u8").reshape(shape)
            payload.finish()
        try:
            for part in words:
                check_words(part.reshape(-1, shape[3]), program.parameters.primes[: shape[2]] * 2, shape[3])
        except ArtifactError as error:
            raise named(error, header) from error
        return cls(program, identity, images, words=words, name=source.name, **more)

    def _fields(self) -> dict[str, Any]:
        """What the header of this kind has beside what all have."""
        return {}

    @classmethod
    def _from_fields(cls, header: Header) -> dict[str, Any]:
        """From `_fields` to arguments."""
        return {}

    @property
    def name(self) -> str:
        """How errors call it."""
        return self._name or f"the {self.kind}"


class EncryptedInput(_Ciphertexts):
    """A batch of encrypted images; `images` of them are given, the rest of the batch is zeros."""

    kind = envelope.INPUT

    @classmethod
    def _called(cls) -> str:
        return "an encrypted input"

    @classmethod
    def _type(cls, program: CompiledProgram) -> ValueType:
        return program.input.type


class EncryptedResult(_Ciphertexts):
    """The encrypted outputs of a batch; those of `images` images count.

    Attributes:
        input: the digest of the `EncryptedInput` that it is said to be of; None where a file of an older olac has none.
            It finds results that were mixed up. It proves nothing: a dishonest server writes there what it likes.
    """

    kind = envelope.RESULT

    def __init__(
        self,
        program: CompiledProgram,
        identity: str,
        images: int,
        *,
        live: tuple[Any, ...] | None = None,
        words: Words | None = None,
        name: str = "",
        input: str | None = None,
    ) -> None:
        super().__init__(program, identity, images, live=live, words=words, name=name)
        self.input = input

    def check_input(self, given: EncryptedInput) -> None:
        """Raise `ArtifactError` unless this is said to be the result of an input."""
        EncryptedInput.check_kind(given)
        if self.input is None:
            raise ArtifactError(f"{self.name} does not say which input it is of: an older olac made it. Run it anew.")
        if self.input != given.digest:
            raise ArtifactError(
                f"{self.name} is of another input than {given.name}: {self.input[:16]}..., expected "
                f"{given.digest[:16]}.... Results were mixed up: find the one of this input, or run it anew."
            )

    def _fields(self) -> dict[str, Any]:
        return {} if self.input is None else {"input": self.input}

    @classmethod
    def _from_fields(cls, header: Header) -> dict[str, Any]:
        return {"input": header.identity("input") if "input" in header.fields else None}

    @classmethod
    def _called(cls) -> str:
        return "an encrypted result"

    @classmethod
    def _type(cls, program: CompiledProgram) -> ValueType:
        return program.output.type


REPLACED = "It is not what olac made: encrypt or run anew."


def named(error: ArtifactError, header: Header) -> ArtifactError:
    """The error, with where the words came from."""
    return header.error(str(error), "Nothing of it was used: get it again from who made it.")


def tagged(payload: Any, tag: str) -> Any:
    """An OpenFHE ciphertext under a key tag: the same where it has it, else a copy."""
    if payload.GetKeyTag() == tag:
        return payload
    copy = payload.Clone()
    copy.SetKeyTag(tag)
    return copy
