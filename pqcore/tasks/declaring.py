"""Functions declared as tasks, and calls of them."""

from __future__ import annotations

import functools
import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from pqcore.errors import ConfigurationError, InvalidCall
from pqcore.job import JobId
from pqcore.operations.batches import chain_calls
from pqcore.operations.deferred_put import StoredPut
from pqcore.put_options import Dedup, put_options
from pqcore.tasks.conventions import BY_CONVENTION, Conventions, First, signature_of
from pqcore.tasks.retry import RetryPolicy, policy_to_json
from pqcore.times import TimeSpec, parse, seconds

if TYPE_CHECKING:
    from pqcore.job import BaseJob
    from pqcore.settings import QueueSettings

Key: TypeAlias = str | Callable[..., str | None] | None
"""A key, or a function of the call's arguments that gives one."""
Limits: TypeAlias = Mapping[str, int] | Callable[..., Mapping[str, int]] | None


@dataclass(frozen=True)
class TaskOptions:
    """How a task is put and run.

    Each may be given to the decorator, and, with an underscore before its name, to a call.

    Attributes:
        schedule_at: Not before this time; as for `Queue.put`.
        expected_at: Wanted by this time; as for `Queue.put`.
        max_retries: How often it is tried again after an exception.
        retry_in: The time until then, always the same; None for at once.
        retry: The policy instead: `Fixed`, `Exponential`, or a function of the number of
            failures and the exception that gives seconds.
        retry_on: Only after these exceptions, one or a tuple; after others it is a dead letter.
        discard_on: After these it is discarded.
        timeout: How long it may run: seconds, ``'5m'`` or a timedelta.
        deadline: Until when it must have been started: a time from when it is put, or a
            datetime. Later it is a dead letter.
        keep_result: How long its result is kept; None to keep none.
        dedup: A dedup key, a `Dedup`, or a function of the arguments that gives either.
        group: The FIFO group, or a function of the arguments that gives it.
        limit: How many of this task may run at once, over all workers.
        limits: Further ones, by key; or a function of the arguments that gives them.
        max_crashes: How often its worker may die of it before it is a dead letter.
        run_in: Where a function that is no coroutine runs: ``"thread"`` or ``"process"``;
            None for the worker's choice.
        headers: What travels with it, as JSON.
        tenant: Whose share it is counted to, or a function of the arguments that gives that.
        priority: Higher first, or a function of the arguments that gives it.
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
                msg = f"{name} is {kinds!r}; give exceptions"
                raise ConfigurationError(msg)
            object.__setattr__(self, name, kinds)
        if self.retry is not None and not callable(self.retry):
            msg = f"retry is {self.retry!r}; give Fixed, Exponential, or a function of failures and exception"
            raise ConfigurationError(msg)
        if self.run_in not in (None, "thread", "process"):
            msg = f"run_in is {self.run_in!r}; choose 'thread' or 'process'"
            raise ConfigurationError(msg)


class DeclarationOptions(TypedDict, total=False):
    """The further options of a declaration; `pqcore.tasks.TaskOptions` says what each means."""

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


def task_options(
    conventions: Conventions,
    schedule_at: TimeSpec,
    expected_at: TimeSpec,
    max_retries: int,
    retry_in: Any,
    **options: Any,
) -> TaskOptions:
    """Return the options of a declaration, with those that were not given as the conventions have them.

    Raises:
        ConfigurationError, InvalidTimeSpec: An option is none, or has a value that it cannot have.
    """
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
        path: Its name in rows: the one that it was declared with, or else ``module.qualname``.
        function: The function.
        options: How it is put and run.
        first: The argument that the function gets before those of the call.
    """

    path: str
    function: Callable[..., Any]
    options: TaskOptions = field(default_factory=TaskOptions)
    first: First = "id"

    @property
    def location(self) -> str:
        """``module.qualname``: where the function can be imported from, whatever its name in rows."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    @functools.cached_property
    def signature(self) -> inspect.Signature | None:
        """The signature of what is called, a decorator's own included; None if it cannot be read."""
        try:
            return signature_of(self.function, follow_wrapped=False)
        except (TypeError, ValueError):  # it is not written in Python
            return None

    @functools.cached_property
    def is_coroutine(self) -> bool:
        """Whether the function is to be awaited."""
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


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a task, not yet put: for chains, batches and bulk.

    Attributes:
        queue: Where it would be put.
        task: What is called.
        args: With these.
        kwargs: And these.
        options: How it is put.
        connection: In whose transaction.
    """

    queue: QueueSettings
    task: Task
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: TaskOptions
    connection: Any = None

    def data(self) -> dict[str, Any]:
        """What is stored: pq's own form, which its workers can run too."""
        retry_in = self.options.retry_in
        if isinstance(retry_in, timedelta):
            whole = retry_in // timedelta(seconds=1)
            retry_in = f"{whole}s" if retry_in == timedelta(seconds=whole) else retry_in.total_seconds()
        elif isinstance(retry_in, str) and "." in retry_in:  # which pq's workers cannot read
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
        """What `pqcore.operations.put.put` takes as options."""
        options = self.options
        limits = dict(self._value(options.limits) or {})
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
        }

    def stored(self) -> StoredPut:
        """The call as it is put later, or with others.

        Raises:
            ConfigurationError: It has what can only be decided by a put of its own: a dedup key, or a point in time.
        """
        chosen = self.put_options()
        if chosen["dedup"] is not None:
            msg = f"{self.task.path}: a dedup key is for a single put, not for a call of a chain or batch"
            raise ConfigurationError(msg)
        when = parse(self.options.schedule_at)
        if isinstance(when, datetime) or self.options.expected_at is not None:
            msg = f"{self.task.path}: within a chain or batch give a time from then, such as '5m', or none"
            raise ConfigurationError(msg)
        encoded = put_options(
            chosen["headers"],
            chosen["group"],
            chosen["limits"],
            None,
            chosen["own"],
            chosen["tenant"],
            chosen["priority"],
        ).headers
        headers = {} if encoded is None else json.loads(encoded)
        return StoredPut.encode(self.queue, self.data(), headers, None if when is None else when.total_seconds())

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


def called_by(function: Callable[..., Any]) -> Any:
    """The function that is called in the end: within ``functools.partial`` objects, and objects with ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


def refuse_generator(function: Callable[..., Any], path: str) -> None:
    """Refuse a function with ``yield``: a call of it runs nothing.

    Args:
        function: The function.
        path: What it is called in the message.

    Raises:
        ConfigurationError: It is a generator function, or an asynchronous one.
    """
    within = called_by(function)
    if inspect.isgeneratorfunction(within) or inspect.isasyncgenfunction(within):
        kind = "an asynchronous generator function" if inspect.isasyncgenfunction(within) else "a generator function"
        msg = (
            f"{path} is {kind}, and cannot be a task: a call of it would run nothing of its body;"
            " remove its yield, or declare a function that iterates over it"
        )
        raise ConfigurationError(msg)


def stored_calls(calls: Iterable[Call | tuple[Call, ...]]) -> list[StoredPut]:
    """Calls of a batch as they are put with others; a tuple of them is a chain."""
    return [
        chain_calls(stored_links(call, "batch")) if isinstance(call, tuple) else stored_links([call], "batch")[0]
        for call in calls
    ]


def stored_links(calls: Iterable[Call], what: str) -> list[StoredPut]:
    """Return calls as they are put with others.

    Args:
        calls: The calls.
        what: The method that puts them, for the message.

    Raises:
        InvalidCall: One of them is no call that is not put yet.
        ConfigurationError: One has what can only be decided by a put of its own.
    """
    links = list(calls)
    for call in links:
        if isinstance(call, Call):
            continue
        given: Any = call
        put = ""
        if isinstance(given, JobId):
            put = f"; job {int(given)} has been put, and stays"
        elif inspect.iscoroutine(given):
            given.close()  # it was not awaited, so nothing was put
        msg = (
            f"{what} takes calls that are not put yet: write task.call(...), without await; it was given {given!r}{put}"
        )
        raise InvalidCall(msg)
    return [call.stored() for call in links]


def _in_seconds(distance: timedelta | None) -> float:
    return 0.0 if distance is None else distance.total_seconds()
