"""Connections that the server ends: between operations, in the middle of a transaction, while somebody waits."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import ConnectionLost, DatabaseError, PQError
from pqcore.testing.harness import PATIENCE, Harness


def hold_at_once(harness: Harness, pq: Any, number: int) -> None:
    """Open so many connections, and leave them idle."""
    barrier = threading.Barrier(number)

    def hold() -> None:
        with pq["held"]:
            barrier.wait(PATIENCE)

    threads = [harness.thread(hold) for _ in range(number)]
    joins = [thread.__enter__() for thread in threads]
    for join in joins:
        join()


def waits(harness: Harness) -> bool:
    """Whether a waiter listens, has looked once more since, and is not in the middle of a statement."""
    rows = harness.sql(
        "SELECT query ILIKE 'LISTEN%', state, query_start FROM pg_stat_activity"
        f" WHERE application_name = '{harness.application}' ORDER BY query_start"
    )
    return (
        len(rows) > 1
        and {state for _, state, _ in rows} == {"idle"}
        and rows[-1][0] is False
        and any(listens for listens, _, _ in rows)
    )


def expect_replacement(harness: Harness, pq: Any) -> None:
    """Operations go on as if nothing had been between them."""
    queue = pq["q"]
    for number in range(6):  # until a driver that prepares statements has done so
        queue.put(number)
        assert queue.get().data == number
    assert harness.cut_connections() > 0
    queue.put("first")
    assert harness.cut_connections() > 0
    assert queue.get().data == "first"
    assert harness.cut_connections() > 0
    with queue:
        queue.put("second")
    assert harness.cut_connections() > 0
    assert queue.count() == 1
    assert harness.cut_connections() > 0
    assert queue.put_many(range(3))
    assert harness.cut_connections() > 0
    pq.create()
    assert [job.data for job in queue.get_many(9)] == ["second", 0, 1, 2]


def test_lost_connections_are_replaced(harness: Harness) -> None:
    expect_replacement(harness, harness.pq())


@pytest.mark.requires(Capability.POOL)
def test_lost_connections_of_a_pool_are_replaced(harness: Harness) -> None:
    expect_replacement(harness, harness.pq(pool=harness.pool()))


def expect_all_replaced(harness: Harness, pq: Any) -> None:
    """Not only the first of many lost connections is replaced."""
    hold_at_once(harness, pq, 3)
    assert harness.cut_connections() >= 3
    for number in range(5):
        pq["q"].put(number)
    hold_at_once(harness, pq, 3)
    assert pq["q"].count() == 5


def test_all_of_many_lost_connections_are_replaced(harness: Harness) -> None:
    expect_all_replaced(harness, harness.pq(max_connections=3))


@pytest.mark.requires(Capability.POOL)
def test_all_of_many_lost_connections_of_a_pool_are_replaced(harness: Harness) -> None:
    expect_all_replaced(harness, harness.pq(pool=harness.pool(3)))


# In a transaction


def expect_rollback(harness: Harness, pq: Any) -> None:
    """A transaction whose connection is lost is told, and undone."""
    queue = pq["q"]
    queue.put("kept")

    def lose(*, before: bool) -> None:
        with queue:
            assert queue.get().data == "kept"
            queue.put("gone")
            harness.cut_connections()
            if before:
                queue.put("gone too")

    for before in (True, False):
        with pytest.raises(ConnectionLost) as caught:
            lose(before=before)
        assert isinstance(caught.value, ConnectionError)
        assert caught.value.__cause__ is not None
        assert harness.sql("SELECT data::text, dequeued_at FROM {table}") == [('"kept"', None)]
    with queue:
        assert queue.get().data == "kept"
        queue.put("new")
    assert queue.get().data == "new"
    assert queue.get(block=False) is None


def test_a_transaction_whose_connection_is_lost_is_undone(harness: Harness) -> None:
    expect_rollback(harness, harness.pq())


@pytest.mark.requires(Capability.POOL)
def test_a_transaction_whose_connection_of_a_pool_is_lost_is_undone(harness: Harness) -> None:
    expect_rollback(harness, harness.pq(pool=harness.pool()))


@pytest.mark.parametrize("statement", [False, True])
def test_the_users_error_is_not_hidden_by_a_lost_connection(harness: Harness, statement: bool) -> None:
    pq = harness.pq(max_connections=1)

    def fail() -> None:
        with pq["q"] as _:
            pq["q"].put("gone")
            harness.cut_connections()
            if statement:
                with pytest.raises(ConnectionLost):
                    pq["q"].put("gone too")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    pq["q"].put("after")  # which needs the place that the lost connection had
    assert pq["q"].get().data == "after"


def test_a_lost_savepoint_ends_the_whole_transaction(harness: Harness) -> None:
    pq = harness.pq(max_connections=1)

    def lose() -> None:
        with pq["q"]:
            pq["q"].put("gone")
            with pytest.raises(ConnectionLost), pq["other"]:
                harness.cut_connections()
            pq["q"].put("gone too")

    with pytest.raises(PQError):
        lose()
    assert harness.sql("SELECT FROM {table}") == []
    with pq["q"], pq["other"]:
        pq["q"].put("after")
    assert pq["q"].get().data == "after"


# The caller's connection


def test_a_lost_connection_of_the_callers_is_told_with_advice(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    queue.put("kept")
    harness.cut_connections()
    for _ in range(3):
        with pytest.raises(ConnectionLost) as caught:
            queue.put("gone")
        assert isinstance(caught.value, ConnectionError)
    assert "DSN or pool" in str(caught.value)
    for attempt in (queue.count, lambda: queue.get(timeout=PATIENCE), queue.__enter__):
        with pytest.raises(ConnectionLost, match="DSN or pool"):
            attempt()
    assert harness.queue().get().data == "kept"


def test_a_transaction_of_the_callers_that_is_lost_is_told(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    connection.begin()
    queue.put("gone")
    harness.cut_connections()
    with pytest.raises(ConnectionLost):
        queue.put("gone too")
    with pytest.raises(DatabaseError):
        connection.commit()
    assert harness.sql("SELECT FROM {table}") == []


def test_a_waiter_on_the_callers_connection_is_told(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw, poll_interval=PATIENCE)["q"]
    began = time.monotonic()

    def wait() -> None:
        with pytest.raises(ConnectionLost):
            queue.get(timeout=PATIENCE)

    with harness.thread(wait):
        harness.eventually(
            lambda: (
                harness.sql(
                    "SELECT FROM pg_stat_activity WHERE state = 'idle' AND query LIKE '%WITH urgent%'"
                    f" AND application_name = '{harness.application}'"
                )
                or harness.listening()
            )
        )
        harness.cut_connections()
    assert time.monotonic() - began < PATIENCE / 2


# Waiting


def expect_survival(harness: Harness, pq: Any) -> None:
    """Who waits when the connections are cut gets a job that is put later."""
    queue = pq["q"]
    for number in range(2):
        with harness.thread(lambda: queue.get(timeout=PATIENCE)) as join:
            harness.eventually(lambda: waits(harness))
            assert harness.cut_connections() >= 2
            queue.put(number)
            assert join().data == number


def test_a_waiter_survives_the_loss_of_its_connections(harness: Harness) -> None:
    expect_survival(harness, harness.pq())


@pytest.mark.requires(Capability.POOL)
def test_a_waiter_survives_the_loss_of_a_pools_connections(harness: Harness) -> None:
    expect_survival(harness, harness.pq(pool=harness.pool()))


@pytest.mark.requires(Capability.LISTEN)
def test_a_waiter_listens_again_after_a_loss(harness: Harness) -> None:
    queue = harness.queue(poll_interval=PATIENCE)
    with harness.thread(lambda: queue.get(timeout=PATIENCE)) as join:
        harness.eventually(lambda: waits(harness))
        harness.cut_connections()
        harness.eventually(harness.listening)
        began = time.monotonic()
        harness.sql("INSERT INTO {table} (q_name, data) VALUES ('q', '1')", rows=False)
        assert join().data == 1
    assert time.monotonic() - began < PATIENCE / 2
