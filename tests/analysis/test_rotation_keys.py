"""Which steps get keys if keys differ in size; tests/ckks/test_rotations.py has the choice if they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from olac.analysis.estimate import LOADING_KEYS, Sizes, key_reading_seconds
from olac.analysis.rotation_keys import Uses, fewer_keys, within
from olac.backends.cost import CostEvaluator
from olac.ckks.key_pool import evictions
from olac.ckks.parameters import Parameters
from olac.costs.table import CostTable
from tests.ckks.picky_engine import PICKY

PARAMETERS = Parameters(12, 4, 35, 42, 2, security=0)
PRICER = CostEvaluator(PARAMETERS, replace(CostTable.default(), engine=PICKY), 1)


def sized(*levels: int) -> Sizes:
    """Of keys that are used up to these levels, and of a relinearisation key for the bottom."""
    return Sizes(sum(PICKY.key_bytes(PARAMETERS, level) for level in (0, *levels)), 0, 0, 0, 0, True)


def by_bytes(uses: Uses) -> list[tuple[tuple[int, ...], int]]:
    """The steps and the bytes of all choices, if bytes alone count."""
    highest: dict[int, int] = {}
    for step, level in uses:
        highest[step] = max(level, highest.get(step, 0))
    size = sized(*highest.values())
    choices = fewer_keys(uses, PARAMETERS, PRICER.price, 1.0, size, lambda _, held: held, PICKY)
    found = list(choices)
    only = fewer_keys(uses, PARAMETERS, PRICER.price, 1.0, size, lambda _, held: held, PICKY, last_only=True)
    assert list(only) == found[-1:]
    return [(one.steps, one.sizes.key_bytes) for one in found]


def test_the_parts_of_a_composed_step_reach_as_far_as_it_is_taken() -> None:
    # 3 = 1 + 2: its key takes 5000 bytes at level 4, and so would the other two, which take 4000 and 5000 now.
    everything, (steps, size) = by_bytes({(1, 3): 9, (1, 1): 9, (2, 4): 9, (3, 4): 1})
    assert everything == ((1, 2, 3), 1000 + 4000 + 5000 + 5000)
    assert steps == (1, 2) and size == 1000 + 5000 + 5000
    (_, whole), (_, less) = by_bytes({(1, 3): 9, (2, 4): 9, (3, 4): 1})
    assert whole - less == 5000 - 1000


def test_a_step_keeps_its_key_if_its_parts_would_grow_by_more() -> None:
    assert by_bytes({(1, 0): 9, (50, 0): 9, (51, 4): 1}) == [((1, 50, 51), 8000)]
    # As long as it pays; a part that is raised for one step serves others.
    choices = by_bytes({(1, 2): 9, (2, 2): 9, (3, 4): 1, (4, 4): 2})
    assert choices[-1] == ((1, 2), 1000 + 5000 + 5000)


@pytest.mark.parametrize("room", [14_000, 17_500, 19_500])
def test_of_keys_that_are_read_the_largest_are_taken_to_be_held(room: int) -> None:
    # No step is composed of others, for slots are many.
    uses: Uses = {(10**step, level): 7 for step, level in enumerate((4, 0, 1, 4, 2, 3), 1)}
    uses = {(step % PARAMETERS.slots, level): times for (step, level), times in uses.items()}
    sizes = sorted(PICKY.key_bytes(PARAMETERS, level) for _, level in uses)
    assert sizes == [1000, 2000, 3000, 4000, 5000, 5000]
    whole = sized(*(level for _, level in uses))
    (everything,) = list(fewer_keys(uses, PARAMETERS, PRICER.price, 1.0, whole, lambda *_: 0.0, PICKY))
    order = [step for _ in range(7) for step, _ in uses]
    limit = replace(whole, key_bytes=1000 + room).server_bytes
    found = within([everything], order, PRICER, 0.0, limit)
    assert found.sizes.server_bytes <= limit and found.pool == 6 and 1 <= found.held <= 6 - LOADING_KEYS
    gone = 6 - LOADING_KEYS - found.held
    assert found.sizes.key_bytes == whole.key_bytes - sum(sizes[:gone])
    if found.held > 1 and gone:
        assert replace(whole, key_bytes=whole.key_bytes - sum(sizes[: gone - 1])).server_bytes > limit
    levels = dict(uses.keys())
    again = evictions(order, found.held) if gone else {}
    seconds = sum(times * key_reading_seconds(PRICER, levels[step]) for step, times in again.items())
    assert found.reads == sum(again.values()) and found.seconds == pytest.approx(1.0 + seconds)
