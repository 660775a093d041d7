"""Servers with less memory than all keys take: results bit for bit the same, never more keys than fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from olac.analysis.estimate import LOADING_KEYS, UNUSED_SHARE
from olac.backends.openfhe import session as openfhe_session
from olac.backends.openfhe.key_maps import MapsLock, put_all, take_out
from olac.backends.openfhe.library import load
from olac.backends.openfhe.session import ENGINE, PagedTags
from olac.ckks.engines import OPENFHE
from olac.ckks.key_pool import KeyPool, evictions
from olac.ckks.parameters import Bootstrapping, Parameters
from olac.ckks.primes import FLEXIBLE
from olac.errors import ArtifactError, InfeasibleError
from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, Progress, Server
from olac.runtime import server as server_module
from olac.runtime.envelope import DIGEST_BYTES
from olac.runtime.paging import KeyPager, install_pinned, needed_order, pinned_steps
from olac.runtime.records import Recorder
from tests.runtime.bootstrapped_program import bootstrapped_program
from tests.runtime.key_sizes import one_key_bytes
from tests.runtime.small_program import images, small_program

pytestmark = [pytest.mark.encrypted, pytest.mark.filterwarnings("ignore:.*compiled without security")]

ROOM = 1e12


@cache
def program() -> CompiledProgram:
    return small_program(batch=2)


@dataclass(frozen=True)
class Frames:
    """What a client sends, and what a server that holds all keys answers."""

    keys: bytes
    input: bytes
    answer: bytes


@cache
def frames() -> Frames:
    client = Client(program())
    keys = client.generate_keys()
    given = client.encrypt(images(2)).to_bytes()
    answer = Server(program(), keys).run(EncryptedInput.from_bytes(program(), given)).to_bytes()
    return Frames(keys.to_bytes(), given, answer)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process holds is nothing, the library included, so that max_memory alone decides."""
    monkeypatch.setattr(type(OPENFHE), "library_bytes", lambda *_: 0.0)
    monkeypatch.setattr(server_module, "current_rss_bytes", lambda: 0)
    monkeypatch.setattr(server_module, "available_bytes", lambda: ROOM)


def memory_for(capacity: int) -> float:
    """Bytes in which so many keys of the pool are held."""
    estimate = program().estimate()
    keys = EvaluationKeys.from_bytes(program(), frames().keys)
    away = len(set(keys.steps) - pinned_steps(program())) - capacity - LOADING_KEYS
    fixed = estimate.ciphertext_bytes + estimate.setup_bytes + keys.payload_bytes
    return (1 + UNUSED_SHARE) * (fixed - (away - 0.5) * one_key_bytes(program()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "evaluation.keys"
    found.write_bytes(frames().keys)
    return found


def given() -> EncryptedInput:
    return EncryptedInput.from_bytes(program(), frames().input)


def tags() -> set[str]:
    return set(load().CryptoContext.GetAllEvalAutomorphismKeys())


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many keys were held under tags of their own at any time."""
    held: set[str] = set()
    counts = [0]

    def spied_put(keys: list[Any], tag: str) -> None:
        put_all(keys, tag)
        held.add(tag)
        counts.append(len(held))
        assert held <= tags()

    def spied_take_out(tag: str) -> None:
        take_out(tag)
        held.remove(tag)
        assert tag not in tags() and held <= tags()

    monkeypatch.setattr(openfhe_session, "put_all", spied_put)
    monkeypatch.setattr(openfhe_session, "take_out", spied_take_out)
    yield counts


@pytest.mark.parametrize("capacity", [1, 3, 5])
def test_results_are_the_same_bit_for_bit(capacity: int, path: Path, most: list[int]) -> None:
    others = tags()
    server = Server(program(), EvaluationKeys.load(program(), path), max_memory=memory_for(capacity))
    assert server.pages is not None and server.pages.capacity == capacity and server.pages.loads == 0
    order, _ = needed_order(program(), program().rotations, pinned_steps(program()))
    assert server.run(given()).to_bytes() == frames().answer
    assert max(most) == capacity
    assert server.pages.loads == capacity + server.pages.evictions > len(set(order)) - 1
    assert server.pages.evictions == evictions(order, capacity).total()
    timing = Recorder().record(server, 1).timing
    assert timing is not None and (timing.keys_held, timing.keys_read) == (capacity, server.pages.loads)
    assert server.run(given()).to_bytes() == frames().answer
    assert max(most) == capacity and others <= tags()


@pytest.mark.parametrize("capacity", [1, 5])
def test_sets_of_ciphertexts_share_each_key_that_is_read(
    capacity: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five images are three sets; two are computed together, and then one."""
    monkeypatch.setattr(Server, "_together", lambda self: 2)
    client, path = Client(program()), tmp_path / "evaluation.keys"
    keys = client.generate_keys()
    keys.save(path)
    several = client.encrypt(images(5))
    server = Server(program(), EvaluationKeys.load(program(), path), max_memory=memory_for(capacity))
    order, _ = needed_order(program(), program().rotations, pinned_steps(program()))
    pool = KeyPool(order, capacity)
    for _ in range(2):
        pool.restart()
        for step in order:
            pool.need(step)
    assert server.run(several).to_bytes() == Server(program(), keys).run(several).to_bytes()
    assert server.pages is not None and server.pages.loads == pool.loads


def test_frames_in_memory_do_as_files_do() -> None:
    keys = EvaluationKeys.from_bytes(program(), frames().keys)
    server = Server(program(), keys, max_memory=memory_for(2))
    assert server.pages is not None
    assert server.run(given()).to_bytes() == frames().answer


def test_all_keys_are_held_where_they_fit(path: Path) -> None:
    server = Server(program(), EvaluationKeys.load(program(), path), max_memory=ROOM)
    assert server.pages is None


def test_too_little_memory_for_one_key_at_a_time(path: Path) -> None:
    keys = EvaluationKeys.load(program(), path)
    with pytest.raises(InfeasibleError, match=r"GB suffice if keys are read from a file when needed"):
        Server(program(), keys, max_memory=memory_for(0) - one_key_bytes(program()))


def test_a_file_that_changes_is_refused_by_name(path: Path) -> None:
    server = Server(program(), EvaluationKeys.load(program(), path), max_memory=memory_for(2))
    data = bytearray(frames().keys)
    assert server._pager is not None
    step = sorted(set(program().rotations) - pinned_steps(program()))[-1]
    start = len(data) - DIGEST_BYTES - server._pager._file._keys.payload_bytes
    data[start + server._pager._file._places[step] * one_key_bytes(program()) + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"evaluation.keys.*key for rotation step {step} can.t be read again"):
        server.run(given())
    path.unlink()
    with pytest.raises(ArtifactError, match=r"evaluation.keys: can't be read"):
        server.run(given())
    path.write_bytes(frames().keys)
    assert server.run(given()).to_bytes() == frames().answer


def test_a_file_that_changes_before_the_keys_are_taken_is_refused(path: Path) -> None:
    keys = EvaluationKeys.load(program(), path)
    data = bytearray(frames().keys)
    data[-5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"evaluation.keys.*SHA-256"):
        Server(program(), keys, max_memory=memory_for(2))


class Stopped(Exception):
    """Raised from the progress callback: a run that dies there."""


def test_a_run_continues_from_its_checkpoint(path: Path, tmp_path: Path, most: list[int]) -> None:
    server = Server(program(), EvaluationKeys.load(program(), path), max_memory=memory_for(2))

    def stop(progress: Progress) -> None:
        if progress.node == "flat":
            raise Stopped

    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        server.run(given(), stop, checkpoint=checkpoint, checkpoint_seconds=0.0)
    other = Server(program(), EvaluationKeys.load(program(), path), max_memory=memory_for(2))
    for one in (server, other):
        answer = one.run(given(), checkpoint=checkpoint, checkpoint_seconds=0.0, keep_checkpoint=True)
        assert answer.to_bytes() == frames().answer
        assert "conv" not in one.last_run
    assert max(most) <= 4  # two servers, two keys each


def test_runs_with_all_keys_wait_for_one_that_takes_keys_out(path: Path) -> None:
    """Two servers at once, in threads of their own: each gives what it gives alone."""
    paged = Server(program(), EvaluationKeys.load(program(), path), max_memory=memory_for(1))
    whole = Server(program(), EvaluationKeys.load(program(), path))
    answers: dict[tuple[str, int], bytes] = {}

    def run(name: str, server: Server) -> None:
        for turn in range(2):
            answers[name, turn] = server.run(given()).to_bytes()

    threads = [threading.Thread(target=run, args=pair) for pair in (("paged", paged), ("whole", whole))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4 and set(answers.values()) == {frames().answer}


def test_bootstraps_find_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their keys stay while others come and go, in a program with a rotation step that no bootstrap has."""
    setup = Bootstrapping(4, (5, 3))
    # A chain that no other test has: OpenFHE keeps one set-up of bootstraps for each.
    made, calibrated = bootstrapped_program(Parameters(11, setup.depth, 41, 48, 3, FLEXIBLE, 0, setup))
    assert len(set(made.rotations) - pinned_steps(made)) == 1
    client = Client(made)
    keys = client.generate_keys()
    sent = client.encrypt(calibrated[:1]).to_bytes()
    expected = Server(made, keys).run(EncryptedInput.from_bytes(made, sent)).to_bytes()
    keys.save(tmp_path / "keys")
    received = EvaluationKeys.load(made, tmp_path / "keys")
    with pytest.raises(InfeasibleError):  # one key is not worth two that are held while it is read
        Server(made, received, max_memory=memory_for(1))

    def one_at_a_time(self: Server, keys: EvaluationKeys, max_memory: float | None) -> tuple[float, int]:
        self._predicted = dict.fromkeys((node.id for node in made.graph.nodes), 0.0)
        return 0.0, 1

    monkeypatch.setattr(Server, "_check_memory", one_at_a_time)
    server = Server(made, received)
    assert server.pages is not None and server.pages.capacity == 1
    _, file = install_pinned(received, pinned_steps(made), ENGINE)
    (step,) = set(made.rotations) - pinned_steps(made)

    def come_and_go(node: object, value: object) -> None:
        store = PagedTags(made.parameters, KeyPager(made, received.steps, pinned_steps(made), file, 1))
        file.put(step, store)
        store.take_out(step)

    answer = server.run(EncryptedInput.from_bytes(made, sent), observe=come_and_go)
    assert answer.to_bytes() == expected
    assert isinstance(answer, EncryptedResult) and server.pages.loads == 1


def test_the_lock_lets_many_use_and_one_change() -> None:
    lock = MapsLock()
    inside: list[str] = []
    both = threading.Barrier(2)
    using, changed = threading.Event(), threading.Event()

    def use() -> None:
        with lock.using():
            both.wait(5)
            using.set()
            with lock.using():  # again, although one waits to change
                assert not changed.wait(0.2)
                inside.append("used")

    def change() -> None:
        using.wait()
        with lock.changing(), lock.changing(), lock.using():
            changed.set()
            inside.append("changed")

    threads = [threading.Thread(target=work) for work in (use, use, change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert sorted(inside) == ["changed", "used", "used"]
    arrived = threading.Event()

    def come_late() -> None:
        with lock.using():
            arrived.set()

    late = threading.Thread(target=come_late)
    with lock.changing():
        late.start()
        assert not arrived.wait(0.2)
    late.join(5)
    assert arrived.is_set()
