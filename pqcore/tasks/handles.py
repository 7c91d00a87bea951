"""What a call of a task returns: the job's id, which can be asked about the job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pqcore.tasks.aio import AsyncQueue
    from pqcore.tasks.blocking import Queue


class Handle(int):
    """The id of a job, as pq returns it, that can be asked about the job."""

    queue: Queue

    @classmethod
    def of(cls, queue: Queue, job_id: int) -> Handle:
        """The handle of a job."""
        handle = cls(job_id)
        handle.queue = queue
        return handle

    def result(self, timeout: str | float | timedelta | None = None) -> Any:
        """What the function returned, waited for; see `pqcore.Queue.result`."""
        return self.queue.result(int(self), timeout)

    def status(self) -> str:
        """Where the job is; see `pqcore.Queue.status`."""
        return self.queue.status(int(self))

    def progress(self) -> Any:
        """What it reported last; see `pqcore.Queue.progress`."""
        return self.queue.progress(int(self))

    def cancel(self, *, running: bool = False) -> bool:
        """Delete it, or ask it to stop; see `pqcore.Queue.cancel`."""
        return self.queue.cancel(int(self), running=running)


class AsyncHandle(int):
    """The id of a job that can be asked about the job, awaited."""

    queue: AsyncQueue

    @classmethod
    def of(cls, queue: AsyncQueue, job_id: int) -> AsyncHandle:
        """The handle of a job."""
        handle = cls(job_id)
        handle.queue = queue
        return handle

    async def result(self, timeout: str | float | timedelta | None = None) -> Any:
        """What the function returned, waited for; see `pqcore.Queue.result`."""
        return await self.queue.result(int(self), timeout)

    async def status(self) -> str:
        """Where the job is; see `pqcore.Queue.status`."""
        return await self.queue.status(int(self))

    async def progress(self) -> Any:
        """What it reported last; see `pqcore.Queue.progress`."""
        return await self.queue.progress(int(self))

    async def cancel(self, *, running: bool = False) -> bool:
        """Delete it, or ask it to stop; see `pqcore.Queue.cancel`."""
        return await self.queue.cancel(int(self), running=running)


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
