"""What a long run has come to, in a file: the ciphertexts that are still needed, and nothing else.

The file is as untrusted as all others: where the run stood decides which ciphertexts there must be, at which levels,
and every word is checked before OpenFHE sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from olac.backends.base import SCALE_TOLERANCE, Ciphertext
from olac.backends.session import Engine, Session
from olac.ckks.sizes import ciphertext_bytes
from olac.ckks.words import as_bytes, check_words
from olac.errors import ArtifactError, BackendError
from olac.ir.types import CipherState
from olac.kernels.base import Value
from olac.kernels.execute import alive
from olac.program.program import CompiledProgram
from olac.runtime import envelope
from olac.runtime.envelope import DAMAGED, open_frame
from olac.runtime.framed import named
from olac.runtime.messages import EncryptedInput
from olac.system.files import Source, write_file


@dataclass(frozen=True)
class Checkpoint:
    """A run up to and with a node.

    Attributes:
        behind: the node.
        values: by node id, all that is needed from there on.
    """

    behind: str
    values: Mapping[str, Value]

    def save(self, program: CompiledProgram, given: EncryptedInput, path: str | Path, engine: Engine) -> None:
        """Write one frame; what was there before is replaced when all is written.

        Raises:
            ArtifactError: the file can't be written.
            BackendError: a ciphertext is not as its type says, or no encryption: such a one could not be read again.
        """
        parameters, names = program.parameters, alive(program.graph, self.behind)
        for name in names:
            for part in self.values[name]:
                _check_canonical(program, name, part, engine.state(parameters, part.payload))

        def payload() -> Iterator[memoryview]:
            for name in names:
                for part in self.values[name]:
                    yield as_bytes(engine.words(parameters, part.payload, part.state.level))

        fields = {"keys": given.identity, "input": given.digest, "behind": self.behind, "values": list(names)}
        size = sum(_value_bytes(program, name) for name in names)
        write_file(path, envelope.frame(envelope.CHECKPOINT, program, fields, payload(), size), size=size)

    @staticmethod
    def load(program: CompiledProgram, given: EncryptedInput, path: str | Path, session: Session) -> Checkpoint:
        """Read a checkpoint of a run on `given`; its ciphertexts are of the session.

        Raises:
            ArtifactError: the file is damaged, of another kind, version or program, or of a run under other keys or on
                another input.
        """
        with open_frame(Source.of_file(path), envelope.CHECKPOINT, program) as payload:
            header = payload.header
            for field, wanted, what in (
                ("keys", given.identity, "under other keys"),
                ("input", given.digest, "on another"),
            ):
                if header.identity(field) != wanted:
                    run = what if field == "keys" else f"{what} input than {given.name}"
                    raise header.error(
                        f"it is of a run {run}",
                        "Continue that run, or name another file for the checkpoints of this one.",
                    )
            behind = header.fields.get("behind")
            if not isinstance(behind, str) or behind not in {node.id for node in program.graph.nodes}:
                raise header.error("it stands after a node that the program does not have", DAMAGED)
            names = alive(program.graph, behind)
            if header.fields.get("values") != list(names):
                raise header.error(f"it does not hold what is needed after {behind}", DAMAGED)
            header.expect_payload(sum(_value_bytes(program, name) for name in names))
            log_ring, primes = program.parameters.log_ring, program.parameters.primes
            length = 1 << log_ring
            values: dict[str, Value] = {}
            for name in names:
                count, state = _kind(program, name)
                parts = []
                for _ in range(count):
                    words = np.frombuffer(payload.read(ciphertext_bytes(log_ring, state.level + 1)), "<u8")
                    words = words.reshape(-1, length)
                    try:
                        check_words(words, primes[: state.level + 1] * 2, length)
                    except ArtifactError as error:
                        raise named(error, header) from error
                    parts.append(Ciphertext(session.ciphertext(words, state.level), state))
                values[name] = tuple(parts)
            payload.finish()
        return Checkpoint(behind, values)


def _kind(program: CompiledProgram, name: str) -> tuple[int, CipherState]:
    """How many ciphertexts a value has, and at which level and scale."""
    kind = program.graph[name].type
    assert kind.layout is not None and kind.state is not None
    return kind.layout.ciphertexts, kind.state


def _value_bytes(program: CompiledProgram, name: str) -> int:
    count, state = _kind(program, name)
    return count * ciphertext_bytes(program.parameters.log_ring, state.level + 1)


def _check_canonical(program: CompiledProgram, name: str, part: Ciphertext[object], held: CipherState) -> None:
    """Words alone say neither level nor scale: both must be those of the type, and the engine's those of the level."""
    _, state = _kind(program, name)
    same = part.state.level == state.level and part.state.noise_degree == state.noise_degree == 1
    scales = ((part.state.scale, state.scale), (held.scale, program.parameters.scale(state.level)))
    if not same or any(abs(a / b - 1) > SCALE_TOLERANCE for a, b in scales):
        raise BackendError(f"{name} is at {part.state}, the engine's scale {held.scale:.17g}, its type says {state}")
