"""What a blocking queue does with tasks: declares them, puts calls of them, and performs them; see `pqcore.Queue`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from pqcore.db.runtime import run_sync
from pqcore.operations import batches
from pqcore.operations.put import put_call
from pqcore.tasks.calling import BaseEnqueuer, call_of
from pqcore.tasks.conventions import BY_CONVENTION, FRONT_DOOR
from pqcore.tasks.declaring import Call, DeclarationOptions, stored_calls, stored_links, task_options
from pqcore.tasks.handles import Batch, Handle
from pqcore.tasks.work import WorkingQueue
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from datetime import timedelta

    from typing_extensions import Unpack

    from pqcore.job import AsyncJob, Identity, Job
    from pqcore.tasks.handles import QueueOfHandle
    from pqcore.tasks.periodic import Missed

P = ParamSpec("P")
R = TypeVar("R")


class Enqueuer(BaseEnqueuer[P, R]):
    """What a declared function becomes: calling it puts a job.

    Attributes:
        task: The task.
        queue: The queue that it is put into.
    """

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Put a job; options of this call begin with an underscore: ``_schedule_at="5m"``.

        ``_connection`` puts it in the transaction of that connection. `options` is the way that type checkers know.

        Raises:
            InvalidCall: The function does not take these arguments; nothing was put.
        """
        handle: Handle[R] = self.queue.put_call(self.call(*args, **kwargs))
        return handle


class Declare(Protocol):
    """Declares a function as a task of a `pqcore.Queue`."""

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
    """Declares a function as a task of a `pqcore.tasks.Queue`."""

    @overload
    def __call__(self, function: Enqueuer[..., R], /) -> Enqueuer[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., Coroutine[Any, Any, R]], /) -> Enqueuer[..., R]: ...
    @overload
    def __call__(self, function: Callable[..., R], /) -> Enqueuer[..., R]: ...


class TaskQueueMixin(WorkingQueue):
    """The part of `pqcore.Queue` that has to do with tasks."""

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
            name: What rows call it, in place of ``module.qualname``: then the function may move to another module.
            aliases: Further names under which its jobs were put before.
            **options: As in `TaskOptions`.

        Raises:
            ConfigurationError, InvalidTimeSpec: An option is none, or has a value that it cannot have; the function
                cannot be a task; or another function has the name.
        """
        if callable(schedule_at):  # @queue.task, without parentheses
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

        def decorate(function: Any) -> Any:
            task = function if isinstance(function, Enqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    def _handle(self, identity: Identity) -> Handle[Any]:
        return Handle.of(cast("QueueOfHandle", self), *identity)

    def put_call(self, call: Call) -> Handle[Any]:
        """Put a call; its job's id."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return self._handle(run_sync(put))

    def put_calls(self, *calls: Call, connection: Any = None) -> list[Handle[Any]]:
        """Put calls together, all or none; the ids in order."""
        ids = run_sync(batches.put_all(self.engine, stored_links(calls, "put_calls"), connection))
        return [self._handle(identity) for identity in ids]

    def chain(self, *calls: Call, connection: Any = None) -> Handle[Any]:
        """Put calls to be made one after the other, each once the one before is done.

        Each finds what the one before returned in ``current().previous``.  If one
        fails for good, those after it wait with its dead letter.

        Returns:
            The first job's id.
        """
        first = batches.chain_calls(stored_links(calls, "chain"))
        return self._handle(run_sync(batches.put_all(self.engine, [first], connection))[0])

    def batch(
        self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None
    ) -> Batch[Handle[Any]]:
        """Put calls together, and another when all of them have ended, well or not.

        Args:
            *calls: The calls; a tuple of them is a chain.
            then: What is put at the end; it finds in ``current().previous`` the
                ``batch``, and how many there were (``total``) and did not end well (``failed``).
            connection: As for `put`.
        """
        after = None if then is None else stored_links([then], "batch")[0]
        number, ids = run_sync(batches.put_batch(self.engine, self, stored_calls(calls), after, connection))
        return Batch(number, [self._handle(identity) for identity in ids])
