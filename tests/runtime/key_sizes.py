"""Bytes of the evaluation keys of OpenFHE."""

from __future__ import annotations

from olac.backends.openfhe.session import ENGINE
from olac.program.program import CompiledProgram


def one_key_bytes(program: CompiledProgram) -> int:
    """Bytes of one key for relinearisation or rotations."""
    return ENGINE.key_sizes(program.parameters, {1: 0}, None)[0]


def special_key_bytes(program: CompiledProgram) -> list[int]:
    """Bytes of each key that only bootstraps use."""
    return ENGINE.key_sizes(program.parameters, {}, None)
