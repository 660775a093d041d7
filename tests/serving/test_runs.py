"""Runs on real workers and servers: eviction, processes that are killed, uploads that break off, many at once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from olac.cli import main
from olac.errors import ArtifactError, MissingKeyError
from olac.runtime import Client, EncryptedResult
from olac.serving.programs import publish
from olac.serving.remote import RemoteError, RemoteJob, RemoteServer
from tests.runtime.small_program import DEEP_ERROR, DEEP_SHAPE, deep_program, images
from tests.serving.served import (
    TOKENS,
    ServerProcess,
    data_folder,
    free_port,
    is_alive,
    new_side,
    program,
    right,
    served,
    service_of,
    wait_for,
    workers_of,
)

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return data_folder(tmp_path)


def url_of(http: httpx.Client) -> str:
    return str(http.base_url)


def test_two_clients_and_room_for_one(small: Path, tmp_path: Path) -> None:
    service = service_of(small, memory=3e8)
    service.pool.settings = replace(service.pool.settings, turn_seconds=0.0)
    sides = {name: new_side(tmp_path / name) for name in ("alice", "bob")}
    most = [0]

    def watch(_: RemoteJob) -> None:
        most[0] = max(most[0], len(workers_of(os.getpid())))
        assert service.pool.held_bytes <= 3e8

    with served(service) as http:
        for name, seed in (("alice", 1), ("bob", 1), ("alice", 2)):
            side = sides[name]
            with RemoteServer(url_of(http), "small", token=TOKENS[name]) as server:
                assert len(server.upload_keys(side.parts)) == (len(side.parts.names) if seed == 1 else 0)
                encrypted = side.input(seed)
                result = server.run(encrypted, watch)
                assert right(side, side.client.decrypt(result, of=encrypted), seed)
        assert service.pool.counts.evicted == 2 and most == [1]
        assert service.store.jobs() == []  # `run` forgets its jobs


def test_an_upload_that_broke_off_is_resumed(small: Path, tmp_path: Path) -> None:
    service, side = service_of(small), new_side(tmp_path / "alice")
    first, second, *others = side.parts.names
    with served(service) as http, RemoteServer(url_of(http), "small", token=TOKENS["alice"]) as server:
        data = side.parts.path(first).read_bytes()
        host, port = http.base_url.host, http.base_url.port or 80
        head = (
            f"PUT /v1/keys/{side.parts.identity}/{first}?program=small HTTP/1.1\r\nHost: {host}\r\n"
            f"Authorization: Bearer {TOKENS['alice']}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        with socket.create_connection((host, port)) as raw:
            raw.sendall(head.encode() + data[: len(data) // 2])
            wait_for(lambda: list((small / "uploads").iterdir()))
        wait_for(lambda: not list((small / "uploads").iterdir()))
        assert sorted(server.missing(side.parts.identity)) == sorted(side.parts.names)
        server._send_part(side.parts, second)
        assert sorted(server.upload_keys(side.parts)) == sorted((first, *others))
        assert server.missing(side.parts.identity) == ()
        with pytest.raises(MissingKeyError, match="upload_keys"):
            server.submit(new_side(tmp_path / "other").input())


class Deep:
    """A program with bootstraps on a server, and one input whose run takes seconds."""

    def __init__(self, folder: Path) -> None:
        self.program = deep_program(4)
        self.data = data_folder(folder, self.program, "deep")
        self.side = new_side(folder / "keys", self.program)
        self.image = np.random.default_rng(0).uniform(-1, 1, size=DEEP_SHAPE)
        self.input = self.side.client.encrypt(self.image)

    def right(self, result: EncryptedResult) -> bool:
        values = self.side.client.decrypt(result, of=self.input)
        return bool(abs(values - self.program.simulate(self.image)).max() < DEEP_ERROR)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Deep:
    return Deep(tmp_path_factory.mktemp("deep"))


def test_a_worker_that_is_killed_in_mid_run(deep: Deep) -> None:
    service = service_of(deep.data)
    with served(service) as http, RemoteServer(url_of(http), "deep", token=TOKENS["alice"]) as server:
        server.upload_keys(deep.side.parts)
        job = server.submit(deep.input)
        kept = service.store.job_file(job, "checkpoint.olac")
        wait_for(kept.exists)
        (pid,) = workers_of(os.getpid())
        os.kill(pid, signal.SIGKILL)

        def begun() -> int:
            at = service.pool.progress(job)
            return 0 if at is None else at.done

        wait_for(lambda: service.pool.counts.started == 2)
        wait_for(begun)
        # The first layer that is computed again lies behind a checkpoint, not at the beginning.
        assert begun() > 4 and service.pool.counts.died == service.store.jobs()[0].attempts == 1
        assert deep.right(server.result(job, deep.input))


def test_a_server_that_is_killed_in_mid_run(deep: Deep) -> None:
    server_process = ServerProcess(deep.data, free_port())
    try:
        with RemoteServer(server_process.url, "deep") as server:
            server.upload_keys(deep.side.parts)
            jobs = [server.submit(deep.input) for _ in range(2)]
            wait_for(lambda: (deep.data / "jobs" / jobs[0] / "checkpoint.olac").exists())
            (worker,) = workers_of(server_process.process.pid)
            server_process.kill()
            wait_for(lambda: not is_alive(worker), 10)  # it does not go on by itself
            assert server_process.process.returncode == -signal.SIGKILL
            later = threading.Timer(0.5, server_process.start)
            later.start()
            # A client that waits meanwhile gets its result from the next process.
            assert all(deep.right(server.result(job, deep.input)) for job in jobs)
            later.join()
    finally:
        server_process.stop()


def test_a_job_that_ends_its_worker_fails_at_last(deep: Deep) -> None:
    service = service_of(deep.data)
    service.pool.settings = replace(service.pool.settings, attempts=2)
    with served(service) as http, RemoteServer(url_of(http), "deep", token=TOKENS["bob"]) as server:
        server.upload_keys(deep.side.parts)
        job = server.submit(deep.input)
        for died in (1, 2):
            wait_for(lambda: workers_of(os.getpid()))
            (pid,) = workers_of(os.getpid())
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda died=died: service.pool.counts.died == died)  # type: ignore[misc]
        with pytest.raises(RemoteError, match="2 times"):
            server.result(job)


def test_a_running_job_is_cancelled_and_the_worker_stays(deep: Deep) -> None:
    service = service_of(deep.data)
    with served(service) as http, RemoteServer(url_of(http), "deep", token=TOKENS["alice"]) as server:
        server.upload_keys(deep.side.parts)
        job = server.submit(deep.input)
        wait_for(lambda: (at := service.pool.progress(job)) is not None and at.done > 1)
        (pid,) = workers_of(os.getpid())
        server.cancel(job)
        assert server.state(job).state == "cancelled"
        wait_for(lambda: not service.pool.load()[0].job)
        assert workers_of(os.getpid()) == [pid] and not any((deep.data / "jobs" / job).iterdir())
        server.cancel(job)
        with pytest.raises(RemoteError) as error:
            server.state(job)
        assert error.value.status == 404


def test_damaged_keys_end_their_job_and_nothing_else(small: Path, tmp_path: Path) -> None:
    service = service_of(small)
    alice, bob = new_side(tmp_path / "alice"), new_side(tmp_path / "bob")
    with served(service) as http:
        a = RemoteServer(url_of(http), "small", token=TOKENS["alice"])
        b = RemoteServer(url_of(http), "small", token=TOKENS["bob"])
        a.upload_keys(alice.parts)
        b.upload_keys(bob.parts)
        path = service.store.key_folder("alice", alice.parts.identity) / f"{alice.parts.names[0]}.key"
        data = bytearray(path.read_bytes())
        data[-50] ^= 1
        path.write_bytes(data)
        bad, good = a.submit(alice.input()), b.submit(bob.input())
        with pytest.raises(RemoteError, match="SHA-256"):
            a.result(bad)
        assert right(bob, bob.client.decrypt(b.result(good)))
        # Keys that are sent again heal it.
        a.delete_keys(alice.parts.identity)
        a.upload_keys(alice.parts)
        assert right(alice, alice.client.decrypt(a.run(alice.input())))


def test_many_jobs_of_several_clients_at_once(small: Path, tmp_path: Path) -> None:
    service = service_of(small, tokens=True, memory=3e8)
    service.pool.settings = replace(service.pool.settings, turn_seconds=1.0)
    sides = [new_side(tmp_path / str(i)) for i in range(3)]

    def one(http: httpx.Client, i: int) -> bool:
        side, owner = sides[i % 3], ("alice", "bob", "operator")[i % 3]
        with RemoteServer(url_of(http), "small", token=TOKENS[owner]) as server:
            server.upload_keys(side.parts)
            encrypted = side.input(seed=i)
            return right(side, side.client.decrypt(server.run(encrypted), of=encrypted), i)

    with served(service) as http, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda i: one(http, i), range(12))) == [True] * 12
        assert service.pool.counts.done == 12 and service.store.jobs() == []
        assert service.pool.counts.evicted < 12 / 2  # clients take turns; keys are not loaded for every job


@pytest.fixture
def alone(small: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(small, free_port())
    yield process
    process.stop()


def test_the_commands(alone: ServerProcess, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images(3))
    wanted = program().simulate(images(3))
    run = ["remote", "run", alone.url, "small", str(tmp_path / "images.npy"), "-o", str(tmp_path / "out.npy")]
    assert main([*run, "--keys", str(tmp_path / "mine")]) == 0
    assert np.allclose(np.load(tmp_path / "out.npy"), wanted, atol=1e-3)
    (folder,) = (path for path in (tmp_path / "mine").iterdir() if path.is_dir())
    secret = (tmp_path / "mine" / "secret.key").read_bytes()
    assert main([*run, "--keys", str(tmp_path / "mine")]) == 0  # the same keys serve again
    assert (tmp_path / "mine" / "secret.key").read_bytes() == secret and len(list(folder.iterdir())) > 1
    assert main([*run, "--decimals", "1"]) == 0  # keys for this call alone
    assert np.allclose(np.load(tmp_path / "out.npy"), np.round(wanted, 1), atol=0.1 + 1e-9)
    data = tmp_path / "data"
    assert [path.name for path in (data / "keys" / "local").iterdir()] == [folder.name.rpartition("-")[2]]
    assert list((data / "jobs").iterdir()) == []
    # Another program under the ID that is taken is refused; a new one is served at once.
    deep_program(2).save(tmp_path / "other.olac")
    assert main(["publish", str(tmp_path / "other.olac"), str(data), "--id", "small"]) == 1
    assert main(["publish", str(tmp_path / "other.olac"), str(data)]) == 0
    with RemoteServer(alone.url, "other") as server:
        assert server.program.input_shape == DEEP_SHAPE
    with pytest.raises(ArtifactError, match="another one than yours"):
        RemoteServer(alone.url, "other", client_program=program())
    with pytest.raises(RemoteError) as error:
        RemoteServer(alone.url, "nothing")
    assert error.value.status == 404
    with pytest.raises(ArtifactError, match="another process serves"):
        service_of(data)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is not installed")
def test_tls_and_tokens(small: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=olac"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text("".join(f"{name}:{token}\n" for name, token in TOKENS.items()))
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    process = ServerProcess(small, free_port(), "--host", "0.0.0.0", "--tokens", str(tokens), *tls)
    try:
        with RemoteServer(process.url, "small", token=TOKENS["bob"], verify=str(cert)) as server:
            assert server.program.fingerprint == program().fingerprint
        with pytest.raises(RemoteError, match=r"(?i)certificate"):
            RemoteServer(process.url, "small", token=TOKENS["bob"], patience=0)
        with pytest.raises(RemoteError) as error:
            RemoteServer(process.url, "small", verify=str(cert))
        assert error.value.status == 401
    finally:
        process.stop()


def test_a_server_that_is_away_is_tried_again_for_a_while() -> None:
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"tried for 1 s.*Check the address, and that `olac serve` runs there"):
        RemoteServer(f"http://127.0.0.1:{free_port()}", "small", patience=1)
    assert time.monotonic() - start < 5


def test_server_and_remote_server_run_alike(small: Path, tmp_path: Path) -> None:
    """`RemoteServer` takes live keys, and gives what `Server` gives."""
    service = service_of(small)
    client = Client(program())
    with served(service) as http, RemoteServer(url_of(http), "small", token=TOKENS["bob"]) as server:
        assert server.upload_keys(client.generate_keys())
        values = client.decrypt(server.run(client.encrypt(images())))
        assert np.allclose(values, program().simulate(images()), atol=1e-3)
    assert publish(tmp_path / "small.olac", small) == "small"
