"""Putting the jobs of periodic tasks, each tick once, however many workers there are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

from pqcore.engine import Engine
from pqcore.settings import QueueSettings


async def last_tick(engine: Engine, queue: QueueSettings, name: str) -> tuple[datetime | None, datetime]:
    """The last tick that was put, and the time by the server's clock."""
    [[tick, now]] = await engine.execute("tasks.last_tick", {"q_name": queue.name, "name": name}, protect=False)
    return None if tick is None else tick.replace(tzinfo=timezone.utc), now.replace(tzinfo=timezone.utc)


async def begin(engine: Engine, queue: QueueSettings, name: str, moment: datetime) -> None:
    """Count the ticks of a task from now on."""
    await engine.execute("tasks.begin_ticking", {"q_name": queue.name, "name": name, "tick": moment})


async def put(engine: Engine, queue: QueueSettings, name: str, tick: datetime, row: Mapping[str, object]) -> int | None:
    """Put the job of a tick, due at the tick; its id, or None if another put it."""
    values = {**row, "q_name": queue.name, "name": name, "tick": tick, "dedup_key": row.get("dedup_key")}
    rows = await engine.execute("tasks.tick", values)
    return int(rows[0][0]) if rows else None
