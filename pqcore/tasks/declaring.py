"""Functions that are declared as tasks, and their calls."""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from pqcore.argument_checks import check_limits
from pqcore.errors import ConfigurationError
from pqcore.operations.deferred_put import DirectPut, StoredPut
from pqcore.operations.error_details import KeepErrors, check_keep_errors
from pqcore.operations.put import NO_TIMES, behind_of, checked_options, times_of
from pqcore.put_options import Dedup, PutOptions
from pqcore.tasks.conventions import BY_CONVENTION, Conventions, First, called_by, refuse_unknown, signature_of
from pqcore.tasks.retry import RetryPolicy, policy_to_json
from pqcore.times import TimeSpec, parse, seconds

if TYPE_CHECKING:
    from pqcore.db.engine import Engine
    from pqcore.job import BaseJob
    from pqcore.settings import QueueSettings

Key: TypeAlias = str | Callable[..., str | None] | None
"""A key, or a function that makes one from the call's arguments."""
Limits: TypeAlias = Mapping[str, int] | Callable[..., Mapping[str, int]] | None


@dataclass(frozen=True)
class TaskOptions:
    """The options with which a task is put and run.

    Each option may be given to the decorator, and, with an underscore before its name, to a call.

    Attributes:
        schedule_at: The earliest time at which a job may run; see `Queue.put`.
        expected_at: The time by which a job is wanted; see `Queue.put`.
        max_retries: The largest number of retries after exceptions.
        retry_in: A fixed pause before each retry; None for no pause.
        retry: A retry policy in place of a fixed pause: `Fixed`, `Exponential`, or a function of the number of failures
            and the exception that returns seconds.
        retry_on: An exception class, or a tuple of them, after which the job is retried; after any other exception, the
            job becomes a dead letter.
        discard_on: The exceptions after which the job is discarded.
        timeout: How long the function may run: seconds, ``'5m'`` or a timedelta.
        deadline: The time by which the job must have started: a time from its put, or a datetime. A job that is later
            becomes a dead letter.
        keep_result: How long the result is kept; None to keep none.
        dedup: A dedup key, a `Dedup`, or a function that makes either from the arguments.
        group: The FIFO group, or a function that makes its name from the arguments.
        limit: How many jobs of this task may run concurrently, over all workers.
        limits: More limits, by key, or a function that makes them from the arguments.
        max_crashes: How often the job may kill its worker before it becomes a dead letter.
        run_in: Where a function that is not a coroutine function runs: ``"thread"`` or ``"process"``; None for the
            worker's choice.
        keep_errors: What is stored of exceptions: ``"all"``; ``"type"``, if messages may contain personal data; or
            ``"none"``. None for the worker's choice.
        headers: JSON values that are stored with a job.
        tenant: The share that a job belongs to, or a function that makes its name from the arguments.
        priority: A number, or a function that makes the number from the arguments. Jobs with higher numbers are taken
            first.
    """

    schedule_at: TimeSpec = None
    expected_at: TimeSpec = None
    max_retries: int = 0
    retry_in: str | float | timedelta | None = "30s"
    retry: RetryPolicy | None = None
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    discard_on: tuple[type[BaseException], ...] = ()
    timeout: str | float | timedelta | None = None
    deadline: TimeSpec = None
    keep_result: str | float | timedelta | None = None
    dedup: Dedup | Key | Callable[..., Dedup | None] = None
    group: Key = None
    limit: int | None = None
    limits: Limits = None
    max_crashes: int = 5
    run_in: Literal["thread", "process"] | None = None
    headers: Mapping[str, Any] | None = None
    tenant: Key = None
    priority: int | Callable[..., int] = 0
    keep_errors: KeepErrors | None = None

    def __post_init__(self) -> None:
        for name in ("retry_in", "timeout", "keep_result"):
            if (value := getattr(self, name)) is not None:
                seconds(value)
        for name in ("schedule_at", "expected_at", "deadline"):
            parse(getattr(self, name))
        for name, least in (("max_retries", 0), ("max_crashes", 0), ("limit", 1)):
            value = getattr(self, name)
            if (not isinstance(value, int) or value < least) and not (name == "limit" and value is None):
                msg = f"{name} is {value!r}; give a number of at least {least}"
                raise ConfigurationError(msg)
        for name in ("retry_on", "discard_on"):
            kinds = getattr(self, name)
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
                msg = f"{name} is {kinds!r}; give classes of exceptions"
                raise ConfigurationError(msg)
            object.__setattr__(self, name, kinds)
        if self.retry is not None and not callable(self.retry):
            msg = f"retry is {self.retry!r}; give Fixed, Exponential, or a function of failures and exception"
            raise ConfigurationError(msg)
        if self.run_in not in (None, "thread", "process"):
            msg = f"run_in is {self.run_in!r}; choose 'thread' or 'process'"
            raise ConfigurationError(msg)
        if self.limits is not None and not callable(self.limits):
            check_limits(self.limits)
        if self.keep_errors is not None:
            check_keep_errors(self.keep_errors)


class DeclarationOptions(TypedDict, total=False):
    """The other options of a declaration; `pqcore.tasks.TaskOptions` documents each."""

    retry: RetryPolicy | None
    retry_on: type[BaseException] | tuple[type[BaseException], ...]
    discard_on: type[BaseException] | tuple[type[BaseException], ...]
    timeout: str | float | timedelta | None
    deadline: TimeSpec
    keep_result: str | float | timedelta | None
    dedup: Dedup | str | Callable[..., Dedup | str | None] | None
    group: Key
    limit: int | None
    limits: Limits
    max_crashes: int
    run_in: Literal["thread", "process"] | None
    headers: Mapping[str, Any] | None
    tenant: Key
    priority: int | Callable[..., int]
    keep_errors: KeepErrors | None


def task_options(
    conventions: Conventions,
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    max_retries: int,
    retry_in: Any,
    **options: Any,
) -> TaskOptions:
    """Return the options of a declaration; the conventions give the values of missing options.

    Raises:
        InvalidCall: An option is unknown.
        ConfigurationError, InvalidTimeSpec: An option has an invalid value.
    """
    refuse_unknown(options, TaskOptions.__dataclass_fields__)
    if max_retries is BY_CONVENTION:
        max_retries = conventions.max_retries
    if retry_in is BY_CONVENTION:
        retry_in = TaskOptions.retry_in
        if options.get("retry") is None:
            options["retry"] = conventions.retry
    return TaskOptions(schedule_at, expected_at, max_retries, retry_in, **options)


@dataclass(frozen=True, eq=False)
class Task:
    """A declared function.

    Attributes:
        path: The task's name in rows: the declared name, or else ``module.qualname``.
        function: The function.
        options: The options with which the task is put and run.
        first: The argument that the function gets before the arguments of the call.
    """

    path: str
    function: Callable[..., Any]
    options: TaskOptions = field(default_factory=TaskOptions)
    first: First = "id"

    @property
    def location(self) -> str:
        """Return ``module.qualname``, from which the function can be imported, whatever the task's name in rows is."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    @functools.cached_property
    def signature(self) -> inspect.Signature | None:
        """Return the signature of the function, as its decorators leave it; None if the signature cannot be read."""
        try:
            return signature_of(self.function, follow_wrapped=False)
        except (TypeError, ValueError):  # the function is not written in Python
            return None

    @functools.cached_property
    def is_coroutine(self) -> bool:
        """Whether the function must be awaited."""
        return inspect.iscoroutinefunction(called_by(self.function))

    def call(self, job: BaseJob, args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the function for a job.

        Args:
            job: The job.
            args: The arguments of the call.
            kwargs: The call's keyword arguments.
        """
        if self.first == "id":
            return self.function(job.id, *args, **kwargs)
        return self.function(job, *args, **kwargs) if self.first == "job" else self.function(*args, **kwargs)


Place: TypeAlias = Literal["chain", "callback", "schedule"]
_NO_AFTER: dict[Place, str] = {
    "chain": "only the first call of a chain can have after, because a later call waits for the call before it; give"
    " after to the first call",
    "callback": "the callback of a batch cannot have after, because it waits for the calls of the batch; give after to"
    " these calls",
    "schedule": "a scheduled call cannot have after; schedule a task that puts the call with after",
}
"""Why a call that is put later cannot wait for other jobs, and what to write instead, by where the call is stored."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a task that is not put yet: for chains, batches and `put_calls`.

    Attributes:
        queue: The queue that the call would be put into.
        task: The task to call.
        args: The positional arguments.
        kwargs: The keyword arguments.
        options: The options with which the call is put.
        connection: A connection whose open transaction writes the job.
        after: The jobs that the job waits for.
    """

    queue: QueueSettings
    task: Task
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: TaskOptions
    connection: Any = None
    after: Any = None

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"<call of {self.task.path}({', '.join(given)}) for queue {self.queue.name!r}>"

    def data(self) -> dict[str, Any]:
        """The stored data of the call, in pq's own form, so that pq's workers can also run the job."""
        retry_in = self.options.retry_in
        if isinstance(retry_in, timedelta):
            whole = retry_in // timedelta(seconds=1)
            retry_in = f"{whole}s" if retry_in == timedelta(seconds=whole) else retry_in.total_seconds()
        elif isinstance(retry_in, str) and "." in retry_in:  # pq's workers cannot read this
            retry_in = seconds(retry_in)
        return {
            "function": self.task.path,
            "args": self.args,
            "kwargs": self.kwargs,
            "retried": 0,
            "retry_in": retry_in,
            "max_retries": self.options.max_retries,
        }

    def put_options(self) -> dict[str, Any]:
        """Return the options for `pqcore.operations.put.put`."""
        options = self.options
        limits = check_limits(self._value(options.limits) or {})
        if options.limit is not None:
            limits["task:" + self.task.path] = options.limit
        return {
            "headers": options.headers,
            "own": self._own_headers(),
            "group": self._value(options.group),
            "limits": limits,
            "dedup": self._value(options.dedup),
            "tenant": self._value(options.tenant),
            "priority": self._value(options.priority),
            "task": self.task.path,
            "after": self.after,
        }

    def stored(self, place: Place = "schedule") -> StoredPut:
        """Return the call in the form for putting it later.

        Args:
            place: Where the call is stored until it is put.

        Raises:
            ConfigurationError: The call has an option that needs a put of its own: a dedup key, a point in time, or
                jobs that it waits for.
        """
        when = self._check_linked()
        if self.after is not None:
            raise ConfigurationError(f"{self.task.path}: {_NO_AFTER[place]}")
        headers = _headers_of(checked_options(self.put_options()))
        return StoredPut.encode(self.queue, self.data(), headers, None if when is None else when.total_seconds())

    def first(self, engine: Engine) -> DirectPut:
        """Return the call in the form for putting it now, as the first call of a chain or as a call of a batch.

        Raises:
            ConfigurationError: The call has a dedup key or a point in time.
            ConfigurationError, NotSupported: The call cannot wait for its parents (``after``).
        """
        self._check_linked()
        return self.direct(engine)

    def direct(self, engine: Engine) -> DirectPut:
        """Return the call in the form for putting it now, together with other calls.

        Raises:
            ConfigurationError, NotSupported: The call cannot wait for its parents (``after``).
        """
        chosen = checked_options(self.put_options())
        times = times_of(self.options.schedule_at, self.options.expected_at) or NO_TIMES
        encoded = DirectPut.encode(self.queue, self.data(), _headers_of(chosen))
        return replace(encoded, times=times, dedup=chosen.dedup, behind=behind_of(engine, self.queue, chosen))

    def _check_linked(self) -> timedelta | None:
        """Check the options of a call of a chain or batch; return the delay from the put until the job is due.

        Raises:
            ConfigurationError: The call has a dedup key or a point in time.
        """
        if self._value(self.options.dedup) is not None:
            msg = f"{self.task.path}: a call of a chain or batch cannot have a dedup key; leave it out"
            raise ConfigurationError(msg)
        when = parse(self.options.schedule_at)
        if isinstance(when, datetime) or self.options.expected_at is not None:
            msg = f"{self.task.path}: a call of a chain or batch cannot have a point in time; give a delay, as in '5m'"
            raise ConfigurationError(msg)
        return when

    def _value(self, option: Any) -> Any:
        return option(*self.args, **self.kwargs) if callable(option) else option

    def _own_headers(self) -> dict[str, Any]:
        options = self.options
        headers: dict[str, Any] = {}
        run: dict[str, Any] = {}
        if options.timeout is not None:
            run["timeout"] = seconds(options.timeout)
        if options.deadline is not None:
            when = parse(options.deadline)
            run["deadline"] = when.timestamp() if isinstance(when, datetime) else time.time() + _in_seconds(when)
        if options.retry is not None and options.retry is not self.task.options.retry:
            run["retry"] = policy_to_json(options.retry)
        if run:
            headers["run"] = run
        if options.keep_result is not None:
            headers["keep"] = seconds(options.keep_result)
        return headers


def _headers_of(chosen: PutOptions) -> dict[str, Any]:
    headers: dict[str, Any] = {} if chosen.headers is None else json.loads(chosen.headers)
    return headers


def _in_seconds(distance: timedelta | None) -> float:
    return 0.0 if distance is None else distance.total_seconds()
