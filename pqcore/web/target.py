"""The table that pages show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.concurrency import run_in_threadpool

from pqcore.async_queue import AsyncPQ
from pqcore.errors import ConfigurationError, PQError
from pqcore.queue import PQ
from pqcore.runner import PQRunner, open_async
from pqcore.settings import QueueSettings


class Target(PQRunner):
    """The queues that are shown.

    Args:
        target: A `PQ`, an `AsyncPQ`, or a DSN. The connections of a DSN are the page's own.
        options: With a DSN, as for `PQ`.

    Raises:
        ConfigurationError: The target is none of these, or has options without being a DSN.
    """

    def __init__(self, target: object, options: Mapping[str, Any]) -> None:
        self._own = isinstance(target, str)
        if isinstance(target, (PQ, AsyncPQ)):
            if options:
                raise ConfigurationError(
                    f"{', '.join(options)}: these are options of a DSN, not of a {type(target).__name__}"
                )
            super().__init__(target, run_in_threadpool)
        elif isinstance(target, str):
            super().__init__(open_async(target, **options), run_in_threadpool)
        else:
            raise ConfigurationError(f"target is a {type(target).__name__}; give a PQ, an AsyncPQ or a DSN")

    @property
    def name(self) -> str:
        """The table's quoted name."""
        return str(self.engine.names)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self.engine.spec.name

    def queue(self, name: str) -> QueueSettings:
        """Return a queue, by the name that its rows have.

        Raises:
            InvalidName: No queue can have this name.
        """
        serializer = self.pq.options.get("serializer") or self.pq.queue_class.serializer or "json"
        return self.pq.queue(name, serializer=serializer)

    def explain(self, error: PQError) -> str:
        """Return an error's message without the DSN, and without the password in the DSN."""
        return self.engine.redact(str(error))

    async def close(self) -> None:
        """Close the connections, if they are the page's own."""
        if self._own:
            await super().close()
