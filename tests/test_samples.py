"""The samples of figures: that workers keep them, what roles need, and where they are shown."""

from __future__ import annotations

import asyncio
import html
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import httpx
import psycopg
import pytest

from pqcore import PQ
from pqcore.db.runtime import run_sync
from pqcore.operations.samples import Sampling, read_samples
from pqcore.testing.commands import eventually, invoke
from pqcore.web import history, web_app
from pqcore.worker import Worker, maintenance


def execute(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def rows(dsn: str, statement: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        made["a"].put_many([1, 2, 3])
        yield made


@contextmanager
def role(dsn: str, *statements: str) -> Iterator[str]:
    """The DSN of a role that may do all with the tables, except as these statements say; ``{role}`` is its name."""
    name = f"app_{time.time_ns()}"
    everything = (
        f"CREATE ROLE {name} LOGIN",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}",
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    execute(dsn, *everything, *(statement.format(role=name) for statement in statements))
    parts = urlsplit(dsn)
    try:
        yield urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}"))
    finally:
        execute(dsn, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def work_until(dsn: str, condition: Any) -> None:
    async def work() -> None:
        with PQ(dsn, backend="psycopg") as theirs:
            running = asyncio.create_task(Worker(theirs["b"]).run())
            await asyncio.to_thread(eventually, condition)
            running.cancel()
            await asyncio.wait([running])

    asyncio.run(work())


def test_worker_keeps_samples_of_all_queues(dsn: str, pq: PQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_INTERVAL", 0.05)
    work_until(dsn, lambda: rows(dsn, "SELECT FROM queue_samples WHERE q_name = 'a' AND ready = 3"))


def test_worker_whose_role_may_not_keep_samples_says_so_once(
    dsn: str, pq: PQ, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_INTERVAL", 0.02)

    def told() -> list[str]:
        return [text for text in (record.getMessage() for record in caplog.records) if "samples" in text]

    before = time.monotonic()
    with role(dsn, "REVOKE INSERT ON queue_samples FROM {role}") as theirs, caplog.at_level(logging.WARNING):
        work_until(theirs, lambda: told() and time.monotonic() > before + 0.5)
    [text] = told()
    assert "cannot keep samples of figures: " in text
    assert rows(dsn, "SELECT FROM queue_samples") == []


def test_worker_whose_role_row_security_binds_keeps_no_sample(dsn: str, pq: PQ) -> None:
    statements = ("ALTER TABLE queue ENABLE ROW LEVEL SECURITY", "CREATE POLICY of_a ON queue USING (q_name = 'a')")
    with role(dsn, *statements) as theirs, PQ(theirs, backend="psycopg") as bound:
        assert bound["a"].count() == 3
        assert run_sync(Sampling().run(bound.engine)) == 0
    assert rows(dsn, "SELECT FROM queue_samples") == []


def test_samples_have_figures_of_jobs_that_are_due_since_ever(dsn: str, pq: PQ) -> None:
    execute(dsn, "UPDATE queue SET schedule_at = '-infinity' WHERE id = 1")
    assert run_sync(Sampling().run(pq.engine)) == 1
    [sample] = run_sync(read_samples(pq.engine, "a"))
    assert (sample.queues["a"].ready, sample.queues["a"].oldest) == (3, None)


def test_doctor_warns_if_workers_keep_no_samples(dsn: str, pq: PQ) -> None:
    def found() -> str:
        return next(line for line in invoke("doctor", dsn=dsn).stdout.splitlines() if " samples " in line)

    assert "no worker has run long enough" in found()
    listed = (
        "INSERT INTO queue_workers (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at)"
        " VALUES ('a', 'w', 'h', 1, '1', '[]', 1, now() - interval '{}', now())"
    )
    execute(dsn, listed.format("9 minutes"))
    assert "no worker has run long enough" in found()
    execute(dsn, "UPDATE queue_workers SET started_at = now() - interval '11 minutes'")
    assert "workers run, but keep no samples of the figures: there is none" in found()
    run_sync(Sampling().run(pq.engine))
    assert "workers keep samples of the figures, the last" in found()
    execute(dsn, "UPDATE queue_samples SET at = at - interval '1 hour'")
    assert re.search(r"keep no samples of the figures: the last is 36\d\d s old", found())


# The web page


@contextmanager
def visiting(pq: PQ) -> Iterator[Any]:
    """A function that returns the page of queue ``a``, with the given query."""

    async def look(query: dict[str, str], path: str) -> str:
        transport = httpx.ASGITransport(web_app(pq))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            found = await client.get(f"{path}?{urlencode(query)}")
            assert found.status_code == 200
            return html.unescape(found.text)

    yield lambda path="/queue", **query: asyncio.run(look({"name": "a", **query} if path == "/queue" else {}, path))


def spread(dsn: str, minutes: int) -> None:
    """Keep a sample for each minute; the number of ready jobs is that of minutes since the first one."""
    for name in ("", "a"):
        execute(
            dsn,
            "INSERT INTO queue_samples (at, q_name, ready, scheduled, leased, parked, dead, finished, oldest, queues)"
            f" SELECT now() - n * interval '1 minute', '{name}', {minutes} - n, 0, 0, 0, 0, 7, 1, 1"
            f" FROM generate_series(0, {minutes}) AS n",
        )


def test_web_charts_show_what_workers_kept_before_anybody_looked(dsn: str, pq: PQ) -> None:
    with visiting(pq) as look:
        assert "Depth over 1.0 m" in look()
        spread(dsn, 1_400)
        assert "Depth over 3.0 h" in look()
        assert "Throughput over 3.0 h: finished 0 now" in look()
        assert re.search(r"Depth over 1[45]\.\d m", look(span="15 min"))
        day = look(span="24 h")
        assert "Depth over 23.3 h" in day
        assert '<span class="top-value">2' in day  # 1,400 jobs, so that the edge is at 2,000
        [first] = re.findall(r'<polyline class="line ready" points="([^"]+)"/>', day)[:1]
        assert len(first.split()) <= history.MOST_POINTS + 2
        assert "Depth over 3.0 h" in look(span="no")
        [spark] = re.findall(r'<svg class="spark".*?</svg>', look("/"), re.DOTALL)
        assert 5 < len(re.findall(r"[\d.]+,[\d.]+", spark)) < 4 * history.FEW_POINTS


def test_web_charts_have_a_gap_where_no_worker_ran(dsn: str, pq: PQ) -> None:
    spread(dsn, 120)
    execute(dsn, "DELETE FROM queue_samples WHERE at BETWEEN now() - interval '80 min' AND now() - interval '50 min'")
    with visiting(pq) as look:
        depth = re.search(r'aria-label="Depth.*?</svg>', look(), re.DOTALL)
        assert depth is not None
        assert depth[0].count('class="line ready"') == 2


def test_web_page_is_shown_to_a_role_that_may_not_read_samples(dsn: str, pq: PQ) -> None:
    spread(dsn, 120)
    without = "REVOKE SELECT ON queue_samples FROM {role}"
    with role(dsn, without) as theirs, PQ(theirs, backend="psycopg") as reader, visiting(reader) as look:
        assert "Depth over 1.0 m" in look()
