"""The first statement in a block, by pqcore or its user, is part of the block; a refused operation is not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from pqcore.errors import InvalidData, PQError, TransactionAborted
from pqcore.sql.identifiers import quote
from pqcore.testing.harness import Harness

MANY = 70
"""More puts than the number of savepoints that a block keeps."""


class Boom(Exception):
    """A failure of the user's code."""


@pytest.fixture
def orders(harness: Harness) -> str:
    """Make a table of the user."""
    name = f"{quote(harness.schema)}.orders"
    harness.sql(f"CREATE TABLE {name} (number int)", rows=False)
    return name


def insert(harness: Harness, queue: Any, orders: str, number: int) -> None:
    """Run a statement of the user in the open block."""
    harness.sql_within(queue, f"INSERT INTO {orders} VALUES ({number})", rows=False)


def stored(harness: Harness, orders: str) -> tuple[list[int], list[str]]:
    """Return what others see: the numbers of the user's table, and the data of the waiting jobs."""
    numbers = [number for [number] in harness.sql(f"SELECT number FROM {orders} ORDER BY number")]
    jobs = harness.sql("SELECT data::text FROM {table} WHERE dequeued_at IS NULL ORDER BY id")
    return numbers, [data for [data] in jobs]


@pytest.mark.parametrize("first", ["raw", "put", "get", "put_many"])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_block_that_fails_leaves_nothing_whatever_came_first(
    harness: Harness, orders: str, first: str, warm: bool
) -> None:
    queue = harness.queue()
    queue.put("before")
    if warm:  # so that statements that were run before are prepared
        for _ in range(3):
            with queue:
                queue.put("taken")
                queue.put_many(["taken"])
            with queue:
                queue.get()
            queue.get()
    before = stored(harness, orders)
    steps = {
        "raw": lambda: insert(harness, queue, orders, 1),
        "put": lambda: queue.put("new"),
        "get": queue.get,
        "put_many": lambda: queue.put_many(["a", "b"]),
    }
    with pytest.raises(Boom), queue:  # noqa: PT012
        steps.pop(first)()
        for step in steps.values():
            step()
        raise Boom
    assert stored(harness, orders) == before
    assert before[1]


@pytest.mark.parametrize("first", ["raw", "put"])
def test_block_that_ends_well_keeps_everything_whatever_came_first(harness: Harness, orders: str, first: str) -> None:
    queue = harness.queue()
    for number in range(4):
        with queue:
            if first == "put":
                queue.put(number)
            insert(harness, queue, orders, number)
            if first == "raw":
                queue.put(number)
    assert stored(harness, orders) == ([0, 1, 2, 3], ["0", "1", "2", "3"])


def test_refused_put_that_comes_first_leaves_the_block_usable(harness: Harness, orders: str) -> None:
    queue = harness.queue()
    harness.sql("ALTER TABLE {table} ADD CHECK (data::text <> '\"bad\"')", rows=False)
    for number in range(4):
        with queue:
            with pytest.raises(InvalidData):
                queue.put("bad")
            insert(harness, queue, orders, number)
            queue.put("good")
            with pytest.raises(InvalidData):
                queue.put("bad")
    assert stored(harness, orders) == ([0, 1, 2, 3], ['"good"'] * 4)


def test_refused_put_among_many_undoes_itself_only(harness: Harness, orders: str) -> None:
    queue = harness.queue()
    harness.sql("ALTER TABLE {table} ADD CHECK (data::text <> '\"bad\"')", rows=False)
    with queue:
        for number in range(MANY):
            queue.put(number)
            if number % 10 == 9:
                with pytest.raises(InvalidData):
                    queue.put("bad")
        insert(harness, queue, orders, 1)
    assert stored(harness, orders) == ([1], [str(number) for number in range(MANY)])


def test_put_in_an_aborted_transaction_does_not_revive_it(harness: Harness, orders: str) -> None:
    queue = harness.queue()
    with pytest.raises(TransactionAborted), queue:  # noqa: PT012
        queue.put("first")
        insert(harness, queue, orders, 1)
        with suppress(Exception):  # the driver may raise any class
            harness.sql_within(queue, "SELECT 1 / 0")
        with pytest.raises(PQError):
            queue.put("second")
        with pytest.raises(PQError):
            queue.put("third")
    assert stored(harness, orders) == ([], [])


def test_block_keeps_to_the_savepoints_of_its_user(harness: Harness, orders: str) -> None:
    queue = harness.queue()
    with queue:
        queue.put("kept")
        harness.sql_within(queue, "SAVEPOINT mine", rows=False)
        queue.put("undone")
        insert(harness, queue, orders, 1)
        harness.sql_within(queue, "ROLLBACK TO SAVEPOINT mine", rows=False)
        queue.put("after")
        harness.sql_within(queue, "RELEASE SAVEPOINT mine", rows=False)
        queue.put("last")
    assert stored(harness, orders) == ([], ['"kept"', '"after"', '"last"'])
