"""Memory for limbs, used again: fresh pages cost as much as the arithmetic on them."""

from __future__ import annotations

import threading
import weakref

import numpy as np

from olac.system.arrays import Array

SLACK = 1.5
"""A buffer may be used for less than its size by this factor."""


class Buffers:
    """Flat arrays of float64 that go back to this object when nothing refers to their `Buffer` any more."""

    def __init__(self) -> None:
        self._free: dict[int, list[Array]] = {}
        self._lock = threading.RLock()

    def take(self, size: int) -> Buffer:
        """A buffer of at least `size` doubles, whose content is undefined."""
        with self._lock:
            # A collection of garbage may call `give` at any time. So the sizes are taken out at once.
            fitting = [held for held in tuple(self._free) if size <= held <= SLACK * size and self._free[held]]
            found = self._free[min(fitting)].pop() if fitting else None
        return Buffer(np.empty(size) if found is None else found, self)

    def give(self, array: Array) -> None:
        """Put an array back."""
        with self._lock:
            self._free.setdefault(len(array), []).append(array)

    def take_parts(self, count: int, size: int) -> list[Part]:
        """Parts of one buffer, each of `size` doubles, which stays in use while one of them does."""
        whole = self.take(count * size)
        return [Part(whole, place * size, size) for place in range(count)]

    def clear(self) -> None:
        """Free all that is not in use."""
        with self._lock:
            self._free.clear()


class Buffer:
    """A flat array of float64, of `Buffers`.

    Attributes:
        data: the array.
    """

    __slots__ = ("_home", "data")

    def __init__(self, data: Array, home: Buffers) -> None:
        self.data = data
        self._home = weakref.ref(home)

    def __del__(self) -> None:
        home = self._home()
        if home is not None:
            home.give(self.data)


class Part:
    """Doubles of a buffer, from `first` on.

    Attributes:
        data: the array.
        whole: the array of the whole buffer.
    """

    __slots__ = ("_buffer", "data", "whole")

    def __init__(self, buffer: Buffer, first: int, size: int) -> None:
        self._buffer, self.whole = buffer, buffer.data
        self.data = buffer.data[first : first + size]
