"""Checkpoints of long runs: a file with the ciphertexts that are still needed, and nothing else.

The file is as untrusted as all others. The node after which it was written decides which ciphertexts it must hold, and
at which levels, and every word is checked before the engine sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        values: by node id, all that the nodes after it need: of each set of ciphertexts that is computed together.
        outputs: of the sets that were finished before.
    """

    after: str
    values: Mapping[str, Sequence[Value]]
    outputs: Sequence[Value] = ()

    @property
    def sets(self) -> int:
        """Sets of ciphertexts that are computed together."""
        return len(next(iter(self.values.values())))

    def save(self, program: CompiledProgram, given: EncryptedInput, path: str | Path, engine: Engine) -> None:
        """Write one frame; an earlier file is replaced when all is written.

        Raises:
            ArtifactError: the file can't be written.
            BackendError: a ciphertext is not as its type says, or no encryption: it could not be read again.
        """
        parameters, names = program.parameters, alive(program.graph, self.after)
        parts = [(program.output.id, part) for output in self.outputs for part in output]
        parts += [(name, part) for name in names for value in self.values[name] for part in value]
        for name, part in parts:
            _check_canonical(program, name, part, engine.state(parameters, part.payload))
        payload = (as_bytes(engine.words(parameters, part.payload, part.state.level)) for _, part in parts)
        fields: dict[str, Any] = {
            "keys": given.identity,
            "input": given.digest,
            "behind": self.after,
            "values": list(names),
        }
        if self.sets > 1 or self.outputs:
            fields |= {"sets": self.sets, "finished": len(self.outputs)}
        size = _payload_bytes(program, names, self.sets, len(self.outputs))
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
            finished = header.integer("finished", 0, given.sets - 1) if "finished" in header.fields else 0
            sets = header.integer("sets", 1, given.sets - finished) if "sets" in header.fields else 1
            header.expect_payload(_payload_bytes(program, names, sets, finished))
            log_ring, primes = program.parameters.log_ring, program.parameters.primes

            def value(name: str) -> Value:
                node, parts = program.graph[name], []
                limbs = node.state.level + 1
                for _ in range(node.layout.ciphertexts):
                    words = np.frombuffer(payload.read(ciphertext_bytes(log_ring, limbs)), "<u8")
                    words = words.reshape(-1, 1 << log_ring)
                    with header.named_in_errors():
                        check_words(words, primes[:limbs] * 2, 1 << log_ring)
                    parts.append(Ciphertext(session.ciphertext(words, limbs - 1), node.state))
                return tuple(parts)

            outputs = tuple(value(program.output.id) for _ in range(finished))
            values = {name: tuple(value(name) for _ in range(sets)) for name in names}
            payload.finish()
        return Checkpoint(after, values, outputs)


def _payload_bytes(program: CompiledProgram, names: Iterable[str], sets: int, finished: int) -> int:
    log_ring = program.parameters.log_ring

    def size(name: str) -> int:
        node = program.graph[name]
        return node.layout.ciphertexts * ciphertext_bytes(log_ring, node.state.level + 1)

    return sets * sum(map(size, names)) + finished * size(program.output.id)


def _check_canonical(program: CompiledProgram, name: str, part: Ciphertext[object], held: CipherState) -> None:
    """Words alone say neither level nor scale: both must be those of the type, and the engine's those of the level."""
    state = program.graph[name].state
    same = part.state.level == state.level and part.state.noise_degree == state.noise_degree == 1
    scales = ((part.state.scale, state.scale), (held.scale, program.parameters.scale(state.level)))
    if not same or any(abs(a / b - 1) > SCALE_TOLERANCE for a, b in scales):
        raise BackendError(f"{name} is at {part.state}, the engine's scale {held.scale:.17g}, its type says {state}")
