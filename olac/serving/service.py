"""All that serves one data folder, and who waits for which job."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from olac.serving.logs import event
from olac.serving.metrics import Metrics
from olac.serving.pool import Pool, Settings
from olac.serving.programs import Catalogue
from olac.serving.quotas import Quotas, Reservations
from olac.serving.store import Store
from olac.serving.tokens import Tokens

log = logging.getLogger(__name__)


class Service:
    """The parts of a server.

    Args:
        data: the folder.
        settings: of the workers.
        tokens: of the clients.
        quotas: of each client.

    Raises:
        ArtifactError: as `Store`.
    """

    def __init__(
        self, data: str | Path, settings: Settings, tokens: Tokens | None = None, quotas: Quotas | None = None
    ) -> None:
        self.store = Store(data)
        self.catalogue = Catalogue(data)
        self.tokens = tokens or Tokens()
        self.reservations = Reservations(self.store, quotas or Quotas())
        self.pool = Pool(self.store, self.catalogue, settings, self._changed)
        self.metrics = Metrics(self.store, self.pool)
        self.healthy = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def start(self) -> None:
        """Take up work; in the loop of the app."""
        self._loop = asyncio.get_running_loop()
        self.pool.start()
        self.healthy = True
        event(log, "serving", data=str(self.store.data), memory=round(self.pool.settings.memory))

    def stop(self) -> None:
        """End all workers and give the folder back."""
        self.healthy, self._loop = False, None
        self.pool.stop()
        self.store.close()

    def release(self) -> None:
        """Wake all that wait for jobs; in the loop of the app."""
        for events in list(self._waiting.values()):
            for one in events:
                one.set()

    @contextmanager
    def waiting(self, job: str) -> Iterator[asyncio.Event]:
        """An event that is set when the state of a job changes; in the loop of the app."""
        found = asyncio.Event()
        self._waiting[job].add(found)
        try:
            yield found
        finally:
            self._waiting[job].discard(found)
            if not self._waiting[job]:
                del self._waiting[job]

    def _changed(self, job: str) -> None:
        """A job's state changed; in the pool's thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake, job)

    def _wake(self, job: str) -> None:
        for one in self._waiting.get(job, ()):
            one.set()


__all__ = ["Service"]
