"""Gauges of queues and periodic tasks, for Prometheus; each scrape asks the database."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pqcore.errors import ConfigurationError, PQError
from pqcore.instruments.prometheus import served_registry
from pqcore.instruments.table_figures import TableFigures, read_table_figures
from pqcore.queue import PQ
from pqcore.runner import call_sync

logger = logging.getLogger("pqcore")

GAUGES = {
    "ready": ("pqcore_jobs_ready", "Jobs that are due, and wait for a worker."),
    "scheduled": ("pqcore_jobs_scheduled", "Jobs that are not due yet."),
    "leased": ("pqcore_jobs_leased", "Jobs that are held under a lease."),
    "parked": ("pqcore_jobs_parked", "Jobs that wait for a place under a limit, or for their turn in a group."),
    "dead": ("pqcore_dead_letters", "Jobs that failed for good."),
    "oldest": ("pqcore_oldest_ready_seconds", "Seconds since the oldest ready job came due; 0 without one."),
}
"""The name and the help of each gauge; the keys are the attributes of `QueueFigures`."""


LATE = ("pqcore_periodic_late_seconds", "Seconds since the earliest tick that no worker has put; 0 without one.")
"""The name and the help of the gauge of periodic tasks."""


def gauges(figures: TableFigures) -> list[Metric]:
    """Return the gauges, with a sample for each queue or periodic task.

    Args:
        figures: The figures of the table.
    """
    made: list[Metric] = []
    for attribute, (name, text) in GAUGES.items():
        family = GaugeMetricFamily(name, text, labels=["queue"])
        for queue, found in figures.queues.items():
            family.add_metric([queue], getattr(found, attribute) or 0)
        made.append(family)
    late = GaugeMetricFamily(*LATE, labels=["queue", "task"])
    for labels, seconds in figures.late.items():
        late.add_metric(labels, seconds)
    return [*made, late]


class QueueCollector(Collector):
    """Adds gauges to a registry: the waiting jobs and dead letters of queues, and the lateness of periodic tasks.

    The database is asked at each scrape. Every process would show the same gauges, so make the collector in only one.
    While the database does not answer, the gauges are left out.

    Args:
        pq: The queues.

    Raises:
        ConfigurationError: The object is not a blocking `PQ`; a registry cannot await.
    """

    def __init__(self, pq: PQ) -> None:
        if not isinstance(pq, PQ):
            msg = f"pq is of type {type(pq).__qualname__}; give a PQ, because a registry cannot await"
            raise ConfigurationError(msg)
        self._engine = pq.engine

    def describe(self) -> Iterable[Metric]:
        """Return the gauges without samples, so that registering the collector sends no query."""
        return gauges(TableFigures())

    def collect(self) -> Iterable[Metric]:
        """Read the figures from the database, and return the gauges."""
        try:
            return gauges(call_sync(read_table_figures, self._engine))
        except PQError as exc:
            logger.warning("the metrics of queues are left out, because they cannot be read: %s", exc)
            return []


class _Known(Collector):
    def __init__(self, figures: TableFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        return gauges(self._figures)


def exposition(figures: TableFigures | None) -> bytes:
    """Return the metrics of this process and the gauges of queues, in Prometheus' text format.

    Args:
        figures: The figures of the tables; None if the database does not answer, so that the gauges are left out.
    """
    text = generate_latest(served_registry())
    if figures is None:
        return text
    own = CollectorRegistry(auto_describe=False)
    own.register(_Known(figures))
    return text + generate_latest(own)
