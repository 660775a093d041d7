"""The client: holds the secret key, encrypts images and decrypts results."""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from olac.analysis.estimate import client_bytes
from olac.backends.base import Ciphertext
from olac.backends.session import ClientSession, Engine, available_engine, find_engine
from olac.ckks.key_list import KeyList
from olac.ckks.sizes import WORD_BYTES
from olac.ckks.words import as_bytes
from olac.errors import (
    ArtifactError,
    BackendError,
    ClosedError,
    InfeasibleError,
    InputError,
    MissingKeyError,
)
from olac.ir.head import Outputs
from olac.ir.ops import Array
from olac.kernels.base import Value
from olac.program.program import AnyProgram, check_any_program
from olac.progress import SHOWN_AFTER, Reporter, ShownCounts, counting, showing, with_counts
from olac.runtime import envelope
from olac.runtime.check_ranges import check_output
from olac.runtime.encryptor import PublicKey, check_room_for, encrypted, write_encrypted
from olac.runtime.envelope import open_frame
from olac.runtime.messages import (
    EncryptedInput,
    EncryptedResult,
    EvaluationKeys,
    key_sizes,
    new_identity,
)
from olac.system.files import Output, Source, check_private, check_writable, write_files
from olac.system.forks import check_fork
from olac.system.logs import event as log_event
from olac.system.memory import GB, available_bytes, current_rss_bytes, memory_for

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)
MAKING = "making keys"

MOST_DECIMALS = 15
"""Outputs are rounded to at most this many digits after the point, or before it."""


class Client:
    """Encrypts for one program and decrypts its results.

        with olac.Client(program) as client:
            keys = client.generate_keys()  # for the server
            client.save_secret_key("secret.key")
            encrypted = client.encrypt(images)

    The secret key stays in this object unless `save_secret_key` writes it to a file.

    Args:
        program: the program to encrypt for, or what clients need of it (`CompiledProgram.client()`).
        engine: the engine to make keys for, or the name of its folder in `olac/backends`; None for the one that the
            program was planned for, or for another, with a warning, if that one can't be used on this machine.
        secrets: who makes the secret key, encrypts and decrypts: "openfhe", or "olac" for the vector engine's own code,
            which was not reviewed from outside. None for OpenFHE where it can be loaded, and otherwise for olac, with a
            warning.

    Raises:
        BackendError: there is no such engine, or the one that the program was planned for can't be used on this
            machine, and no other takes the program.
        InfeasibleError: the engine that was asked for does not take the program's parameters.
    """

    def __init__(self, program: AnyProgram, engine: Engine | str | None = None, *, secrets: str | None = None) -> None:
        check_any_program(program)
        self.program = program
        self._engine = available_engine(program.engine, program.parameters) if engine is None else find_engine(engine)
        self._engine.check_takes(program.parameters)
        self._secrets = secrets
        self._session: ClientSession | None = None
        self._identity = ""
        self._closed = False

    def close(self) -> None:
        """Delete the secret key, which is not saved. Nothing can be encrypted or decrypted any more."""
        self._closed = True
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Keys ------------------------------------------------------------------------------------------------------------

    @memory_for("making the keys")
    def generate_keys(self, progress: ShownCounts | Reporter = None) -> EvaluationKeys:
        """Make a new secret key, kept here, and the evaluation keys that a server needs.

        Args:
            progress: None shows a bar if stderr is a terminal, and in a notebook; False shows nothing; True shows lines
                if there is no terminal. A function is called with each `olac.progress.Event`, or, if it takes two
                arguments, as progress(keys made, keys in all).

        Raises:
            InfeasibleError: the keys need more memory than there is; nothing was made.
            ForkError: the process was forked after OpenFHE was used.
            ClosedError: after `close`.
        """
        self._check_open()
        keys = self.program.keys_for(self._engine.model)
        self._check_memory(keys)
        identity = new_identity()
        session = self._engine.client(self.program.parameters, identity, secrets=self._secrets)
        made = self._make(session, identity, keys, progress)
        self._session, self._identity = session, identity
        return made

    @memory_for("making the keys")
    def more_keys(
        self, held: AnyProgram | EvaluationKeys | KeyList, progress: ShownCounts | Reporter = None
    ) -> EvaluationKeys:
        """Make the evaluation keys that the program needs beside those that a server has, with the same secret key.

        A secret key may have any number of evaluation keys under the same parameters. So if a program is compiled anew
        with the same parameters (`olac.compile(..., like=)`), only the keys that are new have to be made and sent.

        Args:
            held: what the server has: the keys, a program whose keys it has, or what clients know of that program.
            progress: as in `generate_keys`.

        Raises:
            ArtifactError: what is held is for other parameters, or of another key pair.
            MissingKeyError: there is no secret key yet.
            InfeasibleError: the keys need more memory than there is; nothing was made.
        """
        session, parameters = self._held(), self.program.parameters
        listed = self._listed(held)
        keys = self.program.keys_for(self._engine.model).lacking(listed)
        self._check_memory(keys)
        # Their own session, so that keys that were made before stay as they are.
        other = self._engine.client(parameters, self._identity, session.secret_words(), self._secrets)
        return self._make(other, self._identity, keys, progress)

    def _listed(self, held: AnyProgram | EvaluationKeys | KeyList) -> KeyList:
        if isinstance(held, KeyList):
            return held
        if isinstance(held, EvaluationKeys):
            if held.identity != self._identity:
                raise ArtifactError(
                    "the evaluation keys are of another key pair. Load the secret key that they are of."
                )
            if held.for_engine != self._engine.key_files:
                raise ArtifactError(
                    f"the evaluation keys are for the engine {held.for_engine!r}, and this client makes keys for "
                    f"{self._engine.title}. Give the client engine={held.for_engine!r}."
                )
            parameters, listed = held.parameters, held.listed
        else:
            check_any_program(held)
            parameters, listed = held.parameters, held.keys_for(self._engine.model)
        if parameters != self.program.parameters:
            raise ArtifactError(
                f"the keys that are held are for other parameters ({parameters.describe()}) than those of the program "
                f"({self.program.parameters.describe()}). Make all keys anew with generate_keys()."
            )
        return listed

    def _make(
        self,
        session: ClientSession,
        identity: str,
        keys: KeyList,
        progress: ShownCounts | Reporter,
    ) -> EvaluationKeys:
        plan = {MAKING: 1.0}
        with showing(
            with_counts(progress), "making keys", "made keys", log, plan, told=False, after=SHOWN_AFTER
        ) as say:
            tell = counting(say, MAKING)
            live = session.make_keys(keys.by_step, keys.relinearise, tell, bootstraps=keys.bootstraps)
            made = EvaluationKeys(self.program.parameters, identity, keys, self._engine, live=live)
            size = sum(key_sizes(self._engine, self.program.parameters, keys))
            say.result = f"{len(keys.names)} keys of {size / GB:.3f} GB"
            log_event(log, f"keys made: {say.result}", keys=len(keys.names), bytes=size, engine=self._engine.model.name)
        return made

    @property
    def identity(self) -> str:
        """The name of the key pair, 32 hexadecimal digits; it is in all that is made with it. Empty without a key."""
        return self._identity

    @property
    def key_file_bytes(self) -> int:
        """Bytes of the evaluation keys in a file, about."""
        return sum(key_sizes(self._engine, self.program.parameters, self.program.keys_for(self._engine.model)))

    @property
    def memory_bytes(self) -> float:
        """Peak memory of a process that makes all keys, about."""
        return self._memory_bytes(self.program.keys_for(self._engine.model))

    def _memory_bytes(self, keys: KeyList) -> float:
        parameters = self.program.parameters
        held = self._engine.held_key_sizes(parameters, keys.by_step, keys.relinearise, bootstraps=keys.bootstraps)
        return client_bytes(self._engine.model, parameters, sum(held))

    def _check_memory(self, keys: KeyList) -> None:
        # The estimate is of a whole process, and this one holds a part of that already.
        needed = self._memory_bytes(keys) - current_rss_bytes()
        available = available_bytes()
        if needed > available:
            size = sum(key_sizes(self._engine, self.program.parameters, keys))
            raise InfeasibleError(
                f"making the keys takes {needed / GB:.2f} GB more than this process holds, {available / GB:.2f} GB are "
                f"available ({len(keys.steps)} rotation keys, files of {size / GB:.2f} GB of keys). "
                "Free memory, take a larger machine, or compile with max_memory for a program with fewer keys."
            )

    @memory_for("making the public key")
    def public_key(self) -> PublicKey:
        """A public key, with which an `Encryptor` encrypts for this client and can't decrypt; each call makes another.

        Raises:
            MissingKeyError: there is no secret key yet.
        """
        session, parameters = self._held(), self.program.parameters
        zero = session.encrypt(np.zeros(parameters.slots), parameters.depth)
        return PublicKey(parameters, self._identity, self._engine.words(parameters, zero, parameters.depth))

    def save_secret_key(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the secret key to a file that only its owner can read.

        Args:
            path: the file; its mode is 0600.
            overwrite: replace a file that is there.

        Raises:
            ArtifactError: the file exists and `overwrite` is False, or it can't be written.
            MissingKeyError: there is no secret key yet.
        """
        check_writable(path, overwrite=overwrite, replaces_key=True)
        write_files([self.secret_key_output(path, overwrite=overwrite)])

    @memory_for("saving the secret key")
    def secret_key_output(self, path: str | Path, *, overwrite: bool = False) -> Output:
        """What `save_secret_key` writes, for `olac.system.files.write_files`, which may write evaluation keys with it.

        Args:
            path, overwrite: as of `save_secret_key`.

        Raises:
            MissingKeyError: there is no secret key yet.
        """
        data = as_bytes(self._held().secret_words())
        pieces = envelope.frame(
            envelope.SECRET_KEY, self.program.parameters, {"keys": self._identity}, [data], len(data)
        )
        return Output(Path(path), pieces, private=True, overwrite=overwrite, replaces_key=overwrite, size=len(data))

    def __reduce__(self) -> NoReturn:
        """Clients are not pickled: the secret key would get out unnoticed."""
        raise ArtifactError(
            "a client can't be pickled or copied, because its secret key would be copied with it. Save the key with "
            "save_secret_key, and load it where it is needed with Client.load."
        )

    @staticmethod
    @memory_for("loading the secret key")
    def load(
        program: AnyProgram, path: str | Path, engine: Engine | str | None = None, *, secrets: str | None = None
    ) -> Client:
        """A client with the secret key from a file of `save_secret_key`, of the same or another engine.

        Args:
            program: any with the parameters that the key was made for, or what clients need of it.
            path: the file.
            engine, secrets: as of `Client`. The file may be of other `secrets`.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind or version, for other parameters, or others
                may read it.
            InfeasibleError: there is not enough memory.
        """
        check_any_program(program)
        parameters = program.parameters
        size = parameters.limbs * parameters.ring_dimension * WORD_BYTES
        with open_frame(Source.of_file(path), envelope.SECRET_KEY, parameters) as payload:
            header = payload.header
            check_private(payload.stream, path)
            check_room_for(program, "loading the secret key")
            identity = header.identity("keys")
            header.expect_payload(size)
            words = np.frombuffer(payload.read(size), "<u8").reshape(parameters.limbs, -1)
            payload.finish()
        client = Client(program, engine, secrets=secrets)
        try:
            client._session = client._engine.client(parameters, identity, words, secrets)
        except ArtifactError as error:
            raise header.error(str(error), "Make new keys.") from error
        client._identity = identity
        return client

    def _check_open(self) -> None:
        check_fork()
        if self._closed:
            raise ClosedError("the client is closed. Make another: Client(program), or Client.load(program, path).")

    def _held(self) -> ClientSession:
        """The session, which holds the secret key."""
        self._check_open()
        if self._session is None:
            raise MissingKeyError("the client has no secret key: call generate_keys(), or Client.load(program, path)")
        return self._session

    # Data ------------------------------------------------------------------------------------------------------------

    @memory_for("encrypting")
    def encrypt(self, images: Any, *, allow_out_of_range: bool = False) -> EncryptedInput:
        """Encrypt images of shape (n, *input shape), or one of shape `input shape`, in true units.

        `program.batch` images share a set of ciphertexts, so a multiple of that is best.

        Warns if values leave the range that their column or channel was calibrated for, because polynomials are only
        right within it.

        Args:
            images: in true units, an array or a tensor of any real type on any device.
            allow_out_of_range: encrypt, with a warning, values that are refused otherwise because they are far outside.

        Raises:
            InputError: another shape, no image, values that are not finite, or values further from the middle of the
                calibrated range than `FAR` times its half width.
        """
        count, sets = encrypted(self._held(), self.program, images, allow_out_of_range)
        live = tuple(itertools.chain.from_iterable(sets))
        return EncryptedInput(self.program, self._identity, count, live=live, engine=self._engine)

    @memory_for("encrypting")
    def encrypt_to(self, path: str | Path, images: Any, *, allow_out_of_range: bool = False) -> None:
        """Encrypt images into a file, the same as `encrypt(images).save(path)`, one set of ciphertexts after the other.

        Memory holds one set, so there may be any number of images; they may be a map of a file
        (`numpy.load(..., mmap_mode="r")`). All are checked before the first is encrypted.

        Args:
            path: of the file, which is complete or absent.
            images, allow_out_of_range: as in `encrypt`.

        Raises:
            InputError: as `encrypt`.
            ArtifactError: the file can't be written.
        """
        found = encrypted(self._held(), self.program, images, allow_out_of_range, kept=False)
        write_encrypted(path, self.program, self._identity, self._engine, *found)

    @memory_for("decrypting")
    def decrypt(
        self,
        result: EncryptedResult,
        *,
        of: EncryptedInput | None = None,
        raw: bool = False,
        decimals: int | None = None,
    ) -> Outputs:
        """The model's outputs, shape (images, *output shape), in true units; integers if its last step is an argmax.

        Warns if they lie far outside the range that they were calibrated to have.

        Args:
            result: of a run of the program on this client's input.
            raw: give what the program's head is applied to, such as logits, shape (images, *raw shape).
            of: the input that the result must be of. This finds results that were mixed up, not a server that lies.
            decimals: round outputs that are to be shared to this number of decimals; -1 rounds to tens. Rounding lowers
                what the noise in the outputs tells about the secret key. It proves nothing: see SECURITY.md.

        Raises:
            ArtifactError: it is no result, or a result of another program, another key or another input than `of`.
            BackendError: the result does not decrypt to numbers: it is damaged, or a value overflowed.
            InputError: `decimals` is no whole number from -15 to 15.
        """
        if decimals is not None and (type(decimals) is not int or abs(decimals) > MOST_DECIMALS):
            raise InputError(f"decimals = {decimals}: give a whole number from {-MOST_DECIMALS} to {MOST_DECIMALS}")
        session, program = self._held(), self.program
        EncryptedResult.check_kind(result)
        if result.program.fingerprint != program.fingerprint:
            raise ArtifactError(f"{result.name} is of another program. Decrypt it with the program that made it.")
        if result.identity != self._identity:
            raise ArtifactError(f"{result.name} was made with other keys. Decrypt it with the secret key of its input.")
        if of is not None:
            result.check_input(of)
        layout, state, type_ = program.output.layout, program.output.state, program.output.type
        check_room_for(program, "decrypting", layout.ciphertexts)
        payloads = result.payloads(session)

        def decrypted() -> Array:
            try:
                return session.decrypt(Ciphertext(next(payloads), state))
            except RuntimeError as error:
                raise BackendError(
                    f"{result.name} does not decrypt: {self._engine.title} found noise in place of numbers. The "
                    "ciphertexts are damaged or were made with another key, or the input lay far outside the "
                    f"calibrated range, so that values overflowed. ({error})"
                ) from error

        sets = (np.stack([decrypted() for _ in range(layout.ciphertexts)]) for _ in range(result.sets))
        images = np.concatenate([layout.unpack(slots) for slots in sets])[: result.images] * type_.unit
        if not all(math.isfinite(v) for v in (float(images.min()), float(images.max()))):
            raise BackendError(f"{result.name} decrypts to values that are not finite")
        message = check_output(images, type_)
        if message:
            # Not logged: it tells of decrypted values.
            warnings.warn(f"{result.name}: {message}", stacklevel=3)  # after the decorator
        outputs = images if raw else program.head.apply(images)
        # Integers of an argmax stay as they are. The sum makes 0.0 of -0.0.
        return outputs if decimals is None or outputs.dtype.kind == "i" else np.round(outputs, decimals) + 0.0

    def slots(self, value: Value) -> Array:
        """All slots of any value of a run, shape (ciphertexts, slots); NaN for ciphertexts that do not decrypt.

        For `olac debug`: like decrypted results, they must not be sent to a server.

        Args:
            value: ciphertexts of one value of a run, as `Server.run(observe=)` shows them.
        """
        session = self._held()
        rows = []
        for part in value:
            try:
                rows.append(session.decrypt(Ciphertext(session.adopt(part.payload), part.state)))
            except RuntimeError:  # the slots are noise
                rows.append(np.full(self.program.parameters.slots, np.nan))
        return np.stack(rows)
