"""Many jobs of many clients on one server: nothing lost, nothing mixed up, memory within the limit.

The server and its workers are processes of their own. Each client has its own keys and token, and sends its jobs in
several threads at once. Every decrypted result is compared with the simulated outputs of its own input.
"""

from __future__ import annotations

import argparse
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console

from olac.program.program import CompiledProgram
from olac.runtime import Client, KeyFolder, save_parts
from olac.serving.programs import publish
from olac.serving.remote import RemoteServer
from olac.system.memory import GB

TOLERANCE = 1e-2
"""Of the largest simulated output."""
SAMPLE_SECONDS = 0.05
ID = "benchmark"


@dataclass(frozen=True)
class Outcome:
    """What was measured.

    Attributes:
        right, wrong: results that are and are not those of their own input.
        seconds: from the first job to the last result.
        upload_rate: bytes a second of keys, of all clients one after another.
        waits: seconds of each job, from its encryption to its decrypted result.
        workers_gb, server_gb: the largest memory at any time, of all workers together and of the server's own process.
        evicted: workers that made room.
        left: jobs that the server still has.
    """

    right: int
    wrong: int
    seconds: float
    upload_rate: float
    waits: tuple[float, ...]
    workers_gb: float
    server_gb: float
    evicted: int
    left: int


@dataclass
class Memory:
    """The largest memory so far, in GB."""

    workers: float = 0.0
    server: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("program", type=Path, help="the file of a compiled program")
    parser.add_argument("--clients", type=int, default=8, help="each with keys of its own")
    parser.add_argument("--jobs", type=int, default=200, help="of all clients together")
    parser.add_argument("--at-once", type=int, default=4, help="jobs that a client waits for at once")
    parser.add_argument("--memory", type=float, default=1.0, metavar="GB", help="of the server, for all workers")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once")


def run(options: argparse.Namespace, console: Console) -> int:
    """Measure, print a few lines; 1 if a result is missing or wrong, or memory was exceeded."""
    found = measure(
        options.program, options.clients, options.jobs, options.at_once, options.memory * GB, options.parallel
    )
    waits = np.quantile(found.waits, (0.5, 0.95, 1.0)) if found.waits else np.zeros(3)
    console.print(
        f"{found.right} of {options.jobs} results right, {found.wrong} wrong, {found.left} left on the server; "
        f"{found.seconds:.1f} s, {options.jobs / found.seconds:.1f} jobs a second\n"
        f"a job takes {waits[0]:.2f} s (median), {waits[1]:.2f} s (95 %), {waits[2]:.2f} s (longest)\n"
        f"keys came in at {found.upload_rate / 1e6:.0f} MB/s; {found.evicted} workers made room for others\n"
        f"workers together held {found.workers_gb:.2f} GB at most of {options.memory:.2f} GB, the server's own process "
        f"{found.server_gb:.2f} GB",
        soft_wrap=True,
        highlight=False,
    )
    good = found.right == options.jobs and not found.wrong and not found.left
    return 0 if good and found.workers_gb <= options.memory else 1


def measure(program: Path, clients: int, jobs: int, at_once: int, memory: float, parallel: int) -> Outcome:
    """See the module."""
    compiled = CompiledProgram.load(program)
    with tempfile.TemporaryDirectory(prefix="olac-serving-") as place:
        folder = Path(place)
        publish(program, folder / "data", ID)
        tokens = {f"client{i}": secrets.token_urlsafe(32) for i in range(clients)} | {
            "operator": secrets.token_urlsafe(32)
        }
        file = folder / "tokens"
        file.touch(0o600)
        file.write_text("".join(f"{name}:{token}\n" for name, token in tokens.items()))
        with _server(folder, file, memory, parallel) as (url, held):
            with ThreadPoolExecutor(clients) as pool:
                made = list(pool.map(lambda i: _client(compiled, folder / f"keys{i}"), range(clients)))
            remotes = [RemoteServer(url, ID, token=tokens[f"client{i}"]) for i in range(clients)]
            start, size = time.monotonic(), 0
            for remote, (_, parts) in zip(remotes, made, strict=True):
                size += sum(parts.path(name).stat().st_size for name in remote.upload_keys(parts))
            rate = size / (time.monotonic() - start)

            def one(i: int) -> tuple[bool, float]:
                begun, (client, _) = time.monotonic(), made[i % clients]
                images = _images(compiled, i)
                encrypted = client.encrypt(images)
                values = client.decrypt(remotes[i % clients].run(encrypted), of=encrypted)
                wanted = compiled.simulate(images)
                right = np.abs(values - wanted).max() <= TOLERANCE * max(1.0, float(np.abs(wanted).max()))
                return bool(right), time.monotonic() - begun

            start = time.monotonic()
            with ThreadPoolExecutor(clients * at_once) as pool:
                outcomes = list(pool.map(one, range(jobs)))
            seconds = time.monotonic() - start
            operator = {"Authorization": f"Bearer {tokens['operator']}"}
            counts = httpx.get(f"{url}/v1/load", headers=operator).json()["counts"]
            metrics = httpx.get(f"{url}/metrics", headers=operator).text
            for remote in remotes:
                remote.close()
    (evicted,) = (line.split()[1] for line in metrics.splitlines() if line.startswith("olac_workers_evicted_total "))
    right = sum(good for good, _ in outcomes)
    return Outcome(
        right,
        len(outcomes) - right,
        seconds,
        rate,
        tuple(wait for _, wait in outcomes),
        held.workers,
        held.server,
        int(float(evicted)),
        sum(counts.values()),
    )


def _client(program: CompiledProgram, folder: Path) -> tuple[Client, KeyFolder]:
    client = Client(program.client())
    return client, save_parts(client.generate_keys(), folder)


def _images(program: CompiledProgram, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Images within the calibrated range, other for each seed."""
    bound = program.input.type.bound
    low, high = (-1.0, 1.0) if bound is None else (bound.low, bound.high)
    return np.random.default_rng(seed).uniform(low, high, size=(1, *program.input_shape))


@contextmanager
def _server(folder: Path, tokens: Path, memory: float, parallel: int) -> Iterator[tuple[str, Memory]]:
    """`olac serve`, its address, and its memory, which is watched meanwhile."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "import sys; from olac.cli import main; sys.exit(main())", "serve"]
    command += ["--data", str(folder / "data"), "--port", str(port), "--tokens", str(tokens)]
    command += ["--memory", f"{memory:.0f}B", "--parallel", str(parallel), "--log-level", "warning"]
    process = subprocess.Popen(command)
    held, ended = Memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            workers = sum(_rss(pid) for pid in _children(process.pid))
            held.workers = max(held.workers, workers / GB)
            held.server = max(held.server, _rss(process.pid) / GB)

    watching = threading.Thread(target=watch)
    watching.start()
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{url}/healthz").raise_for_status()
                break
            except (httpx.TransportError, httpx.HTTPStatusError):
                if process.poll() is not None:
                    raise
                time.sleep(0.05)
        yield url, held
    finally:
        ended.set()
        watching.join()
        process.terminate()
        process.wait()


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]
    except OSError:
        return []


def _rss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


__all__ = ["Outcome", "add_arguments", "measure", "run"]
