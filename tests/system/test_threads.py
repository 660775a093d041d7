"""Work that threads do beside the caller's: in order, a few items ahead, and no further after an error."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from olac.system.threads import Workers, helpers, in_threads


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
