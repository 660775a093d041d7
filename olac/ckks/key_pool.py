"""Which keys of a pool are held where not all fit: the order in which they are needed is known beforehand."""

from __future__ import annotations

from collections.abc import Sequence


class Pages:
    """A pool of keys of which `capacity` at most are held at once.

    Where one has to go it is the one whose next use is furthest away, which takes the fewest loads there can be
    (Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5, 1966). A run is
    followed by another like it.

    Args:
        order: the keys in the order in which a run needs them.
        capacity: at least 1.

    Attributes:
        held: the keys, and where in the order each is needed next.
        loads, evictions: so far.
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

    def _next_uses(self) -> list[int]:
        """For each place in the order, the place at which its key is needed again: beyond the end, in the next run."""
        length = len(self._order)
        seen = {key: place + length for place, key in reversed(list(enumerate(self._order)))}
        found = [0] * length
        for place in range(length - 1, -1, -1):
            key = self._order[place]
            found[place] = seen[key]
            seen[key] = place
        return found

    def restart(self, position: int = 0) -> None:
        """Begin a run at a place of the order."""
        self._position = position
        length = len(self._order)
        first = {key: place + length for place, key in reversed(list(enumerate(self._order)))}
        first.update((key, place) for place, key in reversed(list(enumerate(self._order))) if place >= position)
        self.held = {key: first[key] for key in self.held}

    def need(self, key: int) -> tuple[bool, int | None]:
        """The next key that is needed: whether it has to be loaded, and the one that goes for it first, if any.

        Raises:
            ValueError: it is not the next of the order.
        """
        place = self._position
        if place >= len(self._order) or self._order[place] != key:
            raise ValueError(f"key {key} is not the next of the order, at {place}")
        self._position += 1
        missing, gone = key not in self.held, None
        if missing:
            self.loads += 1
            if len(self.held) == self.capacity:
                gone = max(self.held, key=self.held.__getitem__)
                del self.held[gone]
                self.evictions += 1
        self.held[key] = self._next[place]
        return missing, gone


def evictions(order: Sequence[int], capacity: int) -> int:
    """Loads of one run beyond those that fill the pool."""
    pages = Pages(order, capacity)
    for key in order:
        pages.need(key)
    return pages.evictions
