"""Who is served next, and who makes room: decisions of the pool, with workers that only say that they are done."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from olac.serving.pool import KeySet, Pool, Settings, _Worker
from olac.serving.programs import Catalogue, Published
from olac.serving.store import Store
from tests.serving.served import data_folder, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:.*compiled without security")

SAYS = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"event": "done", "job": json.loads(line)["job"], "bytes": 1, "seconds": 0.0}), flush=True)
"""


class Told(Pool):
    """A pool whose workers do nothing; `weights` of workers by their owners, 1 if there is none."""

    weights: dict[str, float]

    def _weight(self, key_set: KeySet, program: Published) -> float:
        return self.weights.get(key_set.owner, 1.0)

    def _start(self, key_set: KeySet, program: Published, weight: float) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", SAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self._watch(_Worker(key_set, weight, process))


class Place:
    """A store, and pools on it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(data_folder(folder))
        self.catalogue = Catalogue(folder / "data")

    def add(self, owner: str, count: int = 1, pair: int = 0) -> list[str]:
        """Jobs of an owner."""
        found = []
        for _ in range(count):
            body = self.store.new_upload()
            body.write_bytes(b"x")
            job, _ = self.store.add_job(owner, "small", f"{pair:032x}", body, 1)
            found.append(job.id)
        return found

    def order(self) -> list[str]:
        """The owners of jobs that have ended, in the order in which they were begun."""
        return [job.owner for job in sorted(self.store.jobs("state = 'done'"), key=lambda job: job.started or 0)]

    @contextmanager
    def pool(self, **settings: float) -> Iterator[Told]:
        """A pool of one run at once."""
        pool = Told(self.store, self.catalogue, Settings(**{"memory": 10.0, "threads": 1, **settings}))  # type: ignore[arg-type]
        pool.weights = {}
        pool.start()
        try:
            yield pool
        finally:
            pool.stop()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.store.close()


def test_clients_take_turns_where_there_is_room(place: Place) -> None:
    place.add("alice", 4)
    place.add("bob", 2)
    with place.pool():
        wait_for(lambda: len(place.order()) == 6)
    assert place.order() == ["alice", "bob", "alice", "bob", "alice", "alice"]


def test_a_turn_lasts_while_there_is_no_room(place: Place) -> None:
    place.add("alice", 4)
    place.add("bob", 2)
    with place.pool(memory=1.0, turn_seconds=60.0) as pool:
        wait_for(lambda: len(place.order()) == 6)
        assert place.order() == ["alice"] * 4 + ["bob"] * 2 and pool.counts.evicted == 1


def test_after_a_turn_others_come_first(place: Place) -> None:
    place.add("alice", 3)
    place.add("bob", 2)
    with place.pool(memory=1.0, turn_seconds=0.0) as pool:
        wait_for(lambda: len(place.order()) == 5)
        assert place.order() == ["alice", "bob", "alice", "bob", "alice"] and pool.counts.evicted == 4


def test_the_worker_that_was_used_least_recently_makes_room(place: Place) -> None:
    with place.pool(memory=2.0) as pool:
        for i, owner in enumerate(("alice", "bob", "alice", "carol")):
            place.add(owner)
            pool.wake()
            wait_for(lambda i=i: len(place.order()) == i + 1)  # type: ignore[misc]
        assert sorted(one.key_set.owner for one in pool.load()) == ["alice", "carol"]


def test_none_is_ended_if_that_does_not_make_room(place: Place) -> None:
    with place.pool(memory=2.0) as pool:
        place.add("alice")
        pool.wake()
        wait_for(lambda: place.order() == ["alice"])
        pool.weights["bob"] = 3.0
        place.add("bob")
        pool.wake()
        time.sleep(0.2)
        assert [one.key_set.owner for one in pool.load()] == ["alice"] and pool.counts.evicted == 0


def test_who_waits_too_long_for_room_stops_the_others(place: Place) -> None:
    """alice and bob fill the memory and always have more; carol needs both places."""
    with place.pool(memory=2.0, parallel=2, turn_seconds=3600.0, drain_seconds=0.3) as pool:
        place.add("alice", 3)
        place.add("bob", 3)
        pool.wake()
        wait_for(lambda: {"alice", "bob"} <= set(place.order()))
        pool.weights["carol"] = 2.0
        end = time.monotonic() + 20
        (wanted,) = place.add("carol")
        while not any(job.id == wanted for job in place.store.jobs("state = 'done'")):
            assert time.monotonic() < end, "carol is never served"
            assert pool.held_bytes <= 2.0
            for owner in ("alice", "bob"):
                if len(place.store.jobs("state = 'queued' AND owner = ?", owner)) < 3:
                    place.add(owner, 3)
            pool.wake()
            time.sleep(0.01)
        # Those that had to make room go on.
        wait_for(lambda: place.order()[-1] in ("alice", "bob"))


def test_a_program_that_is_gone_fails_its_jobs(place: Place) -> None:
    body = place.store.new_upload()
    body.write_bytes(b"x")
    job, _ = place.store.add_job("alice", "gone", "0" * 32, body, 1)
    with place.pool():
        wait_for(lambda: place.store.jobs()[0].state == "failed")
    assert "not published" in place.store.jobs("id = ?", job.id)[0].error


def test_a_line_that_was_cut_off_is_left_out(place: Place) -> None:
    """A worker that is killed in the middle of a line."""
    with place.pool() as pool:
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", "print('{\"event\": \"do', end='')"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        pool._watch(_Worker(KeySet("alice", "small", "0" * 32), 1.0, process))
        wait_for(lambda: pool.counts.died == 1)
        assert json.dumps([one.pid for one in pool.load()]) == "[]"
