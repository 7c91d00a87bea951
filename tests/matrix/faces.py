"""Scenarios over each driver and face, for the modules of tests that cells of the matrix run instead of the suite."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

from pqcore import PQ, AsyncPQ
from pqcore.db.runtime import run_sync
from pqcore.errors import ConnectionLost

DRIVERS = ("psycopg2", "psycopg", "psycopg-async", "asyncpg")
PATIENCE = 20.0


def dsn() -> str:
    """Return the DSN of the cell."""
    return os.environ["PQCORE_TEST_DSN"]


def _prepared() -> bool | None:
    """Return what the cell says of the proxy."""
    return {"yes": True, "no": False}.get(os.environ.get("PQCORE_TEST_PREPARED", ""))


async def done(result: Any) -> Any:
    """Return the result, awaited if it has to be."""
    return await result if inspect.isawaitable(result) else result


def paused(pq: Any, seconds: float) -> Any:
    """Sleep, or return what sleeps when awaited."""
    return time.sleep(seconds) if isinstance(pq, PQ) else asyncio.sleep(seconds)


def over(driver: str, scenario: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with a PQ that has a table of its own; over a blocking driver, nothing that is awaited waits."""
    name, _, suspends = driver.partition("-")
    blocking = not suspends and name != "asyncpg"

    async def ran() -> None:
        pq: Any = (PQ if blocking else AsyncPQ)(dsn(), backend=name, table=f"{driver} queue", prepared=_prepared())
        try:
            await _create(pq)
            await scenario(pq)
        finally:
            await done(pq.close())

    if blocking:
        run_sync(ran())
    else:
        asyncio.run(ran())


def worked(pq: Any, work: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    """Run what needs an event loop; return what is awaited if one is running."""
    return asyncio.run(work()) if isinstance(pq, PQ) else work()


async def _create(pq: Any) -> None:
    """Make the table as soon as the server has room: it may still count the connection of the test before."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            await done(pq.create())
        except ConnectionLost:
            if time.monotonic() > deadline:
                raise
            await done(paused(pq, 0.1))
        else:
            return
