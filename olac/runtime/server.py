"""The server: runs a program on ciphertexts. It has no secret key and can't tell what it computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from olac.backends.base import Ciphertext
from olac.backends.openfhe.evaluator import OpenFHEEvaluator, PlaintextCache
from olac.backends.openfhe.wire import wire
from olac.backends.recorder import RecorderEvaluator
from olac.errors import ArtifactError, BackendError, InfeasibleError, MissingKeyError, VerificationError
from olac.ir.graph import Node
from olac.ir.ops import Array
from olac.ir.types import CipherState
from olac.kernels.base import Value
from olac.kernels.execute import execute
from olac.memory import available_bytes, current_rss_bytes
from olac.program import CompiledProgram
from olac.runtime.messages import EncryptedInput, EncryptedResult, EvaluationKeys, needs_relinearisation

GB = 1e9
NAMED_STEPS = 12


@dataclass(frozen=True)
class Progress:
    """One node of a run is done.

    Attributes:
        done, total: nodes so far and in all, the input included.
        node: its id.
        level: levels that its ciphertexts have left.
        seconds: wall time of this node.
    """

    done: int
    total: int
    node: str
    level: int
    seconds: float


class Server:
    """Runs one program under one client's evaluation keys.

    Args:
        program: what to run.
        evaluation_keys: from the client, live or loaded.
        max_memory: bytes that this process may take in all; None for what the machine has.
        cache_bytes: for encoded weights, which are kept between runs; None for what memory allows, or for programs with
            bootstraps, whose weights are encoded when they are needed, for nothing.

    Attributes:
        last_run: wall seconds by node id, of the last run.

    Raises:
        ArtifactError: the keys belong to another program, or are damaged.
        MissingKeyError: keys that the program needs are not there.
        InfeasibleError: the keys and ciphertexts need more memory than allowed.
    """

    def __init__(
        self,
        program: CompiledProgram,
        evaluation_keys: EvaluationKeys,
        *,
        max_memory: float | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        self.program = program
        self.last_run: dict[str, float] = {}
        self._lock = threading.Lock()
        self._check_keys(evaluation_keys)
        room = self._check_memory(evaluation_keys, max_memory)
        self._identity = evaluation_keys.identity
        self._keys = evaluation_keys.install()
        self._kernels = program.kernels
        if program.parameters.bootstrapping is not None:
            # After the keys: what these take is known better than that of the plaintexts made here.
            assert wire(program.parameters).ready_to_bootstrap
        if cache_bytes is None:
            cache_bytes = max(0, int(room)) if program.parameters.bootstrapping is None else 0
        self._cache = PlaintextCache(cache_bytes)
        self._evaluator = OpenFHEEvaluator(
            wire(program.parameters).context, program.parameters, evaluation_keys.steps, self._cache
        )
        self._prepared = False

    def _check_keys(self, keys: EvaluationKeys) -> None:
        program = self.program
        if keys.program.fingerprint != program.fingerprint:
            raise ArtifactError(
                f"the evaluation keys belong to program {keys.program.fingerprint[:16]}..., this is program "
                f"{program.fingerprint[:16]}.... Make keys for this program."
            )
        missing = sorted(set(program.rotations) - set(keys.steps))
        if missing:
            more = "" if len(missing) <= NAMED_STEPS else f" and {len(missing) - NAMED_STEPS} more"
            raise MissingKeyError(
                f"the evaluation keys lack those for the rotation steps {', '.join(map(str, missing[:NAMED_STEPS]))}"
                f"{more}. Make the keys anew with Client.generate_keys()."
            )
        if needs_relinearisation(program) and not keys.relinearisation:
            raise MissingKeyError(
                "the evaluation keys lack the relinearisation key. Make the keys anew with Client.generate_keys()."
            )

    def _check_memory(self, keys: EvaluationKeys, max_memory: float | None) -> float:
        """Bytes that are left for encoded weights."""
        held = current_rss_bytes()
        room: float = available_bytes()
        if max_memory is not None:
            room = min(room, max_memory - held)
        estimate = self.program.estimate()
        needed = estimate.ciphertext_bytes + estimate.setup_bytes + (0 if keys.installed else keys.key_bytes)
        if needed > room:
            raise InfeasibleError(
                f"running the program takes {needed / GB:.2f} GB more than the {held / GB:.2f} GB that this process "
                f"holds, and {max(0.0, room) / GB:.2f} GB are left. Allow more with max_memory, take a larger machine, "
                "or compile with max_memory for a program with fewer keys."
            )
        return room - needed

    @property
    def encode_seconds(self) -> float:
        """Wall time that encoding weights has taken so far, in all runs."""
        return self._cache.seconds

    def prepare(self) -> None:
        """Encode all weights that the cache has room for, so that the first run is as fast as the others."""
        with self._lock:
            self._prepare()

    def _prepare(self) -> None:
        program = self.program
        self._cache.restart()
        encoder = _Encoder(self._evaluator)
        type_ = program.input.type
        assert type_.layout is not None and type_.state is not None
        fresh = (encoder.fresh(type_.state.level),) * type_.layout.ciphertexts
        execute(program.graph, self._kernels, encoder, {program.input.id: fresh})

    def run(self, encrypted: EncryptedInput, progress: Callable[[Progress], None] | None = None) -> EncryptedResult:
        """Run the program on a batch; one run at a time, others wait.

        Args:
            encrypted: from the client whose keys this server has.
            progress: called behind every node.

        Raises:
            ArtifactError: the input is of another program or was encrypted under other keys.
            BackendError: OpenFHE refused an operation.
        """
        program = self.program
        if encrypted.program.fingerprint != program.fingerprint:
            raise ArtifactError(f"{encrypted.name} is of another program. Encrypt it for the program that is run here.")
        if encrypted.identity != self._identity:
            raise ArtifactError(
                f"{encrypted.name} was encrypted under other keys than this server has. Send it with its own "
                "evaluation keys."
            )
        with self._lock:
            return self._run(encrypted, progress)

    def _run(self, encrypted: EncryptedInput, progress: Callable[[Progress], None] | None) -> EncryptedResult:
        program = self.program
        seconds: dict[str, float] = {}
        total = len(program.graph.nodes)
        start = time.perf_counter()

        def after(node: Node, value: Value) -> None:
            nonlocal start
            now = time.perf_counter()
            seconds[node.id] = now - start
            if progress is not None:
                progress(Progress(len(seconds), total, node.id, value[0].state.level, now - start))
            start = time.perf_counter()

        self._cache.restart()
        state = _state(program.input)
        inputs = tuple(Ciphertext(payload, state) for payload in encrypted.payloads(self._keys.tag))
        try:
            (output,) = execute(program.graph, self._kernels, self._evaluator, {program.input.id: inputs}, after)
        except RuntimeError as error:
            raise BackendError(f"OpenFHE refused an operation of the program: {error}") from error
        self.last_run = seconds
        wanted = _state(program.output)
        for part in output:
            if part.state.level != wanted.level or abs(part.state.scale / wanted.scale - 1) > SCALE_TOLERANCE:
                raise VerificationError(f"the output is at {part.state}, its type says {wanted}")
        live = tuple(part.payload for part in output)
        return EncryptedResult(program, self._identity, encrypted.images, live=live)


SCALE_TOLERANCE = 1e-9


def _state(node: Node) -> CipherState:
    assert node.type.state is not None
    return node.type.state


class _Encoder(RecorderEvaluator):
    """Encodes what a run encodes, in the same order, and computes nothing else."""

    def __init__(self, evaluator: OpenFHEEvaluator) -> None:
        super().__init__(evaluator.parameters)
        self._encode_for_run: Any = evaluator._encode

    def _encode(self, values: Callable[[], Array], level: int, scale: float) -> None:
        self._encode_for_run(values, level, scale)
