"""The core's operations, awaited, whichever kind of engine they run on.

An asynchronous engine's are awaited as they are.  A blocking engine's are
stepped in threads of the bridge's own, so that users' functions, which have other threads, never
stand in their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.db.sources import AdoptedConnection
from pqcore.errors import ConfigurationError, PQError
from pqcore.worker.pools import Threads

T = TypeVar("T")

CONNECTIONS = 5
"""A worker's own, at most, beside one to listen on: to take, to finish, to hold on, and two to spare."""


class Bridge:
    """Runs operations on a worker's own connections.

    Args:
        engine: A queue's engine, which is cloned. The clone of one with a DSN has connections of its own, so that
            users' functions cannot use up those that hold on to their jobs; a pool is shared.
        threads: Operations at once, at most, on a blocking engine.
        limit: Seconds that a statement may wait for the server's answer, and after which the server ends a
            connection of the worker's own that idles in a transaction.

    Raises:
        ConfigurationError: It has a single connection of the caller's.
    """

    def __init__(self, engine: Engine, threads: int, limit: float) -> None:
        if isinstance(engine.source, AdoptedConnection):
            msg = "a worker needs more than one connection: give PQ a DSN or a pool, or use queue.work()"
            raise ConfigurationError(msg)
        self.engine = engine.clone_for_worker(CONNECTIONS, limit)
        self._threads = None if engine.runtime.suspends else Threads(threads, "pqcore-worker")

    async def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run an operation of the core's; its first argument, an engine, is not given."""
        return await self.run(operation, self.engine, *arguments)

    async def run(self, operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run a coroutine function of the core's, or of the engine's."""
        if self._threads is None:
            return await operation(*arguments)
        result: T = await self._threads.run(partial(_step, operation, *arguments))
        return result

    async def finish(
        self, late: Callable[[T | None], None], operation: Callable[..., Awaitable[T]], *arguments: Any
    ) -> T:
        """Run an operation as `call` does, and see it through.

        Args:
            late: Told what it returned, None if it failed, where the caller was cancelled meanwhile.
            operation: The operation.
            arguments: All but its first.
        """
        if self._threads is not None:
            result: T = await self._threads.run(partial(_step, operation, self.engine, *arguments), late)
            return result
        try:
            return await operation(self.engine, *arguments)
        except asyncio.CancelledError:
            late(None)
            raise

    async def close(self) -> None:
        """Close the connections, if they are the worker's own; those in use, when they are given back."""
        with suppress(PQError):
            await self.run(self.engine.close)
        if self._threads is not None:
            self._threads.close()
            await self._threads.ended(calls=True)


def _step(operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    return run_sync(operation(*arguments))  # type: ignore[arg-type]
