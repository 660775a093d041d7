"""What a server keeps: states of jobs and the list of keys in SQLite, keys and ciphertexts as files.

    serve.sqlite, lock             states; held by the one process that serves the folder
    keys/OWNER/IDENTITY/*.key      evaluation keys, one file a key
    jobs/JOB/input.olac, result.olac, checkpoint.olac
    uploads/                       bodies on their way; emptied at each start

A file is complete before its row is written. So a process that is killed leaves files without rows, which the next
start deletes, and never rows without files.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from olac.errors import ArtifactError, plain
from olac.serving.names import checked, new_job
from olac.system.files import make_folder, sync_folder

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
ENDED = (DONE, FAILED, CANCELLED)
VERSION = 1
INPUT, RESULT, CHECKPOINT = "input.olac", "result.olac", "checkpoint.olac"
DATABASE = "serve.sqlite"

SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    request TEXT,
    program TEXT NOT NULL,
    identity TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    bytes INTEGER NOT NULL,
    UNIQUE (owner, request)
);
CREATE INDEX jobs_by_state ON jobs (state, owner, created);
CREATE TABLE parts (
    owner TEXT NOT NULL,
    identity TEXT NOT NULL,
    part TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    engine TEXT NOT NULL,
    parameters TEXT NOT NULL,
    PRIMARY KEY (owner, identity, part)
);
"""


@dataclass(frozen=True)
class Job:
    """A run that somebody asked for.

    Attributes:
        id: its name, 32 hexadecimal digits.
        owner: who asked for it.
        program: the ID of the program.
        identity: of the key pair.
        state: one of `STATES`.
        created, started, finished: seconds since 1970; `started` of the last attempt.
        attempts: begun without a checkpoint since.
        error: why it failed.
        bytes: of its input, and of the result that it may have.
    """

    id: str
    owner: str
    program: str
    identity: str
    state: str
    created: float
    started: float | None
    finished: float | None
    attempts: int
    error: str
    bytes: int

    @property
    def ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ENDED


@dataclass(frozen=True)
class PartRow:
    """A part of evaluation keys that is there.

    Attributes:
        part: its name.
        bytes, sha256: of its file.
        engine: that the key is for.
        parameters: their fingerprint.
    """

    part: str
    bytes: int
    sha256: str
    engine: str
    parameters: str


_JOB = ", ".join(one.name for one in fields(Job))
_PART = ", ".join(one.name for one in fields(PartRow))


class Store:
    """Keys and jobs of one data folder. Any thread may use it; no other process can at the same time.

    Args:
        data: the folder; it is made, for its owner alone, if it does not exist.

    Raises:
        ArtifactError: another process serves the folder, or it can't be used.
    """

    def __init__(self, data: str | Path) -> None:
        self.data = Path(data).absolute()
        if not self.data.exists():
            make_folder(self.data.parent)
        try:
            self.data.mkdir(mode=0o700, exist_ok=True)
            for name in ("keys", "jobs", "uploads", "programs"):
                (self.data / name).mkdir(mode=0o700, exist_ok=True)
            self._held = os.open(self.data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ArtifactError(f"{plain(self.data)}: can't be used: {error.strerror or error}") from error
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._held)
            raise ArtifactError(f"{plain(self.data)}: another process serves this folder. End it first.") from error
        self._lock = threading.RLock()
        try:
            self._open()
        except sqlite3.Error as error:
            os.close(self._held)
            raise ArtifactError(f"{plain(self.data / DATABASE)}: can't be used: {error}") from error
        self._tidy()

    def _open(self) -> None:
        path = self.data / DATABASE
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            self._db.close()
            os.close(self._held)
            raise ArtifactError(
                f"{plain(path)}: of version {version}, this olac reads version {VERSION}. Serve the folder with the "
                "olac that wrote it, or start with a new folder."
            )

    def close(self) -> None:
        """Give the folder back."""
        with self._lock:
            self._db.close()
            os.close(self._held)

    def _tidy(self) -> None:
        """Delete what a process that was killed left: bodies on their way, and jobs without rows."""
        for path in (self.data / "uploads").iterdir():
            path.unlink(missing_ok=True)
        known = {id_ for (id_,) in self._db.execute("SELECT id FROM jobs")}
        for path in (self.data / "jobs").iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _read(self, query: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Keys ------------------------------------------------------------------------------------------------------------

    def key_folder(self, owner: str, identity: str) -> Path:
        """Where the keys of a pair are."""
        return self.data / "keys" / checked("owner", owner) / checked("identity", identity)

    def parts(self, owner: str, identity: str) -> dict[str, PartRow]:
        """The parts of a key pair that are there, by name."""
        rows = self._read(f"SELECT {_PART} FROM parts WHERE owner = ? AND identity = ?", owner, identity)
        folder = self.key_folder(owner, identity)
        # A file may be gone while its row is there: keys are deleted while one of them comes, or power failed.
        there = [row for row in rows if (folder / f"{row[0]}.key").is_file()]
        return {str(row[0]): PartRow(*row) for row in there}  # type: ignore[arg-type]

    def add_part(self, owner: str, identity: str, row: PartRow) -> None:
        """Say that a part's file is there."""
        with self._change() as db:
            db.execute(
                f"INSERT OR REPLACE INTO parts (owner, identity, {_PART}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (owner, identity, row.part, row.bytes, row.sha256, row.engine, row.parameters),
            )

    def remove_keys(self, owner: str, identity: str, part: str | None = None) -> bool:
        """Delete a part, or all of a key pair; False if there was none."""
        folder = self.key_folder(owner, identity)
        with self._change() as db:
            only, values = ("", ()) if part is None else (" AND part = ?", (checked("part", part),))
            gone = db.execute(f"DELETE FROM parts WHERE owner = ? AND identity = ?{only}", (owner, identity, *values))
        if part is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            (folder / f"{part}.key").unlink(missing_ok=True)
        return gone.rowcount > 0

    def identities(self, owner: str) -> tuple[str, ...]:
        """The key pairs of an owner."""
        rows = self._read("SELECT DISTINCT identity FROM parts WHERE owner = ? ORDER BY identity", owner)
        return tuple(str(identity) for (identity,) in rows)

    def stored_bytes(self, owner: str) -> int:
        """Bytes of an owner's keys, and of inputs and results of jobs."""
        rows = self._read(
            "SELECT (SELECT COALESCE(SUM(bytes), 0) FROM parts WHERE owner = ?1) "
            "+ (SELECT COALESCE(SUM(bytes), 0) FROM jobs WHERE owner = ?1)",
            owner,
        )
        return int(str(rows[0][0]))

    # Jobs ------------------------------------------------------------------------------------------------------------

    def job_file(self, job: str, name: str) -> Path:
        """`INPUT`, `RESULT` or `CHECKPOINT` of a job."""
        return self.data / "jobs" / checked("job", job) / name

    def new_upload(self) -> Path:
        """A new name for a body on its way."""
        return self.data / "uploads" / new_job()

    def add_job(
        self, owner: str, program: str, identity: str, body: Path, size: int, request: str | None = None
    ) -> tuple[Job, bool]:
        """Queue a job whose input is in a complete file, which is moved.

        Args:
            size: bytes of the input and of the result that it will have.
            request: a name that the owner gave it; a second job of that name is not made.

        Returns:
            the job, and whether it is new.
        """
        id_ = new_job()
        folder = self.job_file(id_, INPUT).parent
        folder.mkdir(mode=0o700)
        os.replace(body, folder / INPUT)
        sync_folder(folder)
        with self._change() as db:
            made = db.execute(
                "INSERT OR IGNORE INTO jobs (id, owner, request, program, identity, state, created, bytes) "
                "VALUES (?, ?, ?, ?, ?, 'queued', ?, ?)",
                (id_, owner, request, program, identity, time.time(), size),
            ).rowcount
        if not made:
            shutil.rmtree(folder, ignore_errors=True)
            found = None if request is None else self.job_of_request(owner, request)
            if found is None:
                raise AssertionError(f"a job was neither made nor found: {id_}")
            return found, False
        return self._job(id_), True

    def _job(self, id_: str) -> Job:
        (row,) = self._read(f"SELECT {_JOB} FROM jobs WHERE id = ?", id_)
        return Job(*row)  # type: ignore[arg-type]

    def jobs(self, where: str = "", *values: object) -> list[Job]:
        """Jobs, oldest first; `where` is SQL of this package, never of a caller from outside."""
        query = f"SELECT {_JOB} FROM jobs {where and 'WHERE ' + where} ORDER BY created, rowid"
        return [Job(*row) for row in self._read(query, *values)]  # type: ignore[arg-type]

    def latest(self, count: int) -> list[Job]:
        """The jobs that ended last, the last first."""
        rows = self._read(f"SELECT {_JOB} FROM jobs WHERE state IN {ENDED} ORDER BY finished DESC LIMIT ?", count)
        return [Job(*row) for row in rows]  # type: ignore[arg-type]

    def job(self, owner: str, id_: str) -> Job | None:
        """A job of an owner; None if it is not there or another's."""
        return next(iter(self.jobs("owner = ? AND id = ?", owner, id_)), None)

    def job_of_request(self, owner: str, request: str) -> Job | None:
        """The job of an owner with the name that the owner gave it."""
        return next(iter(self.jobs("owner = ? AND request = ?", owner, request)), None)

    def first_queued(self) -> list[Job]:
        """Of the jobs that wait, the oldest for each program and key pair of an owner, oldest first."""
        groups = "SELECT MIN(rowid) FROM jobs WHERE state = 'queued' GROUP BY owner, program, identity"
        return self.jobs(f"rowid IN ({groups})")

    def active(self, owner: str, identity: str) -> bool:
        """Whether jobs wait for a key pair or run with it."""
        return bool(
            self._read(
                "SELECT 1 FROM jobs WHERE state IN ('queued', 'running') AND owner = ? AND identity = ? LIMIT 1",
                owner,
                identity,
            )
        )

    def counts(self, owner: str | None = None) -> dict[str, int]:
        """Jobs by state."""
        only, values = ("", ()) if owner is None else ("WHERE owner = ?", (owner,))
        rows = self._read(f"SELECT state, COUNT(*) FROM jobs {only} GROUP BY state", *values)
        return dict.fromkeys(STATES, 0) | {str(state): int(str(count)) for state, count in rows}

    def start(self, id_: str) -> bool:
        """A waiting job runs now; False if it does not wait any more."""
        return self._move(id_, QUEUED, "state = 'running', started = ?, attempts = attempts + 1", time.time())

    def finish(self, id_: str, size: int) -> bool:
        """A running job has its result, of `size` bytes; False if it was cancelled. Its input is deleted."""
        right = self._move(id_, RUNNING, "state = 'done', finished = ?, bytes = ?", time.time(), size)
        self._drop(id_, INPUT, CHECKPOINT, *(() if right else (RESULT,)))
        return right

    def fail(self, id_: str, error: str) -> bool:
        """A running or waiting job has failed; False if it had ended before."""
        done = "state = 'failed', finished = ?, error = ?, bytes = 0"
        now = time.time()
        right = self._move(id_, RUNNING, done, now, error) or self._move(id_, QUEUED, done, now, error)
        self._drop(id_, INPUT, CHECKPOINT)
        return right

    def requeue(self, id_: str) -> bool:
        """A running job waits again, for instance because its worker died.

        Attempts that wrote a checkpoint don't count, because the next one has less to do.
        """
        job = next(iter(self.jobs("id = ?", id_)), None)
        if job is None:
            return False
        try:
            kept = self.job_file(id_, CHECKPOINT).stat().st_mtime
        except OSError:
            kept = 0.0
        again = job.started is not None and kept > job.started
        return self._move(id_, RUNNING, "state = 'queued', attempts = ?", 0 if again else job.attempts)

    def cancel(self, id_: str) -> bool:
        """A waiting or running job is not wanted any more; False if it had ended before."""
        done, now = "state = 'cancelled', finished = ?, bytes = 0", time.time()
        waited = self._move(id_, QUEUED, done, now)
        if waited:
            self._drop(id_, INPUT, CHECKPOINT)
        # Of a running job the worker still has the files. They are deleted when it stops.
        return waited or self._move(id_, RUNNING, done, now)

    def drop_files(self, id_: str) -> None:
        """Delete the files of a job that was cancelled."""
        self._drop(id_, INPUT, CHECKPOINT, RESULT)

    def forget(self, id_: str) -> None:
        """Delete a job that has ended, and its result."""
        with self._change() as db:
            gone = db.execute(f"DELETE FROM jobs WHERE id = ? AND state IN {ENDED}", (id_,)).rowcount
        if gone:
            shutil.rmtree(self.job_file(id_, INPUT).parent, ignore_errors=True)

    def forget_older(self, seconds: float) -> int:
        """`forget` all jobs that ended so long ago; returns how many."""
        old = self.jobs(f"state IN {ENDED} AND finished < ?", time.time() - seconds)
        for job in old:
            self.forget(job.id)
        return len(old)

    def recover(self) -> int:
        """After a start: jobs that ran wait again, and files of those that were cancelled go. Returns how many wait."""
        for job in self.jobs("state = 'cancelled'"):
            self.drop_files(job.id)
        return sum(self.requeue(job.id) for job in self.jobs("state = 'running'"))

    def _move(self, id_: str, before: str, change: str, *values: object) -> bool:
        with self._change() as db:
            return (
                db.execute(f"UPDATE jobs SET {change} WHERE id = ? AND state = ?", (*values, id_, before)).rowcount > 0
            )

    def _drop(self, id_: str, *names: str) -> None:
        for name in names:
            self.job_file(id_, name).unlink(missing_ok=True)


__all__ = ["CHECKPOINT", "ENDED", "INPUT", "RESULT", "STATES", "Job", "PartRow", "Store"]
