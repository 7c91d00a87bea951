"""Gauges of queues for Prometheus: from a collector, and from a worker's health address."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pqcore import AsyncPQ, tasks
from pqcore.errors import ConfigurationError
from pqcore.instruments import queue_metrics
from pqcore.tasks import PQ
from pqcore.testing.commands import eventually
from pqcore.testing.harness import PATIENCE
from pqcore.testing.proxy import Proxy
from pqcore.worker import Worker, health

WANTED = {
    "pqcore_jobs_ready": 2.0,
    "pqcore_jobs_scheduled": 1.0,
    "pqcore_jobs_leased": 1.0,
    "pqcore_jobs_parked": 1.0,
    "pqcore_dead_letters": 1.0,
}


TICKS = """
INSERT INTO queue_ticks (q_name, name, tick, cron, tz) VALUES
  ('mails', 'late', date_trunc('minute', now()) - interval '10 minutes', '* * * * *', 'UTC'),
  ('mails', 'punctual', now(), '0 0 1 1 *', 'UTC'), ('mails', 'older', now() - interval '1 day', NULL, NULL),
  ('mails', 'unreadable', now() - interval '1 day', 'whenever', 'UTC')"""


def fill(pq: PQ) -> None:
    """Give one queue jobs in each state."""
    queue = pq["mails"]
    queue.put({"function": "nowhere", "args": 1})  # no call: it dies
    asyncio.run(Worker(queue, burst=True).run())
    queue.put("leased")
    assert queue.lease("1m") is not None
    for _ in range(2):
        queue.put("limited", limits={"one": 1})
    queue.put("ready")
    queue.put("later", schedule_at="1h")


def samples(text: str) -> dict[str, float]:
    """Return the samples of the queue, by name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels == {"queue": "mails"}
    }


def late(text: str) -> dict[str, float]:
    """How late periodic tasks of the queue are, by the name."""
    return {
        sample.labels["task"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "pqcore_periodic_late_seconds"
    }


def add_ticks(dsn: str) -> None:
    """Store periodic tasks: one that is late, one that is not, and some whose expression cannot be read."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(TICKS)


def test_queue_collector_tells_depth_age_and_dead_letters(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    with closing(Proxy(dsn)) as proxy, PQ(proxy.dsn) as pq:
        registry.register(queue_metrics.QueueCollector(pq))  # sends no statement, because there is no table
        pq.create()
        fill(pq)
        add_ticks(dsn)
        text = generate_latest(registry).decode()
        assert late(text)["punctual"] == 0
        assert 540 <= late(text).pop("late") < 600 + PATIENCE
        assert late(text).keys() == {"late", "punctual"}
        found = samples(generate_latest(registry).decode())
        assert 0 <= found.pop("pqcore_oldest_ready_seconds") < PATIENCE
        assert found == WANTED
        proxy.close()
        proxy.cut()
        assert samples(generate_latest(registry).decode()) == {}
    assert "the metrics of queues are left out" in caplog.text


AN_HOUR_AHEAD = """
CREATE SCHEMA ahead;
CREATE FUNCTION ahead.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql
AS $$ SELECT pg_catalog.statement_timestamp() + interval '1 hour' $$"""


def test_queue_collector_tells_how_late_tasks_are_by_the_servers_clock(dsn: str) -> None:
    with PQ(dsn) as pq:
        pq.create()
    add_ticks(dsn)
    with psycopg.connect(dsn) as connection:
        connection.execute(AN_HOUR_AHEAD)
    registry = CollectorRegistry()
    with PQ(f"{dsn}?options=-csearch_path%3Dahead,pg_catalog,public") as pq:
        registry.register(queue_metrics.QueueCollector(pq))
        assert 3_600 + 540 <= late(generate_latest(registry).decode())["late"] < 3_600 + 600 + PATIENCE


def test_queue_collector_refuses_an_async_pq(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="pq is of type AsyncPQ; give a PQ"):
        queue_metrics.QueueCollector(AsyncPQ(dsn))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
def test_health_of_a_worker_has_metrics_of_its_queues(
    dsn: str, backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "FIGURES_FRESH", 0.0)
    monkeypatch.setattr(health, "READY_TIMEOUT", 2.0)
    face: Any = tasks.AsyncPQ if backend == "asyncpg" else PQ

    async def scenario(proxy: Proxy) -> None:
        other = face(proxy.dsn, backend=backend)
        worker = Worker(other["others"], health="127.0.0.1:0", stall_timeout=1.0)
        run = asyncio.create_task(worker.run())
        address = await asyncio.to_thread(eventually, lambda: worker.health_address)
        text = await asyncio.to_thread(scraped, address)
        found = samples(text)
        assert 0 <= found.pop("pqcore_oldest_ready_seconds") < PATIENCE
        assert found == WANTED
        assert 'pqcore_jobs_ready{queue="others"} 0.0' in text
        assert late(text)["late"] > 500
        assert "python_info" in text
        proxy.stall(new=True)
        monkeypatch.setattr(health, "READY_TIMEOUT", 0.1)
        text = await asyncio.to_thread(scraped, address)
        assert "pqcore_jobs_ready" not in text
        assert "python_info" in text
        proxy.resume()
        worker.stop()
        await asyncio.wait_for(run, PATIENCE)
        closed = other.close()
        if backend == "asyncpg":
            await closed

    with PQ(dsn) as pq, closing(Proxy(dsn)) as proxy:
        pq.create()
        fill(pq)
        add_ticks(dsn)
        caplog.set_level(logging.CRITICAL, "pqcore")
        asyncio.run(scenario(proxy))


def scraped(address: str) -> str:
    """What a scrape gets."""
    with urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())
