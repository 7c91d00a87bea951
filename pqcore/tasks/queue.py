"""Tasks of a blocking queue: declaring them, putting calls of them, and performing them; see `pqcore.Queue`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from pqcore import operations
from pqcore.db.runtime import run_sync
from pqcore.operations import batches
from pqcore.operations.put import put_call
from pqcore.tasks.call_groups import batch_puts, callback_put, chain_put, direct_puts
from pqcore.tasks.calling import BaseEnqueuer, call_of
from pqcore.tasks.conventions import BY_CONVENTION, FRONT_DOOR
from pqcore.tasks.declaring import Call, DeclarationOptions, task_options
from pqcore.tasks.handles import Batch, Handle
from pqcore.tasks.work import WorkingQueue
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from datetime import timedelta

    from typing_extensions import Unpack

    from pqcore.job import AsyncJob, Identity, Job
    from pqcore.operations.schedules import Schedule
    from pqcore.tasks.handles import QueueOfHandle
    from pqcore.tasks.periodic import Missed
    from pqcore.tasks.schedules import ScheduleOptions

P = ParamSpec("P")
R = TypeVar("R")


class Enqueuer(BaseEnqueuer[P, R]):
    """A declared function: calling it puts a job.

    Attributes:
        task: The task.
        queue: The queue that jobs are put into.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Put a job; options of this call begin with an underscore: ``_schedule_at="5m"``.

        ``_connection`` names a connection whose open transaction writes the job. Type checkers know the options only as
        arguments of `options`.

        Raises:
            InvalidCall: The function does not accept these arguments; nothing was put.
        """
        handle: Handle[R] = self.queue.put_call(self.call(*args, **kwargs))
        return handle


class Declare(Protocol):
    """The decorator that declares a function as a task of a `pqcore.Queue`."""

    @overload
    def __call__(self, function: Enqueuer[P, R], /) -> Enqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Job, P], Coroutine[Any, Any, R]], /) -> Enqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, R]], /) -> Enqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Job, P], R], /) -> Enqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[AsyncJob, P], R], /) -> Enqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Enqueuer[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Enqueuer[P, R]: ...


class DeclareAsPq(Protocol):
    """The decorator that declares a function as a task of a `pqcore.tasks.Queue`."""

    @overload
    def __call__(self, function: Enqueuer[..., R], /) -> Enqueuer[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., Coroutine[Any, Any, R]], /) -> Enqueuer[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Enqueuer[..., R]: ...


class TaskQueueMixin(WorkingQueue):
    """The part of `pqcore.Queue` that concerns tasks."""

    conventions = FRONT_DOOR

    @overload
    def task(self, function: Callable[Concatenate[Job, P], Coroutine[Any, Any, R]], /) -> Enqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, R]], /) -> Enqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[Job, P], R], /) -> Enqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[AsyncJob, P], R], /) -> Enqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Enqueuer[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Enqueuer[P, R]: ...
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
    ) -> Declare: ...
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
        """Declare a function as a task: a call of the task puts a job, and returns the job's id.

        The function may be a coroutine function. If its first parameter is annotated as a `Job` or `AsyncJob`, the
        function gets the job there. Otherwise it gets only the arguments of the call. A task of `pqcore.tasks.PQ` gets
        the job's id first, with any annotation. ``@queue.task`` is the same as ``@queue.task()``.

        Args:
            schedule_at: The earliest time at which a job may run; see `put`.
            expected_at: The time by which a job is wanted; see `put`.
            max_retries: The largest number of retries after exceptions; 3 by default, and 0 on `pqcore.tasks.PQ`.
            retry_in: A fixed pause before each retry: seconds, ``'5m'``, a timedelta, or None for no pause. By default,
                the pauses grow as in `Exponential`; on `pqcore.tasks.PQ`, the pause is 30 seconds.
            name: The task's name in rows, in place of ``module.qualname``, so that the function may move to another
                module.
            aliases: Other names under which jobs of the task were put before.
            **options: The other options; see `TaskOptions`.

        Raises:
            ConfigurationError, InvalidTimeSpec: An option is unknown, or has an invalid value; the function
                cannot be a task; or another function has the name.
        """
        if callable(schedule_at):  # @queue.task without parentheses
            return self.task(None, expected_at, max_retries, retry_in, name=name, aliases=aliases, **options)(
                schedule_at
            )
        chosen = task_options(self.conventions, schedule_at, expected_at, max_retries, retry_in, **options)
        return lambda function: Enqueuer(self, self.declare(function, chosen, name, aliases))

    def periodic(
        self,
        cron: str,
        tz: str = "UTC",
        missed: Missed = "latest",
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Declare:
        """Make workers put a task at each tick of a cron expression, once for each tick, however many workers run.

        Args:
            cron: Five fields, six fields with seconds first, or a name such as ``@daily``.
            tz: The time zone of the expression.
            missed: Which ticks are put later, if they were missed because no worker ran; see `Periodic`.
            name: The name under which ticks are stored; the function's path by default.
            args: The positional arguments of the function, without the job or its id.
            kwargs: The keyword arguments of the function.

        Raises:
            ConfigurationError: The expression or time zone cannot be read, or the name is taken.
        """
        from pqcore.tasks.periodic import make_periodic, refuse_bare  # few programs need this module

        refuse_bare(cron)

        def decorate(function: Any) -> Any:
            task = function if isinstance(function, Enqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    def schedule(
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
        """Make a schedule, or replace the schedule of this name: workers put the task at each tick of an expression.

        The schedule is a row. Workers of the queue use it within 10 seconds after its commit, or immediately where they
        receive notifications. Ticks count from this call if the schedule is new or its expression has changed. A paused
        schedule stays paused.

        Args:
            name: The name of the schedule, which is unique in the queue.
            task: A declared task, ``task.options(...)``, a call as ``task.call(...)`` returns it, or the path of a
                task. This program need not know the task of a path.
            cron: Five fields, six fields with seconds first, or a name such as ``@daily``.
            args: The positional arguments of the function, without the job or its id.
            kwargs: The keyword arguments of the function.
            tz: The time zone of the expression.
            missed: Which ticks are put later, if they were missed because no worker ran; see `Periodic`.
            connection: A connection whose open transaction writes the schedule; see `put`.
            **options: Options with which jobs are put, such as ``priority=5``; see `TaskOptions`. Each job has the
                options that the task's declaration had at the time of this call.

        Raises:
            ConfigurationError: The expression, the time zone or an option is invalid; or a periodic task that is
                declared in code has the name. Nothing was written.
            InvalidCall: The task does not accept the arguments; nothing was written.
            InvalidName: A schedule cannot have this name.
        """
        from pqcore.tasks.schedules import new_schedule  # few programs need this module

        new = new_schedule(self, name, task, cron, args, kwargs, tz, missed, options)
        return run_sync(operations.schedules.set_schedule(self.engine, self, new, connection))

    def unschedule(self, name: str, *, connection: Any = None) -> bool:
        """Remove a schedule, but keep the jobs that it has already put.

        Args:
            name: The name of the schedule.
            connection: A connection whose open transaction removes the schedule; see `put`.

        Returns:
            Whether there was such a schedule, or a stored tick of a periodic task that no code declares any more.

        Raises:
            ConfigurationError: The name is that of a periodic task that this program declares.
        """
        from pqcore.tasks.schedules import refuse_declared  # few programs need this module

        refuse_declared(self, name)
        return run_sync(operations.schedules.remove_schedule(self.engine, self, name, connection))

    def schedules(self) -> list[Schedule]:
        """List the queue's schedules by name, at most 10,000; periodic tasks that are declared in code have no row."""
        return run_sync(operations.schedules.list_schedules(self.engine, self))

    def pause_schedule(self, name: str, *, connection: Any = None) -> None:
        """Pause a schedule: workers put no job for its ticks until `resume_schedule`.

        Args:
            name: The name of the schedule.
            connection: A connection whose open transaction pauses the schedule; see `put`.

        Raises:
            ScheduleNotFound: The queue has no schedule of this name.
        """
        run_sync(operations.schedules.pause_schedule(self.engine, self, name, connection))

    def resume_schedule(self, name: str, *, connection: Any = None) -> None:
        """Resume a schedule; its ticks count from now, so that no tick of the pause is put later.

        Args:
            name: The name of the schedule.
            connection: A connection whose open transaction resumes the schedule; see `put`.

        Raises:
            ScheduleNotFound: The queue has no schedule of this name.
        """
        run_sync(operations.schedules.resume_schedule(self.engine, self, name, connection))

    def trigger(self, name: str, *, connection: Any = None) -> Handle[Any]:
        """Put the job of a schedule now, even if the schedule is paused; the times of its ticks do not change.

        Args:
            name: The name of the schedule.
            connection: A connection whose open transaction puts the job; see `put`.

        Returns:
            The id of the job.

        Raises:
            ScheduleNotFound: The queue has no schedule of this name.
        """
        return self._handle(run_sync(operations.schedules.trigger(self.engine, self, name, connection)))

    def _handle(self, identity: Identity) -> Handle[Any]:
        return Handle.of(cast("QueueOfHandle", self), *identity)

    def put_call(self, call: Call) -> Handle[Any]:
        """Put a call; return the id of its job."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return self._handle(run_sync(put))

    def put_calls(self, *calls: Call, connection: Any = None) -> list[Handle[Any]]:
        """Put calls, all or none; return the ids in order.

        Each call keeps its options. If another job has the dedup key of a call, the id of the other job is returned.

        Args:
            *calls: The calls.
            connection: A connection whose open transaction writes the jobs; see `put`.

        Raises:
            ConfigurationError: A call has its own connection.
            DuplicateJob: Another job, or an earlier call, has the dedup key of a call, and ``on_conflict`` is
                ``"error"``; nothing was put.
            JobNotFound: The table has no job with an id in the ``after`` of a call; nothing was put.
        """
        ids = run_sync(batches.put_all(self.engine, direct_puts(self.engine, calls), connection))
        return [self._handle(identity) for identity in ids]

    def chain(self, *calls: Call, connection: Any = None) -> Handle[Any]:
        """Put calls that run one after the other: each starts after the previous one is done.

        Each call finds the previous result in ``current().previous``. If a call fails for good, the calls after it
        stay with its dead letter.

        Args:
            *calls: The calls. Only the first one may have ``after``.
            connection: A connection whose open transaction writes the job; see `put`.

        Returns:
            The id of the first job.

        Raises:
            ConfigurationError: There is no call, or a call has an option that calls of chains cannot have.
            InvalidCall: A value is not a call.
            JobNotFound: The table has no job with an id in ``after``; nothing was put.
        """
        first = chain_put(self.engine, calls)
        return self._handle(run_sync(batches.put_all(self.engine, [first], connection, "chain"))[0])

    def batch(
        self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None
    ) -> Batch[Handle[Any]]:
        """Put calls, and a callback that runs after all of them have ended, even if some have failed.

        Args:
            *calls: The calls; a tuple of calls is a chain. Each call, but only the first one of a chain, may have
                ``after``. A job that ends because its parent failed counts as failed.
            then: The call to put at the end. In ``current().previous`` it finds the ``batch``, the number of its jobs
                (``total``), and how many of them failed (``failed``). It cannot have ``after``.
            connection: A connection whose open transaction writes the jobs; see `put`.

        Raises:
            ConfigurationError: There is no call, or a call has an option that calls of batches cannot have.
            InvalidCall: A value is not a call.
            JobNotFound: The table has no job with an id in ``after``; nothing was put.
        """
        callback, puts = callback_put(then), batch_puts(self.engine, calls)
        number, ids = run_sync(batches.put_batch(self.engine, self, puts, callback, connection))
        return Batch(number, [self._handle(identity) for identity in ids])
