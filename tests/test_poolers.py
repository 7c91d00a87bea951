"""A pooler in transaction mode, without any setting: pqcore detects it, prepares nothing, and polls."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg2
import psycopg2.pool
import psycopg_pool
import pytest

from pooler import pooler
from pqcore import PQ
from pqcore.backend import BackendSpec
from pqcore.db import shared_poll, waiting
from pqcore.db.backend_adapter import POOLED
from pqcore.plugins import plugins
from pqcore.testing.harness import Harness

SPECS = [spec for spec in plugins.backend_specs() if spec.name in ("psycopg2", "psycopg", "asyncpg")]
TURNS = 8
"""psycopg prepares a statement after five runs."""


@pytest.fixture
def through(dsn: str) -> Iterator[str]:
    with pooler(dsn, queue.Queue) as found:  # each transaction is on another session than the last
        yield found


@pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.name}-{spec.mode}")
def harness(request: pytest.FixtureRequest, dsn: str) -> Iterator[Harness]:
    spec: BackendSpec = request.param
    made = Harness(spec, dsn)
    yield made
    made.close()


def said(caplog: pytest.LogCaptureFixture) -> int:
    return [record.message for record in caplog.records].count(POOLED)


def turn(one: Any, number: int) -> None:
    one.put(number)
    with one:
        assert one.get() is not None


def test_pooler_is_recognised_without_a_setting(
    harness: Harness, through: str, caplog: pytest.LogCaptureFixture
) -> None:
    harness.pq()
    # So that the users of the pooler also get sessions that others used before.
    several = [harness.pq(through, create=False, prepared=None)[name] for name in "abc"]
    for number in range(TURNS):
        for one in several:
            turn(one, number)
    assert said(caplog) == len(several)
    with harness.thread(lambda: several[0].get(timeout=20)) as join:
        harness.queue("a", create=False).put("late")
        assert join().data == "late"
    assert harness.waiting() == []


def test_pooler_found_by_several_threads_keeps_all_from_preparing(harness: Harness, through: str) -> None:
    harness.pq()
    one = harness.pq(through, create=False, prepared=None)["a"]

    def work() -> None:
        for number in range(TURNS):
            turn(one, number)

    harness.at_once(*[work] * 4)
    assert one.engine._opener(harness.spec).alternates


def test_prepared_argument_skips_the_pooler_check(
    harness: Harness, through: str, caplog: pytest.LogCaptureFixture
) -> None:
    harness.pq()
    for prepared in (True, False):
        one = harness.pq(through, create=False, prepared=prepared)["a"]
        one.put(1)
        assert one.engine._opener(harness.spec).prepared is prepared
    assert said(caplog) == 0


def test_pooler_check_finds_no_pooler_at_the_server_itself(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    one = harness.queue("a", prepared=None)
    for number in range(TURNS):
        turn(one, number)
    with harness.thread(lambda: one.get(timeout=20)) as join:
        harness.eventually(harness.listening)
        one.put("late")
        assert join().data == "late"
    assert said(caplog) == 0


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_pooler_behind_the_callers_pool_is_recognised(dsn: str, through: str, driver: str) -> None:
    with PQ(dsn) as pq:
        pq.create()
    if driver == "psycopg2":
        pool: Any = psycopg2.pool.ThreadedConnectionPool(1, 3, through)
    else:
        pool = psycopg_pool.ConnectionPool(through, min_size=1, max_size=3, open=True)
    with PQ(dsn) as other, PQ(pool=pool) as pq:
        for number in range(TURNS):
            turn(pq["a"], number)
            turn(other["a"], number)


@pytest.mark.parametrize("driver", [psycopg2, psycopg])
def test_pooler_behind_the_callers_connection_is_recognised(dsn: str, through: str, driver: Any) -> None:
    with PQ(dsn) as pq:
        pq.create()
    with PQ(driver.connect(through)) as pq, PQ(driver.connect(through)) as other:
        for number in range(TURNS):
            turn(pq["a"], number)
            turn(other["a"], number)
        assert pq["a"].get(timeout=0.3) is None


def test_pooler_lets_several_clients_create_one_table(harness: Harness, through: str) -> None:
    several = [harness.pq(through, create=False, prepared=None) for _ in range(4)]
    harness.at_once(*[one.create for one in several])
    several[0]["a"].put(1)
    harness.sql(f"DELETE FROM {harness.schema}.pqcore_migrations WHERE version > 2", rows=False)
    harness.at_once(*[one.create for one in several])
    here = "SELECT oid FROM pg_database WHERE datname = current_database()"
    assert not harness.sql(f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND database = ({here})")
    assert several[1]["a"].get().data == 1


def test_worker_behind_a_pooler_finds_the_next_job_of_a_released_slot(
    harness: Harness, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.pq()
    tasks = harness.tasks(through, create=False, prepared=None)["limited"]
    ran: list[int] = []

    @tasks.task(limit=3)  # type: ignore[untyped-decorator]
    async def limited(job_id: int) -> None:
        ran.append(job_id)

    ids = [int(limited()) for _ in range(20)]
    for module in (waiting, shared_poll):
        monkeypatch.setattr(module, "BLIND_POLL", 60.0)  # otherwise the next regular look would find the jobs
    with harness.working(tasks, poll_interval=60):
        harness.eventually(lambda: len(ran) == len(ids))
    assert sorted(ran) == ids
