"""Files are written completely or not at all, to the right place, and with the right mode."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from olac.errors import ArtifactError
from olac.system.files import (
    MAGIC,
    SECRET_KEY,
    Output,
    check_apart,
    check_folder,
    check_private,
    check_writable,
    remove_file,
    write_file,
    write_files,
)

KEY = MAGIC + b"\7\0" + SECRET_KEY.encode().ljust(16, b"\0") + b"words"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: Any) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def fails(number: int) -> Iterator[bytes]:
    yield b"begun"
    raise OSError(number, os.strerror(number))


# Modes ---------------------------------------------------------------------------------------------------------------


def test_new_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    write_file(tmp_path / "x", [b"a"])
    assert mode(tmp_path / "x") == 0o666 & ~umask
    write_file(tmp_path / "y", [b"a"], overwrite=False)
    assert mode(tmp_path / "y") == 0o666 & ~umask
    write_file(tmp_path / "z", [b"a"], private=True)
    assert mode(tmp_path / "z") == 0o600


def test_a_file_that_is_there_keeps_its_mode_unless_it_is_private(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    path.chmod(0o640)
    write_file(path, [b"after"])
    assert path.read_bytes() == b"after" and mode(path) == 0o640
    write_file(path, [b"secret"], private=True)
    assert mode(path) == 0o600


def test_a_private_file_is_never_readable_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def pieces() -> Iterator[bytes]:
        seen.extend(mode(path) for path in tmp_path.iterdir())
        yield b"secret"

    write_file(tmp_path / "x", pieces(), private=True)
    assert seen == [0o600]


# Not at all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EDQUOT])
def test_nothing_is_left_where_a_disk_is_full(tmp_path: Path, number: int) -> None:
    (tmp_path / "x").write_bytes(b"before")
    with pytest.raises(ArtifactError, match=os.strerror(number)):
        write_file(tmp_path / "x", fails(number))
    with pytest.raises(ArtifactError, match=os.strerror(number)):
        write_file(tmp_path / "new", fails(number))
    assert names(tmp_path) == {"x"} and (tmp_path / "x").read_bytes() == b"before"


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ArtifactError])
def test_nothing_is_left_whatever_happens(tmp_path: Path, error: type[BaseException]) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begun"
        raise error

    with pytest.raises(error):
        write_file(tmp_path / "x", pieces())
    assert not names(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace", "open", "link"])
def test_a_pair_is_what_it_was_if_anything_fails(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the calls fails once, at each place from which it is made."""
    for overwrite, before in ((True, ("one", "two")), (True, ("one",)), (True, ("two",)), (True, ()), (False, ())):
        failed, at = True, 0
        while failed:
            failed, at = _fails_at(tmp_path, call, at, overwrite, before, monkeypatch), at + 1
        assert at > 1 or (call, overwrite, before) in {("replace", False, ()), ("link", True, ())}


def _fails_at(
    folder: Path, call: str, at: int, overwrite: bool, there: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> bool:
    for path in folder.iterdir():
        path.unlink()
    before = {name: name.encode() for name in there}
    for name, data in before.items():
        (folder / name).write_bytes(data)
    count, real = 0, getattr(os, call)

    def once(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == at + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **named)

    outputs = [Output(folder / name, [b"new"], overwrite=overwrite) for name in ("one", "two")]
    with monkeypatch.context() as patch:
        patch.setattr(os, call, once)
        try:
            write_files(outputs)
        except ArtifactError:
            failed = True
        else:
            failed = False
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == (before if failed else {"one": b"new", "two": b"new"})
    return count > at


def test_a_pair_is_complete_before_either_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"before")
    for order in (1, -1):
        pair = [Output(tmp_path / "one", [b"new"]), Output(tmp_path / "two", fails(errno.ENOSPC))]
        with pytest.raises(ArtifactError, match="No space left"):
            write_files(pair[::order])
        assert names(tmp_path) == {"one"} and (tmp_path / "one").read_bytes() == b"before"


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)
    code = (
        "import os, sys\nfrom olac.system.files import write_file\n"
        "def pieces():\n    yield b'secret'\n    os.kill(os.getpid(), 9)\n"
        "write_file(sys.argv[1], pieces(), private=True)"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    (left,) = tmp_path.iterdir()
    assert left != path and mode(left) == 0o600
    other = tmp_path / f".{path.name[:100]}.{'0' * 16}.part"
    other.write_bytes(b"of another file")
    write_file(path, [b"data"])
    assert names(tmp_path) == {path.name, other.name}


def test_writers_at_the_same_time_do_not_sweep_each_other(tmp_path: Path) -> None:
    path, problems = tmp_path / "x", []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_file(path, [bytes([number]) * 1000])
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and names(tmp_path) == {"x"}
    assert len(set(path.read_bytes())) == 1


def test_no_room_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match="are free on its disk"):
        write_file(tmp_path / "x", iter(()), size=1 << 60)
    with pytest.raises(ArtifactError, match="are free on its disk"):
        check_writable(tmp_path / "x", size=1 << 60)
    with pytest.raises(ArtifactError, match="are free on its disk"):
        check_folder(tmp_path / "a" / "b", 1 << 60)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ArtifactError, match="ulimit -f"):
            write_file(tmp_path / "x", iter(()), size=1001)
        with pytest.raises(ArtifactError, match="File too large"):
            write_file(tmp_path / "x", [bytes(2000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not names(tmp_path)


# Places --------------------------------------------------------------------------------------------------------------


def test_devices_and_pipes_are_written_into(tmp_path: Path) -> None:
    null = os.stat("/dev/null")
    for path in (Path("/dev/null"), tmp_path / "link"):
        if path != Path("/dev/null"):
            path.symlink_to("/dev/null")
        write_file(path, [b"x"], private=True)
        assert os.stat("/dev/null") == null or stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.stat("/dev/null").st_ino == null.st_ino and os.stat("/dev/null").st_mode == null.st_mode
    with pytest.raises(ArtifactError, match="No space left"):
        write_file("/dev/full", [b"x"])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_file(fifo, [b"into", b" it"])
    assert os.read(reader, 100) == b"into it"
    os.close(reader)
    assert names(tmp_path) == {"link", "fifo"}
    with pytest.raises(ArtifactError, match="has to be a file"):
        check_writable(fifo, special=False)
    with pytest.raises(ArtifactError, match="exists already"):
        write_file(fifo, [b"x"], overwrite=False)


def test_descriptors_are_written_into(tmp_path: Path) -> None:
    """Standard output goes on from its current position, whether it is a pipe or a file that a shell opened."""
    reader, writer = os.pipe()
    write_file(f"/dev/fd/{writer}", [b"piped"])
    assert os.read(reader, 100) == b"piped"
    os.close(reader)
    os.close(writer)
    with (tmp_path / "x").open("wb") as stream:
        stream.write(b"before ")
        stream.flush()
        write_file(f"/proc/self/fd/{stream.fileno()}", [b"between "])
        stream.seek(0, os.SEEK_END)
        stream.write(b"after")
    assert (tmp_path / "x").read_bytes() == b"before between after" and names(tmp_path) == {"x"}


def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/x")
    write_file(tmp_path / "link", [b"new"], overwrite=False)
    write_file(tmp_path / "link", [b"newer"])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "x").read_bytes() == b"newer"
    assert names(tmp_path / "folder") == {"x"}
    remove_file(tmp_path / "link")
    assert not names(tmp_path / "folder")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError, match="symbolic links"):
        write_file(tmp_path / "loop", [b"x"])


def test_places_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"x")
    wrong = {
        tmp_path: "is a folder",
        tmp_path / "no" / "x": "doesn't exist. Make it",
        tmp_path / "x" / "y": "doesn't exist",
        tmp_path / ("n" * 300): "File name too long",
        Path("a\0b"): r"a\\x00b: can't be written",
        Path("/proc/1/fd/1"): "can't be written|doesn't exist",
    }
    for path, message in wrong.items():
        with pytest.raises(ArtifactError, match=message):
            write_file(path, [b"x"])
    monkeypatch.chdir(tmp_path)
    write_file("x", [b"relative"])
    assert (tmp_path / "x").read_bytes() == b"relative"
    with pytest.raises(ArtifactError, match="exists already"):
        write_file("x", [b"new"], overwrite=False)
    # root may write everywhere, so the answer for another user is faked
    monkeypatch.setattr(os, "access", lambda path, wanted: Path(path).name != "x")
    with pytest.raises(ArtifactError, match="is read-only"):
        write_file("x", [b"new"])
    monkeypatch.setattr(os, "access", lambda path, wanted: False)
    with pytest.raises(ArtifactError, match="can't be written to"):
        write_file("y", [b"new"])
    assert names(tmp_path) == {"x"}
    with pytest.raises(ArtifactError, match="is a file"):
        check_folder(tmp_path / "x" / "y")


def test_a_secret_key_is_not_overwritten_unasked(tmp_path: Path) -> None:
    key, hard, soft = (tmp_path / name for name in ("key", "hard", "soft"))
    key.write_bytes(KEY)
    os.link(key, hard)
    soft.symlink_to("key")
    for path in (key, hard, soft):
        with pytest.raises(ArtifactError, match="holds a secret key"):
            write_file(path, [b"x"])
        with pytest.raises(ArtifactError, match="holds a secret key"):
            check_writable(path)
    assert key.read_bytes() == KEY and names(tmp_path) == {"key", "hard", "soft"}
    write_files([Output(soft, [b"new"], replaces_key=True)])
    assert key.read_bytes() == b"new" and hard.read_bytes() == KEY


def test_outputs_are_apart_from_inputs_and_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "in").write_bytes(b"x")
    os.link("in", "hard")
    os.symlink("in", "soft")
    os.symlink("out", "dangling")
    for path in ("in", "sub/../in", "hard", "soft", str(tmp_path / "in")):
        with pytest.raises(ArtifactError, match="is the input that is read, and the result would be written over it"):
            check_apart({"result": path}, {"input": "in"})
    for path in ("out", "./out", "sub/../out", "dangling", str(tmp_path / "out")):
        with pytest.raises(ArtifactError, match="is to be the result and the checkpoint"):
            check_apart({"result": "out", "checkpoint": path}, {"input": "in"})
    check_apart({"result": "out", "checkpoint": "sub/out", "nothing": None}, {"input": "in", "none": None})
    check_apart({"result": "/dev/null", "checkpoint": "/dev/null"}, {})


def test_a_secret_key_that_others_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "my key"
    key.write_bytes(KEY)

    def check() -> None:
        with key.open("rb") as stream:
            check_private(stream, key)

    for allowed in (0o600, 0o400, 0o700):
        key.chmod(allowed)
        check()
    for wrong in (0o604, 0o640, 0o620, 0o601, 0o644):
        key.chmod(wrong)
        with pytest.raises(ArtifactError, match=rf"mode 0{wrong:o}\)\. .* chmod 600 '.*my key'"):
            check()
    # Another file gets its name, but is not the one that is read.
    with key.open("rb") as stream:
        key.rename(tmp_path / "other")
        key.touch(0o600)
        with pytest.raises(ArtifactError, match="mode 0644"):
            check_private(stream, key)
    # A file of another owner, for a group of this process.
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    key.chmod(0o640)
    check()
    key.chmod(0o644)
    with pytest.raises(ArtifactError, match="chmod 600"):
        check()
