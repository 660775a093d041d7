"""`olac remote run`: keys, encryption and decryption here, the run on a server."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from olac.errors import ArtifactError, plain
from olac.ir.head import Outputs
from olac.ir.ops import Array
from olac.runtime import Client, EncryptedInput, KeyFolder, save_parts
from olac.runtime.commands import PARTS_NAME, SECRET_KEY_NAME, read_npy, write_npy
from olac.serving.remote import RemoteServer
from olac.system.files import check_apart, check_writable, make_folder
from olac.system.shapes import counted

AHEAD = 8
"""Batches that are on the server at once."""
SETS = 8
"""Sets of ciphertexts in a batch, which share the encoding of weights."""


def remote_run(
    server: RemoteServer,
    images: str | Path,
    output: str | Path,
    *,
    keys: str | Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    decimals: int | None = None,
    raw: bool = False,
    allow_out_of_range: bool = False,
) -> Outputs:
    """Encrypt images, run them on a server, decrypt the results and write them to a .npy file.

    Args:
        images: a .npy file of shape (n, *input shape); more than a batch are sent as several jobs.
        keys: a folder with the keys of this client, which are made if it holds none. None for keys that serve this call
            alone: they are made, and deleted here and on the server afterwards.
        tell: called with a line about what is done.
        decimals, raw: as in `Client.decrypt`.
        allow_out_of_range: as in `Client.encrypt`.

    Returns:
        the outputs, shape (n, *output shape).

    Raises:
        OlacError: as `RemoteServer` and `olac.runtime.commands`.
    """
    folder = None if keys is None else Path(keys)
    check_apart({"output": output}, {"file of inputs": images})
    check_writable(output)
    program = server.program
    given = read_npy(images, program.input_shape)
    with ExitStack() as stack:
        client, parts = stack.enter_context(_keys(server, folder, tell))
        if folder is None:
            stack.callback(server.delete_keys, client.identity)
        sent = server.upload_keys(parts, lambda done, total: tell(f"keys: {done} of {total}"))
        tell(f"{len(sent)} keys were sent")
        found = list(_results(server, client, given, tell, decimals, raw, allow_out_of_range))
    values: Outputs = np.concatenate(found)
    write_npy(output, values)
    return values


@contextmanager
def _keys(server: RemoteServer, folder: Path | None, tell: Callable[[str], None]) -> Iterator[tuple[Client, KeyFolder]]:
    """A client, and its evaluation keys in parts."""
    program = server.program
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="olac-keys-") as place, Client(program) as client:
            tell("making keys")
            yield client, save_parts(client.generate_keys(), Path(place) / PARTS_NAME)
        return
    secret = folder / SECRET_KEY_NAME
    if secret.exists():
        with Client.load(program, secret) as client:
            parts = folder / f"{PARTS_NAME}-{client.identity}"
            if not parts.is_dir():
                raise ArtifactError(
                    f"{plain(parts)}: does not exist, so the evaluation keys of {plain(secret)} are missing. Make them "
                    "with olac keygen --parts, or name a new folder with --keys."
                )
            held = KeyFolder(program, parts, client.identity)
            if held.missing(program):
                tell("making the keys that are missing")
                save_parts(client.more_keys(held.listed), parts)
            yield client, held
        return
    make_folder(folder)
    check_writable(secret, overwrite=False, replaces_key=True, special=False)
    with Client(program) as client:
        tell("making keys")
        made = client.generate_keys()
        client.save_secret_key(secret)
        yield client, save_parts(made, folder / f"{PARTS_NAME}-{client.identity}")


def _results(
    server: RemoteServer,
    client: Client,
    images: Array,
    tell: Callable[[str], None],
    decimals: int | None,
    raw: bool,
    allow_out_of_range: bool,
) -> Iterator[Outputs]:
    """The outputs of batch after batch; some batches are on the server ahead."""
    batch = SETS * server.program.batch
    starts = range(0, len(images), batch)
    waiting: deque[tuple[str, EncryptedInput]] = deque()
    done = 0

    def take() -> Outputs:
        nonlocal done
        job, encrypted = waiting[0]
        result = server.result(job, encrypted)
        waiting.popleft()
        done += encrypted.images
        tell(f"{done} of {counted(len(images), server.program.input_shape)}")
        return client.decrypt(result, of=encrypted, raw=raw, decimals=decimals)

    try:
        for start in starts:
            if len(waiting) >= AHEAD:
                yield take()
            encrypted = client.encrypt(images[start : start + batch], allow_out_of_range=allow_out_of_range)
            waiting.append((server.submit(encrypted), encrypted))
        while waiting:
            yield take()
    finally:
        for job, _ in waiting:
            server.cancel(job)


__all__ = ["remote_run"]
