"""The core's operations, for commands: over any backend, blocking or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from pqcore.async_queue import AsyncPQ
from pqcore.cli.errors import remember, remember_none
from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.db.sources import redact
from pqcore.errors import BackendNotInstalled, PQError, UnknownBackend
from pqcore.queue import PQ
from pqcore.settings import QueueSettings

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")

DEFAULT_DSN = "postgresql://"
"""Says nothing: drivers take all of it from libpq's PG* variables."""


def resolved(dsn: str) -> str:
    """What a driver is given for ``--dsn``, which messages leave out from here on."""
    if dsn != DEFAULT_DSN:
        remember(click.get_current_context(), dsn)
    elif service := os.environ.get("PGSERVICE"):  # which libpq reads, and asyncpg only in a DSN
        return f"{DEFAULT_DSN}?service={quote(service, safe='')}"
    else:
        remember_none(click.get_current_context())
    return dsn


UNWIND = 5.0
"""Seconds that an operation has to end in order, once it is interrupted."""


class Database:
    """One table, over the blocking face, or the asynchronous one where the backend has no other.

    Args:
        dsn: Where it is.
        **options: As for `PQ`.

    Attributes:
        loop: Where an asynchronous engine's operations run; None for a blocking one.
    """

    def __init__(self, dsn: str, **options: Any) -> None:
        self._dsn = dsn
        dsn = resolved(dsn)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.pq: PQ | AsyncPQ
        # A statement is run once or twice, and there may be a pooler in between: nothing is prepared.
        common: dict[str, Any] = {"max_connections": 2, "prepared": False}
        try:
            self.pq = PQ(dsn, **common, **options)
        except (UnknownBackend, BackendNotInstalled):  # there may be one for the other face
            self.pq = AsyncPQ(dsn, **common, **options)
            self.loop = asyncio.new_event_loop()
        self._engine: Engine = self.pq.engine

    @property
    def table(self) -> str:
        """The table's quoted name."""
        return str(self._engine.names)

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return self._engine.spec.name

    def redacted(self, text: str) -> str:
        """A text without the DSN, and the password in it."""
        return text if self._dsn == DEFAULT_DSN else redact(text, self._dsn)

    def queue(self, name: str, **options: Any) -> QueueSettings:
        """A queue, as ``pq[name]``; or with options of its own."""
        return self.pq.queue(name, **options) if options else self.pq[name]

    def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> T:
        """Run an operation of the core's; its first argument, an engine, is not given."""
        made: Any = operation(self._engine, *arguments, **more)
        if self.loop is None:
            blocking: T = run_sync(made)
            return blocking
        running = self.loop.create_task(made)
        try:
            result: T = self.loop.run_until_complete(running)
        except BaseException:
            # Ctrl-C leaves the loop, not the operation: it would go on, and might commit, when the loop runs again.
            running.cancel()
            self.loop.run_until_complete(asyncio.wait([running], timeout=UNWIND))
            raise
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(PQError):  # it may have been lost before
            self.call(Engine.close)
        if self.loop is not None:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
