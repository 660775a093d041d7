"""What files of programs and of their clients share: parts that are read from JSON, and checks of them.

Nothing in a file is trusted: every field must have the type that its dataclass declares.
"""

from __future__ import annotations

import functools
import logging
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from olac.ckks.engines import ENGINES
from olac.ckks.parameters import OPENFHE_RECIPE, Parameters
from olac.ckks.primes import is_prime
from olac.errors import VerificationError
from olac.ir.head import STEPS, OutputHead, Step
from olac.ir.lowerings import Lowering
from olac.ir.types import ValueType
from olac.system.logs import warn

log = logging.getLogger(__name__)

MAX_INTEGER = 1 << 62
MAX_CIPHERTEXTS = 1 << 14
MAX_PROBLEM_CHARACTERS = 500


def parameters_of(data: Any) -> Parameters:
    """Parameters; those without a recipe of bootstraps have OpenFHE's."""
    setup = data.get("bootstrapping") if isinstance(data, dict) else None
    if isinstance(setup, dict):
        data = {**data, "bootstrapping": {"recipe": OPENFHE_RECIPE, **setup}}
    return typing.cast(Parameters, decode(data, Parameters, "parameters"))


def engine_of(data: Any) -> str:
    """The name of an engine that programs can be planned for."""
    if not isinstance(data, str) or data not in ENGINES:
        raise ValueError(f"unknown engine {str(data)[:60]!r}: a newer olac or an extension made it")
    return data


def tagged(value: Lowering | Step | None) -> dict[str, Any] | None:
    """The fields of a value and its kind, for `of_kind`."""
    return None if value is None else {"kind": value.kind, **encode(value)}


def head_of(data: Any) -> OutputHead:
    """The steps that a client applies."""
    if not isinstance(data, list):
        raise ValueError(f"head is a {type(data).__name__}, expected a list")
    return OutputHead(tuple(of_kind(step, STEPS, f"head[{i}]", "step") for i, step in enumerate(data)))


def of_kind(data: Any, kinds: Mapping[str, type], where: str, what: str) -> Any:
    """The value of the kind that `data` names, which must have exactly the fields of that kind."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where}: unknown {what} {str(kind)[:60]!r}: a newer olac or an extension made it")
    rest = {name: value for name, value in data.items() if name != "kind"}
    return decode(rest, kinds[kind], where)


def encode(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists, numbers as Python's own."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


@functools.lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def object_of(data: Any, names: set[str], where: str) -> dict[str, Any]:
    """An object that has exactly these fields."""
    if not isinstance(data, dict) or set(data) != names:
        found = sorted(data)[:20] if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{where} is {found}, expected the fields {sorted(names)}")
    return data


def decode(data: Any, kind: Any, where: str) -> Any:
    """JSON as the declared type, with nothing converted but lists to tuples and integers to floats."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        (kind,) = (a for a in arguments if a is not type(None))
        return decode(data, kind, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} is a {type(data).__name__}, expected a list")
        parts = (arguments[0],) * len(data) if arguments[1:] == (...,) else arguments
        if len(parts) != len(data):
            raise ValueError(f"{where} has {len(data)} elements, expected {len(parts)}")
        return tuple(decode(d, a, f"{where}[{i}]") for i, (d, a) in enumerate(zip(data, parts, strict=True)))
    if is_dataclass(kind):
        hints = _hints(typing.cast(type, kind))
        given = object_of(data, set(hints), where)
        made = {name: decode(given[name], hint, f"{where}.{name}") for name, hint in hints.items()}
        try:
            return typing.cast(Any, kind)(**made)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if kind is float and type(data) in (int, float):
        # Reports may hold infinite errors, but no number that programs compute with may be infinite.
        unbounded = type(data) is int and abs(data) > MAX_INTEGER
        if unbounded or not (math.isfinite(data) or where.startswith("report")):
            raise ValueError(f"{where} = {data} is not a finite number")
        return float(data)
    if type(data) is not kind:
        raise ValueError(f"{where} is a {type(data).__name__}, expected {getattr(kind, '__name__', kind)}")
    if kind is int and abs(data) > MAX_INTEGER:
        raise ValueError(f"{where} is too large")
    return data


# Checks --------------------------------------------------------------------------------------------------------------


def check_chain_exists(parameters: Parameters) -> None:
    """Large rings have few small primes: without this check the search for them would not end."""
    order, found = 2 * parameters.ring_dimension, 0
    candidate = (1 << parameters.scale_bits) + 1
    while candidate > order and found < parameters.depth + 2:
        candidate -= order
        found += is_prime(candidate)
    if found < parameters.depth + 2:
        raise ValueError(f"there are not {parameters.depth + 1} primes of {parameters.scale_bits} bits for the ring")


def check_sizes(type_: ValueType, slots: int, name: str) -> None:
    """Check the sizes of a value that has a layout, before the checks that allocate memory by them.

    Args:
        slots: of the ring.
        name: of the value, for messages.
    """
    layout, shape = type_.layout, type_.shape
    if layout is None:
        raise ValueError(f"{name} has no layout")
    if not shape or min(shape) < 1 or min(layout.grid) < 1 or min(layout.padded) < 1 or type_.batch < 1:
        raise ValueError(f"{name} has an empty shape")
    if layout.ciphertext_slots != slots:
        raise ValueError(f"{name} is laid out in {layout.ciphertext_slots} slots, the ring has {slots}")
    if layout.ciphertexts > MAX_CIPHERTEXTS or math.prod(shape) > MAX_CIPHERTEXTS * layout.slots:
        raise ValueError(f"{name} takes {layout.ciphertexts} ciphertexts, more than {MAX_CIPHERTEXTS}")


def problem_of(error: Exception) -> str:
    """What is wrong with a file, in one line. Unlike elsewhere, a broken invariant is not reported as a bug of olac."""
    said = error.args[0] if isinstance(error, VerificationError) and error.args else error
    line = " ".join(str(said).split()).removesuffix(".")
    return line if len(line) <= MAX_PROBLEM_CHARACTERS else line[:MAX_PROBLEM_CHARACTERS] + " ..."


def warn_of_security(parameters: Parameters, name: str, stacklevel: int) -> None:
    """Warn of parameters that hide nothing, or less than they were made for.

    Args:
        name: of the file that has them.
        stacklevel: of the warning, as seen from here.
    """
    if parameters.security == 0:
        warn(
            log, f"{name} was compiled without security, for tests: its ciphertexts hide nothing", stacklevel=stacklevel
        )
    elif not parameters.secure:
        warn(
            log,
            f"{name} was compiled for {parameters.security}-bit security by bounds that newer attacks "
            f"have lowered: it has {math.floor(parameters.security_bits)} bits. It runs as before; compile the "
            "model again for the full security.",
            stacklevel=stacklevel,
        )
