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
"""The longest time that a visitor waits for a page, in seconds."""
STATEMENT = 20.0
"""The longest time of a statement that only reads for a page, in seconds."""
SEARCH = 4.0
"""The longest time of a statement that searches jobs for a text, in seconds."""
_abandoned: set[asyncio.Future[Any]] = set()
"""Tasks that nobody waits for any more, until they end: asyncio itself holds only weak references to tasks."""


class NoAnswer(PQError, TimeoutError):
    """The database has not answered a page in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer came from the database within {seconds:g} s")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return the result of some work; cancel the work if it takes too long.

    This function does not wait for the cancelled work to end: on a silent connection, that work may take long to end.

    Args:
        seconds: The longest time that the work may take.
        work: The work.

    Raises:
        NoAnswer: The work took longer.
    """
    task = asyncio.ensure_future(work)
    try:
        await ended(task, seconds)
        return task.result()
    finally:
        if not task.done():
            _abandon(task)


async def ended(task: asyncio.Future[Any], seconds: float) -> None:
    """Wait until a task has ended; ignore its result or exception.

    Raises:
        NoAnswer: The task took longer than these seconds. The task goes on.
    """
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        raise NoAnswer(seconds)


def _abandon(task: asyncio.Future[Any]) -> None:
    """Cancel a task without waiting for its end."""
    _abandoned.add(task)
    task.add_done_callback(_abandoned.discard)
    task.add_done_callback(mark_seen)
    task.cancel()


def mark_seen(task: asyncio.Future[Any]) -> None:
    """Mark an exception as seen: nobody waits for the task any more, so asyncio would otherwise log the exception."""
    if not task.cancelled():
        task.exception()


class BoundedEngine:
    """An engine with a time limit for each statement; for operations that only read.

    Args:
        engine: The engine.
        limit: Seconds that a statement may take. After three quarters of that time, the server is asked to cancel the
            statement.
    """

    def __init__(self, engine: Engine, limit: float) -> None:
        self._engine = engine
        self._limit = limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(
        self, operation: Callable[[Session], Awaitable[T]], *, protect: bool = True, patient: bool = False
    ) -> Coroutine[Any, Any, T]:
        """Run an operation as `Engine.run` does, with the limit for each statement, even if ``patient`` is set."""

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
