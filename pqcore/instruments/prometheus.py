"""Metrics for Prometheus: the numbers of jobs put and run, their outcomes, and how long they wait and run."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from pqcore.errors import ConfigurationError
from pqcore.events import JobEvent, PutEvent, ServerEvent
from pqcore.hookspecs import hookimpl
from pqcore.instruments.outcome import declared
from pqcore.plugins import plugins

logger = logging.getLogger("pqcore")

PORT = "PQCORE_PROMETHEUS_PORT"
"""The environment variable for the port, for programs whose code cannot give it."""
SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names a folder for the metrics of several processes to the client: then one process answers for
all."""
BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0)
"""The default buckets of the histograms, in seconds: jobs wait and run longer than web requests do."""


class Prometheus:
    """Counters, histograms and a gauge, by queue and task.

    A task that is not declared here has the label ``other``: rows may name anything, and each label value is a separate
    time series.

    Args:
        port: The port of the client's HTTP server; by default the value of PQCORE_PROMETHEUS_PORT, and no server
            without it.
        address: The address of the HTTP server.
        registry: The registry of the metrics; by default the client's own.
        buckets: The buckets of both histograms, in seconds.

    Raises:
        ConfigurationError: The port is invalid, or in use.
    """

    def __init__(
        self,
        port: int | None = None,
        address: str = "0.0.0.0",  # noqa: S104 - as the client does: Prometheus must reach it
        registry: CollectorRegistry | None = None,
        buckets: Sequence[float] = BUCKETS,
    ) -> None:
        port = _port_of(port)
        home = REGISTRY if registry is None else registry
        task = ("queue", "task")
        self._put = Counter("pqcore_jobs_put", "Jobs put by this process.", ("queue",), registry=home)
        self._started = Counter("pqcore_jobs_started", "Jobs started.", task, registry=home)
        self._finished = Counter("pqcore_jobs_finished", "Jobs ended.", (*task, "outcome"), registry=home)
        self._running = Gauge(
            "pqcore_jobs_running", "Jobs that run now.", task, registry=home, multiprocess_mode="livesum"
        )
        self._took = Histogram(
            "pqcore_job_duration_seconds", "How long jobs took.", task, registry=home, buckets=buckets
        )
        self._waited = Histogram(
            "pqcore_job_waiting_seconds",
            "How long due jobs waited until they began.",
            task,
            registry=home,
            buckets=buckets,
        )
        self._notifications = Gauge(
            "pqcore_notification_queue_usage",
            "How full the server's queue of notifications is, from 0 to 1.",
            registry=home,
            multiprocess_mode="livemax",
        )
        jobs = (self._put, self._started, self._finished, self._running, self._took, self._waited)
        self._metrics = (*jobs, self._notifications)
        self._home = home
        self._children: dict[tuple[Any, ...], Any] = {}
        self._server: Any = None
        if port is not None:
            try:
                self._serve(port, address)
            except BaseException:
                self.close()
                raise

    @property
    def port(self) -> int | None:
        """Return the port of the HTTP server; None without a server."""
        return None if self._server is None else int(self._server.server_port)

    def close(self) -> None:
        """Remove the metrics from the registry, and stop the HTTP server."""
        for metric in self._metrics:
            self._home.unregister(metric)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @hookimpl
    def pqcore_job_put(self, event: PutEvent) -> None:
        self._child(self._put, event.queue).inc(len(event.ids))

    @hookimpl
    def pqcore_around_run(self, event: JobEvent) -> AbstractContextManager[object]:
        running: AbstractContextManager[object] = self._child(self._running, *_labels(event)).track_inprogress()
        return running

    @hookimpl
    def pqcore_job_started(self, event: JobEvent) -> None:
        labels = _labels(event)
        self._child(self._started, *labels).inc()
        self._child(self._waited, *labels).observe(event.waited)

    @hookimpl
    def pqcore_job_succeeded(self, event: JobEvent) -> None:
        self._ended(event, "succeeded")

    @hookimpl
    def pqcore_job_retried(self, event: JobEvent) -> None:
        apart = ("snoozed", "shutdown", "unknown", "unreadable")
        self._ended(event, event.reason if event.reason in apart else "retried")

    @hookimpl
    def pqcore_job_dead(self, event: JobEvent) -> None:
        self._ended(event, "dead")

    @hookimpl
    def pqcore_job_dropped(self, event: JobEvent) -> None:
        self._ended(event, event.reason)

    @hookimpl
    def pqcore_job_lost(self, event: JobEvent) -> None:
        self._ended(event, "lost")

    @hookimpl
    def pqcore_server_seen(self, event: ServerEvent) -> None:
        self._notifications.set(event.notifications)

    def _ended(self, event: JobEvent, outcome: str) -> None:
        labels = _labels(event)
        self._child(self._finished, *labels, outcome).inc()
        if event.duration:  # without a duration, the function was not run
            self._child(self._took, *labels).observe(event.duration)

    def _child(self, metric: Any, *labels: str) -> Any:
        # `metric.labels` takes a lock and checks the labels each time, so its result is kept.
        key = (metric, labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def served_registry(self) -> CollectorRegistry:
        """Return this process's registry; if processes share a folder of metrics, return the registry of all."""
        if SHARED not in os.environ:
            return self._home
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry

    def _serve(self, port: int, address: str) -> None:
        try:
            self._server, _ = start_http_server(port, address, self.served_registry())
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE and SHARED in os.environ:
                logger.info("port %d is taken by another process, which serves the metrics of this process too", port)
                return
            msg = f"cannot serve metrics on {address}:{port}: {exc}"
            if exc.errno == errno.EADDRINUSE:
                msg += (
                    "; if several processes need it, set PROMETHEUS_MULTIPROC_DIR: then one serves the metrics of all"
                )
            raise ConfigurationError(msg) from exc


def served_registry() -> CollectorRegistry:
    """Return the registry that this process serves: the instrument's, or else the client library's default registry."""
    instrument = next((each for each in plugins.manager.get_plugins() if isinstance(each, Prometheus)), None)
    return REGISTRY if instrument is None else instrument.served_registry()


def _labels(event: JobEvent) -> tuple[str, str]:
    return event.queue, event.task if declared(event.task) else "other"


def _port_of(port: int | None) -> int | None:
    given: Any = os.environ.get(PORT) or None if port is None else port
    if given is None:
        return None
    try:
        number = int(given)
    except ValueError:
        number = -1
    if isinstance(given, bool) or not 0 <= number <= 65535:
        msg = f"port is {given!r}; give a number from 0 (any free port) to 65535"
        raise ConfigurationError(msg)
    return number
