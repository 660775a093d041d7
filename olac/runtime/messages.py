"""What client and server send each other: evaluation keys, encrypted inputs, encrypted results.

Each holds either OpenFHE objects of this process, which are used as they are when client and server share a process,
or a frame (see `olac.envelope`) that came from outside. None of them holds a secret key.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from olac import envelope
from olac.backends.openfhe.keys import KeySet, install_keys
from olac.backends.openfhe.wire import wire
from olac.backends.openfhe.words import WORD_BYTES, Words, check_words
from olac.bootstrapping import SPECIAL_KEYS
from olac.costs import ciphertext_bytes, rotation_key_bytes
from olac.envelope import Header, Part, read_header
from olac.errors import ArtifactError
from olac.files import Output, Reader, Source, check_writable, write_files
from olac.ir.types import ValueType
from olac.memory import check_room, memory_for
from olac.program import CompiledProgram

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
        self._live = live
        self._header = header
        self._parts: tuple[Part, ...] = ()

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
        """The keys as OpenFHE uses them, read key by key where they came from outside.

        Raises:
            ArtifactError: a key in the file changed after it was opened, or its words are no residues.
        """
        if self._live is None:
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
                    )
                except ArtifactError as error:
                    raise named(error, header) from error
            self._live = live
        return self._live

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
        if self._header is not None:
            with self._header.source.open() as stream:
                while piece := stream.read(envelope.CHUNK):
                    yield piece
            return
        assert self._live is not None
        fields = {"keys": self.identity, "steps": list(self.steps), "relinearisation": self.relinearisation}
        payload = (raw(words) for words in self._live.blocks())
        yield from envelope.frame(envelope.EVALUATION_KEYS, self.program, fields, payload, self._payload_bytes)

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
            ArtifactError: the file can't be written (see `olac.files.write_file`).
            InfeasibleError: memory ran out.
        """
        output = self.output(path)
        check_writable(path, size=output.size)
        with memory_for("saving the evaluation keys"):
            write_files([output])

    def output(self, path: str | Path) -> Output:
        """What `save` writes, for `olac.files.write_files`: beside the secret key, say."""
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
        """Check a file, hash included; the keys themselves are read when a server takes them.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind, version or program.
        """
        return cls._read(program, Source.of_file(path))

    @classmethod
    @memory_for("reading the evaluation keys")
    def _read(cls, program: CompiledProgram, source: Source) -> Self:
        header = read_header(source, envelope.EVALUATION_KEYS, program)
        steps = header.integers("steps", program.rotations)
        keys = cls(program, header.identity("keys"), steps, header.flag("relinearisation"), header=header)
        header.expect_payload(keys._payload_bytes)
        keys._parts = header.check_hash(keys._sizes)
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
        """OpenFHE ciphertexts under a key tag of this process."""
        ready = wire(self.program.parameters)
        _, _, limbs, _ = self._shape(self.program)
        if self._live is None:
            assert self._words is not None
            return tuple(ready.ciphertext(words, limbs - 1, tag) for words in self._words)
        return tuple(tagged(payload, tag) for payload in self._live)

    def _payload(self) -> Iterator[memoryview]:
        if self._words is not None:
            return (raw(words) for words in self._words)
        assert self._live is not None
        ready, level = wire(self.program.parameters), self._shape(self.program)[2] - 1
        return (raw(ready.ciphertext_words(part, level)) for part in self._live)

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that tell these ciphertexts from all others."""
        found = hashlib.sha256(f"{self.kind} {self.identity} {self.images} ".encode())
        for piece in self._payload():
            found.update(piece)
        return found.hexdigest()[:32]

    def _pieces(self) -> Iterator[bytes | memoryview]:
        shape, payload = self._shape(self.program), self._payload()
        fields = {"keys": self.identity, "images": self.images, "ciphertexts": shape[0], "limbs": shape[2]}
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
            ArtifactError: the file can't be written (see `olac.files.write_file`).
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
        header = read_header(source, cls.kind, program)
        shape = cls._shape(program)
        header.integer("ciphertexts", shape[0], shape[0])
        header.integer("limbs", shape[2], shape[2])
        images = header.integer("images", 1, program.batch)
        size = int(np.prod(shape, dtype=np.int64)) * WORD_BYTES
        header.expect_payload(size)
        with header.payload() as payload:
            words = np.frombuffer(payload.read(size), "<u8").reshape(shape)
            payload.finish()
        try:
            for part in words:
                check_words(part.reshape(-1, shape[3]), program.parameters.primes[: shape[2]] * 2, shape[3])
        except ArtifactError as error:
            raise named(error, header) from error
        return cls(program, header.identity("keys"), images, words=words, name=source.name)

    @property
    def name(self) -> str:
        """How errors call it."""
        return self._name or f"the {self.kind}"


class EncryptedInput(_Ciphertexts):
    """A batch of encrypted images; `images` of them are given, the rest of the batch is zeros."""

    kind = envelope.INPUT

    @classmethod
    def _type(cls, program: CompiledProgram) -> ValueType:
        return program.input.type


class EncryptedResult(_Ciphertexts):
    """The encrypted outputs of a batch; those of `images` images count."""

    kind = envelope.RESULT

    @classmethod
    def _type(cls, program: CompiledProgram) -> ValueType:
        return program.output.type


def raw(words: Words) -> memoryview:
    """The bytes of words as they are written, which are not copied."""
    return np.ascontiguousarray(words, dtype="<u8").reshape(-1).data.cast("B")


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
