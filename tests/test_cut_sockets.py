"""Connections that are cut in the middle of a call: the call raises `ConnectionLost`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from pqcore import PQ, AsyncPQ
from pqcore.errors import ConnectionLost, OutcomeUnknown
from pqcore.sql.statement import plain
from pqcore_backends.asyncpg import AsyncpgBackend, AsyncpgSession
from pqcore_backends.psycopg import AsyncPsycopgSession


def hang_up(fileno: int) -> None:
    """Make poll report only POLLHUP for a file, as for a socket at the moment when it is reset."""
    reading, writing = os.pipe()
    os.close(writing)
    os.dup2(reading, fileno)
    os.close(reading)


@pytest.fixture
def pq(dsn: str) -> Iterator[PQ]:
    with PQ(dsn, backend="psycopg") as made:
        made.create()
        yield made


def test_statement_on_a_cut_socket_raises_connection_lost(dsn: str, pq: PQ) -> None:
    connection = psycopg.connect(dsn, autocommit=True)
    queue = PQ(connection)["q"]
    assert queue.count() == 0
    hang_up(connection.fileno())
    with pytest.raises(ConnectionLost):
        queue.count()
    assert connection.closed


def test_commit_on_a_cut_socket_raises_outcome_unknown(pq: PQ) -> None:
    queue = pq["q"]

    def put_and_be_cut() -> None:
        with queue as cursor:
            queue.put(1)
            hang_up(cursor.connection.fileno())

    with pytest.raises(OutcomeUnknown):
        put_and_be_cut()
    assert queue.count() == 0  # over a new connection


def test_call_of_an_async_driver_without_a_socket_is_left_after_the_answer_timeout(
    dsn: str, pq: PQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsyncPsycopgSession, "abort", lambda session: setattr(session, "let_go", True))
    monkeypatch.setattr(AsyncPsycopgSession, "usable", lambda session: not getattr(session, "let_go", False))
    monkeypatch.delattr(AsyncPsycopgSession, "cancel")

    async def main() -> None:
        async with AsyncPQ(dsn, backend="psycopg", answer_timeout=1.0) as other:
            queue = other["q"]
            assert await queue.count() == 0
            with psycopg.connect(dsn) as holder:
                holder.execute("LOCK TABLE queue IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(ConnectionLost, match="broken off"):
                    await asyncio.wait_for(queue.count(), 60)
                with pytest.raises(OutcomeUnknown, match="broken off"):
                    await asyncio.wait_for(queue.put(1), 60)
                holder.rollback()
            assert await queue.count() <= 1  # over a new connection

    asyncio.run(main())


class Cut(asyncpg.Connection):  # type: ignore[misc]
    """A connection of asyncpg that is aborted between two messages of a call, when the test says so."""

    cuts = False

    async def _get_statement(self, *arguments: Any, **options: Any) -> Any:
        statement = await super()._get_statement(*arguments, **options)
        if self.cuts:
            self.terminate()
        return statement


def test_asyncpg_connection_aborted_within_an_operation_raises_connection_lost(dsn: str, pq: PQ) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(dsn, connection_class=Cut)
        queue = AsyncPQ(connection)["q"]
        assert await queue.count() == 0
        connection.cuts = True
        with pytest.raises(ConnectionLost):
            await queue.count()

    asyncio.run(main())


CALLS: dict[str, Callable[[AsyncpgSession], Awaitable[Any]]] = {
    "execute": lambda session: session.execute(plain("one", "SELECT 1"), ()),
    "listen": lambda session: session.listen("another"),
    "unlisten": lambda session: session.unlisten(["heard"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_asyncpg_connection_aborted_within_any_call_raises_a_driver_error(dsn: str, call: str) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(dsn, connection_class=Cut)
        session = AsyncpgBackend().wrap(connection)
        await session.listen("heard")
        connection.cuts = True
        with pytest.raises(asyncpg.ConnectionDoesNotExistError):
            await CALLS[call](session)
        with pytest.raises(AsyncpgBackend.errors):
            await session.cancel()

    asyncio.run(main())
