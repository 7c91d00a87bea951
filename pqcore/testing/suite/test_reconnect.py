"""Connections that the server ends: between operations, within a transaction, while a caller waits."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.db import channels
from pqcore.db import listener as waiting
from pqcore.db.listener import Listener
from pqcore.errors import ConnectionLost, DatabaseError, PQError
from pqcore.testing.harness import PATIENCE, Harness

IDLE = 0.01
"""Seconds after which a connection counts as idle, and is checked before it is used."""


def cut(harness: Harness) -> int:
    """Make the server end the connections of the test's queues, and wait until they are gone; others may be opened.

    The listening connection is last: its waiter looks immediately, and must not be hit during that look. Then wait a
    moment: a backend need not check a connection that answered just before.
    """
    harness.needs_sessions()
    rows = harness.sql(f"SELECT pid FROM pg_stat_activity WHERE application_name = '{harness.application}'")
    assert rows, "there was no connection to cut"
    waiting = harness.waiting()
    for group in (False, True):
        pids = ", ".join(str(pid) for [pid] in rows if (pid in waiting) is group)
        if pids:
            among = f"FROM pg_stat_activity WHERE pid IN ({pids})"
            harness.sql(f"SELECT pg_terminate_backend(pid) {among}")
            harness.eventually(partial(gone, harness, among))
    threading.Event().wait(IDLE)
    return len(rows)


def gone(harness: Harness, among: str) -> bool:
    """Return whether no connection is left."""
    return not harness.sql(f"SELECT 1 {among}")


def hold_at_once(harness: Harness, pq: Any, number: int) -> None:
    """Open this number of connections, and leave them idle."""
    barrier = threading.Barrier(number)

    def hold() -> None:
        with pq["held"]:
            barrier.wait(PATIENCE)

    with ExitStack() as stack:
        for join in [stack.enter_context(harness.thread(hold)) for _ in range(number)]:
            join()


class Waits:
    """An observer of the moment when a waiter has looked, found nothing, and begins to wait for a notification."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begun = threading.Semaphore(0)
        wait = Listener.wait

        async def noticed(listener: Listener, channel: str, ticket: int, seconds: float, **more: Any) -> None:
            self._begun.release()
            await wait(listener, channel, ticket, seconds, **more)

        monkeypatch.setattr(Listener, "wait", noticed)
        monkeypatch.setattr(channels, "SETTLE", 10 * PATIENCE)  # so that waking is not mistaken for another look

    def begun(self) -> None:
        """Return when the next wait begins."""
        assert self._begun.acquire(timeout=PATIENCE)


def expect_replacement(harness: Harness, pq: Any) -> None:
    """Check that operations continue as if nothing had happened."""
    queue = pq["q"]
    for number in range(12):  # also after a driver that prepares statements has done so
        queue.put(number)
        if number > 9:
            cut(harness)
        assert queue.get().data == number
    cut(harness)
    queue.put("first")
    cut(harness)
    assert queue.get().data == "first"
    cut(harness)
    with queue:
        queue.put("second")
    cut(harness)
    assert queue.count() == 1
    cut(harness)
    assert queue.put_many(range(3))
    cut(harness)
    pq.create()
    assert [job.data for job in queue.get_many(9)] == ["second", 0, 1, 2]


def test_lost_connections_are_replaced(harness: Harness) -> None:
    expect_replacement(harness, harness.pq())


@pytest.mark.requires(Capability.POOL)
def test_lost_connections_of_a_pool_are_replaced(harness: Harness) -> None:
    expect_replacement(harness, harness.pq(pool=harness.pool()))


def expect_all_replaced(harness: Harness, pq: Any) -> None:
    """Check that all lost connections are replaced, not only the first."""
    hold_at_once(harness, pq, 3)
    cut(harness)
    for number in range(5):
        pq["q"].put(number)
    hold_at_once(harness, pq, 3)
    assert pq["q"].count() == 5


def test_lost_connections_of_the_pqs_pool_are_all_replaced(harness: Harness) -> None:
    pq = harness.pq(max_connections=3)
    hold_at_once(harness, pq, 3)
    assert harness.connections() == 3
    expect_all_replaced(harness, pq)


@pytest.mark.requires(Capability.POOL)
def test_lost_connections_of_the_callers_pool_are_all_replaced(harness: Harness) -> None:
    expect_all_replaced(harness, harness.pq(pool=harness.pool(3)))


# In a transaction


def expect_rollback(harness: Harness, pq: Any) -> None:
    """Check that a transaction whose connection is lost raises, and is rolled back."""
    queue = pq["q"]
    queue.put("kept")

    def lose(*, before: bool) -> None:
        with queue:
            assert queue.get().data == "kept"
            queue.put("gone")
            cut(harness)
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


def test_lost_connection_undoes_its_transaction(harness: Harness) -> None:
    expect_rollback(harness, harness.pq())


@pytest.mark.requires(Capability.POOL)
def test_lost_connection_of_a_pool_undoes_its_transaction(harness: Harness) -> None:
    expect_rollback(harness, harness.pq(pool=harness.pool()))


@pytest.mark.parametrize("statement", [False, True])
def test_lost_connection_does_not_hide_the_users_error(harness: Harness, statement: bool) -> None:
    pq = harness.pq(max_connections=1)

    def fail() -> None:
        with pq["q"] as _:
            pq["q"].put("gone")
            cut(harness)
            if statement:
                with pytest.raises(ConnectionLost):
                    pq["q"].put("gone too")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    pq["q"].put("after")  # this needs the place of the lost connection
    assert pq["q"].get().data == "after"


def test_lost_connection_in_an_inner_block_ends_the_whole_transaction(harness: Harness) -> None:
    pq = harness.pq(max_connections=1)

    def lose() -> None:
        with pq["q"]:
            pq["q"].put("gone")
            with pytest.raises(ConnectionLost), pq["other"]:
                cut(harness)
            pq["q"].put("gone too")

    with pytest.raises(PQError):
        lose()
    assert harness.sql("SELECT 1 FROM {table}") == []
    with pq["q"], pq["other"]:
        pq["q"].put("after")
    assert pq["q"].get().data == "after"


# The caller's connection


def test_lost_connection_of_the_caller_raises_an_error_with_advice(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    queue.put("kept")
    cut(harness)
    for _ in range(3):
        with pytest.raises(ConnectionLost) as caught:
            queue.put("gone")
        assert isinstance(caught.value, ConnectionError)
    assert "a DSN or a pool" in str(caught.value)
    for attempt in (queue.count, lambda: queue.get(timeout=PATIENCE), queue.__enter__):
        with pytest.raises(ConnectionLost, match="a DSN or a pool"):
            attempt()
    assert harness.queue().get().data == "kept"


def test_lost_transaction_of_the_caller_raises_connection_lost(harness: Harness) -> None:
    connection = harness.connect()
    queue = harness.pq(connection.raw)["q"]
    connection.begin()
    queue.put("gone")
    cut(harness)
    with pytest.raises(ConnectionLost):
        queue.put("gone too")
    with pytest.raises(DatabaseError):
        connection.commit()
    assert harness.sql("SELECT 1 FROM {table}") == []


def test_waiter_on_the_callers_lost_connection_raises_connection_lost(harness: Harness) -> None:
    harness.needs_sessions()
    queue = harness.pq(harness.connect().raw, poll_interval=PATIENCE)["q"]
    looked = f"FROM pg_stat_activity WHERE application_name = '{harness.application}' AND query_start > "
    [[before]] = harness.sql("SELECT clock_timestamp()::text")

    def wait() -> None:
        with pytest.raises(ConnectionLost):
            queue.get(timeout=PATIENCE)

    began = time.monotonic()
    with harness.thread(wait):
        harness.eventually(lambda: harness.sql(f"SELECT 1 {looked} '{before}'"))
        cut(harness)
    assert time.monotonic() - began < PATIENCE / 2


# Waiting


def expect_survival(harness: Harness, pq: Any, waits: Waits) -> None:
    """Check that a waiter whose connections are cut gets a job that is put later."""
    queue = pq["q"]
    began = time.monotonic()
    with harness.thread(lambda: queue.get(timeout=PATIENCE)) as join:
        waits.begun()
        assert cut(harness) >= 2
        queue.put("later")
        assert join().data == "later"
    assert time.monotonic() - began < PATIENCE / 2
    assert queue.get(block=False) is None


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_survives_the_loss_of_its_connections(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    expect_survival(harness, harness.pq(), Waits(monkeypatch))


@pytest.mark.requires(Capability.LISTEN)
@pytest.mark.requires(Capability.POOL)
def test_waiter_survives_the_loss_of_a_pools_connections(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    pq = harness.pq(pool=harness.pool())
    expect_survival(harness, pq, Waits(monkeypatch))
    pq.close()


@pytest.mark.requires(Capability.LISTEN)
def test_waiter_survives_repeated_losses_and_listens_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "RETRY", 0)
    queue = harness.queue(poll_interval=PATIENCE)
    waits = Waits(monkeypatch)
    with harness.thread(lambda: queue.get(timeout=PATIENCE)) as join:
        for _ in range(3):
            waits.begun()
            cut(harness)
        waits.begun()
        began = time.monotonic()
        harness.sql("INSERT INTO {table} (q_name, data) VALUES ('q', '1')", rows=False)
        assert join().data == 1
    assert time.monotonic() - began < PATIENCE / 2  # woken, and not because it was time to look
