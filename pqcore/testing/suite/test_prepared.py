"""Statements prepared on the server, and doing without."""

from __future__ import annotations

import pytest

from pqcore.backend import Capability
from pqcore.testing.harness import Harness

TIMES = 12
"""Some drivers prepare a statement once it has run a few times."""


def prepared(harness: Harness, *, allowed: bool) -> list[str]:
    """The statements that a connection has prepared after some use."""
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


def test_nothing_is_prepared_where_it_must_not_be(harness: Harness) -> None:
    assert prepared(harness, allowed=False) == []
