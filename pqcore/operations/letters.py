"""Dead letters: looking at them, and giving them another life or an end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

from pqcore.backend import Row
from pqcore.engine import Engine
from pqcore.errors import ConfigurationError, JobNotFound
from pqcore.operations.transactions import atomic, with_free_ids
from pqcore.operations.unstored import not_stored
from pqcore.sessions import CoreSession
from pqcore.settings import QueueSettings
from pqcore.timespec import seconds

MOST_REVIVED, MOST_PURGED = 1_000, 10_000
"""Dead letters: the most that one statement deals with; the limits in `pqcore.task_statements`."""


async def listed(engine: Engine, queue: QueueSettings, n: int) -> Sequence[Row]:
    """The rows of the latest ``n``."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        msg = f"n is {n!r}; give a number of dead letters, at least 1"
        raise ConfigurationError(msg)
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
    """Make jobs of them again, due immediately, with a clean record; all of them if ``ids`` is None.  How many.

    Raises:
        NotStored: A trigger left a job out; nothing is changed.
    """

    async def rise(some: Sequence[int] | None) -> int:
        async def work(s: CoreSession) -> int:
            query = s.sql.tasks.revive
            async with atomic(s):
                [[risen, put]] = await s.execute(query, query.bind({"q_name": queue.name, "ids": some}))
                if put < risen:
                    raise await not_stored(engine, s, "revive")
            return int(risen)

        return await with_free_ids(lambda: engine.run(work, patient=True))

    return await _in_slices(rise, ids, MOST_REVIVED)


async def purge(
    engine: Engine, queue: QueueSettings, ids: Sequence[int] | None, older_than: str | float | timedelta
) -> int:
    """Delete them; how many."""
    values: dict[str, object] = {"q_name": queue.name, "age": seconds(older_than)}

    async def delete(some: Sequence[int] | None) -> int:
        return len(await engine.execute("tasks.purge_dead", {**values, "ids": some}, patient=True))

    return await _in_slices(delete, ids, MOST_PURGED)


async def _in_slices(
    change: Callable[[Sequence[int] | None], Awaitable[int]], ids: Sequence[int] | None, most: int
) -> int:
    """Change ``most`` at a time, and none twice, though a job that is revived may soon be dead again; how many.

    Args:
        change: Changes those of these ids, or any ``most`` if it is given None; returns how many.
        ids: Which; None for all.
        most: How many at a time.
    """
    total = 0
    if ids is not None:
        chosen = list(dict.fromkeys(ids))
        for start in range(0, len(chosen), most):
            total += await change(chosen[start : start + most])
        return total
    while True:
        number = await change(None)
        total += number
        if number < most:
            return total


def error_of(raw: str | None) -> dict[str, str]:
    """The last error of a row: ``type``, ``message``, ``traceback``; empty without one."""
    return {} if raw is None else dict(json.loads(raw))
