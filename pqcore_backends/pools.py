"""Drivers' pools, opened as their users open them, for the test kit's scenarios of the capability POOL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any


def psycopg2(dsn: str, size: int, prepared: bool) -> Any:
    """Open a pool of psycopg2."""
    from psycopg2.pool import ThreadedConnectionPool

    return ThreadedConnectionPool(1, size, dsn)


def psycopg(dsn: str, size: int, prepared: bool) -> Any:
    """Open a pool of psycopg_pool."""
    from psycopg_pool import ConnectionPool

    return ConnectionPool(dsn, min_size=1, max_size=size, open=True)


async def psycopg_async(dsn: str, size: int, prepared: bool) -> Any:
    """Open an asynchronous pool of psycopg_pool."""
    from psycopg_pool import AsyncConnectionPool

    pool = AsyncConnectionPool(dsn, min_size=1, max_size=size, open=False)
    await pool.open()
    return pool


def asyncpg(dsn: str, size: int, prepared: bool) -> Awaitable[Any]:
    """Open a pool of asyncpg."""
    from asyncpg import create_pool

    options = {} if prepared else {"statement_cache_size": 0}
    made: Awaitable[Any] = create_pool(dsn, min_size=1, max_size=size, **options)
    return made


OPENERS: Mapping[tuple[str, str], Callable[[str, int, bool], Any]] = {
    ("psycopg2", "blocking"): psycopg2,
    ("psycopg", "blocking"): psycopg,
    ("psycopg", "async"): psycopg_async,
    ("asyncpg", "async"): asyncpg,
}
"""The functions that open pools, by driver and mode."""
