"""Memory for limbs, used again: fresh pages cost as much as the arithmetic on them."""

from __future__ import annotations

import threading
import weakref

import numpy as np

from olac.ckks.parameters import Parameters
from olac.ckks.sizes import FREE_CIPHERTEXTS, ciphertext_bytes
from olac.system.arrays import Array

SLACK = 1.5
"""A buffer may be used for less than its size by this factor."""


ALIGNED = 64
"""Bytes: a line of the caches, and eight doubles."""


def aligned(size: int) -> Array:
    """So many doubles of undefined content, whose address is a multiple of `ALIGNED`."""
    whole = np.empty(size + ALIGNED // 8)
    first = -whole.ctypes.data % ALIGNED // 8
    found: Array = whole[first : first + size]
    return found


class Buffers:
    """Flat arrays of float64 that go back to this object when nothing refers to their `Buffer` any more.

    Args:
        most_free: bytes that are kept while nothing uses them; arrays that were not used for longest are freed first.
    """

    def __init__(self, most_free: int) -> None:
        self._most = most_free
        self._bytes = 0
        self._free: list[Array] = []
        """In the order in which they came back."""
        self._lock = threading.RLock()

    def take(self, size: int) -> Buffer:
        """A buffer of at least `size` doubles, whose content is undefined."""
        with self._lock:
            found = None
            # A collection of garbage may call `give` at any time, in this thread, too.
            for array in reversed(tuple(self._free)):
                if size <= len(array) <= SLACK * size and (found is None or len(array) < len(found)):
                    found = array
            if found is not None:
                self._take_out(found)
        return Buffer(aligned(size) if found is None else found, self)

    def give(self, array: Array) -> None:
        """Put an array back."""
        with self._lock:
            self._free.append(array)
            self._bytes += array.nbytes
            while self._bytes > self._most:
                self._take_out(self._free[0])

    def _take_out(self, array: Array) -> None:
        for place, one in enumerate(self._free):
            if one is array:
                del self._free[place]
                self._bytes -= array.nbytes
                return

    def take_parts(self, count: int, size: int) -> list[Part]:
        """Parts of one buffer, each of `size` doubles, which stays in use while one of them does."""
        whole = self.take(count * size)
        return [Part(whole, place * size, size) for place in range(count)]

    def clear(self) -> None:
        """Free all that is not in use."""
        with self._lock:
            self._free.clear()
            self._bytes = 0


def buffers_for(parameters: Parameters) -> Buffers:
    """Those of one evaluator."""
    return Buffers(FREE_CIPHERTEXTS * ciphertext_bytes(parameters.log_ring, parameters.limbs))


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

    def __init__(self, buffer: Buffer | Part, first: int, size: int) -> None:
        self._buffer = buffer
        self.whole: Array = buffer.data
        self.data: Array = buffer.data[first : first + size]
