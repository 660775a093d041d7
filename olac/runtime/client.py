"""The client: holds the secret key, encrypts images and decrypts results."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from olac import envelope
from olac.backends.openfhe.evaluator import OpenFHEEvaluator
from olac.backends.openfhe.key_maps import KEY_MAPS
from olac.backends.openfhe.keys import make_keys, new_secret_key
from olac.backends.openfhe.wire import wire
from olac.backends.openfhe.words import WORD_BYTES, new_tag
from olac.costs import ciphertext_bytes
from olac.envelope import read_header
from olac.errors import ArtifactError, BackendError, InfeasibleError, InputError, MissingKeyError
from olac.estimate import LIBRARY_BYTES
from olac.files import Output, Source, check_private, check_writable, write_files
from olac.ir.ops import Array
from olac.kernels.base import Value
from olac.memory import available_bytes, check_room, current_rss_bytes, memory_for
from olac.program import CompiledProgram, check_images
from olac.runtime.messages import (
    EncryptedInput,
    EncryptedResult,
    EvaluationKeys,
    needs_relinearisation,
    new_identity,
    tagged,
)

GB = 1e9
WORKING_CIPHERTEXTS = 4
"""Bytes of so many ciphertexts are held beside those that are encrypted or decrypted."""
RANGE_TOLERANCE = 1e-6
"""How far beyond the calibrated range an image may go without a warning, relative to the range."""


class Client:
    """Encrypts for one program and decrypts its results.

    The secret key stays in this object; `save_secret_key` is the only way out.
    """

    def __init__(self, program: CompiledProgram) -> None:
        self.program = program
        self._secret_key: Any = None
        self._identity = ""

    # Keys ------------------------------------------------------------------------------------------------------------

    @memory_for("making the keys")
    def generate_keys(self, progress: Callable[[int, int], None] | None = None) -> EvaluationKeys:
        """Make a new secret key, kept here, and the evaluation keys that a server needs.

        Args:
            progress: called as progress(keys made, keys in all).

        Raises:
            InfeasibleError: the keys need more memory than there is; nothing was made.
        """
        self._check_memory()
        program = self.program
        key, identity = new_secret_key(program.parameters), new_identity()
        relinearise = needs_relinearisation(program)
        with KEY_MAPS.using():
            live = make_keys(program.parameters, key, program.rotations, relinearise, progress)
        self._secret_key, self._identity = key, identity
        return EvaluationKeys(program, identity, program.rotations, relinearise, live=live)

    def _check_memory(self) -> None:
        estimate = self.program.estimate()
        # The estimate counts a whole process; what this one holds already is not needed again.
        needed = estimate.client_gb * GB - current_rss_bytes()
        available = available_bytes()
        if needed > available:
            raise InfeasibleError(
                f"making the keys takes {needed / GB:.2f} GB more than this process holds, {available / GB:.2f} GB are "
                f"available ({len(self.program.rotations)} rotation keys, {estimate.key_bytes / GB:.2f} GB of keys). "
                "Free memory, take a larger machine, or compile with max_memory for a program with fewer keys."
            )

    def save_secret_key(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the secret key to a file that only its owner can read.

        Raises:
            ArtifactError: the file exists and `overwrite` is False, or it can't be written.
            MissingKeyError: there is no secret key yet.
        """
        check_writable(path, overwrite=overwrite, replaces_key=True)
        write_files([self.secret_key_output(path, overwrite=overwrite)])

    @memory_for("saving the secret key")
    def secret_key_output(self, path: str | Path, *, overwrite: bool = False) -> Output:
        """What `save_secret_key` writes, for `olac.files.write_files`: beside the evaluation keys, say.

        Raises:
            MissingKeyError: there is no secret key yet.
        """
        key = self._key()
        words = wire(self.program.parameters).secret_key_words(key)
        raw = np.ascontiguousarray(words, dtype="<u8").tobytes()
        pieces = envelope.frame(envelope.SECRET_KEY, self.program, {"keys": self._identity}, [raw], len(raw))
        return Output(Path(path), pieces, private=True, overwrite=overwrite, replaces_key=overwrite, size=len(raw))

    def __reduce__(self) -> NoReturn:
        """The secret key would leave by a way that nobody looks at."""
        raise ArtifactError(
            "a client is not pickled or copied, since its secret key would go with it. Save the key with "
            "save_secret_key, and load it where it is needed with Client.load."
        )

    @staticmethod
    @memory_for("loading the secret key")
    def load(program: CompiledProgram, path: str | Path) -> Client:
        """A client with the secret key from a file of `save_secret_key`.

        Raises:
            ArtifactError: the file is missing, damaged, or of another kind, version or program, or others may read it.
            InfeasibleError: there isn't memory enough.
        """
        header = read_header(Source.of_file(path), envelope.SECRET_KEY, program)
        check_private(path)
        _check_room(program, "loading the secret key")
        identity = header.identity("keys")
        parameters = program.parameters
        size = parameters.limbs * parameters.ring_dimension * WORD_BYTES
        header.expect_payload(size)
        with header.payload() as payload:
            words = np.frombuffer(payload.read(size), "<u8").reshape(parameters.limbs, -1)
            payload.finish()
        client = Client(program)
        try:
            client._secret_key = wire(parameters).secret_key(words, new_tag())
        except ArtifactError as error:
            raise header.error(str(error), "Make new keys.") from error
        client._identity = identity
        return client

    def _key(self) -> Any:
        if self._secret_key is None:
            raise MissingKeyError("the client has no secret key: call generate_keys(), or Client.load(program, path)")
        return self._secret_key

    # Data ------------------------------------------------------------------------------------------------------------

    @memory_for("encrypting")
    def encrypt(self, images: Any) -> EncryptedInput:
        """Encrypt images of shape (n, *input shape), or one of shape `input shape`, in true units, n <= batch.

        Warns where values leave the range that the program was calibrated for: polynomials are only right inside it.

        Raises:
            InputError: another shape, no image or more than a batch, or values that are not finite.
        """
        key, program = self._key(), self.program
        type_ = program.input.type
        given = check_images(images, program.input_shape)
        if not 1 <= len(given) <= program.batch:
            most = "one image" if program.batch == 1 else f"1 to {program.batch} images"
            raise InputError(
                f"the program takes {most} at a time, not {len(given)}. Encrypt them one after another, or compile "
                "with a larger batch."
            )
        self._warn(given)
        layout, state = type_.layout, type_.state
        assert layout is not None and state is not None
        _check_room(program, "encrypting", layout.ciphertexts)
        batch = np.zeros((program.batch, *program.input_shape))
        batch[: len(given)] = given / type_.unit
        evaluator = self._evaluator()
        try:
            live = tuple(evaluator.encrypt(key, slots, state.level).payload for slots in layout.pack(batch))
        except RuntimeError as error:  # OpenFHE's, which can't be told by class
            raise InputError(
                "OpenFHE can't encrypt the input: it holds values far beyond the range that the program was "
                "calibrated for, which don't fit in a ciphertext."
            ) from error
        return EncryptedInput(program, self._identity, len(given), live=live)

    def _warn(self, images: Array) -> None:
        bound = self.program.input.type.bound
        if bound is None:
            return
        slack = RANGE_TOLERANCE * (bound.high - bound.low)
        low, high = float(images.min()), float(images.max())
        if low < bound.low - slack or high > bound.high + slack:
            warnings.warn(
                f"the images hold values in [{low:.6g}, {high:.6g}], the program was calibrated for "
                f"[{bound.low:.6g}, {bound.high:.6g}]: its outputs may be wrong",
                stacklevel=3,
            )

    @memory_for("decrypting")
    def decrypt(self, result: EncryptedResult) -> Array:
        """The outputs, shape (images, *output shape), in true units.

        Raises:
            ArtifactError: the result belongs to another program or another key.
            BackendError: what comes out is no number: the result is damaged, or a value overflowed.
        """
        key, program = self._key(), self.program
        if result.program.fingerprint != program.fingerprint:
            raise ArtifactError(f"{result.name} is of another program. Decrypt it with the program that made it.")
        if result.identity != self._identity:
            raise ArtifactError(f"{result.name} was made with other keys. Decrypt it with the secret key of its input.")
        type_ = program.output.type
        layout, state = type_.layout, type_.state
        assert layout is not None and state is not None
        _check_room(program, "decrypting", layout.ciphertexts)
        evaluator = self._evaluator()
        slots = []
        for payload in result.payloads(key.GetKeyTag()):
            value = evaluator.wrap(payload)
            try:
                slots.append(evaluator.decrypt(key, type(value)(payload, state)))
            except RuntimeError as error:
                raise BackendError(
                    f"{result.name} does not decrypt: OpenFHE found noise in place of numbers. The ciphertexts are "
                    "damaged or were made with another key, or the input lay far outside the calibrated range, so "
                    f"that values overflowed. ({error})"
                ) from error
        images = layout.unpack(np.stack(slots))[: result.images] * type_.unit
        if not all(math.isfinite(v) for v in (float(images.min()), float(images.max()))):
            raise BackendError(f"{result.name} decrypts to values that are not finite")
        return images

    def slots(self, value: Value) -> Array:
        """All slots of any value of a run, shape (ciphertexts, slots); NaN where a ciphertext does not decrypt.

        For `olac debug`: like decrypted results, they must not go back to a server.
        """
        key, evaluator = self._key(), self._evaluator()
        rows = []
        for part in value:
            try:
                rows.append(evaluator.decrypt(key, replace(part, payload=tagged(part.payload, key.GetKeyTag()))))
            except RuntimeError:  # OpenFHE found noise in place of numbers
                rows.append(np.full(self.program.parameters.slots, np.nan))
        return np.stack(rows)

    def _evaluator(self) -> OpenFHEEvaluator:
        return OpenFHEEvaluator(wire(self.program.parameters).context, self.program.parameters)


def _check_room(program: CompiledProgram, what: str, ciphertexts: int = 0) -> None:
    """Raise InfeasibleError if OpenFHE's objects for so many ciphertexts don't fit in memory."""
    parameters = program.parameters
    one = ciphertext_bytes(parameters.log_ring, parameters.limbs + len(parameters.special_primes))
    check_room(LIBRARY_BYTES + (WORKING_CIPHERTEXTS + ciphertexts) * one, what)
