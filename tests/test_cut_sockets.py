"""A socket that tells only that it is closed: who was in the middle of something hears that the connection is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from pqcore import PQ
from pqcore.errors import ConnectionLost, OutcomeUnknown


def hang_up(fileno: int) -> None:
    """Have a file be one of which poll says POLLHUP and nothing else, as of a socket at the moment when it is reset."""
    reading, writing = os.pipe()
    os.close(writing)
    os.dup2(reading, fileno)
    os.close(reading)


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def test_a_statement(dsn: str, pq: PQ) -> None:
    connection = psycopg.connect(dsn, autocommit=True)
    queue = PQ(connection)["q"]
    assert queue.count() == 0
    hang_up(connection.fileno())
    with pytest.raises(ConnectionLost):
        queue.count()
    assert connection.closed


def test_a_commit(pq: PQ) -> None:
    queue = pq["q"]

    def put_and_be_cut() -> None:
        with queue as cursor:
            queue.put(1)
            hang_up(cursor.connection.fileno())

    with pytest.raises(OutcomeUnknown):
        put_and_be_cut()
    assert queue.count() == 0  # over a new connection
