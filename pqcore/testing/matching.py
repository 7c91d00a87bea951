"""The waiting jobs, and a comparison with the job that a test wants; for `pqcore.testing.jobs`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from pqcore.errors import PQError
from pqcore.job import BaseJob
from pqcore.rows import JOB, JobRow
from pqcore.sql.fragments import DUE_AT, is_next
from pqcore.tasks.declaring import Task
from pqcore.times import TimeSpec, UtcDatetime, parse, seconds

if TYPE_CHECKING:
    from pqcore.settings import QueueSettings

ENQUEUED = f"""
SELECT {JOB}, q_name, dedup_key, group_key,
  CASE WHEN parked_on IS NOT NULL AND NOT {is_next(":q_name::text")} THEN 'parked'
    WHEN {DUE_AT} > statement_timestamp() THEN 'scheduled' ELSE 'ready' END
FROM {{table}} AS job WHERE q_name = :q_name::text AND dequeued_at IS NULL
  AND (parked_on IS NULL AND leased_until > statement_timestamp()) IS NOT TRUE ORDER BY id"""
NAMES = "SELECT q_name FROM {table} UNION SELECT q_name FROM {dead} ORDER BY 1"
_CALL = {"function", "args", "kwargs"}


@dataclass(frozen=True)
class Enqueued:
    """A waiting job.

    Times are by the test's clock: times that `Jobs.travel` moved back are returned as they were put.

    Attributes:
        id: The job's id.
        queue: The name of the job's queue.
        task: The path of the function that the job calls; None if the job is not a call.
        args: The positional arguments of the call, without the job's id.
        kwargs: The keyword arguments of the call.
        data: The whole data that was put; in its stored form, if the queue cannot read it.
        schedule_at: The earliest time at which the job may be taken.
        expected_at: The time by which the job is wanted.
        enqueued_at: The time of the job's put.
        headers: The values stored with the data.
        state: ``ready``, ``scheduled``, or ``parked`` for a limit or group.
        attempts: How often the job was run; see `pqcore.Job.attempts`.
        failures: How often the job failed.
        dedup_key: The dedup key that the job holds.
        group: The job's FIFO group.
    """

    id: int
    queue: str
    task: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: Any
    schedule_at: datetime | None
    expected_at: datetime | None
    enqueued_at: datetime
    headers: dict[str, Any]
    state: Literal["ready", "scheduled", "parked"]
    attempts: int = 0
    failures: int = 0
    dedup_key: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        told = repr(self.data)
        if self.task is not None:
            arguments = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
            told = f"{self.task}({', '.join(arguments)})"
        when = "" if self.schedule_at is None else f" at {self.schedule_at:%Y-%m-%d %H:%M:%S}"
        return f"{self.queue} #{self.id}: {told}, {self.state}{when}"


def read(queue: QueueSettings, row: Sequence[Any], travelled: timedelta) -> Enqueued:
    """Read a row of `ENQUEUED`."""
    *columns, name, dedup_key, group, state = row
    job = BaseJob(queue, JobRow._make(columns))
    try:
        data = job.decode()
    except PQError:
        data = job.raw
    call = data if isinstance(data, dict) and data.keys() >= _CALL else None
    return Enqueued(
        id=job.id,
        queue=str(name),
        task=None if call is None else call["function"],
        args=() if call is None else tuple(call["args"]),
        kwargs={} if call is None else dict(call["kwargs"]),
        data=data,
        schedule_at=_later(job.schedule_at, travelled),
        expected_at=_later(job.expected_at, travelled),
        enqueued_at=_later(job.enqueued_at, travelled) or job.enqueued_at,
        headers=job.headers,
        state=state,
        attempts=job.attempts,
        failures=job.failures,
        dedup_key=dedup_key,
        group=group,
    )


def is_call(data: Any) -> bool:
    """Return whether a job's data is a call of a function."""
    return isinstance(data, dict) and data.keys() >= _CALL


def _later(moment: UtcDatetime | None, by: timedelta) -> datetime | None:
    try:
        return None if moment is None else moment + by
    except OverflowError:  # the moment is so late that the sum exceeds datetime.max
        return moment


@dataclass(frozen=True)
class Wanted:
    """The criteria with which a job is compared; see `Jobs.assert_enqueued`."""

    what: Any
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    schedule_at: TimeSpec
    expected_at: TimeSpec
    within: str | float | timedelta | None
    headers: Mapping[str, Any] | None

    def __str__(self) -> str:
        told = "" if self.what is ... else f" {path_of(self.what) or repr(self.what)}"
        named = ("args", "kwargs", "schedule_at", "expected_at", "within", "headers")
        given = [f"{name}={value!r}" for name in named if (value := getattr(self, name)) is not None]
        return told + (f" with {', '.join(given)}" if given else "")

    def meets(self, job: Enqueued, queue: QueueSettings, now: datetime) -> bool:
        """Return whether a job meets the criteria."""
        return (
            self._is_of_what(job, queue)
            and (self.args is None or (job.task is not None and _same(queue, list(self.args), list(job.args))))
            and (self.kwargs is None or (job.task is not None and _same(queue, dict(self.kwargs), job.kwargs)))
            and all(job.headers.get(name, ...) == value for name, value in (self.headers or {}).items())
            and self._is_in_time(job, now)
        )

    def _is_of_what(self, job: Enqueued, queue: QueueSettings) -> bool:
        if self.what is ...:
            return True
        path = path_of(self.what)
        if path is None:
            return _same(queue, self.what, job.data)
        return path == job.task or (isinstance(self.what, str) and self.what == job.data)

    def _is_in_time(self, job: Enqueued, now: datetime) -> bool:
        margin = timedelta(seconds=1.0 if self.within is None else seconds(self.within))
        if self.within is not None and self.schedule_at is None and self.expected_at is None:
            return (job.schedule_at or job.enqueued_at) <= now + margin
        pairs = ((self.schedule_at, job.schedule_at), (self.expected_at, job.expected_at))
        return all(wanted is None or _near(wanted, found, job, now, margin) for wanted, found in pairs)


def _near(wanted: TimeSpec, found: datetime | None, job: Enqueued, now: datetime, margin: timedelta) -> bool:
    """Return whether a time is the wanted one; a duration may count from the put of the job, or from now."""
    when = parse(wanted)
    if found is None or when is None:
        return False
    if isinstance(when, datetime):
        return abs(found - when) <= margin
    return min(abs(found - job.enqueued_at - when), abs(found - now - when)) <= margin


def _same(queue: QueueSettings, wanted: Any, found: Any) -> bool:
    """Return whether a value equals the wanted value, as given or in its stored form, in which tuples are lists."""
    if wanted == found:
        return True
    try:
        stored = queue.encode_row(wanted).raw
        return bool(queue.decode_row(0, queue.serializer_name, stored) == found)
    except PQError:
        return False


def path_of(what: Any) -> str | None:
    """Return the path of a declared task or a function, or a given path; None for other objects."""
    task = getattr(what, "task", what)
    if isinstance(task, Task):
        return task.path
    if inspect.isroutine(what):
        return f"{what.__module__}.{what.__qualname__}"
    return what if isinstance(what, str) else None
