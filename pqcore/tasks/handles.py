"""What a call of a task returns: the job's id, which can be asked about the job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pqcore.job import JobId

if TYPE_CHECKING:
    from pqcore.tasks.async_queue import AsyncQueue
    from pqcore.tasks.queue import Queue


class Handle(JobId):
    """The id of a job, as pq returns it, that can be asked about the job.

    A handle that a put returned is of that job alone: it never tells of another job that got the same id later.
    """

    queue: Queue

    @classmethod
    def of(cls, queue: Queue, job_id: int, epoch: float | None = None) -> Handle:
        """The handle of a job.

        Args:
            queue: The queue that it was put into.
            job_id: The job's id.
            epoch: When it was put, as in `JobId`; without it, the handle is of whatever job has the id.
        """
        handle = cls(job_id)
        handle.queue = queue
        handle.epoch = epoch
        return handle

    def result(self, timeout: str | float | timedelta | None = None) -> Any:
        """What the function returned, waited for; see `pqcore.Queue.result`."""
        return self.queue.result(self, timeout)

    def status(self) -> str:
        """Where the job is; see `pqcore.Queue.status`."""
        return self.queue.status(self)

    def progress(self) -> Any:
        """What it reported last; see `pqcore.Queue.progress`."""
        return self.queue.progress(self)

    def cancel(self, *, running: bool = False) -> bool:
        """Delete it, or ask it to stop; see `pqcore.Queue.cancel`."""
        return self.queue.cancel(self, running=running)


class AsyncHandle(JobId):
    """The id of a job that can be asked about the job, awaited; see `Handle`."""

    queue: AsyncQueue

    @classmethod
    def of(cls, queue: AsyncQueue, job_id: int, epoch: float | None = None) -> AsyncHandle:
        """The handle of a job.

        Args:
            queue: The queue that it was put into.
            job_id: The job's id.
            epoch: When it was put, as in `JobId`; without it, the handle is of whatever job has the id.
        """
        handle = cls(job_id)
        handle.queue = queue
        handle.epoch = epoch
        return handle

    async def result(self, timeout: str | float | timedelta | None = None) -> Any:
        """What the function returned, waited for; see `pqcore.Queue.result`."""
        return await self.queue.result(self, timeout)

    async def status(self) -> str:
        """Where the job is; see `pqcore.Queue.status`."""
        return await self.queue.status(self)

    async def progress(self) -> Any:
        """What it reported last; see `pqcore.Queue.progress`."""
        return await self.queue.progress(self)

    async def cancel(self, *, running: bool = False) -> bool:
        """Delete it, or ask it to stop; see `pqcore.Queue.cancel`."""
        return await self.queue.cancel(self, running=running)


H = TypeVar("H", Handle, AsyncHandle)


@dataclass(frozen=True)
class Batch(Generic[H]):
    """Calls that were put together.

    Attributes:
        id: The batch's id, which its callback is told.
        jobs: The jobs, in the order of the calls.
    """

    id: int
    jobs: list[H]
