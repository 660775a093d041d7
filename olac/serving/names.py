"""Names from outside that become parts of paths. Each is checked against a pattern before it touches one."""

from __future__ import annotations

import re
import secrets

from olac.ckks.key_list import KeyList

_PATTERNS = {
    "program": re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII),
    "owner": re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII),
    "identity": re.compile(r"[0-9a-f]{32}", re.ASCII),
    "job": re.compile(r"[0-9a-f]{32}", re.ASCII),
    "request": re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII),
}
RULES = {
    "program": "1 to 64 small letters, digits, dots, dashes and underscores, a letter or digit first",
    "owner": "1 to 64 small letters, digits, dashes and underscores, a letter or digit first",
    "identity": "32 hexadecimal digits",
    "job": "32 hexadecimal digits",
    "request": "1 to 64 letters, digits, dashes and underscores",
    "part": "rotation-STEP-LEVEL, relinearise-LEVEL or bootstraps",
}


def is_name(kind: str, text: str) -> bool:
    """Whether a text is a name of this kind, one of `RULES`."""
    if kind == "part":
        try:
            KeyList.named(text)
        except ValueError:
            return False
        return True
    return _PATTERNS[kind].fullmatch(text) is not None


def checked(kind: str, text: str) -> str:
    """The text; ValueError, with the rule, if it is no name of this kind."""
    if not is_name(kind, text):
        raise ValueError(f"{text[:40]!r} is no name of a {kind}: {RULES[kind]}")
    return text


def new_job() -> str:
    """A random name for a job."""
    return secrets.token_hex(16)
