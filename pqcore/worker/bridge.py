"""The core's operations, awaited, whichever kind of engine they run on.

An asynchronous engine's are awaited as they are.  A blocking engine's are
stepped in threads of the bridge's own, so that users' functions, which have other threads, never
stand in their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from pqcore.connections import CallersConnection, OwnPool
from pqcore.engine import Engine
from pqcore.errors import ConfigurationError
from pqcore.runtime import drive

T = TypeVar("T")

CONNECTIONS = 5
"""A worker's own, at most, beside one to listen on: to take, to finish, to hold on, and two to spare."""


class Bridge:
    """Runs operations on a worker's own connections.

    Args:
        engine: A queue's engine. One with a DSN gets a twin, so that users' functions
            cannot use up the connections that hold on to their jobs; a pool is shared.
        threads: Operations at once, at most, on a blocking engine.

    Raises:
        ConfigurationError: It has a single connection of the caller's.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        if isinstance(engine.source, CallersConnection):
            msg = "a worker needs more than one connection: give PQ a DSN or a pool, or use queue.work()"
            raise ConfigurationError(msg)
        self._own = isinstance(engine.source, OwnPool)
        self.engine = engine.twin(CONNECTIONS) if self._own else engine
        self._threads: ThreadPoolExecutor | None = None
        if not engine.runtime.suspends:
            self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pqcore-worker")

    async def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run an operation of the core's; its first argument, an engine, is not given."""
        return await self.run(operation, self.engine, *arguments)

    async def run(self, operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run a coroutine function of the core's, or of the engine's."""
        if self._threads is None:
            return await operation(*arguments)
        loop = asyncio.get_running_loop()
        step = partial(_step, operation, *arguments)
        return await asyncio.shield(loop.run_in_executor(self._threads, step))

    async def close(self) -> None:
        """Close the connections, if they are the worker's own."""
        if self._own:
            await self.run(self.engine.close)
        if self._threads is not None:
            self._threads.shutdown(wait=False)


def _step(operation: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    return drive(operation(*arguments))  # type: ignore[arg-type]
