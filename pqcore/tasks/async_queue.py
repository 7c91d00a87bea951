"""Tasks of an asynchronous queue; `pqcore.tasks.queue` documents the meaning of each name."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from pqcore import operations
from pqcore.operations import batches
from pqcore.operations.put import put_call
from pqcore.settings import QueueSettings
from pqcore.tasks.call_groups import batch_puts, callback_put, chain_put, direct_puts
from pqcore.tasks.calling import BaseEnqueuer, call_of
from pqcore.tasks.conventions import BY_CONVENTION, FRONT_DOOR
from pqcore.tasks.declaring import Call, DeclarationOptions, task_options
from pqcore.tasks.handles import AsyncHandle, Batch
from pqcore.tasks.registry import TaskDeclarations
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from datetime import timedelta

    from typing_extensions import Unpack

    from pqcore.db.engine import Engine
    from pqcore.job import AsyncJob, Identity, Job
    from pqcore.operations.schedules import Schedule
    from pqcore.tasks.handles import AsyncQueueOfHandle
    from pqcore.tasks.periodic import Missed
    from pqcore.tasks.schedules import ScheduleOptions

P = ParamSpec("P")
R = TypeVar("R")


class AsyncEnqueuer(BaseEnqueuer[P, R]):
    """A declared function: calling and awaiting it puts a job.

    Attributes:
        task: The task.
        queue: The queue that jobs are put into.
    """

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]:
        """Put a job; see `pqcore.tasks.Enqueuer`."""
        handle: AsyncHandle[R] = await self.queue.put_call(self.call(*args, **kwargs))
        return handle


class DeclareAsync(Protocol):
    """The decorator that declares a function as a task of a `pqcore.AsyncQueue`."""

    @overload
    def __call__(self, function: AsyncEnqueuer[P, R], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Job, P], Coroutine[Any, Any, R]], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, R]], /
    ) -> AsyncEnqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Job, P], R], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[AsyncJob, P], R], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> AsyncEnqueuer[P, R]: ...


class DeclareAsyncAsPq(Protocol):
    """The decorator that declares a function as a task of a `pqcore.tasks.AsyncQueue`."""

    @overload
    def __call__(self, function: AsyncEnqueuer[..., R], /) -> AsyncEnqueuer[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., Coroutine[Any, Any, R]], /) -> AsyncEnqueuer[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> AsyncEnqueuer[..., R]: ...


class AsyncTaskQueueMixin(TaskDeclarations, QueueSettings):
    """The part of `pqcore.AsyncQueue` that concerns tasks.

    Attributes:
        engine: The engine that runs operations on the table.
    """

    conventions = FRONT_DOOR
    engine: Engine

    @overload
    def task(self, function: Callable[Concatenate[Job, P], Coroutine[Any, Any, R]], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, R]], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[Job, P], R], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[AsyncJob, P], R], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> AsyncEnqueuer[P, R]: ...
    @overload
    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = BY_CONVENTION,
        retry_in: str | float | timedelta | None = BY_CONVENTION,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Unpack[DeclarationOptions],
    ) -> DeclareAsync: ...
    def task(
        self,
        schedule_at: Any = None,
        expected_at: TimeSpec = None,
        max_retries: int = BY_CONVENTION,
        retry_in: Any = BY_CONVENTION,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Declare a function as a task; see `pqcore.tasks.Queue.task`."""
        if callable(schedule_at):  # @queue.task without parentheses
            return self.task(None, expected_at, max_retries, retry_in, name=name, aliases=aliases, **options)(
                schedule_at
            )
        chosen = task_options(self.conventions, schedule_at, expected_at, max_retries, retry_in, **options)
        return lambda function: AsyncEnqueuer(self, self.declare(function, chosen, name, aliases))

    def periodic(
        self,
        cron: str,
        tz: str = "UTC",
        missed: Missed = "latest",
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> DeclareAsync:
        """Make workers put a task at each tick of a cron expression; see `pqcore.tasks.Queue.periodic`."""
        from pqcore.tasks.periodic import make_periodic, refuse_bare  # few programs need this module

        refuse_bare(cron)

        def decorate(function: Any) -> Any:
            task = function if isinstance(function, AsyncEnqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    async def schedule(
        self,
        name: str,
        task: Any,
        cron: str,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        tz: str = "UTC",
        missed: Missed = "latest",
        connection: Any = None,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Make a schedule, or replace the schedule of this name; see `pqcore.tasks.Queue.schedule`."""
        from pqcore.tasks.schedules import new_schedule  # few programs need this module

        new = new_schedule(self, name, task, cron, args, kwargs, tz, missed, options)
        return await operations.schedules.set_schedule(self.engine, self, new, connection)

    async def unschedule(self, name: str, *, connection: Any = None) -> bool:
        """Remove a schedule; see `pqcore.tasks.Queue.unschedule`."""
        from pqcore.tasks.schedules import refuse_declared  # few programs need this module

        refuse_declared(self, name)
        return await operations.schedules.remove_schedule(self.engine, self, name, connection)

    async def schedules(self) -> list[Schedule]:
        """List the queue's schedules by name; see `pqcore.tasks.Queue.schedules`."""
        return await operations.schedules.list_schedules(self.engine, self)

    async def pause_schedule(self, name: str, *, connection: Any = None) -> None:
        """Pause a schedule; see `pqcore.tasks.Queue.pause_schedule`."""
        await operations.schedules.pause_schedule(self.engine, self, name, connection)

    async def resume_schedule(self, name: str, *, connection: Any = None) -> None:
        """Resume a schedule; see `pqcore.tasks.Queue.resume_schedule`."""
        await operations.schedules.resume_schedule(self.engine, self, name, connection)

    async def trigger(self, name: str, *, connection: Any = None) -> AsyncHandle[Any]:
        """Put the job of a schedule now; see `pqcore.tasks.Queue.trigger`."""
        return self._handle(await operations.schedules.trigger(self.engine, self, name, connection))

    def _handle(self, identity: Identity) -> AsyncHandle[Any]:
        return AsyncHandle.of(cast("AsyncQueueOfHandle", self), *identity)

    async def put_call(self, call: Call) -> AsyncHandle[Any]:
        """Put a call; return the id of its job."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return self._handle(await put)

    async def put_calls(self, *calls: Call, connection: Any = None) -> list[AsyncHandle[Any]]:
        """Put calls, all or none; see `pqcore.tasks.Queue.put_calls`."""
        ids = await batches.put_all(self.engine, direct_puts(self.engine, calls), connection)
        return [self._handle(identity) for identity in ids]

    async def chain(self, *calls: Call, connection: Any = None) -> AsyncHandle[Any]:
        """Put calls that run one after the other; see `pqcore.tasks.Queue.chain`."""
        first = chain_put(self.engine, calls)
        return self._handle((await batches.put_all(self.engine, [first], connection, "chain"))[0])

    async def batch(
        self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None
    ) -> Batch[AsyncHandle[Any]]:
        """Put calls, and a callback that runs after all of them have ended; see `pqcore.tasks.Queue.batch`."""
        callback, puts = callback_put(then), batch_puts(self.engine, calls)
        number, ids = await batches.put_batch(self.engine, self, puts, callback, connection)
        return Batch(number, [self._handle(identity) for identity in ids])
