"""Tokens: who asks. A file has a line `name:token` for each client; the one of name `operator` sees load and metrics.

Only digests of tokens are held, and every token of the file is compared, each in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from pathlib import Path

from olac.errors import ArtifactError, plain
from olac.serving.logs import event
from olac.serving.names import RULES, is_name
from olac.system.files import Source, check_private

log = logging.getLogger(__name__)

OPERATOR = "operator"
LOCAL = "local"
"""The owner of everything on a server without tokens, which only this machine reaches."""
HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
LEAST, LEAST_HEX, LEAST_DIFFERENT = 22, 32, 8
"""Characters of 128 bits: at 6 bits each, at 4 bits each; and how many different ones a random token surely has."""
MAKE = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one."
MOST_BYTES = 1 << 22
SETTLED_SECONDS = 2.0
"""Two changes of a file that are closer than this may have the same time, so a younger file is read at each question.
"""


class Tokens:
    """The names of clients by their tokens.

    Args:
        tokens: by name; without any, everybody is `LOCAL` and operator.

    Raises:
        ValueError: a name or a token is not allowed, or a token has two names.
    """

    def __init__(self, tokens: dict[str, str] | None = None) -> None:
        self._digests: list[tuple[str, bytes]] = []
        for name, token in (tokens or {}).items():
            if not is_name("owner", name):
                raise ValueError(f"{name[:40]!r} can't be the name of a client: {RULES['owner']}")
            if name == LOCAL:
                raise ValueError(f"{LOCAL!r} is the name of clients without a token: choose another")
            problem = problem_of(token)
            if problem:
                raise ValueError(f"the token of {name!r} {problem}. {MAKE}")
            digest = _digest(token)
            if any(hmac.compare_digest(digest, other) for _, other in self._digests):
                raise ValueError(f"the token of {name!r} is another client's as well. {MAKE}")
            self._digests.append((name, digest))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, token: str | None) -> str | None:
        """The name that a token belongs to; None for no token or one that is not known."""
        if not self._digests:
            return LOCAL
        digest, found = _digest(token or ""), None
        for name, other in self._digests:
            if hmac.compare_digest(digest, other):
                found = name
        return found

    def is_operator(self, owner: str) -> bool:
        """Whether an owner sees load and metrics."""
        return owner == OPERATOR or not self._digests

    @staticmethod
    def load(path: str | Path) -> Tokens:
        """The tokens of a file of lines `name:token`; empty lines and lines that begin with # don't count.

        Raises:
            ArtifactError: it is missing, others may read it, it holds no token, or a line is wrong. The message holds
                no token.
        """
        return _TokenFile(path)


class _TokenFile(Tokens):
    """The tokens of a file, which is read again when it has changed; any thread may ask.

    If the file is gone or wrong, the tokens that were read last stay, and an error is logged.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._lock, self._problem = Path(path), threading.Lock(), ""
        self._version = _version_of(self._path)
        self._digests = _read(self._path)._digests

    def owner(self, token: str | None) -> str | None:
        """As of `Tokens`, by the file as it is now."""
        self._update()
        return super().owner(token)

    def _update(self) -> None:
        with self._lock:
            version = _version_of(self._path)
            if version is not None and version == self._version:
                return
            problem = ""
            try:
                digests = _read(self._path)._digests
            except ArtifactError as error:
                problem = str(error)
                if problem != self._problem:
                    event(log, f"the tokens stay as they were before: {problem}", level=logging.ERROR)
            else:
                if digests != self._digests:
                    self._digests = digests
                    event(log, "tokens were read again", clients=len(digests))
            self._version, self._problem = version, problem


def _version_of(path: Path) -> tuple[int, ...] | None:
    """Numbers that change with a file; None if there is no file, or if it may change again and keep them."""
    try:
        found = path.stat()
    except OSError:
        return None
    if time.time() - max(found.st_mtime, found.st_ctime) < SETTLED_SECONDS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> Tokens:
    """The tokens that a file holds now; see `Tokens.load`."""
    name = plain(path)
    with Source.of_file(path).open() as stream:
        check_private(stream, path, "file of tokens", "make new tokens")
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ArtifactError(f"{name}: more than {MOST_BYTES} bytes, which no file of tokens has. Check the path.")
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        owner, colon, token = (part.strip() for part in text.partition(":"))
        if not colon or owner in found:
            problem = "has no colon" if not colon else "has a name that was there before"
            raise ArtifactError(f"{name}: line {number} {problem}. Each line is name:token.")
        found[owner] = token
    if not found:
        raise ArtifactError(f"{name}: holds no token. Each line is name:token. {MAKE}")
    try:
        return Tokens(found)
    except ValueError as error:
        raise ArtifactError(f"{name}: {error}") from error


def problem_of(token: str) -> str:
    """What is wrong with a token, so that it may have less than 128 bits; empty if nothing is."""
    if set(token) - ALLOWED:
        return "has other characters than letters, digits, dashes and underscores"
    least = LEAST_HEX if not set(token) - HEX_DIGITS else LEAST
    if len(token) < least:
        return f"has {len(token)} characters, fewer than the {least} that 128 bits take"
    if len(set(token)) < LEAST_DIFFERENT:
        return "repeats a few characters, so it was not drawn at random"
    return ""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


__all__ = ["LOCAL", "OPERATOR", "Tokens", "problem_of"]
