"""The core's operations over either face, from a coroutine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from pqcore.async_queue import AsyncPQ
from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.errors import BackendNotInstalled, ConfigurationError, PQError, UnknownBackend
from pqcore.queue import PQ
from pqcore.settings import QueueSettings

T = TypeVar("T")


class Table:
    """The queues that are shown.

    Args:
        target: A `PQ`, an `AsyncPQ`, or a DSN; of a DSN the connections are ours.
        options: With a DSN, as for `PQ`.

    Raises:
        ConfigurationError: It is none of these.
    """

    def __init__(self, target: object, options: Mapping[str, Any]) -> None:
        self._own = isinstance(target, str)
        self._pq: PQ | AsyncPQ
        if isinstance(target, (PQ, AsyncPQ)):
            if options:
                raise ConfigurationError(
                    f"{', '.join(options)}: these are options of a DSN, not of a {type(target).__name__}"
                )
            self._pq = target
        elif isinstance(target, str):
            given: dict[str, Any] = {"max_connections": 4, "prepared": False, **options}
            try:
                self._pq = AsyncPQ(target, **given)
            except (UnknownBackend, BackendNotInstalled):  # there may be one for the other face
                self._pq = PQ(target, **given)
        else:
            raise ConfigurationError(f"target is a {type(target).__name__}; give a PQ, an AsyncPQ or a DSN")
        self._engine: Engine = self._pq.engine

    @property
    def name(self) -> str:
        """The table's quoted name."""
        return str(self._engine.names)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._engine.spec.name

    def queue(self, name: str) -> QueueSettings:
        """A queue, by the name that its rows have.

        Raises:
            InvalidName: No queue can have this name.
        """
        options = self._pq.options
        serializer = options.get("serializer") or self._pq.queue_class.serializer or "json"
        return self._pq.queue(name, serializer=serializer)

    def explain(self, error: PQError) -> str:
        """What was wrong, without the DSN, and the password in it."""
        return self._engine.redact(str(error))

    async def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> T:
        """Run an operation of the core's; its first argument, an engine, is not given."""
        if self._engine.runtime.suspends:
            return await operation(self._engine, *arguments, **more)

        def run() -> T:
            made: Any = operation(self._engine, *arguments, **more)
            result: T = run_sync(made)
            return result

        return await run_in_threadpool(run)

    async def close(self) -> None:
        """Close the connections, if they are ours."""
        if self._own:
            await self.call(Engine.close)
