"""What a call of a task returns: the job's id, which can be asked about the job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from pqcore.job import JobId


class QueueOfHandle(Protocol):
    """What a handle asks of the `pqcore.Queue` that its job was put into."""

    def result(self, job_id: int, timeout: str | float | timedelta | None = None) -> Any: ...

    def status(self, job_id: int) -> str: ...

    def progress(self, job_id: int) -> Any: ...

    def cancel(self, job_id: int, *, running: bool = False) -> bool: ...


class AsyncQueueOfHandle(Protocol):
    """What a handle asks of the `pqcore.AsyncQueue` that its job was put into."""

    async def result(self, job_id: int, timeout: str | float | timedelta | None = None) -> Any: ...

    async def status(self, job_id: int) -> str: ...

    async def progress(self, job_id: int) -> Any: ...

    async def cancel(self, job_id: int, *, running: bool = False) -> bool: ...


R = TypeVar("R")


class Handle(JobId, Generic[R]):
    """The id of a job, as pq returns it, that can be asked about the job.

    A handle that a put returned is of that job alone: it never tells of another job that got the same id later.
    For type checkers it is a ``Handle[R]``, with the type of what the function returns.
    """

    queue: QueueOfHandle

    @classmethod
    def of(cls, queue: QueueOfHandle, job_id: int, epoch: float | None = None) -> Handle[R]:
        """The handle of a job.

        Args:
            queue: The queue that it was put into.
            job_id: The job's id.
            epoch: When it was put, as in `JobId`; without it, the handle is of whatever job has the id.
        """
        handle: Handle[R] = cls(job_id)
        handle.queue = queue
        handle.epoch = epoch
        return handle

    def result(self, timeout: str | float | timedelta | None = None) -> R:
        """What the function returned, waited for; see `pqcore.Queue.result`."""
        result: R = self.queue.result(self, timeout)
        return result

    def status(self) -> str:
        """Where the job is; see `pqcore.Queue.status`."""
        return self.queue.status(self)

    def progress(self) -> Any:
        """What it reported last; see `pqcore.Queue.progress`."""
        return self.queue.progress(self)

    def cancel(self, *, running: bool = False) -> bool:
        """Delete it, or ask it to stop; see `pqcore.Queue.cancel`."""
        return self.queue.cancel(self, running=running)


class AsyncHandle(JobId, Generic[R]):
    """The id of a job that can be asked about the job, awaited; see `Handle`."""

    queue: AsyncQueueOfHandle

    @classmethod
    def of(cls, queue: AsyncQueueOfHandle, job_id: int, epoch: float | None = None) -> AsyncHandle[R]:
        """The handle of a job.

        Args:
            queue: The queue that it was put into.
            job_id: The job's id.
            epoch: When it was put, as in `JobId`; without it, the handle is of whatever job has the id.
        """
        handle: AsyncHandle[R] = cls(job_id)
        handle.queue = queue
        handle.epoch = epoch
        return handle

    async def result(self, timeout: str | float | timedelta | None = None) -> R:
        """What the function returned, waited for; see `pqcore.Queue.result`."""
        result: R = await self.queue.result(self, timeout)
        return result

    async def status(self) -> str:
        """Where the job is; see `pqcore.Queue.status`."""
        return await self.queue.status(self)

    async def progress(self) -> Any:
        """What it reported last; see `pqcore.Queue.progress`."""
        return await self.queue.progress(self)

    async def cancel(self, *, running: bool = False) -> bool:
        """Delete it, or ask it to stop; see `pqcore.Queue.cancel`."""
        return await self.queue.cancel(self, running=running)


H = TypeVar("H", "Handle[Any]", "AsyncHandle[Any]")


@dataclass(frozen=True)
class Batch(Generic[H]):
    """Calls that were put together.

    Attributes:
        id: The batch's id, which its callback is told.
        jobs: The jobs, in the order of the calls.
    """

    id: int
    jobs: list[H]
