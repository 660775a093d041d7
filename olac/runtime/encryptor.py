"""Encryption for a client by those who must not decrypt: with its public key."""

from __future__ import annotations

import itertools
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
from olac.errors import ArtifactError, InfeasibleError, InputError, VerificationError
from olac.ir.ops import Array
from olac.program.program import AnyProgram, check_any_program, check_images
from olac.runtime import envelope
from olac.runtime.check_ranges import check_input
from olac.runtime.envelope import Payload
from olac.runtime.framed import FramedKeys, parameters_of
from olac.runtime.messages import MOST_IMAGES, EncryptedInput, sets_of
from olac.system.forks import check_fork
from olac.system.memory import check_room, memory_for
from olac.system.shapes import counted, noun

if TYPE_CHECKING:
    from typing_extensions import Self

REAL_KINDS = "fiub"
"""Kinds of numpy's types of real numbers."""
WORKING_CIPHERTEXTS = 4
"""Room for this many ciphertexts is needed in addition to those that are encrypted or decrypted."""


class PublicKey(FramedKeys):
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


class Encryptor:
    """Encrypts for one program and one client, with the client's public key. It can't decrypt.

    The noise of its ciphertexts is larger than that of a `Client`: about 16 times that of a rescale. Programs that are
    compiled with public_key=True count with it. For others there is a warning: outputs may be less precise.

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
        if not program.public_key:
            warnings.warn(
                "the program was not compiled for inputs that are encrypted with a public key, which have more noise: "
                "outputs may be less precise. Compile it with public_key=True, or encrypt with the secret key.",
                stacklevel=2,
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
        count, sets = encrypted(self._session, self.program, images, allow_out_of_range)
        live = tuple(itertools.chain.from_iterable(sets))
        return EncryptedInput(self.program, self._identity, count, live=live, engine=self._engine)

    @memory_for("encrypting")
    def encrypt_to(self, path: str | Path, images: Any, *, allow_out_of_range: bool = False) -> None:
        """Encrypt any number of images into a file, as `Client.encrypt_to`, with the same errors.

        Args:
            allow_out_of_range: as of `Client.encrypt`.
            images: as of `Client.encrypt_to`.
            path: the file to write.
        """
        check_fork()
        found = encrypted(self._session, self.program, images, allow_out_of_range, kept=False)
        write_encrypted(path, self.program, self._identity, self._engine, *found)


def encrypted(
    session: ClientSession | EncryptorSession,
    program: AnyProgram,
    images: Any,
    allow_out_of_range: bool,
    *,
    kept: bool = True,
) -> tuple[int, Iterator[tuple[Any, ...]]]:
    """How many images there are, and their ciphertexts, set by set, each encrypted when it is asked for.

    All images are checked before the first is encrypted; see `Client.encrypt`.

    Args:
        kept: whether the ciphertexts of all sets are held at a time.
    """
    layout, type_ = program.input.layout, program.input.type
    given = _images(images, program.input_shape)
    if not 1 <= len(given) <= MOST_IMAGES:
        many = counted(len(given), program.input_shape)
        raise InputError(f"{many} are given, 1 to {MOST_IMAGES} can be encrypted at a time")
    sets = sets_of(program, len(given)) if kept else 1
    try:
        check_room_for(program, "encrypting", sets * layout.ciphertexts)
    except InfeasibleError as error:
        raise InfeasibleError(f"{error}{_fewer(program, sets)}") from error
    message = check_input(_encoded(program, given), type_, allow_out_of_range)
    if message:
        warnings.warn(message, stacklevel=4)  # after the decorator
    return len(given), _sets(session, program, given)


def _images(images: Any, shape: tuple[int, ...]) -> Any:
    """Images (n, *shape): an array of that shape as it is, as it may be a map of a large file."""
    if isinstance(images, np.ndarray) and images.shape[1:] == shape and images.dtype.kind in REAL_KINDS:
        return images
    return check_images(images, shape)


def _encoded(program: AnyProgram, images: Any) -> Iterator[Array]:
    """The values that the graph computes with, of the images of one set after the other."""
    for first in range(0, len(images), program.batch):
        yield program.encode(check_images(images[first : first + program.batch], program.input_shape))


def _sets(session: ClientSession | EncryptorSession, program: AnyProgram, images: Any) -> Iterator[tuple[Any, ...]]:
    node = program.input
    for values in _encoded(program, images):
        batch = np.zeros((program.batch, *program.input_shape))
        batch[: len(values)] = values / node.type.unit
        try:
            # No variable holds the ciphertexts, so that those of one set are gone before the next are made.
            yield tuple(session.encrypt(slots, node.state.level) for slots in node.layout.pack(batch))
        except VerificationError as error:
            raise InputError("the input holds values that are too large for any ciphertext of the program") from error


def write_encrypted(
    path: str | Path,
    program: AnyProgram,
    identity: str,
    engine: Engine,
    images: int,
    sets: Iterator[tuple[Any, ...]],
) -> None:
    """Write an encrypted input to a file, a set of ciphertexts as soon as it is there; none is held after that."""
    parameters, level = program.parameters, program.input.state.level

    def words_of(ciphertext: Any) -> Words:
        return engine.words(parameters, ciphertext, level)

    EncryptedInput.write(path, program, identity, images, map(words_of, itertools.chain.from_iterable(sets)))


def _fewer(program: AnyProgram, sets: int) -> str:
    """What to do about inputs whose ciphertexts do not fit in memory, as an end of the error."""
    if sets == 1:
        return ""
    many = noun(program.input_shape, 2)
    packed = "" if program.batch > 1 else f" A program that is compiled with batch= has several {many} in a ciphertext."
    return f" Or encrypt fewer {many} at a time, in several files.{packed}"


def check_room_for(program: AnyProgram, what: str, ciphertexts: int = 0) -> None:
    """Raise InfeasibleError if the engine's objects for n ciphertexts don't fit in memory."""
    parameters = program.parameters
    one = ciphertext_bytes(parameters.log_ring, parameters.limbs + len(parameters.special_primes))
    check_room(LIBRARY_BYTES + (WORKING_CIPHERTEXTS + ciphertexts) * one, what)
