"""Ten thousand jobs, workers that are killed, and a server that is restarted under them."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TypeVar

import pytest

from pqcore.errors import ConnectionLost
from pqcore.plugins import plugins
from pqcore.testing.connections import Observer
from pqcore.testing.harness import Harness
from pqcore.testing.worker_pool import WorkerPool
from pqcore_backends.embedded import EmbeddedServer

T = TypeVar("T")

JOBS = int(os.environ.get("PQCORE_TEST_CHAOS_JOBS", "10000"))
KILL_EVERY = 1.0
"""Seconds between two kills."""
PATIENCE = 120
"""Seconds after which the jobs count as lost."""


class RestartedHarness(Harness):
    """A harness that replaces its own connection after the server was restarted."""

    def reconnect(self) -> None:
        with suppress(ConnectionLost):
            self._observer.close()
        self._observer = Observer(self.spec, self._dsn)


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as running:  # as durable as by default
        yield running


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("backend", "mode"), [("psycopg", "blocking"), ("asyncpg", "async")])
def test_worker_chaos_loses_no_job_and_accounts_for_every_run(server: EmbeddedServer, backend: str, mode: str) -> None:
    harness = RestartedHarness(plugins.backend_spec(backend, "async" if mode == "async" else "blocking"), server.dsn())
    rng = random.Random(1)
    restarts: list[Callable[[], None]] = [server.restart, lambda: server.restart("immediate")]
    try:
        # The functions also need the server, and fail without it.
        task = {"max_crashes": 1000, "max_retries": 1000, "retry_in": 0.2}
        with WorkerPool(harness, task, lease=3.0, concurrency=10) as crew:
            crew.queue.put_calls(*[crew.tasks["run"].call()] * JOBS)
            for child in [crew.hire() for _ in range(3)]:
                crew.at_work(child)
            over, kills = threading.Event(), 0
            while not crew.all_done():
                assert kills < PATIENCE / KILL_EVERY
                over.wait(KILL_EVERY)
                crew.kill_one(rng)
                crew.hire()
                kills += 1
                if restarts and crew.count() > JOBS / (len(restarts) + 1):
                    restarts.pop(0)()
                    harness.reconnect()
            assert restarts == [], "all was done before the server was restarted"
            assert kills >= 3
            crew.account(JOBS, failures=True)
    finally:
        harness.close()
