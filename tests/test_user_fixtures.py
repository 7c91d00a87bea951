"""The fixtures for users' tests: an isolated queue, assertions, jobs that run inline, time travel."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from urllib.parse import urlsplit, urlunsplit
from zoneinfo import ZoneInfo

import psycopg
import psycopg2
import pytest

import pqcore
from pqcore import hookimpl
from pqcore.db.dsn import with_options
from pqcore.errors import (
    AccessDenied,
    Closed,
    ConfigurationError,
    ConnectionLost,
    DeserializationError,
    JobNotFound,
    PQError,
    ResultNotStored,
    TransientError,
    UnknownTask,
)
from pqcore.events import JobEvent
from pqcore.plugins import plugins
from pqcore.tasks import PQ, AsyncPQ, Dedup, Discard, Fixed, Queue, Retry, Snooze, current
from pqcore.testing.databases import OURS, Databases
from pqcore.testing.jobs import Isolated, Jobs, Ran
from pqcore.testing.portal import Portal
from pqcore.worker import Worker

ROOT = Path(__file__).parent.parent
NOWHERE = "postgresql://postgres@127.0.0.1:1/nowhere"


@pytest.fixture
def queue(pqcore_pq: PQ) -> Queue:
    return pqcore_pq["emails"]


@pytest.fixture
def databases(pqcore_server: str) -> Iterator[Databases]:
    with Databases(pqcore_server) as made:
        yield made


def isolated(databases: Databases) -> Isolated:
    return Isolated(lambda: databases)


def sql(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def quietly(jobs: Jobs, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement on a connection with the fixtures' application name, so that its late end does not matter."""
    return sql(with_options(jobs.dsn, application_name=OURS), statement)


def told(ran: list[Ran]) -> list[tuple[Any, ...]]:
    return [run.args for run in ran]


# Isolation


@pytest.mark.parametrize("turn", range(3))
def test_fixture_gives_each_test_an_empty_queue_and_ids_from_1(pqcore_pq: PQ, pqcore_jobs: Jobs, turn: int) -> None:
    assert pqcore_jobs.enqueued() == []
    assert [pqcore_pq["emails"].put(number) for number in range(turn + 1)] == list(range(1, turn + 2))


def test_database_of_a_test_is_reset_and_used_again(databases: Databases) -> None:
    seen = []
    for _ in range(2):
        with isolated(databases) as jobs:
            pq = jobs.pq(retention="archive")
            queue = pq.queue("q", rate="5/1m")

            @queue.task(keep_result="1h", max_retries=0)
            def work(job_id: int, fail: bool) -> None:
                if fail:
                    raise RuntimeError

            [tables] = quietly(jobs, "SELECT array_agg(relname ORDER BY 1) FROM pg_stat_user_tables")
            counts = {name: quietly(jobs, f'SELECT count(*) FROM "{name}"') for name in tables[0]}
            first, second = work(fail=False), work(fail=True)
            batch = queue.batch(work.call(fail=False), then=work.call(fail=False))
            jobs.drain(queue, raise_errors=False)
            queue.put(1, dedup=Dedup("key", until="1h"), limits={"all": 1})
            queue.lease()
            seen.append((jobs.dsn, counts, first, second, batch.id, len(queue.dead.list())))
            filled = {name for name in tables[0] if quietly(jobs, f'SELECT 1 FROM "{name}" LIMIT 1')}
            assert filled >= {"queue", "queue_archive", "queue_dead", "queue_dedup", "queue_rates", "queue_keys"}
    assert seen[0] == seen[1]
    assert all(count == [(0,)] for name, count in seen[0][1].items() if name != "pqcore_migrations")


def test_database_is_reused_after_jobs_were_put_and_taken(databases: Databases) -> None:
    with isolated(databases) as jobs:
        dsn = jobs.dsn
        jobs.pq()["q"].put(1)
    with isolated(databases) as jobs:
        assert jobs.dsn == dsn


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE orders (id bigint)",
        "ALTER TABLE queue ADD COLUMN mine int",
        "ALTER TABLE queue ALTER COLUMN data SET NOT NULL",
        "DROP INDEX queue_ready",
        "ALTER TABLE queue DISABLE TRIGGER USER",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA mine",
        "SELECT lo_create(0)",
        "DELETE FROM pqcore_migrations",
        "DROP TABLE queue_dead",
    ],
)
def test_database_that_was_changed_is_not_used_again(databases: Databases, change: str) -> None:
    with isolated(databases) as jobs:
        dsn = jobs.dsn
        jobs.pq()["q"].put(1)
        quietly(jobs, change)
    with isolated(databases) as jobs:
        assert jobs.dsn != dsn
        jobs.pq()["q"].put(1)
        jobs.dead()


def test_database_with_open_connections_is_not_used_again(databases: Databases) -> None:
    with ExitStack() as stack:
        with isolated(databases) as jobs:
            dsn = jobs.dsn
            left = stack.enter_context(psycopg.connect(dsn))
            left.execute("LOCK TABLE queue")  # the lock would prevent deleting the rows
        with isolated(databases) as jobs:
            assert jobs.dsn != dsn
        with pytest.raises(psycopg.OperationalError):
            left.execute("SELECT 1")


def test_worker_left_running_takes_no_job_of_the_next_test(databases: Databases) -> None:
    taken: list[Any] = []
    ended = threading.Event()

    def take(queue: Queue) -> None:
        try:
            while True:
                taken.append(queue.get(timeout=10))
        except (Closed, ConnectionLost):  # as it is looking, or later
            ended.set()

    with isolated(databases) as jobs:
        queue = jobs.pq(poll_interval=0.01)["q"]
        queue.put("mine")
        threading.Thread(target=take, args=[queue], daemon=True).start()
    assert ended.wait(20)
    with isolated(databases) as jobs:
        jobs.pq()["q"].put("other")
        assert len(jobs.enqueued()) == 1
    assert [job.data for job in taken if job is not None] in ([], ["mine"])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_leaves_the_databases_to_its_parent(databases: Databases) -> None:
    isolated = Isolated(lambda: databases)
    with isolated as jobs:
        queue = jobs.pq()["emails"]
        queue.put("parent")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                queue.put("child")
                isolated.__exit__()  # as pytest does if the child does not call os._exit
                databases.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert [job.data for job in queue.get_many(5)] == ["parent", "child"]
    with isolated as jobs:
        assert jobs.pq()["emails"].count() == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forked_child_cannot_use_its_parents_portal() -> None:
    portal = Portal()
    child = os.fork()
    if child == 0:
        try:
            portal.call(partial(asyncio.sleep, 0))
        except RuntimeError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    portal.close()


def test_fixture_tables_of_other_names_and_schemas_are_made_once(databases: Databases) -> None:
    dsns = set()
    for _ in range(2):
        with isolated(databases) as jobs:
            for options in ({"table": "jobs"}, {"table": "jobs", "schema": "other"}, {}):
                assert jobs.pq(**options)["q"].put(1) == 1
            assert len(jobs.enqueued()) == 3
            dsns.add(jobs.dsn)
    assert len(dsns) == 1


def test_table_made_while_jobs_exist_is_reset_with_them(databases: Databases) -> None:
    with isolated(databases) as jobs:
        dsn = jobs.dsn
        jobs.pq()["q"].put(1)
        jobs.pq(table="later")["q"].put(1)
    with isolated(databases) as jobs:
        assert (jobs.dsn, jobs.enqueued(jobs.pq()), jobs.enqueued(jobs.pq(table="later"))) == (dsn, [], [])


def test_table_made_after_a_change_does_not_hide_the_change(databases: Databases) -> None:
    with isolated(databases) as jobs:
        dsn = jobs.dsn
        quietly(jobs, "CREATE TABLE mine ()")
        jobs.pq(table="later")["q"].put(1)
    with isolated(databases) as jobs:
        assert jobs.dsn != dsn
        jobs.pq(table="later")["q"].put(1)


PREPARED = """
CREATE TABLE country (code text PRIMARY KEY);
INSERT INTO country VALUES ('de'), ('fr');
CREATE TABLE customer (id serial PRIMARY KEY, country text REFERENCES country);
CREATE TABLE "Order" (id serial PRIMARY KEY, customer int REFERENCES customer, of int REFERENCES "Order");
CREATE SEQUENCE numbers START 100;
SELECT nextval('numbers');
"""


def test_database_reset_includes_tables_of_the_application(pqcore_server: str) -> None:
    calls: list[str] = []

    def prepare(dsn: str) -> None:
        calls.append(dsn)
        sql(dsn, PREPARED)

    dsns = set()
    with Databases(pqcore_server, prepare) as databases:
        for _ in range(2):
            with isolated(databases) as jobs:
                with jobs.pq()["q"] as cursor:
                    cursor.execute("INSERT INTO customer (country) VALUES ('de') RETURNING id")
                    assert cursor.fetchone() == (1,)
                    cursor.execute('INSERT INTO "Order" (customer, of) VALUES (1, 1)')
                    cursor.execute("SELECT nextval('numbers'), (SELECT count(*) FROM country)")
                    assert cursor.fetchone() == (101, 2)
                    jobs.pq()["q"].put({"order": 1})
                dsns.add(jobs.dsn)
        assert len(dsns) == len(calls) == 1
        for change in ("INSERT INTO country VALUES ('es')", "UPDATE country SET code = 'nl' WHERE code = 'fr'"):
            with isolated(databases) as jobs:
                quietly(jobs, change)
            with isolated(databases) as jobs:
                assert quietly(jobs, "SELECT code FROM country ORDER BY 1") == [("de",), ("fr",)]
                assert jobs.dsn not in dsns
                dsns.add(jobs.dsn)


def test_prepare_may_leave_a_connection_open(pqcore_server: str) -> None:
    left = []

    def prepare(dsn: str) -> None:
        left.append(psycopg.connect(dsn))
        left[0].execute("CREATE TABLE mine ()")
        left[0].commit()

    with Databases(pqcore_server, prepare) as databases:
        for _ in range(2):
            with isolated(databases) as jobs:
                assert quietly(jobs, "SELECT count(*) FROM mine") == [(0,)]
    with closing(left[0]), pytest.raises(psycopg.OperationalError):
        left[0].execute("SELECT 1")


def test_databases_are_dropped_including_those_of_a_killed_run(pqcore_server: str) -> None:
    left = "pqcore_test_1_0123abcd_7"
    sql(pqcore_server, f"CREATE DATABASE {left}")
    with Databases(pqcore_server) as one, Databases(pqcore_server) as other:
        with isolated(one) as jobs, isolated(other) as theirs:
            names = {row[0] for row in sql(pqcore_server, "SELECT datname FROM pg_database")}
            assert {urlsplit(each.dsn).path[1:] for each in (jobs, theirs)} < names
            assert left not in names
            quietly(jobs, "CREATE TABLE mine ()")  # so that the database is dropped
        with isolated(one):
            pass
    names = {row[0] for row in sql(pqcore_server, "SELECT datname FROM pg_database")}
    assert not {name for name in names if name.startswith((one.mark, other.mark))}


@pytest.fixture
def poor(pqcore_server: str) -> Iterator[Callable[[str], str]]:
    """Makes the DSN of a role that is no superuser."""
    role = f"poor_{time.time_ns()}"

    def make(may: str) -> str:
        sql(pqcore_server, f"CREATE ROLE {role} LOGIN PASSWORD 'x' {may}")
        parts = urlsplit(pqcore_server)
        place = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{role}:x@{place}"))

    yield make
    sql(pqcore_server, f"DROP ROLE {role}")


def test_role_without_createdb_raises_an_error(poor: Callable[[str], str]) -> None:
    with Databases(poor("")) as databases, pytest.raises(ConfigurationError, match="CREATEDB") as caught:
        databases.lend()
    assert isinstance(caught.value.__cause__, AccessDenied)


def test_role_with_createdb_is_sufficient(poor: Callable[[str], str]) -> None:
    dsns = set()
    with Databases(poor("CREATEDB")) as databases:
        for _ in range(2):
            with isolated(databases) as jobs:
                assert jobs.pq()["q"].put(1, "1h") == 1
                jobs.travel("1h")
                dsns.add(jobs.dsn)
        assert len(dsns) == 1
        with isolated(databases) as jobs:
            left = psycopg.connect(jobs.dsn)
        with isolated(databases) as jobs:
            assert jobs.dsn not in dsns
        left.close()


def test_jobs_on_the_callers_database_do_not_empty_it(dsn: str) -> None:
    app = PQ(NOWHERE)
    with Jobs(dsn) as jobs:
        jobs.use(app)
        app["q"].put("there")
        jobs.assert_enqueued("there")
    with Jobs(dsn) as jobs:
        assert jobs.enqueued(jobs.pq()) != []
        assert jobs.now() <= datetime.now(timezone.utc) + timedelta(minutes=1)


def test_fixture_durations_are_printed(databases: Databases, capsys: pytest.CaptureFixture[str]) -> None:
    def measure(number: int, what: Callable[[Jobs], None]) -> float:
        took = []
        for _ in range(number):
            began = time.perf_counter()
            with isolated(databases) as jobs:
                what(jobs)
            took.append((time.perf_counter() - began) * 1e3)
        return statistics.median(took)

    def used(jobs: Jobs) -> None:
        queue = jobs.pq()["q"]
        queue.put(1)
        assert queue.get().data == 1  # type: ignore[union-attr]

    def changed(jobs: Jobs) -> None:
        quietly(jobs, "CREATE TABLE mine ()")

    with capsys.disabled():
        print(f"\na database of its own: {measure(50, lambda jobs: None):.1f} ms")  # noqa: T201
        print(f"with a connection, a put and a get: {measure(50, used):.1f} ms")  # noqa: T201
        print(f"with a new copy of the template: {measure(10, changed):.1f} ms")  # noqa: T201


# Binding the application to the database


def test_application_pq_is_pointed_at_the_tests_database_and_back(databases: Databases) -> None:
    app = PQ(NOWHERE, table="work", schema="app", pool_timeout=7.0)
    queue, apart = app["emails"], app.queue("apart", retention="delete")

    @queue.task()
    def send(job_id: int, to: str) -> str:
        return to

    engine, before = queue.engine, vars(queue.engine)
    for _ in range(2):
        with isolated(databases) as jobs:
            jobs.use(app)
            jobs.use(app, queue)
            assert (send("ann"), apart.put(1)) == (1, 2)
            assert app.stats().keys() == {"apart", "emails"}
            assert queue.engine is engine
            assert engine._pool_timeout == 7.0
            assert [run.result for run in jobs.drain(queue)] == ["ann"]
    assert vars(engine) is before
    with pytest.raises(ConnectionLost):
        send("bob")


def test_use_accepts_a_queue_or_a_task_for_its_pq(pqcore_jobs: Jobs) -> None:
    for stands in ("queue", "task"):
        app = PQ(NOWHERE, table=f"of_{stands}")
        queue = app["q"]

        @queue.task()
        def work(job_id: int) -> None: ...

        pqcore_jobs.use(queue if stands == "queue" else work)
        work()
        app["another"].put(1)
        assert [job.queue for job in pqcore_jobs.enqueued()][-2:] == ["q", "another"]
        pqcore_jobs.assert_enqueued(work)


def test_use_redirects_a_pq_over_a_connection(pqcore_jobs: Jobs, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        app = PQ(connection)
        app.create()
        app["q"].put("theirs")
        with pqcore_jobs as jobs:
            jobs.use(app)
            assert jobs.enqueued() == []
            app["q"].put("the test's")
        assert [job.data for job in app["q"].peek(9)] == ["theirs"]


def test_blocking_and_async_pq_share_a_table(pqcore_jobs: Jobs) -> None:
    app, other = PQ(NOWHERE), AsyncPQ(NOWHERE)
    pqcore_jobs.use(app, other)
    app["q"].put("first")

    async def main() -> None:
        await other["q"].put("second")
        assert [job.data for job in pqcore_jobs.enqueued(other)] == ["first", "second"]

    asyncio.run(main())
    assert [job.data for job in pqcore_jobs.enqueued()] == ["first", "second"]


def test_drain_and_enqueued_refuse_a_pq_outside_the_tests_database(pqcore_jobs: Jobs) -> None:
    queue = PQ(NOWHERE)["q"]
    for ask in (pqcore_jobs.drain, pqcore_jobs.enqueued, pqcore_jobs.dead):
        with pytest.raises(ConfigurationError, match=r"jobs\.use\(\) first"):
            ask(queue)
    with pytest.raises(ConfigurationError, match="neither a queue nor a PQ"):
        pqcore_jobs.enqueued("q")
    with pytest.raises(ConfigurationError, match="give a PQ"):
        pqcore_jobs.use("q")


def test_worker_runs_on_the_tests_database(pqcore_jobs: Jobs) -> None:
    app = PQ(NOWHERE)
    queue = app["q"]
    ran = []

    @queue.task()
    def work(job_id: int) -> None:
        ran.append(job_id)

    pqcore_jobs.use(app)
    work()
    asyncio.run(Worker(queue, burst=True).run())
    assert ran == [1]


# What is there


def test_enqueued_lists_waiting_jobs(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(headers={"trace": 1}, group=lambda to, **more: to, limit=3)
    def send(job_id: int, to: str, urgent: bool = False) -> None: ...

    send("ann", urgent=True)
    send("bob", _schedule_at="1h", _expected_at="2h", _dedup="bob")
    queue.put({"plain": 1})
    queue.put("taken", expected_at=timedelta())
    assert queue.get().data == "taken"  # type: ignore[union-attr]
    queue.put("leased", expected_at=timedelta())
    assert queue.lease().data == "leased"  # type: ignore[union-attr]
    first, second, third = pqcore_jobs.enqueued(queue)
    assert (first.id, first.queue, first.task) == (1, "emails", f"{__name__}.{send.__qualname__}")  # type: ignore[attr-defined]
    assert (first.args, first.kwargs, first.state) == (("ann",), {"urgent": True}, "ready")
    assert (first.headers["trace"], first.group, first.schedule_at) == (1, "ann", None)
    assert (second.state, second.dedup_key, second.attempts, second.failures) == ("scheduled", "bob", 0, 0)
    assert second.schedule_at is not None
    assert second.expected_at is not None
    assert second.schedule_at - second.enqueued_at == timedelta(hours=1)
    assert second.expected_at - second.enqueued_at == timedelta(hours=2)
    assert (third.task, third.args, third.data) == (None, (), {"plain": 1})


def test_enqueued_includes_parked_and_retried_jobs(pqcore_jobs: Jobs, queue: Queue) -> None:
    for number in range(2):
        queue.put(number, limits={"one": 1})
    leased = queue.lease()
    assert leased is not None
    assert queue.lease(block=False) is None
    assert [(job.data, job.state) for job in pqcore_jobs.enqueued()] == [(1, "parked")]
    leased.nack("1h")
    assert {(job.data, job.attempts) for job in pqcore_jobs.enqueued()} == {(0, 1), (1, 0)}


def test_enqueued_shows_an_undecodable_row_as_stored(pqcore_jobs: Jobs, pqcore_pq: PQ) -> None:
    pqcore_pq["q/pickle"].put({1, 2})
    [row] = pqcore_jobs.enqueued(pqcore_pq["q"])
    assert isinstance(row.data, str)
    [row] = pqcore_jobs.enqueued(pqcore_pq["q/pickle"])
    assert row.data == {1, 2}


@pytest.mark.parametrize("name", ["a/b", "ünïcode", "with space", 'quo"te', "100%"])
def test_enqueued_finds_queues_of_any_name(pqcore_jobs: Jobs, name: str) -> None:
    app = PQ(NOWHERE)
    pqcore_jobs.use(app["another"])
    app.queue(name, serializer="json").put(1)
    assert [job.queue for job in pqcore_jobs.enqueued()] == [name]
    assert [job.queue for job in pqcore_jobs.enqueued(app)] == [name]


def test_assert_enqueued_compares_data_and_options(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(headers={"trace": 1})
    def send(job_id: int, *args: Any, **kwargs: Any) -> None: ...

    def undeclared() -> None: ...

    path = send.task.path
    send("ann", (1, 2), when=[3])
    queue.put({"plain": (1, 2)})
    queue.put("text")
    jobs = pqcore_jobs
    for found in (
        jobs.assert_enqueued(send),
        jobs.assert_enqueued(send.task),
        jobs.assert_enqueued(path),
        jobs.assert_enqueued(path, queue=queue),
        jobs.assert_enqueued(send.__wrapped__),  # type: ignore[attr-defined]
        jobs.assert_enqueued(send, args=["ann", [1, 2]]),
        jobs.assert_enqueued(send, args=("ann", (1, 2)), kwargs={"when": (3,)}),
        jobs.assert_enqueued(send, args=["ann", ANY], kwargs={"when": ANY}),
        jobs.assert_enqueued(args=["ann", ANY]),
        jobs.assert_enqueued(headers={"trace": 1}),
        jobs.assert_enqueued(send, times=None),
        jobs.assert_enqueued(send.call("ann", (1, 2), when=(3,))),
    ):
        assert [job.task for job in found] == [path]
    jobs.assert_enqueued({"plain": (1, 2)})
    jobs.assert_enqueued("text", queue=queue)
    jobs.assert_enqueued(times=3)
    jobs.assert_enqueued(undeclared, times=0)
    differing: list[dict[str, Any]] = [
        {"args": ["bob", ANY]},
        {"args": ["ann"]},
        {"kwargs": {}},
        {"kwargs": {"when": 4}},
        {"headers": {"trace": 2}},
        {"headers": {"other": None}},
        {"schedule_at": "1h"},
        {"times": 2},
    ]
    for criteria in differing:
        with pytest.raises(AssertionError):
            jobs.assert_enqueued(send, **criteria)
    for what in ("emails", {"plain": (1, 3)}, undeclared, object(), send.call("ann"), send.call("ann", [1, 2])):
        jobs.assert_not_enqueued(what)
        with pytest.raises(AssertionError, match="found"):
            jobs.assert_enqueued(what, times=None)
    for what in (send, "text", {"plain": [1, 2]}, ...):
        with pytest.raises(AssertionError, match="found"):
            jobs.assert_not_enqueued(what)


def test_assert_enqueued_compares_times(pqcore_jobs: Jobs, queue: Queue) -> None:
    jobs = pqcore_jobs
    when = datetime(2100, 1, 1, tzinfo=timezone.utc)
    queue.put("now")
    queue.put("in an hour", "1h", "2h")
    queue.put("then", when)
    jobs.assert_enqueued("in an hour", schedule_at="1h")
    jobs.assert_enqueued("in an hour", schedule_at=timedelta(hours=1), expected_at="2h")
    jobs.assert_enqueued("in an hour", schedule_at=jobs.now() + timedelta(minutes=60), within="1m")
    jobs.assert_enqueued("in an hour", schedule_at="50m", within="11m")
    jobs.assert_enqueued("then", schedule_at=when)
    jobs.assert_enqueued("then", schedule_at=when.replace(tzinfo=None))
    jobs.assert_enqueued(within="5m")
    jobs.assert_enqueued(within="61m", times=2)
    for criteria in (
        {"schedule_at": "59m"},
        {"schedule_at": "50m", "within": "9m"},
        {"schedule_at": when},
        {"schedule_at": "1h", "expected_at": "1h"},
        {"within": "59m"},
    ):
        jobs.assert_not_enqueued("in an hour", **criteria)
    jobs.assert_not_enqueued("now", schedule_at=timedelta())


def test_assertion_error_lists_the_enqueued_jobs(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def send(job_id: int, to: str, urgent: bool = False) -> None: ...

    with pytest.raises(AssertionError) as caught:
        pqcore_jobs.assert_enqueued(send, args=["ann"])
    assert str(caught.value) == (
        f"1 job {send.task.path} with args=['ann'] wanted in 'emails', 0 found. Enqueued there: nothing"
    )
    send("bob", urgent=True)
    queue.put({"plain": 1}, datetime(2100, 1, 1, tzinfo=timezone.utc))
    with pytest.raises(AssertionError) as caught:
        pqcore_jobs.assert_enqueued(times=3, within="1m")
    assert str(caught.value) == (
        "3 jobs with within='1m' wanted, 1 found. Enqueued there: \n"
        f"  emails #1: {send.task.path}('bob', urgent=True), ready\n"
        "  emails #2: {'plain': 1}, scheduled at 2100-01-01 00:00:00"
    )


def test_enqueued_shows_jobs_of_an_open_transaction(pqcore_jobs: Jobs, queue: Queue, pqcore_pq: PQ) -> None:
    with queue:
        queue.put("inside")
        pqcore_jobs.assert_enqueued("inside")
        pqcore_jobs.assert_enqueued("inside", queue=pqcore_pq)
    with psycopg2.connect(pqcore_jobs.dsn) as connection:
        queue.put("on theirs", connection=connection)
        pqcore_jobs.assert_enqueued("on theirs", connection=connection)
        pqcore_jobs.assert_not_enqueued("on theirs")
        connection.rollback()
    connection.close()
    with pytest.raises(ConfigurationError, match="blocking"):
        pqcore_jobs.enqueued(pqcore_jobs.async_pq()["q"], connection=connection)


def test_dead_lists_dead_letters_in_order(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def fail(job_id: int, why: str) -> None:
        raise RuntimeError(why)

    fail("first"), fail("second")
    assert [run.outcome for run in pqcore_jobs.drain(raise_errors=False)] == ["dead", "dead"]
    assert [letter.error["message"] for letter in pqcore_jobs.dead()] == ["first", "second"]
    assert [letter.reason for letter in pqcore_jobs.dead(queue)] == ["failed", "failed"]
    assert pqcore_jobs.enqueued() == []


# Running


def test_drain_runs_due_jobs_in_order_and_jobs_they_put(pqcore_jobs: Jobs, queue: Queue) -> None:
    threads = set()

    @queue.task()
    def first(job_id: int, name: str) -> str:
        threads.add(threading.get_ident())
        if name == "a":
            second("from a")
        return name.upper()

    @queue.task()
    async def second(job_id: int, name: str) -> int:
        threads.add(threading.get_ident())
        await asyncio.sleep(0)
        return current().id

    for name in "abc":
        first(name)
    first("urgent", _expected_at="1h")
    first("later", _schedule_at="1h")
    ran = pqcore_jobs.drain(queue)
    assert told(ran) == [("urgent",), ("a",), ("b",), ("c",), ("from a",)]
    assert [run.result for run in ran] == ["URGENT", "A", "B", "C", 6]
    assert {run.outcome for run in ran} == {"done"}
    assert (ran[0].task, ran[0].queue, ran[0].id, ran[0].attempt) == (first.task.path, "emails", 4, 1)
    assert threads == {threading.get_ident()}
    pqcore_jobs.assert_enqueued(args=["later"])
    assert len(pqcore_jobs.enqueued()) == 1
    assert pqcore_jobs.drain(queue) == []


def test_drain_takes_queues_in_the_given_order(pqcore_jobs: Jobs, pqcore_pq: PQ) -> None:
    low, high = pqcore_pq["low"], pqcore_pq["high"]

    @high.task()
    def urgent(job_id: int) -> None: ...

    @low.task()
    def plain(job_id: int, number: int) -> None:
        if number == 0:
            urgent()

    plain(0), plain(1)
    assert [run.queue for run in pqcore_jobs.drain(high, low)] == ["low", "high", "low"]
    plain(0), plain(1)
    assert [run.queue for run in pqcore_jobs.drain(low, high)] == ["low", "low", "high"]
    plain(0), plain(1)
    assert [run.queue for run in pqcore_jobs.drain(low)] == ["low", "low"]
    assert [run.queue for run in pqcore_jobs.drain(pqcore_pq)] == ["high"]


def test_drain_raises_the_first_exception_once_it_is_stored(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(max_retries=1, retry_in="10m")
    def fail(job_id: int, why: str) -> None:
        raise LookupError(why)

    fail("first"), fail("second")
    with pytest.raises(LookupError, match="first"):
        pqcore_jobs.drain(queue)
    waiting = {job.args: (job.failures, job.state) for job in pqcore_jobs.enqueued()}
    assert waiting == {("first",): (1, "scheduled"), ("second",): (0, "ready")}
    assert [run.outcome for run in pqcore_jobs.drain(queue, raise_errors=False)] == ["retry"]
    pqcore_jobs.assert_enqueued(fail, schedule_at="10m", within="1m", times=2)
    pqcore_jobs.travel("11m")
    ran = pqcore_jobs.drain(queue, raise_errors=False)
    assert [(run.outcome, run.reason, str(run.error), run.attempt) for run in ran] == [
        ("dead", "failed", "first", 2),
        ("dead", "failed", "second", 2),
    ]


def test_drain_runs_retries_that_are_due_immediately(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(max_retries=2, retry=Fixed(0))
    def flaky(job_id: int) -> int:
        if current().attempt < 3:
            raise RuntimeError
        return current().attempt

    flaky()
    ran = pqcore_jobs.drain(queue, raise_errors=False)
    assert [(run.outcome, run.result) for run in ran] == [("retry", None), ("retry", None), ("done", 3)]


@pytest.mark.parametrize(
    ("raised", "end", "left"),
    [
        (Snooze("1h"), "snooze", 1),
        (Discard("why"), "drop", 0),
        (KeyError("expected"), "drop", 0),
        (Retry("1h"), "retry", 1),
    ],
)
def test_drain_does_not_raise_outcomes_that_are_no_failures(
    pqcore_jobs: Jobs, queue: Queue, raised: Exception, end: str, left: int
) -> None:
    @queue.task(max_retries=1, discard_on=(KeyError,))
    def work(job_id: int) -> None:
        raise raised

    work()
    [ran] = pqcore_jobs.drain(queue)
    assert (ran.outcome, ran.error, ran.result) == (end, raised, None)
    assert (len(pqcore_jobs.enqueued()), pqcore_jobs.dead()) == (left, [])


@pytest.mark.parametrize(
    ("delay", "said"), [(1 / 3, "next attempt in 0.3 s"), ("1h", "next attempt in 3600.0 s"), (None, "in 0.0 s")]
)
def test_drain_logs_a_retry_with_its_seconds(
    pqcore_jobs: Jobs, queue: Queue, delay: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    @queue.task(max_retries=1)
    def work(job_id: int) -> None:
        if caplog.records:
            return
        raise Retry(delay)

    work()
    pqcore_jobs.drain(queue)
    assert said in caplog.text


def test_drain_raises_a_retry_if_no_retries_are_left(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def work(job_id: int) -> None:
        raise Retry("1h")

    work()
    with pytest.raises(Retry):
        pqcore_jobs.drain(queue)
    assert len(pqcore_jobs.dead()) == 1


def test_drain_raises_an_error_for_a_job_that_cannot_run(pqcore_jobs: Jobs, queue: Queue) -> None:
    queue.put({"no": "call"})
    with pytest.raises(UnknownTask, match=r"job 1 of queue 'emails' is not a call"):
        pqcore_jobs.drain(queue)
    assert [letter.reason for letter in pqcore_jobs.dead()] == ["invalid"]
    queue.put({"function": "os.system", "args": ["ls"], "kwargs": {}})
    with pytest.raises(UnknownTask, match=r"os\.system"):
        pqcore_jobs.drain(queue)
    assert [job.state for job in pqcore_jobs.enqueued()] == ["scheduled"]
    queue.clear()
    queue.put({"function": "os.system", "args": ["ls"], "kwargs": {}})
    queue.put(7)
    ran = pqcore_jobs.drain(queue, raise_errors=False)
    assert [(run.outcome, run.reason, run.task) for run in ran] == [
        ("snooze", "unknown", "os.system"),
        ("dead", "invalid", ""),
    ]


def test_drain_raises_the_error_of_an_undecodable_row(pqcore_jobs: Jobs, pqcore_pq: PQ) -> None:
    pqcore_pq["q/pickle"].put({1})
    with pytest.raises(DeserializationError):
        pqcore_jobs.drain(pqcore_pq["q"])


def test_drain_stops_after_at_most_jobs(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def again(job_id: int) -> None:
        again()

    again()
    with pytest.raises(PQError, match=r"3 jobs were run, and more are due, such as .*again"):
        pqcore_jobs.drain(queue, at_most=3)
    [left] = pqcore_jobs.enqueued()
    assert (left.id, left.state) == (4, "ready")
    assert queue.lease().crashes == 0  # type: ignore[union-attr]


def test_drain_interrupted_in_a_job_counts_no_failure(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def work(job_id: int) -> None:
        pytest.fail("seen in the function")

    work()
    with pytest.raises(pytest.fail.Exception, match="seen in the function"):
        pqcore_jobs.drain(queue)
    [left] = pqcore_jobs.enqueued()
    assert (left.state, left.failures) == ("ready", 0)
    with pytest.raises(PQError, match="no job"):
        current()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_drain_ends_at_an_interrupt_and_counts_no_failure(
    pqcore_jobs: Jobs, queue: Queue, kind: type[BaseException]
) -> None:
    @queue.task()
    def work(job_id: int) -> None:
        raise kind

    work()
    with pytest.raises(kind):
        pqcore_jobs.drain(queue, raise_errors=False)
    [left] = pqcore_jobs.enqueued()
    assert (left.state, left.failures) == ("ready", 0)


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError, BaseException])
def test_drain_counts_other_base_exceptions_as_failures(
    pqcore_jobs: Jobs, queue: Queue, kind: type[BaseException]
) -> None:
    @queue.task()
    def work(job_id: int) -> None:
        raise kind

    work()
    [ran] = pqcore_jobs.drain(queue, raise_errors=False)
    assert (ran.outcome, ran.reason) == ("dead", "failed")


def test_drain_continues_groups_limits_chains_and_batches(pqcore_jobs: Jobs, queue: Queue) -> None:
    seen: list[Any] = []

    @queue.task(limit=1, group=lambda *args: "g")
    def note(job_id: int, number: int) -> int:
        seen.append((number, current().previous))
        return number * 10

    for number in range(3):
        note(number)
    queue.chain(note.call(3), note.call(4))
    queue.batch(note.call(5), note.call(6), then=note.call(7))
    pqcore_jobs.drain(queue)
    assert seen[:5] == [(0, None), (1, None), (2, None), (3, None), (5, None)]
    assert sorted(number for number, _ in seen) == list(range(8))
    assert (4, 30) in seen
    assert seen[-1] == (7, {"batch": 1, "total": 2, "failed": 0})
    assert queue.stats().parked == 0


def test_drain_respects_a_slot_held_by_another(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(limit=1)
    def work(job_id: int) -> None: ...

    @queue.task()
    def free(job_id: int) -> None: ...

    work(), work(), work(), free()
    held = queue.lease()
    assert held is not None
    assert [run.task for run in pqcore_jobs.drain(queue)] == [free.task.path]
    held.ack()
    assert [run.id for run in pqcore_jobs.drain(queue)] == [2, 3]


def test_drain_ignores_rate_limits(pqcore_jobs: Jobs, pqcore_pq: PQ) -> None:
    queue = pqcore_pq.queue("slow", rate="1/1h")

    @queue.task()
    def work(job_id: int) -> None: ...

    work(), work(), work()
    assert len(pqcore_jobs.drain(queue)) == 3
    assert queue.rate == "1/1h"


def test_drain_stores_results_and_progress(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(keep_result="1h")
    def work(job_id: int) -> dict[str, Any]:
        current().progress(0.5)
        return {"job": job_id}

    job = work()
    [ran] = pqcore_jobs.drain(queue)
    assert job.result(0) == ran.result == {"job": 1}
    assert job.progress() == 0.5
    assert job.status() == "done"


def test_drain_raises_result_not_stored_and_completes_the_job(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(keep_result="1h")
    def work(job_id: int) -> object:
        return object()

    job = work()
    with pytest.raises(ResultNotStored, match="not JSON"):
        pqcore_jobs.drain(queue)
    assert (pqcore_jobs.dead(), job.status()) == ([], "done")


def test_drain_accepts_a_job_finished_by_its_function(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def work(job_id: int, fail: bool) -> None:
        with queue as cursor:
            cursor.execute("SELECT 1")
            current().finish()
            if fail:
                raise RuntimeError

    work(fail=False), work(fail=True)
    with pytest.raises(RuntimeError):
        pqcore_jobs.drain(queue)
    assert len(pqcore_jobs.dead()) == 1
    assert pqcore_jobs.enqueued() == []


def test_queue_of_the_front_door_is_drained_by_its_convention(pqcore_jobs: Jobs) -> None:
    app = pqcore.PQ(NOWHERE)
    pqcore_jobs.use(app)
    seen = []

    @app["q"].task()
    def greet(job: pqcore.Job, name: str) -> None:
        seen.append((type(job), job.id, name))

    job = greet("Ann")
    [ran] = pqcore_jobs.drain()
    assert (ran.id, ran.args, seen) == (job, ("Ann",), [(pqcore.Job, job, "Ann")])
    app["q"].put(1)
    with pytest.raises(UnknownTask, match="is not a call of a function: 1"):
        pqcore_jobs.drain()


def test_drain_calls_hooks_as_a_worker_does(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task(max_retries=1, retry_in=None)
    def work(job_id: int) -> None:
        if current().attempt == 1:
            raise RuntimeError

    class Listens:
        def __init__(self) -> None:
            self.heard: list[Any] = []

        @hookimpl
        def pqcore_job_started(self, event: JobEvent) -> None:
            self.heard.append(("started", event.task))

        @hookimpl
        async def pqcore_job_failed(self, event: JobEvent) -> None:
            self.heard.append(("failed", type(event.error)))

        @hookimpl
        def pqcore_job_retried(self, event: JobEvent) -> None:
            self.heard.append(("retried", event.reason))

        @hookimpl
        def pqcore_job_succeeded(self, event: JobEvent) -> None:
            self.heard.append(("succeeded", event.attempt))

    path = work.task.path
    expected = [("started", path), ("failed", RuntimeError), ("retried", "failed"), ("started", path), ("succeeded", 2)]
    for drain in (pqcore_jobs.drain, lambda **how: asyncio.run(pqcore_jobs.adrain(**how))):
        listener = Listens()
        plugins.manager.register(listener)
        try:
            work()
            drain(raise_errors=False)
        finally:
            plugins.manager.unregister(listener)
        assert listener.heard == expected


def test_drain_in_an_event_loop_runs_functions_only(pqcore_jobs: Jobs, queue: Queue) -> None:
    loops = []

    @queue.task()
    def plain(job_id: int) -> None: ...

    @queue.task()
    async def coroutine(job_id: int) -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> None:
        plain()
        assert len(pqcore_jobs.drain(queue)) == 1
        coroutine()
        with pytest.raises(ConfigurationError, match=r"await jobs\.adrain"):
            pqcore_jobs.drain(queue)
        assert len(await pqcore_jobs.adrain(queue)) == 1
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(main())


# Asynchronous queues


def test_async_queue_works_in_one_event_loop_after_another(pqcore_jobs: Jobs, pqcore_async_pq: AsyncPQ) -> None:
    queue = pqcore_async_pq["q"]

    @queue.task()
    async def add(job_id: int, a: int, b: int) -> int:
        if a > 1:
            await add(a - 1, b)
        return a + b

    async def main() -> None:
        await add(2, 2)
        pqcore_jobs.assert_enqueued(add, args=[2, 2])
        with pytest.raises(ConfigurationError, match=r"await jobs\.adrain"):
            pqcore_jobs.drain(queue)
        assert [run.result for run in await pqcore_jobs.adrain(queue)] == [4, 3]
        await add(1, 1)

    asyncio.run(main())
    pqcore_jobs.assert_enqueued(add, args=(1, 1))
    assert [run.result for run in pqcore_jobs.drain(queue)] == [2]
    assert pqcore_jobs.dead(queue) == []
    asyncio.run(main())


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
def test_async_pq_left_open_by_an_event_loop_is_closed(
    databases: Databases, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As with pytest-asyncio: while fixtures end, the loop exists, but does not run."""
    dsns = set()
    app = AsyncPQ(NOWHERE, backend=backend)
    for _ in range(2):
        with asyncio.Runner() if sys.version_info >= (3, 11) else closing(_Loop()) as runner:
            with isolated(databases) as jobs:
                jobs.use(app)
                own = jobs.async_pq(backend=backend, table="other")
                for pq in (app, own):
                    assert runner.run(pq["q"].put(1)) == 1
                    runner.run(pq["nothing"].get(timeout=0.01))  # so that it listens
                dsns.add(jobs.dsn)
            with pytest.raises(Closed):
                runner.run(own["q"].count())
    assert len(dsns) == 1
    # The driver may tell that it did not wait for the answer to a cancel request.
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING and record.name != "psycopg"]


class _Loop:
    """An `asyncio.Runner`, for Python 3.10."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.run = self._loop.run_until_complete

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@pytest.mark.parametrize("backend", ["psycopg", "asyncpg"])
def test_isolated_block_works_in_a_coroutine(databases: Databases, backend: str) -> None:
    dsns = set()

    async def main() -> None:
        for _ in range(2):
            async with isolated(databases) as jobs:
                pq = jobs.async_pq(backend=backend)
                assert await pq["q"].put(1) == 1
                await pq["nothing"].get(timeout=0.01)
                jobs.assert_enqueued(1)
                dsns.add(jobs.dsn)
        with isolated(databases) as jobs:  # nothing can be awaited when the loop ends
            pq = jobs.async_pq(backend=backend)
            await pq["q"].put(1)
            await pq["nothing"].get(timeout=0.01)
        with pytest.raises(Closed):
            await pq["q"].put(2)
        async with isolated(databases) as jobs:
            assert jobs.enqueued(jobs.async_pq()) == []

    asyncio.run(main())
    assert len(dsns) == 1


# Time


def test_travel_makes_scheduled_jobs_due(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def work(job_id: int, number: int) -> None: ...

    start = pqcore_jobs.now()
    for number, when in enumerate(["3h", "1h", "2h"]):
        work(number, _schedule_at=when)
    assert pqcore_jobs.travel("59m") >= start + timedelta(minutes=59)
    assert pqcore_jobs.drain(queue) == []
    assert pqcore_jobs.travel(timedelta(hours=1, minutes=2)) == pytest.approx(
        start + timedelta(hours=2, minutes=1), abs=timedelta(minutes=1)
    )
    assert told(pqcore_jobs.drain(queue)) == [(1,), (2,)]
    pqcore_jobs.travel(to=start + timedelta(hours=3, minutes=1))
    assert told(pqcore_jobs.drain(queue)) == [(0,)]


def test_travel_shows_times_by_the_tests_clock(pqcore_jobs: Jobs, queue: Queue) -> None:
    when = datetime(2100, 1, 1, tzinfo=timezone.utc)
    queue.put("then", when)
    queue.put("never", datetime(9999, 12, 31, 23, 59, tzinfo=timezone.utc))
    put_at = pqcore_jobs.enqueued()[0].enqueued_at
    pqcore_jobs.travel("1d")
    pqcore_jobs.assert_enqueued("then", schedule_at=when, within=0)
    assert pqcore_jobs.enqueued()[0].enqueued_at == put_at
    pqcore_jobs.assert_enqueued("never")
    pqcore_jobs.travel(to=when + timedelta(seconds=1))
    assert [job.data for job in queue.peek(9)] == ["then"]
    assert pqcore_jobs.now() - when < timedelta(minutes=1)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"by": "1h", "to": datetime(2100, 1, 1, tzinfo=timezone.utc)},
        {"to": datetime(2000, 1, 1, tzinfo=timezone.utc)},
        {"to": "1h"},
        {"by": -1},
        {"by": "soon"},
    ],
)
def test_travel_refuses_bad_arguments(pqcore_jobs: Jobs, how: dict[str, Any]) -> None:
    with pytest.raises((ConfigurationError, ValueError)):
        pqcore_jobs.travel(**how)


def test_travel_expires_leases_keys_results_deadlines_and_rates(pqcore_jobs: Jobs, pqcore_pq: PQ) -> None:
    queue = pqcore_pq["q"]

    @queue.task(keep_result="1h")
    def work(job_id: int) -> int:
        return job_id

    @queue.task(deadline="30m", schedule_at="10m")
    def hasty(job_id: int, name: str) -> str:
        return name

    slow = pqcore_pq.queue("slow", rate="1/1h")
    slow.put(1), slow.put(2)
    assert slow.lease(block=False) is not None
    assert slow.lease(block=False) is None
    result = work()
    pqcore_jobs.drain(queue)
    queue.put("held")
    job = queue.lease("5m")
    assert job is not None
    key = Dedup("key", until="1h")
    first = queue.put("keyed", "9d", dedup=key)
    hasty("first")
    pqcore_jobs.travel("20m")
    again = queue.lease()
    assert again is not None
    assert (again.id, again.crashes) == (job.id, 1)
    again.ack()
    assert [run.result for run in pqcore_jobs.drain(queue)] == ["first"]
    assert queue.put("keyed", dedup=key) == first
    assert result.result(0) == result
    hasty("second")
    pqcore_jobs.travel("50m")
    [expired] = pqcore_jobs.drain(queue)
    assert (expired.outcome, expired.reason) == ("dead", "expired")
    assert queue.put("keyed", dedup=key) != first
    with pytest.raises(JobNotFound):
        result.result(0)
    assert slow.lease(block=False) is not None


def test_travel_expires_deadlines_of_follow_ups(pqcore_jobs: Jobs, queue: Queue) -> None:
    @queue.task()
    def first(job_id: int) -> None: ...

    @queue.task(deadline="30m")
    def hasty(job_id: int) -> None: ...

    queue.chain(first.call(), first.call(), hasty.call())
    pqcore_jobs.travel("1h")
    assert [run.reason for run in pqcore_jobs.drain(queue)] == ["", "", "expired"]
    queue.dead.purge_all()
    queue.batch((first.call(), first.call()), then=hasty.call())
    pqcore_jobs.travel("1h")
    assert [run.reason for run in pqcore_jobs.drain(queue)] == ["", "", "expired"]


def test_travel_moves_every_time_of_every_table(pqcore_jobs: Jobs, pqcore_pq: PQ) -> None:
    queue = pqcore_pq.queue("q", retention="archive", rate="1/1h")

    @queue.task(keep_result="9d")
    def work(job_id: int, fail: bool) -> None:
        if fail:
            raise RuntimeError

    queue.periodic("0 0 1 1 *", kwargs={"fail": False})(work)
    queue.schedule("new year", work, cron="0 0 1 1 *", args=[False])
    queue.schedule("never", work, cron="0 0 1 1 *", args=[False])
    queue.pause_schedule("never")
    pqcore_jobs.use(queue)
    pqcore_jobs.travel(0)
    work(fail=True), work(fail=False)
    queue.batch(work.call(fail=False), work.call(fail=False, _schedule_at="9d"))
    pqcore_jobs.drain(queue, raise_errors=False)
    queue.put(1, "1d", "2d", dedup=Dedup("key", until="9d"))
    queue.put(2)
    queue.lease("5m")
    queue.put(3, "1d", after=queue.put(4, "1d"))
    for statement in (
        "INSERT INTO queue_keys (q_name, key, version, running, refilled_at) VALUES ('q', 'limit:x', 0, '{}', now())",
        "INSERT INTO queue_rules (q_name, kind, name, until) VALUES ('q', 'pause', 'limit:y', now())",
        (
            "INSERT INTO queue_workers (q_name, id, host, pid, version, tasks, concurrency, started_at, seen_at)"
            " VALUES ('q', '1', 'here', 1, '0', '[]', 1, now(), now())"
        ),
        "INSERT INTO queue_samples (at, q_name, ready) VALUES (now(), 'q', 1)",
    ):
        sql(pqcore_jobs.dsn, f"{statement} RETURNING 1")
    columns = sql(
        pqcore_jobs.dsn,
        "SELECT table_name, column_name FROM information_schema.columns WHERE data_type LIKE 'timestamp%'"
        " AND table_schema = 'public' AND table_name LIKE 'queue%'",
    )

    def times() -> dict[tuple[str, str], list[Any]]:
        found = {}
        for table, column in columns:
            condition = f"{column} < 'infinity'"  # a job that waits for others is scheduled for infinity
            rows = sql(pqcore_jobs.dsn, f"SELECT {column} FROM {table} WHERE {condition} ORDER BY ctid, 1")
            found[table, column] = sorted(row[0] for row in rows)
        return found

    before = times()
    assert {table for (table, _), found in before.items() if found} == {table for table, _ in columns}
    pqcore_jobs.travel("1d")
    moved = {where: [moment - timedelta(days=1) for moment in found] for where, found in before.items()}
    assert times() == moved


def test_travel_in_a_transaction_makes_its_jobs_due(pqcore_jobs: Jobs, queue: Queue) -> None:
    with queue:
        queue.put("inside", "1h")
        pqcore_jobs.travel("2h")
        assert [job.data for job in queue.peek()] == ["inside"]


def test_travel_waits_only_briefly_for_locked_rows(
    pqcore_jobs: Jobs, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pqcore.testing.time_travel.LOCK_TIMEOUT", "10ms")
    queue.put(1)
    with psycopg.connect(pqcore_jobs.dsn) as connection:
        connection.execute("SELECT FROM queue FOR UPDATE")
        with pytest.raises(TransientError):
            pqcore_jobs.travel("1h")
    assert pqcore_jobs.now() < datetime.now(timezone.utc) + timedelta(minutes=30)


class TestPeriodicTasks:
    """Ticks from midnight on 1 January 2100."""

    @pytest.fixture
    def jobs(self, pqcore_jobs: Jobs) -> Jobs:
        pqcore_jobs.travel(to=datetime(2100, 1, 1, tzinfo=timezone.utc))
        return pqcore_jobs

    def test_travel_puts_each_periodic_tick_at_its_time(self, jobs: Jobs) -> None:
        queue = jobs.pq()["q"]
        seen: list[Any] = []

        @queue.periodic("0 */6 * * *", args=("six",))
        @queue.task()
        def often(job_id: int, name: str) -> None:
            seen.append((name, current().job.schedule_at))

        @queue.periodic("30 6 * * *", tz="Europe/Berlin")
        @queue.task()
        def daily(job_id: int) -> None:
            seen.append(("daily", current().job.schedule_at))

        jobs.travel("18h")
        told = [(job.args or "daily", job.schedule_at) for job in jobs.enqueued()]
        day = datetime(2100, 1, 1, tzinfo=timezone.utc)
        assert told == [
            ("daily", day.replace(hour=5, minute=30)),
            (("six",), day.replace(hour=6)),
            (("six",), day.replace(hour=12)),
            (("six",), day.replace(hour=18)),
        ]
        jobs.drain(queue)
        assert [name for name, _ in seen] == ["daily", "six", "six", "six"]
        assert seen[3][1] - seen[2][1] == timedelta(hours=6)

    @pytest.mark.parametrize("steps", [1, 12])
    def test_travel_puts_each_periodic_tick_at_its_time_when_clocks_change(self, jobs: Jobs, steps: int) -> None:
        queue, berlin = jobs.pq()["q"], ZoneInfo("Europe/Berlin")

        @queue.periodic("30 12 1,15 * *", tz="Europe/Berlin")
        @queue.task()
        def twice_a_month(job_id: int) -> None: ...

        for _ in range(steps):
            jobs.travel(timedelta(days=360) / steps)
        told = [job.schedule_at.astimezone(berlin) for job in jobs.enqueued() if job.schedule_at is not None]
        assert {(tick.hour, tick.minute) for tick in told} == {(12, 30)}
        assert len(told) == 24

    def test_travel_counts_an_edited_expression_from_the_edit(self, jobs: Jobs) -> None:
        queue = jobs.pq()["q"]

        @queue.task()
        def daily(job_id: int) -> None: ...

        for cron, down in (("0 6 * * *", False), ("0 3 * * *", True)):
            queue.periodics.clear()
            queue.periodic(cron, name="daily", missed="all")(daily)
            jobs.travel("5h", down=down)
        assert jobs.enqueued() == []
        jobs.travel("1d")
        [job] = jobs.enqueued()
        assert job.schedule_at == datetime(2100, 1, 2, 3, tzinfo=timezone.utc)

    def test_travel_in_steps_puts_each_tick_once(self, jobs: Jobs) -> None:
        queue = jobs.pq()["q"]

        @queue.periodic("0 * * * *")
        @queue.task()
        def hourly(job_id: int) -> None: ...

        found = []
        for _ in range(9):
            jobs.travel("20m")
            found.append(len(jobs.drain(queue)))
        assert found == [0, 0, 1, 0, 0, 1, 0, 0, 1]

    @pytest.mark.parametrize(("missed", "number"), [("latest", 1), ("all", 3), ("skip", 0)])
    def test_travel_with_down_follows_the_missed_option(self, jobs: Jobs, missed: Any, number: int) -> None:
        queue = jobs.pq()["q"]

        @queue.periodic("0 * * * *", missed=missed)
        @queue.task()
        def hourly(job_id: int) -> None: ...

        jobs.travel("210m", down=True)
        assert len(jobs.drain(queue)) == number
        jobs.travel("1h")
        assert len(jobs.drain(queue)) == 1

    def test_travel_puts_ticks_of_an_async_queue(self, jobs: Jobs) -> None:
        queue = jobs.async_pq()["q"]

        @queue.periodic("0 * * * *")
        @queue.task()
        async def hourly(job_id: int) -> None: ...

        jobs.travel("2h")
        jobs.assert_enqueued(hourly, times=2)
        assert len(jobs.drain(queue)) == 2

    def test_travel_puts_ticks_of_a_queue_with_its_own_options(self, jobs: Jobs) -> None:
        app = PQ(NOWHERE)
        queue = app.queue("apart")

        @queue.periodic("0 * * * *")
        @queue.task()
        def hourly(job_id: int) -> None: ...

        jobs.use(app, queue)
        jobs.travel("1h")
        jobs.assert_enqueued(hourly)

    def test_travel_refuses_too_many_ticks_before_moving_anything(self, jobs: Jobs) -> None:
        queue = jobs.pq()["q"]

        @queue.periodic("* * * * * *")
        @queue.task()
        def each_second(job_id: int) -> None: ...

        before = jobs.now()
        with pytest.raises(ConfigurationError, match="down=True"):
            jobs.travel("3h")
        assert jobs.now() - before < timedelta(minutes=1)
        jobs.travel("3h", down=True)
        assert len(jobs.enqueued()) == 1

    def test_travel_leaves_later_ticks_to_a_worker(self, jobs: Jobs) -> None:
        queue = jobs.pq()["q"]
        ran: list[int] = []

        @queue.periodic("0 0 1 1 *")
        @queue.task()
        def yearly(job_id: int) -> None:
            ran.append(job_id)

        jobs.travel("400d")
        asyncio.run(Worker(queue, burst=True).run())
        assert ran == [1]
        assert jobs.enqueued() == []


# Runs of users


def run_pytest(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a user of pqcore does, in a folder of theirs."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PQCORE_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:ddtrace", "-W", "error", *arguments],
        cwd=folder,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


APP = """
from pqcore.tasks import PQ

pq = PQ("postgresql://postgres@127.0.0.1:1/nowhere")
queue = pq["default"]

@queue.task()
def work(job_id, number):
    return number * 2
"""
TESTS = """
import app, pytest

@pytest.fixture(autouse=True)
def queue(pqcore_jobs):
    pqcore_jobs.use(app.pq)

@pytest.mark.parametrize("turn", range(5))
def test_work(pqcore_jobs, turn):
    assert app.work(turn) == 1
    pqcore_jobs.assert_enqueued(app.work)
    assert [run.result for run in pqcore_jobs.drain()] == [turn * 2]

def test_async(pqcore_jobs, pqcore_async_pq):
    import asyncio
    async def main():
        assert await pqcore_async_pq["q"].put(1) == 1
    asyncio.run(main())
    pqcore_jobs.assert_enqueued(1)
"""


def test_databases_of_two_concurrent_runs_are_all_dropped(tmp_path: Path, pqcore_server: str) -> None:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "test_app.py").write_text(TESTS)
    marks: list[str] = []
    results: list[subprocess.CompletedProcess[str]] = []

    def run() -> None:
        results.append(run_pytest(tmp_path, PQCORE_TEST_DSN=pqcore_server))

    (tmp_path / "conftest.py").write_text(
        "import pathlib, pytest\n"
        "@pytest.fixture(autouse=True, scope='session')\n"
        "def told(pqcore_databases):\n"
        "    with pathlib.Path('marks').open('a') as file: file.write(pqcore_databases.mark + '\\n')\n"
    )
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert result.returncode == 0, result.stdout + result.stderr
        assert "6 passed" in result.stdout
    marks = (tmp_path / "marks").read_text().split()
    assert len(set(marks)) == 2
    names = [row[0] for row in sql(pqcore_server, "SELECT datname FROM pg_database")]
    assert not [name for name in names if name.startswith(tuple(marks))]
    assert not list(tmp_path.glob("pqcore-conformance*"))


@pytest.mark.parametrize("backend", ["psycopg2", "asyncpg"])
def test_fixtures_work_with_each_backend(tmp_path: Path, pqcore_server: str, backend: str) -> None:
    """With asyncpg alone, blocking calls use an event loop in a thread."""
    (tmp_path / "test_it.py").write_text(
        "import asyncio\n"
        "def test_it(pqcore_jobs):\n"
        "    async def main():\n"
        "        pq = pqcore_jobs.async_pq(backend='asyncpg')\n"
        "        await pq['q'].put(1, '1h')\n"
        "    asyncio.run(main())\n"
        "    pqcore_jobs.assert_enqueued(1)\n"
        "    pqcore_jobs.travel('2h')\n"
        "    assert pqcore_jobs.enqueued()[0].state == 'ready'\n"
    )
    done = run_pytest(tmp_path, PQCORE_TEST_DSN=pqcore_server, PQCORE_BACKEND=backend)
    assert done.returncode == 0, done.stdout + done.stderr


def test_plugin_imports_nothing_in_an_unrelated_run(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "import pytest\n"
        "@pytest.fixture\n"
        "def harness():\n"
        "    return 'mine'\n"
        "def test_mine(harness):\n"
        "    assert harness == 'mine'\n"
        "def test_imports():\n"
        "    found = {name for name in sys.modules if name.partition('.')[0] in ('pqcore', 'pqcore_backends')}\n"
        "    assert found == {'pqcore', 'pqcore.testing', 'pqcore.testing.plugin'}\n"
    )
    done = run_pytest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["test_it.py"]


def test_plugin_import_time_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import pytest, time; t = time.perf_counter(); import pqcore.testing.plugin; print(time.perf_counter() - t)"
    took = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    with capsys.disabled():
        print(f"\nimporting the plugin: {min(took) * 1e3:.1f} ms")  # noqa: T201


def test_package_exports_its_names_lazily() -> None:
    assert set(pqcore.__all__) <= set(dir(pqcore))
    for name in pqcore.__all__:
        assert getattr(pqcore, name) is not None
    assert pqcore.errors.PQError is PQError
    for name in ("nonsense", "__wrapped__"):
        with pytest.raises(AttributeError, match=name):
            getattr(pqcore, name)


# The document


def documented() -> dict[str, str]:
    """Return the files in docs/testing.md by name: the first line of each example is its name."""
    files: dict[str, str] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/testing.md").read_text(), re.DOTALL):
        name, _, text = block.partition("\n")
        assert re.fullmatch(r"# \w+\.py", name), name
        files[name[2:]] = files.get(name[2:], "") + "\n\n" + text
    return files


def test_document_examples_run(tmp_path: Path, pqcore_server: str) -> None:
    files = documented()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = run_pytest(tmp_path, PQCORE_TEST_DSN=pqcore_server)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = sum(len(re.findall(r"^ *(?:async )?def test_", text, re.MULTILINE)) for text in files.values())
    assert tests >= 8
    assert f"{tests} passed" in done.stdout


def test_document_examples_for_unittest_run_without_pytest(tmp_path: Path, pqcore_server: str) -> None:
    files = documented()
    for name in ("app.py", "test_unittest.py"):
        (tmp_path / name).write_text(files[name])
    (tmp_path / "pytest.py").write_text("raise ImportError('there is no pytest')\n")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "unittest", "-v", "test_unittest"],
        cwd=tmp_path,
        env={**os.environ, "PQCORE_TEST_DSN": pqcore_server},
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        _, output = run.communicate(timeout=120)
    assert run.returncode == 0, output
    assert "Ran 2 tests" in output
    names = [row[0] for row in sql(pqcore_server, "SELECT datname FROM pg_database")]
    assert not [name for name in names if name.startswith(f"pqcore_test_{run.pid}_")]


def test_document_names_every_method() -> None:
    text = (ROOT / "docs/testing.md").read_text()
    methods = [name for name in vars(Jobs) if not name.startswith("_")]
    for name in (*methods, "pqcore_jobs", "pqcore_pq", "pqcore_async_pq", "pqcore_prepare", "isolated", "dsn"):
        assert re.search(rf"[`.]{name}\b|{name}\(", text), name


def test_travel_puts_the_ticks_of_schedules(pqcore_jobs: Jobs, queue: Queue) -> None:
    seen = []

    @queue.task
    def note(job_id: int, word: str) -> None:
        seen.append(word)

    queue.schedule("daily", note, cron="@daily", args=["tick"])
    queue.schedule("paused", note, cron="@daily", args=["paused"])
    queue.pause_schedule("paused")
    pqcore_jobs.travel("3d")
    pqcore_jobs.drain(queue)
    assert seen == ["tick"] * 3
    queue.unschedule("daily")
    pqcore_jobs.travel("3d")
    pqcore_jobs.drain(queue)
    assert len(seen) == 3
