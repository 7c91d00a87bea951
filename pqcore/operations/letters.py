"""Dead letters: looking at them, and giving them another life or an end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

from pqcore.backend import Row
from pqcore.engine import Engine
from pqcore.errors import JobNotFound
from pqcore.settings import QueueSettings
from pqcore.timespec import seconds


async def listed(engine: Engine, queue: QueueSettings, n: int) -> Sequence[Row]:
    """The rows of the latest ``n``."""
    return await engine.execute("tasks.dead_letters", {"q_name": queue.name, "n": n}, protect=False)


async def one(engine: Engine, queue: QueueSettings, job_id: int) -> Row:
    """The row of one."""
    rows = await engine.execute("tasks.dead_letter", {"q_name": queue.name, "id": job_id}, protect=False)
    if not rows:
        msg = f"queue {queue.name!r} has no dead letter {job_id}"
        raise JobNotFound(msg)
    return rows[0]


async def count(engine: Engine, queue: QueueSettings) -> int:
    """How many there are."""
    [[number]] = await engine.execute("tasks.count_dead", {"q_name": queue.name}, protect=False)
    return int(number)


async def revive(engine: Engine, queue: QueueSettings, ids: Sequence[int] | None) -> int:
    """Make jobs of them again, due at once, with a clean record; all of them if ``ids`` is None.  How many."""
    values: dict[str, object] = {"q_name": queue.name, "ids": None if ids is None else list(ids)}
    return await _in_slices(engine, "tasks.revive", values)


async def purge(
    engine: Engine, queue: QueueSettings, ids: Sequence[int] | None, older_than: str | float | timedelta
) -> int:
    """Delete them; how many."""
    values: dict[str, object] = {
        "q_name": queue.name,
        "ids": None if ids is None else list(ids),
        "age": seconds(older_than),
    }
    return await _in_slices(engine, "tasks.purge_dead", values)


async def _in_slices(engine: Engine, statement: str, values: dict[str, object]) -> int:
    total = 0
    while rows := await engine.execute(statement, values):
        total += len(rows)
    return total


def error_of(raw: str | None) -> dict[str, str]:
    """The last error of a row: ``type``, ``message``, ``traceback``; empty without one."""
    return {} if raw is None else dict(json.loads(raw))
