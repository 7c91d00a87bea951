"""The result of calling a task: the job's id, with methods that ask about the job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from pqcore.job import JobId


class QueueOfHandle(Protocol):
    """The methods of `pqcore.Queue` that the handle of a job calls."""

    def result(self, job_id: int, timeout: str | float | timedelta | None = None) -> Any: ...

    def status(self, job_id: int) -> str: ...

    def progress(self, job_id: int) -> Any: ...

    def cancel(self, job_id: int, *, running: bool = False) -> bool: ...


class AsyncQueueOfHandle(Protocol):
    """The methods of `pqcore.AsyncQueue` that the handle of a job calls."""

    async def result(self, job_id: int, timeout: str | float | timedelta | None = None) -> Any: ...

    async def status(self, job_id: int) -> str: ...

    async def progress(self, job_id: int) -> Any: ...

    async def cancel(self, job_id: int, *, running: bool = False) -> bool: ...


R = TypeVar("R")


class Handle(JobId, Generic[R]):
    """The id of a job, as pq returns it, with methods that ask about the job.

    A handle that a put returned belongs to that job alone: it never reports on another job that got the same id later.
    For type checkers it is a ``Handle[R]``, where ``R`` is the type of the function's result.
    """

    queue: QueueOfHandle

    @classmethod
    def of(cls, queue: QueueOfHandle, job_id: int, epoch: float | None = None) -> Handle[R]:
        """Return the handle of a job.

        Args:
            queue: The queue that the job was put into.
            job_id: The job's id.
            epoch: When the job was put, as in `JobId`; without it, the handle refers to any job with the id.
        """
        handle: Handle[R] = cls(job_id)
        handle.queue = queue
        handle.epoch = epoch
        return handle

    def result(self, timeout: str | float | timedelta | None = None) -> R:
        """Wait for the result of the function, and return it; see `pqcore.Queue.result`."""
        result: R = self.queue.result(self, timeout)
        return result

    def status(self) -> str:
        """Return the job's state; see `pqcore.Queue.status`."""
        return self.queue.status(self)

    def progress(self) -> Any:
        """Return the last progress that the job reported; see `pqcore.Queue.progress`."""
        return self.queue.progress(self)

    def cancel(self, *, running: bool = False) -> bool:
        """Delete the job, or ask it to stop; see `pqcore.Queue.cancel`."""
        return self.queue.cancel(self, running=running)


class AsyncHandle(JobId, Generic[R]):
    """The id of a job, with methods that ask about the job and are awaited; see `Handle`."""

    queue: AsyncQueueOfHandle

    @classmethod
    def of(cls, queue: AsyncQueueOfHandle, job_id: int, epoch: float | None = None) -> AsyncHandle[R]:
        """Return the handle of a job.

        Args:
            queue: The queue that the job was put into.
            job_id: The job's id.
            epoch: When the job was put, as in `JobId`; without it, the handle refers to any job with the id.
        """
        handle: AsyncHandle[R] = cls(job_id)
        handle.queue = queue
        handle.epoch = epoch
        return handle

    async def result(self, timeout: str | float | timedelta | None = None) -> R:
        """Wait for the result of the function, and return it; see `pqcore.Queue.result`."""
        result: R = await self.queue.result(self, timeout)
        return result

    async def status(self) -> str:
        """Return the job's state; see `pqcore.Queue.status`."""
        return await self.queue.status(self)

    async def progress(self) -> Any:
        """Return the last progress that the job reported; see `pqcore.Queue.progress`."""
        return await self.queue.progress(self)

    async def cancel(self, *, running: bool = False) -> bool:
        """Delete the job, or ask it to stop; see `pqcore.Queue.cancel`."""
        return await self.queue.cancel(self, running=running)


H = TypeVar("H", "Handle[Any]", "AsyncHandle[Any]")


@dataclass(frozen=True)
class Batch(Generic[H]):
    """Calls that were put together.

    Attributes:
        id: The id of the batch, which its callback receives.
        jobs: The jobs, in the order of the calls.
    """

    id: int
    jobs: list[H]
