"""Pools of drivers' own, opened as users of the drivers open them: for the scenarios of the capability POOL."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from pqcore.backend import BackendSpec, Mode

POOLS = "pqcore.testing.pools"
"""The group of entry points by which other backends say how to open a pool: each under the backend's name, that of an
asynchronous one with ``-async`` after it where the driver has both faces."""


async def open_pool(spec: BackendSpec, dsn: str, size: int) -> Any:
    """Open a pool of a backend's driver.

    Args:
        spec: The backend.
        dsn: Where to connect.
        size: Connections, at most.

    Raises:
        ConfigurationError: Nobody has said how to.
    """
    opened = _opener_for(spec)(dsn, size)
    return await opened if inspect.isawaitable(opened) else opened


def _opener_for(spec: BackendSpec) -> Callable[[str, int], Any]:
    for name in (f"{spec.name}-async", spec.name)[spec.mode == "blocking" :]:
        for point in importlib.metadata.entry_points(group=POOLS, name=name):
            opener: Callable[[str, int], Any] = point.load()
            return opener
    for (driver, mode), known in _KNOWN.items():
        if driver in spec.requires and mode == spec.mode:
            return known
    raise ConfigurationError(
        f"backend {spec.name!r} offers POOL, and the test kit cannot open a pool of its driver: name a function of a"
        f' DSN and a size by an entry point in the group {POOLS}, as in {spec.name} = "package.module:open_pool"'
    )


def _psycopg2(dsn: str, size: int) -> Any:
    from psycopg2.pool import ThreadedConnectionPool

    return ThreadedConnectionPool(1, size, dsn)


def _psycopg(dsn: str, size: int) -> Any:
    from psycopg_pool import ConnectionPool

    return ConnectionPool(dsn, min_size=1, max_size=size, open=True)


async def _psycopg_async(dsn: str, size: int) -> Any:
    from psycopg_pool import AsyncConnectionPool

    pool = AsyncConnectionPool(dsn, min_size=1, max_size=size, open=False)
    await pool.open()
    return pool


def _asyncpg(dsn: str, size: int) -> Awaitable[Any]:
    import asyncpg

    from pqcore.testing.databases import prepared

    options = {} if prepared() else {"statement_cache_size": 0}
    made: Awaitable[Any] = asyncpg.create_pool(dsn, min_size=1, max_size=size, **options)
    return made


_KNOWN: Mapping[tuple[str, Mode], Callable[[str, int], Any]] = {
    ("psycopg2", "blocking"): _psycopg2,
    ("psycopg", "blocking"): _psycopg,
    ("psycopg", "async"): _psycopg_async,
    ("asyncpg", "async"): _asyncpg,
}
