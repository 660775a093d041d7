"""A client of the small program with its evaluation keys, made once for each engine; and readers of all messages."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from olac.program.program import CompiledProgram
from olac.runtime import Client, EncryptedInput, EncryptedResult, EvaluationKeys, envelope
from tests.runtime.small_program import current_engine, small_program

READERS: dict[str, Callable[[CompiledProgram, Path], Any]] = {
    envelope.SECRET_KEY: Client.load,
    envelope.EVALUATION_KEYS: EvaluationKeys.load,
    envelope.INPUT: EncryptedInput.load,
    envelope.RESULT: EncryptedResult.load,
}


def pair() -> tuple[Client, EvaluationKeys]:
    """For the current engine."""
    return _pair(current_engine())


@cache
def _pair(engine: str) -> tuple[Client, EvaluationKeys]:
    client = Client(small_program())
    return client, client.generate_keys()
