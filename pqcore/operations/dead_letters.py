"""Dead letters: looking at them, and giving them another life or an end."""

from __future__ import annotations

import json
import traceback
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from types import TracebackType

from pqcore.db.engine import Engine
from pqcore.db.interrupts import is_from_outside
from pqcore.db.session import Session
from pqcore.errors import ConfigurationError, JobNotFound
from pqcore.operations.atomic import atomic, with_free_ids
from pqcore.operations.put_refusals import not_stored
from pqcore.rows import DeadLetterRow
from pqcore.settings import QueueSettings
from pqcore.times import seconds

MOST_REVIVED, MOST_PURGED = 1_000, 10_000
"""Dead letters: the most that one statement deals with; the limits in `pqcore.sql.task_statements`."""
REASONS = ("failed", "crashed", "expired", "invalid", "unreadable")
"""Why jobs are dead letters."""
MAX_TRACEBACK = 20_000
"""Characters of a traceback that are kept: its end."""
_LEADING = ("pqcore.", "concurrent.futures.", "asyncio.")


async def listed(engine: Engine, queue: QueueSettings, n: int) -> list[DeadLetterRow]:
    """The rows of the latest ``n``."""
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        msg = f"n is {n!r}; give a number of dead letters, at least 1"
        raise ConfigurationError(msg)
    rows = await engine.execute("tasks.dead_letters", {"q_name": queue.name, "n": n}, protect=False)
    return list(map(DeadLetterRow.of, rows))


async def one(engine: Engine, queue: QueueSettings, job_id: int) -> DeadLetterRow:
    """The row of one."""
    rows = await engine.execute("tasks.dead_letter", {"q_name": queue.name, "id": job_id}, protect=False)
    if not rows:
        msg = f"queue {queue.name!r} has no dead letter {job_id}"
        raise JobNotFound(msg)
    return DeadLetterRow.of(rows[0])


async def count(engine: Engine, queue: QueueSettings, reason: str | None = None) -> int:
    """Return how many there are, of one reason or of all."""
    values = {"q_name": queue.name, "reason": _checked(reason)}
    [[number]] = await engine.execute("tasks.count_dead", values, protect=False)
    return int(number)


def _checked(reason: str | None) -> str | None:
    if reason is not None and reason not in REASONS:
        msg = f"{reason!r} is no reason of a dead letter; choose of {', '.join(REASONS)}"
        raise ConfigurationError(msg)
    return reason


async def revive(engine: Engine, queue: QueueSettings, ids: Sequence[int] | None, reason: str | None = None) -> int:
    """Make jobs of them again, due immediately, with a clean record; return how many.

    Args:
        engine: Where.
        queue: Whose.
        ids: Which; None for all.
        reason: Only those that died for this reason.

    Raises:
        ConfigurationError: There is no such reason.
        NotStored: A trigger left a job out; nothing is changed.
    """
    _checked(reason)

    async def rise(some: Sequence[int] | None) -> int:
        async def work(s: Session) -> int:
            query = s.sql.tasks.revive
            async with atomic(s):
                [[risen, put]] = await s.execute(
                    query, query.bind({"q_name": queue.name, "ids": some, "reason": reason})
                )
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


def described(error: BaseException) -> dict[str, str]:
    """An exception as it is kept with the job: ``type``, ``message``, ``traceback``."""
    kind = type(error)
    text = "".join(traceback.format_exception(kind, error, _from_the_function(error.__traceback__)))
    try:
        message = str(error)
    except BaseException as exc:
        if is_from_outside(exc):
            raise
        message = f"<a {kind.__qualname__} that cannot be shown>"
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "message": _storable(message[:MAX_TRACEBACK]),
        "traceback": _storable(text[-MAX_TRACEBACK:]),
    }


def _from_the_function(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the frames that led to the function: those of the worker, of its threads and pools."""
    start = trace
    while start is not None and start.tb_frame.f_globals.get("__name__", "").startswith(_LEADING):
        start = start.tb_next
    return trace if start is None else start


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
