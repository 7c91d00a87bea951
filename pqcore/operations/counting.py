"""Counting what each queue has: what waits, and what lies dead."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pqcore.db.engine import Engine
from pqcore.operations import admin, list_jobs
from pqcore.operations.admin import QueueStats
from pqcore.settings import QueueSettings


@dataclass(frozen=True)
class QueueFigures(QueueStats):
    """What waits in a queue, and what lies dead.

    Attributes:
        dead: Its dead letters.
    """

    dead: int = 0


async def count(engine: Engine, queue: QueueSettings | None = None) -> dict[str, QueueFigures]:
    """The figures of each queue, by name, in order: those in which something waits, or lies dead.

    Args:
        engine: Where.
        queue: Only this one, which is there then whatever it has; None for all.
    """
    name = None if queue is None else queue.name
    waiting, nothing = await admin.waiting(engine, name)
    dead = await list_jobs.dead_by_queue(engine)
    names = sorted(waiting.keys() | dead.keys()) if name is None else [name]
    return {each: QueueFigures(**asdict(waiting.get(each, nothing)), dead=dead.get(each, 0)) for each in names}
