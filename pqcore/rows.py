"""Rows of jobs as statements return them: named columns, and the SELECT lists that return them.

Drivers return tuples, or records that unpack as tuples do. Code that reads a column first unpacks the row into names,
or names the columns. No code reads a column by its position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from pqcore.backend import Row
from pqcore.sql.fragments import EXPRESSIBLE

EXCUSED = 0xFFFFFFFF
"""The bits of `JobRow.counts` that are ``excused``."""


class JobRow(NamedTuple):
    """The columns of a job, in the order of `JOB`; `pqcore.job.BaseJob` reads them.

    Attributes:
        id: The row's id.
        data: JSON text; None if the data is in ``payload``.
        payload: Bytes, which a driver may give as a memoryview; None if the data is in ``data``.
        serializer: The serializer that wrote the data; None for a row that pq wrote.
        attempts: The column ``attempts``: the fencing token, which counts how often the job was taken.
        enqueued_at: The time of the job's put, naive, in UTC.
        schedule_at: The earliest time at which the job may be taken, naive, in UTC.
        expected_at: The time by which the job is wanted, naive, in UTC.
        headers: The values stored with the data, as JSON text.
        counts: The columns ``failures`` and ``excused`` in one number, see `packed`; None if both are NULL. A driver
            takes a microsecond for each column.
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
    counts: int | None = None

    @property
    def failures(self) -> int:
        """Return how often the job failed with an exception."""
        return (self.counts or 0) >> 32

    @property
    def excused(self) -> int:
        """Return how often the job was taken without an attempt."""
        return (self.counts or 0) & EXCUSED

    @property
    def due_at(self) -> datetime:
        """Return when the job becomes or became due: ``schedule_at``, or else ``enqueued_at``."""
        return self.enqueued_at if self.schedule_at is None else self.schedule_at


JOB = (
    "id, data::text, payload, serializer, attempts,"
    f" {EXPRESSIBLE.format('enqueued_at')},"
    f" CASE WHEN schedule_at IS NOT NULL THEN {EXPRESSIBLE.format('schedule_at')} END,"
    f" CASE WHEN expected_at IS NOT NULL THEN {EXPRESSIBLE.format('expected_at')} END,"
    " headers::text, CASE WHEN failures IS NOT NULL OR excused IS NOT NULL THEN"
    " coalesce(failures, 0)::bigint * 4294967296 + greatest(coalesce(excused, 0), 0) END"
)
"""The SELECT list of a `JobRow`."""


def packed(failures: int, excused: int) -> int:
    """Return the value of `JobRow.counts`: ``failures`` in the upper 32 bits, and ``excused`` in the lower 32 bits."""
    return failures << 32 | excused


def job_rows(rows: Iterable[Row]) -> list[JobRow]:
    """Convert the rows of a statement that selects `JOB` to named tuples."""
    return list(map(JobRow._make, rows))


# Single columns are read from unnamed rows here: naming each row of a `get_many` takes almost as long as making its
# job.
headers_of: Callable[[Row], str | None] = itemgetter(JobRow._fields.index("headers"))
expected_at_of: Callable[[Row], datetime | None] = itemgetter(JobRow._fields.index("expected_at"))


def place_of(row: Row) -> tuple[bool, datetime, datetime, int]:
    """Return the position of a row in the order in which jobs are taken, as in `pqcore.sql.fragments.ORDER`."""
    job_id, _, _, _, _, enqueued_at, schedule_at, expected_at, *_ = row
    due = enqueued_at if schedule_at is None else schedule_at
    return expected_at is None, due if expected_at is None else expected_at, due, job_id


class DeadLetterRow(NamedTuple):
    """The columns of a dead letter, in the order of `DEAD_LETTER`.

    Attributes:
        job: The job.
        error: The last exception, as JSON text.
        reason: Why the job is dead; see `pqcore.dead_letters.DeadLetter`.
        died_at: When the job became a dead letter, naive, in UTC.
    """

    job: JobRow
    error: str | None
    reason: str
    died_at: datetime

    @classmethod
    def of(cls, row: Row) -> DeadLetterRow:
        """Convert a row of a statement that selects `DEAD_LETTER` to a named tuple."""
        *job, error, reason, died_at = row
        return cls(JobRow._make(job), error, reason, died_at)


DEAD_LETTER = f"{JOB}, error::text, reason, died_at AT TIME ZONE 'UTC'"
"""The SELECT list of a `DeadLetterRow`."""


class StoredJobRow(NamedTuple):
    """The columns of a listed job, in the order of `pqcore.sql.admin_statements`.

    Attributes:
        id: The job's id.
        queue: The name of its queue.
        state: One of `pqcore.operations.list_jobs.STATES`.
        serializer: The serializer that wrote the data; None for a row that pq wrote.
        attempts: How often the job was run, including a present run.
        failures: How often the job failed with an exception.
        error: The last exception, as JSON text.
        reason: Why the job is dead; None if it is not dead.
        enqueued_at: The time of the job's put; like all times here, naive and in UTC.
        schedule_at: The earliest time at which the job may be taken.
        expected_at: The time by which the job is wanted.
        finished_at: When the job was finished, or died.
        leased_until: When the lease ends, or ended.
        parked_on: The limit or group that the job waits for.
        head: The beginning of the data, if the data is JSON text.
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
