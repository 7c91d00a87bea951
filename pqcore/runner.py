"""Runners of `pqcore.operations` on a blocking or an asynchronous engine, for callers that accept either engine.

`Runner` serves coroutines, `BlockingRunner` serves blocking code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from pqcore.async_queue import AsyncPQ
from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.errors import BackendNotInstalled, PQError, UnknownBackend
from pqcore.queue import PQ
from pqcore.settings import QueueSettings

T = TypeVar("T")

CONNECTIONS = 4
"""The largest number of connections of a `PQ` that this module opens."""
UNWIND = 5.0
"""Seconds that an interrupted operation may take to end by itself."""


class InThread(Protocol):
    """A function that calls another function in a thread, as `asyncio.to_thread` does."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


def open_async(dsn: str, **options: Any) -> AsyncPQ | PQ:
    """Open an `AsyncPQ`, or a `PQ` if the backend has only a blocking face.

    Args:
        dsn: The DSN of the database.
        **options: Options of `PQ`. Without ``max_connections``, at most `CONNECTIONS` are opened. Without ``prepared``,
            no statement is prepared, because tools run few statements, and a pooler may be in between.

    Raises:
        UnknownBackend: No backend has the name.
        BackendNotInstalled: The backend's driver is missing.
        ConfigurationError: An option has an invalid value.
    """
    return _open(AsyncPQ, PQ, dsn, options)


def open_blocking(dsn: str, **options: Any) -> PQ | AsyncPQ:
    """Open a `PQ`, or an `AsyncPQ` if the backend has only an asynchronous face; see `open_async`."""
    return _open(PQ, AsyncPQ, dsn, options)


def _open(
    face: Callable[..., PQ | AsyncPQ], other: Callable[..., PQ | AsyncPQ], dsn: str, options: dict[str, Any]
) -> PQ | AsyncPQ:
    options = {"max_connections": CONNECTIONS, "prepared": False, **options}
    try:
        return face(dsn, **options)
    except (UnknownBackend, BackendNotInstalled):  # a backend for the other face may be installed
        return other(dsn, **options)


def call_sync(operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> T:
    """Call a coroutine function of a blocking engine, and run the coroutine to its end.

    Raises:
        PQError: The coroutine suspended, so its engine is not blocking; or the operation raised the error.
    """
    coroutine: Any = operation(*arguments, **more)
    result: T = run_sync(coroutine)
    return result


class Runner:
    """A runner of operations for coroutines; operations of a blocking engine run in threads.

    Args:
        engine: The engine.
        in_thread: A function that calls another function in a thread. It is not used for an asynchronous engine.

    Attributes:
        engine: The engine.
    """

    def __init__(self, engine: Engine, in_thread: InThread = asyncio.to_thread) -> None:
        self.engine = engine
        self._in_thread = in_thread

    def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> Awaitable[T]:
        """Run an operation, whose first argument is the engine.

        Returns:
            The method returns an awaitable, and the caller must await it immediately. The method is not a coroutine
            itself, because workers call it for each batch of jobs.
        """
        return self.run(operation, self.engine, *arguments, **more)

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> Awaitable[T]:
        """Run a coroutine function that uses the engine, such as a method of the engine."""
        if self.engine.runtime.suspends:
            return function(*arguments, **more)
        return self._in_thread(partial(call_sync, function, *arguments, **more))


class PQRunner(Runner):
    """A runner of operations on the engine of a `PQ` or an `AsyncPQ`, for coroutines.

    Args:
        pq: The `PQ` or `AsyncPQ`.
        in_thread: See `Runner`.

    Attributes:
        pq: The `PQ` or `AsyncPQ`.
    """

    def __init__(self, pq: PQ | AsyncPQ, in_thread: InThread = asyncio.to_thread) -> None:
        super().__init__(pq.engine, in_thread)
        self.pq = pq

    def queue(self, name: str) -> QueueSettings:
        """Return a queue, as ``pq.queue(name)`` does."""
        return self.pq.queue(name)

    async def close(self) -> None:
        """Close the connections, even if they are lost."""
        with suppress(PQError):
            await self.call(Engine.close)


class BlockingRunner:
    """A runner that blocks until an operation ends; for an asynchronous engine, it runs an event loop.

    Args:
        engine: The engine.

    Attributes:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loop = asyncio.new_event_loop() if engine.runtime.suspends else None

    def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> T:
        """Run an operation, whose first argument is the engine."""
        if self._loop is None:
            return call_sync(operation, self.engine, *arguments, **more)
        coroutine: Any = operation(self.engine, *arguments, **more)
        task = self._loop.create_task(coroutine)
        try:
            result: T = self._loop.run_until_complete(task)
        except BaseException:
            # Ctrl-C stops the loop but not the operation. Without this cancellation, the operation would continue, and
            # might commit, when the loop runs again.
            task.cancel()
            self._loop.run_until_complete(asyncio.wait([task], timeout=UNWIND))
            raise
        return result

    def close(self) -> None:
        """Close the connections, even if they are lost, and the event loop."""
        with suppress(PQError):
            self.call(Engine.close)
        if self._loop is not None:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
