"""How much each client may store and ask for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from olac.serving.store import QUEUED, RUNNING, Store

SETS = 64
"""Most sets of ciphertexts in a job, unless a server says otherwise."""


@dataclass(frozen=True)
class Quotas:
    """Limits of one client, unless they say otherwise.

    Attributes:
        sets: of ciphertexts in one job, each of as many images as share ciphertexts in the program.
        jobs: that wait or run.
        all_jobs: that wait or run, of all clients.
        stored_bytes: of keys, inputs and results.
        key_pairs: with keys on the server.
        uploads: bodies on their way at once.
        keep_seconds: after which jobs that have ended are forgotten.
    """

    sets: int = SETS
    jobs: int = 100
    all_jobs: int = 10_000
    stored_bytes: float = 64e9
    key_pairs: int = 16
    uploads: int = 8
    keep_seconds: float = 7 * 86400.0


class QuotaError(Exception):
    """A client asks for more than it may have.

    Attributes:
        later: whether it may have it later, without deleting anything.
    """

    def __init__(self, text: str, later: bool) -> None:
        super().__init__(text)
        self.later = later


class Reservations:
    """Counts bodies on their way against quotas, so that several at once don't exceed them together."""

    def __init__(self, store: Store, quotas: Quotas) -> None:
        self.quotas = quotas
        self._store = store
        self._lock = threading.Lock()
        self._bytes: Counter[str] = Counter()
        self._uploads: Counter[str] = Counter()
        self._jobs: Counter[str] = Counter()

    @contextmanager
    def key(self, owner: str, identity: str, size: int) -> Iterator[None]:
        """Room for a part of keys; `QuotaError` if there is none."""
        held = self._store.identities(owner)
        if identity not in held and len(held) >= self.quotas.key_pairs:
            raise QuotaError(
                f"there are keys of {len(held)} key pairs, which is the quota. Delete those of one that is not needed.",
                False,
            )
        with self._body(owner, size):
            yield

    @contextmanager
    def job(self, owner: str, size: int) -> Iterator[None]:
        """Room for a job; `QuotaError` if there is none."""
        with self._lock:
            counts, everyone = self._store.counts(owner), self._store.counts()
            own = counts[QUEUED] + counts[RUNNING] + self._jobs[owner]
            if own >= self.quotas.jobs:
                raise QuotaError(f"{own} jobs wait or run, which is the quota. Wait for some of them.", True)
            if everyone[QUEUED] + everyone[RUNNING] + self._jobs.total() >= self.quotas.all_jobs:
                raise QuotaError("the server's queue is full. Try again later.", True)
            self._jobs[owner] += 1
        try:
            with self._body(owner, size):
                yield
        finally:
            with self._lock:
                self._jobs[owner] -= 1

    @contextmanager
    def _body(self, owner: str, size: int) -> Iterator[None]:
        with self._lock:
            if self._uploads[owner] >= self.quotas.uploads:
                raise QuotaError(f"{self._uploads[owner]} uploads are on their way, which is the quota.", True)
            stored = self._store.stored_bytes(owner) + self._bytes[owner]
            if stored + size > self.quotas.stored_bytes:
                raise QuotaError(
                    f"{stored} bytes are stored of {self.quotas.stored_bytes:.0f}, and {size} more are asked for. "
                    "Delete keys or results that are not needed.",
                    False,
                )
            self._bytes[owner] += size
            self._uploads[owner] += 1
        try:
            yield
        finally:
            with self._lock:
                self._bytes[owner] -= size
                self._uploads[owner] -= 1


__all__ = ["QuotaError", "Quotas", "Reservations"]
