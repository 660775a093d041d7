"""The one place where numba is imported and where compiled functions, the kernels, are declared.

    from olac.backends.vector.compiled import fma, inline, kernel, known_answer, wide

    @inline
    def times(x: float, y: float) -> float:              # becomes part of the kernels that call it
        return fma(x, y, 0.0)

    @kernel("void(f8[:, ::1], f8, i8, i8)")              # all types that it may be called with, as numba writes them
    def scale(a: Floats, by: float, lo: int, hi: int) -> None:
        wide()                                           # 512-bit vectors where the CPU has them
        for i in range(lo, hi):
            for j in range(a.shape[1]):
                a[i, j] = times(a[i, j], by)

    @known_answer(scale)                                 # what these kernels have to give on every machine
    def _scale_is_right() -> bool:
        ...

A kernel is compiled, or loaded from the cache, at its first call or by `Kernel.ready`, for its declared types and no
others: any other call raises TypeError. It releases the GIL, divides as numpy does (no ZeroDivisionError) and follows
IEEE arithmetic to the letter: numba's `fastmath` is never on, so that sums keep their order and `fma` is the only fused
operation. If numba is missing, modules with kernels can be imported all the same, and each call of a kernel raises
`BackendError`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, cast

from olac.backends.vector.kernel_cache import KernelStore, make_cache, sources_digest
from olac.errors import BackendError
from olac.system.memory import GB, limits_room

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

INSTALL = "pip install 'olac[vector]'"
LOADING_BYTES = 3e8
"""Address space that numba and the kernels take while they are compiled. LLVM ends the process if it finds none."""
OPTIONS = {"nopython": True, "nogil": True, "error_model": "numpy", "boundscheck": None, "no_cfunc_wrapper": True}


@dataclass(frozen=True)
class Answer:
    """A test of kernels against results that are known.

    Attributes:
        kernels: the names of the kernels whose results it tests.
        right: computes and compares; False for a wrong result.
    """

    kernels: tuple[str, ...]
    right: Callable[[], bool]


KERNELS: dict[str, Any] = {}
"""All kernels that were declared so far, by module and name, in order: a kernel comes after those that it calls."""
ANSWERS: list[Answer] = []
"""All that `known_answer` was given so far."""


def _load() -> tuple[Any, str]:
    """numba, or None and why it can't be used."""
    room = limits_room()
    if room < LOADING_BYTES:
        return None, (
            f"the limits of this process (ulimit -v) leave {max(0.0, room) / GB:.2f} GB of memory, and loading it "
            f"takes {LOADING_BYTES / GB:.2f} GB"
        )
    try:
        numba = importlib.import_module("numba")
        importlib.import_module("numba.core.registry")
        importlib.import_module("numba.extending")
    except Exception as error:  # numba refuses some releases of Python and numpy with errors of several kinds
        if isinstance(error, ModuleNotFoundError) and error.name == "numba":
            return None, f"numba is not installed ({INSTALL})"
        return None, f"numba can't be loaded: {error}"
    if numba.config.DISABLE_JIT:
        return None, "NUMBA_DISABLE_JIT is set"
    return numba, ""


numba, missing = _load()
"""The module and "", or None and why it can't be used."""


@functools.lru_cache(maxsize=1)
def store() -> KernelStore:
    """The compiled kernels on disk; only where numba is."""
    return KernelStore(numba)


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function in `KERNELS`."""
    return f"{function.__module__}.{function.__qualname__}"


def known_answer(*kernels: Callable[..., Any]) -> Callable[[Callable[[], bool]], Callable[[], bool]]:
    """Declare a function that runs these kernels on small operands and says whether all results are right.

    It has to know the results from elsewhere, such as from Python's integers, and to take less than a second. It runs
    at the first use on a machine; a False or an exception there makes the engine unavailable.
    """

    def declare(right: Callable[[], bool]) -> Callable[[], bool]:
        ANSWERS.append(Answer(tuple(name_of(kernel) for kernel in kernels), right))
        return right

    return declare


if TYPE_CHECKING or numba is None:

    def kernel(*signatures: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """A decorator that makes a kernel of a function for each of these signatures, such as "void(f8[::1], i8)"."""

        def declare(function: Callable[P, R]) -> Callable[P, R]:
            @functools.wraps(function)
            def refuse(*args: P.args, **keywords: P.kwargs) -> R:
                _refuse()

            KERNELS[name_of(function)] = refuse
            return refuse

        return declare

    def inline(function: F) -> F:
        """A decorator for a helper that becomes part of each kernel that calls it."""
        return function

    def fma(a: float, b: float, c: float) -> float:
        """a * b + c with one rounding. Only in kernels."""
        _refuse()

    def wide() -> None:
        """In a kernel: compile it for vectors of 512 bits, if the CPU has them; LLVM takes 256 otherwise."""
        _refuse()

    def _refuse() -> NoReturn:
        raise BackendError(f"kernels of the vector engine can't be run: {missing}")

else:

    class Kernel(numba.core.registry.CPUDispatcher):
        """numba's dispatcher, restricted to the types that were declared and compiled for all of them at once."""

        declared: tuple[str, ...] = ()
        sources = ""

        def ready(self) -> None:
            """Compile it, or load it from the cache, unless that has been done."""
            with numba.core.compiler_lock.global_compiler_lock:
                if self._can_compile:
                    self._cache = make_cache(numba.core.caching._Cache, store(), name_of(self.py_func), self.sources)
                    for signature in self.declared:
                        self.compile(signature)
                    self.disable_compile()

        def _compile_for_args(self, *args: Any, **keywords: Any) -> Any:
            self.ready()
            return self  # numba calls what it gets, now with compiled code or with an error

        def get_call_template(self, args: Any, keywords: Any) -> Any:
            self.ready()
            return super().get_call_template(args, keywords)

    def kernel(*signatures: str) -> Callable[[F], F]:
        if not signatures:
            raise TypeError("a kernel needs the types that it is called with")

        def declare(function: F) -> F:
            if function.__closure__ or "<locals>" in function.__qualname__:
                raise TypeError(f"{name_of(function)} is not a function of a module: the cache tells kernels by name")
            made = Kernel(py_func=function, locals={}, targetoptions=dict(OPTIONS))
            made.declared, made.sources = signatures, sources_digest(function.__module__)
            KERNELS[name_of(function)] = made
            return cast(F, made)

        return declare

    def inline(function: F) -> F:
        return cast(F, numba.njit(inline="always", error_model="numpy", nogil=True)(function))

    @numba.extending.intrinsic
    def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
        double = numba.types.float64

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.fma(*args)

        return double(double, double, double), generate

    @numba.extending.intrinsic
    def wide(context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # llvmlite knows no attributes with values; those that it does not know are written out as they are.
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
            return context.get_dummy_value()

        return numba.types.none(), generate
