"""The number of rows that a purge would delete, which an operator sees before confirming the purge."""

from __future__ import annotations

import time
from datetime import timedelta

from pqcore.db.engine import Engine
from pqcore.settings import QueueSettings
from pqcore.times import seconds


async def count_old_dead(engine: Engine, queue: QueueSettings, older_than: str | float | timedelta) -> int:
    """Count the dead letters that `pqcore.operations.dead_letters.purge` would delete.

    Raises:
        InvalidTimeSpec: ``older_than`` cannot be read.
    """
    values = {"q_name": queue.name, "age": seconds(older_than)}
    [[number]] = await engine.execute("admin.count_old_dead", values, protect=False, patient=True)
    return int(number)


async def count_old_finished(
    engine: Engine, queue: QueueSettings, older_than: str | float | timedelta, length: float
) -> tuple[int, bool]:
    """Count the finished rows that `pqcore.operations.admin.purge` would delete; return whether the count is complete.

    Args:
        engine: The engine.
        queue: The queue.
        older_than: The age of the rows, as for the purge.
        length: Seconds after which no further slice of the table is counted.

    Raises:
        InvalidTimeSpec: ``older_than`` cannot be read.
    """
    values: dict[str, object] = {"q_name": queue.name, "age": seconds(older_than)}
    until = time.monotonic() + length
    [[total]] = await engine.execute("admin.count_old_archived", values, protect=False, patient=True)
    after = 0
    while time.monotonic() < until:
        slice_ = {**values, "after": after}
        [[last, number]] = await engine.execute("admin.count_old_kept", slice_, protect=False, patient=True)
        total += number
        if last is None:
            return int(total), True
        after = last
    return int(total), False
