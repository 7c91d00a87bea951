"""What worker processes run: a task that writes its job's effect, and finishes its job, in one transaction."""

from __future__ import annotations

import os
from typing import Any

from pqcore.tasks import PQ, AsyncPQ, current

NAME = "work"
"""The queue."""
OPTIONS: dict[str, Any] = {"max_retries": 10**6, "max_crashes": 10**6, "retry_in": 0.05}
"""It is tried until it works: functions need the server, too."""
_here: list[Any] = []


def work(job_id: int, token: str) -> None:
    """Write the effect."""
    with _here[0] as cursor:
        cursor.execute("INSERT INTO effects VALUES (%s, %s, false)", [token, job_id])
        current().finish()


async def work_async(job_id: int, token: str) -> None:
    """Likewise, over asyncpg."""
    async with _here[0] as connection:
        await connection.execute("INSERT INTO effects VALUES ($1, $2, false)", token, job_id)
        await current().finish()


work_async.__name__ = work_async.__qualname__ = "work"  # jobs are put by one path, whoever runs them


def queue() -> Any:
    """The queue of a worker process, over the backend that its environment names."""
    backend, dsn = os.environ["CHAOS_BACKEND"], os.environ["CHAOS_DSN"]
    options: dict[str, Any] = {"backend": backend, "pool_timeout": 5}
    if backend == "asyncpg":
        made: Any = AsyncPQ(dsn, **options)[NAME]
        made.task(**OPTIONS)(work_async)
    else:
        made = PQ(dsn, **options)[NAME]
        made.task(**OPTIONS)(work)
    _here[:] = [made]
    return made
