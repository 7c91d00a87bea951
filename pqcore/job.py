"""A job taken from a queue."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, cast

from pqcore.backend import Row
from pqcore.errors import DeserializationError
from pqcore.headers import read_headers
from pqcore.rows import EXCUSED, JobRow, packed
from pqcore.times import UtcDatetime, timestamp_text

if TYPE_CHECKING:
    from pqcore.sql.identifiers import TableName
    from pqcore.sql.statement import Retention
    from pqcore.times import TimeSpec


Identity: TypeAlias = tuple[int, float | None]
"""The id of a job and the time of its put, as in `JobId`."""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FARTHEST = 9_000_000_000.0
"""Seconds since 1970, up to which a float distinguishes microseconds; this is a time in the year 2255."""


class JobId(int):
    """The id of a job, with the time of the job's put.

    Ids may repeat after ``TRUNCATE ... RESTART IDENTITY``, a restore or logical replication. The id and the time
    together name one job.

    Attributes:
        epoch: When the job was put, by the server's clock, in seconds since 1970; None if unknown, so that only the id
            is compared.
    """

    epoch: float | None = None

    @property
    def put_at(self) -> datetime | None:
        """The time of the job's put, in UTC; None if unknown, or if no datetime can hold the row's (forged) time."""
        if self.epoch is None or abs(self.epoch) > _FARTHEST:
            return None
        return _EPOCH + timedelta(microseconds=round(self.epoch * 1_000_000))


class _Encoded(Protocol):
    """Encoded data."""

    @property
    def raw(self) -> str | bytes: ...


class QueueOfJob(Protocol):
    """The settings of a queue that its jobs need, a part of `pqcore.settings.QueueSettings`."""

    name: str
    table: TableName
    serializer_name: str
    retention: Retention

    def decode_row(self, job_id: int, written_by: str | None, raw: str | bytes) -> Any: ...

    def reads_quickly(self, written_by: str | None, raw: str | bytes, most: int = ...) -> bool: ...

    def encode_row(self, data: Any) -> _Encoded: ...


class BlockingQueueOfJob(QueueOfJob, Protocol):
    """The methods that a job calls on the `pqcore.queue.Queue` that it was taken from."""

    def update(self, job_id: int, data: Any) -> int: ...

    def ack(self, job: Job) -> None: ...

    def nack(self, job: Job, delay: TimeSpec = None) -> None: ...

    def bury(self, job: Job, error: BaseException | str | None = None) -> None: ...

    def extend(self, job: Job, duration: str | float | timedelta) -> None: ...


class BaseJob:
    """The content of a queue's row when the job was taken.

    Attributes:
        id: The row's id.
        token: The fencing token, which grows by one each time the job is taken.
        raw: The stored data: JSON text, or bytes.
        serializer: The serializer that wrote the data, or None for a row that pq wrote.
        failures: How many earlier attempts failed with an exception.
        not_counted_attempts: How often the job was taken without an attempt, because it was parked, snoozed, or given
            back before it ran.
        leased: Whether the job is leased, so that the consumer must finish it.
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
        # The columns of a JobRow are unpacked here: making a JobRow first would take almost as long as all the rest.
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
            counts,
        ) = row
        self.raw: str | bytes = data if payload is None else bytes(payload)  # a driver may return a memoryview
        self._times: tuple[datetime, datetime | None, datetime | None] = (enqueued_at, schedule_at, expected_at)
        self.failures: int = 0 if counts is None else counts >> 32  # as `JobRow.failures`
        self.not_counted_attempts: int = 0 if counts is None else counts & EXCUSED
        self._headers: dict[str, Any] | None = None
        self._faults = ""
        self._decoded = False
        self._data: Any = None

    @property
    def size(self) -> int:
        """Return the length of the stored data: characters of JSON text, or bytes."""
        return len(self.raw)

    @property
    def enqueued_at(self) -> UtcDatetime:
        """The time of the job's put."""
        return cast(UtcDatetime, UtcDatetime.of(self._times[0]))

    @property
    def schedule_at(self) -> UtcDatetime | None:
        """The earliest time at which the job may be taken."""
        return UtcDatetime.of(self._times[1])

    @property
    def expected_at(self) -> UtcDatetime | None:
        """The time by which the job is wanted; jobs with earlier times are taken first."""
        return UtcDatetime.of(self._times[2])

    @property
    def headers(self) -> dict[str, Any]:
        """The values stored with the data: run options, the context of a trace, and the headers given to ``put``.

        Values that no ``put`` could have written are left out.
        """
        if self._headers is None:
            self._headers, self._faults = read_headers(self.raw_headers)
        return self._headers

    @property
    def header_faults(self) -> str:
        """A description of the headers that were left out because they are invalid; empty if all headers were read."""
        _ = self.headers
        return self._faults

    @property
    def attempts(self) -> int:
        """How often the job was run, including the present run."""
        return max(self.token - self.not_counted_attempts, 0)  # the token starts again at 1 after 2,147,483,647

    @property
    def crashes(self) -> int:
        """How often a lease of the job ran out, because its worker died or lost its connection."""
        return self.token - 1 - self.failures - self.not_counted_attempts

    @property
    def settings(self) -> QueueOfJob:
        """The settings of the queue that the job was taken from, without the queue's methods."""
        return self._queue

    @property
    def is_decoded(self) -> bool:
        """Whether the data has been decoded."""
        return self._decoded

    @property
    def decoded_data(self) -> Any:
        """The decoded data; None if the data has not been decoded."""
        return self._data

    def as_row(self) -> JobRow:
        """Return the row of this job, from which another process can make the job again."""
        binary = isinstance(self.raw, bytes)
        return JobRow(
            self.id,
            None if binary else self.raw,
            self.raw if binary else None,
            self.serializer,
            self.token,
            *self._times,
            headers=self.raw_headers,
            counts=packed(self.failures, self.not_counted_attempts),
        )

    def decode(self) -> Any:
        """Return the data; the first call decodes it.

        Raises:
            DeserializationError: The queue cannot read the row's data.
        """
        # The data is decoded on demand: a job whose data cannot be decoded can still be taken, and then buried.
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
        """Forget the decoded data, to free memory in workers; `decode` decodes it again."""
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
    "; if the job was taken with get, its row is deleted, and only job.raw still has the data: "
    "job.bury(error) turns it into a dead letter, which queue.dead.retry(job.id) turns back into a job"
)


class Job(BaseJob):
    """A job taken from a `Queue`."""

    __slots__ = ()
    _may_be_deleted = True
    _queue: BlockingQueueOfJob

    @property
    def data(self) -> Any:
        """The data that was put. Setting this property writes the row.

        Raises:
            DeserializationError: The queue cannot read the row's data.
            JobNotFound: The property is set, but the row is gone.
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
        """Make a dead letter of the job; see `Queue.bury`."""
        self._queue.bury(self, error)

    def extend(self, duration: str | float | timedelta) -> None:
        """Set the end of the job's lease to ``duration`` from now; see `Queue.extend`."""
        self._queue.extend(self, duration)


class AsyncJob(BaseJob):
    """A job taken from an `AsyncQueue`."""

    __slots__ = ()
    _may_be_deleted = True
    _queue: QueueOfJob

    @property
    def _face(self) -> Any:
        """Return the queue, as the class whose methods are awaited."""
        return self._queue

    @property
    def data(self) -> Any:
        """The data that was put; ``await job.update(data)`` replaces it.

        Raises:
            DeserializationError: The queue cannot read the row's data.
        """
        return self.decode()

    async def update(self, data: Any) -> None:
        """Write new data to the job's row.

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
        """Make a dead letter of the job; see `AsyncQueue.bury`."""
        await self._face.bury(self, error)

    async def extend(self, duration: str | float | timedelta) -> None:
        """Set the end of the job's lease to ``duration`` from now; see `AsyncQueue.extend`."""
        await self._face.extend(self, duration)
