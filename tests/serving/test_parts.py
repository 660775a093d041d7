"""Tokens, names, states in the store, logs, and what works without the extra."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from olac.cli import main
from olac.errors import ArtifactError, InputError, OlacError
from olac.serving.logs import JsonFormatter, event
from olac.serving.names import is_name
from olac.serving.programs import id_of
from olac.serving.remote import RemoteServer, read_token
from olac.serving.run import is_local
from olac.serving.store import CHECKPOINT, INPUT, RESULT, Job, Store
from olac.serving.tokens import LOCAL, Tokens
from tests.serving.served import ROOT, TOKENS

# Tokens --------------------------------------------------------------------------------------------------------------


def tokens_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_tokens(tmp_path: Path) -> None:
    lines = "\n".join(f"{name}:{token}" for name, token in TOKENS.items())
    found = Tokens.load(tokens_file(tmp_path, f"# clients\n\n{lines}\n"))
    assert [found.owner(token) for token in TOKENS.values()] == list(TOKENS)
    assert found.owner(None) is found.owner("") is found.owner(TOKENS["alice"][:-1]) is found.owner("é") is None
    assert found.is_operator("operator") and not found.is_operator("alice")
    assert Tokens().owner(None) == LOCAL and Tokens().is_operator(LOCAL)
    assert TOKENS["alice"] not in repr(vars(found))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no token"),
        ("alice", "no colon"),
        ("alice:short-token-0123", "128 bits"),
        ("alice:0123456789abcdef0123456789", "32 that 128 bits take"),
        ("alice:" + "ab" * 20, "drawn at random"),
        ("alice:" + "ä" * 30, "other characters"),
        ("../alice:" + TOKENS["alice"], "can't be the name"),
        ("local:" + TOKENS["alice"], "choose another"),
        (f"alice:{TOKENS['alice']}\nalice:{TOKENS['bob']}", "line 2"),
        (f"alice:{TOKENS['alice']}\nbob:{TOKENS['alice']}", "another client's"),
    ],
)
def test_files_of_tokens_that_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=problem) as error:
        Tokens.load(tokens_file(tmp_path, text))
    assert TOKENS["alice"] not in str(error.value)


def test_a_file_of_tokens_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alice, bob = (f"{name}:{TOKENS[name]}" for name in ("alice", "bob"))
    path = tokens_file(tmp_path, alice)
    found = Tokens.load(path)

    def known() -> list[str]:
        return [name for name in ("alice", "bob") if found.owner(TOKENS[name]) == name]

    assert known() == ["alice"]
    tokens_file(tmp_path, f"{alice}\n{bob}")
    assert known() == ["alice", "bob"]
    other = tmp_path / "other"
    other.write_text(bob)
    other.chmod(0o600)
    other.replace(path)
    assert known() == ["bob"], "a token that was removed is unknown at once"
    assert not caplog.records
    for text, mode, problem in (("", 0o600, "holds no token"), (alice, 0o644, "chmod 600"), ("alice", 0o600, "colon")):
        tokens_file(tmp_path, text, mode)
        assert known() == ["bob"], "a file that is wrong changes nothing"
        (said,) = (record.getMessage() for record in caplog.records)
        assert problem in said and TOKENS["alice"] not in said
        caplog.clear()
    path.unlink()
    assert known() == known() == ["bob"]
    assert len(caplog.records) == 1 and "does not exist" in caplog.text
    tokens_file(tmp_path, alice)
    assert known() == ["alice"]


def test_a_file_of_tokens_that_stays_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tokens_file(tmp_path, f"alice:{TOKENS['alice']}")
    later = path.stat().st_mtime + 10
    monkeypatch.setattr("olac.serving.tokens.time.time", lambda: later)
    found = Tokens.load(path)
    reads: list[Path] = []

    def read(path: Path) -> Tokens:
        reads.append(path)
        return Tokens(TOKENS)

    monkeypatch.setattr("olac.serving.tokens._read", read)
    assert found.owner(TOKENS["alice"]) == "alice" and not reads
    path.write_text(path.read_text())
    later += 10
    assert found.owner(TOKENS["bob"]) == "bob" and found.owner(TOKENS["bob"]) == "bob"
    assert len(reads) == 1


def test_tokens_that_others_may_read_are_refused(tmp_path: Path) -> None:
    for read in (Tokens.load, read_token):
        with pytest.raises(ArtifactError, match="chmod 600"):
            read(tokens_file(tmp_path, f"alice:{TOKENS['alice']}", 0o644))
    assert read_token(tokens_file(tmp_path, f"{TOKENS['alice']}\n")) == TOKENS["alice"]
    with pytest.raises(ArtifactError, match="no token"):
        read_token(tokens_file(tmp_path, "two words"))


# Addresses and commands ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_need_tokens(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_local(host)
    assert main(["serve", "--data", str(tmp_path / "data"), "--host", host]) == 1
    assert "--tokens" in capsys.readouterr().err and not (tmp_path / "data").exists()
    assert is_local("127.0.0.1") and is_local("::1") and is_local("localhost")


def test_half_of_tls_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--data", str(tmp_path / "data"), "--tls-cert", "x"]) == 1
    assert "--tls-key" in capsys.readouterr().err


WITHOUT = """
import sys
for name in ("fastapi", "uvicorn", "httpx", "prometheus_client", "starlette", "pydantic", "torch"):
    sys.modules[name] = None
from olac.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["serve", "--help"], 0, "--memory"),
        (["publish", "--help"], 0, "--id"),
        (["remote", "--help"], 0, "run"),
        (["remote", "run", "--help"], 0, "--token-file"),
        (["serve", "--data", "x"], 1, "olac[serve]"),
        (["remote", "run", "http://127.0.0.1:1", "p", "x.npy", "-o", "y.npy"], 1, "olac[serve]"),
    ],
)
def test_without_the_extra(arguments: list[str], code: int, text: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == code and text in done.stdout + done.stderr, done
    assert list(tmp_path.iterdir()) == []


def test_the_server_and_its_workers_do_not_load_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import olac.serving.run, olac.serving.worker, olac.serving.remote"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("url", ["ftp://x", "nowhere", "http://"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError, match="address"):
        RemoteServer(url, "small")
    with pytest.raises(InputError, match="ID"):
        RemoteServer("http://127.0.0.1:1", "../small")


def test_ids() -> None:
    assert (
        id_of("/x/ResNet 20 (v2).olac") == "resnet-20-v2" and id_of("...olac") == "program" and id_of("é") == "program"
    )
    assert all(is_name("program", id_of(name)) for name in ("A" * 100, "-.x", "a/b/..", "_"))


# The store -----------------------------------------------------------------------------------------------------------


def add(store: Store, owner: str = "alice", request: str | None = None) -> Job:
    body = store.new_upload()
    body.write_bytes(b"x" * 10)
    job, _ = store.add_job(owner, "small", "0" * 32, body, 15, request)
    return job


def files(store: Store, job: Job) -> list[str]:
    return sorted(path.name for path in store.job_file(job.id, INPUT).parent.iterdir())


def test_states(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    job = add(store)
    assert not store.finish(job.id, 1) and store.start(job.id) and not store.start(job.id)
    store.job_file(job.id, RESULT).write_bytes(b"r")
    assert store.finish(job.id, 1) and files(store, job) == [RESULT]
    assert not store.cancel(job.id) and not store.fail(job.id, "x") and not store.requeue(job.id)
    assert store.stored_bytes("alice") == 1 and store.stored_bytes("bob") == 0
    assert store.job("bob", job.id) is None and store.job("alice", job.id) is not None
    # A job that was cancelled while it ran does not become done, and leaves nothing.
    other = add(store)
    assert store.start(other.id) and store.cancel(other.id)
    store.job_file(other.id, RESULT).write_bytes(b"r")
    assert not store.finish(other.id, 1) and files(store, other) == []
    assert store.forget_older(60) == 0 and store.forget_older(-1) == 2 and store.jobs() == []
    assert list((tmp_path / "data" / "jobs").iterdir()) == []
    store.close()


def test_attempts_count_unless_they_got_ahead(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    job = add(store)
    for attempts in (1, 2):
        assert store.start(job.id) and store.requeue(job.id)
        assert store.jobs()[0].attempts == attempts
    store.start(job.id)
    time.sleep(0.01)
    store.job_file(job.id, CHECKPOINT).write_bytes(b"c")
    assert store.requeue(job.id) and store.jobs()[0].attempts == 0
    store.start(job.id)
    assert store.requeue(job.id) and store.jobs()[0].attempts == 1  # the checkpoint is that of the attempt before
    store.close()


def test_a_store_that_was_killed(tmp_path: Path) -> None:
    """Its rows are right; files without rows go, and jobs that ran wait again."""
    store = Store(tmp_path / "data")
    waits, runs = add(store), add(store)
    store.start(runs.id)
    cancelled = add(store)
    assert store.start(cancelled.id) and store.cancel(cancelled.id) and files(store, cancelled) == [INPUT]
    store.new_upload().write_bytes(b"half")
    store.job_file("f" * 32, INPUT).parent.mkdir()
    with pytest.raises(ArtifactError, match="another process"):
        Store(tmp_path / "data")
    store.close()
    again = Store(tmp_path / "data")
    assert again.recover() == 1
    assert {job.id: job.state for job in again.jobs()} == {
        waits.id: "queued",
        runs.id: "queued",
        cancelled.id: "cancelled",
    }
    assert files(again, cancelled) == []
    assert list((tmp_path / "data" / "uploads").iterdir()) == []
    assert len(list((tmp_path / "data" / "jobs").iterdir())) == 3
    again.close()


def test_requests_are_made_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    assert add(store, request="r").id == add(store, request="r").id != add(store, "bob", "r").id
    assert len(list((tmp_path / "data" / "jobs").iterdir())) == 2
    store.close()


def test_names_never_become_other_paths(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    for name in ("..", "a/b", "", "x" * 32, "0" * 31, "0" * 32 + "\n"):
        with pytest.raises(ValueError, match="no name"):
            store.job_file(name, INPUT)
        with pytest.raises(ValueError, match="no name"):
            store.key_folder("alice", name)
    with pytest.raises(ValueError, match="no name"):
        store.key_folder("../alice", "0" * 32)
    with pytest.raises(ValueError, match="no name"):
        store.remove_keys("alice", "0" * 32, "../x")
    store.close()


def test_a_folder_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    store._db.execute("PRAGMA user_version = 2")
    store.close()
    with pytest.raises(OlacError, match="version 2"):
        Store(tmp_path / "data")
    Store(tmp_path / "other").close()


# Logs ----------------------------------------------------------------------------------------------------------------


def test_logs_are_lines_of_json(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("olac.serving.test")
    with caplog.at_level(logging.INFO):
        event(log, "job done", job="1" * 32, seconds=1.5)
        try:
            raise ValueError("secret value 0.123")
        except ValueError:
            log.exception("failed")
    done, failed = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert done["event"] == "job done" and done["seconds"] == 1.5 and done["level"] == "info"
    # A text of an error from outside may hold what somebody sent.
    assert (
        failed["error"] == "ValueError"
        and "secret" not in json.dumps(failed)
        and "test_parts.py" in failed["places"][0]
    )
