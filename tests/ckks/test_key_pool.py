"""A pool of keys holds no more than fit, and no schedule loads fewer."""

from __future__ import annotations

import functools
import random

import pytest

from olac.ckks.key_pool import KeyPool, evictions


def fewest_loads(order: tuple[int, ...], capacity: int) -> int:
    """The fewest loads of all schedules, by trying to evict every key."""

    @functools.cache
    def least(place: int, held: frozenset[int]) -> int:
        if place == len(order):
            return 0
        key = order[place]
        if key in held:
            return least(place + 1, held)
        if len(held) < capacity:
            return 1 + least(place + 1, held | {key})
        return 1 + min(least(place + 1, held - {gone} | {key}) for gone in held)

    return least(0, frozenset())


@pytest.mark.parametrize("seed", range(30))
def test_no_schedule_loads_fewer_keys(seed: int) -> None:
    chosen = random.Random(seed)
    order = tuple(chosen.randrange(1, 7) for _ in range(chosen.randrange(1, 25)))
    for capacity in range(1, 7):
        pages = KeyPool(order, capacity)
        held: set[int] = set()
        for key in order:
            missing, gone = pages.need(key)
            assert missing == (key not in held)
            if gone is not None:
                assert len(held) == capacity
                held.remove(gone)
            held.add(key)
            assert set(pages.held) == held and len(held) <= capacity
        assert pages.loads == fewest_loads(order, capacity)
        assert pages.evictions == evictions(order, capacity).total() == pages.loads - min(capacity, len(set(order)))


def test_the_next_run_begins_with_what_the_last_one_left() -> None:
    pages = KeyPool((1, 2, 3), 2)
    loads = []
    for _ in range(4):
        pages.restart()
        before = pages.loads
        for key in (1, 2, 3):
            pages.need(key)
        loads.append(pages.loads - before)
    assert loads == [3, 1, 2, 1]  # the key that was evicted last in the run before is not needed first


def test_a_run_may_begin_in_the_middle() -> None:
    pages = KeyPool((1, 2, 3, 1), 2)
    pages.restart(2)
    assert pages.need(3) == (True, None) and pages.need(1) == (True, None)
    with pytest.raises(ValueError, match="not the next"):
        pages.need(2)
    pages.restart(1)
    assert pages.need(2) == (True, 1)  # 3 comes before it
    with pytest.raises(ValueError, match="capacity"):
        KeyPool((1,), 0)
