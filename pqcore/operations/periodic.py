"""Putting the jobs of periodic tasks, once for each tick, however many workers run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pqcore.db.engine import Engine
from pqcore.settings import QueueSettings

logger = logging.getLogger("pqcore")

AHEAD = timedelta(seconds=5)
"""How far a last tick may be ahead of the server's clock and still count: after a failover, the clock may be behind."""

BEFORE = timedelta(microseconds=1)
"""If somebody asks for a tick again, the stored last tick is set to this much before the tick."""


@dataclass(frozen=True)
class Line:
    """The values that are stored for the ticks of a periodic task.

    Attributes:
        name: The name of the periodic task, which is unique in a queue.
        cron: The cron expression.
        tz: The time zone in which the expression is read.
    """

    name: str
    cron: str
    tz: str


@dataclass(frozen=True)
class LastTick:
    """The stored state of a periodic task.

    Attributes:
        tick: The last tick that was put; None if the task is new.
        line: The expression and time zone in force: those of the worker that started last. None in a row that older
            code wrote.
        now: The time by the server's clock.
    """

    tick: datetime | None
    line: Line | None
    now: datetime

    def is_ahead(self) -> bool:
        """Return whether the tick is later than the server's time: the clock was ahead when the tick was put."""
        return self.tick is not None and self.tick > self.now + AHEAD

    @classmethod
    def of(cls, name: str, row: Sequence[Any]) -> LastTick:
        """Read a row: the last tick, the expression, the time zone, and the server's time, without zones, in UTC."""
        tick, cron, tz, now = row
        line = None if cron is None or tz is None else Line(name, cron, tz)
        return cls(None if tick is None else tick.replace(tzinfo=timezone.utc), line, now.replace(tzinfo=timezone.utc))


async def last_tick(engine: Engine, queue: QueueSettings, name: str) -> LastTick:
    """Return the stored state of a periodic task, by its name."""
    [row] = await engine.execute("tasks.last_tick", {"q_name": queue.name, "name": name}, protect=False)
    return LastTick.of(name, row)


async def begin(
    engine: Engine, queue: QueueSettings, line: Line, moment: datetime, version: datetime | None = None
) -> None:
    """If a task is new, or its expression or time zone has changed, store ``moment``; only later ticks are put.

    Args:
        engine: The engine.
        queue: The queue of the task.
        line: The values to store; those of a schedule are read from its row.
        moment: The moment.
        version: For a schedule, when its row was last changed, as the caller knows it: if the row was changed later,
            the operation stores nothing. None for a task that is declared in code.
    """
    values = {"q_name": queue.name, "name": line.name, "cron": line.cron, "tz": line.tz, "tick": moment}
    if version is None:
        await engine.execute("tasks.register_periodic", values)
    else:
        await engine.execute("schedules.register_schedule", {**values, "version": version})


async def tick_window(
    engine: Engine,
    queue: QueueSettings,
    line: Line,
    before: datetime | None,
    version: datetime | None = None,
) -> tuple[datetime, datetime]:
    """Return the moment after which ticks must be put, and the time by the server's clock.

    During a rollout, workers of different versions may have different expressions for a task. The expression of the
    worker that started last is in force. A worker with another expression puts only ticks that come while it runs, and
    no missed ticks.

    Args:
        engine: The engine.
        queue: The queue of the task.
        line: The values that the worker has for the task.
        before: When the worker last called this operation; None when the worker starts, and for a schedule, whose row
            has the expression in force.
        version: For a schedule, when its row was changed last; see `begin`.
    """
    found = await last_tick(engine, queue, line.name)
    if found.tick is None or (before is None and found.line != line):
        await begin(engine, queue, line, found.now, version)
        found = await last_tick(engine, queue, line.name)
    last = found.now if found.tick is None else found.tick
    if found.is_ahead():
        values = {"q_name": queue.name, "name": line.name, "tick": found.tick, "now": found.now}
        if await engine.execute("tasks.set_tick_back", values):
            logger.warning(
                "%r: the server's clock ran ahead (last tick of %s: %s; time now: %s), so ticks continue from now",
                queue.name,
                line.name,
                found.tick,
                found.now,
            )
        last = found.now
    if before is not None and found.line != line:
        last = max(last, min(before, found.now))
    return last, found.now


async def repeat_tick(engine: Engine, queue: QueueSettings, name: str, moment: datetime) -> bool:
    """Set the last tick of a task back, so that a worker puts the job of the given tick again within a minute.

    The stored last tick is set to just before the given tick. A worker that declares the task with ``missed="skip"``
    puts no job for this tick, unless the tick has just passed.

    Return False if the task is unknown, or if another program has changed the last tick meanwhile.

    Args:
        engine: The engine.
        queue: The queue of the task.
        name: The name of the task.
        moment: The tick, which has passed.
    """
    found = await last_tick(engine, queue, name)
    if found.tick is None or found.tick < moment:
        return found.tick is not None
    values = {"q_name": queue.name, "name": name, "tick": found.tick, "now": moment - BEFORE}
    return bool(await engine.execute("tasks.set_tick_back", values))


async def put(
    engine: Engine,
    queue: QueueSettings,
    name: str,
    tick: datetime,
    row: Mapping[str, object],
    version: datetime | None = None,
) -> int | None:
    """Put the job of a tick, due at the tick.

    Args:
        engine: The engine.
        queue: The queue of the task.
        name: The name of the task.
        tick: The tick.
        row: The values of the job.
        version: For a schedule, when its row was changed last; see `begin`.

    Returns:
        The job's id. None if another worker put the job, the server's clock was set back, or the schedule was changed,
        paused or removed.
    """
    values = {**row, "q_name": queue.name, "name": name, "tick": tick, "dedup_key": row.get("dedup_key")}
    values["ahead"] = AHEAD.total_seconds()
    statement = "tasks.tick" if version is None else "schedules.tick_schedule"
    rows = await engine.execute(statement, values if version is None else {**values, "version": version})
    if not rows:
        return None
    [[number]] = rows
    return int(number)
