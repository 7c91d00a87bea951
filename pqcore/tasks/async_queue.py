"""The asynchronous face of tasks: `AsyncPQ` and `AsyncQueue`; `pqcore.tasks.queue` says what each name means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, overload

from pqcore import async_queue as core
from pqcore.operations import batches
from pqcore.operations import put as putting
from pqcore.serializers import Serializer
from pqcore.tasks.declaring import Call, Task, TaskOptions, call_of, stored_calls
from pqcore.tasks.handles import AsyncHandle, Batch
from pqcore.tasks.periodic import Missed, make_periodic, refuse_bare
from pqcore.tasks.registry import TaskDeclarations
from pqcore.times import TimeSpec


class AsyncEnqueuer:
    """What a declared function becomes: calling and awaiting it puts a job.

    Attributes:
        task: The task.
        queue: The queue that it is put into.
    """

    def __init__(self, queue: AsyncQueue, task: Task) -> None:
        functools.update_wrapper(self, task.function)
        self.task = task
        self.queue = queue
        self._path = task.path

    async def __call__(self, *args: Any, **kwargs: Any) -> AsyncHandle:
        """Put a job; see `pqcore.tasks.Enqueuer`."""
        return await self.queue.put_call(call_of(self.queue, self.task, args, kwargs))

    def call(self, *args: Any, **kwargs: Any) -> Call:
        """The call, not put yet: for `AsyncQueue.chain`, `AsyncQueue.batch` and `AsyncQueue.put_calls`."""
        return call_of(self.queue, self.task, args, kwargs)


class AsyncQueue(TaskDeclarations, core.AsyncQueue):
    """A queue of function calls, awaited; see `pqcore.AsyncQueue` and `TaskDeclarations`."""

    @overload
    def task(self, function: Callable[..., Any], /) -> AsyncEnqueuer: ...
    @overload
    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: Any = "30s",
        **options: Any,
    ) -> Callable[[Callable[..., Any]], AsyncEnqueuer]: ...
    def task(
        self,
        schedule_at: Any = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: Any = "30s",
        **options: Any,
    ) -> Any:
        """Declare a function as a task; see `pqcore.tasks.Queue.task`."""
        if callable(schedule_at):  # @queue.task, without parentheses
            return self.task(None, expected_at, max_retries, retry_in, **options)(schedule_at)
        chosen = TaskOptions(schedule_at, expected_at, max_retries, retry_in, **options)
        return lambda function: AsyncEnqueuer(self, self.declare(function, chosen))

    def periodic(
        self,
        cron: str,
        tz: str = "UTC",
        missed: Missed = "latest",
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Callable[[Any], AsyncEnqueuer]:
        """Have workers put a task at each tick of a cron expression; see `pqcore.tasks.Queue.periodic`."""
        refuse_bare(cron)

        def decorate(function: Any) -> AsyncEnqueuer:
            task: AsyncEnqueuer = function if isinstance(function, AsyncEnqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    async def put_call(self, call: Call) -> AsyncHandle:
        """Put a call; its job's id."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = putting.put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return AsyncHandle.of(self, *(await put))

    async def put_calls(self, *calls: Call, connection: Any = None) -> list[AsyncHandle]:
        """Put calls together, all or none; the ids in order."""
        ids = await batches.put_all(self.engine, [call.stored() for call in calls], connection)
        return [AsyncHandle.of(self, *identity) for identity in ids]

    async def chain(self, *calls: Call, connection: Any = None) -> AsyncHandle:
        """Put calls to be made one after the other; see `pqcore.tasks.Queue.chain`."""
        first = batches.chain_calls([call.stored() for call in calls])
        return AsyncHandle.of(self, *(await batches.put_all(self.engine, [first], connection))[0])

    async def batch(
        self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None
    ) -> Batch[AsyncHandle]:
        """Put calls together, and another when all of them have ended; see `pqcore.tasks.Queue.batch`."""
        after = None if then is None else then.stored()
        number, ids = await batches.put_batch(self.engine, self, stored_calls(calls), after, connection)
        return Batch(number, [AsyncHandle.of(self, *identity) for identity in ids])


class AsyncPQ(core.AsyncPQ):
    """The queues of one table, as queues of function calls, awaited; see `pqcore.AsyncPQ`."""

    queue_class: type[core.AsyncQueue] = AsyncQueue

    def queue(self, name: str, *, serializer: Serializer | str | None = None, **options: Any) -> AsyncQueue:
        """A queue with options of its own; see `pqcore.PQ.queue`."""
        queue = super().queue(name, serializer=serializer, **options)
        assert isinstance(queue, AsyncQueue)  # noqa: S101 - for the type checker
        return queue

    def __getitem__(self, name: str) -> AsyncQueue:
        queue = super().__getitem__(name)
        assert isinstance(queue, AsyncQueue)  # noqa: S101 - for the type checker
        return queue
