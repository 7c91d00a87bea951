"""A job taken from a queue."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast

from pqcore.backend import Row
from pqcore.errors import DeserializationError
from pqcore.headers import read_headers
from pqcore.rows import JobRow
from pqcore.times import UtcDatetime, timestamp_text

if TYPE_CHECKING:
    from pqcore.sql.identifiers import TableName
    from pqcore.sql.statement import Retention
    from pqcore.times import TimeSpec


Identity: TypeAlias = tuple[int, float | None]
"""The id of a job, and when it was put, as in `JobId`."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FARTHEST = 9_000_000_000.0
"""Seconds: so far from 1970, in the year 2255, a float tells microseconds apart."""


class JobId(int):
    """The id of a job, with the time at which the job was put.

    Ids come again after ``TRUNCATE ... RESTART IDENTITY``, a restore or logical replication. The two together name
    one job.

    Attributes:
        epoch: When the job was put, by the server's clock, in seconds since 1970; None if that is not known: then the
            id alone counts.
    """

    epoch: float | None = None

    @property
    def put_at(self) -> datetime | None:
        """When the job was put, in UTC; None also of a time beyond all clocks, which only a forged row has."""
        if self.epoch is None or abs(self.epoch) > _FARTHEST:
            return None
        return _EPOCH + timedelta(microseconds=round(self.epoch * 1_000_000))


class _Encoded(Protocol):
    """Encoded data."""

    @property
    def raw(self) -> str | bytes: ...


class QueueOfJob(Protocol):
    """The settings of a queue that its jobs need: `pqcore.settings.QueueSettings` has them all."""

    name: str
    table: TableName
    serializer_name: str
    retention: Retention

    def decode_row(self, job_id: int, written_by: str | None, raw: str | bytes) -> Any: ...

    def reads_quickly(self, written_by: str | None, raw: str | bytes, most: int = ...) -> bool: ...

    def encode_row(self, data: Any) -> _Encoded: ...


class BlockingQueueOfJob(QueueOfJob, Protocol):
    """What a job calls on the `pqcore.queue.Queue` that it was taken from."""

    def update(self, job_id: int, data: Any) -> int: ...

    def ack(self, job: Job) -> None: ...

    def nack(self, job: Job, delay: TimeSpec = None) -> None: ...

    def bury(self, job: Job, error: BaseException | str | None = None) -> None: ...

    def extend(self, job: Job, duration: str | float | timedelta) -> None: ...


class BaseJob:
    """What a row of the queue held when it was taken.

    Attributes:
        id: The row's id.
        token: The fencing token: each time the job is taken, it is one more.
        raw: The data as stored: JSON text, or bytes.
        serializer: The serializer that wrote it, or None for a row of pq's.
        failures: How often it failed with an exception before.
        not_counted_attempts: How often the job was taken and that was no attempt: it was parked, snoozed, or given
            back before it ran.
        leased: Whether it is held under a lease, and to be finished.
    """

    __slots__ = (
        "__weakref__",
        "_data",
        "_decoded",
        "_faults",
        "_headers",
        "_queue",
        "_times",
        "failures",
        "id",
        "leased",
        "not_counted_attempts",
        "raw",
        "raw_headers",
        "serializer",
        "token",
    )

    _may_be_deleted: ClassVar[bool] = False
    id: int
    serializer: str | None
    token: int
    raw_headers: str | None

    def __init__(self, queue: QueueOfJob, row: Row, *, leased: bool = False) -> None:
        self._queue = queue
        self.leased = leased
        # The columns of a JobRow, unpacked: to name them first would take almost as long as all the rest.
        (
            self.id,
            data,
            payload,
            self.serializer,
            self.token,
            enqueued_at,
            schedule_at,
            expected_at,
            self.raw_headers,
            failures,
            excused,
        ) = row
        self.raw: str | bytes = data if payload is None else bytes(payload)  # a driver may give a view
        self._times: tuple[datetime, datetime | None, datetime | None] = (enqueued_at, schedule_at, expected_at)
        self.failures: int = failures or 0
        self.not_counted_attempts: int = excused or 0
        self._headers: dict[str, Any] | None = None
        self._faults = ""
        self._decoded = False
        self._data: Any = None

    @property
    def size(self) -> int:
        """The length of the stored data: characters of JSON text, or bytes."""
        return len(self.raw)

    @property
    def enqueued_at(self) -> UtcDatetime:
        """When it was put."""
        return cast(UtcDatetime, UtcDatetime.of(self._times[0]))

    @property
    def schedule_at(self) -> UtcDatetime | None:
        """Before when it was not to be taken."""
        return UtcDatetime.of(self._times[1])

    @property
    def expected_at(self) -> UtcDatetime | None:
        """By when it is wanted: its priority."""
        return UtcDatetime.of(self._times[2])

    @property
    def headers(self) -> dict[str, Any]:
        """What travels beside the data: how it is to be run, a trace's context, whatever ``put`` was given.

        Without what a row holds that no ``put`` wrote.
        """
        if self._headers is None:
            self._headers, self._faults = read_headers(self.raw_headers)
        return self._headers

    @property
    def header_faults(self) -> str:
        """What was wrong with headers that are left out; empty if nothing was."""
        _ = self.headers
        return self._faults

    @property
    def attempts(self) -> int:
        """How often the job was run, this time included."""
        return max(self.token - self.not_counted_attempts, 0)  # the token begins again with 1 after 2,147,483,647

    @property
    def crashes(self) -> int:
        """How often a lease of it ran out: its worker died, or was cut off."""
        return self.token - 1 - self.failures - self.not_counted_attempts

    @property
    def settings(self) -> QueueOfJob:
        """The settings of the queue that the job was taken from; without that queue's methods."""
        return self._queue

    @property
    def is_decoded(self) -> bool:
        """Whether the data was decoded already."""
        return self._decoded

    @property
    def decoded_data(self) -> Any:
        """The data if it was decoded already, else None."""
        return self._data

    def as_row(self) -> JobRow:
        """Return the row that the job was made from, of which another process can make the job again."""
        binary = isinstance(self.raw, bytes)
        return JobRow(
            self.id,
            None if binary else self.raw,
            self.raw if binary else None,
            self.serializer,
            self.token,
            *self._times,
            headers=self.raw_headers,
            failures=self.failures,
            excused=self.not_counted_attempts,
        )

    def decode(self) -> Any:
        """Return the data, which the first call decodes.

        Raises:
            DeserializationError: The row holds something that its queue cannot read.
        """
        # Decoded when asked for, so that a row that cannot be decoded is still taken, and can be dealt with.
        if not self._decoded:
            try:
                self._data = self._queue.decode_row(self.id, self.serializer, self.raw)
            except DeserializationError as exc:
                exc.job = self
                if self._may_be_deleted and not self.leased and self._queue.retention == "delete":
                    exc.args = (f"{exc}{_LEFT}",)
                raise
            self._decoded = True
        return self._data

    def forget_decoded(self) -> None:
        """Let go of the decoded data, for workers; `decode` decodes it again."""
        self._data, self._decoded = None, False

    def _replace(self, data: Any, raw: str | bytes) -> None:
        self._data, self.raw, self._decoded = data, raw, True
        self.serializer = self._queue.serializer_name

    def __repr__(self) -> str:
        return (
            f"<pqcore.{type(self).__name__} id={self.id} size={self.size} "
            f"enqueued_at={timestamp_text(self.enqueued_at)} schedule_at={timestamp_text(self.schedule_at)} "
            f"expected_at={timestamp_text(self.expected_at)}>"
        )


_LEFT = (
    "; if it was taken with get, its row is deleted, and job.raw has all that is left of the data: "
    "job.bury(error) makes a dead letter of it, which queue.dead.retry(job.id) makes a job again"
)


class Job(BaseJob):
    """A job taken from a `Queue`."""

    __slots__ = ()
    _may_be_deleted = True
    _queue: BlockingQueueOfJob

    @property
    def data(self) -> Any:
        """The data that was put.  Setting it writes the row.

        Raises:
            DeserializationError: The row holds something that this queue cannot read.
            JobNotFound: (when set) The row is gone.
        """
        return self.decode()

    @data.setter
    def data(self, data: Any) -> None:
        self._queue.update(self.id, data)
        self._replace(data, self._queue.encode_row(data).raw)

    def ack(self) -> None:
        """Finish a leased job; see `Queue.ack`."""
        self._queue.ack(self)

    def nack(self, delay: TimeSpec = None) -> None:
        """Give a leased job back; see `Queue.nack`."""
        self._queue.nack(self, delay)

    def bury(self, error: BaseException | str | None = None) -> None:
        """Make a dead letter of it; see `Queue.bury`."""
        self._queue.bury(self, error)

    def extend(self, duration: str | float | timedelta) -> None:
        """Hold a leased job for ``duration`` from now; see `Queue.extend`."""
        self._queue.extend(self, duration)


class AsyncJob(BaseJob):
    """A job taken from an `AsyncQueue`."""

    __slots__ = ()
    _may_be_deleted = True
    _queue: QueueOfJob

    @property
    def _face(self) -> Any:
        """The queue, with methods that are awaited."""
        return self._queue

    @property
    def data(self) -> Any:
        """The data that was put; to write it, ``await job.update(data)``.

        Raises:
            DeserializationError: The row holds something that this queue cannot read.
        """
        return self.decode()

    async def update(self, data: Any) -> None:
        """Write new data to the row.

        Raises:
            JobNotFound: The row is gone.
        """
        await self._face.update(self.id, data)
        self._replace(data, self._queue.encode_row(data).raw)

    async def ack(self) -> None:
        """Finish a leased job; see `AsyncQueue.ack`."""
        await self._face.ack(self)

    async def nack(self, delay: TimeSpec = None) -> None:
        """Give a leased job back; see `AsyncQueue.nack`."""
        await self._face.nack(self, delay)

    async def bury(self, error: BaseException | str | None = None) -> None:
        """Make a dead letter of it; see `AsyncQueue.bury`."""
        await self._face.bury(self, error)

    async def extend(self, duration: str | float | timedelta) -> None:
        """Hold a leased job for ``duration`` from now; see `AsyncQueue.extend`."""
        await self._face.extend(self, duration)
