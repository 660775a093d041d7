"""Checkpoints of long runs: a file with the ciphertexts that are still needed, and nothing else.

The file is as untrusted as all others. The node after which it was written decides which ciphertexts it must hold, and
at which levels, and every word is checked before the engine sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from olac.backends.base import SCALE_TOLERANCE, Ciphertext
from olac.backends.session import Engine, Session
from olac.ckks.sizes import ciphertext_bytes
from olac.ckks.words import as_bytes, check_words
from olac.errors import BackendError
from olac.ir.types import CipherState
from olac.kernels.base import Value
from olac.kernels.execute import alive
from olac.program.program import CompiledProgram
from olac.runtime import envelope
from olac.runtime.envelope import DAMAGED, open_frame
from olac.runtime.messages import EncryptedInput
from olac.system.files import Source, write_file


@dataclass(frozen=True)
class Checkpoint:
    """A run up to and with a node.

    Attributes:
        after: the id of the node.
        values: by node id, all that the nodes after it need.
    """

    after: str
    values: Mapping[str, Value]

    def save(self, program: CompiledProgram, given: EncryptedInput, path: str | Path, engine: Engine) -> None:
        """Write one frame; an earlier file is replaced when all is written.

        Raises:
            ArtifactError: the file can't be written.
            BackendError: a ciphertext is not as its type says, or no encryption: it could not be read again.
        """
        parameters, names = program.parameters, alive(program.graph, self.after)
        parts = [(name, part) for name in names for part in self.values[name]]
        for name, part in parts:
            _check_canonical(program, name, part, engine.state(parameters, part.payload))
        payload = (as_bytes(engine.words(parameters, part.payload, part.state.level)) for _, part in parts)
        fields = {"keys": given.identity, "input": given.digest, "behind": self.after, "values": list(names)}
        size = _payload_bytes(program, names)
        write_file(path, envelope.frame(envelope.CHECKPOINT, program, fields, payload, size), size=size)

    @staticmethod
    def load(program: CompiledProgram, given: EncryptedInput, path: str | Path, session: Session) -> Checkpoint:
        """Read a checkpoint of a run on `given`; its ciphertexts belong to the session.

        Raises:
            ArtifactError: the file is damaged, of another kind, version or program, or of a run under other keys or on
                another input.
        """
        with open_frame(Source.of_file(path), envelope.CHECKPOINT, program) as payload:
            header = payload.header
            for field, wanted, run in (
                ("keys", given.identity, "under other keys"),
                ("input", given.digest, f"on another input than {given.name}"),
            ):
                if header.identity(field) != wanted:
                    raise header.error(
                        f"it is of a run {run}",
                        "Continue that run, or name another file for the checkpoints of this one.",
                    )
            after = header.fields.get("behind")
            if not isinstance(after, str) or after not in {node.id for node in program.graph.nodes}:
                raise header.error("it stands after a node that the program does not have", DAMAGED)
            names = alive(program.graph, after)
            if header.fields.get("values") != list(names):
                raise header.error(f"it does not hold what is needed after {after}", DAMAGED)
            header.expect_payload(_payload_bytes(program, names))
            log_ring, primes = program.parameters.log_ring, program.parameters.primes
            values: dict[str, Value] = {}
            for name in names:
                node, parts = program.graph[name], []
                limbs = node.state.level + 1
                for _ in range(node.layout.ciphertexts):
                    words = np.frombuffer(payload.read(ciphertext_bytes(log_ring, limbs)), "<u8")
                    words = words.reshape(-1, 1 << log_ring)
                    with header.named_in_errors():
                        check_words(words, primes[:limbs] * 2, 1 << log_ring)
                    parts.append(Ciphertext(session.ciphertext(words, limbs - 1), node.state))
                values[name] = tuple(parts)
            payload.finish()
        return Checkpoint(after, values)


def _payload_bytes(program: CompiledProgram, names: Iterable[str]) -> int:
    nodes, log_ring = (program.graph[name] for name in names), program.parameters.log_ring
    return sum(node.layout.ciphertexts * ciphertext_bytes(log_ring, node.state.level + 1) for node in nodes)


def _check_canonical(program: CompiledProgram, name: str, part: Ciphertext[object], held: CipherState) -> None:
    """Words alone say neither level nor scale: both must be those of the type, and the engine's those of the level."""
    state = program.graph[name].state
    same = part.state.level == state.level and part.state.noise_degree == state.noise_degree == 1
    scales = ((part.state.scale, state.scale), (held.scale, program.parameters.scale(state.level)))
    if not same or any(abs(a / b - 1) > SCALE_TOLERANCE for a, b in scales):
        raise BackendError(f"{name} is at {part.state}, the engine's scale {held.scale:.17g}, its type says {state}")
