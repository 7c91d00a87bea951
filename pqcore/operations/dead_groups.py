"""Groups of dead letters: a group has the dead letters of one task that died of the same error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from pqcore.db.engine import Engine
from pqcore.operations import dead_letters
from pqcore.settings import QueueSettings
from pqcore.times import UtcDatetime


@dataclass(frozen=True)
class DeadGroup:
    """Dead letters of one queue and task that died of the same error.

    Attributes:
        queue: The name of the queue.
        task: The path of the function; empty if the jobs are not calls of a function.
        error: The class of the last exception; empty if there was none.
        reason: The reason of the dead letters; one of `pqcore.operations.dead_letters.REASONS`.
        number: The number of dead letters.
        first: When the first of them died.
        last: When the last of them died.
        example: The id of one of them.
        message: The beginning of the message of one of them; empty if there was no exception.
    """

    queue: str
    task: str
    error: str
    reason: str
    number: int
    first: UtcDatetime
    last: UtcDatetime
    example: int
    message: str


async def list_dead_groups(engine: Engine, queue: QueueSettings | None = None, n: int = 100) -> list[DeadGroup]:
    """Group the dead letters by task and error; the largest groups come first.

    Args:
        engine: The engine.
        queue: Only dead letters of this queue; None for all.
        n: The largest number of groups.
    """
    values = {"q_name": None if queue is None else queue.name, "n": n}
    rows = await engine.execute("admin.dead_groups", values, protect=False, patient=True)
    return [
        DeadGroup(
            name,
            task or "",
            kind or "",
            reason,
            int(number),
            cast(UtcDatetime, UtcDatetime.of(first)),
            cast(UtcDatetime, UtcDatetime.of(last)),
            int(example),
            _unescaped(message or ""),
        )
        for name, task, kind, reason, number, first, last, example, message in rows
    ]


async def list_group_ids(engine: Engine, queue: QueueSettings, task: str, error: str, reason: str) -> list[int]:
    """Return the ids of the dead letters of a group, the oldest first; see `DeadGroup` for the arguments."""
    values = {"q_name": queue.name, "task": task, "kind": error, "reason": reason}
    rows = await engine.execute("admin.dead_of_group", values, protect=False, patient=True)
    return [int(number) for (number,) in rows]


async def revive_group(engine: Engine, queue: QueueSettings, task: str, error: str, reason: str) -> int:
    """Turn the dead letters of a group into jobs again, as `pqcore.operations.dead_letters.revive` does.

    Return the number of these jobs.

    Raises:
        NotStored: A trigger left a job out.
    """
    ids = await list_group_ids(engine, queue, task, error, reason)
    return await dead_letters.revive(engine, queue, ids)


def _unescaped(text: str) -> str:
    """Return the beginning of a JSON string, decoded; if the beginning ends within an escape, return it undecoded."""
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text
