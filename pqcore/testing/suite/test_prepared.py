"""Statements with and without preparation on the server."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from pqcore.backend import Capability
from pqcore.errors import DatabaseError
from pqcore.testing.harness import Harness

TIMES = 12
"""A number of runs after which drivers that prepare statements have done so."""


def prepared(harness: Harness, *, allowed: bool) -> list[str]:
    """Return the statements that a connection has prepared after some use."""
    queue = harness.queue(max_connections=1, prepared=allowed)
    for number in range(TIMES):
        queue.put(number)
    assert [queue.get().data for _ in range(TIMES)] == list(range(TIMES))
    with queue:
        rows = harness.sql_within(queue, "SELECT statement FROM pg_prepared_statements")
    return [text for (text,) in rows if str(harness.table) in text]


@pytest.mark.requires(Capability.PREPARED)
def test_hot_statements_are_prepared(harness: Harness) -> None:
    statements = prepared(harness, allowed=True)
    assert any("INSERT" in text for text in statements)
    assert any("SKIP LOCKED" in text for text in statements)


def test_statements_are_not_prepared_where_preparing_is_not_allowed(harness: Harness) -> None:
    assert prepared(harness, allowed=False) == []


def other_types(harness: Harness) -> None:
    """Change the types of columns that statements return."""
    [[kind]] = harness.sql(
        "SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = '{table}'::regclass"
        " AND attname = 'attempts'"
    )
    other = {"integer": "bigint", "bigint": "integer"}[kind]
    harness.sql(f"ALTER TABLE {{table}} ALTER attempts TYPE {other}, ALTER id TYPE {kind}", rows=False)


def use(queue: Any) -> None:
    """Put, take, lease and acknowledge, as often as drivers need to prepare the statements."""
    for number in range(TIMES):
        assert queue.put(number)
        assert queue.get(block=False).data == number
        assert queue.put(number)
        leased = queue.lease(60)
        leased.extend(60)
        leased.ack()


def test_changed_column_types_stop_no_statement(harness: Harness) -> None:
    queue = harness.queue(max_connections=1)
    for _ in range(3):
        use(queue)
        other_types(harness)


def test_changed_column_types_stop_no_put_in_a_block(harness: Harness) -> None:
    queue = harness.queue(max_connections=1)
    for _ in range(3):
        use(queue)
        queue.put("waits")
        other_types(harness)
        with queue:
            assert queue.put("put")
            assert queue.get(block=False).data == "waits"
        assert queue.get(block=False).data == "put"


def test_changed_column_types_fail_at_most_one_get_in_a_block(harness: Harness) -> None:
    queue = harness.queue(max_connections=1)
    use(queue)
    queue.put("waits")
    other_types(harness)
    with suppress(DatabaseError), queue:
        queue.get(block=False)
        raise DatabaseError("undone")
    with queue:
        assert queue.get(block=False).data == "waits"
    assert queue.count() == 0


def test_changed_column_types_stop_no_operation_on_the_callers_connection(harness: Harness) -> None:
    connection = harness.connect()
    queue, lent = harness.pq(connection.raw)["q"], harness.queue()
    for _ in range(3):
        use(queue)
        for number in range(TIMES):
            lent.put(number, connection=connection.raw)
        queue.clear()
        other_types(harness)
        assert lent.put("lent", connection=connection.raw)
        assert queue.get(block=False).data == "lent"
