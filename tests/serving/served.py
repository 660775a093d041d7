"""A published small program, clients with keys in parts, and servers in this process and in their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx
import uvicorn

from olac.ir.ops import Array
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, KeyFolder, save_parts
from olac.serving.app import create_app
from olac.serving.pool import Settings
from olac.serving.programs import publish
from olac.serving.quotas import Quotas
from olac.serving.service import Service
from olac.serving.tokens import Tokens
from tests.runtime.small_program import images, small_program

ROOT = Path(__file__).resolve().parents[2]
TOKENS = {
    "alice": "alice-0123456789abcdefghij",
    "bob": "bob-0123456789abcdefghijkl",
    "operator": "operator-0123456789abcdefg",
}
MEMORY = 1e9


def bearer(name: str) -> dict[str, str]:
    """The header that says who asks."""
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@dataclass(frozen=True)
class Side:
    """A client of the small program, with its keys in parts."""

    client: Client
    parts: KeyFolder

    def input(self, seed: int = 1) -> EncryptedInput:
        """An encrypted image, other for other seeds."""
        return self.client.encrypt(images(seed=seed))


@cache
def program() -> CompiledProgram:
    """The program that is served as `small`."""
    return small_program()


def new_side(folder: Path, of: CompiledProgram | None = None) -> Side:
    """A client with new keys, whose parts are in the folder."""
    client = Client((of or program()).client())
    return Side(client, save_parts(client.generate_keys(), folder))


def right(side: Side, values: Array, seed: int = 1, of: CompiledProgram | None = None) -> bool:
    """Whether these are the outputs of `side.input(seed)`."""
    wanted = (of or program()).simulate(images(seed=seed))
    return bool(abs(values - wanted).max() < 1e-3)


def data_folder(place: Path, of: CompiledProgram | None = None, id_: str = "small") -> Path:
    """A data folder with a published program."""
    path = place / f"{id_}.olac"
    (of or program()).save(path)
    publish(path, place / "data", id_)
    return place / "data"


def service_of(data: Path, *, quotas: Quotas | None = None, tokens: bool = True, memory: float = MEMORY) -> Service:
    """A service of one thread a worker."""
    settings = Settings(memory, threads=1, log_level="error")
    return Service(data, settings, Tokens(TOKENS) if tokens else None, quotas)


@contextmanager
def served(service: Service) -> Iterator[httpx.Client]:
    """A client of the app, which a thread of this process serves."""
    config = uvicorn.Config(create_app(service), port=0, log_config=None, timeout_graceful_shutdown=2, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def send_keys(http: httpx.Client, side: Side, owner: str, program_id: str = "small") -> None:
    """Send all parts."""
    for name in side.parts.names:
        place = f"/v1/keys/{side.parts.identity}/{name}"
        answer = http.put(
            place, params={"program": program_id}, content=side.parts.path(name).read_bytes(), headers=bearer(owner)
        )
        assert answer.status_code == 201, answer.text


def send_job(http: httpx.Client, side: Side, owner: str, seed: int = 1, **headers: str) -> httpx.Response:
    """Send an input."""
    return http.post(
        "/v1/programs/small/jobs",
        params={"keys": side.parts.identity},
        content=side.input(seed).to_bytes(),
        headers={**bearer(owner), **headers},
    )


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class ServerProcess:
    """`olac serve` in a process of its own."""

    def __init__(self, data: Path, port: int, *options: str) -> None:
        self.port = port
        secure = "--tls-cert" in options
        self.url = f"http{'s' if secure else ''}://127.0.0.1:{port}"
        self._command = [sys.executable, "-c", "import sys; from olac.cli import main; sys.exit(main())", "serve"]
        self._command += ["--data", str(data), "--port", str(port), "--threads", "1", "--log-level", "error", *options]
        self.start()

    def start(self) -> None:
        """Begin, and wait until it answers."""
        self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/healthz", verify=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """As kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As an operator would."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()

    def load(self) -> dict[str, object]:
        """What its page shows."""
        found: dict[str, object] = httpx.get(f"{self.url}/v1/load").json()
        return found


def workers_of(pid: int) -> list[int]:
    """The workers that a process has started."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                stat = (path / "stat").read_text().rpartition(")")[2].split()
                command = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if int(stat[1]) == pid and b"olac.serving.worker" in command:
                found.append(int(path.name))
    return found


def wait_for(what: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until a function gives something true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about")


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
