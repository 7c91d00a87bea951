"""A server whose notification queue is full, because a listening session stays in a transaction."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from pqcore import PQ, AsyncPQ, AsyncQueue, hookimpl, tasks
from pqcore.errors import TransientError
from pqcore.events import JobEvent, ServerEvent
from pqcore.instruments.prometheus import Prometheus
from pqcore.plugins import plugins
from pqcore.testing.commands import eventually, invoke, run
from pqcore.testing.harness import PATIENCE
from pqcore.worker import Worker, maintenance
from pqcore_backends.embedded import EmbeddedServer

FACES = [("psycopg2", PQ), ("psycopg", PQ), ("psycopg", AsyncPQ), ("asyncpg", AsyncPQ)]
TASKS: dict[Any, Any] = {PQ: tasks.PQ, AsyncPQ: tasks.AsyncPQ}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(settings={"max_notify_queue_pages": "64", "fsync": "off"}) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("ALTER DATABASE postgres SET pqcore.notify = 'always'")
        with PQ(server.dsn()) as pq:
            pq.create()
        yield server


class Full:
    """Fills the server's notification queue, and lets a test empty it."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._dsn = server.dsn()
        self._listener = psycopg.connect(self._dsn, autocommit=True)
        self._listener.execute("LISTEN somebody")
        self._listener.execute("BEGIN")
        self.pid = self._listener.info.backend_pid
        with psycopg.connect(self._dsn, autocommit=True) as filler:
            numbers = iter(range(100_000))
            with suppress(psycopg.errors.ProgramLimitExceeded):
                for number in numbers:
                    filler.execute("SELECT pg_notify('somebody', repeat('x', 7000) || %s)", [number])
        assert next(numbers, None) is not None

    def end(self) -> None:
        """End the session and its transaction, without a question about the queue, which would free its entries."""
        self._listener.close()
        with psycopg.connect(self._dsn, autocommit=True) as looking:
            there = "SELECT FROM pg_stat_activity WHERE pid = %s"
            eventually(lambda: not looking.execute(there, [self.pid]).fetchall())


@pytest.fixture
def fill(server: EmbeddedServer) -> Iterator[Callable[[], Full]]:
    made: list[Full] = []

    def filled() -> Full:
        made.append(Full(server))
        return made[-1]

    yield filled
    for full in made:
        full.end()
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_notification_queue_usage()")  # the question empties the queue
        connection.execute("TRUNCATE queue, queue_dead, queue_results")


async def maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_full_notify_queue_refuses_a_put_as_transient_until_it_has_room(
    server: EmbeddedServer, fill: Callable[[], Full], backend: str, face: Callable[..., Any]
) -> None:
    full = fill()

    async def main() -> None:
        pq = face(server.dsn(), backend=backend)
        queue = pq["jobs"]
        with pytest.raises(TransientError, match="queue of notifications is full"):
            await maybe(queue.put(1))
        with pytest.raises(TransientError, match="queue of notifications is full"):
            await put_in_block(queue)
        full.end()
        with pytest.raises(TransientError):  # this makes the server free entries
            await maybe(queue.put(1))
        await maybe(queue.put(2))
        assert [job.data for job in await maybe(queue.get_many(5))] == [2]
        await maybe(pq.close())

    asyncio.run(main())


async def put_in_block(queue: Any) -> None:
    if isinstance(queue, AsyncQueue):
        async with queue:
            await queue.put(1)
    else:
        with queue:
            queue.put(1)


class Observer:
    """A plugin that records how full the queue is, and how jobs end."""

    def __init__(self) -> None:
        self.usage: list[float] = []
        self.lost: list[int] = []

    @hookimpl
    def pqcore_server_seen(self, event: ServerEvent) -> None:
        self.usage.append(event.notifications)

    @hookimpl
    def pqcore_job_lost(self, event: JobEvent) -> None:
        self.lost.append(event.job.id)


@pytest.fixture
def observer() -> Iterator[Observer]:
    made = Observer()
    plugins.register(made)
    yield made
    plugins.manager.unregister(made)


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_full_notify_queue_delays_completions_until_it_has_room(
    server: EmbeddedServer,
    fill: Callable[[], Full],
    observer: Observer,
    backend: str,
    face: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_INTERVAL", 0.2)
    ran: list[str] = []

    async def until(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    async def main() -> None:
        pq: Any = TASKS[face](server.dsn(), backend=backend)
        queue: Any = pq["jobs"]

        def kept(job_id: int) -> str:
            ran.append("kept")
            return "the result"

        def flaky(job_id: int) -> None:
            ran.append("flaky")
            if ran.count("flaky") == 1:
                raise RuntimeError("the first time it fails")

        keeping, retrying = queue.task(keep_result="1h")(kept), queue.task(max_retries=3, retry_in=0)(flaky)
        handles = [await maybe(keeping()), await maybe(retrying())]
        full = fill()
        worker = Worker(queue, poll_interval=0.1)
        working = asyncio.create_task(worker.run())
        await until(lambda: sum("refused the outcome of job" in record.message for record in caplog.records) >= 4)
        await until(lambda: observer.usage)
        full.end()
        await until(lambda: ran.count("flaky") == 2)
        await until(lambda: not worker._worker_state.is_busy())  # a call that blocks would stop the worker's event loop
        assert await maybe(handles[0].result(PATIENCE)) == "the result"
        worker.stop()
        await working
        assert await maybe(queue.dead.count()) == 0
        assert [await maybe(handle.status()) for handle in handles] == ["done", "done"]
        await maybe(pq.close())

    asyncio.run(main())
    assert sorted(ran) == ["flaky", "flaky", "kept"]
    assert observer.lost == []
    assert observer.usage[0] > 0.9
    assert "% full" in caplog.text


def test_full_notify_queue_is_shown_by_doctor_and_top(server: EmbeddedServer, fill: Callable[[], Full]) -> None:
    full = fill()
    done = invoke("doctor", "--json", "--dsn", server.dsn())
    [found] = [one for line in done.stdout.splitlines() if (one := json.loads(line))["check"] == "notifications"]
    assert found["level"] == "problem"
    assert found["details"]["usage"] > 0.9
    assert found["details"]["pid"] == full.pid
    assert f"pg_terminate_backend({full.pid})" in found["advice"]
    assert json.loads(run("top", "--once", "--json", "--dsn", server.dsn()).stdout)["notification_queue_usage"] > 0.9
    assert "notification queue 100 % full" in run("top", "--once", "--dsn", server.dsn()).stdout
    full.end()
    done = invoke("doctor", "--json", "--dsn", server.dsn())
    [found] = [one for line in done.stdout.splitlines() if (one := json.loads(line))["check"] == "notifications"]
    assert found["level"] == "ok"


def test_notify_queue_usage_is_a_prometheus_metric() -> None:
    registry = CollectorRegistry()
    plugin = Prometheus(registry=registry)
    plugin.pqcore_server_seen(ServerEvent("jobs", 0.25))
    assert registry.get_sample_value("pqcore_notification_queue_usage") == 0.25
    plugin.close()
    assert registry.get_sample_value("pqcore_notification_queue_usage") is None
