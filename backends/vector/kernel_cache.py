"""Compiled kernels on disk, in `olac.system.user_cache`.

numba keeps compiled code as pickles, and its own cache loads whatever lies beside the sources or in a folder that
others may write to. This one takes its place. A file holds one kernel for one list of types. It is unpickled only if it
is in a folder that nobody but the user can write to, if its digest is right, and if it was made by the same releases of
Python, numba and llvmlite, for the same CPU and options, from the same sources. Otherwise the kernel is compiled anew.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import logging
import pickle
import platform
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from olac.system.logs import warn
from olac.system.user_cache import Damaged, NoCache, UserCache

log = logging.getLogger(__name__)

KIND = "kernels"
FORMAT = 1
OPTIONS = (
    "BOUNDSCHECK",
    "DEBUG_TYPEINFER",
    "DEBUGINFO_DEFAULT",
    "ENABLE_AVX",
    "LOOP_VECTORIZE",
    "OPT",
    "SLP_VECTORIZE",
)
"""Settings of numba that change the code that it makes."""
KEPT_GROUPS = 4
"""Kernels of so many other releases and CPUs are kept: homes are shared between machines."""


class KernelStore:
    """The kernels of this process's releases and CPU.

    Attributes:
        digests: of each file that was loaded or written, by its name.
        compiled: how many kernels were compiled in this process.
        problem: why kernels are not kept; empty if they are.
        announce: called with the name of each kernel that is about to be compiled.
    """

    def __init__(self, numba: Any) -> None:
        self.digests: dict[str, str] = {}
        self.compiled = 0
        self.problem = ""
        self.announce: Callable[[str], None] | None = None
        self._numba = numba
        self._dumps = importlib.import_module("numba.core.serialize").dumps
        self.environment = self._environment()
        digest = hashlib.sha256(json.dumps(self.environment, sort_keys=True).encode()).hexdigest()
        cpu = "".join(c if c.isalnum() else "_" for c in self.environment["cpu"])
        self.files = UserCache(KIND, f"numba_{numba.__version__}-{cpu}-{digest[:16]}")

    def load(self, name: str, signature: str, sources: str) -> Any:
        """What was saved for a kernel and its types; None if it has to be compiled."""
        file = _file_name(name, signature)
        try:
            if not sources:
                raise NoCache(f"the source of {name} can't be read")
            found = self.files.read(file)
            if found is None:
                return None
            header, contents, digest = found
            if header != self._header(name, signature, sources):
                log.info("%s has changed since it was compiled", name)
                return None
            data = pickle.loads(contents)
        except NoCache as error:
            self._say(error)
            return None
        except Damaged as error:
            warn(log, f"a compiled kernel is compiled anew: {error}", stacklevel=2)
            return None
        except Exception as error:  # what pickles raise that were made by something else
            warn(
                log,
                f"a compiled kernel is compiled anew: {self.files.path(file)}: can't be loaded "
                f"({type(error).__name__}: {error})",
                stacklevel=2,
            )
            return None
        self.digests[file] = digest
        return data

    def save(self, name: str, signature: str, sources: str, data: Any) -> None:
        """Keep a kernel; if that is not possible, a warning says so once."""
        if not sources:
            return
        try:
            header = self._header(name, signature, sources)
            file = _file_name(name, signature)
            self.digests[file] = self.files.write(file, header, self._dumps(data))
        except NoCache as error:
            self._say(error)

    def begin_compiling(self, name: str) -> None:
        """Called before a kernel is compiled."""
        if not self.compiled:
            log.info("compiling kernels for %s", self.purpose())
        self.compiled += 1
        if self.announce is not None:
            self.announce(name)

    def purpose(self) -> str:
        """For which numba and CPU kernels are compiled, and for which others there are some already."""
        others = self.others()
        misfits = f" (those of {', '.join(others)} do not fit)" if others else ""
        return f"numba {self._numba.__version__} on {self.environment['cpu']}{misfits}"

    def others(self) -> list[str]:
        """Which other releases of numba and CPUs there are kernels for, as text for people."""
        names = (group.split("-") for group in self.files.groups() if group != self.files.group)
        return sorted(
            {f"{release.replace('_', ' ')} on {cpu}" for release, cpu, _ in (n for n in names if len(n) == 3)}
        )

    def remembered(self, name: str) -> dict[str, Any] | None:
        """What `remember` was given under a name, on the condition that all kernels are as they were then."""
        if self.problem:
            return None
        try:
            found = self.files.read(name)
        except (NoCache, Damaged) as error:
            log.info("%s", error)
            return None
        if found is None or found[0].pop("files", None) != self.digests:
            return None
        return found[0]

    def remember(self, name: str, facts: dict[str, Any]) -> None:
        """Keep facts about the kernels that this process has loaded and compiled."""
        if self.problem:
            return
        try:
            self.files.write(name, {**facts, "files": self.digests}, b"")
            self.files.forget_others(KEPT_GROUPS)
        except NoCache as error:
            self._say(error)

    def _say(self, error: NoCache) -> None:
        if not self.problem:
            self.problem = str(error)
            warn(log, f"compiled kernels are not kept, so each process compiles them anew: {error}", stacklevel=2)

    def _header(self, name: str, signature: str, sources: str) -> dict[str, Any]:
        return {"kernel": name, "types": signature, "sources": sources, "environment": self.environment}

    def _environment(self) -> dict[str, Any]:
        numba = self._numba
        target = importlib.import_module("numba.core.registry").cpu_target.target_context.codegen()
        triple, cpu, features = target.magic_tuple()
        return {
            "format": FORMAT,
            "python": f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')} {platform.python_version()}",
            "numba": numba.__version__,
            "llvmlite": importlib.import_module("llvmlite").__version__,
            "numpy": importlib.import_module("numpy").__version__,
            "triple": triple,
            "cpu": cpu,
            "features": features,
            "options": {name: repr(getattr(numba.config, name, None)) for name in OPTIONS},
        }


def make_cache(base: type, store: KernelStore, name: str, sources: str) -> Any:
    """What numba asks before and after it compiles a kernel.

    Args:
        base: numba's class of caches.
        sources: the digest of what the kernel is made from.
    """

    class KernelCache(base):  # type: ignore[misc]
        cache_path = None

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            target_context.refresh()  # as numba does, so that all of its own functions are known
            data = store.load(name, types_of(sig), sources)
            if data is not None:
                return result.CompileResult._rebuild(target_context, *data)
            store.begin_compiling(name)
            return None

        def save_overload(self, sig: Any, cres: Any) -> None:
            if cres.library.has_dynamic_globals or any(not lifted.can_cache for lifted in cres.lifted):
                raise TypeError(f"{name} can't be kept: it holds a large array or a pointer of this process")
            store.save(name, types_of(sig), sources, cres._reduce())

        def enable(self) -> None:
            pass

        def disable(self) -> None:
            pass

        def flush(self) -> None:
            pass

    result = importlib.import_module("numba.core.compiler")
    return KernelCache()


def types_of(signature: Any) -> str:
    """The types of the arguments, as text."""
    normalize = importlib.import_module("numba.core.sigutils").normalize_signature
    arguments, _ = normalize(signature)
    return ", ".join(map(str, arguments))


def _file_name(name: str, signature: str) -> str:
    short = name.removeprefix("olac.backends.vector.")[-80:]
    return f"{short}-{hashlib.sha256(f'{name} {signature}'.encode()).hexdigest()[:16]}.kernel"


@cache
def sources_digest(module: str) -> str:
    """The digest of a module's source and of the sources of all modules of olac that it imports, and they import.

    It is made at the first kernel of a module: what is compiled later was read at that time. Empty if the sources can't
    be read.
    """
    texts: dict[str, str] = {}
    open_names = [module]
    while open_names:
        name = open_names.pop()
        if name in texts:
            continue
        text = _source(name)
        if text is None:
            return ""
        texts[name] = text
        open_names.extend(_imports(name, text))
    whole = hashlib.sha256()
    for name in sorted(texts):
        whole.update(f"{name}\0{hashlib.sha256(texts[name].encode()).hexdigest()}\0".encode())
    return whole.hexdigest()


def _source(name: str) -> str | None:
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None)
    try:
        if path is None:
            path = getattr(importlib.util.find_spec(name), "origin", None)
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):  # typed at a prompt, in an archive, or only its bytecode is there
        return None


def _imports(module: str, text: str) -> list[str]:
    """The modules of olac that a module imports."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = getattr(sys.modules.get(module), "__package__", None) or module.rpartition(".")[0]
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)  # for importlib
    return [name for name in found if name.startswith("olac.") and _is_module(name)]


def _is_module(name: str) -> bool:
    if isinstance(sys.modules.get(name), ModuleType):
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a function or a class
        return False
