"""Jobs in processes of a worker's, whose functions have a queue of their own there."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from pqcore import hookimpl
from pqcore.events import JobEvent
from pqcore.plugins import plugins
from pqcore.tasks import PQ, current
from pqcore.worker import Worker

LEASE = 0.9
"""The length of the lease, in seconds; the worker extends it after a third of this time."""
DSN = "TEST_PROCESS_JOBS_DSN"
"""The environment variable with the DSN, for the worker's processes."""


def finish_and_go_on(job_id: int) -> None:
    current().finish()
    time.sleep(LEASE)


if DSN in os.environ:
    # As a module that declares its queue: the worker's process imports it.
    finish_and_go_on.queue = PQ(os.environ[DSN])["jobs"]  # type: ignore[attr-defined]


class Told:
    """A plugin that records how jobs ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    @hookimpl
    def pqcore_job_succeeded(self, event: JobEvent) -> None:
        self.ends.append("succeeded")

    @hookimpl
    def pqcore_job_lost(self, event: JobEvent) -> None:
        self.ends.append("lost")


@pytest.fixture
def told() -> Iterator[Told]:
    plugin = Told()
    plugins.register(plugin)
    yield plugin
    plugins.manager.unregister(plugin)


def test_job_finished_by_its_function_in_a_process_keeps_its_success(
    dsn: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DSN, dsn)
    with PQ(dsn) as pq:
        pq.create()
        queue = pq["jobs"]
        queue.task(run_in="process")(finish_and_go_on)()
        asyncio.run(Worker(queue, burst=True, lease=LEASE).run())
    assert told.ends == ["succeeded"]
