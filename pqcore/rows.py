"""Rows of jobs as statements return them: a name for each column, with the SELECT list that gives the columns.

Drivers return tuples, or records that unpack as tuples do. Code that reads a column unpacks the row into names, or
names the columns first. No code reads a column by its position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from pqcore.backend import Row
from pqcore.sql.fragments import EXPRESSIBLE


class JobRow(NamedTuple):
    """The columns of a job, in the order of `JOB`; `pqcore.job.BaseJob` reads them.

    Attributes:
        id: The row's id.
        data: JSON text; None if the data is in ``payload``.
        payload: Bytes, for which a driver may give a view of memory; None if the data is in ``data``.
        serializer: The serializer that wrote the data; None for a row of pq's.
        attempts: The column ``attempts``: the fencing token, which counts how often the job was taken.
        enqueued_at: When the job was put, naive, in UTC.
        schedule_at: Before when the job must not be taken, naive, in UTC.
        expected_at: By when the job is wanted, naive, in UTC.
        headers: What travels with the data, as JSON text.
        failures: How often the job failed with an exception; None for never.
        excused: The column ``excused``: how often the job was taken and that was no attempt.
    """

    id: int
    data: Any
    payload: Any
    serializer: str | None
    attempts: int
    enqueued_at: datetime
    schedule_at: datetime | None = None
    expected_at: datetime | None = None
    headers: str | None = None
    failures: int | None = None
    excused: int | None = None

    @property
    def due_at(self) -> datetime:
        """When the job is due, or was: ``schedule_at``, else ``enqueued_at``."""
        return self.enqueued_at if self.schedule_at is None else self.schedule_at


JOB = (
    "id, data::text, payload, serializer, attempts,"
    f" {EXPRESSIBLE.format('enqueued_at')},"
    f" CASE WHEN schedule_at IS NOT NULL THEN {EXPRESSIBLE.format('schedule_at')} END,"
    f" CASE WHEN expected_at IS NOT NULL THEN {EXPRESSIBLE.format('expected_at')} END,"
    " headers::text, failures, excused"
)
"""The SELECT list of a `JobRow`."""


def job_rows(rows: Iterable[Row]) -> list[JobRow]:
    """Name the columns of rows that a statement with the columns of `JOB` returned."""
    return list(map(JobRow._make, rows))


# Columns of a row that has no names yet: naming each row of a `get_many` takes almost as long as making its job.
headers_of: Callable[[Row], str | None] = itemgetter(JobRow._fields.index("headers"))
expected_at_of: Callable[[Row], datetime | None] = itemgetter(JobRow._fields.index("expected_at"))


def place_of(row: Row) -> tuple[bool, datetime, datetime, int]:
    """Return the place of a row in the order in which jobs are taken, as `pqcore.sql.fragments.ORDER` has it."""
    job_id, _, _, _, _, enqueued_at, schedule_at, expected_at, _, _, _ = row
    due = enqueued_at if schedule_at is None else schedule_at
    return expected_at is None, due if expected_at is None else expected_at, due, job_id


class DeadLetterRow(NamedTuple):
    """The columns of a dead letter, in the order of `DEAD_LETTER`.

    Attributes:
        job: The job.
        error: The last exception, as JSON text.
        reason: Why the job is dead; see `pqcore.dead_letters.DeadLetter`.
        died_at: When the job died, naive, in UTC.
    """

    job: JobRow
    error: str | None
    reason: str
    died_at: datetime

    @classmethod
    def of(cls, row: Row) -> DeadLetterRow:
        """Name the columns of a row that a statement with the columns of `DEAD_LETTER` returned."""
        *job, error, reason, died_at = row
        return cls(JobRow._make(job), error, reason, died_at)


DEAD_LETTER = f"{JOB}, error::text, reason, died_at AT TIME ZONE 'UTC'"
"""The SELECT list of a `DeadLetterRow`."""


class StoredJobRow(NamedTuple):
    """The columns of a job that is listed, wherever its row is, in the order of `pqcore.sql.admin_statements`.

    Attributes:
        id: The job's id.
        queue: The name of its queue.
        state: One of `pqcore.operations.list_jobs.STATES`.
        serializer: The serializer that wrote the data; None for a row of pq's.
        attempts: How often the job was run, the run under way included.
        failures: How often the job failed with an exception.
        error: The last exception, as JSON text.
        reason: Why the job is dead; None otherwise.
        enqueued_at: When the job was put, naive, in UTC, as the other times.
        schedule_at: Before when the job must not be taken.
        expected_at: By when the job is wanted.
        finished_at: When the job was finished, or died.
        leased_until: When the lease ends, or ended.
        parked_on: The limit or group that the job waits for.
        head: The beginning of the data, if it is JSON text.
    """

    id: int
    queue: str
    state: str
    serializer: str | None
    attempts: int
    failures: int
    error: str | None
    reason: str | None
    enqueued_at: datetime | None
    schedule_at: datetime | None
    expected_at: datetime | None
    finished_at: datetime | None
    leased_until: datetime | None
    parked_on: str | None
    head: str | None
