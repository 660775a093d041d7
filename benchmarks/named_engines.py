"""The engines that a command names."""

from __future__ import annotations

from benchmarks.data import DataError
from olac.backends.session import DEFAULT, Engine, Preparing, find_engine
from olac.ckks.engines import ENGINES, EngineModel, engine_model
from olac.errors import BackendError


def named(name: str, preparing: Preparing | None = None) -> Engine:
    """The engine of a name, ready to be used; DataError if there is none, or if it can't be used on this machine.

    Args:
        preparing: told what takes long at the first use on a machine.
    """
    engine = existing(name)
    reason = engine.unavailable(preparing)
    if reason:
        raise DataError(f"{engine.title} can't be used here: {reason}")
    return engine


def existing(name: str) -> Engine:
    """The engine of a name, whether it can be used here or not; DataError if there is none."""
    try:
        return find_engine(name)
    except BackendError as error:
        raise DataError(str(error)) from error


def model_of(engine: Engine) -> EngineModel:
    """What planners know of an engine; of one that has no model, what they know of OpenFHE."""
    return engine_model(engine.key_files if engine.key_files in ENGINES else DEFAULT)
