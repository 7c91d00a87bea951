"""A server that becomes read-only under open connections: pqcore connects to the other server that the DSN names."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import asyncpg
import psycopg
import psycopg2.pool
import psycopg_pool
import pytest

from pqcore import PQ, AsyncPQ, tasks
from pqcore.db import listener as waiting
from pqcore.db import pool
from pqcore.errors import DatabaseError
from pqcore.testing.harness import PATIENCE
from pqcore.worker import Worker
from pqcore_backends.embedded import EmbeddedServer

FACES = [("psycopg2", PQ), ("psycopg", PQ), ("psycopg", AsyncPQ), ("asyncpg", AsyncPQ)]
TASKS: dict[Any, Any] = {PQ: tasks.PQ, AsyncPQ: tasks.AsyncPQ}
APPLICATION = "leaves"


def execute(server: EmbeddedServer, *statements: str) -> list[Any]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("SET transaction_read_only = off")
        connection.execute("SET default_transaction_read_only = off")
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


class Pair:
    """Two servers; clients connect to the first one that accepts writes."""

    def __init__(self, first: EmbeddedServer, second: EmbeddedServer) -> None:
        self.first = first
        self.second = second
        hosts = ",".join(f"{server.host}:{server.port}" for server in (first, second))
        options = f"target_session_attrs=read-write&application_name={APPLICATION}"
        self.dsn = f"postgresql://postgres@{hosts}/postgres?{options}"

    def turn(self) -> None:
        """Make the first server refuse writes, even over open connections."""
        execute(self.first, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        deadline = time.monotonic() + PATIENCE
        with psycopg.connect(self.first.dsn(), autocommit=True) as connection:
            while connection.execute("SHOW default_transaction_read_only").fetchone() != ("on",):
                assert time.monotonic() < deadline

    def left(self) -> bool:
        """Return whether no client is connected to the first server."""
        sessions = f"SELECT pid FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
        return execute(self.first, sessions) == []

    def reset(self) -> None:
        execute(self.first, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
        for server in (self.first, self.second):
            execute(server, "TRUNCATE queue, queue_results")
        while execute(self.first, "SHOW default_transaction_read_only") != [("off",)]:
            pass


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    with EmbeddedServer() as first, EmbeddedServer() as second:
        for server in (first, second):
            with PQ(server.dsn()) as pq:
                pq.create()
        yield Pair(first, second)


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    yield servers
    servers.reset()


async def maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await maybe(condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_read_only_server_connections_are_replaced_when_idle_or_listening(pair: Pair, backend: str, face: Any) -> None:
    async def main() -> None:
        pq = face(pair.dsn, backend=backend)
        queue = pq["q"]
        await maybe(queue.put(1))
        assert await maybe(queue.get()) is not None
        if face is AsyncPQ:
            await asyncio.gather(*[queue.count() for _ in range(4)])  # over connections that idle then
        assert await maybe(queue.get(timeout=0.3)) is None  # it listens
        assert not pair.left()
        pair.turn()
        with pytest.raises(DatabaseError, match="target_session_attrs=read-write") as caught:
            await maybe(queue.put(2))
        assert caught.value.sqlstate == "25006"
        await maybe(queue.put(3))
        assert [job.data for job in await maybe(queue.get_many(5))] == [3]
        await until(pair.left)
        assert await maybe(queue.get(timeout=0.3)) is None  # it listens again
        await maybe(pq.close())

    asyncio.run(main())


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_read_only_server_is_left_by_a_block_too(pair: Pair, backend: str, face: Any) -> None:
    async def put_in_block(queue: Any) -> None:
        if face is AsyncPQ:
            async with queue:
                await queue.put(1)
        else:
            with queue:
                queue.put(1)

    async def main() -> None:
        pq = face(pair.dsn, backend=backend)
        queue = pq["q"]
        await put_in_block(queue)
        pair.turn()
        with pytest.raises(DatabaseError, match="target_session_attrs=read-write"):
            await put_in_block(queue)
        await put_in_block(queue)
        await until(pair.left)
        await maybe(pq.close())

    asyncio.run(main())
    assert execute(pair.second, "SELECT count(*) FROM queue") == [(1,)]


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_read_only_server_is_left_by_a_client_that_only_reads(
    pair: Pair, backend: str, face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "REPLAN", 0.1)
    monkeypatch.setattr(waiting, "PROBE", 0.1)

    async def main() -> None:
        pq = face(pair.dsn, backend=backend)
        queue = pq["q"]
        with PQ(pair.second.dsn()) as other:
            other["q"].put_many([1, 2])
        assert await maybe(queue.count()) == 0
        pair.turn()

        async def moved() -> bool:
            return bool(await maybe(queue.count()) == 2)

        await until(moved)
        await until(pair.left)
        await maybe(pq.close())

    asyncio.run(main())


@pytest.mark.parametrize(("backend", "face"), FACES)
def test_read_only_server_is_left_by_a_worker(pair: Pair, backend: str, face: Any) -> None:
    async def main() -> None:
        ran: list[int] = []
        pq: Any = TASKS[face](pair.dsn, backend=backend)
        queue: Any = pq["q"]

        def note(job_id: int, number: int) -> None:
            ran.append(number)

        task = queue.task()(note)
        worker = Worker(queue, poll_interval=0.1)
        working = asyncio.create_task(worker.run())
        await maybe(task(1))
        await until(lambda: ran == [1])
        pair.turn()
        with suppress(DatabaseError):
            await maybe(task(2))  # the put goes to the first server, which refuses it
        await maybe(task(3))
        await until(lambda: 3 in ran)
        await until(pair.left)
        worker.stop()
        await working
        await maybe(pq.close())
        assert ran == [1, 3]

    asyncio.run(main())


async def psycopg_async_pool(dsn: str) -> Any:
    pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=2, max_size=2, open=False)
    await pool.open(wait=True)
    return pool


POOLS: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "psycopg2": (PQ, lambda dsn: psycopg2.pool.ThreadedConnectionPool(2, 2, dsn)),
    "psycopg": (PQ, lambda dsn: psycopg_pool.ConnectionPool(dsn, min_size=2, max_size=2, open=True)),
    "psycopg-async": (AsyncPQ, psycopg_async_pool),
    "asyncpg": (AsyncPQ, lambda dsn: asyncpg.create_pool(dsn, min_size=2, max_size=2)),
}


@pytest.mark.parametrize("kind", POOLS)
def test_read_only_server_is_left_by_the_callers_pool(pair: Pair, kind: str) -> None:
    face, make = POOLS[kind]

    async def main() -> None:
        pool = await maybe(make(pair.dsn))
        pq = face(pool=pool)
        queue = pq["q"]
        await maybe(queue.put(1))
        assert await maybe(queue.get(timeout=0.3)) is not None
        assert await maybe(queue.get(timeout=0.3)) is None  # it listens
        pair.turn()
        refused = 0
        while True:
            try:
                await maybe(queue.put(2))
                break
            except DatabaseError as exc:
                assert exc.sqlstate == "25006"  # noqa: PT017 - there may be several, one a connection
                refused += 1
                assert refused <= 2
        assert refused >= 1
        assert [job.data for job in await maybe(queue.get_many(5))] == [2]
        await maybe(pq.close())

    asyncio.run(main())
