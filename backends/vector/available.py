"""Whether the vector engine can serve on this machine: kernels are compiled once and have to give known answers."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import threading
import time
from collections.abc import Callable
from typing import Any

from olac.backends import vector
from olac.backends.vector import compiled
from olac.errors import BackendError
from olac.system.logs import warn

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called as progress(what is being done, kernels so far, kernels in all)."""

ANSWERS = "answers"
FMA = {"x86_64": "fma", "amd64": "fma", "i686": "fma"}
"""The feature that makes a CPU of this kind multiply and add with one rounding."""
WITH_FMA = ("aarch64", "arm64")
"""Kinds of CPU that always can."""

_lock = threading.Lock()
_checked: str | None = None


def obstacle() -> str:
    """Why the engine can't serve here, as far as that is known without compiling; empty if nothing is in the way."""
    if compiled.numba is None:
        return compiled.missing
    try:
        importlib.import_module("cryptography.hazmat.primitives.ciphers.algorithms")
    except ImportError:
        return f"cryptography is not installed ({compiled.INSTALL})"
    environment = compiled.store().environment
    kind = environment["triple"].split("-")[0]
    if kind in WITH_FMA:
        return ""
    if kind not in FMA:
        return f"it was never tried on a CPU of the kind {kind}"
    if f"+{FMA[kind]}" not in environment["features"].split(","):
        return f"this CPU ({environment['cpu']}) has no fused multiply-add, or numba was told not to use it"
    return ""


def why_unavailable(progress: Progress | None = None) -> str:
    """Why the engine can't serve here; empty if it can.

    At the first call in a process it compiles the kernels, or loads them from the cache, and checks their answers,
    unless the same compiled kernels have given them before.

    Args:
        progress: told what is being done; None for a warning if kernels are to be compiled.
    """
    global _checked
    with _lock:
        if _checked is None:
            try:
                _checked = obstacle() or _prepare(progress)
            except Exception as error:  # whatever goes wrong in numba, another engine can serve
                log.exception("kernels can't be compiled")
                _checked = f"its kernels can't be compiled: {type(error).__name__}: {error}"
        return _checked


def prepare(progress: Progress | None = None) -> None:
    """Make the engine ready.

    Raises:
        BackendError: it can't serve here.
    """
    reason = why_unavailable(progress)
    if reason:
        raise BackendError(f"the vector engine is not available: {reason}")


def _prepare(progress: Progress | None) -> str:
    start = time.perf_counter()
    for module in pkgutil.walk_packages(vector.__path__, f"{vector.__name__}."):
        importlib.import_module(module.name)
    kernels, store = own_kernels(), compiled.store()
    done, before = 0, store.compiled

    def tell(what: str) -> None:
        if progress is not None:
            progress(what, done, len(kernels))

    def announce(name: str) -> None:
        if store.compiled == before + 1:
            tell(f"compiling kernels for {store.purpose()}")
        tell(f"compiling kernel {name.removeprefix(f'{vector.__name__}.')}")
        if progress is None and store.compiled == before + 1:
            warn(
                log,
                f"the vector engine's kernels are compiled for {store.purpose()}, once for each user and machine; "
                "this takes up to a minute (olac warm-up does it beforehand)",
                stacklevel=2,
            )

    store.announce = announce
    try:
        for made in kernels.values():
            tell("loading kernels")
            made.ready()
            done += 1
    finally:
        store.announce = None
    if store.remembered(ANSWERS) is None:
        tell("checking known answers")
        wrong = wrong_answers()
        if wrong:
            return wrong
        store.remember(ANSWERS, {})
    else:
        store.files.touch()
    log.info("%d kernels, %d of them compiled, in %.1f s", done, store.compiled, time.perf_counter() - start)
    return ""


def own_kernels() -> dict[str, Any]:
    """The engine's kernels by name; others may declare some, too."""
    return {name: made for name, made in compiled.KERNELS.items() if name.startswith(f"{vector.__name__}.")}


def wrong_answers() -> str:
    """Run what `known_answer` was given for these kernels: in a clause, which give wrong results; empty for none."""
    own = own_kernels().keys()
    for answer in compiled.ANSWERS:
        if own.isdisjoint(answer.kernels):
            continue
        try:
            right, why = answer.right(), ""
        except Exception as error:
            right, why = False, f" ({type(error).__name__}: {error})"
        if right is not True:
            return f"its kernels {', '.join(answer.kernels)} give wrong results on this machine{why}"
    return ""
