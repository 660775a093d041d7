"""Records of what runs on a server take: seconds and memory of each node."""

from __future__ import annotations

from collections.abc import Callable

from olac.pages.record import RunRecord, timing_of
from olac.runtime.progress import Progress
from olac.runtime.server import Server
from olac.system.memory import GB, peak_rss_bytes
from olac.system.threads import usable_threads


class Recorder:
    """Collects what a run takes: give it as `progress` to `Server.run`, then call `record`.

    Args:
        then: called with each step as well; None for nothing.
    """

    def __init__(self, then: Callable[[Progress], None] | None = None) -> None:
        self._then = then
        self._memory: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        """A node is done."""
        self._memory[progress.node] = max(progress.memory_gb, self._memory.get(progress.node, 0.0))
        if self._then is not None:
            self._then(progress)

    def record(self, server: Server, images: int) -> RunRecord:
        """What the server's last run took. Of a run that went on from a checkpoint, that is the part after it.

        Args:
            images: of the run.
        """
        pages = server.pages
        return RunRecord(
            server.program.fingerprint,
            timing_of(
                server.last_run,
                self._memory,
                engine=server.engine_title,
                threads=usable_threads(),
                images=images,
                peak_gb=peak_rss_bytes() / GB,
                keys_held=None if pages is None else pages.capacity,
                keys_read=None if pages is None else pages.loads,
            ),
        )
