"""Which keys a pool holds if not all fit: the order in which they are needed is known beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class KeyPool:
    """A pool of keys that holds at most `capacity` of them at once.

    If it is full, the key whose next use is furthest away is evicted, which takes the fewest loads (Belady, "A study of
    replacement algorithms for a virtual-storage computer", IBM Systems Journal 5, 1966). Each run is followed by
    another one with the same order.

    Args:
        order: the keys in the order in which a run needs them.
        capacity: at least 1.

    Attributes:
        held: the keys in the pool, and the place in the order at which each is needed next.
        loads, evictions: how many so far.
    """

    def __init__(self, order: Sequence[int], capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a capacity of {capacity} keys, at least 1 is needed")
        self.capacity = capacity
        self.held: dict[int, int] = {}
        self.loads = self.evictions = 0
        self._order = tuple(order)
        self._next = self._next_uses()
        self._position = 0

    def _uses_from(self, position: int) -> dict[int, int]:
        """For each key the first place from `position` on at which it is needed; the next run's places count on."""
        length = len(self._order)
        return {self._order[place % length]: place for place in reversed(range(position, position + length))}

    def _next_uses(self) -> list[int]:
        """For each place in the order the place at which its key is needed again, which may be in the next run."""
        length = len(self._order)
        seen, found = self._uses_from(length), [0] * length
        for place in range(length - 1, -1, -1):
            key = self._order[place]
            found[place] = seen[key]
            seen[key] = place
        return found

    def restart(self, position: int = 0) -> None:
        """Begin a run at a place of the order."""
        self._position = position
        first = self._uses_from(position)
        self.held = {key: first[key] for key in self.held}

    def need(self, key: int) -> tuple[bool, int | None]:
        """Take the next key of the order: whether it has to be loaded, and the key that is evicted for it, or None.

        Raises:
            ValueError: it is not the next key of the order.
        """
        place = self._position
        if place >= len(self._order) or self._order[place] != key:
            raise ValueError(f"key {key} is not the next of the order, at {place}")
        self._position += 1
        missing, evicted = key not in self.held, None
        if missing:
            self.loads += 1
            if len(self.held) == self.capacity:
                evicted = max(self.held, key=self.held.__getitem__)
                del self.held[evicted]
                self.evictions += 1
        self.held[key] = self._next[place]
        return missing, evicted


def evictions(order: Sequence[int], capacity: int) -> Counter[int]:
    """How often each key is evicted in one run, and read again in it or in the next: loads beyond those that fill."""
    pool, found = KeyPool(order, capacity), Counter[int]()
    for key in order:
        _, evicted = pool.need(key)
        if evicted is not None:
            found[evicted] += 1
    return found
