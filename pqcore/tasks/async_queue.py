"""What an asynchronous queue does with tasks; `pqcore.tasks.queue` says what each name means."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast, overload

from pqcore.operations import batches
from pqcore.operations.put import put_call
from pqcore.settings import QueueSettings
from pqcore.tasks.conventions import BY_CONVENTION, FRONT_DOOR
from pqcore.tasks.declaring import Call, Task, call_of, stored_calls, task_options
from pqcore.tasks.handles import AsyncHandle, Batch
from pqcore.tasks.registry import TaskDeclarations
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from pqcore.db.engine import Engine
    from pqcore.job import Identity
    from pqcore.tasks.handles import AsyncQueueOfHandle
    from pqcore.tasks.periodic import Missed


class AsyncEnqueuer:
    """What a declared function becomes: calling and awaiting it puts a job.

    Attributes:
        task: The task.
        queue: The queue that it is put into.
    """

    def __init__(self, queue: AsyncTaskQueueMixin, task: Task) -> None:
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


class AsyncTaskQueueMixin(TaskDeclarations, QueueSettings):
    """The part of `pqcore.AsyncQueue` that has to do with tasks.

    Attributes:
        engine: Runs operations on the table.
    """

    conventions = FRONT_DOOR
    engine: Engine

    @overload
    def task(self, function: Callable[..., Any], /) -> AsyncEnqueuer: ...
    @overload
    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = BY_CONVENTION,
        retry_in: Any = BY_CONVENTION,
        **options: Any,
    ) -> Callable[[Callable[..., Any]], AsyncEnqueuer]: ...
    def task(
        self,
        schedule_at: Any = None,
        expected_at: TimeSpec = None,
        max_retries: int = BY_CONVENTION,
        retry_in: Any = BY_CONVENTION,
        **options: Any,
    ) -> Any:
        """Declare a function as a task; see `pqcore.tasks.Queue.task`."""
        if callable(schedule_at):  # @queue.task, without parentheses
            return self.task(None, expected_at, max_retries, retry_in, **options)(schedule_at)
        chosen = task_options(self.conventions, schedule_at, expected_at, max_retries, retry_in, **options)
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
        from pqcore.tasks.periodic import make_periodic, refuse_bare  # which few programs need

        refuse_bare(cron)

        def decorate(function: Any) -> AsyncEnqueuer:
            task: AsyncEnqueuer = function if isinstance(function, AsyncEnqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    def _handle(self, identity: Identity) -> AsyncHandle:
        return AsyncHandle.of(cast("AsyncQueueOfHandle", self), *identity)

    async def put_call(self, call: Call) -> AsyncHandle:
        """Put a call; its job's id."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return self._handle(await put)

    async def put_calls(self, *calls: Call, connection: Any = None) -> list[AsyncHandle]:
        """Put calls together, all or none; the ids in order."""
        ids = await batches.put_all(self.engine, [call.stored() for call in calls], connection)
        return [self._handle(identity) for identity in ids]

    async def chain(self, *calls: Call, connection: Any = None) -> AsyncHandle:
        """Put calls to be made one after the other; see `pqcore.tasks.Queue.chain`."""
        first = batches.chain_calls([call.stored() for call in calls])
        return self._handle((await batches.put_all(self.engine, [first], connection))[0])

    async def batch(
        self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None
    ) -> Batch[AsyncHandle]:
        """Put calls together, and another when all of them have ended; see `pqcore.tasks.Queue.batch`."""
        after = None if then is None else then.stored()
        number, ids = await batches.put_batch(self.engine, self, stored_calls(calls), after, connection)
        return Batch(number, [self._handle(identity) for identity in ids])
