"""What is left of the machine's memory, and of a cgroup's where that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from olac import memory

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
