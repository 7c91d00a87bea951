"""Default isolation levels above READ COMMITTED: pqcore's own statements ignore them, users' blocks use them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import NotSupported, TransientError
from pqcore.sql.identifiers import TableName, quote
from pqcore.testing.connections import Connection
from pqcore.testing.harness import PATIENCE, Harness
from pqcore.testing.server import with_isolation

LEVELS = ("repeatable read", "serializable")
ONE = {"limits": {"one": 1}}

_WITNESS = """
CREATE FUNCTION {witness}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO {seen} VALUES (current_setting('transaction_isolation'));
  RETURN NULL;
END $$"""
_CALLED = "CREATE TRIGGER witness AFTER INSERT OR UPDATE OR DELETE ON {} FOR EACH STATEMENT EXECUTE FUNCTION {}()"


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dsn(harness: Harness, level: str) -> str:
    """Return a DSN for connections that have the level by default."""
    return raised(harness, level)


def raised(harness: Harness, level: str) -> str:
    """Return the test's DSN, with a default isolation level."""
    harness.needs_sessions()
    dsn = with_isolation(harness.dsn, level)
    harness.needs_options(dsn, "default_transaction_isolation", level)
    return dsn


def targets(harness: Harness, dsn: str, level: str) -> Iterator[Callable[[], Any]]:
    """Return functions that make a `PQ` over connections with the level by default, one for each kind of source."""
    yield partial(harness.pq, dsn)
    connection = harness.connect()
    connection.sql(f"SET default_transaction_isolation = '{level}'", rows=False)
    yield partial(harness.pq, connection.raw)
    if Capability.POOL in harness.spec.capabilities:
        yield partial(harness.pq, pool=harness.pool(dsn=dsn))


def seen(harness: Harness) -> set[str]:
    """Return the levels at which the table and the places under limits were changed since the last call."""
    return {level for [level] in harness.sql(f"DELETE FROM {quote(harness.schema)}.seen RETURNING level")}


def watch(harness: Harness) -> None:
    """Make triggers record the level of each change."""
    schema = quote(harness.schema)
    witness, changed = f"{schema}.witness", (harness.table, TableName("queue", harness.schema).related("_slots"))
    harness.sql(f"CREATE TABLE {schema}.seen (level text)", rows=False)
    harness.sql(_WITNESS.format(seen=f"{schema}.seen", witness=witness), rows=False)
    for table in changed:
        harness.sql(_CALLED.format(table, witness), rows=False)


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Run a transaction of the user, and roll it back."""
    connection.begin()
    try:
        yield
    finally:
        connection.rollback()


def test_statements_of_pqcore_run_at_read_committed_under_any_default(harness: Harness, dsn: str, level: str) -> None:
    harness.pq()
    watch(harness)
    for make in targets(harness, dsn, level):
        queue = make()["q"]
        queue.put("plain")
        queue.put_many(range(3))
        queue.put("keyed", dedup="key")
        queue.put("limited", **ONE, group="g")
        assert queue.get().data == "plain"
        jobs = queue.lease_many(10, block=False)
        jobs.pop().nack()
        assert queue.ack_many(jobs) == []
        assert queue.get().data == "limited"
        assert seen(harness) == {"read committed"}


def test_create_joins_the_callers_transaction_under_any_default_isolation(harness: Harness, level: str) -> None:
    harness.needs_sessions()
    connection = harness.connect()
    connection.sql(f"SET default_transaction_isolation = '{level}'", rows=False)
    tables = f"SELECT 1 FROM pg_tables WHERE schemaname = '{harness.schema}'"  # the schema of this test, and empty
    with transaction(connection):
        queue = harness.queue(target=connection.raw)
        queue.put("mine")
        assert queue.get(block=False).data == "mine"
        assert connection.sql("SHOW transaction_isolation") == [(level,)]
    assert harness.sql(tables) == []


def test_concurrent_gets_succeed_under_any_default_isolation(harness: Harness, dsn: str, level: str) -> None:
    queue = harness.pq(dsn, max_connections=4)["q"]
    taken: list[int] = []

    def take() -> None:
        while (job := queue.get(block=False)) is not None:
            taken.append(job.id)

    ids = queue.put_many(range(200))
    harness.at_once(*[take] * 4)
    assert sorted(taken) == ids


def test_concurrency_limit_holds_under_any_default_isolation(harness: Harness, dsn: str) -> None:
    queue = harness.pq(dsn, max_connections=6)["q"]
    ids = queue.put_many(range(30), limits={"two": 2})
    held = most = 0
    done: list[int] = []
    lock = threading.Lock()

    def work() -> None:
        nonlocal held, most
        while len(done) < len(ids):
            job = queue.lease(60, wait=0.05)
            if job is None:
                continue
            with lock:
                held += 1
                most = max(most, held)
            with lock:
                held -= 1
            job.ack()
            done.append(job.id)

    harness.at_once(*[work] * 6)
    assert (sorted(done), most <= 2) == (ids, True)
    assert queue.stats().parked == 0


def test_workers_run_all_jobs_under_any_default_isolation(harness: Harness, dsn: str, level: str) -> None:
    pq = harness.tasks(dsn)
    queue = pq["q"]
    ran: list[int] = []

    @queue.task(limit=2, group=lambda number: f"group-{number % 3}", keep_result="1h")
    def grouped(job_id: int, number: int) -> int:
        ran.append(number)
        return number

    ids = [int(grouped(number)) for number in range(12)]
    harness.drain(queue, concurrency=4)
    assert [[number for number in ran if number % 3 == group] for group in range(3)] == [
        [0, 3, 6, 9],
        [1, 4, 7, 10],
        [2, 5, 8, 11],
    ]
    assert [queue.result(job_id, 0) for job_id in ids] == list(range(12))


def test_block_runs_at_the_isolation_level_of_the_session(harness: Harness, dsn: str, level: str) -> None:
    show = "SELECT current_setting('transaction_isolation')"
    for make in targets(harness, dsn, level):
        queue = make()["q"]
        for _ in range(2):
            with queue:
                assert harness.sql_within(queue, show) == [(level,)]
                queue.put(1)
            assert queue.get().data == 1  # an operation by itself, between two blocks


def test_block_runs_at_read_committed_by_default(harness: Harness) -> None:
    queue = harness.queue(target=harness.committed_dsn())
    with queue:
        assert harness.sql_within(queue, "SELECT current_setting('transaction_isolation')") == [("read committed",)]


def test_serializable_blocks_that_cannot_be_ordered_do_not_both_put(harness: Harness) -> None:
    queue = harness.pq(raised(harness, "serializable"))["q"]
    table = f"{quote(harness.schema)}.doctors"
    harness.sql(f"CREATE TABLE {table} AS SELECT n, true AS on_call FROM generate_series(1, 2) AS n", rows=False)
    start = threading.Barrier(2)

    def leave(number: int) -> bool:
        try:
            with queue:
                [[others]] = harness.sql_within(queue, f"SELECT count(*) FROM {table} WHERE on_call AND n <> {number}")
                start.wait(PATIENCE)
                assert others == 1
                harness.sql_within(queue, f"UPDATE {table} SET on_call = false WHERE n = {number}", rows=False)
                queue.put(number)
        except TransientError:
            return False
        return True

    assert sorted(harness.at_once(partial(leave, 1), partial(leave, 2))) == [False, True]
    assert queue.count() == 1


def test_slot_released_in_a_block_goes_to_one_job_only(harness: Harness, dsn: str) -> None:
    queue = harness.pq(dsn)["q"]
    queue.put_many([*"abcd"], limits={"two": 2})
    [first] = queue.lease_many(1, "1h", block=False)
    with queue:
        harness.sql_within(queue, "SELECT count(*) FROM {table}")  # from here on, it sees nothing newer
        with harness.thread(lambda: queue.lease_many(3, "1h", block=False)) as join:
            [second] = join()
        queue.ack(first)
    assert [job.data for job in queue.lease_many(4, "1h", block=False)] == ["c"]
    with queue:
        queue.ack(second)
    assert [job.data for job in queue.lease_many(4, "1h", block=False)] == ["d"]


def test_slot_released_in_a_block_that_is_undone_stays_held(harness: Harness, dsn: str) -> None:
    queue = harness.pq(dsn)["q"]
    queue.put_many([*"ab"], **ONE)
    [first] = queue.lease_many(2, "1h", block=False)

    def undone() -> None:
        queue.ack(first)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), queue:
        undone()
    assert queue.lease_many(2, "1h", block=False) == []
    queue.ack(first)
    assert [job.data for job in queue.lease_many(2, "1h", block=False)] == ["b"]


def test_limited_job_is_not_leased_in_a_block_above_read_committed(harness: Harness, dsn: str, level: str) -> None:
    queue = harness.pq(dsn)["q"]
    queue.put("gated", **ONE)
    with queue:
        with pytest.raises(NotSupported, match=f"{level.upper()}: lease them outside"):
            queue.lease(60, wait=0)
        queue.put("plain")
        assert [job.data for job in queue.lease_many(2, "1h", block=False)] == ["plain"]
    job = queue.lease(60, wait=0)
    assert (job.data, job.attempts, job.crashes) == ("gated", 1, 0)


def test_limited_job_is_acked_in_a_callers_transaction_at_any_isolation(harness: Harness, level: str) -> None:
    harness.needs_sessions()
    queue, caller = harness.queue(), harness.connect()
    caller.sql(f"SET default_transaction_isolation = '{level}'", rows=False)
    queue.put_many([*"ab"], **ONE)
    [job] = queue.lease_many(2, "1h", block=False)
    with transaction(caller):
        queue.ack(job, connection=caller.raw)
        assert queue.lease_many(2, "1h", block=False) == []
        caller.commit()
    assert [job.data for job in queue.lease_many(2, "1h", block=False)] == ["b"]


def test_isolation_default_that_is_raised_later_is_noticed(harness: Harness, level: str) -> None:
    harness.needs_sessions()
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    job_id = queue.put("old")
    connection.sql(f"SET default_transaction_isolation = '{level}'", rows=False)
    blocker = harness.connect()
    blocker.begin()
    blocker.sql(f"UPDATE {harness.table} SET data = '\"theirs\"' WHERE id = {job_id}", rows=False)
    waiting = (
        f"SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = '{harness.application}'"
    )
    with harness.thread(lambda: queue.update(job_id, "mine")) as join:
        harness.eventually(lambda: harness.sql(waiting))
        blocker.commit()
        join()
    assert queue.get().data == "mine"
