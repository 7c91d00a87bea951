"""Time limits of pages: how long a visitor waits for the database, and how long a statement of a page may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from pqcore.backend import Row
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import PQError

T = TypeVar("T")

ANSWER = 3.0
"""Seconds without an answer from the database after which an open page says so."""
PAGE = 6.0
"""Seconds that a visitor waits for a page, at most."""
STATEMENT = 20.0
"""Seconds that a statement which only reads for a page may take, at most."""
SEARCH = 4.0
"""The same, of a statement that searches jobs for a text."""
_abandoned: set[asyncio.Future[Any]] = set()
"""Work that nobody waits for any more, until it ends: asyncio itself holds tasks only weakly."""


class NoAnswer(PQError, TimeoutError):
    """The database has not answered a page in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer came from the database within {seconds:g} s")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return the result of some work, which is cancelled if it takes longer.

    What the work does when it is cancelled is not waited for: on a connection that is silent, that may take long.

    Args:
        seconds: How long it may take.
        work: The work.

    Raises:
        NoAnswer: It took longer.
    """
    task = asyncio.ensure_future(work)
    try:
        await ended(task, seconds)
        return task.result()
    finally:
        if not task.done():
            _abandon(task)


async def ended(task: asyncio.Future[Any], seconds: float) -> None:
    """Wait until a task has ended; its result or exception is not looked at.

    Raises:
        NoAnswer: The task took longer than these seconds. It goes on.
    """
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        raise NoAnswer(seconds)


def _abandon(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and let nobody wait for its end."""
    _abandoned.add(task)
    task.add_done_callback(_abandoned.discard)
    task.add_done_callback(mark_seen)
    task.cancel()


def mark_seen(task: asyncio.Future[Any]) -> None:
    """Mark an exception as seen: nobody waits for the task any more, and asyncio would log the exception."""
    if not task.cancelled():
        task.exception()


class BoundedEngine:
    """An engine whose operations may not take long; for operations that only read.

    Args:
        engine: The engine.
        limit: Seconds that a statement may take. After three quarters of that the server is asked to cancel it.
    """

    def __init__(self, engine: Engine, limit: float) -> None:
        self._engine = engine
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(
        self, operation: Callable[[Session], Awaitable[T]], *, protect: bool = True, patient: bool = False
    ) -> Coroutine[Any, Any, T]:
        """Run an operation as `Engine.run` does, with the limit for each statement, also if it is patient."""

        async def work(session: Session) -> T:
            limit = self._limit if session.limit is None else min(session.limit, self._limit)
            with session.limited(limit):
                return await operation(session)

        return self._engine.run(work, protect=protect)

    async def execute(
        self, statement: str, values: Mapping[str, object], *, protect: bool = True, patient: bool = False
    ) -> Sequence[Row]:
        """Run a single statement as `Engine.execute` does, with the limit."""
        return await Engine.execute(self, statement, values, protect=protect, patient=patient)  # type: ignore[arg-type]
