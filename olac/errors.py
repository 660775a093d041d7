"""Every error that olac raises on purpose.

`UnsupportedModelError`, `CalibrationError`, `SecurityError`, `ArtifactError` and `InputError` are about what the caller
gave; `InfeasibleError` is about that or about memory; `BackendError` is about OpenFHE and how it is used;
`VerificationError` is a bug of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


def plain(text: object) -> str:
    """Text for one line: characters that a terminal would obey or not show become escapes such as \\x1b, line breaks,
    too.
    """
    return _escaped(str(text), "")


def _escaped(text: str, keep: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class OlacError(Exception):
    """Base class of all errors that olac raises on purpose. Their texts hold no control characters."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_escaped(a, "\n\t") if isinstance(a, str) else a for a in arguments))


@dataclass(frozen=True)
class UnsupportedNode:
    """One place in a model that olac can't take: module path, source line, what is wrong and what to do."""

    path: str
    source: str
    problem: str
    advice: str

    def __str__(self) -> str:
        where = f"{self.path or '(model)'}"
        if self.source:
            where += f" ({self.source})"
        return f"{where}: {self.problem}. {self.advice}"


class UnsupportedModelError(OlacError):
    """The model holds operations that olac can't compile; `nodes` lists all of them."""

    def __init__(self, nodes: Sequence[UnsupportedNode]) -> None:
        self.nodes = tuple(nodes)
        count = len(self.nodes)
        lines = "\n".join(f"  {i}. {node}" for i, node in enumerate(self.nodes, 1))
        super().__init__(f"{count} place{'s' if count != 1 else ''} in the model can't be compiled:\n{lines}")

    def __reduce__(self) -> tuple[type[UnsupportedModelError], tuple[tuple[UnsupportedNode, ...]]]:
        """As exceptions are pickled, but from the nodes: worker processes send this error to the process that waits."""
        return type(self), (self.nodes,)


class CalibrationError(OlacError):
    """The calibration data can't be used: empty, NaN, or shapes that don't fit the model."""


class InfeasibleError(OlacError):
    """No parameters satisfy the request, or there is not enough memory; says which limit fails and what would help."""


class SecurityError(OlacError):
    """The parameters asked for are below the security asked for."""


class ArtifactError(OlacError):
    """A file or byte string is missing, damaged, of another kind, version or program."""


class InputError(OlacError):
    """An input given to a compiled program has the wrong shape or isn't finite."""


class BackendError(OlacError):
    """OpenFHE can't be loaded, or refused an operation."""


class ForkError(BackendError):
    """OpenFHE is used in a process that was forked after its parent had used it."""


class ClosedError(BackendError):
    """A client, a server or a set of keys is used after it was closed."""


class MissingKeyError(BackendError):
    """An evaluation key that the program needs isn't in the key set."""


class VerificationError(OlacError):
    """An invariant of the compiler is broken: a bug in olac or in a pass, op or lifting that was registered with it.

    Its text ends with a sentence that says what to report.
    """

    def __str__(self) -> str:
        versions = ", ".join(
            f"{name} {version}"
            for name in ("olac", "torch", "numpy")
            if (version := getattr(sys.modules.get(name), "__version__", None))
        )
        return (
            f"{super().__str__() or 'an invariant of the compiler is broken'}\n"
            "This is a bug in olac, or in a pass, op or lifting that was registered with it: "
            f"report this message with the model's code ({versions})."
        )
