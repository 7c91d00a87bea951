"""Expired rows that a worker deletes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from pqcore import PQ
from pqcore.testing.commands import eventually
from pqcore.worker import Worker, maintenance


async def _work_until(queue: Any, condition: Any) -> None:
    running = asyncio.create_task(Worker(queue).run())
    await asyncio.to_thread(eventually, condition)
    running.cancel()
    await asyncio.wait([running])


def test_worker_deletes_rows_that_are_older_than_they_are_kept(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_INTERVAL", 0.1)
    with PQ(dsn) as pq, psycopg.connect(dsn, autocommit=True) as eyes:
        pq.create()
        queue = pq["q"]
        queue.put_many([1, 2])
        queue.get_many(2)
        eyes.execute("UPDATE queue SET dequeued_at = dequeued_at - interval '8 days' WHERE id = 1")
        asyncio.run(_work_until(queue, lambda: eyes.execute("SELECT id FROM queue").fetchall() == [(2,)]))
        assert [one.deleted for one in pq.expiry()] == [1, 0]


def test_worker_whose_role_may_not_delete_says_so_once(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_INTERVAL", 0.05)
    name = "clerk_" + dsn.rpartition("_")[2]
    parts = urlsplit(dsn)
    with PQ(dsn) as pq, psycopg.connect(dsn, autocommit=True) as eyes:
        pq.create()
        pq["q"].put(1)
        pq["q"].get()
        eyes.execute("UPDATE queue SET dequeued_at = dequeued_at - interval '8 days'")
        eyes.execute(f"CREATE ROLE {name} LOGIN")
        eyes.execute(f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {name}")
        eyes.execute(f"GRANT DELETE ON queue_keys, queue_results, queue_dedup, queue_workers TO {name}")
        eyes.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")

        def told() -> list[str]:
            return [record.getMessage() for record in caplog.records if "cannot delete" in record.getMessage()]

        try:
            theirs = urlunsplit(parts._replace(netloc=f"{name}@{parts.hostname}:{parts.port}"))
            with PQ(theirs) as clerk, caplog.at_level(logging.WARNING):
                asyncio.run(_work_until(clerk["q"], lambda: len(told()) == 2))
            assert [each.split(": ")[1] for each in told()] == [
                "cannot delete expired rows",
                "cannot delete attempts of jobs that are gone",
            ]
            assert eyes.execute("SELECT count(*) FROM queue").fetchone() == (1,)
        finally:
            eyes.execute(f"DROP OWNED BY {name}")
            eyes.execute(f"DROP ROLE {name}")
