"""Pools of the caller that compute addresses and passwords by functions, for each new connection."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.pool
import psycopg_pool
import pytest

from pqcore import PQ, AsyncPQ
from pqcore.db import pool
from pqcore.errors import PoolTimeout
from pqcore.testing.harness import PATIENCE
from pqcore_backends import asyncpg as asyncpg_backend
from pqcore_backends.asyncpg_dsn import arguments

NEVER = 3600


@pytest.fixture(autouse=True)
def _table(dsn: str) -> None:
    with PQ(dsn) as pq:
        pq.create()


async def given(value: Any) -> Any:
    return value


def woken(pq: PQ) -> None:
    """Check that a waiter listens: a notification wakes it although it does not poll."""
    queue = pq.queue("q", poll_interval=NEVER)
    assert queue.get(timeout=0.05) is None
    assert queue.engine.listener._session is not None  # type: ignore[union-attr]
    queue.put("a")
    job = queue.get(timeout=PATIENCE)
    assert job is not None


async def woken_async(pq: AsyncPQ) -> None:
    queue = pq.queue("q", poll_interval=NEVER)
    assert await queue.get(timeout=0.05) is None
    assert queue.engine.listener._session is not None  # type: ignore[union-attr]
    waiter = asyncio.create_task(queue.get(timeout=PATIENCE))
    await queue.put("a")
    job = await waiter
    assert job is not None
    await queue.engine.listener.close()


@pytest.mark.parametrize("which", ["conninfo", "kwargs"])
def test_psycopg_pool_with_functions_gets_a_separate_listening_connection(dsn: str, which: str) -> None:
    options: dict[str, Any] = {"conninfo": dsn, "kwargs": {"application_name": "rotating"}}
    options[which] = lambda value=options[which]: value
    with psycopg_pool.ConnectionPool(min_size=1, max_size=2, open=True, **options) as pool:
        woken(PQ(pool=pool))


@pytest.mark.parametrize("which", ["conninfo", "kwargs"])
@pytest.mark.parametrize("awaited", [False, True], ids=["function", "coroutine function"])
def test_async_psycopg_pool_with_functions_gets_a_separate_listening_connection(
    dsn: str, which: str, awaited: bool
) -> None:
    options: dict[str, Any] = {"conninfo": dsn, "kwargs": {"application_name": "rotating"}}
    value = options[which]
    options[which] = (lambda: given(value)) if awaited else (lambda: value)

    async def main() -> None:
        async with psycopg_pool.AsyncConnectionPool(min_size=1, max_size=2, open=False, **options) as pool:
            await woken_async(AsyncPQ(pool=pool))

    asyncio.run(main())


def test_asyncpg_pool_with_a_connect_function_gets_a_listening_connection(dsn: str) -> None:
    async def connect(*args: Any, **kwargs: Any) -> Any:
        assert args == ("project:region:instance",)
        return await asyncpg.connect(**arguments(dsn), **kwargs)

    async def main() -> None:
        async with asyncpg.create_pool("project:region:instance", connect=connect, min_size=1, max_size=2) as pool:
            await woken_async(AsyncPQ(pool=pool))

    asyncio.run(main())


def test_asyncpg_pool_with_a_password_function_gets_a_listening_connection(dsn: str) -> None:
    async def main() -> None:
        options = {**arguments(dsn), "password": lambda: given("fresh")}
        async with asyncpg.create_pool(min_size=1, max_size=2, **options) as pool:
            await woken_async(AsyncPQ(pool=pool))

    asyncio.run(main())


def test_pool_without_a_listening_connection_makes_waiters_poll_with_one_warning_for_each_reason(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    def conninfo() -> str:
        if told:
            raise KeyError(next(reasons))
        return dsn

    reasons = itertools.cycle(["no such secret", "no vault"])
    told: list[str] = []
    with psycopg_pool.ConnectionPool(conninfo, min_size=1, max_size=1, open=True) as pool, PQ(pool=pool) as pq:
        pool.wait(PATIENCE)
        told.append("the pool has its connection")
        queue = pq["q"]
        with caplog.at_level(logging.WARNING):
            for _ in range(4):
                assert queue.get(timeout=0.01) is None
                queue.engine.listener._retry_at = 0.0
        said = [record.getMessage() for record in caplog.records]
        assert said == [
            f"cannot listen, so waiters poll: KeyError: '{reason}'" for reason in ("no such secret", "no vault")
        ]
        queue.put("a")
        job = queue.get(timeout=PATIENCE)
        assert job is not None


ADVICE = "the connection pool is exhausted: give it more connections, or look for transactions that are held open"


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_exhausted_pool_of_the_caller_raises_pool_timeout_with_advice(dsn: str, driver: str) -> None:
    pool: Any = (
        psycopg2.pool.ThreadedConnectionPool(1, 1, dsn)
        if driver == "psycopg2"
        else psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.1, open=True)
    )
    with PQ(pool=pool, pool_timeout=0.02) as pq:
        held = pool.getconn()
        with pytest.raises(PoolTimeout, match=ADVICE):
            pq["q"].put(1)
        pool.putconn(held)
        pq["q"].put(2)
        assert pq["q"].count() == 1


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_exhausted_asynchronous_pool_of_the_caller_raises_pool_timeout_with_advice(
    dsn: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        pool: Any = (
            psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=0.1, open=False)
            if driver == "psycopg"
            else asyncpg.create_pool(dsn, min_size=1, max_size=1)
        )
        async with pool, AsyncPQ(pool=pool, pool_timeout=0.02) as pq:
            await pq["q"].count()  # while a connection is free, the pool has time to open it
            monkeypatch.setattr(asyncpg_backend, "POOL_WAIT", 0.1)
            async with pool.connection() if driver == "psycopg" else pool.acquire():
                with pytest.raises(PoolTimeout, match=ADVICE):
                    await asyncio.wait_for(pq["q"].put(1), PATIENCE)
            monkeypatch.setattr(asyncpg_backend, "POOL_WAIT", PATIENCE)
            await pq["q"].put(2)
            assert await pq["q"].count() == 1

    asyncio.run(main())


class _Own(psycopg2.pool.AbstractConnectionPool):
    """A pool of another library, which does not tell how it connects."""

    def __init__(self, dsn: str) -> None:
        self.closed = False
        self.maxconn = 1
        self._free = [psycopg2.connect(dsn)]

    def getconn(self, key: Any = None) -> Any:
        return self._free.pop()

    def putconn(self, conn: Any, key: Any = None, close: bool = False) -> None:
        self._free.append(conn)

    def closeall(self) -> None:
        for connection in self._free:
            connection.close()


def test_pool_of_an_unknown_class_makes_waiters_poll_with_one_warning(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with PQ(pool=_Own(dsn)) as pq:
        queue = pq["q"]
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert queue.get(timeout=0.01) is None
                queue.engine.listener._retry_at = 0.0
        [said] = [record.getMessage() for record in caplog.records]
        assert said.startswith("cannot listen, so waiters poll: the pool does not tell how it connects")
        queue.put("a")
        job = queue.get(timeout=PATIENCE)
        assert job is not None


@pytest.mark.parametrize("backend", ["psycopg2", "psycopg"])
def test_role_without_plpgsql_has_its_statements_planned_again(
    dsn: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "REPLAN", 0.0)
    role, parts = f"role_{time.time_ns()}", urlsplit(dsn)
    with PQ(dsn) as pq, psycopg.connect(dsn, autocommit=True) as connection:
        pq.create()
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}".encode())
            connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}".encode())
            connection.execute("REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC")
            through = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
            with PQ(through, backend=backend, max_connections=1) as other:
                queue = other["a"]
                for number in range(8):
                    queue.put(number)
                    time.sleep(2 * pool.FRESH)  # otherwise the pool lends the connection again without a check
                    job = queue.get()
                    assert job is not None
                    assert job.data == number
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
