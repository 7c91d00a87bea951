"""How long finished rows and dead letters are kept: the rows that set the times, and the sweep that deletes older rows.

A table that `create` makes gets rows that set the times. A table that older code made has no such rows, and keeps
everything until somebody sets a time. Workers sweep their queues, a bounded number of rows at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import AccessDenied, ConfigurationError
from pqcore.settings import AS_IT_IS
from pqcore.times import seconds

Kept: TypeAlias = Literal["finished", "dead"]
Time: TypeAlias = str | float | timedelta | None
"""Seconds, ``'7d'`` or a timedelta; None to keep all rows."""

ALL_QUEUES = ""
"""The name that stands for all queues of the table without their own time."""
SWEEP = 1.0
"""Seconds after which a sweep starts no further statement."""


@dataclass(frozen=True)
class Expiry:
    """How long rows of one kind are kept.

    Attributes:
        queue: The queue; None for all queues of the table without a time of their own.
        kind: ``finished`` (kept and archived rows) or ``dead`` (dead letters).
        seconds: The number of seconds; None to keep all rows.
        deleted: How many expired rows workers have deleted.
    """

    queue: str | None
    kind: Kept
    seconds: float | None
    deleted: int


async def set_expiry(
    engine: Engine, queue: str | None, *, finished: Time = AS_IT_IS, dead: Time = AS_IT_IS, connection: object = None
) -> None:
    """Set how long finished rows and dead letters are kept.

    Args:
        engine: The engine.
        queue: The queue; None for all queues of the table without a time of their own.
        finished: How long finished rows are kept.
        dead: How long dead letters are kept.
        connection: A connection whose open transaction is used; see `Queue.put`.

    Raises:
        InvalidTimeSpec: A time cannot be read.
        ConfigurationError: Neither time is given.
    """
    wanted: dict[Kept, Time] = {}
    if finished is not AS_IT_IS:
        wanted["finished"] = finished
    if dead is not AS_IT_IS:
        wanted["dead"] = dead
    if not wanted:
        msg = "set_expiry has neither finished= nor dead=: give one of them, as in finished='7d', or None to keep all"
        raise ConfigurationError(msg)
    periods = {kind: None if period is None else seconds(period) for kind, period in wanted.items()}
    name = ALL_QUEUES if queue is None else queue

    async def work(s: Session) -> None:
        for kind, period in periods.items():
            query = s.sql.rules.set_expiry
            await s.execute(query, query.bind({"q_name": name, "name": kind, "period": period, "replaces": True}))

    await engine.run(work, connection=connection)


async def set_first_expiry(s: Session, finished: Time, dead: Time) -> None:
    """Set how long rows of a new table are kept, unless another program has set a time meanwhile.

    Args:
        s: The session.
        finished: How long finished rows are kept.
        dead: How long dead letters are kept.
    """
    for kind, period in (("finished", finished), ("dead", dead)):
        if period is not None:
            values = {"q_name": ALL_QUEUES, "name": kind, "period": seconds(period), "replaces": False}
            await s.execute(s.sql.rules.set_expiry, s.sql.rules.set_expiry.bind(values))


async def list_expiry(engine: Engine) -> list[Expiry]:
    """Return the times that are set, those for all queues first; return an empty list if no time is set."""
    return await engine.run(list_expiry_of, protect=False)


async def list_expiry_of(s: Session) -> list[Expiry]:
    """Return the times that are set; see `list_expiry`."""
    rows = await s.execute(s.sql.rules.list_expiry)
    return [
        Expiry(None if queue == ALL_QUEUES else queue, kind, period, int(deleted or 0))
        for queue, kind, period, deleted in rows
    ]


class Sweep:
    """A sweep that deletes the expired rows of one queue.

    Args:
        queue: The name of the queue.

    Attributes:
        queue: The name of the queue.
        task: The work, for a message.
    """

    task = "delete expired rows"

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self._after = 0  # the id at which the next look for finished rows begins

    async def run(self, engine: Engine) -> int:
        """Delete expired rows for about `SWEEP` seconds; return their number.

        Raises:
            AccessDenied: The role may not delete rows.
        """
        removed = 0
        until = time.monotonic() + SWEEP
        for kind, (name, period) in _of_queue(await list_expiry(engine), self.queue).items():
            values = {"q_name": self.queue, "age": period}
            if kind == "finished":
                number = await self._sweep_finished(engine, values, until)
                number += await _sweep_some(engine, "rules.expire_archive", values, until)
            else:
                number = await _sweep_some(engine, "rules.expire_dead", values, until)
            if number:
                counted = {"q_name": name, "name": kind, "number": number}
                with suppress(AccessDenied):  # a role may be allowed to delete rows but not to set rules
                    await engine.execute("rules.count_expired", counted, protect=False)
            removed += number
        return removed

    async def _sweep_finished(self, engine: Engine, values: dict[str, object], until: float) -> int:
        """Delete finished rows, one slice of ids after the other, until a slice has only younger rows."""
        removed = 0
        while True:
            [[last, number, young]] = await engine.execute("rules.expire_finished", {**values, "after": self._after})
            removed += int(number)
            if last is None or (young and not number):
                self._after = 0
                return removed
            self._after = int(last)
            if time.monotonic() >= until:
                return removed


def _of_queue(found: Sequence[Expiry], queue: str) -> dict[Kept, tuple[str, float]]:
    """Return, by kind of rows, the time that applies to a queue: the name under which it is set, and its seconds."""
    kept: dict[Kept, Expiry] = {}
    for one in found:
        if one.queue in (None, queue) and (one.queue == queue or one.kind not in kept):
            kept[one.kind] = one
    return {
        kind: (ALL_QUEUES if one.queue is None else one.queue, one.seconds)
        for kind, one in kept.items()
        if one.seconds is not None
    }


async def _sweep_some(engine: Engine, statement: str, values: dict[str, object], until: float) -> int:
    removed = 0
    while True:
        [[number]] = await engine.execute(statement, values)
        removed += int(number)
        if not number or time.monotonic() >= until:
            return removed
