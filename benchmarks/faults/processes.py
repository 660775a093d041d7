"""Commands that are killed, processes that fork, threads that share a server, and servers that run for a long time."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from benchmarks.faults import material as m
from benchmarks.faults.errands import ERRANDS, Errand, again, inspect, set_out
from benchmarks.faults.injected import TRAP, armed, watch_files
from benchmarks.faults.material import Material
from benchmarks.faults.outcomes import Outcome, Verdict, judged, right, wrong
from olac.backends.session import find_engine
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Server
from olac.system.memory import current_rss_bytes

PATIENCE = 60.0
"""Seconds after which a child counts as hung."""
RUNS = 200
WARM = 20
MEGABYTES = 4.0
"""Memory may grow by this much after the first runs."""


def in_child(function: Callable[[], Verdict], seconds: float = PATIENCE) -> Verdict:
    """The verdict of a forked child, which may crash or hang."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        verdict = judged(function)
        os.write(writing, json.dumps([verdict.outcome.value, verdict.what[:2000]]).encode())
        os._exit(0)
    os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], seconds)
        if not ready:
            os.kill(child, signal.SIGKILL)
        data = os.read(reading, 1 << 16)
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    if not ready:
        return Verdict(Outcome.HUNG, f"no end within {seconds:.0f} s")
    if not data:
        return Verdict(Outcome.CRASHED, f"a child ended with status {status}")
    outcome, what = json.loads(data)
    return Verdict(Outcome(outcome), what)


@dataclass
class Killed:
    """Errands that are killed at random moments. This process itself never uses an engine: its children do."""

    folder: Path
    _seconds: dict[str, float] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    @cached_property
    def material(self) -> Material:
        """The program without bootstraps."""
        watch_files()
        return ready(self.folder)

    def _measure(self, errand: Errand) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder, material = Path(name), self.material
            set_out(errand, material, folder)

            def measured() -> Verdict:
                start = time.monotonic()
                with armed(0, folder, MemoryError) as trap:
                    errand.do(folder)
                return right(f"{time.monotonic() - start} {len(trap.seen)}")

            verdict = in_child(measured)
            if verdict.outcome != Outcome.RIGHT:
                raise RuntimeError(f"{errand.name} fails without a fault: {verdict.what}")
            seconds, count = verdict.what.split()
            self._seconds[errand.name], self._places[errand.name] = float(seconds), int(count)

    def case(self, seed: int) -> Verdict:
        """One kill, after a time or at an operation on a file."""
        random, errand, material = np.random.default_rng(seed), ERRANDS[seed % len(ERRANDS)], self.material
        if errand.name not in self._seconds:
            self._measure(errand)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            before = set_out(errand, material, folder)
            if random.random() < 0.5:
                delay = float(random.uniform(0, 1.1 * self._seconds[errand.name]))
                what = f"{errand.name}, killed after {delay:.3f} s"
                _kill(errand, folder, delay, 0)
            else:
                at = int(random.integers(1, self._places[errand.name] + 1))
                what = f"{errand.name}, killed at operation {at} of {self._places[errand.name]}"
                _kill(errand, folder, PATIENCE, at)

            def after() -> Verdict:
                problem = inspect(errand, material, folder, before, failed=False, killed=True)
                return wrong(problem) if problem else again(errand, material, folder)

            verdict = in_child(after)
        outcome = Outcome.WRONG if verdict.outcome == Outcome.REFUSED else verdict.outcome
        return Verdict(outcome, f"{what}: {verdict.what}")


def _kill(errand: Errand, folder: Path, delay: float, at: int) -> None:
    """Do an errand in a child that is killed after some seconds, or kills itself at an operation on a file."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, b"!")

        def die() -> BaseException:
            os.kill(os.getpid(), signal.SIGKILL)
            return MemoryError()

        with armed(at, folder, die):
            judged(lambda: right(str(errand.do(folder))))
        os._exit(0)
    os.read(reading, 1)
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(min(0.005, max(0.0, deadline - time.monotonic())))
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert not TRAP.armed


def ready(folder: Path) -> Material:
    """The program without bootstraps. The code of its engine is loaded, because each child would take long for it."""
    made = Material(folder / m.PLAIN, m.PLAIN)
    find_engine(made.program.engine).unavailable()
    return made


# Forks ---------------------------------------------------------------------------------------------------------------


@dataclass
class Forks:
    """A process that forks, before and after it used the library."""

    folder: Path

    def case(self, seed: int) -> Verdict:
        """One way to use what a fork copied."""
        ways: list[Callable[[], Verdict]] = [self._before_use]
        ways += [partial(self._after_use, way) for way in USES]
        return in_child(ways[seed % len(ways)], 2 * PATIENCE)

    def _material(self) -> Material:
        return Material(self.folder / m.PLAIN, m.PLAIN)

    def _before_use(self) -> Verdict:
        """Two children of a process that only loaded olac: everything works, and nothing random is the same in both."""
        material = self._material()
        program = material.program

        def child() -> Verdict:
            client = Client(program)
            keys = client.generate_keys()
            given = client.encrypt(material.image)
            outputs = client.decrypt(Server(program, keys).run(given))
            return right(given.digest) if material.is_right(outputs) else wrong("a child's outputs are wrong")

        first, second = in_child(child), in_child(child)
        for one in (first, second):
            if one.outcome != Outcome.RIGHT:
                return Verdict(Outcome.WRONG if one.outcome == Outcome.REFUSED else one.outcome, one.what)
        return wrong("two children encrypted the same") if first.what == second.what else right()

    def _after_use(self, use: Callable[[Material, Client, Server], Verdict]) -> Verdict:
        """A child of a process that used the library: random operations are refused, others refused or right."""
        material = self._material()
        client = material.client
        client.encrypt(material.image)
        server = material.server
        server.run(material.input)
        return in_child(lambda: use(material, client, server))


def _random(use: Callable[[Material, Client, Server], object]) -> Callable[[Material, Client, Server], Verdict]:
    def checked(material: Material, client: Client, server: Server) -> Verdict:
        use(material, client, server)
        return wrong("a child uses the same randomness as its parent and its siblings")

    return checked


def _runs(material: Material, client: Client, server: Server) -> Verdict:
    result = server.run(material.input)
    return right() if material.is_right(client.decrypt(result)) else wrong("outputs of a child are wrong")


def _loads(material: Material, client: Client, server: Server) -> Verdict:
    keys = EvaluationKeys.load(material.program, material.place / m.EVALUATION)
    return _runs(material, client, Server(material.program, keys))


def _decrypts(material: Material, client: Client, server: Server) -> Verdict:
    return right() if material.is_right(client.decrypt(material.result)) else wrong("outputs in a child are wrong")


USES: tuple[Callable[[Material, Client, Server], Verdict], ...] = (
    _random(lambda material, client, server: client.encrypt(material.image)),
    _random(lambda material, client, server: client.generate_keys()),
    _random(lambda material, client, server: Client(material.program).generate_keys()),
    _random(
        lambda material, client, server: Client.load(material.program, material.place / m.SECRET).encrypt(
            material.image
        )
    ),
    _runs,
    _loads,
    _decrypts,
)


# Threads -------------------------------------------------------------------------------------------------------------


@dataclass
class Threads:
    """Threads that run one server, or several, beside others that make and load keys."""

    folder: Path
    rounds: int = 6

    def case(self, seed: int) -> Verdict:
        """Two threads that run a server, and one that makes and loads keys."""
        which = m.DEEP if seed % 4 == 3 else m.PLAIN
        material = Material(self.folder / which, which)
        material.client.decrypt(material.server.run(material.input))
        other = Material(self.folder / (m.DEEP if seed % 2 else m.PLAIN), m.DEEP if seed % 2 else m.PLAIN)
        random = np.random.default_rng(seed)
        problems: list[Verdict] = []
        rounds = 1 if which == m.DEEP else self.rounds

        def run() -> Verdict:
            for _ in range(rounds):
                result = material.server.run(material.input)
                if not material.is_right(material.client.decrypt(result)):
                    return wrong("outputs are wrong")
            return right()

        def change() -> Verdict:
            client = Client(other.program)
            client.generate_keys()
            server = Server(other.program, EvaluationKeys.load(other.program, other.place / m.EVALUATION))
            if random.random() < 0.5:
                result = server.run(EncryptedInput.load(other.program, other.place / m.INPUT))
                if not other.is_right(
                    other.client.decrypt(EncryptedResult.from_bytes(other.program, result.to_bytes()))
                ):
                    return wrong("outputs beside others are wrong")
            return right()

        def noted(function: Callable[[], Verdict]) -> None:
            problems.append(judged(function))

        threads = [threading.Thread(target=noted, args=(one,), daemon=True) for one in (run, run, change)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE)
            if thread.is_alive():
                return Verdict(Outcome.HUNG, f"a thread does not end within {4 * PATIENCE:.0f} s")
        bad = [one for one in problems if one.outcome != Outcome.RIGHT]
        if not bad:
            return right()
        outcome = Outcome.WRONG if bad[0].outcome == Outcome.REFUSED else bad[0].outcome
        return Verdict(outcome, f"{which}: {bad[0].what}")


# Memory --------------------------------------------------------------------------------------------------------------


@dataclass
class Repeated:
    """The same operation for a long time, at constant memory."""

    folder: Path
    runs: int = RUNS

    def case(self, seed: int) -> Verdict:
        """One operation: runs of a server, encryptions and decryptions, or new servers or clients."""
        material = Material(self.folder / m.PLAIN, m.PLAIN)
        program, client, server = material.program, material.client, material.server
        keys = (material.place / m.EVALUATION).read_bytes()

        def runs() -> None:
            if not material.is_right(client.decrypt(server.run(material.input))):
                raise AssertionError("outputs are wrong")

        def encryptions() -> None:
            data = client.encrypt(material.image).to_bytes()
            EncryptedInput.from_bytes(program, data)

        def servers() -> None:
            Server(program, EvaluationKeys.from_bytes(program, keys)).run(material.input)

        def clients() -> None:
            other = Client(program)
            other.generate_keys()

        kinds: tuple[tuple[Callable[[], None], int], ...] = (
            (runs, self.runs),
            (encryptions, self.runs),
            (servers, self.runs // 4),
            (clients, self.runs // 4),
        )
        once, count = kinds[seed % len(kinds)]
        warm = min(WARM, count // 4)
        for _ in range(warm):
            once()
        gc.collect()
        before = current_rss_bytes()
        for _ in range(count - warm):
            once()
        gc.collect()
        grown = (current_rss_bytes() - before) / 1e6
        if grown > MEGABYTES:
            return wrong(f"{once.__name__}: {grown:.1f} MB more after {count} than after {warm}")
        return right(f"{once.__name__}: {grown:.1f} MB")
