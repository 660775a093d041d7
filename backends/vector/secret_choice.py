"""Whose secret keys a client of the vector engine has: OpenFHE's where it loads, otherwise the engine's own."""

from __future__ import annotations

import logging

from olac.backends.base import Array, Ciphertext
from olac.backends.openfhe.session import ENGINE as OPENFHE
from olac.backends.session import OPENFHE_SECRETS, OWN_SECRETS
from olac.backends.vector.public import OwnPublic
from olac.backends.vector.ring import ring
from olac.backends.vector.secret import OwnSecret, SecretKey
from olac.ckks.parameters import Parameters
from olac.ckks.words import Words
from olac.errors import BackendError, plain
from olac.ir.types import CipherState
from olac.system.logs import warn

log = logging.getLogger(__name__)


class OpenFHESecret:
    """A secret key in OpenFHE, which encrypts and decrypts."""

    def __init__(self, parameters: Parameters, identity: str, words: Words | None = None) -> None:
        self._parameters = parameters
        self._session = OPENFHE.client(parameters, identity, words)

    def words(self) -> Words:
        return self._session.secret_words()

    def encrypt(self, slots: Array, level: int) -> Words:
        return OPENFHE.words(self._parameters, self._session.encrypt(slots, level), level)

    def decrypt(self, words: Words, state: CipherState) -> Array:
        return self._session.decrypt(Ciphertext(self._session.ciphertext(words, state.level), state))


class OpenFHEPublic:
    """A public key in OpenFHE, which encrypts."""

    def __init__(self, parameters: Parameters, identity: str, words: Words) -> None:
        self._parameters = parameters
        self._session = OPENFHE.encryptor(parameters, identity, words)

    def encrypt(self, slots: Array, level: int) -> Words:
        return OPENFHE.words(self._parameters, self._session.encrypt(slots, level), level)


def chosen_public(
    parameters: Parameters, identity: str, words: Words, secrets: str | None = None
) -> OpenFHEPublic | OwnPublic:
    """A public key of words of shape (2, limbs, N), in the code that `chosen_secret` would take.

    Raises:
        ArtifactError: words that are no residues.
        BackendError: as `chosen_secret`.
    """
    if _takes_openfhe(parameters, secrets):
        return OpenFHEPublic(parameters, identity, words)
    return OwnPublic(ring(parameters), words)


def chosen_secret(
    parameters: Parameters, identity: str, words: Words | None = None, secrets: str | None = None
) -> SecretKey:
    """A new secret key, or that of words of shape (limbs, N). This is the one place that says whose it is.

    Args:
        identity: of the key pair.
        secrets: `OPENFHE_SECRETS` or `OWN_SECRETS`; None for OpenFHE's where it loads, and otherwise the engine's own,
            with a warning.

    Raises:
        ArtifactError: words that are not those of a secret.
        BackendError: OpenFHE's are asked for and it does not load, or there are none by that name.
    """
    if _takes_openfhe(parameters, secrets):
        return OpenFHESecret(parameters, identity, words)
    return OwnSecret(ring(parameters), words)


def _takes_openfhe(parameters: Parameters, secrets: str | None) -> bool:
    """Whether OpenFHE's secrets are taken; otherwise the engine's own, with a warning if nobody asked for them."""
    if secrets not in (None, OPENFHE_SECRETS, OWN_SECRETS):
        raise BackendError(
            f"there are no secret keys by the name {plain(secrets)[:40]!r}: {OPENFHE_SECRETS} or {OWN_SECRETS}"
        )
    missing = OPENFHE.unavailable() if secrets is None else ""
    if secrets == OPENFHE_SECRETS or (secrets is None and not missing):
        return True
    parameters.check_security(earlier=True)  # OpenFHE's context does it for its own
    if missing:
        warn(
            log,
            "olac makes the secret key, encrypts and decrypts by itself, as OpenFHE can't be loaded here. This is "
            "olac's own code: it was not reviewed from outside and does not run in constant time (SECURITY.md).",
            stacklevel=3,
        )
    return False
