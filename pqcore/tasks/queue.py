"""What a blocking queue does with tasks: declares them, puts calls of them, and performs them; see `pqcore.Queue`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast, overload

from pqcore.db.runtime import run_sync
from pqcore.operations import batches
from pqcore.operations.put import put_call
from pqcore.tasks.conventions import BY_CONVENTION, FRONT_DOOR
from pqcore.tasks.declaring import Call, Task, call_of, stored_calls, task_options
from pqcore.tasks.handles import Batch, Handle
from pqcore.tasks.work import WorkingQueue
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from pqcore.job import Identity
    from pqcore.tasks.handles import QueueOfHandle
    from pqcore.tasks.periodic import Missed


class Enqueuer:
    """What a declared function becomes: calling it puts a job.

    Attributes:
        task: The task.
        queue: The queue that it is put into.
    """

    def __init__(self, queue: TaskQueueMixin, task: Task) -> None:
        functools.update_wrapper(self, task.function)
        self.task = task
        self.queue = queue
        self._path = task.path

    def __call__(self, *args: Any, **kwargs: Any) -> Handle:
        """Put a job; options of this call begin with an underscore: ``_schedule_at="5m"``.

        ``_connection`` puts it in the transaction of that connection.
        """
        return self.queue.put_call(call_of(self.queue, self.task, args, kwargs))

    def call(self, *args: Any, **kwargs: Any) -> Call:
        """The call, not put yet: for `Queue.chain`, `Queue.batch` and `Queue.put_calls`."""
        return call_of(self.queue, self.task, args, kwargs)


class TaskQueueMixin(WorkingQueue):
    """The part of `pqcore.Queue` that has to do with tasks."""

    conventions = FRONT_DOOR

    @overload
    def task(self, function: Callable[..., Any], /) -> Enqueuer: ...
    @overload
    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = BY_CONVENTION,
        retry_in: Any = BY_CONVENTION,
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Enqueuer]: ...
    def task(
        self,
        schedule_at: Any = None,
        expected_at: TimeSpec = None,
        max_retries: int = BY_CONVENTION,
        retry_in: Any = BY_CONVENTION,
        **options: Any,
    ) -> Any:
        """Declare a function as a task: calling it then puts a job, and returns its id.

        The function may be a coroutine function. If its first parameter is annotated as a `Job` or `AsyncJob`, it gets
        the job there, and otherwise the arguments of the call alone. A task of `pqcore.tasks.PQ` gets the job's id
        first, whatever the annotation. ``@queue.task`` is the same as ``@queue.task()``.

        Args:
            schedule_at: As for `put`.
            expected_at: As for `put`.
            max_retries: How often it is tried again after an exception: 3 times unless told otherwise, and never on
                `pqcore.tasks.PQ`.
            retry_in: The time until then: seconds, ``'5m'``, a timedelta, or None for no pause. Unless told otherwise,
                the pauses grow, as `Exponential` has them; on `pqcore.tasks.PQ` the time is 30 seconds.
            **options: As in `TaskOptions`.

        Raises:
            ConfigurationError, InvalidTimeSpec: An option is none, or has a value that it cannot have; or the function
                cannot be a task.
        """
        if callable(schedule_at):  # @queue.task, without parentheses
            return self.task(None, expected_at, max_retries, retry_in, **options)(schedule_at)
        chosen = task_options(self.conventions, schedule_at, expected_at, max_retries, retry_in, **options)
        return lambda function: Enqueuer(self, self.declare(function, chosen))

    def periodic(
        self,
        cron: str,
        tz: str = "UTC",
        missed: Missed = "latest",
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Callable[[Any], Enqueuer]:
        """Have workers put a task at each tick of a cron expression, once however many they are.

        Args:
            cron: Five fields, six with seconds first, or ``@daily`` and the like.
            tz: The time zone that it is meant in.
            missed: What becomes of ticks that passed while there was no worker; see `Periodic`.
            name: What its ticks are remembered under; the function's path if not given.
            args: The arguments that the function is called with, after the job or its id, if it gets one.
            kwargs: The keyword arguments that the function is called with.

        Raises:
            ConfigurationError: The expression or time zone cannot be read, or the name is taken.
        """
        from pqcore.tasks.periodic import make_periodic, refuse_bare  # which few programs need

        refuse_bare(cron)

        def decorate(function: Any) -> Enqueuer:
            task: Enqueuer = function if isinstance(function, Enqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    def _handle(self, identity: Identity) -> Handle:
        return Handle.of(cast("QueueOfHandle", self), *identity)

    def put_call(self, call: Call) -> Handle:
        """Put a call; its job's id."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return self._handle(run_sync(put))

    def put_calls(self, *calls: Call, connection: Any = None) -> list[Handle]:
        """Put calls together, all or none; the ids in order."""
        ids = run_sync(batches.put_all(self.engine, [call.stored() for call in calls], connection))
        return [self._handle(identity) for identity in ids]

    def chain(self, *calls: Call, connection: Any = None) -> Handle:
        """Put calls to be made one after the other, each once the one before is done.

        Each finds what the one before returned in ``current().previous``.  If one
        fails for good, those after it wait with its dead letter.

        Returns:
            The first job's id.
        """
        first = batches.chain_calls([call.stored() for call in calls])
        return self._handle(run_sync(batches.put_all(self.engine, [first], connection))[0])

    def batch(self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None) -> Batch[Handle]:
        """Put calls together, and another when all of them have ended, well or not.

        Args:
            *calls: The calls; a tuple of them is a chain.
            then: What is put at the end; it finds in ``current().previous`` the
                ``batch``, and how many there were (``total``) and did not end well (``failed``).
            connection: As for `put`.
        """
        after = None if then is None else then.stored()
        number, ids = run_sync(batches.put_batch(self.engine, self, stored_calls(calls), after, connection))
        return Batch(number, [self._handle(identity) for identity in ids])
