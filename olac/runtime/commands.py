"""Client and server from the command line: every function reads files and writes files, and returns what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from olac.errors import ArtifactError, InputError
from olac.files import check_writable, write_file
from olac.ir.ops import Array
from olac.program import CompiledProgram, check_images
from olac.runtime.client import Client
from olac.runtime.debug import Row
from olac.runtime.debug import debug as compare
from olac.runtime.messages import EncryptedInput, EncryptedResult, EvaluationKeys
from olac.runtime.server import CHECKPOINT_SECONDS, Progress, Server

SECRET_KEY_NAME = "secret.key"
EVALUATION_KEYS_NAME = "evaluation.keys"
MAX_NPY_BYTES = 1 << 32


def keygen(
    program: str | Path,
    out_dir: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, Path]:
    """Make keys: `secret.key`, which stays with the client, and `evaluation.keys`, which goes to the server.

    Raises:
        ArtifactError: the program can't be read, or a secret key is there already and `overwrite` is False.
        InfeasibleError: there isn't memory enough.
    """
    compiled = CompiledProgram.load(program)
    folder = Path(out_dir)
    secret, evaluation = folder / SECRET_KEY_NAME, folder / EVALUATION_KEYS_NAME
    if secret.exists() and not overwrite:
        raise ArtifactError(f"{secret}: exists already and is not overwritten. Choose another folder, or delete it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: the folder can't be made: {error.strerror or error}") from error
    client = Client(compiled)
    keys = client.generate_keys(progress)
    client.save_secret_key(secret, overwrite=overwrite)
    keys.save(evaluation)
    return secret, evaluation


def encrypt(program: str | Path, secret_key: str | Path, images: str | Path, output: str | Path) -> Path:
    """Encrypt images from a .npy file of shape (n, *input shape) or `input shape`.

    Raises:
        ArtifactError: a file is missing or damaged.
        InputError: the array has another shape, type, or values that are not finite.
    """
    check_writable(output)
    compiled = CompiledProgram.load(program)
    array = read_npy(images)
    client = Client.load(compiled, secret_key)
    client.encrypt(array).save(output)
    return Path(output)


def run(
    program: str | Path,
    evaluation_keys: str | Path,
    encrypted: str | Path,
    output: str | Path,
    *,
    max_memory: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Path:
    """Run the program on an encrypted input; needs no secret key.

    Args:
        checkpoint, checkpoint_seconds: as in `Server.run`; the file goes when the result is written.

    Raises:
        ArtifactError: a file is missing, damaged, or belongs to another program, key or, for checkpoints, input.
        MissingKeyError: the evaluation keys don't hold what the program needs.
        InfeasibleError: there isn't memory enough.
    """
    check_writable(output)
    if checkpoint is not None and Path(checkpoint).absolute() == Path(output).absolute():
        raise ArtifactError(f"{output}: is to be the result and the checkpoint. Name two files.")
    compiled = CompiledProgram.load(program)
    given = EncryptedInput.load(compiled, encrypted)
    keys = EvaluationKeys.load(compiled, evaluation_keys)
    # One run takes every weight once: encoded weights are not kept.
    server = Server(compiled, keys, max_memory=max_memory, cache_bytes=0)
    result = server.run(
        given, progress, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds, keep_checkpoint=True
    )
    result.save(output)
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return Path(output)


def decrypt(
    program: str | Path,
    secret_key: str | Path,
    result: str | Path,
    output: str | Path,
    *,
    decimals: int | None = None,
) -> Array:
    """Decrypt a result, write it to a .npy file of shape (images, *output shape) and return it.

    Args:
        decimals: as of `Client.decrypt`, for outputs that are to be shared.

    Raises:
        ArtifactError: a file is missing, damaged, or belongs to another program or key.
        BackendError: the result does not decrypt to numbers.
        InputError: `decimals` is no whole number from -15 to 15.
    """
    check_writable(output)
    compiled = CompiledProgram.load(program)
    client = Client.load(compiled, secret_key)
    values = client.decrypt(EncryptedResult.load(compiled, result), decimals=decimals)
    write_npy(output, values)
    return values


def debug(
    program: str | Path,
    secret_key: str | Path,
    evaluation_keys: str | Path,
    images: str | Path,
    *,
    max_memory: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[Row, ...]:
    """Run the first batch of the images in a .npy file encrypted and simulated, and compare every layer.

    Raises:
        ArtifactError: a file is missing, damaged, or belongs to another program or key.
        InputError: the array has another shape, type, or values that are not finite.
        MissingKeyError: the evaluation keys don't hold what the program needs.
        InfeasibleError: there isn't memory enough.
    """
    compiled = CompiledProgram.load(program)
    given = check_images(read_npy(images), compiled.input_shape)[: compiled.batch]
    client = Client.load(compiled, secret_key)
    keys = EvaluationKeys.load(compiled, evaluation_keys)
    server = Server(compiled, keys, max_memory=max_memory, cache_bytes=0)
    return compare(client, server, given, progress)


def read_npy(path: str | Path) -> Array:
    """An array of numbers from a .npy file, as float64.

    Raises:
        ArtifactError: the file is missing or no .npy file.
        InputError: it holds something else than real numbers.
    """
    given = Path(path)
    try:
        if given.stat().st_size > MAX_NPY_BYTES:
            raise ArtifactError(f"{given}: {given.stat().st_size} bytes are too many for a batch of images")
        # A memory map: nothing is allocated by what the header claims.
        array = np.load(given, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError as error:
        raise ArtifactError(f"{given}: does not exist. Check the path.") from error
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise ArtifactError(f"{given}: not a .npy file of numbers: {error}. Write it with numpy.save.") from error
    if not isinstance(array, np.ndarray):
        raise ArtifactError(f"{given}: an archive of arrays, expected one .npy array. Write it with numpy.save.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{given}: an array of type {array.dtype}, expected real numbers")
    return np.array(array, dtype=np.float64)


def write_npy(path: str | Path, values: Array) -> None:
    """Write an array to a .npy file, completely or not at all."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_file(path, [buffer.getvalue()])
