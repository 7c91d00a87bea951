"""Transactions and savepoints, on connections and pools of pqcore and of the caller."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    LeaseLost,
    PoolTimeout,
    PQError,
    TransactionAborted,
)
from pqcore.sql.identifiers import quote
from pqcore.testing.connections import Connection
from pqcore.testing.harness import PATIENCE, Harness


class Boom(Exception):
    """A failure of the user's code."""


class Stop(BaseException):
    """An exception that is no Exception, like KeyboardInterrupt."""


def orders(harness: Harness) -> str:
    """Make a table of the user, and return its name."""
    name = f"{quote(harness.schema)}.orders"
    harness.sql(f"CREATE TABLE {name} (number int)", rows=False)
    return name


def numbers(harness: Harness) -> list[int]:
    """Return the content of the user's table, as others see it."""
    found = harness.sql(f"SELECT number FROM {quote(harness.schema)}.orders ORDER BY number")
    return [number for [number] in found]


def waiting(harness: Harness) -> list[str]:
    """Return the data of the waiting jobs, as others see it: JSON."""
    return [data for [data] in harness.sql("SELECT data::text FROM {table} WHERE dequeued_at IS NULL ORDER BY id")]


def finished(harness: Harness) -> list[str]:
    """Return the data of the taken jobs, as others see it: JSON."""
    return [data for [data] in harness.sql("SELECT data::text FROM {table} WHERE dequeued_at IS NOT NULL ORDER BY id")]


def refuse(harness: Harness, data: str, by: str) -> None:
    """Make the server refuse rows with this JSON text."""
    if by == "constraint":
        harness.sql(f"ALTER TABLE {{table}} ADD CHECK (data::text <> '{data}')", rows=False)
        return
    function = f"{quote(harness.schema)}.refuse"
    harness.sql(
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF NEW.data::text = '{data}' THEN RAISE EXCEPTION 'refused'; END IF; RETURN NEW; END $$",
        rows=False,
    )
    harness.sql(
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {{table}} FOR EACH ROW EXECUTE FUNCTION {function}()",
        rows=False,
    )


@contextmanager
def failing(block: Any) -> Iterator[None]:
    """Run a block that ends with an exception of the user's code."""
    with pytest.raises(Boom), block:  # noqa: PT012
        yield
        raise Boom


def within(harness: Harness, work: Callable[[], Any]) -> Any:
    """Run a function; if a connection is never given back, the test fails instead of waiting without end."""
    with harness.thread(work) as join:
        return join()


def together(harness: Harness, *works: Callable[[], Any]) -> list[Any]:
    """Run each function in a thread, and return their results."""
    with ExitStack() as stack:
        joins = [stack.enter_context(harness.thread(work)) for work in works]
        return [join() for join in joins]


def end_connections(harness: Harness) -> None:
    """Make the server end the present connections; a pool may open others itself."""
    harness.needs_sessions()
    where = f"pg_stat_activity WHERE application_name = '{harness.application}'"
    pids = [str(pid) for pid, _ in harness.sql(f"SELECT pid, pg_terminate_backend(pid) FROM {where}")]
    assert pids
    harness.eventually(lambda: not harness.sql(f"SELECT 1 FROM {where} AND pid IN ({', '.join(pids)})"))


# With blocks


def test_block_commits_at_its_end(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("first")
    with queue as cursor:
        assert cursor is not None
        assert queue.get().data == "first"
        queue.put("second")
        assert (waiting(harness), finished(harness)) == (['"first"'], [])
    assert (waiting(harness), finished(harness)) == (['"second"'], ['"first"'])


@pytest.mark.parametrize("kind", [Boom, Stop])
def test_block_is_undone_by_an_exception_that_passes_unchanged(harness: Harness, kind: type[BaseException]) -> None:
    queue = harness.queue()
    job_id = queue.put("first")
    error = kind("mine")

    def block() -> None:
        with queue:
            assert queue.get().id == job_id
            queue.put("second")
            queue.put_many(["third", "fourth"])
            raise error

    with pytest.raises(kind) as caught:
        block()
    assert caught.value is error
    assert error.args == ("mine",)
    assert (error.__cause__, error.__context__) == (None, None)
    assert (waiting(harness), finished(harness)) == (['"first"'], [])
    job = queue.get(block=False)
    assert (job.id, job.attempts) == (job_id, 1)
    assert queue.get(block=False) is None


@pytest.mark.parametrize("fails", [False, True])
def test_users_sql_in_a_block_commits_with_the_job(harness: Harness, fails: bool) -> None:
    queue = harness.queue()
    table = orders(harness)
    queue.put(1)
    with failing(queue) if fails else queue:
        job = queue.get()
        harness.sql_within(queue, f"INSERT INTO {table} VALUES ({job.data})", rows=False)
        assert harness.sql_within(queue, f"SELECT number FROM {table}") == [(1,)]
        queue.put(2)
    assert numbers(harness) == ([] if fails else [1])
    assert (waiting(harness), finished(harness)) == ((["1"], []) if fails else (["2"], ["1"]))


def test_transaction_method_is_the_same_as_a_block(harness: Harness) -> None:
    queue = harness.queue()
    with queue.transaction() as cursor:
        assert cursor is not None
        queue.put("kept")
        assert waiting(harness) == []
    assert waiting(harness) == ['"kept"']
    with failing(queue.transaction()):
        queue.put("undone")
    with queue:
        queue.put("outer")
        with failing(queue.transaction()):
            queue.put("inner")
    assert waiting(harness) == ['"kept"', '"outer"']


def test_block_can_follow_a_block(harness: Harness) -> None:
    queue = harness.queue()
    for number in range(4):
        with queue if number % 2 else failing(queue):
            queue.put(number)
    queue.put("alone")
    assert waiting(harness) == ["1", "3", '"alone"']


def test_block_keeps_its_transaction_until_its_end(harness: Harness) -> None:
    queue = harness.queue()
    with queue:
        seen = []
        for _ in range(3):
            queue.put(1)
            queue.count()
            queue.peek()
            queue.get(block=False)
            seen += harness.sql_within(queue, "SELECT pg_backend_pid(), pg_current_xact_id()::text")
        assert len(set(seen)) == 1


# Blocks within blocks


def test_inner_block_that_fails_is_undone_alone(harness: Harness) -> None:
    queue = harness.queue()
    with queue:
        queue.put("outer")
        with failing(queue):
            queue.put("undone")
        with queue:
            queue.put("inner")
            with failing(queue):
                queue.put("undone too")
                with queue:
                    queue.put("undone with the one around it")
            queue.put("inner after")
        assert waiting(harness) == []
        queue.put("outer after")
    assert waiting(harness) == ['"outer"', '"inner"', '"inner after"', '"outer after"']


def test_outer_block_that_fails_undoes_the_inner_block(harness: Harness) -> None:
    queue = harness.queue()
    with failing(queue), queue:
        queue.put("inner")
    assert waiting(harness) == []


def test_inner_block_that_fails_returns_its_job_to_the_outer_block(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    queue.put("job")
    with queue:
        with failing(queue):
            assert queue.get(block=False).data == "job"
            assert queue.get(block=False) is None
        assert queue.get(block=False).data == "job"
        assert other.get(block=False) is None
    assert finished(harness) == ['"job"']


def test_inner_block_may_belong_to_another_queue(harness: Harness) -> None:
    pq = harness.pq()
    with pq["a"]:
        pq["b"].put("b in a's block")
        with failing(pq["b"]):
            pq["a"].put("undone")
        with pq["b"]:
            pq["c"].put("c in b's block")
        assert waiting(harness) == []
    assert waiting(harness) == ['"b in a\'s block"', '"c in b\'s block"']


def test_block_includes_all_queues_of_its_pq_and_no_others(harness: Harness) -> None:
    pq, other = harness.pq(), harness.pq(create=False)
    pq["b"].put("job")
    with failing(pq["a"]):
        assert pq["b"].get(block=False).data == "job"
        pq["c"].put("undone")
        pq.queue("d").put("undone too")
        other["a"].put("another PQ's")
    assert waiting(harness) == ['"job"', '"another PQ\'s"']


def test_block_belongs_to_its_thread(harness: Harness) -> None:
    queue = harness.queue()
    queue.put("job")

    def beside() -> None:
        queue.put("beside")
        with queue:
            queue.put("beside, in a block")

    with failing(queue):
        queue.put("undone")
        with harness.thread(beside) as join:
            join()
        assert waiting(harness) == ['"job"', '"beside"', '"beside, in a block"']
    assert waiting(harness) == ['"job"', '"beside"', '"beside, in a block"']


# Failures within a block


@pytest.mark.parametrize("by", ["constraint", "trigger"])
def test_refused_operation_leaves_the_blocks_transaction_usable(harness: Harness, by: str) -> None:
    queue = harness.queue()
    refuse(harness, '"evil"', by)
    taken = queue.put("taken")
    with queue:
        queue.put("before")
        assert queue.get(block=False).id == taken
        attempts: list[Callable[[], Any]] = [
            lambda: queue.put("evil"),
            lambda: queue.put("evil", "1h", "2h"),
            lambda: queue.put_many(["good", "evil"]),
            lambda: queue.update(taken, "evil"),
        ]
        for attempt in attempts:
            with pytest.raises(PQError) as caught:
                attempt()
            assert caught.value.__cause__ is not None
            queue.put("after")
    assert waiting(harness) == ['"before"'] + ['"after"'] * 4
    assert finished(harness) == ['"taken"']


def test_refused_operation_that_escapes_undoes_the_block(harness: Harness) -> None:
    queue = harness.queue()
    refuse(harness, '"evil"', "constraint")

    def block() -> None:
        with queue:
            queue.put("before")
            queue.put("evil")

    with pytest.raises(PQError) as caught:
        block()
    assert not isinstance(caught.value, TransactionAborted)
    assert waiting(harness) == []
    queue.put("after")
    assert waiting(harness) == ['"after"']


def test_users_sql_that_fails_makes_operations_raise_transaction_aborted(harness: Harness) -> None:
    queue = harness.queue()
    with failing(queue):
        queue.put("undone")
        with pytest.raises(PQError):
            harness.sql_within(queue, "SELECT 1/0")
        for operation in (lambda: queue.put("refused"), lambda: queue.get(block=False), queue.count):
            with pytest.raises(TransactionAborted):
                operation()
    assert waiting(harness) == []
    queue.put("after")
    assert waiting(harness) == ['"after"']


def test_users_sql_that_fails_in_an_inner_block_is_undone_with_it(harness: Harness) -> None:
    queue = harness.queue()

    def inner() -> None:
        with queue:
            queue.put("inner")
            harness.sql_within(queue, "SELECT 1/0")

    with queue:
        queue.put("outer")
        with pytest.raises(PQError):
            inner()
        queue.put("outer after")
    assert waiting(harness) == ['"outer"', '"outer after"']


def test_block_whose_transaction_was_aborted_raises_at_its_end(harness: Harness) -> None:
    # The server then answers COMMIT with ROLLBACK, which most drivers do not report as an error.
    queue = harness.queue()

    def block() -> None:
        with queue:
            queue.put("undone")
            with suppress(PQError):
                harness.sql_within(queue, "SELECT 1/0")

    with pytest.raises(PQError):
        block()
    assert waiting(harness) == []
    queue.put("after")
    assert waiting(harness) == ['"after"']


# What other sessions see


@pytest.mark.read_committed
def test_job_in_an_open_transaction_is_skipped_without_waiting(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    first, second, third = queue.put_many([1, 2, 3])
    with failing(queue):
        assert queue.get(block=False).id == first
        assert other.get(block=False).id == second
        with other:
            assert [job.id for job in other.get_many(9, block=False)] == [third]
            assert queue.get(block=False) is None
        assert other.get(block=False) is None
        assert other.lease(block=False) is None
        assert other.cancel(first) is False
    assert other.get(block=False).id == first


def test_job_put_in_an_open_transaction_is_visible_only_in_it(harness: Harness) -> None:
    queue, other = harness.queue(), harness.queue(create=False)
    with queue:
        job_id = queue.put("mine")
        assert (len(queue), len(other)) == (1, 0)
        assert [job.id for job in queue.peek()] == [job_id]
        assert other.get(block=False) is None
    assert other.get(block=False).id == job_id


@pytest.mark.read_committed
@pytest.mark.parametrize("expected", [None, "1h"])
def test_job_that_becomes_due_during_a_transaction_is_visible_in_it(harness: Harness, expected: str | None) -> None:
    # pq compared with now(), which stands still in a transaction.
    queue = harness.queue()
    queue.put("job", "1h", expected)
    with queue:
        assert queue.get(block=False) is None
        harness.sql("UPDATE {table} SET schedule_at = clock_timestamp()", rows=False)
        assert harness.sql_within(queue, "SELECT schedule_at > now() FROM {table}") == [(True,)]
        assert len(queue) == 1
        assert queue.peek()[0].data == "job"
        assert queue.get(block=False).data == "job"


def test_get_in_a_transaction_waits_until_a_job_is_due(harness: Harness) -> None:
    queue = harness.queue()
    with queue:
        queue.put("job", timedelta(milliseconds=500))
        assert queue.get(block=False) is None
        assert queue.get(timeout=PATIENCE).data == "job"


# The caller's connection


def begin_by_itself(harness: Harness, connection: Connection) -> bool:
    """Make the connection begin a transaction with its first statement, as PEP 249 requires.

    Return False if it cannot.
    """
    raw = connection.raw
    if not isinstance(getattr(raw, "autocommit", None), bool):
        return False
    if hasattr(raw, "set_autocommit") and harness.mode == "async":
        harness.wait_for(lambda: raw.set_autocommit(False))
    else:
        raw.autocommit = False
    assert raw.autocommit is False
    return True


implicitly = pytest.mark.parametrize("implicit", [False, True], ids=["autocommit", "implicit"])


def callers(harness: Harness, implicit: bool) -> tuple[Any, Connection]:
    """Return a queue over a caller's connection, in autocommit mode or not."""
    connection = harness.connect()
    pq = harness.pq(connection.raw)
    if implicit:
        begin_by_itself(harness, connection)
    return pq["q"], connection


def idle(connection: Connection) -> bool:
    return not connection.session.in_transaction()


@implicitly
def test_operation_on_an_idle_connection_is_committed(harness: Harness, implicit: bool) -> None:
    queue, connection = callers(harness, implicit)
    first = queue.put("first")
    assert waiting(harness) == ['"first"']
    queue.put_many(["second", "third"])
    assert waiting(harness) == ['"first"', '"second"', '"third"']
    assert queue.get(block=False).id == first
    assert finished(harness) == ['"first"']
    job = queue.lease()
    queue.update(job.id, "changed")
    assert waiting(harness) == ['"changed"', '"third"']
    queue.ack(job)
    assert finished(harness) == ['"first"', '"changed"']
    assert (len(queue), len(queue.peek()), queue.stats().ready) == (1, 1, 1)
    queue.clear()
    assert harness.sql("SELECT count(*) FROM {table}") == [(0,)]
    assert queue.get(timeout=0.01) is None
    assert idle(connection)


@implicitly
def test_operation_leaves_the_callers_connection_as_found(harness: Harness, implicit: bool) -> None:
    queue, connection = callers(harness, implicit)
    refuse(harness, '"evil"', "constraint")
    before = getattr(connection.raw, "autocommit", None)

    def in_block(*data: str) -> None:
        with failing(queue) if "boom" in data else queue:
            for item in data:
                queue.put(item)

    uses: list[tuple[Callable[[], Any], type[Exception] | None]] = [
        (lambda: queue.put("x"), None),
        (lambda: queue.put_many(map(str, range(9))), None),
        (lambda: queue.get_many(100), None),
        (lambda: queue.get(timeout=0.01), None),
        (lambda: queue.put("evil"), PQError),
        (lambda: queue.put_many(["good", "evil"]), PQError),
        (lambda: in_block("good"), None),
        (lambda: in_block("good", "evil"), PQError),
        (lambda: in_block("good", "boom"), None),
        (queue.clear, None),
    ]
    for place, (use, error) in enumerate(uses):
        if error is None:
            use()
        else:
            with pytest.raises(error):
                use()
        assert getattr(connection.raw, "autocommit", None) == before, place
        assert idle(connection), place
    assert connection.sql("SELECT 1") == [(1,)]
    assert idle(connection) == (before is not False)
    if not idle(connection):
        connection.rollback()


@implicitly
def test_block_on_an_idle_connection_is_a_transaction(harness: Harness, implicit: bool) -> None:
    queue, connection = callers(harness, implicit)
    with queue:
        queue.put("kept")
        assert waiting(harness) == []
    assert waiting(harness) == ['"kept"']
    with failing(queue):
        assert queue.get(block=False).data == "kept"
        queue.put("undone")
    assert (waiting(harness), finished(harness)) == (['"kept"'], [])
    assert idle(connection)


def opened(harness: Harness, connection: Connection, implicit: bool, number: int = 1) -> None:
    """Open a transaction of the caller, with a statement in it."""
    if not (implicit and begin_by_itself(harness, connection)):
        connection.begin()
    connection.sql(f"INSERT INTO {quote(harness.schema)}.orders VALUES ({number})", rows=False)
    assert not idle(connection)


@implicitly
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_operation_joins_the_callers_transaction(harness: Harness, implicit: bool, end: str) -> None:
    queue, connection = callers(harness, implicit)
    orders(harness)
    queue.put("job")
    opened(harness, connection, implicit)
    queue.put("put")
    queue.put_many(["put", "many"])
    assert queue.get(block=False).data == "job"
    leased = queue.lease(block=False)
    queue.ack(leased)
    assert (len(queue), len(queue.peek(9))) == (2, 2)
    assert not idle(connection)
    assert (waiting(harness), finished(harness), numbers(harness)) == (['"job"'], [], [])
    if end == "commit":
        connection.commit()
        assert waiting(harness) == ['"put"', '"many"']
        assert finished(harness) == ['"job"', '"put"']
        assert numbers(harness) == [1]
    else:
        connection.rollback()
        assert (waiting(harness), finished(harness), numbers(harness)) == (['"job"'], [], [])
        assert queue.get(block=False).data == "job"
    assert idle(connection)


@implicitly
def test_failed_operation_leaves_the_callers_transaction_usable(harness: Harness, implicit: bool) -> None:
    queue, connection = callers(harness, implicit)
    orders(harness)
    refuse(harness, '"evil"', "trigger")
    opened(harness, connection, implicit)
    queue.put("before")
    with pytest.raises(PQError):
        queue.put("evil")
    with pytest.raises(PQError):
        queue.put_many(["good", "evil"])
    assert connection.sql(f"SELECT number FROM {quote(harness.schema)}.orders") == [(1,)]
    queue.put("after")
    connection.commit()
    assert waiting(harness) == ['"before"', '"after"']
    assert numbers(harness) == [1]


@implicitly
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_block_in_the_callers_transaction_is_a_savepoint(harness: Harness, implicit: bool, end: str) -> None:
    queue, connection = callers(harness, implicit)
    table = orders(harness)
    queue.put("job")
    opened(harness, connection, implicit)
    with failing(queue):
        assert queue.get(block=False).data == "job"
        queue.put("undone")
        harness.sql_within(queue, f"INSERT INTO {table} VALUES (2)", rows=False)
    with queue:
        queue.put("joined")
        with failing(queue):
            queue.put("undone too")
    connection.sql(f"INSERT INTO {table} VALUES (3)", rows=False)
    assert not idle(connection)
    assert (waiting(harness), numbers(harness)) == (['"job"'], [])
    if end == "commit":
        connection.commit()
        assert (waiting(harness), numbers(harness)) == (['"job"', '"joined"'], [1, 3])
    else:
        connection.rollback()
        assert (waiting(harness), numbers(harness)) == (['"job"'], [])


def test_block_respects_the_callers_savepoint(harness: Harness) -> None:
    queue, connection = callers(harness, implicit=False)
    connection.begin()
    queue.put("before")
    connection.sql("SAVEPOINT mine", rows=False)
    queue.put("undone")
    with queue:
        queue.put("undone too")
    connection.sql("ROLLBACK TO mine", rows=False)
    queue.put("after")
    connection.commit()
    assert waiting(harness) == ['"before"', '"after"']


def test_operation_in_the_callers_aborted_transaction_raises_an_error(harness: Harness) -> None:
    queue, connection = callers(harness, implicit=False)
    connection.begin()
    with pytest.raises(PQError):
        connection.sql("SELECT 1/0")
    for operation in (lambda: queue.put(1), lambda: queue.get(block=False), queue.count, queue.__enter__):
        with pytest.raises(TransactionAborted):
            operation()
    connection.rollback()
    queue.put("after")
    assert waiting(harness) == ['"after"']
    assert queue.get(block=False).data == "after"


def test_connection_of_the_caller_serves_threads_one_after_the_other(harness: Harness) -> None:
    queue, connection = callers(harness, implicit=False)

    def work(name: int) -> None:
        for number in range(5):
            with queue:
                queue.put([name, number])

    together(harness, *(partial(work, name) for name in range(4)))
    found = [tuple(job.data) for job in queue.get_many(100)]
    assert sorted(found) == list(itertools.product(range(4), range(5)))
    assert idle(connection)


def test_closed_connection_raises_connection_lost_with_advice(harness: Harness) -> None:
    queue, connection = callers(harness, implicit=False)
    queue.put("before")
    connection.close()
    for operation in (lambda: queue.put(1), lambda: queue.get(timeout=3600), lambda: len(queue), queue.__enter__):
        with pytest.raises(ConnectionLost, match="DSN"):
            operation()
    with pytest.raises(ConnectionLost, match="DSN"), queue:
        queue.put(1)
    assert waiting(harness) == ['"before"']


def test_connection_closed_before_use_raises_an_error(harness: Harness) -> None:
    harness.pq()
    connection = harness.connect()
    connection.close()
    with pytest.raises(PQError):
        harness.pq(connection.raw, create=False)["q"].put(1)


def test_connection_ended_by_the_server_raises_connection_lost(harness: Harness) -> None:
    harness.pq()
    for _ in range(4):  # the driver may or may not have noticed
        connection = harness.connect()
        queue = harness.pq(connection.raw, create=False)["q"]
        connection.sql("SELECT 1")  # a pooler gives it a session with its first statement
        end_connections(harness)
        with pytest.raises(ConnectionLost):
            queue.put(1)
        with pytest.raises(ConnectionLost, match="DSN"):
            queue.put(2)
        assert not connection.session.usable()
    assert waiting(harness) == []


# connection=: an operation in a caller's transaction


@implicitly
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_put_with_a_connection_joins_its_transaction(harness: Harness, implicit: bool, end: str) -> None:
    queue, connection = harness.queue(), harness.connect()
    orders(harness)
    opened(harness, connection, implicit)
    first = queue.put("one", connection=connection.raw)
    second = queue.put("timed", "1h", "2h", connection=connection.raw)
    many = queue.put_many(["many", "more"], connection=connection.raw)
    assert [first, second, *many] == sorted({first, second, *many})
    queue.put("apart")
    assert not idle(connection)
    assert (waiting(harness), numbers(harness)) == (['"apart"'], [])
    if end == "commit":
        connection.commit()
        assert waiting(harness) == ['"one"', '"timed"', '"many"', '"more"', '"apart"']
        assert numbers(harness) == [1]
    else:
        connection.rollback()
        assert (waiting(harness), numbers(harness)) == (['"apart"'], [])
    assert idle(connection)


def test_put_with_a_connection_ignores_the_open_block(harness: Harness) -> None:
    queue, connection = harness.queue(), harness.connect()
    connection.begin()
    with failing(queue):
        queue.put("the connection's", connection=connection.raw)
        queue.put("the block's")
    connection.commit()
    assert waiting(harness) == ['"the connection\'s"']


def test_put_with_an_idle_connection_follows_its_drivers_autocommit(harness: Harness) -> None:
    queue, connection = harness.queue(), harness.connect()
    queue.put("one", connection=connection.raw)
    queue.put_many(["two", "three"], connection=connection.raw)
    assert waiting(harness) == ['"one"', '"two"', '"three"']
    assert idle(connection)
    if begin_by_itself(harness, connection):
        queue.put("four", connection=connection.raw)
        queue.put_many(["five", "six"], connection=connection.raw)
        assert waiting(harness) == ['"one"', '"two"', '"three"']
        connection.commit()
        assert waiting(harness) == ['"one"', '"two"', '"three"', '"four"', '"five"', '"six"']


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("retention", ["keep", "delete", "archive"])
def test_ack_with_a_connection_joins_its_transaction(harness: Harness, many: bool, retention: str) -> None:
    queue, connection = harness.queue(retention=retention), harness.connect()
    table = orders(harness)
    queue.put("job")
    job = queue.lease(3600)
    for end in (connection.rollback, connection.commit):
        connection.begin()
        connection.sql(f"INSERT INTO {table} VALUES (1)", rows=False)
        if many:
            assert queue.ack_many([job], connection=connection.raw) == []
        else:
            queue.ack(job, connection=connection.raw)
        assert not idle(connection)
        assert (waiting(harness), numbers(harness)) == (['"job"'], [])
        end()
        committed = end == connection.commit
        assert (waiting(harness), numbers(harness)) == (([], [1]) if committed else (['"job"'], []))
    with pytest.raises(LeaseLost):
        queue.ack(job)


@pytest.mark.parametrize("connection", [object(), 42, "dbname=postgres", False], ids=repr)
def test_connection_argument_of_a_bad_type_is_refused(harness: Harness, connection: Any) -> None:
    queue = harness.queue()
    queue.put("job")
    job = queue.lease()
    operations: list[Callable[[], Any]] = [
        lambda: queue.put(1, connection=connection),
        lambda: queue.put_many([1, 2], connection=connection),
        lambda: queue.ack(job, connection=connection),
        lambda: queue.ack_many([job], connection=connection),
    ]
    for operation in operations:
        with pytest.raises(ConfigurationError, match="connection"):
            operation()
    assert waiting(harness) == ['"job"']


@pytest.mark.requires(Capability.POOL)
def test_connection_argument_refuses_a_pool(harness: Harness) -> None:
    queue, pool = harness.queue(), harness.pool(1)
    with pytest.raises(ConfigurationError):
        queue.put(1, connection=pool)
    assert waiting(harness) == []


def test_put_with_a_closed_connection_raises_connection_lost(harness: Harness) -> None:
    queue, connection = harness.queue(), harness.connect()
    connection.close()
    with pytest.raises(PQError):
        queue.put(1, connection=connection.raw)
    queue.put("after")
    assert waiting(harness) == ['"after"']


# Pools of the caller


@pytest.mark.requires(Capability.POOL)
@pytest.mark.parametrize("size", [1, 2])
def test_pool_connections_are_returned(harness: Harness, size: int) -> None:
    pool = harness.pool(size)
    pq = harness.pq(pool=pool)
    queue = pq["q"]
    refuse(harness, '"evil"', "constraint")

    def work() -> None:
        for number in range(4):
            queue.put(number)
            queue.put_many([number] * 3)
            with queue:
                queue.put(number)
            with failing(queue):
                queue.put("undone")
            with pytest.raises(PQError):
                queue.put("evil")
            with pytest.raises(PQError), queue:
                queue.put("evil")
            with pytest.raises(PQError), queue:
                harness.sql_within(queue, "SELECT 1/0")
            with pytest.raises(TypeError):
                queue.put(object())
            assert len(queue) == len(queue.peek(99)) == 5
            assert queue.get().data == number
            job = queue.lease()
            queue.ack(job)
            assert len(queue.get_many(99)) == 3
            assert queue.get(block=False) is None

    within(harness, work)
    assert 1 <= harness.connections() <= size
    assert (waiting(harness), len(finished(harness))) == ([], 20)
    pq.close()


@pytest.mark.requires(Capability.POOL)
def test_pool_connection_is_returned_without_an_open_transaction(harness: Harness) -> None:
    harness.needs_sessions()
    pq = harness.pq(pool=harness.pool(2))
    queue = pq["q"]

    def work() -> None:
        queue.put(1)
        with failing(queue):
            queue.get()
        with pytest.raises(PQError), queue:
            harness.sql_within(queue, "SELECT 1/0")
        queue.get(block=False)
        queue.count()

    within(harness, work)
    states = harness.sql(
        f"SELECT DISTINCT state FROM pg_stat_activity WHERE application_name = '{harness.application}'"
    )
    assert states == [("idle",)]
    pq.close()


@pytest.mark.read_committed
@pytest.mark.requires(Capability.POOL)
def test_threads_take_each_job_once_over_a_pool(harness: Harness) -> None:
    # pq stored the transaction on the queue, which threads share: jobs were lost and done twice.
    pq = harness.pq(pool=harness.pool(8))
    queue = pq["q"]
    queue.put_many(range(160))
    start = threading.Barrier(8)

    def consume() -> list[int]:
        done: list[int] = []
        start.wait(PATIENCE)
        while True:
            with queue:
                job = queue.get(block=False)
                if job is None:
                    return done
                queue.update(job.id, [job.data])
                pq["done"].put(job.data)
                done.append(job.data)

    shares = together(harness, *[consume] * 8)
    assert sorted(number for share in shares for number in share) == list(range(160))
    assert sorted(job.data for job in pq["done"].get_many(200)) == list(range(160))
    assert harness.connections() <= 8
    pq.close()


@pytest.mark.read_committed
@pytest.mark.requires(Capability.POOL)
def test_threads_put_and_get_over_a_pool(harness: Harness) -> None:
    pq = harness.pq(pool=harness.pool(8))
    queue = pq["q"]
    start = threading.Barrier(8)

    def work(name: int) -> list[Any]:
        mine: list[Any] = []
        start.wait(PATIENCE)
        for number in range(20):
            with queue:
                queue.put([name, number])
            with queue:
                mine.append(tuple(queue.get(timeout=PATIENCE).data))
        return mine

    taken = together(harness, *(partial(work, name) for name in range(8)))
    assert sorted(itertools.chain(*taken)) == list(itertools.product(range(8), range(20)))
    assert waiting(harness) == []
    pq.close()


@pytest.mark.requires(Capability.POOL)
@pytest.mark.requires(Capability.LISTEN)
def test_waiter_holds_no_connection_of_the_pool(harness: Harness) -> None:
    pq = harness.pq(pool=harness.pool(1))
    queue = pq["q"]

    def insisting(work: Callable[[], Any]) -> Any:
        while True:  # some pools do not wait, and the other thread may hold the connection at this moment
            with suppress(PoolTimeout):
                return work()

    with harness.thread(lambda: insisting(lambda: queue.get(timeout=3600))) as join:
        harness.eventually(harness.listening)
        within(harness, lambda: insisting(lambda: queue.put("job")))
        assert join().data == "job"
    pq.close()


@pytest.mark.requires(Capability.POOL)
def test_exhausted_pool_of_the_caller_waits_or_raises_pool_timeout(harness: Harness) -> None:
    pq = harness.pq(pool=harness.pool(1))
    queue = pq["q"]
    ended = threading.Event()

    def beside() -> str:
        try:
            queue.put("beside")
        except PoolTimeout as exc:
            return str(exc)
        finally:
            ended.set()
        return "waited"

    with ExitStack() as stack:
        with queue:
            join = stack.enter_context(harness.thread(beside))
            ended.wait(0.05)  # drivers' pools either refuse immediately, or wait
            queue.put("inside")
        outcome = join()
    assert outcome == "waited" or "pool" in outcome
    assert waiting(harness) == ['"inside"', '"beside"'][: 1 + (outcome == "waited")]
    pq.close()


@pytest.mark.requires(Capability.POOL)
@pytest.mark.parametrize("by", ["its owner", "PQ.close"])
def test_closed_pool_of_the_caller_raises_closed_with_advice(harness: Harness, by: str) -> None:
    pool = harness.pool(2)
    pq = harness.pq(pool=pool)
    queue = pq["q"]
    queue.put("before")
    if by == "PQ.close":
        pq.close()
    else:
        harness.wait_for(lambda: harness.opener.call("close_pool", pool))
    harness.eventually(lambda: harness.connections() == 0)

    def work() -> None:
        for operation in (
            lambda: queue.put(1),
            lambda: queue.get(block=False),
            queue.count,
            queue.__enter__,
            pq.create,
        ):
            with pytest.raises(PQError, match=r"(?i)closed.*open"):
                operation()

    within(harness, work)
    assert waiting(harness) == ['"before"']
    pq.close()


@pytest.mark.requires(Capability.POOL)
def test_pool_with_connections_ended_by_the_server_keeps_serving(harness: Harness) -> None:
    pq = harness.pq(pool=harness.pool(2))
    queue = pq["q"]

    def insisting(work: Callable[[], Any]) -> Any:
        for _ in range(2):  # once for each connection, if the driver has not noticed yet
            with suppress(ConnectionLost):
                return work()
        return work()

    def work() -> None:
        for number in range(4):
            insisting(lambda: queue.put("first"))
            end_connections(harness)
            insisting(lambda: queue.put("second"))
            end_connections(harness)
            assert insisting(lambda: queue.get(block=False)).data == "first"
            with queue:
                queue.put(number)
                assert queue.get(block=False).data == "second"
            assert queue.get(block=False).data == number

    within(harness, work)
    assert waiting(harness) == []
    pq.close()


# pqcore's own pool


@pytest.mark.read_committed
def test_pool_of_a_pq_opens_at_most_max_connections(harness: Harness) -> None:
    queue = harness.queue(max_connections=3)
    start = threading.Barrier(8)

    def work() -> int:
        taken = 0
        start.wait(PATIENCE)
        for number in range(5):
            queue.put(number)
            with queue:
                taken += queue.get(block=False) is not None
                queue.put(number)
        return taken

    taken = sum(together(harness, *[work] * 8))
    assert 1 <= harness.connections() <= 3  # no connection is closed while it is idle
    assert len(queue) == 80 - taken


@pytest.mark.requires(Capability.LISTEN)
def test_pool_of_a_pq_opens_one_more_connection_to_listen(harness: Harness) -> None:
    pq, other = harness.pq(max_connections=1), harness.queue(create=False)
    queue = pq["q"]
    other.put(0)
    assert queue.get().data == 0
    before = harness.connections()  # the other's, and one
    with harness.thread(lambda: queue.get(timeout=3600)) as join:
        harness.eventually(harness.listening)
        assert pq["another"].get(timeout=0.01) is None  # the one connection listens to all queues
        assert harness.connections() == before + 1
        other.put(1)
        assert join().data == 1


def test_exhausted_pool_raises_pool_timeout_with_advice(harness: Harness) -> None:
    queue = harness.queue(max_connections=1, pool_timeout=0.02)

    def beside() -> None:
        for operation in (lambda: queue.put("beside"), lambda: queue.get(timeout=3600), queue.__enter__):
            with pytest.raises(PoolTimeout, match="max_connections"):
                operation()
        with pytest.raises(TimeoutError):  # the built-in class, too
            queue.count()

    with queue:
        queue.put("inside")
        within(harness, beside)
        queue.put("inside still")
    within(harness, lambda: queue.put("after"))
    assert waiting(harness) == ['"inside"', '"inside still"', '"after"']
    assert harness.connections() == 1


def test_exhausted_pool_waits_for_a_returned_connection(harness: Harness) -> None:
    queue = harness.queue(max_connections=1, pool_timeout=3600.0)
    entered, begun = threading.Event(), threading.Event()

    def hold() -> None:
        with queue:
            entered.set()
            assert begun.wait(PATIENCE)
            queue.put("held")

    def beside() -> None:
        begun.set()
        queue.put("waited")

    with harness.thread(hold) as hold_join:
        assert entered.wait(PATIENCE)
        with harness.thread(beside) as join:
            join()
        hold_join()
    assert waiting(harness) == ['"held"', '"waited"']


def test_failed_operation_returns_its_connection(harness: Harness) -> None:
    queue = harness.queue(max_connections=1, pool_timeout=0.5)
    refuse(harness, '"evil"', "trigger")
    for _ in range(3):
        with pytest.raises(PQError, match="refused"):
            queue.put("evil")
        with pytest.raises(PQError, match="refused"), queue:
            queue.put("evil")
        with pytest.raises(PQError, match="zero"), queue:
            harness.sql_within(queue, "SELECT 1/0")
        with failing(queue):
            pass
    queue.put("good")
    assert waiting(harness) == ['"good"']
    assert harness.connections() == 1


def test_close_ends_all_connections_and_later_operations_raise_closed(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq["q"]
    queue.put("job")
    assert queue.get().data == "job"
    assert queue.get(timeout=0.01) is None  # it has listened
    assert harness.connections() >= 1
    pq.close()
    harness.eventually(lambda: harness.connections() == 0)
    operations: list[Callable[[], Any]] = [
        lambda: queue.put(1),
        lambda: queue.put_many([1]),
        lambda: queue.get(timeout=3600),
        lambda: queue.lease(block=False),
        lambda: pq["new"].put(1),
        queue.count,
        queue.__enter__,
        pq.create,
    ]
    for operation in operations:
        with pytest.raises(Closed):
            operation()
    pq.close()
    queue.close()
    harness.eventually(lambda: harness.connections() == 0)  # a listener may have been connecting when it was closed
    assert waiting(harness) == []


def test_pq_used_as_a_context_manager_closes_itself(harness: Harness) -> None:
    with harness.pq() as pq:
        pq["q"].put("kept")
    harness.eventually(lambda: harness.connections() == 0)
    with pytest.raises(Closed):
        pq["q"].put("lost")
    assert waiting(harness) == ['"kept"']


def test_block_in_progress_outlives_close(harness: Harness) -> None:
    pq = harness.pq()
    queue = pq["q"]
    with queue:
        queue.put("before")
        pq.close()
        queue.put("after")
    assert waiting(harness) == ['"before"', '"after"']
    harness.eventually(lambda: harness.connections() == 0)


@pytest.mark.requires(Capability.LISTEN)
def test_close_ends_a_waiting_get(harness: Harness) -> None:
    pq = harness.pq(poll_interval=3600)
    queue = pq["q"]

    def wait() -> None:
        with pytest.raises(Closed):
            queue.get(timeout=3600)

    with harness.thread(wait) as join:
        harness.eventually(harness.listening)
        pq.close()
        join()
    harness.eventually(lambda: harness.connections() == 0)
