"""The table that pages show."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from pqcore.async_queue import AsyncPQ
from pqcore.errors import ConfigurationError, ConnectionLost, PQError
from pqcore.operations.readiness import read_place
from pqcore.queue import PQ
from pqcore.runner import PQRunner, open_async
from pqcore.settings import QueueSettings
from pqcore.web.time_limits import ANSWER, SEARCH, STATEMENT, BoundedEngine, within

T = TypeVar("T")


class Target(PQRunner):
    """The queues that are shown.

    Args:
        target: A `PQ`, an `AsyncPQ`, or a DSN. The connections of a DSN are the page's own.
        options: Options for a DSN, as for `PQ`.

    Raises:
        ConfigurationError: The target is none of these, or has options without being a DSN.
    """

    def __init__(self, target: object, options: Mapping[str, Any]) -> None:
        self._own = isinstance(target, str)
        if isinstance(target, (PQ, AsyncPQ)):
            if options:
                raise ConfigurationError(
                    f"the target is a {type(target).__name__}; give {', '.join(options)} only together with a DSN"
                )
            super().__init__(target, run_in_threadpool)
        elif isinstance(target, str):
            super().__init__(open_async(target, **options), run_in_threadpool)
        else:
            raise ConfigurationError(f"target is a {type(target).__name__}; give a PQ, an AsyncPQ or a DSN")
        self._bounded = BoundedEngine(self.engine, STATEMENT)
        self._searching = BoundedEngine(self.engine, SEARCH)
        self._place: str | None = None

    @property
    def name(self) -> str:
        """The quoted name of the table."""
        return str(self.engine.names)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self.engine.spec.name

    def queue(self, name: str) -> QueueSettings:
        """Return the queue with this name, as rows of the table have it.

        Raises:
            InvalidName: No queue can have this name.
        """
        serializer = self.pq.options.get("serializer") or self.pq.queue_class.serializer or "json"
        return self.pq.queue(name, serializer=serializer)

    def read(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> Awaitable[T]:
        """Run an operation that only reads, as `call` does; each of its statements may take `STATEMENT` seconds."""
        return self.run(operation, self._bounded, *arguments, **more)

    def search(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> Awaitable[T]:
        """Run an operation as `read` does, with `SEARCH` seconds for each statement."""
        return self.run(operation, self._searching, *arguments, **more)

    @property
    def place(self) -> str:
        """The names of the database and the server, after `find_place` has found them; empty until then."""
        return self._place or ""

    async def find_place(self) -> None:
        """Read the names of the database and the server, only once. If the server refuses, `place` stays empty."""
        if self._place is not None:
            return
        try:
            found = await within(ANSWER, self.read(read_place))
        except (ConnectionLost, TimeoutError):
            return
        except PQError:  # the server would refuse another try, too
            self._place = ""
            return
        self._place = f"{found.database} on {found.server or 'a local socket'}"

    def explain(self, error: PQError) -> str:
        """Return an error's message without the DSN, and without the password in the DSN."""
        return self.engine.redact(str(error))

    async def close(self) -> None:
        """Close the connections, if they are the page's own."""
        if self._own:
            await super().close()
