"""What stands between tools and the database: runs operations, and makes answers fit to be read elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar

import anyio.to_thread

from pqcore.async_queue import AsyncPQ
from pqcore.db.engine import Engine
from pqcore.db.runtime import run_sync
from pqcore.db.sources import redact
from pqcore.errors import BackendNotInstalled, ConfigurationError, PQError, UnknownBackend
from pqcore.mcp import LIMIT
from pqcore.queue import PQ
from pqcore.settings import QueueSettings

T = TypeVar("T")

MARGIN = 1_000
"""Characters that are read beyond the limit, so that a secret at the end is whole, and found, before it is cut."""
CONNECTIONS = 4
DEEPEST = 100
"""Levels of objects and lists that are shown: deeper ones are more than what writes answers can follow."""
_NAMES = frozenset(
    {"queue", "state", "task", "reason", "place", "serializer", "check", "level", "was", "outcome", "to"}
)
"""Fields that are shown as they are: names, by which a queue is asked for again."""


class Desk:
    """One table, over the asynchronous face, or the blocking one where the backend has no other.

    Args:
        dsn: Where it is.
        hide_data: Whether to leave out what was put, and what errors say, which may quote it.
        limit: Characters of a job's data that are shown, and of its headers, error message and traceback.
        **options: As for `AsyncPQ`.

    Attributes:
        reach: Characters of a job's data that are worth reading.

    Raises:
        ConfigurationError: The limit is no number, or an option none; as `AsyncPQ`.
    """

    def __init__(self, dsn: str, *, hide_data: bool = False, limit: int = LIMIT, **options: Any) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ConfigurationError(f"limit is {limit!r}; give a number of characters, at least 1")
        self._limit = limit
        self.reach = limit + MARGIN
        self._hide_data = hide_data
        self._dsn = dsn
        # A statement is run now and then, and there may be a pooler in between: nothing is prepared.
        common: dict[str, Any] = {"max_connections": CONNECTIONS, "prepared": False}
        self._pq: PQ | AsyncPQ
        try:
            self._pq = AsyncPQ(dsn, **common, **options)
        except (UnknownBackend, BackendNotInstalled):  # there may be one for the other face
            self._pq = PQ(dsn, **common, **options)
        self._engine: Engine = self._pq.engine

    def queue(self, name: str) -> QueueSettings:
        """A queue, as ``pq[name]``."""
        return self._pq.queue(name)

    async def call(self, operation: Callable[..., Awaitable[T]], *arguments: Any, **more: Any) -> T:
        """Run an operation of the core's; its first argument, an engine, is not given."""
        if self._engine.runtime.suspends:
            return await operation(self._engine, *arguments, **more)

        def run() -> T:
            made: Any = operation(self._engine, *arguments, **more)
            result: T = run_sync(made)
            return result

        return await anyio.to_thread.run_sync(run)

    async def close(self) -> None:
        """Close the connections."""
        with suppress(PQError):  # they may have been lost before
            await self.call(Engine.close)

    # Answers

    def redacted(self, text: str) -> str:
        """A text without the DSN, and the password in it."""
        if not self._dsn.endswith("://"):  # which says nothing
            text = redact(text, self._dsn)
        if password := os.environ.get("PGPASSWORD"):
            text = text.replace(password, "***")
        return text

    def document(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """An object of JSON: without secrets, and cut where it is too long, which its field ``cut`` lists."""
        found = {name: value if name in _NAMES else self._shown(value) for name, value in fields.items()}
        if self._hide_data:
            return _without_data(found)
        cut = [name for name in ("data", "payload", "headers", "error") if self._cut(found, name)]
        return {**found, "cut": cut} if cut else found

    def documents(self, each: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Many of them."""
        return [self.document(fields) for fields in each]

    def _shown(self, value: Any, depth: int = 0) -> Any:
        if depth > DEEPEST and isinstance(value, (Mapping, list, tuple)):
            return "... nested too deeply to be shown"
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, Mapping):
            return {self.redacted(name): self._shown(each, depth + 1) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._shown(each, depth + 1) for each in value]
        return value

    def _cut(self, found: dict[str, Any], name: str) -> bool:
        value = found.get(name)
        if not value:
            return False
        if name == "error":
            message, traceback = value.get("message") or "", value.get("traceback") or ""
            # The end of a traceback says what was raised, and where.
            shorter = {"message": message[: self._limit], "traceback": traceback[-self._limit :]}
            found[name] = {**value, **{part: text for part, text in shorter.items() if part in value}}
            return len(message) > self._limit or len(traceback) > self._limit
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) <= self._limit:
            return False
        found[name] = text[: self._limit]
        return True


def _without_data(found: dict[str, Any]) -> dict[str, Any]:
    """A job, without what it was put with, and what may quote that."""
    for name in ("data", "payload", "headers", "group", "dedup_key"):
        found.pop(name, None)
    if found.get("error"):
        found["error"] = {"type": found["error"].get("type")}
    if found.get("parked_on"):
        found["parked_on"] = found["parked_on"].partition(":")[0]
    return found
