"""Metrics in the format of Prometheus, collected when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from olac.serving.pool import Pool
from olac.serving.store import Store

RUN_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000)


class Metrics:
    """The metrics of one server.

    Attributes:
        requests: by method, route and status.
        uploaded: bytes of keys and inputs.
    """

    def __init__(self, store: Store, pool: Pool) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_State(store, pool))
        self._runs = Histogram(
            "olac_run_seconds", "Seconds of runs, without waiting", registry=self._registry, buckets=RUN_BUCKETS
        )
        self._pool = pool
        self.requests = Counter(
            "olac_http_requests", "Requests", ("method", "route", "status"), registry=self._registry
        )
        self.uploaded = Counter("olac_uploaded_bytes", "Bytes that came in", ("what",), registry=self._registry)

    def text(self) -> bytes:
        """All of them."""
        while self._pool.counts.run_seconds:
            self._runs.observe(self._pool.counts.run_seconds.pop())
        return generate_latest(self._registry)


class _State(Collector):
    def __init__(self, store: Store, pool: Pool) -> None:
        self._store, self._pool = store, pool

    def describe(self) -> list[Metric]:
        """Nothing: the registry then asks for no metric before somebody does."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What there is now, and what happened since the start."""
        jobs = GaugeMetricFamily("olac_jobs", "Jobs by state", labels=["state"])
        for state, count in self._store.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        workers = self._pool.load()
        busy = sum(1 for one in workers if one.job)
        found = GaugeMetricFamily("olac_workers", "Processes that hold keys", labels=["state"])
        found.add_metric(["busy"], busy)
        found.add_metric(["idle"], len(workers) - busy)
        yield found
        yield GaugeMetricFamily(
            "olac_workers_memory_bytes", "Memory held back for workers", sum(one.bytes for one in workers)
        )
        yield GaugeMetricFamily("olac_memory_limit_bytes", "Memory for all workers", self._pool.settings.memory)
        counts = self._pool.counts
        for name, text, value in (
            ("olac_workers_started", "Workers that were started", counts.started),
            ("olac_workers_evicted", "Workers that made room for others", counts.evicted),
            ("olac_workers_died", "Workers that ended by themselves", counts.died),
            ("olac_jobs_done", "Jobs that have a result", counts.done),
            ("olac_jobs_failed", "Jobs that failed", counts.failed),
        ):
            yield CounterMetricFamily(name, text, value)


__all__ = ["Metrics"]
