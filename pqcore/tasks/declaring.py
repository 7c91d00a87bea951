"""Declaring functions as tasks, and finding the function that a row names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import pydoc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from logging import getLogger
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pqcore.errors import ConfigurationError, UnknownTask
from pqcore.operations.batches import chained
from pqcore.operations.deferred_put import StoredPut
from pqcore.put_options import Dedup, put_options
from pqcore.tasks.retry import Fixed, RetryPolicy, policy_to_json
from pqcore.times import TimeSpec, parse, seconds

if TYPE_CHECKING:
    from pqcore.settings import QueueSettings
    from pqcore.tasks.periodic import Periodic

logger = getLogger("pqcore.tasks")

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


_OPTIONS = {field.name for field in dataclasses.fields(TaskOptions)}
# What decides in the worker is read from the declaration there: a function or class cannot travel.
_DECLARED_ONLY = {"retry_on", "discard_on", "max_crashes", "run_in", "limit"}


@dataclass(frozen=True, eq=False)
class Task:
    """A declared function.

    Attributes:
        path: ``module.qualname``.
        function: The function.
        options: How it is put and run.
    """

    path: str
    function: Callable[..., Any]
    options: TaskOptions = field(default_factory=TaskOptions)

    @functools.cached_property
    def is_coroutine(self) -> bool:
        """Whether the function is to be awaited."""
        return inspect.iscoroutinefunction(called_by(self.function))


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
        encoded = put_options(chosen["headers"], chosen["group"], chosen["limits"], None, chosen["own"]).headers
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
    """Calls as they are put with others; a tuple of them is a chain."""
    return [chained([link.stored() for link in call]) if isinstance(call, tuple) else call.stored() for call in calls]


def _in_seconds(distance: timedelta | None) -> float:
    return 0.0 if distance is None else distance.total_seconds()


PATH_ATTRIBUTE = "_path"
"""The attribute in which pq, too, keeps the path of a declared function."""


class TaskDeclarations:
    """The tasks that queues declare; what the blocking and the async queue have in common.

    Attributes:
        handler_registry: Path to function; shared by all queues, as in pq.
        trusted_modules: Names of modules whose functions rows may name though
            they were not declared.
    """

    handler_registry: ClassVar[dict[str, Callable[..., Any]]] = {}
    trusted_modules: tuple[str, ...] = ()
    logger = logger
    _tasks: ClassVar[dict[str, Task]] = {}
    _periodics: list[Periodic] | None = None

    @property
    def periodics(self) -> list[Periodic]:
        """The periodic tasks of this queue."""
        if self._periodics is None:
            self._periodics = []
        return self._periodics

    def add_periodic(self, periodic: Periodic) -> None:
        """Add a periodic task.

        Raises:
            ConfigurationError: There is one of its name.
        """
        if any(other.name == periodic.name for other in self.periodics):
            msg = f"there is a periodic task {periodic.name!r} already: give this one a name"
            raise ConfigurationError(msg)
        self.periodics.append(periodic)

    def declare(self, function: Callable[..., Any], options: TaskOptions) -> Task:
        """Declare a function, and mark it with its path as pq does; one that is declared already is replaced.

        Raises:
            ConfigurationError: It has ``yield``, so that a call runs nothing, or no name that a worker can find.
        """
        if isinstance(declared := getattr(function, "task", None), Task):
            function = declared.function
        path = _path_of(function)
        refuse_generator(function, path)
        setattr(function, PATH_ATTRIBUTE, path)
        task = Task(path, function, options)
        self.handler_registry[path] = function
        self._tasks[path] = task
        return task

    @classmethod
    def declared_task(cls, path: str) -> Task | None:
        """Return the task that some queue has declared under a path; None without one."""
        return cls._tasks.get(path)

    def find_task(self, path: str) -> Task:
        """The task that a row names.

        Raises:
            UnknownTask: It is not declared, nor is its module trusted.
        """
        function = self.handler_registry.get(path)
        if function is None and (path in self._tasks or self._trusts(path)):
            found = pydoc.locate(path)
            if callable(found):
                # Importing may have declared it; else what stands there may be the caller that a decorator left.
                function = self.handler_registry.setdefault(path, getattr(found, "__wrapped__", found))
        if function is None:
            msg = f"unknown function {path!r}: declare it with @queue.task, or list its module in trusted_modules"
            raise UnknownTask(msg)
        declared = self._tasks.get(path)
        if declared is None:
            return Task(path, function)
        return declared if declared.function is function else dataclasses.replace(declared, function=function)

    def most_crashes(self) -> int:
        """Return the largest ``max_crashes`` of all declared tasks, or the default: no job may crash more often."""
        return max((task.options.max_crashes for task in self._tasks.values()), default=TaskOptions.max_crashes)

    def _trusts(self, path: str) -> bool:
        return any(path.startswith(module + ".") for module in self.trusted_modules)


def _path_of(function: Callable[..., Any]) -> str:
    try:
        return f"{function.__module__}.{function.__qualname__}"
    except AttributeError:
        msg = (
            f"a task is a {type(function).__qualname__} without a name, which a worker could not find: {function!r};"
            " declare a function that calls it"
        )
        raise ConfigurationError(msg) from None


def call_of(queue: QueueSettings, task: Task, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A call: arguments that begin with an underscore and name an option are options of this call.

    Raises:
        ConfigurationError: An option that only a declaration can have.
    """
    own = {}
    connection = kwargs.pop("_connection", None)
    for name in [name for name in kwargs if name[:1] == "_" and name[1:] in _OPTIONS]:
        value = kwargs.pop(name)
        if name[1:] in _DECLARED_ONLY:
            msg = f"{name} is not an option of a call: give {name[1:]} to the task"
            raise ConfigurationError(msg)
        if value is not None or name not in ("_schedule_at", "_expected_at"):  # pq: None is no override
            own[name[1:]] = value
    if "retry_in" in own and "retry" not in own and task.options.retry is not None:
        own["retry"] = Fixed(0 if own["retry_in"] is None else own["retry_in"])  # instead of the task's policy
    options = dataclasses.replace(task.options, **own) if own else task.options
    return Call(queue, task, args, kwargs, options, connection)
