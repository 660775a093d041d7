from __future__ import annotations

import gc
import threading

import numpy as np

from olac.backends.vector.buffers import ALIGNED, Buffers, aligned


def test_memory_is_used_again() -> None:
    home = Buffers(10**6)
    first = home.take(1000)
    data = first.data
    second = home.take(1000)
    assert second.data is not data
    del first
    assert home.take(1001).data is not data
    assert home.take(100).data is not data, "it would be wasted on so few"
    assert home.take(900).data is data


def test_memory_begins_with_a_line_of_the_caches() -> None:
    home = Buffers(10**6)
    held = [home.take(size) for size in (1, 9, 1000, 10**6)]
    assert [one.data.ctypes.data % ALIGNED for one in held] == [0] * 4
    assert [len(aligned(size)) for size in (1, 9, 1000)] == [1, 9, 1000]


def test_the_smallest_that_is_enough_is_taken() -> None:
    home = Buffers(10**6)
    held = [home.take(size) for size in (1400, 1000, 1200)]
    wanted = held[1].data
    held.clear()
    assert home.take(950).data is wanted


def test_no_more_is_kept_than_allowed() -> None:
    home = Buffers(8 * 2500)
    held = [home.take(1000) for _ in range(4)]
    arrays = [one.data for one in held]
    for _ in range(4):
        del held[0]  # they come back in order
    kept = [home.take(1000) for _ in range(4)]
    assert sum(any(one.data is array for array in arrays[2:]) for one in kept) == 2
    assert not any(one.data is array for one in kept for array in arrays[:2])
    home.clear()
    assert home.take(1000).data is not arrays[3]


def test_parts_keep_the_whole_in_use() -> None:
    home = Buffers(10**6)
    first, second = home.take_parts(2, 500)
    whole = first.whole
    del first
    assert home.take(1000).data is not whole
    del second
    gc.collect()
    assert home.take(1000).data is whole


def test_threads_share_them() -> None:
    home, wrong = Buffers(8 * 3000), []

    def work(value: float) -> None:
        for size in np.random.default_rng(int(value)).integers(100, 1500, 300):
            one = home.take(int(size))
            one.data[:] = value
            if not np.all(one.data == value):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and home._bytes == sum(one.nbytes for one in home._free) <= 8 * 3000
