"""Running operations on a worker's own connections and, for a blocking engine, in the worker's own threads.

Users' functions run in other threads, so they cannot delay operations.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from pqcore.db.engine import Engine
from pqcore.db.pool import Pool
from pqcore.db.sources import AdoptedConnection
from pqcore.errors import ConfigurationError, PQError
from pqcore.runner import Runner, call_sync
from pqcore.worker.threads import Threads

T = TypeVar("T")

CONNECTIONS = 5
"""The largest number of a worker's own connections: one each to take jobs, to end jobs and to extend leases, and two
spare ones. One more listens."""


class Bridge(Runner):
    """Runs operations on a worker's own connections.

    Args:
        engine: A queue's engine, which is cloned. The clone of an engine with a DSN has connections of its own, so that
            users' functions cannot use up the connections that extend leases. A pool is shared.
        threads: The largest number of operations that run concurrently on a blocking engine.
        limit: Seconds that a statement may wait for the server's answer, and after which the server ends a
            connection of the worker's own that idles in a transaction.

    Raises:
        ConfigurationError: The engine has a single connection of the caller's.
    """

    def __init__(self, engine: Engine, threads: int, limit: float) -> None:
        if isinstance(engine.source, AdoptedConnection):
            msg = "a worker needs more than one connection: give PQ a DSN or a pool, or use queue.work()"
            raise ConfigurationError(msg)
        self._threads = Threads(threads, "pqcore-worker")  # with an asynchronous engine, no thread starts
        clone = engine.clone_for_worker(CONNECTIONS, limit)
        if isinstance(clone.source, Pool):
            clone.source.application_name = f"pqcore worker {socket.gethostname()}:{os.getpid()}"
        super().__init__(clone, self._threads.run)

    async def finish(
        self, late: Callable[[T | None], None], operation: Callable[..., Awaitable[T]], *arguments: Any
    ) -> T:
        """Run an operation as `call` does; if the caller is cancelled, the operation still runs to its end.

        Args:
            late: Called with the operation's result, or None after an error, if the caller was cancelled meanwhile.
            operation: The operation.
            arguments: The arguments of the operation, after the engine.
        """
        if not self.engine.runtime.suspends:
            result: T = await self._threads.run(partial(call_sync, operation, self.engine, *arguments), late)
            return result
        try:
            return await operation(self.engine, *arguments)
        except asyncio.CancelledError:
            late(None)
            raise

    async def close(self) -> None:
        """Close the connections, if they are the worker's own; a connection in use is closed when it is given back."""
        with suppress(PQError):
            await self.run(self.engine.close)
        self._threads.close()
        await self._threads.ended(calls=True)
