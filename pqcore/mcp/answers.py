"""The answers of tools, without secrets, and shortened if they are too long."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pqcore.db.engine import Engine
from pqcore.errors import ConfigurationError
from pqcore.mcp import LIMIT

MARGIN = 1_000
"""Characters that are read beyond the limit, so that a secret at the end is complete, and recognized, before the text
is cut."""
DEEPEST = 100
"""The largest number of levels of objects and lists that are shown; writers of answers could not follow more."""
_NAMES = frozenset(
    {"queue", "state", "task", "reason", "place", "serializer", "check", "level", "was", "outcome", "to"}
)
"""Fields that are shown unchanged: names with which a client asks for a queue again."""


class Redactor:
    """A maker of answers: JSON without secrets, shortened if it is too long.

    Args:
        engine: The engine of the table, whose DSN is secret.
        hide_data: Whether to leave out the data of jobs, and texts of errors, which may quote the data.
        limit: The largest number of characters shown of each: a job's data, headers, error message and traceback.

    Attributes:
        reach: The number of characters of a job's data that are worth reading.

    Raises:
        ConfigurationError: The limit is not a number of at least 1.
    """

    def __init__(self, engine: Engine, *, hide_data: bool = False, limit: int = LIMIT) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise ConfigurationError(f"limit is {limit!r}; give a number of characters, at least 1")
        self.reach = limit + MARGIN
        self._engine = engine
        self._limit = limit
        self._hide_data = hide_data

    def redact(self, text: str) -> str:
        """Return a text without the DSN, the DSN's password, and libpq's PGPASSWORD."""
        text = self._engine.redact(text)
        if password := os.environ.get("PGPASSWORD"):
            text = text.replace(password, "***")
        return text

    def document(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return a JSON object without secrets; its field ``cut`` lists the fields that were cut."""
        found = {name: value if name in _NAMES else self._shown(value) for name, value in fields.items()}
        for attempt in found.get("past_attempts", ()):
            self._cut(attempt, "error")
        if self._hide_data:
            return _without_data(found)
        cut = [name for name in ("data", "payload", "headers", "error") if self._cut(found, name)]
        return {**found, "cut": cut} if cut else found

    def explanation(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return why a job does not run, shortened as by `document`, and without quotations of hidden data.

        Args:
            fields: The fields, as from `pqcore.json_views.explanation`.
        """
        found = self.document(fields)
        if self._hide_data:
            for cause in (*found["causes"], *found["notes"]):
                for name in ("text", "action", "key"):
                    cause.pop(name)
        return found

    def documents(self, each: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return a list of objects, each like `document`."""
        return [self.document(fields) for fields in each]

    def _shown(self, value: Any, depth: int = 0) -> Any:
        if depth > DEEPEST and isinstance(value, (Mapping, list, tuple)):
            return "... nested too deeply to be shown"
        if isinstance(value, str):
            return self.redact(value)
        if isinstance(value, datetime):
            return value.isoformat()
        if isinstance(value, Mapping):
            return {self.redact(name): self._shown(each, depth + 1) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._shown(each, depth + 1) for each in value]
        return value

    def _cut(self, found: dict[str, Any], name: str) -> bool:
        value = found.get(name)
        if not value:
            return False
        if name == "error":
            message, traceback = value.get("message") or "", value.get("traceback") or ""
            # The end of a traceback shows the exception, and the line that raised it.
            shorter = {"message": message[: self._limit], "traceback": traceback[-self._limit :]}
            found[name] = {**value, **{part: text for part, text in shorter.items() if part in value}}
            return len(message) > self._limit or len(traceback) > self._limit
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if len(text) <= self._limit:
            return False
        found[name] = text[: self._limit]
        return True


def _without_data(found: dict[str, Any]) -> dict[str, Any]:
    """Return a row without a job's data, and without texts that may quote such data."""
    for name in ("data", "payload", "headers", "group", "dedup_key"):
        found.pop(name, None)
    for each in (found, *found.get("past_attempts", ())):
        if each.get("error"):
            each["error"] = {"type": each["error"].get("type")}
    if found.get("parked_on"):
        found["parked_on"] = found["parked_on"].partition(":")[0]
    if found.get("kind") in ("limit", "rate", "weight"):  # a rule, whose name may contain arguments of a job
        found["name"] = None
    elif found.get("kind") == "pause" and not found["name"].startswith("task:"):
        found["name"] = found["name"].partition(":")[0]
    return found
