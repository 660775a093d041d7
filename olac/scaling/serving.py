"""A Ray Serve application that runs one program for many clients, each on a replica that holds the client's keys.

A request is a POST of an encrypted input as bytes (`EncryptedInput.to_bytes`). Its header `serve_multiplexed_model_id`
holds the name of the key pair (`EvaluationKeys.identity`), by which Serve finds a replica that has the keys. The answer
is the encrypted result as bytes. A replica without the keys reads them from the folder of all keys, and closes the
server that was used least recently. Errors are texts:

- 400: no such name, no encrypted input, or one of another program or under other keys.
- 404: there are no keys of this name, or not all of them.
- 503: the keys or the run do not fit in memory now.

The name only says where to look: inputs under other keys are refused, and results can be decrypted by the owner of the
keys alone. Who may use the service, and how large requests may be, is up to what stands before it.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from olac.errors import ArtifactError, BackendError, InfeasibleError, MissingKeyError, plain
from olac.program.program import CompiledProgram
from olac.runtime.key_parts import load_keys
from olac.runtime.messages import EncryptedInput
from olac.runtime.server import Server
from olac.scaling.cluster import check_positive
from olac.system.memory import bytes_of

IDENTITY_HEADER = "serve_multiplexed_model_id"
IDENTITY_DIGITS = 32
HEX = frozenset("0123456789abcdef")
OCTETS = "application/octet-stream"


class UnknownKeysError(ArtifactError):
    """There are no keys of the name that a request gives."""


class ClientServers:
    """Makes servers of clients' keys, and runs what they send; what a replica does apart from Serve.

    Args:
        program: the program, or its path.
        keys: a folder that has for each client a folder of key parts, or a file `NAME.keys`, of the key pair's name.
        threads, max_memory: as of `Server`.
    """

    def __init__(
        self, program: CompiledProgram | str, keys: str, threads: int = 1, max_memory: float | str | None = None
    ) -> None:
        self.program = program if isinstance(program, CompiledProgram) else CompiledProgram.load(program)
        self._keys, self._threads, self._max_memory = Path(keys), threads, max_memory

    def find(self, identity: str) -> Path:
        """Where the keys of this name are.

        Raises:
            UnknownKeysError: there are none.
            ArtifactError: it is no name of keys.
        """
        if len(identity) != IDENTITY_DIGITS or set(identity) - HEX:
            raise ArtifactError(
                f"{plain(identity)[:40]!r} is no name of a key pair: send EvaluationKeys.identity, 32 hexadecimal "
                f"digits, in the header {IDENTITY_HEADER}."
            )
        choices = (self._keys / identity, self._keys / f"{identity}.keys")
        path = next((choice for choice in choices if choice.exists()), None)
        if path is None:
            raise UnknownKeysError(f"there are no keys of the name {identity}. Send the evaluation keys first.")
        return path

    def open(self, identity: str) -> Server:
        """A server for the keys of this name.

        Raises:
            ArtifactError: as `find`; or the keys are damaged, of another pair or for other parameters.
            MissingKeyError: some are not there yet.
            InfeasibleError: they do not fit in memory.
        """
        path = self.find(identity)
        keys = load_keys(self.program, path)
        if keys.identity != identity:
            raise ArtifactError(f"{plain(path)} holds the keys of another pair. Put them where their name says.")
        return Server(self.program, keys, threads=self._threads, max_memory=self._max_memory)

    def run(self, server: Server, data: bytes) -> bytes:
        """The result of an input, as bytes."""
        return server.run(EncryptedInput.from_bytes(self.program, data)).to_bytes()

    async def answer(self, server: Any, request: Any) -> tuple[int, bytes]:
        """The status and the body of the answer to a request.

        Args:
            server: gives, awaited, the server of a name.
            request: of starlette.
        """
        try:
            identity = request.headers.get(IDENTITY_HEADER, "")
            self.find(identity)  # before Serve closes another client's server to make room for this one
            found = await server(identity)
            return 200, await asyncio.to_thread(self.run, found, await request.body())
        except (UnknownKeysError, MissingKeyError) as error:
            return 404, str(error).encode()
        except InfeasibleError as error:
            return 503, str(error).encode()
        except (ArtifactError, BackendError) as error:
            return 400 if isinstance(error, ArtifactError) else 500, str(error).encode()


def application(
    program: CompiledProgram | str | Path,
    keys: str | Path,
    *,
    clients: int = 4,
    replicas: int = 1,
    threads: int = 1,
    max_memory: float | str | None = None,
) -> Any:
    """The application, for `serve.run`.

    Args:
        program: the program, or its path on all machines.
        keys: the path, on all machines, of a folder with the keys of all clients: for each a folder of parts
            (`olac.runtime.save_parts`) or a file `NAME.keys`, with the name of the key pair.
        clients: servers that a replica holds at a time, each with one client's keys.
        replicas: processes, each with a program of its own, that answer one request at a time. So a server that is
            closed is not in use, and there are never more than `clients` in memory.
        threads: of a replica, and the CPUs that it takes.
        max_memory: bytes of a replica's process, or text such as "8GB"; also the memory that Ray reserves for it.

    Raises:
        BackendError: Ray Serve is not installed.
        ValueError: an argument is out of range.
    """
    check_positive(clients=clients, replicas=replicas, threads=threads)
    try:
        serve, responses = importlib.import_module("ray.serve"), importlib.import_module("starlette.responses")
    except ImportError as error:
        raise BackendError(
            f'Ray Serve can\'t be imported ({error}). Install it with `pip install "olac[ray-serve]"`.'
        ) from error

    async def server(self: ClientServers, identity: str) -> Server:
        return await asyncio.to_thread(self.open, identity)

    async def call(self: Any, request: Any) -> Any:
        status, body = await self.answer(self.server, request)
        return responses.Response(body, status, media_type=OCTETS if status == 200 else "text/plain; charset=utf-8")

    members = {"server": serve.multiplexed(max_num_models_per_replica=clients)(server), "__call__": call}
    resources: dict[str, Any] = {"num_cpus": threads}
    if max_memory is not None:
        resources["memory"] = int(bytes_of(max_memory, "max_memory"))
    deployment = serve.deployment(
        name="olac", num_replicas=replicas, ray_actor_options=resources, max_ongoing_requests=1
    )(type("Replica", (ClientServers,), members))
    given = program if isinstance(program, CompiledProgram) else str(program)
    return deployment.bind(given, str(keys), threads, max_memory)


def from_arguments(arguments: Mapping[str, Any]) -> Any:
    """The application from arguments of the command line or of a configuration of Serve.

    For example `serve run olac.scaling.serving:from_arguments program=p.olac keys=/keys clients=8 max_memory=8GB`.
    """
    numbers = ("clients", "replicas", "threads")
    given: dict[str, Any] = {name: int(value) if name in numbers else value for name, value in arguments.items()}
    return application(**given)
