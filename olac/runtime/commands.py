"""Client and server for the command line: each function reads files, writes files and returns what it wrote."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from olac.backends.session import Preparing
from olac.errors import ArtifactError, InfeasibleError, InputError, plain
from olac.ir.head import Outputs
from olac.ir.ops import Array
from olac.pages.record import RunRecord
from olac.program.program import AnyProgram, CompiledProgram, check_images, load_any_program, wrong_shape
from olac.progress import SHOWN_AFTER, Event, Reporter, Shown, ShownCounts, exact_duration, showing
from olac.runtime.client import Client
from olac.runtime.debug import Row, comparison
from olac.runtime.encryptor import Encryptor, PublicKey
from olac.runtime.envelope import PUBLIC_KEY, kind_of
from olac.runtime.estimates import Forecast, forecast
from olac.runtime.key_parts import load_keys, save_parts
from olac.runtime.messages import MOST_IMAGES, EncryptedInput, EncryptedResult, sets_of
from olac.runtime.progress import in_sets
from olac.runtime.records import Recorder
from olac.runtime.server import CHECKPOINT_SECONDS, Asked, Server
from olac.system.files import (
    Output,
    Source,
    check_apart,
    check_folder,
    check_writable,
    make_folder,
    write_files,
)
from olac.system.memory import GB, memory_for, peak_rss_bytes, ran_out
from olac.system.shapes import counted

log = logging.getLogger(__name__)

SECRET_KEY_NAME = "secret.key"
EVALUATION_KEYS_NAME = "evaluation.keys"
PARTS_NAME = "evaluation"


def keygen(
    program: str | Path,
    out_dir: str | Path,
    *,
    overwrite: bool = False,
    progress: ShownCounts | Reporter = None,
    engine: str | None = None,
    parts: bool = False,
) -> tuple[Path, Path]:
    """Make keys: `secret.key`, which stays with the client, and `evaluation.keys`, which the server needs.

    Both are complete before either takes its name.

    Args:
        program: the file of the program, or of what clients need of it, as for all commands of clients.
        parts: write the evaluation keys to a folder, one file a key (`olac.runtime.key_parts`); its name ends with that
            of the key pair.
        engine: that will run the program; None for the one that it was planned for.

    Raises:
        ArtifactError: the program can't be read, a secret key is there already and `overwrite` is False, or the keys
            can't be written.
        InfeasibleError: there is not enough memory.
    """
    folder = Path(out_dir)
    secret, evaluation = folder / SECRET_KEY_NAME, folder / EVALUATION_KEYS_NAME
    check_apart({"secret key": secret, "file of evaluation keys": evaluation}, {"program": program})
    client = Client(load_any_program(program), engine)
    size = client.key_file_bytes
    if folder.exists():
        check_writable(secret, overwrite=overwrite, replaces_key=True, special=False)
        check_writable(evaluation, size=size)
    else:
        check_folder(folder, size)
    keys = client.generate_keys(progress)
    make_folder(folder)
    if parts:
        evaluation = folder / f"{PARTS_NAME}-{keys.identity}"
        # A secret key that is replaced is written last, as below.
        if not overwrite:
            client.save_secret_key(secret)
        save_parts(keys, evaluation)
        if overwrite:
            client.save_secret_key(secret, overwrite=True)
        return secret, evaluation
    pair = [client.secret_key_output(secret, overwrite=overwrite), keys.output(evaluation)]
    # A secret key that is replaced is written last, because until then its results can be decrypted. A new one is
    # written first, because that fails if a secret key has appeared in the meantime.
    with memory_for("saving the keys"):
        write_files(pair[::-1] if overwrite else pair)
    return secret, evaluation


def more_keys(
    program: str | Path,
    secret_key: str | Path,
    held: str | Path,
    output: str | Path,
    *,
    progress: ShownCounts | Reporter = None,
    engine: str | None = None,
) -> tuple[str, ...]:
    """Make the evaluation keys that a program needs beside those of an earlier one, with the same secret key.

    They are written to a folder, one file a key; if keys of the pair are there already, beside them.

    Args:
        held: the earlier program, or what clients need of it, whose keys the server has.
        engine: as in `keygen`.

    Returns:
        the names of the parts that were made; none if the server has all.

    Raises:
        ArtifactError: a file is missing or damaged, the programs have other parameters, or the keys can't be written.
        InfeasibleError: there is not enough memory.
    """
    check_apart({"folder of keys": output}, {"program": program, "secret key": secret_key, "program before": held})
    client = Client.load(load_any_program(program), secret_key, engine)
    made = client.more_keys(load_any_program(held), progress)
    if made.listed:
        save_parts(made, output)
    return made.listed.names


def public_key(program: str | Path, secret_key: str | Path, output: str | Path) -> Path:
    """Write a public key, for those who encrypt and must not decrypt.

    Raises:
        ArtifactError: a file is missing or damaged, or the key can't be written.
    """
    check_apart({"public key": output}, {"program": program, "secret key": secret_key})
    check_writable(output)
    Client.load(load_any_program(program), secret_key).public_key().save(output)
    return Path(output)


def encrypt(
    program: str | Path,
    secret_key: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    allow_out_of_range: bool = False,
    announce: Callable[[Encrypted], None] | None = None,
    progress: Shown = None,
) -> Path:
    """Encrypt inputs from a .npy file of shape (n, *input shape) or `input shape`.

    Args:
        secret_key: or a public key, which can't decrypt.
        allow_out_of_range: as in `Client.encrypt`.
        announce: called with what was encrypted, when it is written.
        progress: how it is shown (`olac.progress.Shown`).

    Raises:
        ArtifactError: a file is missing or damaged.
        InputError: the array has another shape, type, values that are not finite or far outside the calibrated range.
    """
    inputs = {"program": program, "secret key": secret_key, "file of inputs": images}
    check_apart({"encrypted input": output}, inputs)
    check_writable(output)
    with showing(progress, "encrypting", "encrypted", log, after=SHOWN_AFTER) as say:
        say(Event("reading the program and the key", "reading"))
        compiled = load_any_program(program)
        array = open_npy(images, compiled.input_shape)
        client: Client | Encryptor
        if kind_of(secret_key) == PUBLIC_KEY:
            client = Encryptor(compiled, PublicKey.load(compiled, secret_key))
        else:
            client = Client.load(compiled, secret_key)
        say(Event(f"encrypting {counted(len(array), compiled.input_shape)}", "encrypting"))
        try:
            client.encrypt_to(output, array, allow_out_of_range=allow_out_of_range)
        except InputError as error:
            raise InputError(f"{plain(images)}: {error}") from error
        made = Encrypted(compiled, len(array), Path(output))
        if announce is not None:
            announce(made)
        else:
            say.result = str(made)
    return Path(output)


def run(
    program: str | Path,
    evaluation_keys: str | Path,
    encrypted: str | Path,
    output: str | Path,
    *,
    max_memory: float | str | None = None,
    progress: Asked = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    preparing: Preparing | None = None,
    engine: str | None = None,
    announce: Callable[[Forecast], None] | None = None,
    ended: Callable[[Ran], None] | None = None,
    record: str | Path | None = None,
) -> Path:
    """Run the program on an encrypted input; needs no secret key.

    Args:
        evaluation_keys: a file, or a folder of parts.
        preparing: as in `Server`.
        engine: as in `Server`.
        announce: called with what the run will take, before it begins. With a limit of memory this machine is not
            measured for that.
        checkpoint, checkpoint_seconds: as in `Server.run`; the file is deleted when the result is written.
        ended: called with what the run was, after the result is written.
        record: the file to write what the run took to, for reports (`olac.pages.record`).

    Raises:
        ArtifactError: a file is missing, damaged, or belongs to another program, key or, for checkpoints, input.
        MissingKeyError: the evaluation keys don't hold what the program needs.
        InfeasibleError: there is not enough memory.
    """
    inputs = {"program": program, "file of evaluation keys": evaluation_keys, "encrypted input": encrypted}
    check_apart({"result": output, "checkpoint": checkpoint, "record": record}, inputs)
    check_writable(output)
    if record is not None:
        check_writable(record)
    if checkpoint is not None:
        check_writable(checkpoint, special=False)
    compiled = CompiledProgram.load(program)
    given = EncryptedInput.open(compiled, encrypted)
    keys = load_keys(compiled, evaluation_keys)
    if announce is not None:
        announce(forecast(compiled, keys.choose_engine(engine), measure=not (max_memory or compiled.max_memory)))
    # One run uses every weight once, so encoded weights are not kept.
    server = Server(compiled, keys, max_memory=max_memory, cache_bytes=0, engine=engine, preparing=preparing)
    recorder = Recorder(progress if callable(progress) else None)
    asked = progress if record is None else recorder
    start = time.monotonic()
    kept = server.run_to(output, given, asked, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds)
    seconds = time.monotonic() - start
    if record is not None:
        recorder.record(server, given.images).save(record)
    if ended is not None:
        shape, peak = compiled.input_shape, peak_rss_bytes() / GB
        removed = kept is not None and not kept.exists()
        ended(Ran(shape, given.images, given.sets, seconds, peak, Path(output), kept, removed))
    return Path(output)


@dataclass(frozen=True)
class Encrypted:
    """What was encrypted; its text says so in one line.

    Attributes:
        program: that the input is for.
        images: of the input.
        output: the file of the encrypted input.
    """

    program: AnyProgram
    images: int
    output: Path

    def __str__(self) -> str:
        ciphertexts = sets_of(self.program, self.images) * self.program.input.layout.ciphertexts
        many = f"{ciphertexts} ciphertext{'s' if ciphertexts != 1 else ''}"
        size = EncryptedInput.bytes_of(self.program, self.images) / 1e6
        return f"{plain(self.output)}: {counted(self.images, self.program.input_shape)} in {many}, {size:.1f} MB"


@dataclass(frozen=True)
class Ran:
    """What a run was; its text says so in one line.

    Attributes:
        shape: of one input.
        images, sets: of the input, and the sets of ciphertexts that hold them.
        seconds: of the run, without loading and saving.
        peak_gb: peak memory of this process.
        output: the file of the result.
        checkpoint: the file that held the run's state; None if there was none.
        removed: whether that was deleted.
    """

    shape: tuple[int, ...]
    images: int
    sets: int
    seconds: float
    peak_gb: float
    output: Path
    checkpoint: Path | None = None
    removed: bool = False

    def __str__(self) -> str:
        line = (
            f"ran in {exact_duration(self.seconds)}: {in_sets(self.images, self.sets, self.shape, self.seconds)}, "
            f"{self.peak_gb:.2f} GB at the peak; written to {plain(self.output)}"
        )
        if self.checkpoint is None:
            return line
        return f"{line}; the checkpoint {plain(self.checkpoint)} was {'deleted' if self.removed else 'kept'}"


def decrypt(
    program: str | Path,
    secret_key: str | Path,
    result: str | Path,
    output: str | Path,
    *,
    encrypted: str | Path | None = None,
    raw: bool = False,
    decimals: int | None = None,
    announce: Callable[[AnyProgram], None] | None = None,
) -> Outputs:
    """Decrypt a result, write it to a .npy file of shape (images, *output shape) and return it.

    The file holds integers if the model's last step is an argmax.

    Args:
        encrypted: the input that the result must be of, if that is to be checked.
        raw: leave out the model's last steps, which the client computes.
        decimals: as in `Client.decrypt`.
        announce: called with the program, or what the file holds of it, before the result is decrypted.

    Raises:
        ArtifactError: a file is missing, damaged, or belongs to another program, key or input.
        BackendError, InputError: as `Client.decrypt`.
    """
    check_apart(
        {"output": output}, {"program": program, "secret key": secret_key, "result": result, "input": encrypted}
    )
    check_writable(output)
    compiled = load_any_program(program)
    client = Client.load(compiled, secret_key)
    if announce is not None:
        announce(compiled)
    given = None if encrypted is None else EncryptedInput.open(compiled, encrypted)
    values = client.decrypt(EncryptedResult.open(compiled, result), of=given, raw=raw, decimals=decimals)
    write_npy(output, values)
    return values


def debug(
    program: str | Path,
    secret_key: str | Path,
    evaluation_keys: str | Path,
    images: str | Path,
    *,
    max_memory: float | str | None = None,
    progress: Asked = None,
    preparing: Preparing | None = None,
    record: str | Path | None = None,
) -> tuple[Row, ...]:
    """Run the first batch of the images in a .npy file encrypted and simulated, and compare every layer.

    Args:
        preparing: as in `Server`.
        record: the file to write the comparison to, for reports (`olac.pages.record`). It tells of values of the
            images, so only its owner may read it.

    Raises:
        ArtifactError: a file is missing, damaged, or belongs to another program or key.
        InputError: the array has another shape, type, or values that are not finite.
        MissingKeyError: the evaluation keys don't hold what the program needs.
        InfeasibleError: there is not enough memory.
    """
    if record is not None:
        inputs = {"program": program, "secret key": secret_key, "evaluation keys": evaluation_keys, "images": images}
        check_apart({"record": record}, inputs)
        check_writable(record)
    compiled = CompiledProgram.load(program)
    given = read_npy(images, compiled.input_shape, compiled.batch)
    client = Client.load(compiled, secret_key)
    keys = load_keys(compiled, evaluation_keys)
    server = Server(compiled, keys, max_memory=max_memory, cache_bytes=0, preparing=preparing)
    found = comparison(client, server, given, progress)
    if record is not None:
        RunRecord.of_comparison(compiled.fingerprint, found).save(record)
    return found.rows


def read_npy(path: str | Path, shape: tuple[int, ...], most: int | None = None) -> Array:
    """Images from a .npy file of shape (n, *shape) or `shape`, as float64 of shape (n, *shape).

    Args:
        most: images to take, the first of the file; None for all.

    Raises:
        ArtifactError, InfeasibleError: as `open_npy`.
        InputError: as `open_npy`, or numbers are not finite.
    """
    images = open_npy(path, shape)
    try:
        return check_images(images[:most], shape)
    except InputError as error:
        raise InputError(f"{plain(path)}: {error}") from error


def open_npy(path: str | Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A map of the images in a .npy file of shape (n, *shape) or `shape`, as shape (n, *shape); nothing is read yet.

    Raises:
        ArtifactError: the file is missing or no .npy file.
        InputError: it holds something other than real numbers, or has another shape.
        InfeasibleError: memory ran out.
    """
    source = Source.of_file(path)
    try:
        # A memory map, because nothing must be allocated that only the header claims.
        array = np.load(Path(path), allow_pickle=False, mmap_mode="r")
    except Exception as error:  # numpy parses headers as Python code: TokenError, RecursionError and others
        if ran_out(error):
            raise InfeasibleError(
                f"{source.name}: memory ran out. Free some, or raise the limits (ulimit -v)."
            ) from error
        raise ArtifactError(
            f"{source.name}: not a .npy file of numbers ({type(error).__name__}). Write it with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray):
        raise ArtifactError(f"{source.name}: an archive of arrays, expected one .npy array. Write it with numpy.save.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{source.name}: an array of type {plain(array.dtype)[:40]}, expected real numbers")
    # This is checked before anything of the array's size is made: a file with holes takes no room on a disk.
    if array.shape != shape and array.shape[1:] != shape:
        raise InputError(f"{source.name}: {wrong_shape(array.shape, shape)}, and save that")
    images = array[None] if array.shape == shape else array
    if len(images) > MOST_IMAGES:
        many = counted(len(images), shape)
        raise InputError(f"{source.name}: {many}, at most {MOST_IMAGES} are possible. Split the file.")
    return images


def write_npy(path: str | Path, values: Outputs) -> None:
    """Write an array to a .npy file that only its owner may read, completely or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    data = buffer.getvalue()
    write_files([Output(Path(path), [data], private=True, size=len(data))])
