"""The server: runs a program on ciphertexts. It has no secret key and can't read what it computes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from olac.analysis.estimate import BARE_PROCESS_BYTES, LOADING_KEYS, UNUSED_SHARE, estimate
from olac.backends.base import SCALE_TOLERANCE, Ciphertext, Evaluator
from olac.backends.recorder import Encoder
from olac.backends.session import Engine, PlaintextCache, Preparing, ServerSession, Session
from olac.costs.table import CostTable
from olac.errors import (
    ArtifactError,
    BackendError,
    ClosedError,
    InfeasibleError,
    MissingKeyError,
    VerificationError,
)
from olac.ir.graph import Node
from olac.ir.ops import Bootstrap
from olac.kernels.base import Value
from olac.kernels.execute import execute
from olac.kernels.sets import SetsEvaluator, apart, together
from olac.program.program import CompiledProgram
from olac.progress import SHOWN_AFTER, Reporter, showing
from olac.runtime.checkpoints import Checkpoint
from olac.runtime.messages import (
    EncryptedInput,
    EncryptedResult,
    EvaluationKeys,
)
from olac.runtime.paging import KeyPager, install_pinned, pinned_steps
from olac.runtime.progress import RUNNING, Steps, in_sets
from olac.runtime.progress import Progress as Progress
from olac.system.files import check_writable, is_same, remove_file
from olac.system.forks import check_fork, is_stale
from olac.system.internal import callers, is_callers
from olac.system.logs import event as log_event
from olac.system.logs import warn
from olac.system.memory import GB, available_bytes, bytes_of, check_threads, current_rss_bytes, memory_for, ran_out
from olac.system.threads import set_threads

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)
Asked = bool | Callable[[Progress], Any] | Reporter | None
"""How a run is shown; see `olac.progress.Shown`."""

NAMED_STEPS = 12
MORE_KEYS = (
    "Make those that are missing with Client.load(program, secret_key).more_keys(keys), and join them with "
    "keys.with_more(more); or make all anew with Client.generate_keys()."
)
CHECKPOINT_SECONDS = 60.0
MOST_SETS = 32
"""Sets of ciphertexts are computed together to share the encoding of weights; more than these save hardly anything.
"""


class Server:
    """Runs one program under one client's evaluation keys.

        with olac.Server(program, keys, max_memory="8GB") as server:
            result = server.run(encrypted)

    If not all keys of a file fit in memory, those for rotations outside of bootstraps are read from the file when a run
    needs them, and evicted when others need the room. Such a run and others in this process take turns, node by node.

    `close`, the end of a `with` block, or the deletion of this object frees all that it holds: encoded weights at once,
    keys and plaintexts of bootstraps as soon as no run of this process is in the middle of a node. Keys that another
    server or a client holds as well stay. A server does not work in a process that is forked later.

    Args:
        program: the program to run.
        evaluation_keys: from the client, live or loaded.
        max_memory: bytes that this process may take in all, or text such as "8GB". None for what the program was
            compiled for (`CompiledProgram.max_memory`), a bare process of Python included; if it was compiled without
            a limit, for what the machine has. Keys that are in memory stay there even if that exceeds the limit that
            the program was compiled for.
        cache_bytes: bytes for encoded weights, which are kept between runs. None for what memory allows, and for
            nothing if the program has bootstraps: its weights are then encoded when they are needed.
        engine: the engine that computes, or the name of its folder in `olac/backends`; None for the engine that made
            the keys, if they were made in this process, otherwise for the one that their file is for.
        threads: for everything in this process (`olac.system.threads.set_threads`); None for what it has, which is
            OMP_NUM_THREADS or all cores.
        preparing: called as preparing(what is being done, steps so far, steps in all) while the engine is made ready,
            which takes up to a minute where it is used for the first time. Without it, a warning says so.

    Attributes:
        last_run: wall seconds by node id, of the last run; of a run from a checkpoint, of the nodes after it.
        pages: which keys are read when they are needed, and how often they were; None if all are held.

    Raises:
        ArtifactError: the keys are for other parameters or for another engine, or are damaged.
        MissingKeyError: a key that the program needs is missing.
        InfeasibleError: the keys and ciphertexts need more memory than allowed, or the engine does not take the
            program's parameters.
        BackendError: the engine can't be used on this machine.
        ForkError: the process was forked after OpenFHE was used.
        ClosedError: the keys are closed.
        ValueError: `max_memory` or `cache_bytes` is no amount of memory, or `threads` no number of threads.
    """

    @memory_for("preparing the server")
    def __init__(
        self,
        program: CompiledProgram,
        evaluation_keys: EvaluationKeys,
        *,
        max_memory: float | str | None = None,
        cache_bytes: float | str | None = None,
        engine: Engine | str | None = None,
        threads: int | None = None,
        preparing: Preparing | None = None,
    ) -> None:
        check_fork()
        CompiledProgram.check_kind(program)
        set_threads(threads)
        limit = None if max_memory is None else bytes_of(max_memory, "max_memory")
        self._limit = program.max_memory if limit is None else limit
        kept = None if cache_bytes is None else bytes_of(cache_bytes, "cache_bytes", or_zero=True)
        self.program = program
        self.last_run: dict[str, float] = {}
        self._lock = threading.Lock()
        self._running: int | None = None
        self._closed = False
        self._check_keys(evaluation_keys)
        self._engine = evaluation_keys.choose_engine(engine)
        self._engine.check_takes(program.parameters)
        reason = self._engine.unavailable(preparing)
        if reason:
            instead = self._engine.instead(program.parameters)
            raise BackendError(f"{self._engine.title} can't be used here: {reason}. {instead}")
        # They take memory themselves, so they are made before it is measured.
        self._kernels = program.kernels
        needed = program.keys_for(self._engine.model)
        evaluation_keys = evaluation_keys.some(needed)
        room, capacity = self._check_memory(evaluation_keys, limit)
        self._identity = evaluation_keys.identity
        self._pager: KeyPager | None = None
        if capacity is None:
            keys = evaluation_keys.install(engine=self._engine)
        else:
            pinned, steps = pinned_steps(program), evaluation_keys.steps
            keys, file = install_pinned(evaluation_keys, pinned, self._engine)
            self._pager = KeyPager(program, steps, pinned, file, capacity)
        self.pages = None if self._pager is None else self._pager.pages
        if kept is None:
            kept = max(0.0, room) if program.parameters.bootstrapping is None else 0.0
        self._cache = PlaintextCache(int(kept))
        # Of keys that serve other programs as well, the program takes those that it was compiled for.
        levels = {step: evaluation_keys.listed.by_step[step] for step in needed.steps}
        self._session: ServerSession | None = self._engine.server(
            program.parameters, keys, levels, self._cache, self._pager
        )

    def close(self) -> None:
        """Free keys, encoded weights and plaintexts of bootstraps, after the end of a run in another thread.

        Raises:
            BackendError: called from within a run, by its `progress` or `observe`.
        """
        if self._closed or is_stale():
            return
        with suppress(ClosedError), self._turn():
            self._closed = True
            self._session = self._pager = None
            self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The server is this thread's alone."""
        check_fork()  # the lock may be held by a thread that this process does not have
        me = threading.get_ident()
        if self._running == me:
            raise BackendError("the server was called from within its own run: wait for the result of the run")
        with self._lock:
            if self._closed:
                raise ClosedError("the server is closed. Make another: Server(program, evaluation_keys).")
            self._running = me
            try:
                yield
            finally:
                self._running = None

    def _check_keys(self, keys: EvaluationKeys) -> None:
        program = self.program
        if not isinstance(keys, EvaluationKeys):
            raise ArtifactError(
                f"an object of type {type(keys).__name__} was given, expected evaluation keys: "
                "Client.generate_keys(), or EvaluationKeys.load(program, path)"
            )
        keys.check_open()
        if keys.parameters != program.parameters:
            raise ArtifactError(
                f"the evaluation keys are for other parameters ({keys.parameters.describe()}) than those of the "
                f"program ({program.parameters.describe()}). Make keys for this program, or compile it with like= the "
                "program that the keys were made for."
            )
        missing = program.keys_for(keys.choose_engine(None).model).lacking(keys.listed)
        if missing.rotations:
            steps = missing.steps
            more = "" if len(steps) <= NAMED_STEPS else f" and {len(steps) - NAMED_STEPS} more"
            raise MissingKeyError(
                f"the evaluation keys lack those for the rotation steps {', '.join(map(str, steps[:NAMED_STEPS]))}"
                f"{more}, or have them for too few levels. {MORE_KEYS}"
            )
        if missing:
            what = "the relinearisation key" if missing.relinearise is not None else "the keys of bootstraps"
            raise MissingKeyError(f"the evaluation keys lack {what}, or have it for too few levels. {MORE_KEYS}")

    def _check_memory(self, keys: EvaluationKeys, max_memory: float | None) -> tuple[float, int | None]:
        """Bytes that are left for encoded weights, and how many keys that are not pinned are held; None for all."""
        model = self._engine.model
        library = model.library_bytes(self.program.parameters)
        found = estimate(self.program, costs=CostTable.default(model))
        self._predicted = found.node_seconds
        held = current_rss_bytes()
        room: float = available_bytes()
        needed = found.ciphertext_bytes + found.setup_bytes + (0 if keys.installed else keys.memory_bytes)
        pinned, first = pinned_steps(self.program), int(keys.relinearisation)
        by_step = zip(keys.steps, keys.held_sizes[first : first + len(keys.steps)], strict=True)
        sizes = [size for step, size in by_step if step not in pinned]
        away, one = len(sizes), max(sizes, default=0)
        fewest = 1 + LOADING_KEYS
        least = library + (1 + UNUSED_SHARE) * (needed - sum(sizes) + fewest * one)
        check_threads(library + min(needed, least), "running the program")
        may_wait = keys.outside and not keys.installed and away > fewest
        within = room
        if max_memory is not None:
            room = within = min(room, max_memory - held)
        elif self.program.max_memory is not None:
            # The program was compiled for a process of its own: what else this process holds does not count.
            own = self.program.max_memory - BARE_PROCESS_BYTES - (1 + UNUSED_SHARE) * found.sizes.table_bytes
            if keys.installed:
                own -= (1 + UNUSED_SHARE) * keys.memory_bytes
            within = min(room, own)
            if may_wait and within >= least:
                room = within
        # If keys may wait in their file, fewer are held so that the library's own memory fits as well.
        if may_wait and least <= room < library + (1 + UNUSED_SHARE) * needed:
            return 0.0, min(away, 1 + int((room - least) / ((1 + UNUSED_SHARE) * one)))
        if needed <= room:
            return (within - library) / (1 + UNUSED_SHARE) - needed, None
        fewer = "" if least >= needed else f" ({least / GB:.2f} GB suffice if keys are read from a file when needed)"
        raise InfeasibleError(
            f"running the program takes {needed / GB:.2f} GB more than the {held / GB:.2f} GB that this process "
            f"holds{fewer}, and {max(0.0, room) / GB:.2f} GB are left. Allow more with max_memory, take a larger "
            "machine, or compile with max_memory for a program with fewer keys."
        )

    def __reduce__(self) -> NoReturn:
        """Servers are not pickled: they hold objects of the engine in this process."""
        raise BackendError(
            "a server can't be pickled or copied. Pickle its program and evaluation keys, or save them, and make a "
            "Server of them where it is needed."
        )

    @property
    def engine_title(self) -> str:
        """What messages call the engine that computes."""
        return self._engine.title

    @property
    def encode_seconds(self) -> float:
        """Wall time that encoding weights has taken so far, in all runs."""
        return self._cache.seconds

    @memory_for("encoding weights")
    def prepare(self) -> None:
        """Encode all weights that the cache has room for, so that the first run is as fast as the others.

        Raises:
            ForkError, ClosedError: as `run`.
        """
        with self._turn():
            program, evaluator = self.program, self._open().evaluator
            evaluator.restart()
            encoder = Encoder(evaluator)
            fresh = (encoder.fresh(program.input.state.level),) * program.input.layout.ciphertexts
            execute(program.graph, self._kernels, encoder, {program.input.id: fresh})

    def _open(self) -> ServerSession:
        """The session, within `_turn`."""
        assert self._session is not None
        return self._session

    @memory_for("running the program")
    def run(
        self,
        encrypted: EncryptedInput,
        progress: Asked = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        keep_checkpoint: bool = False,
        observe: Callable[[Node, Value], None] | None = None,
    ) -> EncryptedResult:
        """Run the program on any number of images; one run at a time, others wait.

        Sets of ciphertexts are computed together, as many as memory allows, so that weights are encoded once for all.

        Args:
            encrypted: from the client whose keys this server has.
            progress: None shows a bar if stderr is a terminal, and in a notebook; False shows nothing; True shows lines
                if there is no terminal. A function is called with a `Progress` after every node.
            checkpoint: a file to which the ciphertexts that are still needed are written, after each bootstrap and
                also from time to time. If it exists, the run continues from it. It is deleted when the run is done.
            checkpoint_seconds: the least time between checkpoints, apart from those after bootstraps.
            keep_checkpoint: do not delete the file, for callers that want to save the result first.
            observe: called with every node and its ciphertexts, before `progress`; once for each set of ciphertexts.

        Raises:
            ArtifactError: the input is of another program or was encrypted under other keys; the checkpoint is
                damaged, of another program, keys or input, or can't be written; the file that keys are read from has
                changed.
            BackendError: the engine refused an operation.
            ForkError: the process was forked after OpenFHE was used.
            ClosedError: after `close`.
        """
        kept = None if checkpoint is None or not keep_checkpoint else Path(checkpoint)
        with self._running_on(encrypted, progress, checkpoint, checkpoint_seconds, kept) as (say, keeper):
            outputs = self._outputs(encrypted, say, observe, keeper)
            live = tuple(part.payload for output in outputs for part in output)
            return EncryptedResult(
                self.program, self._identity, encrypted.images, live=live, engine=self._engine, input=encrypted.digest
            )

    @memory_for("running the program")
    def run_to(
        self,
        path: str | Path,
        encrypted: EncryptedInput,
        progress: Asked = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> Path | None:
        """Run the program as `run`, and write to a file what `run(...).save(path)` writes.

        Outputs are written as soon as they are there. With an input that stays in its file (`EncryptedInput.open`),
        memory holds as many sets of ciphertexts as are computed together, whatever the number of images. With a
        checkpoint it holds all outputs, which are few bytes an image.

        Args:
            path: of the file, which is complete or absent.
            encrypted, progress, checkpoint_seconds: as in `run`.
            checkpoint: as in `run`; it is deleted when the result is written.

        Returns:
            the checkpoint if it held the state of this run, else None.

        Raises:
            ArtifactError: the result can't be written; or as `run`.
            BackendError, ForkError, ClosedError: as `run`.
        """
        with self._running_on(encrypted, progress, checkpoint, checkpoint_seconds, Path(path)) as (say, keeper):
            level = self.program.output.state.level
            outputs = self._outputs(encrypted, say, None, keeper)
            words = (
                self._engine.words(self.program.parameters, part.payload, level)
                for output in outputs
                for part in output
            )
            EncryptedResult.write(path, self.program, self._identity, encrypted.images, words, input=encrypted.digest)
            return keeper.path if keeper is not None and keeper.after else None

    @contextmanager
    def _running_on(
        self,
        encrypted: EncryptedInput,
        progress: Asked,
        checkpoint: str | Path | None,
        checkpoint_seconds: float,
        kept: Path | None,
    ) -> Iterator[tuple[Reporter, _Keeper | None]]:
        """The server is this run's alone, which is shown; its checkpoint is deleted at the end if it is not `kept`."""
        check_fork()
        self._check_input(encrypted)
        fields = {
            "program": self.program.fingerprint,
            "images": encrypted.images,
            "sets": encrypted.sets,
            "engine": self._engine.model.name,
        }
        shown = showing(progress, RUNNING, "ran", log, told=False, after=SHOWN_AFTER, fields=fields)
        # A display is opened when it is this run's turn.
        with self._turn(), shown as say, self._open().running():
            keeper = None
            if checkpoint is not None:
                check_writable(checkpoint, special=False)
                keeper = _Keeper(self.program, encrypted, Path(checkpoint), checkpoint_seconds, self._engine)
            yield say, keeper
            # Links may have been made in the meantime, and a result must not be deleted.
            if keeper is not None and (kept is None or not is_same(keeper.path, kept)):
                remove_file(keeper.path)
            say.result = in_sets(
                encrypted.images, encrypted.sets, self.program.input_shape, sum(self.last_run.values())
            )

    def stream(self, encrypted: Iterable[EncryptedInput], progress: Asked = None) -> Iterator[EncryptedResult]:
        """The result of one input after the other, each as soon as it is there.

        An input with more sets of ciphertexts than memory holds at a time is given in parts; each result says how many
        images it is of, and results are in the order of the images.

        Args:
            encrypted: inputs, which may be made as they are asked for; `EncryptedInput.part` takes an input apart.
            progress: as in `run`; each part is a run.

        Raises:
            ArtifactError, BackendError, ForkError, ClosedError: as `run`.
        """
        for one in encrypted:
            self._check_input(one)
            first = 0
            while first < one.sets:
                count = min(one.sets - first, self._together())
                yield self.run(one if count == one.sets else one.part(first, count), progress)
                first += count

    def _check_input(self, encrypted: EncryptedInput) -> None:
        program = self.program
        EncryptedInput.check_kind(encrypted)
        if encrypted.program.fingerprint != program.fingerprint:
            raise ArtifactError(f"{encrypted.name} is of another program. Encrypt it for the program of this server.")
        if encrypted.identity != self._identity:
            raise ArtifactError(
                f"{encrypted.name} was encrypted under other keys than this server has. Send it with its own "
                "evaluation keys."
            )

    def _together(self) -> int:
        """Sets of ciphertexts that memory allows to compute at a time."""
        room = float(available_bytes())
        if self._limit is not None:
            room = min(room, self._limit - current_rss_bytes())
        room -= self._cache.budget - self._cache.bytes
        return int(min(MOST_SETS, max(1.0, room / ((1 + UNUSED_SHARE) * self._set_bytes))))

    @cached_property
    def _set_bytes(self) -> int:
        """Bytes of the ciphertexts of one set while it is computed."""
        return estimate(self.program, costs=CostTable.default(self._engine.model)).ciphertext_bytes

    def _outputs(
        self,
        encrypted: EncryptedInput,
        say: Reporter,
        observe: Callable[[Node, Value], None] | None,
        keeper: _Keeper | None,
    ) -> Iterator[Value]:
        """The outputs of one set of ciphertexts after the other; held on to if there is a checkpoint to keep."""
        session, program = self._open(), self.program
        found = None if keeper is None else keeper.load(session)
        finished: list[Value] = [] if found is None else list(found.outputs)
        yield from map(self._checked, finished)
        done, steps = len(finished), Steps(program.graph, self._predicted, encrypted.sets)
        while done < encrypted.sets:
            if found is None or not found.after:
                left = encrypted.sets - done
                count = 1 if left == 1 else min(left, self._together())
                fresh = self._fresh(encrypted.part(done, count))
                after, values, evaluator = None, {program.input.id: fresh}, session.evaluator
                evaluator.restart()
            else:
                after, values = found.after, {name: list(sets) for name, sets in found.values.items()}
                # Plaintexts are kept by their place in a whole run: a run that starts in the middle encodes its own.
                count, evaluator = found.sets, session.uncached()
            found = None
            if self._pager is not None:
                self._pager.restart(after, count)
            keep = self._keeping(steps, tuple(finished), done, count, say, observe, keeper)
            outputs = self._computed(evaluator, values, after, keep)
            fresh, values = [], {}  # their memory is free when the next are read
            if keeper is not None:
                finished += outputs
            done += count
            yield from map(self._checked, outputs)
        self.last_run = steps.seconds

    def _fresh(self, encrypted: EncryptedInput) -> list[Value]:
        """The ciphertexts of each set of an input."""
        node = self.program.input
        given = [Ciphertext(payload, node.state) for payload in encrypted.payloads(self._open())]
        one = node.layout.ciphertexts
        return [tuple(given[at : at + one]) for at in range(0, len(given), one)]

    def _checked(self, output: Value) -> Value:
        wanted = self.program.output.state
        for part in output:
            if part.state.level != wanted.level or abs(part.state.scale / wanted.scale - 1) > SCALE_TOLERANCE:
                raise VerificationError(f"the output is at {part.state}, its type says {wanted}")
        return output

    def _computed(
        self,
        evaluator: Evaluator[Any, Any],
        values: Mapping[str, Sequence[Value]],
        after: str | None,
        keep: Callable[[Node, Mapping[str, Value]], None],
    ) -> list[Value]:
        """The outputs of some sets of ciphertexts, from their values after a node or from their inputs."""
        several = len(next(iter(values.values()))) > 1
        given = {name: together(sets) if several else sets[0] for name, sets in values.items()}
        try:
            (output,) = execute(
                self.program.graph,
                self._kernels,
                SetsEvaluator(evaluator) if several else evaluator,
                given,
                start_after=after,
                keep=keep,
            )
        except RuntimeError as error:
            if is_callers(error) or ran_out(error):
                raise
            raise BackendError(f"{self._engine.title} refused an operation of the program: {error}") from error
        return apart(output) if several else [output]

    def _keeping(
        self,
        steps: Steps,
        finished: Sequence[Value],
        done: int,
        sets: int,
        say: Reporter,
        observe: Callable[[Node, Value], None] | None,
        keeper: _Keeper | None,
    ) -> Callable[[Node, Mapping[str, Value]], None]:
        """What is done after each node of a run of some sets of ciphertexts, before which `done` sets were finished."""
        session, start = self._open(), time.perf_counter()

        def each_set(value: Value) -> list[Value]:
            return apart(value) if sets > 1 else [value]

        def keep(node: Node, values: Mapping[str, Value]) -> None:
            nonlocal start
            spent = time.perf_counter() - start
            steps.add(node, spent, sets, done)
            with session.resting():  # between two nodes no key is in use
                if keeper is not None:
                    keeper.keep(node, {name: each_set(value) for name, value in values.items()}, finished)
                if observe is not None:
                    with callers():
                        for value in each_set(values[node.id]):
                            observe(node, value)
                level = values[node.id][0].state.level
                log_event(
                    log,
                    f"{node.id} at level {level}",
                    level=logging.DEBUG,
                    node=node.id,
                    levels=level,
                    seconds=round(spent, 6),
                )
                if say.heard:
                    after = "" if keeper is None else keeper.after
                    say(steps.reached(node, level, spent, current_rss_bytes() / GB, after))
            start = time.perf_counter()

        return keep


class _Keeper:
    """Loads and writes the checkpoints of one run."""

    def __init__(
        self, program: CompiledProgram, encrypted: EncryptedInput, path: Path, every: float, engine: Engine
    ) -> None:
        self.path = path
        self.after = ""
        self._program, self._encrypted, self._every, self._engine = program, encrypted, every, engine
        self._last = time.monotonic()

    def load(self, session: Session) -> Checkpoint | None:
        """The checkpoint of an earlier run; None if there is no file."""
        if not self.path.exists():
            return None
        found = Checkpoint.load(self._program, self._encrypted, self.path, session)
        self.after = found.after
        return found

    def keep(self, node: Node, values: Mapping[str, Sequence[Value]], outputs: Sequence[Value]) -> None:
        """Write a checkpoint after a bootstrap, or if enough time has passed since the last one."""
        if not isinstance(node.op, Bootstrap) and time.monotonic() - self._last < self._every:
            return
        try:
            Checkpoint(node.id, values, tuple(outputs)).save(self._program, self._encrypted, self.path, self._engine)
        except (ArtifactError, BackendError, MemoryError) as error:
            # A run of hours must not end because the disk is full.
            warn(log, f"no checkpoint after {node.id}: {error or 'memory ran out'}", node=node.id)
        else:
            self.after = node.id
        self._last = time.monotonic()
