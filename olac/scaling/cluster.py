"""Ray as the rest of this package uses it: imported when it is needed, and its errors told apart.

Ray is asked for by name, so that `import olac.scaling` works without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from olac.errors import BackendError, OlacError

Executor = Literal["local", "ray"]
EXECUTORS = ("local", "ray")


def check_executor(executor: str) -> None:
    """Raise ValueError unless there is an executor of this name."""
    if executor not in EXECUTORS:
        raise ValueError(f"executor={executor!r}: there are {' and '.join(map(repr, EXECUTORS))}")


def check_positive(**numbers: int) -> None:
    """Raise ValueError, naming the argument, unless all numbers are at least 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number}: it must be at least 1")


def connected_ray() -> Any:
    """The module `ray`, connected to a cluster.

    Raises:
        BackendError: Ray is not installed, or the caller has not connected it.
    """
    ray = _installed_ray()
    if not ray.is_initialized():
        raise BackendError(
            'Ray is not connected. Call ray.init() first: alone for a cluster on this machine, ray.init("auto") for '
            "the cluster that this machine belongs to."
        )
    return ray


def _installed_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise BackendError(
            f'executor="ray" needs Ray, which can\'t be imported ({error}). Install it with '
            '`pip install "olac[ray]"`, or take executor="local".'
        ) from error


@contextmanager
def ray_for(executor: Executor) -> Iterator[None]:
    """Ray is connected if the executor needs it; what was connected here is disconnected at the end.

    Raises:
        BackendError: Ray is not installed, or there is no cluster where its settings say.
    """
    ray = None if executor == "local" else _installed_ray()
    if ray is None or ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(f"Ray can't be connected: {error}. Check RAY_ADDRESS, and ray status.") from error
    try:
        yield
    finally:
        ray.shutdown()


def losses(ray: Any) -> tuple[type[Exception], ...]:
    """Errors of Ray that mean that a process, a machine or what it held is gone, so that its work can be done again."""
    found = ray.exceptions
    return (
        found.RayActorError,
        found.WorkerCrashedError,
        found.NodeDiedError,
        found.ObjectLostError,
        found.OutOfMemoryError,
    )


def own_error(error: Exception) -> Exception:
    """What the work in another process raised: olac's error as it was there, or another as a `BackendError`."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, OlacError):
        return cause
    what = cause if isinstance(cause, Exception) else error
    return BackendError(f"a Ray worker failed: {type(what).__name__}: {what}")
