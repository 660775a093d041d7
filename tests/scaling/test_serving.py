"""One program for several clients: a replica's work, and all of it behind Ray Serve."""

from __future__ import annotations

import asyncio
import socket
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from olac.errors import ArtifactError, BackendError
from olac.program import CompiledProgram
from olac.runtime import Client, EncryptedResult, save_parts
from olac.scaling.serving import IDENTITY_HEADER, ClientServers, UnknownKeysError, application, from_arguments
from tests.runtime.small_program import ERROR, images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


class Service:
    """A program, two clients, and the folder with their keys: of the first as parts, of the second as a file."""

    def __init__(self, folder: Path) -> None:
        self.program: CompiledProgram = small_program()
        self.path, self.keys = folder / "program.olac", folder / "keys"
        self.program.save(self.path)
        self.keys.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.clients = [Client(self.program), Client(self.program)]
            made = [client.generate_keys() for client in self.clients]
        self.names = [keys.identity for keys in made]
        save_parts(made[0], self.keys / made[0].identity)
        made[1].save(self.keys / f"{made[1].identity}.keys")

    def check(self, which: int, data: bytes, seed: int) -> None:
        """The bytes are the result of the images of a seed for a client."""
        result = EncryptedResult.from_bytes(self.program, data)
        wanted = self.program.simulate(images(seed=seed))
        np.testing.assert_allclose(self.clients[which].decrypt(result), wanted, atol=ERROR)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(tmp_path_factory.mktemp("service"))


def answer(service: Service, name: str, body: bytes, opened: list[str] | None = None) -> tuple[int, bytes]:
    """What a replica answers, without Serve."""
    replica = ClientServers(str(service.path), str(service.keys))

    async def server(identity: str) -> Any:
        if opened is not None:
            opened.append(identity)
        return replica.open(identity)

    async def read() -> bytes:
        return body

    return asyncio.run(replica.answer(server, SimpleNamespace(headers={IDENTITY_HEADER: name}, body=read)))


@pytest.mark.parametrize("which", [0, 1])
def test_an_answer(service: Service, which: int) -> None:
    status, body = answer(service, service.names[which], service.clients[which].encrypt(images(seed=3)).to_bytes())
    assert status == 200
    service.check(which, body, 3)


def test_refused_requests(service: Service) -> None:
    given = service.clients[0].encrypt(images()).to_bytes()
    for name, body, wanted, message in (
        ("0" * 32, given, 404, "there are no keys"),
        ("../keys/" + service.names[0], given, 400, "no name of a key pair"),
        ("", given, 400, IDENTITY_HEADER),
        (service.names[1], given, 400, "other keys"),
        (service.names[0], given[:-1], 400, "damaged"),
    ):
        status, text = answer(service, name, body)
        assert (status, message in text.decode()) == (wanted, True), text


def test_unknown_names_close_no_other_clients_server(service: Service) -> None:
    """Serve would make room for them first, so it is not asked."""
    opened: list[str] = []
    for name in ("0" * 32, "no name", service.names[0]):
        answer(service, name, b"", opened)
    assert opened == [service.names[0]]


def test_some_keys_are_not_there_yet(service: Service, tmp_path: Path) -> None:
    folder = service.keys / service.names[0]
    made = sorted(folder.glob("rotation-*.key"))[0]
    away = made.rename(tmp_path / made.name)
    try:
        given = service.clients[0].encrypt(images()).to_bytes()
        assert answer(service, service.names[0], given)[0] == 404
    finally:
        away.rename(made)


def test_keys_under_another_name(service: Service, tmp_path: Path) -> None:
    (tmp_path / f"{'1' * 32}.keys").write_bytes((service.keys / f"{service.names[1]}.keys").read_bytes())
    replica = ClientServers(service.program, str(tmp_path))
    with pytest.raises(ArtifactError, match="another pair"):
        replica.open("1" * 32)
    with pytest.raises(UnknownKeysError):
        replica.open("2" * 32)


def test_without_ray_serve(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"olac\[ray-serve\]"):
        application(service.program, service.keys)


def test_behind_ray_serve(cluster: Any, service: Service) -> None:
    """Two replicas with room for one client each; and a request that is refused does not harm the next."""
    serve: Any = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install olac[ray-serve]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    arguments = {"program": str(service.path), "keys": str(service.keys), "clients": "1", "replicas": "2"}
    try:
        serve.run(from_arguments(arguments), route_prefix="/run")
        for seed in range(2):
            for which in (0, 1):
                given = service.clients[which].encrypt(images(seed=seed)).to_bytes()
                service.check(which, post(port, service.names[which], given), seed)
            with pytest.raises(urllib.error.HTTPError, match="404"):
                post(port, "0" * 32, given)
    finally:
        serve.shutdown()


def post(port: int, name: str, data: bytes) -> bytes:
    """The body of an answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/run", data, {IDENTITY_HEADER: name})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return bytes(reply.read())
