"""Changing single rows, counting and clearing up."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pqcore import schema
from pqcore.engine import Engine
from pqcore.errors import JobNotFound
from pqcore.sessions import CoreSession
from pqcore.settings import QueueSettings
from pqcore.timespec import seconds


@dataclass(frozen=True)
class QueueStats:
    """What waits in a queue.

    Attributes:
        ready: Jobs that a get would find.
        scheduled: Jobs that are not due yet.
        leased: Jobs held under a lease that has not run out.
        oldest: Seconds since the oldest ready job became due; None without one.
    """

    ready: int
    scheduled: int
    leased: int
    oldest: float | None


async def update(engine: Engine, queue: QueueSettings, job_id: int, data: Any) -> int:
    """Replace a row's data; the size of what is stored."""
    encoded = queue.encode_row(data)
    values = {
        "id": job_id,
        "q_name": queue.name,
        "data": encoded.data,
        "payload": encoded.payload,
        "serializer": queue.serializer_name,
    }
    if not await engine.execute("update", values):
        msg = f"queue {queue.name!r} has no row {job_id} to update"
        if queue.retention != "keep":
            msg += f": with retention={queue.retention!r} a row leaves the table when it is taken"
        raise JobNotFound(msg)
    return len(encoded.raw)


async def cancel(engine: Engine, queue: QueueSettings, job_id: int) -> bool:
    """Delete a waiting row; whether there was one."""
    return bool(await engine.execute("cancel", {"id": job_id, "q_name": queue.name}))


async def count(engine: Engine, queue: QueueSettings) -> int:
    """The number of rows due."""
    [[number]] = await engine.execute("count", {"q_name": queue.name}, protect=False)
    return int(number)


async def clear(engine: Engine, queue: QueueSettings) -> None:
    """Delete a queue's rows."""
    await engine.execute("clear", {"q_name": queue.name})


async def stats(engine: Engine, name: str | None) -> dict[str, QueueStats]:
    """Count what waits, a queue; of one queue if it is named."""
    statement = "stats_all" if name is None else "stats"
    rows = await engine.execute(statement, {"q_name": name}, protect=False)
    return {row[0]: QueueStats(*row[1:5]) for row in rows}


async def purge(engine: Engine, queue: QueueSettings, older_than: str | float | timedelta) -> int:
    """Delete finished rows, a slice at a time; how many."""
    values: dict[str, object] = {"q_name": queue.name, "age": seconds(older_than)}
    removed, after = 0, 0
    while True:
        [[last, gone]] = await engine.execute("purge_kept", {**values, "after": after})
        removed += int(gone)
        if last is None:
            break
        after = last
    while True:
        [[_, gone]] = await engine.execute("purge_archive", values)
        removed += int(gone)
        if not gone:
            return removed


async def create(engine: Engine) -> None:
    """Make the table, or migrate it."""

    async def work(s: CoreSession) -> None:
        await schema.create(s, engine.names, engine.runtime.sleep)

    await engine.migrate(work)
