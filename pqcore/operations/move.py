"""Moving jobs to another queue, or finished jobs to the archive."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from pqcore.argument_checks import check_job_ids
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, InvalidData, NotSupported
from pqcore.operations.admin import run_in_slices
from pqcore.settings import QueueSettings
from pqcore.sql.admin_statements import KINDS
from pqcore.times import seconds

SLICE = 500
"""The number of jobs moved in one transaction."""
TRIES = 20
"""Attempts for each slice, while other transactions take dedup keys in the target queue."""


async def move(
    engine: Engine,
    queue: QueueSettings,
    target: QueueSettings | str,
    ids: Iterable[int] | None = None,
    most: int | None = None,
) -> int:
    """Move waiting, scheduled and parked jobs to another queue of the same table.

    The jobs keep their ids, times, attempts and progress. From then on, they count under the limits and groups of the
    new queue. Leased jobs stay, and so do jobs whose dedup keys are taken in the new queue. A dedup key that is held
    for a fixed time stays with the queue that the job was put into. The operation does not move jobs that are put after
    it began, so it ends even if other programs continue to put jobs.

    Args:
        engine: The engine.
        queue: The queue that has the jobs.
        target: Another queue of the same table, or its name.
        ids: Move only jobs with these ids; None for all.
        most: The largest number of jobs to move from each class of waiting rows. The jobs that are due first are moved.
            None for all.

    Returns:
        The number of jobs moved. Each slice is committed separately, unless a transaction is open.

    Raises:
        ConfigurationError: The queues are the same, or of different tables, or ``most`` is not a number.
        NotSupported: The server's dialect cannot move jobs.
    """
    if reason := engine.dialect.unsupported.get("move"):
        raise NotSupported(f"{engine.dialect.name} cannot move jobs from queue to queue: {reason}")
    if isinstance(target, str):
        target = QueueSettings(target, engine.names, None, {})
    if not isinstance(target, QueueSettings):
        raise ConfigurationError(
            f"the target is {target!r}; give another queue of the same table, or the name of that queue"
        )
    if target.table != queue.table:
        raise ConfigurationError(
            f"queue {target.name!r} is in {target.table}, not in {queue.table}: move works in one table only"
        )
    if queue.name == target.name:
        raise ConfigurationError(f"{queue.name!r} is the queue that the jobs are in: name another queue")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ConfigurationError(f"most is {most!r}; give a number of jobs, at least 1")
    chosen = None if ids is None else check_job_ids(ids)
    [[last]] = await engine.execute("admin.last_id", {}, protect=False)
    if last is None:
        return 0
    values: dict[str, object] = {
        "q_name": queue.name,
        "target": target.name,
        "channel": target.channel,
        "last": last,
    }
    total = 0
    if chosen is not None:
        for start in range(0, len(chosen), SLICE):
            left = SLICE if most is None else min(most - total, SLICE)
            part: dict[str, object] = {**values, "ids": chosen[start : start + SLICE], "n": left}
            total += await _move_slice(engine, "ids", part) if left else 0
        return total
    for kind in KINDS:
        while left := SLICE if most is None else min(most - total, SLICE):
            moved = await _move_slice(engine, kind, {**values, "n": left})
            total += moved
            if not moved:
                break
    return total


async def _move_slice(engine: Engine, kind: str, values: dict[str, object]) -> int:
    async def work(s: Session) -> int:
        query = s.sql.admin.move[kind]
        return len(await s.execute(query, query.bind(values)))

    for left in reversed(range(TRIES)):
        try:
            return await engine.run(work, patient=True)
        except InvalidData as exc:
            if exc.sqlstate != "23505" or not left:
                raise
    return 0  # never reached


async def archive(engine: Engine, queue: QueueSettings, older_than: str | float | timedelta) -> int:
    """Move finished rows from the table to the archive, a slice at a time; return their number.

    Args:
        engine: The engine.
        queue: The queue.
        older_than: Move only jobs that finished at least this long ago: seconds, ``'14d'`` or a timedelta.
    """
    return await run_in_slices(engine, "admin.archive_kept", {"q_name": queue.name, "age": seconds(older_than)})
