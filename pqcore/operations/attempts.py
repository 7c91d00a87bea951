"""The attempts that are kept: those that failed, crashed or were snoozed, at most 20 for each job.

The statement that ends an attempt also stores the attempt; see `pqcore.operations.attempt_values`. A crash is stored
when the job is about to run again, because the crashed program could not store it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import NamedTuple, cast

from pqcore.argument_checks import check_job_id
from pqcore.db.engine import Engine
from pqcore.db.session import Session
from pqcore.errors import AccessDenied
from pqcore.job import BaseJob
from pqcore.operations.results import put_time
from pqcore.schema import security
from pqcore.settings import QueueSettings
from pqcore.times import UtcDatetime

SWEEP = 1.0
"""Seconds after which a sweep starts no further statement."""
RESTS = 10
"""The number of sweeps that do no work after a pass that found little, for each sweep that the pass took."""
LITTLE = 0.05
"""A pass found little if it deleted at most this part of the attempts that it looked at."""
_CRASH = {
    "error_type": "crash",
    "message": "the lease ended without an outcome: the worker died, lost its connection, or gave the job back",
}


@dataclass(frozen=True)
class PastAttempt:
    """A job's attempt that failed, crashed or was snoozed.

    Attributes:
        attempt: The number of the attempt: 1 for the first. A snoozed attempt does not count, so the attempt after it
            has the same number.
        outcome: ``failed``, ``crashed`` or ``snoozed``.
        ended_at: When the attempt ended; for a crash, when the job was about to run again.
        worker: The host and the process id of the worker, as ``host:pid``; None if unknown.
        error: ``type``, ``message`` and ``traceback``, as far as they are kept; empty without an exception.
    """

    attempt: int
    outcome: str
    ended_at: UtcDatetime
    worker: str | None
    error: dict[str, str]


class _AttemptRow(NamedTuple):
    """The columns of the statement ``find_attempts``."""

    attempt: int
    outcome: str
    ended_at: datetime
    worker: str | None
    error_type: str | None
    message: str | None
    traceback: str | None


async def list_attempts(engine: Engine, queue: str, job_id: int) -> list[PastAttempt]:
    """Return the kept attempts of a job, the earliest first.

    Args:
        engine: The engine.
        queue: The name of the job's queue.
        job_id: The job.
    """
    values = {"id": check_job_id(job_id), "q_name": queue, "put_at": put_time(engine, job_id)}
    rows: Sequence[_AttemptRow] = [
        _AttemptRow._make(row) for row in await engine.execute("attempts.find_attempts", values)
    ]
    return [
        PastAttempt(
            row.attempt, row.outcome, cast(UtcDatetime, UtcDatetime.of(row.ended_at)), row.worker, _error_of(row)
        )
        for row in rows
    ]


async def read_attempts(engine: Engine, queue: str, job_id: int) -> list[PastAttempt]:
    """Return the attempts as `list_attempts` does; return an empty list if the role may not read attempts."""
    with suppress(AccessDenied):
        return await list_attempts(engine, queue, job_id)
    return []


def _error_of(row: _AttemptRow) -> dict[str, str]:
    if row.error_type is None:
        return {}
    return {"type": row.error_type, "message": row.message or "", "traceback": row.traceback or ""}


async def keep_crash(engine: Engine, queue: QueueSettings, job: BaseJob) -> None:
    """Record a crash if the lease before this one ended without an outcome, unless the crash is recorded already.

    Args:
        engine: The engine.
        queue: The job's queue.
        job: The job, as it is leased now.
    """
    values = {"id": job.id, "q_name": queue.name, "token": job.token - 1, "attempt": max(job.attempts - 1, 1)}
    await engine.execute("attempts.keep_crash", {**values, "crashes": job.crashes, **_CRASH})


async def _sees_all(engine: Engine, s: Session) -> bool:
    """Return whether no row-level security hides attempts from the role."""
    return await security.look(s, engine.names.related("_attempts")) is None


class AttemptSweep:
    """A sweep that deletes the attempts of jobs that are gone.

    A pass over the table may take several sweeps. After a pass that deleted little, the next sweeps do no work.

    Args:
        queue: The name of the queue. The sweep covers the attempts of all queues, unless these are on several servers.

    Attributes:
        task: The work, for a message.
    """

    task = "delete attempts of jobs that are gone"

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._rests = 0  # how many of the next sweeps to skip
        self._begin()

    def _begin(self) -> None:
        self._after = -1  # the id of the last job that this pass has checked
        self._sweeps = self._seen = self._removed = 0

    async def run(self, engine: Engine) -> int:
        """Delete attempts for about `SWEEP` seconds; return their number.

        Raises:
            AccessDenied: The role may not delete attempts.
        """
        if self._rests:
            self._rests -= 1
            return 0
        if engine.security is not None and await engine.run(partial(_sees_all, engine)):
            return 0  # jobs that row-level security hides would seem to be gone
        removed = 0
        until = time.monotonic() + SWEEP
        self._sweeps += 1
        while True:
            values = {"q_name": self._queue, "after": self._after}
            [[last, seen, number]] = await engine.execute("attempts.sweep_attempts", values)
            removed += int(number)
            self._seen += int(seen)
            self._removed += int(number)
            if last is None:
                if self._removed <= LITTLE * self._seen:
                    self._rests = RESTS * self._sweeps
                self._begin()
                return removed
            self._after = int(last)
            if time.monotonic() >= until:
                return removed
