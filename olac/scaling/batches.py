"""Encrypted runs of many images, divided among Ray actors that hold the keys, or in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from olac.errors import BackendError
from olac.program.program import CompiledProgram
from olac.runtime.key_parts import load_keys
from olac.runtime.messages import EncryptedInput, EncryptedResult, EvaluationKeys
from olac.runtime.server import MOST_SETS, Server
from olac.scaling.cluster import Executor, check_executor, check_positive, connected_ray, losses, own_error
from olac.system.files import make_folder
from olac.system.memory import bytes_of

IN_FLIGHT = 2
"""Parts that an actor has at a time: one that it computes, and one that it starts with when that is done."""
AHEAD = 2
"""Parts may be given out this many times IN_FLIGHT beyond the oldest that is not done, so results stay few."""


def run_batches(
    program: CompiledProgram,
    evaluation_keys: EvaluationKeys | str | Path,
    inputs: EncryptedInput | Iterable[EncryptedInput],
    *,
    executor: Executor = "local",
    actors: int = 1,
    sets: int | None = None,
    attempts: int = 3,
    threads: int | None = None,
    max_memory: float | str | None = None,
    checkpoints: str | Path | None = None,
) -> Iterator[EncryptedResult]:
    """The results of inputs under one client's keys, in the order of the images, each as soon as it is there.

    Inputs are divided by sets of ciphertexts into parts; each part is a run, and gives a result that says how many
    images it is of. Runs are deterministic, so the results are the same bit for bit with either executor.

    With Ray, each of some actors holds a `Server`. An actor that is lost, with its machine or alone, is started again,
    and its parts are computed again by any actor. Work starts when the first actor is there, so fewer machines than
    asked for suffice. At most 2 parts an actor are in flight, and inputs are taken from an iterator when they are
    needed. The actors end with the iteration; close the iterator to end them early.

    Args:
        program: the program to run.
        evaluation_keys: the keys, or the path of a file or folder of parts (`olac.runtime.load_keys`). With Ray, keys
            are put once into the object store, in pieces of one key if they came from outside, and a path is opened by
            each actor: it must lie where all machines find it.
        inputs: encrypted under the keys; they may be made as they are asked for.
        executor: "local" for one server in this process, "ray" for actors on the cluster that Ray is connected to.
        actors: how many actors at most. Inputs are divided for as many with either executor.
        sets: of ciphertexts in a part; None for as many as give each actor one part of an input, at most 32. Sets that
            are computed together share the encoding of weights.
        attempts: how often a part may be lost, or actors may be lost in a row while they start, before it is an error.
        threads: of a server, and with Ray the CPUs that each actor takes. None for what this process has, with Ray 1.
        max_memory: bytes of a server's process, or text such as "8GB"; with Ray also the memory that each actor takes.
        checkpoints: a folder, with Ray one that all machines share, to which each run writes its checkpoint
            (`Server.run`), named by program and input. A part that is done again, by any actor or after this process
            was interrupted, goes on from there. None to begin lost parts anew, which is enough for runs of a minute.

    Raises:
        ArtifactError, MissingKeyError, InfeasibleError: as `Server` and `Server.run`, also from an actor.
        BackendError: Ray is not installed or not connected, or a part was lost too often.
        ValueError: an argument is out of range.
    """
    check_executor(executor)
    check_positive(actors=actors, attempts=attempts, **({} if sets is None else {"sets": sets}))
    CompiledProgram.check_kind(program)
    given = [inputs] if isinstance(inputs, EncryptedInput) else inputs
    parts = itertools.chain.from_iterable(_divided(one, actors, sets) for one in given)
    folder = None if checkpoints is None else str(checkpoints)
    if folder is not None:
        make_folder(folder)
    if executor == "local":
        return _here(program, evaluation_keys, parts, threads, max_memory, folder)
    how = (threads or 1, max_memory, folder)
    return _on_ray(connected_ray(), program, evaluation_keys, parts, actors, attempts, how)


def _divided(given: EncryptedInput, actors: int, sets: int | None) -> Iterator[EncryptedInput]:
    EncryptedInput.check_kind(given)
    size = sets or min(MOST_SETS, -(-given.sets // actors))
    if size >= given.sets:
        yield given
        return
    for first in range(0, given.sets, size):
        yield given.part(first, min(size, given.sets - first))


def _opened(program: CompiledProgram, keys: EvaluationKeys | str | Path) -> EvaluationKeys:
    return keys if isinstance(keys, EvaluationKeys) else load_keys(program, keys)


def _here(
    program: CompiledProgram,
    keys: EvaluationKeys | str | Path,
    parts: Iterable[EncryptedInput],
    threads: int | None,
    max_memory: float | str | None,
    checkpoints: str | None,
) -> Iterator[EncryptedResult]:
    with Server(program, _opened(program, keys), threads=threads, max_memory=max_memory) as server:
        for part in parts:
            yield server.run(part, checkpoint=_checkpoint(part, checkpoints))


def _checkpoint(part: EncryptedInput, folder: str | None) -> Path | None:
    """The file for the checkpoint of a part."""
    return None if folder is None else Path(folder) / f"{part.program.fingerprint[:32]}-{part.digest}.checkpoint"


How = tuple[int, float | str | None, str | None]
"""Threads, bound of memory, and folder of checkpoints of an actor."""


def _on_ray(
    ray: Any,
    program: CompiledProgram,
    keys: EvaluationKeys | str | Path,
    parts: Iterable[EncryptedInput],
    actors: int,
    attempts: int,
    how: How,
) -> Iterator[EncryptedResult]:
    threads, max_memory, _ = how
    held = str(keys) if isinstance(keys, (str, Path)) else [ray.put(one.to_bytes()) for one in _pieces(keys)]
    options: dict[str, Any] = {"num_cpus": threads, "max_restarts": 0}
    if max_memory is not None:
        options["memory"] = int(bytes_of(max_memory, "max_memory"))
    made = ray.remote(Runner).options(**options)
    arguments = (ray.put(program.to_bytes()), held, how)
    pool = _Pool(ray, program, lambda: made.remote(*arguments), actors, attempts)
    try:
        yield from pool.results(parts)
    finally:
        pool.close()


def _pieces(keys: EvaluationKeys) -> Iterator[EvaluationKeys]:
    """The keys one by one if that takes no copies of all."""
    keys.check_open()
    if keys.outside:
        for part in keys.listed.parts:
            yield keys.some(part)
    else:
        yield keys


class Runner:
    """What an actor does: it holds a server and runs parts, as bytes.

    Args:
        program: its bytes.
        keys: a path, or references to the bytes of some keys each.
        how: it works.
    """

    def __init__(self, program: bytes, keys: str | list[Any], how: How) -> None:
        self._program, self._keys = CompiledProgram.from_bytes(program), keys
        self._threads, self._max_memory, self._checkpoints = how
        self._server: Server | None = None

    def prepare(self) -> None:
        """Make the server; not in the constructor, so that its errors arrive as they are."""
        if self._server is None:
            keys = self._loaded()
            self._server = Server(self._program, keys, threads=self._threads, max_memory=self._max_memory)

    def _loaded(self) -> EvaluationKeys:
        if isinstance(self._keys, str):
            return load_keys(self._program, self._keys)
        ray = connected_ray()
        first, *others = [EvaluationKeys.from_bytes(self._program, ray.get(one)) for one in self._keys]
        return first.with_more(*others) if others else first

    def run(self, part: bytes) -> bytes:
        """The result of one part."""
        self.prepare()
        assert self._server is not None
        given = EncryptedInput.from_bytes(self._program, part)
        return self._server.run(given, checkpoint=_checkpoint(given, self._checkpoints)).to_bytes()


@dataclass
class _Job:
    """A part, its place in the order, and how often it was lost."""

    number: int
    part: EncryptedInput
    lost: int = 0


@dataclass(eq=False)
class _Actor:
    """An actor; `starting` until its server is there, then the jobs that it has, in the order in which it does them."""

    handle: Any
    starting: Any
    jobs: dict[Any, _Job] = field(default_factory=dict)


class _Pool:
    """Gives parts to actors that are there, collects results, and replaces actors that are lost."""

    def __init__(self, ray: Any, program: CompiledProgram, make: Any, actors: int, attempts: int) -> None:
        self._ray, self._program, self._make, self._attempts = ray, program, make, attempts
        self._lost_starts = 0
        self._again: list[_Job] = []
        self._done: dict[int, EncryptedResult] = {}
        self._most, self._actors = actors, list[_Actor]()

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._end(actor)
        self._actors = []

    def results(self, parts: Iterable[EncryptedInput]) -> Iterator[EncryptedResult]:
        """The results of all parts, in their order."""
        self._actors = [self._start() for _ in range(self._most)]
        waiting, given, wanted = enumerate(parts), 0, 0
        more, window = True, AHEAD * IN_FLIGHT * self._most
        while True:
            while idle := self._idle():
                job = self._again.pop(0) if self._again else None
                if job is None and more and given < wanted + window:
                    found = next(waiting, None)
                    more = found is not None
                    if found is not None:
                        job, given = _Job(*found), given + 1
                if job is None:
                    break
                idle.jobs[idle.handle.run.remote(job.part.to_bytes())] = job
            if wanted in self._done:
                yield self._done.pop(wanted)
                wanted += 1
            elif not more and wanted == given:
                return
            else:
                self._wait()

    def _idle(self) -> _Actor | None:
        """The actor with the fewest jobs that may have one more."""
        ready = [actor for actor in self._actors if actor.starting is None and len(actor.jobs) < IN_FLIGHT]
        return min(ready, key=lambda actor: len(actor.jobs), default=None)

    def _start(self) -> _Actor:
        handle = self._make()
        return _Actor(handle, handle.prepare.remote())

    def _end(self, actor: _Actor) -> None:
        with suppress(Exception):  # it may be gone already
            self._ray.kill(actor.handle)

    def _wait(self) -> None:
        """Take the next event: an actor has started, a job is done, or an actor is lost."""
        owners = {ref: actor for actor in self._actors for ref in (actor.starting, *actor.jobs) if ref is not None}
        (ref,), _ = self._ray.wait(list(owners), num_returns=1)
        actor = owners[ref]
        try:
            data = self._ray.get(ref)
        except losses(self._ray) as error:
            self._replace(actor, error)
        except self._ray.exceptions.RayTaskError as error:
            raise own_error(error) from error
        else:
            self._lost_starts = 0
            if ref is actor.starting:
                actor.starting = None
            else:
                self._keep(actor.jobs.pop(ref), data)

    def _keep(self, job: _Job, data: bytes) -> None:
        result = EncryptedResult.from_bytes(self._program, data)
        result.check_input(job.part)
        self._done[job.number] = result

    def _replace(self, actor: _Actor, error: Exception) -> None:
        """Start another actor in place of one that is lost; what it had done already is kept, the rest done again."""
        self._actors.remove(actor)
        self._end(actor)
        if actor.starting is not None:
            self._lost_starts += 1
            self._check_attempts(self._lost_starts, "actors", "while they started", error)
        blamed = False
        for ref, job in actor.jobs.items():
            try:
                self._keep(job, self._ray.get(ref, timeout=0))
            except (*losses(self._ray), self._ray.exceptions.GetTimeoutError):
                if not blamed:  # an actor does its jobs in order: it was at work on the first that is not done
                    job.lost, blamed = job.lost + 1, True
                    self._check_attempts(job.lost, f"part {job.number} of the inputs", "with its actor", error)
                self._again.append(job)
            except self._ray.exceptions.RayTaskError as failed:
                raise own_error(failed) from failed
        self._again.sort(key=lambda job: job.number)
        self._actors.append(self._start())

    def _check_attempts(self, lost: int, what: str, how: str, error: Exception) -> None:
        if lost >= self._attempts:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise BackendError(
                f"{what} got lost {lost} times {how} ({type(error).__name__}: {first}). If machines run out of memory, "
                "give max_memory, so that Ray places fewer actors on one; if machines come and go, allow more attempts."
            ) from error
