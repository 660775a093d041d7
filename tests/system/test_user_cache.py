from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from olac.system import user_cache
from olac.system.user_cache import Damaged, NoCache, UserCache, cache_root


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLAC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cache(root: Path) -> UserCache:
    return UserCache("things", "group")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("OLAC_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_root() == tmp_path / "home" / ".cache" / "olac"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # does not count
    assert cache_root() == tmp_path / "home" / ".cache" / "olac"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "olac"
    monkeypatch.setenv("OLAC_CACHE_DIR", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    monkeypatch.setenv("OLAC_CACHE_DIR", "~/own")
    assert cache_root() == tmp_path / "home" / "own"


def test_what_is_written_is_read(cache: UserCache, root: Path) -> None:
    assert cache.read("a") is None and not root.exists()  # reading makes nothing
    umask = os.umask(0)
    try:
        digest = cache.write("a", {"x": [1, "y"]}, b"contents")
    finally:
        os.umask(umask)
    assert cache.read("a") == ({"x": [1, "y"]}, b"contents", digest)
    folder = root / "things" / "group"
    assert [mode(path) for path in (root / "things", folder, folder / "a")] == [0o700, 0o700, 0o600]
    assert os.listdir(folder) == ["a"] and cache.path("a") == folder / "a"
    other = cache.write("a", {}, b"")
    assert cache.read("a") == ({}, b"", other) and other != digest


@pytest.mark.parametrize("where", ["start", "digest", "header", "contents", "cut", "empty", "longer"])
def test_damage_is_found(cache: UserCache, where: str) -> None:
    cache.write("a", {"x": 1}, b"contents")
    path = cache.path("a")
    data = bytearray(path.read_bytes())
    place = {"start": 0, "digest": 12, "header": 46, "contents": len(data) - 1}
    if where in place:
        data[place[where]] ^= 1
    changed = bytes(data)
    path.write_bytes({"cut": changed[:-1], "empty": b"", "longer": changed + b"x"}.get(where, changed))
    with pytest.raises(Damaged, match="damaged"):
        cache.read("a")


def test_files_of_a_size_that_cannot_be(cache: UserCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("a", {}, bytes(1000))
    monkeypatch.setattr(user_cache, "MAX_BYTES", 500)
    with pytest.raises(Damaged, match="damaged"):
        cache.read("a")


def test_a_folder_of_another_user(cache: UserCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("a", {}, b"")
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(NoCache, match="belongs to another user"):
        cache.read("a")
    with pytest.raises(NoCache, match="belongs to another user"):
        cache.write("b", {}, b"")
    assert cache.groups() == []


@pytest.mark.parametrize("which", ["things", "things/group"])
def test_a_folder_that_others_may_write_to(cache: UserCache, root: Path, which: str) -> None:
    cache.write("a", {}, b"")
    (root / which).chmod(0o720)
    for use in (lambda: cache.read("a"), lambda: cache.write("a", {}, b"")):
        with pytest.raises(NoCache, match="others may write"):
            use()


def test_a_folder_that_others_may_read_is_closed_again(cache: UserCache, root: Path) -> None:
    cache.write("a", {}, b"")
    (root / "things").chmod(0o755)
    assert cache.read("a") is not None
    assert mode(root / "things") == 0o700


@pytest.mark.parametrize("which", ["things", "things/group"])
def test_a_symbolic_link_in_place_of_a_folder(cache: UserCache, root: Path, tmp_path: Path, which: str) -> None:
    cache.write("a", {}, b"")
    elsewhere = tmp_path / "elsewhere"
    (root / which).rename(elsewhere)
    (root / which).symlink_to(elsewhere)
    with pytest.raises(NoCache, match="symbolic link"):
        cache.read("a")
    with pytest.raises(NoCache, match="symbolic link"):
        cache.write("a", {}, b"")


def test_the_whole_cache_may_be_moved_by_a_link(cache: UserCache, root: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    root.symlink_to(tmp_path / "large")
    cache.write("a", {}, b"x")
    found = cache.read("a")
    assert found is not None and found[1] == b"x"


def test_files_that_others_may_have_written(cache: UserCache, tmp_path: Path) -> None:
    cache.write("a", {}, b"")
    path = cache.path("a")
    path.chmod(0o620)
    with pytest.raises(Damaged, match="another user"):
        cache.read("a")
    path.chmod(0o600)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(Damaged, match="can't be opened"):
        cache.read("a")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(Damaged, match="not a file"):
        cache.read("a")
    cache.write("b", {}, b"")  # others are as they were
    assert cache.read("b") is not None


def test_a_place_that_cannot_be_written(cache: UserCache, root: Path) -> None:
    root.write_text("a file")
    with pytest.raises(NoCache, match="can't be written"):
        cache.write("a", {}, b"")


def test_a_file_that_cannot_be_written_leaves_nothing(cache: UserCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write("a", {}, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(NoCache, match="No space left"):
        cache.write("a", {}, b"new")
    assert os.listdir(cache.path()) == ["a"]
    found = cache.read("a")
    assert found is not None and found[1] == b"old"


def test_no_owners(cache: UserCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "geteuid")
    with pytest.raises(NoCache, match="does not say whom"):
        cache.write("a", {}, b"")


def test_groups_that_were_not_used_for_long_are_deleted(root: Path) -> None:
    caches = [UserCache("things", f"g{i}") for i in range(5)]
    for i, cache in enumerate(caches):
        cache.write("a", {}, b"")
        os.utime(cache.path(), (1000 + i, 1000 + i))
    caches[0].touch()
    assert caches[0].path().stat().st_mtime > time.time() - 100
    caches[4].forget_others(2)
    assert caches[4].groups() == ["g0", "g3", "g4"]


def test_what_killed_processes_left_is_deleted(cache: UserCache) -> None:
    cache.write("a", {}, b"")
    left, fresh = cache.path(".b.0123.part"), cache.path(".c.0123.part")
    left.write_bytes(b"")
    fresh.write_bytes(b"")
    os.utime(left, (1000, 1000))
    cache.write("a", {}, b"")
    assert sorted(os.listdir(cache.path())) == [".c.0123.part", "a"]
