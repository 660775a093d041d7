"""Work that threads do beside the caller's: in order, a few items ahead, and no further after an error."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from olac.system import threads as module
from olac.system.threads import Workers, cores, follow_threads, helpers, in_threads, set_threads, usable_threads


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads: int) -> None:
    barrier = threading.Event()

    def slow_first(i: int) -> tuple[int, int]:
        if threads > 1 and i == 0:
            assert barrier.wait(timeout=60)
        if i == threads:
            barrier.set()
        return i * i, threading.get_ident()

    found = list(in_threads(slow_first, range(20), threads))
    assert [square for square, _ in found] == [i * i for i in range(20)]
    assert (threading.get_ident() in {where for _, where in found}) == (threads == 0)
    assert list(in_threads(slow_first, (), threads)) == []


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_few_items_are_taken_ahead(threads: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(50):
            taken += 1
            yield i

    for done in in_threads(lambda i: i, items(), threads):
        assert taken <= done + threads + 1
    assert taken == 50


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_error_of_the_function_comes_in_its_place(threads: int) -> None:
    seen: list[int] = []

    def failing(i: int) -> int:
        seen.append(i)
        if i == 5:
            raise ValueError("five")
        return i

    results = in_threads(failing, range(1000), threads)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert max(seen) <= 5 + threads + 1


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_of_the_items_ends_it(threads: int, error: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    alive = threading.active_count()
    with pytest.raises(error):
        list(in_threads(lambda i: i, items(), threads))
    assert threading.active_count() == alive


@pytest.mark.parametrize("threads", [1, 3])
def test_who_stops_asking_leaves_no_thread_behind(threads: int) -> None:
    alive = threading.active_count()
    results = in_threads(lambda i: i, range(1000), threads)
    assert next(results) == 0
    assert threading.active_count() > alive
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == alive


def test_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    for usable, expected in ((1, 0), (2, 2), (8, 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(usable))
        assert helpers(3) == expected


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_workers_that_ask_for_more_do_it_themselves(threads: int) -> None:
    """If it were queued, all threads could wait for work that no thread is left to do."""
    workers = Workers(threads)

    def row(i: int) -> tuple[list[int], bool]:
        return list(workers.each(lambda j: 10 * i + j, range(4))), workers.inside

    for _ in range(3):
        found = list(workers.each(row, range(20)))
        assert found == [([10 * i + j for j in range(4)], threads > 0) for i in range(20)]
    assert not workers.inside


@pytest.mark.parametrize("threads", [0, 2])
def test_workers_go_on_after_an_error(threads: int) -> None:
    workers = Workers(threads)
    with pytest.raises(ZeroDivisionError):
        list(workers.each(lambda i: 1 // (3 - i), range(10)))
    assert list(workers.each(lambda i: i + 1, range(10))) == list(range(1, 11))


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards this process has the threads that it had."""
    before = usable_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    followers = list(module._followers)
    yield
    module._followers[:] = followers
    set_threads(before)


@pytest.mark.usefixtures("unset")
def test_one_number_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    follow_threads(told.append)
    set_threads(3)
    assert usable_threads() == 3 and told == [told[0], 3] and os.environ["OMP_NUM_THREADS"] == "3"
    set_threads(None)
    assert usable_threads() == 3 and len(told) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_threads() == cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert cores() == os.cpu_count()


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, "2", True])
def test_numbers_that_cannot_be(threads: Any) -> None:
    before = usable_threads()
    with pytest.raises(ValueError, match="whole number"):
        set_threads(threads)
    assert usable_threads() == before


def child(code: str, **environment: str | None) -> str:
    given = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LIBRARIES = """
    import sys
    import numpy
    {first}
    from olac.system.threads import set_threads
    {then}
    set_threads({threads})
    {last}
    import threadpoolctl
    found = {{(l["user_api"], l["num_threads"]) for l in threadpoolctl.threadpool_info()}}
    print(sorted(found), torch.get_num_threads() if (torch := sys.modules.get("torch")) else "")
"""


@pytest.mark.parametrize(
    ("order", "threads"),
    [
        ("torch before olac", 1),
        ("torch before olac", 3),
        ("torch after", 3),
        ("torch last", 1),  # it takes no more threads by itself than there are cores
    ],
)
def test_libraries_follow(order: str, threads: int) -> None:
    place = {"torch before olac": "first", "torch after": "then", "torch last": "last"}[order]
    parts = {"first": "", "then": "", "last": "", "threads": str(threads), place: "import torch"}
    out = child(LIBRARIES.format(**parts), OMP_NUM_THREADS=None)
    assert out == f"[('blas', {threads}), ('openmp', {threads})] {threads}"


OPENFHE = """
    import os
    from olac.backends.openfhe import library
    from olac.system.threads import set_threads
    {before}
    openfhe = library.load()
    {after}
    print(library.loops(openfhe).value)
    p = openfhe.CCParamsCKKSRNS()
    p.SetMultiplicativeDepth(6)
    p.SetRingDim(1 << 12)
    p.SetSecurityLevel(openfhe.HEStd_NotSet)
    c = openfhe.GenCryptoContext(p)
    c.Enable(openfhe.PKE)
    tasks = set(os.listdir("/proc/self/task"))
    c.KeyGen()
    print(len(set(os.listdir("/proc/self/task")) - tasks))
"""


@pytest.mark.encrypted
@pytest.mark.parametrize(
    ("before", "after", "threads"),
    [
        ("", "", 2),
        ("set_threads(3)", "", 3),
        ("", "set_threads(3)", 3),
        ("", "set_threads(1)", 1),
        ("import torch; torch.set_num_threads(1)", "", 2),
        ("set_threads(1)", "set_threads(2)", 2),
    ],
)
def test_openfhe_follows(before: str, after: str, threads: int) -> None:
    out = child(OPENFHE.format(before=before, after=after), OMP_NUM_THREADS="2").split()
    assert out[0] == str(threads)
    if "torch" not in before:
        assert int(out[1]) <= threads - 1


def test_threads_sleep_at_barriers() -> None:
    policy = "import olac, os; print(os.environ['OMP_WAIT_POLICY'])"
    assert child(policy, OMP_WAIT_POLICY=None) == "passive"
    assert child(policy, OMP_WAIT_POLICY="active") == "active"
