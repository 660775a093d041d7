"""The pool: which worker runs, for which key set, on which job, so that all together stay within memory.

One thread decides everything, and takes what happened from a queue: a job was added or cancelled, a worker said
something or ended. A worker serves one program and one key set of one client (`KeySet`), and is weighed by what the
program is predicted to take. If a job needs a worker that has no room, workers that are idle are ended, the one that
was used least recently first.

Clients take turns: of those whose jobs wait, the one that was served longest ago comes first. As loading keys takes
time, a worker whose client has more jobs keeps its place for a turn of some seconds; after that it makes room.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from olac.errors import ArtifactError
from olac.serving.logs import event
from olac.serving.programs import PROGRAM, Catalogue, Published
from olac.serving.store import CHECKPOINT, INPUT, RESULT, Job, Store
from olac.system.threads import VARIABLE, cores

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a job is begun whose worker dies without a checkpoint."""
TURN_SECONDS = 10.0
LOADS_IN_A_TURN = 4.0
"""A turn also takes at least so many times the seconds that loading the keys took."""
DRAIN_SECONDS = 60.0
"""After waiting so long for room, a job stops others from being begun until it has it."""
TICK = 0.5
RESERVE = 1.05
"""What is held back for a worker, times the prediction."""


class KeySet(NamedTuple):
    """What a worker is for."""

    owner: str
    program: str
    identity: str

    @staticmethod
    def of(job: Job) -> KeySet:
        """The one that a job needs."""
        return KeySet(job.owner, job.program, job.identity)


@dataclass(frozen=True)
class Settings:
    """How workers run.

    Attributes:
        memory: bytes of all workers together.
        parallel: runs at once.
        threads: of each worker.
        turn_seconds, drain_seconds: as the constants above.
        checkpoint_seconds: between the checkpoints of a run, except at bootstraps.
        attempts: as `ATTEMPTS`.
        log_level: of workers.
    """

    memory: float
    parallel: int = 1
    threads: int = field(default_factory=cores)
    turn_seconds: float = TURN_SECONDS
    drain_seconds: float = DRAIN_SECONDS
    checkpoint_seconds: float = 60.0
    attempts: int = ATTEMPTS
    log_level: str = "info"


@dataclass(frozen=True)
class Running:
    """How far a run is.

    Attributes:
        done, total: layers so far and in all; 0 of 0 while keys are loaded.
        eta_seconds: predicted to the end; None while keys are loaded.
        layer: the name of the last layer, for the operator.
    """

    done: int = 0
    total: int = 0
    eta_seconds: float | None = None
    layer: str = ""


@dataclass(frozen=True)
class Load:
    """One worker, for the operator."""

    key_set: KeySet
    bytes: float
    job: str
    pid: int


@dataclass
class Counts:
    """What happened since the start."""

    started: int = 0
    evicted: int = 0
    died: int = 0
    done: int = 0
    failed: int = 0
    run_seconds: list[float] = field(default_factory=list)


class _Worker:
    """A process, its pipe, and the thread that reads from it."""

    def __init__(self, key_set: KeySet, weight: float, process: subprocess.Popen[str]) -> None:
        self.key_set = key_set
        self.weight = weight
        self.process = process
        self.job: str = ""
        self.used = self.turn_began = time.monotonic()
        self.turn = 0.0

    @property
    def stdin(self) -> IO[str]:
        assert self.process.stdin is not None
        return self.process.stdin

    def send(self, **message: object) -> None:
        """Write a line. If the process is gone, its end is reported by the thread that reads."""
        with suppress(OSError):
            self.stdin.write(json.dumps(message) + "\n")
            self.stdin.flush()

    def end(self) -> None:
        """End the process at once and wait for that: then its memory is free."""
        self.process.kill()
        self.process.wait()
        with suppress(OSError):
            self.stdin.close()


class Pool:
    """Runs the jobs of a store.

    Args:
        store: jobs, and keys as files.
        catalogue: the programs.
        settings: memory and others.
        changed: called with the ID of a job whose state changed, from the pool's thread.
    """

    def __init__(
        self,
        store: Store,
        catalogue: Catalogue,
        settings: Settings,
        changed: Callable[[str], None] = lambda job: None,
    ) -> None:
        self.settings = settings
        self.counts = Counts()
        self._store, self._catalogue, self._changed = store, catalogue, changed
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._workers: dict[KeySet, _Worker] = {}
        self._served: dict[str, float] = {}
        self._running: dict[str, Running] = {}
        self._blocked: dict[str, float] = {}
        self._look = True
        self._thread = threading.Thread(target=self._loop, name="pool", daemon=True)

    # For other threads -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up the jobs that wait, and those that ran when an earlier process ended."""
        recovered = self._store.recover()
        if recovered:
            event(log, "jobs recovered", jobs=recovered)
        self._thread.start()
        self.wake()

    def stop(self) -> None:
        """End all workers; jobs that run wait for the next start, which continues from their checkpoints."""
        self._events.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether its thread works."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """A job was added."""
        self._events.put(self._look_again)

    def cancelled(self, job: str) -> None:
        """A job was cancelled in the store."""
        self._events.put(lambda: self._cancel(job))

    def free(self, owner: str, identity: str) -> None:
        """End idle workers that hold keys of a pair, because they were deleted."""
        self._events.put(lambda: self._free(owner, identity))

    def progress(self, job: str) -> Running | None:
        """How far a job is; None if it does not run."""
        return self._running.get(job)

    def load(self) -> tuple[Load, ...]:
        """All workers."""
        workers = list(self._workers.values())
        return tuple(Load(one.key_set, one.weight, one.job, one.process.pid) for one in workers)

    @property
    def held_bytes(self) -> float:
        """Memory that is held back for the workers that there are."""
        return sum(one.weight for one in list(self._workers.values()))

    # The pool's thread -----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._take_events():
            # Progress changes nothing. Time does, if jobs wait for room.
            if not (self._look or self._blocked):
                continue
            self._look = False
            try:
                self._schedule()
            except Exception:
                log.exception("the pool failed to schedule")
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def _take_events(self) -> bool:
        """Wait for something to happen, or for a while, and handle all that has happened; False at the end."""
        wait = True
        while True:
            try:
                happened = self._events.get(block=wait, timeout=TICK)
            except queue.Empty:
                return True
            if happened is None:
                return False
            try:
                happened()
            except Exception:
                log.exception("the pool failed to handle an event")
            wait = False

    def _schedule(self) -> None:
        waiting: dict[str, dict[KeySet, Job]] = {}
        for job in self._store.first_queued():
            waiting.setdefault(job.owner, {}).setdefault(KeySet.of(job), job)
        blocked = [job.id for sets in waiting.values() for job in sets.values()]
        self._blocked = {id_: since for id_, since in self._blocked.items() if id_ in blocked}
        busy = dict[str, int]()
        for worker in self._workers.values():
            if worker.job:
                busy[worker.key_set.owner] = busy.get(worker.key_set.owner, 0) + 1
        slots = self.settings.parallel - sum(busy.values())
        self._keep_within()
        urgent = [job for sets in waiting.values() for job in sets.values() if self._drains(job)]
        if urgent:  # nobody else is served until there is room for the one that has waited longest
            if slots > 0 and self._begin(min(urgent, key=lambda job: self._blocked[job.id]), waiting):
                self._look = True
            return
        order = sorted(waiting, key=lambda owner: (busy.get(owner, 0), self._served.get(owner, 0.0)))
        while slots > 0 and order:
            progressed = False
            for owner in list(order):
                jobs = waiting[owner]
                taken = next((job for job in jobs.values() if self._begin(job, waiting)), None)
                if taken is not None:
                    del jobs[KeySet.of(taken)]
                    slots, progressed = slots - 1, True
                if taken is None or not jobs:
                    order.remove(owner)
                if slots <= 0:
                    return
            if not progressed:
                return

    def _drains(self, job: Job) -> bool:
        since = self._blocked.get(job.id)
        return since is not None and time.monotonic() - since > self.settings.drain_seconds

    def _look_again(self) -> None:
        self._look = True

    def _keep_within(self) -> None:
        """End idle workers if workers took more memory than predicted."""
        idle = sorted((one for one in self._workers.values() if not one.job), key=lambda one: one.used)
        while idle and self.held_bytes > self.settings.memory:
            self._evict(idle.pop(0))

    def _begin(self, job: Job, waiting: Mapping[str, Mapping[KeySet, Job]]) -> bool:
        """Give a job to its worker, which is started if there is room for it; False if it has to wait."""
        key_set = KeySet.of(job)
        worker = self._workers.get(key_set)
        if worker is not None and worker.job:
            return False
        if worker is None:
            try:
                program = self._catalogue.find(job.program)
            except ArtifactError as error:
                self._fail(job.id, str(error))
                return False
            if program is None:
                self._fail(job.id, f"the program {job.program} is not published any more")
                return False
            weight = self._weight(key_set, program)
            if not self._make_room(weight, {} if self._drains(job) else waiting):
                self._blocked.setdefault(job.id, time.monotonic())
                return False
            worker = self._start(key_set, program, weight)
        if not self._store.start(job.id):
            return False  # it was cancelled in the meantime
        worker.job = job.id
        self._blocked.pop(job.id, None)
        self._served[job.owner] = time.monotonic()
        self._running[job.id] = Running()
        files = (INPUT, RESULT, CHECKPOINT)
        found = [str(self._store.job_file(job.id, name)) for name in files]
        worker.send(job=job.id, input=found[0], result=found[1], checkpoint=found[2])
        event(log, "job started", job=job.id, owner=job.owner, program=job.program, attempt=job.attempts + 1)
        self._changed(job.id)
        return True

    def _weight(self, key_set: KeySet, program: Published) -> float:
        """Bytes that a worker may take: what is predicted, or all that there is."""
        return min(RESERVE * program.about.server_bytes, self.settings.memory)

    def _make_room(self, weight: float, waiting: Mapping[str, Mapping[KeySet, Job]]) -> bool:
        """End idle workers until there is room; none is ended if that would not help.

        Args:
            waiting: jobs whose workers keep their turn.
        """
        needed = self.held_bytes + weight - self.settings.memory
        if needed <= 0:
            return True
        now, ended = time.monotonic(), []
        for worker in sorted(self._workers.values(), key=lambda one: one.used):
            has_more = worker.key_set in waiting.get(worker.key_set.owner, {})
            in_turn = has_more and now - worker.turn_began < max(worker.turn, self.settings.turn_seconds)
            if not worker.job and not in_turn:
                ended.append(worker)
                needed -= worker.weight
            if needed <= 0:
                break
        if needed > 0:
            return False
        for worker in ended:
            self._evict(worker)
        return True

    def _evict(self, worker: _Worker) -> None:
        del self._workers[worker.key_set]
        worker.end()
        self.counts.evicted += 1
        event(log, "worker evicted", **worker.key_set._asdict(), bytes=round(worker.weight))

    def _start(self, key_set: KeySet, program: Published, weight: float) -> _Worker:
        parts = self._store.parts(key_set.owner, key_set.identity)
        engine = next((row.engine for row in parts.values()), program.about.engine)
        command = [sys.executable, "-m", "olac.serving.worker", "--program", str(program.folder / PROGRAM)]
        command += ["--keys", str(self._store.key_folder(key_set.owner, key_set.identity))]
        command += ["--identity", key_set.identity, "--engine", engine, "--memory", str(weight)]
        command += ["--checkpoint-seconds", str(self.settings.checkpoint_seconds)]
        command += ["--log-level", self.settings.log_level]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, VARIABLE: str(self.settings.threads)},
        )
        event(log, "worker started", **key_set._asdict(), bytes=round(weight), pid=process.pid)
        return self._watch(_Worker(key_set, weight, process))

    def _watch(self, worker: _Worker) -> _Worker:
        """Take up a worker that has just been started."""
        self._workers[worker.key_set] = worker
        self.counts.started += 1
        threading.Thread(target=self._listen, args=(worker,), name="listen", daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        """Hand what a worker says to the pool's thread; the thread of this worker."""
        stream = worker.process.stdout
        assert stream is not None
        with stream:
            for line in stream:
                try:
                    message = json.loads(line)
                except ValueError:  # the process was ended in the middle of a line
                    continue
                self._events.put(lambda message=message: self._heard(worker, message))  # type: ignore[misc]
        code = worker.process.wait()
        self._events.put(lambda: self._ended(worker, code))

    def _heard(self, worker: _Worker, message: dict[str, Any]) -> None:
        if self._workers.get(worker.key_set) is not worker:
            return
        worker.weight = max(worker.weight, float(message.get("memory", 0.0)))
        kind, job = message["event"], worker.job
        if kind == "ready":
            worker.turn = LOADS_IN_A_TURN * float(message["seconds"])
            worker.turn_began = time.monotonic()
            return
        if not job or message.get("job") != job:
            return
        if kind == "progress":
            self._running[job] = Running(message["done"], message["total"], message["eta"], message["layer"])
            return
        if kind == "done":
            if self._store.finish(job, int(message["bytes"])):
                self.counts.done += 1
                self.counts.run_seconds.append(float(message["seconds"]))
                event(log, "job done", job=job, owner=worker.key_set.owner, seconds=round(message["seconds"], 3))
        elif kind == "failed":
            self._fail(job, self._without_paths(str(message["error"])), str(message["kind"]))
        elif kind == "cancelled":
            event(log, "job cancelled", job=job, owner=worker.key_set.owner)
        self._free_worker(worker)
        if message.get("last"):
            del self._workers[worker.key_set]
            worker.end()

    def _free_worker(self, worker: _Worker) -> None:
        self._look = True
        job, worker.job, worker.used = worker.job, "", time.monotonic()
        self._running.pop(job, None)
        found = self._store.jobs("id = ?", job)
        if not found or found[0].state == "cancelled":
            self._store.drop_files(job)
        self._changed(job)

    def _without_paths(self, text: str) -> str:
        """An error of a worker, without the folder of the server."""
        return text.replace(f"{self._store.data}{os.sep}", "")

    def _fail(self, job: str, error: str, kind: str = "") -> None:
        if self._store.fail(job, error):
            self.counts.failed += 1
            event(log, "job failed", level=logging.WARNING, job=job, kind=kind, error=error)
            self._changed(job)

    def _ended(self, worker: _Worker, code: int) -> None:
        if self._workers.get(worker.key_set) is not worker:
            return
        del self._workers[worker.key_set]
        with suppress(OSError):
            worker.stdin.close()
        self.counts.died += 1
        job = worker.job
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        event(log, "worker ended", level=logging.WARNING, **worker.key_set._asdict(), how=how, job=job)
        self._look = True
        if not job:
            return
        self._running.pop(job, None)
        attempts = next((one.attempts for one in self._store.jobs("id = ?", job)), 0)
        if self._store.requeue(job):
            (now,) = self._store.jobs("id = ?", job)
            if now.attempts >= self.settings.attempts:
                self._fail(job, f"its worker ended {attempts} times ({how}), so it is not begun again")
        self._free_worker(worker)

    def _cancel(self, job: str) -> None:
        for worker in self._workers.values():
            if worker.job == job:
                worker.send(cancel=job)
        self._changed(job)

    def _free(self, owner: str, identity: str) -> None:
        for key_set, worker in list(self._workers.items()):
            if (key_set.owner, key_set.identity) == (owner, identity) and not worker.job:
                del self._workers[key_set]
                worker.end()
                event(log, "worker ended, its keys are deleted", **key_set._asdict())


__all__ = ["KeySet", "Load", "Pool", "Running", "Settings"]
