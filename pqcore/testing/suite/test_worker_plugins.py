"""The events that a worker reports to plugins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from pqcore import hookimpl
from pqcore.events import JobEvent
from pqcore.plugins import plugins
from pqcore.tasks import Discard, Retry, Snooze
from pqcore.testing.harness import Harness
from pqcore.testing.probes import Notes


class Spy:
    """A plugin that takes notes."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self.seen = Notes()

    def _note(self, hook: str, event: JobEvent) -> None:
        if event.queue == self._queue:
            error = None if event.error is None else type(event.error).__name__
            self.seen.add((hook, event.job.id, error, event.delay, event.reason))
            assert event.task.endswith(event.job.decode()["function"])
            assert event.waited >= 0
            assert (event.duration > 0) == (hook != "started")

    @hookimpl
    async def pqcore_job_started(self, event: JobEvent) -> None:
        await asyncio.sleep(0)  # the hook's result is awaited
        self._note("started", event)

    @hookimpl
    async def pqcore_job_succeeded(self, event: JobEvent) -> None:
        await asyncio.sleep(0)
        self._note("succeeded", event)

    @hookimpl
    def pqcore_job_failed(self, event: JobEvent) -> None:
        self._note("failed", event)

    @hookimpl
    def pqcore_job_retried(self, event: JobEvent) -> None:
        self._note("retried", event)

    @hookimpl
    def pqcore_job_dead(self, event: JobEvent) -> None:
        self._note("dead", event)

    @hookimpl
    def pqcore_job_dropped(self, event: JobEvent) -> None:
        self._note("dropped", event)


class Broken:
    """A plugin that fails each time."""

    @hookimpl
    def pqcore_job_started(self, event: JobEvent) -> None:
        raise ZeroDivisionError

    pqcore_job_succeeded = pqcore_job_failed = pqcore_job_retried = pqcore_job_started
    pqcore_job_dead = pqcore_job_dropped = pqcore_around_run = pqcore_job_started


@contextmanager
def registered(*some: object) -> Iterator[None]:
    for plugin in some:
        plugins.register(plugin)
    try:
        yield
    finally:
        for plugin in some:
            plugins.manager.unregister(plugin)


def test_plugins_receive_the_outcome_of_jobs(harness: Harness) -> None:
    queue = harness.task_queue(harness.schema)
    spy = Spy(harness.schema)

    @queue.task()
    def well(job_id: int) -> None: ...

    @queue.task(max_retries=1, retry_in="1h")
    def badly(job_id: int) -> None:
        raise KeyError

    @queue.task()
    async def for_good(job_id: int) -> None:
        raise KeyError

    @queue.task()
    def later(job_id: int) -> None:
        raise Snooze("2h")

    @queue.task(max_retries=1)
    def again(job_id: int) -> None:
        raise Retry("3h")

    @queue.task()
    async def never(job_id: int) -> None:
        raise Discard("no use")

    calls = [task.call() for task in (well, badly, for_good, later, again, never)]
    a, b, c, d, e, f = map(int, queue.put_calls(*calls))
    with registered(spy, Broken()):
        harness.drain(queue, concurrency=1)
    told = {job: [item for item in spy.seen.items if item[1] == job] for job in (a, b, c, d, e, f)}
    assert told == {
        a: [("started", a, None, None, ""), ("succeeded", a, None, None, "")],
        b: [
            ("started", b, None, None, ""),
            ("failed", b, "KeyError", 3600.0, "failed"),
            ("retried", b, "KeyError", 3600.0, "failed"),
        ],
        c: [
            ("started", c, None, None, ""),
            ("failed", c, "KeyError", None, "failed"),
            ("dead", c, "KeyError", None, "failed"),
        ],
        d: [("started", d, None, None, ""), ("retried", d, "Snooze", 7200.0, "snoozed")],
        e: [
            ("started", e, None, None, ""),
            ("failed", e, "Retry", 10800.0, "failed"),
            ("retried", e, "Retry", 10800.0, "failed"),
        ],
        f: [("started", f, None, None, ""), ("dropped", f, "Discard", None, "discarded")],
    }
    # Everything happened as it does without plugins.
    waiting = harness.sql("SELECT id FROM {table} WHERE dequeued_at IS NULL ORDER BY id")
    assert [row[0] for row in waiting] == [b, d, e]
    assert [letter.id for letter in queue.dead.list()] == [c]
