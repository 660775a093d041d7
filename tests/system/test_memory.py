"""The free memory of the machine, or of a cgroup if that is less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from olac.system import memory

KIB = 1024


def test_numbers_of_this_process() -> None:
    assert 0 < memory.current_rss_bytes() <= memory.peak_rss_bytes() * 1.05
    assert 0 < memory.available_bytes() < 1 << 50


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemAvailable:    3000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("")
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def test_without_cgroups(machine: Path) -> None:
    assert memory.available_bytes() == 3000 * KIB
    (machine / "proc/self/cgroup").unlink()
    assert memory.available_bytes() == 3000 * KIB


def test_the_tightest_cgroup_counts_and_page_cache_is_free(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("0::/a/b\n")
    inner, outer = machine / "cgroup/a/b", machine / "cgroup/a"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    assert memory.available_bytes() == 3000 * KIB
    (outer / "memory.max").write_text("1000000\n")
    (outer / "memory.current").write_text("900000\n")
    (outer / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert memory.available_bytes() == 150_000
    (outer / "memory.current").write_text("1200000\n")
    assert memory.available_bytes() == 0


def test_the_first_version_of_cgroups(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("4:cpu,memory:/box\n3:cpuset:/\n")
    box = machine / "cgroup/memory/box"
    box.mkdir(parents=True)
    (box / "memory.limit_in_bytes").write_text("800000")
    (box / "memory.usage_in_bytes").write_text("300000")
    assert memory.available_bytes() == 500_000


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("8GB", 8e9),
        ("8 GB", 8e9),
        (" 512mb ", 512e6),
        ("1.5GiB", 1.5 * 2**30),
        ("1.5e3 MB", 1.5e9),
        ("2G", 2e9),
        ("1tib", 2.0**40),
        ("123456789 B", 123456789),
        (8e9, 8e9),
        (1_000_000, 1e6),
        (np.float32(4e9), 4e9),
        (np.int64(5_000_000), 5e6),
    ],
)
def test_amounts_of_memory(amount: float | str, expected: float) -> None:
    assert memory.bytes_of(amount, "max_memory") == expected


@pytest.mark.parametrize("amount", [8, 0.5, 999_999, "8", "0.5MB", np.int32(8)])
def test_numbers_that_are_not_meant_as_bytes_are_refused(amount: float | str) -> None:
    with pytest.raises(ValueError, match=r'max_memory .*"8GB"'):
        memory.bytes_of(amount, "max_memory")


@pytest.mark.parametrize(
    "amount",
    [
        0,
        -8e9,
        float("nan"),
        float("inf"),
        True,
        "0GB",
        "-8GB",
        "nan",
        "inf",
        "1e999GB",
        "",
        "GB",
        "8 PB",
        "8GB 1",
        None,
    ],
)
def test_what_is_no_amount_of_memory_is_refused(amount: float | str) -> None:
    for bare in ("", "GB"):
        with pytest.raises(ValueError, match=r"^max_memory .* is not an amount of memory"):
            memory.bytes_of(amount, "max_memory", bare=bare)


def test_a_number_may_have_a_unit_of_its_own_and_nothing_may_be_an_amount() -> None:
    assert memory.bytes_of("4", "--max-memory", bare="GB") == 4e9
    assert memory.bytes_of("512MB", "--max-memory", bare="GB") == 512e6
    assert memory.bytes_of(0, "cache_bytes", or_zero=True) == 0
    with pytest.raises(ValueError, match='or "8GB"'):
        memory.bytes_of(8, "cache_bytes", or_zero=True)
