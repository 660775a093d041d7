"""Encryption for a client by those who must not decrypt: with its public key."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from olac.analysis.estimate import LIBRARY_BYTES
from olac.backends.session import ClientSession, EncryptorSession, Engine, available_engine, find_engine
from olac.ckks.parameters import Parameters
from olac.ckks.sizes import ciphertext_bytes
from olac.ckks.words import Words, as_bytes, check_words
from olac.errors import ArtifactError, InputError, VerificationError
from olac.program.program import AnyProgram, check_any_program, check_images
from olac.runtime import envelope
from olac.runtime.check_ranges import check_input
from olac.runtime.envelope import Owner, Payload
from olac.runtime.framed import Framed
from olac.runtime.messages import MOST_IMAGES, EncryptedInput, parameters_of, sets_of
from olac.system.files import Source
from olac.system.forks import check_fork
from olac.system.memory import check_room, memory_for

if TYPE_CHECKING:
    from typing_extensions import Self

WORKING_CIPHERTEXTS = 4
"""Room for this many ciphertexts is needed in addition to those that are encrypted or decrypted."""


class PublicKey(Framed):
    """A public key: an encryption of zero, with which anybody encrypts and nobody decrypts.

    Attributes:
        parameters: those that it is for.
        identity: the name of its key pair.
        words: shape (2, limbs, N).

    Args:
        parameters, identity, words: as the attributes. `Client.public_key` and `load` make public keys.
    """

    kind = envelope.PUBLIC_KEY
    contents = "the public key"

    def __init__(self, parameters: Parameters, identity: str, words: Words) -> None:
        self.parameters = parameters
        self.identity = identity
        self.words = words

    @property
    def payload_bytes(self) -> int:
        """Bytes of the words."""
        return ciphertext_bytes(self.parameters.log_ring, self.parameters.limbs)

    def _pieces(self) -> Iterator[bytes | memoryview]:
        fields = {"keys": self.identity}
        yield from envelope.frame(self.kind, self.parameters, fields, [as_bytes(self.words)], self.payload_bytes)

    @property
    def _belongs_to(self) -> Parameters:
        return self.parameters

    @classmethod
    def _owner(cls, given: AnyProgram | Parameters) -> Owner:
        return parameters_of(given)

    @classmethod
    def _of(cls, given: AnyProgram | Parameters, payload: Payload) -> Self:
        header, parameters = payload.header, parameters_of(given)
        size = ciphertext_bytes(parameters.log_ring, parameters.limbs)
        identity = header.identity("keys")
        header.expect_payload(size)
        words = np.frombuffer(payload.read(size), "<u8").reshape(2 * parameters.limbs, -1)
        payload.finish()
        with header.named_in_errors():
            check_words(words, parameters.primes * 2, parameters.ring_dimension)
        return cls(parameters, identity, words.reshape(2, parameters.limbs, -1))

    @classmethod
    def from_bytes(cls, program: AnyProgram | Parameters, data: bytes) -> Self:
        """Check and read the result of `to_bytes`, with the errors of `load`.

        Args:
            program: a program, what clients know of it, or parameters.
            data: what `to_bytes` gave.
        """
        return cls._read(program, Source(data=data))

    @classmethod
    def load(cls, program: AnyProgram | Parameters, path: str | Path) -> Self:
        """Read and check a file.

        Args:
            program: a program, what clients know of it, or parameters.
            path: the file.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind or version, or for other parameters.
        """
        return cls._read(program, Source.of_file(path))


class Encryptor:
    """Encrypts for one program and one client, with the client's public key. It can't decrypt.

    The noise of its ciphertexts is larger than that of a `Client`: about 16 times that of a rescale. Programs that are
    compiled with public_key=True count with it; others may give less precise outputs.

    Args:
        program: the program to encrypt for, or what clients need of it.
        public_key: of the client: `Client.public_key()`, or `PublicKey.load`.
        engine, secrets: as of `Client`; `secrets` says whose code encrypts.

    Raises:
        ArtifactError: it is no program, or the public key is for other parameters.
        BackendError, InfeasibleError: as of `Client`.
    """

    def __init__(
        self,
        program: AnyProgram,
        public_key: PublicKey,
        engine: Engine | str | None = None,
        *,
        secrets: str | None = None,
    ) -> None:
        check_fork()
        check_any_program(program)
        if not isinstance(public_key, PublicKey):
            raise ArtifactError(
                f"an object of type {type(public_key).__name__} was given, expected a public key: "
                "Client.public_key(), or PublicKey.load(program, path)"
            )
        parameters = program.parameters
        if public_key.parameters != parameters:
            raise ArtifactError(
                f"the public key is for other parameters ({public_key.parameters.describe()}) than those of the "
                f"program ({parameters.describe()}). Take the public key of a client of this program."
            )
        self.program = program
        self._engine = available_engine(program.engine, parameters) if engine is None else find_engine(engine)
        self._engine.check_takes(parameters)
        self._identity = public_key.identity
        self._session = self._engine.encryptor(parameters, self._identity, public_key.words, secrets)

    @memory_for("encrypting")
    def encrypt(self, images: Any, *, allow_out_of_range: bool = False) -> EncryptedInput:
        """Encrypt images, as `Client.encrypt`.

        Args:
            images, allow_out_of_range: as of `Client.encrypt`.

        Raises:
            InputError: as `Client.encrypt`.
        """
        check_fork()
        live, count = encrypted(self._session, self.program, images, allow_out_of_range)
        return EncryptedInput(self.program, self._identity, count, live=live, engine=self._engine)


def encrypted(
    session: ClientSession | EncryptorSession, program: AnyProgram, images: Any, allow_out_of_range: bool
) -> tuple[tuple[Any, ...], int]:
    """Ciphertexts of images and how many images there are; see `Client.encrypt`."""
    layout, level, type_ = program.input.layout, program.input.state.level, program.input.type
    given = check_images(images, program.input_shape)
    if not 1 <= len(given) <= MOST_IMAGES:
        raise InputError(f"{len(given)} images are given, 1 to {MOST_IMAGES} can be encrypted at a time")
    sets = sets_of(program, len(given))
    check_room_for(program, "encrypting", sets * layout.ciphertexts)
    encoded = program.encode(given)
    message = check_input(encoded, type_, allow_out_of_range)
    if message:
        warnings.warn(message, stacklevel=4)  # after the decorator
    padded = np.zeros((sets, program.batch, *program.input_shape))
    padded.reshape(-1, *program.input_shape)[: len(given)] = encoded / type_.unit
    try:
        return tuple(session.encrypt(slots, level) for batch in padded for slots in layout.pack(batch)), len(given)
    except VerificationError as error:
        raise InputError("the input holds values that are too large for any ciphertext of the program") from error


def check_room_for(program: AnyProgram, what: str, ciphertexts: int = 0) -> None:
    """Raise InfeasibleError if the engine's objects for n ciphertexts don't fit in memory."""
    parameters = program.parameters
    one = ciphertext_bytes(parameters.log_ring, parameters.limbs + len(parameters.special_primes))
    check_room(LIBRARY_BYTES + (WORKING_CIPHERTEXTS + ciphertexts) * one, what)
