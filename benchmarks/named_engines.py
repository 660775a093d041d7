"""The engines that a command names."""

from __future__ import annotations

from benchmarks.data import DataError
from olac.backends.session import Engine, Preparing, find_engine
from olac.ckks.parameters import Parameters
from olac.errors import BackendError


def named(name: str, parameters: Parameters, preparing: Preparing | None = None) -> Engine:
    """The engine of a name, ready to be used.

    Args:
        name: of its folder in `olac/backends`.
        parameters: that it is used with.
        preparing: told what takes long at the first use on a machine.

    Raises:
        DataError: there is no such engine, it does not take the parameters, or it can't be used on this machine.
    """
    engine = existing(name)
    refused = engine.model.refuses(parameters)
    if refused is not None:
        raise DataError(f"{engine.title} does not take {parameters.describe()}: {refused}")
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
