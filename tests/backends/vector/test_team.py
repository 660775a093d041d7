from __future__ import annotations

import gc
import itertools
import os
import threading
import time
import weakref

import numpy as np
import numpy.typing as npt
import pytest

from olac.backends.vector import team as module
from olac.backends.vector.team import SMALL, Team


class Seen:
    """Ranges that a kernel was called with."""

    def __init__(self, pause: float = 0.0) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.threads: set[int] = set()
        self.pause = pause

    def kernel(self, lo: int, hi: int, worker: int, *args: object) -> None:
        self.calls.append((lo, hi, worker))
        self.threads.add(threading.get_ident())
        time.sleep(self.pause)

    def indices(self) -> list[int]:
        return sorted(itertools.chain.from_iterable(range(lo, hi) for lo, hi, _ in self.calls))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 27, 1000, 65536])
def test_every_index_once(threads: int, count: int) -> None:
    seen = Seen()
    Team(threads).run(seen.kernel, count)
    assert seen.indices() == list(range(count))
    assert all(0 <= worker < threads for _, _, worker in seen.calls)
    assert len(seen.calls) <= 8 * threads + 2 * threads


def test_all_threads_work() -> None:
    seen = Seen(pause=0.02)
    Team(3).run(seen.kernel, 30)
    assert {worker for _, _, worker in seen.calls} == {0, 1, 2}
    assert len(seen.threads) == 3 and threading.get_ident() in seen.threads


def test_workers_of_calls_that_overlap_differ() -> None:
    running: set[int] = set()
    lock = threading.Lock()

    def kernel(lo: int, hi: int, worker: int) -> None:
        with lock:
            assert worker not in running
            running.add(worker)
        time.sleep(0.001)
        with lock:
            running.remove(worker)

    team = Team(4)
    for _ in range(5):
        team.run(kernel, 40)


def test_small_work_stays_with_the_caller() -> None:
    seen = Seen(pause=0.001)
    team = Team(2)
    team.run(seen.kernel, 50, size=SMALL - 1)
    assert seen.calls == [(0, 50, 0)] and seen.threads == {threading.get_ident()}
    assert not team._queues  # no thread was started
    team.run(seen.kernel, 50, size=SMALL)
    assert len(seen.calls) > 2


def test_arguments_are_passed_on() -> None:
    out = np.zeros(100)

    def kernel(lo: int, hi: int, worker: int, a: npt.NDArray[np.float64], by: float) -> None:
        a[lo:hi] += by * np.arange(lo, hi)

    Team(2).run(kernel, 100, out, 3.0)
    assert np.array_equal(out, 3.0 * np.arange(100))


@pytest.mark.parametrize("where", ["caller", "helper"])
def test_errors_are_raised_after_all_have_ended(where: str) -> None:
    caller = threading.get_ident()
    ended: list[int] = []

    def kernel(lo: int, hi: int, worker: int) -> None:
        if (threading.get_ident() == caller) == (where == "caller"):
            time.sleep(0.01)
            raise IndexError(f"{worker} failed")
        time.sleep(0.05)
        ended.append(lo)

    team = Team(2)
    with pytest.raises(IndexError, match="failed"):
        team.run(kernel, 1000)
    count = len(ended)
    assert count <= 3  # what had not begun was left out
    time.sleep(0.1)
    assert len(ended) == count
    seen = Seen(pause=0.001)
    team.run(seen.kernel, 100)
    assert seen.indices() == list(range(100))


def test_an_interrupt_waits_for_the_others() -> None:
    caller = threading.get_ident()
    inside = threading.Event()
    ended: list[int] = []

    def kernel(lo: int, hi: int, worker: int) -> None:
        if threading.get_ident() == caller:
            inside.wait(5)
            raise KeyboardInterrupt
        inside.set()
        time.sleep(0.05)
        ended.append(lo)

    with pytest.raises(KeyboardInterrupt):
        Team(2).run(kernel, 100)
    assert ended


def test_many_callers_share_a_team() -> None:
    team = Team(3)
    totals = [np.zeros(512, dtype=np.int64) for _ in range(6)]

    def kernel(lo: int, hi: int, worker: int, out: npt.NDArray[np.int64]) -> None:
        out[lo:hi] += 1

    def call(out: npt.NDArray[np.int64]) -> None:
        for _ in range(200):
            team.run(kernel, 512, out)

    callers = [threading.Thread(target=call, args=(out,)) for out in totals]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert all(np.all(out == 200) for out in totals)


def test_a_call_within_a_call() -> None:
    team = Team(2)
    seen = Seen()

    def outer(lo: int, hi: int, worker: int) -> None:
        for _ in range(lo, hi):
            team.run(seen.kernel, 10)

    team.run(outer, 8)
    assert seen.indices() == sorted(list(range(10)) * 8)


def test_threads_end_with_the_team_and_operands_are_let_go() -> None:
    team = Team(3)
    operand = np.zeros(10)
    alive = weakref.ref(operand)
    seen = Seen(pause=0.005)
    team.run(seen.kernel, 30, operand)
    del operand
    helpers = [thread for thread in threading.enumerate() if thread.ident in seen.threads - {threading.get_ident()}]
    assert len(helpers) == 2
    deadline = time.monotonic() + 5
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive() is None
    del team
    gc.collect()
    for thread in helpers:
        thread.join(5)
        assert not thread.is_alive()


def test_after_a_fork_the_threads_are_made_anew() -> None:
    team = Team(2)
    team.run(Seen(pause=0.001).kernel, 20)
    assert len(team._queues) == 1
    child = os.fork()
    if child == 0:
        code = 1
        try:
            fresh = not team._queues
            seen = Seen(pause=0.01)
            team.run(seen.kernel, 20)
            code = 0 if fresh and seen.indices() == list(range(20)) and len(seen.threads) == 2 else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    team = Team(4)
    seen = Seen()
    team.run(seen.kernel, 100)
    assert seen.indices() == list(range(100)) and team.threads == 1
    assert "1 threads instead of 4" in caplog.text


def test_pieces_get_smaller() -> None:
    pieces = module._pieces(27, 2)
    sizes = [hi - lo for lo, hi in pieces]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 6 and sizes[-1] <= 2


def test_a_team_of_none() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Team(0)
