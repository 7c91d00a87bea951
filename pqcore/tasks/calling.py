"""Calls of declared functions: options are separated from arguments, and both are checked before a put."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from pqcore.argument_hints import nearest
from pqcore.errors import ConfigurationError, InvalidCall
from pqcore.put_options import parents_of, rereadable
from pqcore.tasks.conventions import BY_CONVENTION
from pqcore.tasks.declaring import Call, Key, Limits, Task, TaskOptions
from pqcore.tasks.retry import Fixed, RetryPolicy
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from typing_extensions import Self

    from pqcore.put_options import Dedup, Parents
    from pqcore.settings import QueueSettings

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = {field.name for field in dataclasses.fields(TaskOptions)}
# The worker reads these options from the declaration, because a function or class cannot be stored with the job.
_DECLARED_ONLY = {"retry_on", "discard_on", "max_crashes", "run_in", "keep_errors", "limit"}
_CALLS_ONLY = {"connection", "after"}
"""Options that a declaration cannot have."""
_OF_CALLS = _OPTIONS - _DECLARED_ONLY | _CALLS_ONLY
_RESEMBLED = _OF_CALLS - {"after"}
"""The options with which a name is compared that may be a misspelled option. ``after`` is not one of them, because too
many names of arguments resemble it."""
_OTHER_WAYS = {
    **dict.fromkeys(("delay", "defer", "send", "enqueue"), "call it: {name}(...)"),
    **dict.fromkeys(("apply_async", "configure", "send_with_options"), "write {name}.options(schedule_at=...)(...)"),
    **dict.fromkeys(("s", "si", "signature", "message"), "write {name}.call(...)"),
}
"""Names of options in other libraries, each with the name to use here."""


class BaseEnqueuer(Generic[P, R]):
    """A declared function, on a blocking or an asynchronous queue.

    Attributes:
        task: The task.
        queue: The queue that jobs are put into.
    """

    def __init__(self, queue: Any, task: Task, chosen: Mapping[str, Any] | None = None) -> None:
        function: Callable[..., Any] = task.function
        functools.update_wrapper(cast("Any", self), function)
        self.task = task
        self.queue = queue
        self._path = task.path
        self._chosen = chosen or {}

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call:
        """Return the call without putting it: for `Queue.chain`, `Queue.batch` and `Queue.put_calls`.

        Raises:
            InvalidCall: The function does not accept these arguments.
        """
        return call_of(self.queue, self.task, args, dict(kwargs), self._chosen)

    def options(
        self,
        *,
        schedule_at: TimeSpec = BY_CONVENTION,
        expected_at: TimeSpec = BY_CONVENTION,
        max_retries: int = BY_CONVENTION,
        retry_in: str | float | timedelta | None = BY_CONVENTION,
        retry: RetryPolicy | None = BY_CONVENTION,
        timeout: str | float | timedelta | None = BY_CONVENTION,
        deadline: TimeSpec = BY_CONVENTION,
        keep_result: str | float | timedelta | None = BY_CONVENTION,
        dedup: Dedup | str | None = BY_CONVENTION,
        group: Key = BY_CONVENTION,
        limits: Limits = BY_CONVENTION,
        headers: Mapping[str, Any] | None = BY_CONVENTION,
        tenant: Key = BY_CONVENTION,
        priority: int = BY_CONVENTION,
        connection: Any = BY_CONVENTION,
        after: Parents = BY_CONVENTION,
    ) -> Self:
        """Return the same task with options for its calls: ``ship.options(schedule_at="1h", priority=5)(42)``.

        Options that are not given keep their declared values. `TaskOptions` documents each option.

        Args:
            schedule_at: The earliest time at which the job may run.
            expected_at: The time by which the job is wanted.
            max_retries: The largest number of retries after exceptions.
            retry_in: A fixed pause before each retry: seconds, ``'5m'``, a timedelta, or None for no pause.
            retry: A retry policy, in place of a fixed pause.
            timeout: How long the function may run: seconds, ``'5m'`` or a timedelta.
            deadline: The time by which the job must have started.
            keep_result: How long the result is kept: seconds, ``'5m'`` or a timedelta; None to keep none.
            dedup: A dedup key.
            group: The FIFO group.
            limits: Limits by key.
            headers: JSON values that are stored with the job.
            tenant: The share that the job belongs to.
            priority: Jobs with higher numbers are taken first.
            connection: A connection whose open transaction writes the job; see `Queue.put`.
            after: Jobs that the job waits for: an id, or a list of ids and `After`; see `Queue.put`.

        Raises:
            ConfigurationError, InvalidTimeSpec: An option has an invalid value.
        """
        given = {
            "schedule_at": schedule_at,
            "expected_at": expected_at,
            "max_retries": max_retries,
            "retry_in": retry_in,
            "retry": retry,
            "timeout": timeout,
            "deadline": deadline,
            "keep_result": keep_result,
            "dedup": dedup,
            "group": group,
            "limits": limits,
            "headers": headers,
            "tenant": tenant,
            "priority": priority,
            "connection": connection,
            "after": rereadable(after),
        }
        chosen = {**self._chosen, **{name: value for name, value in given.items() if value is not BY_CONVENTION}}
        with_options(self.task.options, {name: value for name, value in chosen.items() if name not in _CALLS_ONLY})
        parents_of(chosen.get("after"))
        return type(self)(self.queue, self.task, chosen)

    if not TYPE_CHECKING:  # otherwise a type checker would accept any name as an attribute

        def __getattr__(self, name: str) -> Any:
            if name in _OTHER_WAYS and not name.startswith("__"):
                called = self.__dict__.get("__name__", "task")
                msg = f"a task has no {name!r}: {_OTHER_WAYS[name].format(name=called)}"
            else:
                msg = f"a task has no attribute {name!r}"
            raise AttributeError(msg)


def with_options(declared: TaskOptions, chosen: Mapping[str, Any]) -> TaskOptions:
    """Return the options of a call: the declared options, with the changes that the call chose."""
    if not chosen:
        return declared
    own = dict(chosen)
    if "retry_in" in own and "retry" not in own and declared.retry is not None:
        own["retry"] = Fixed(0 if own["retry_in"] is None else own["retry_in"])  # replaces the policy of the task
    return dataclasses.replace(declared, **own)


def call_of(
    queue: QueueSettings,
    task: Task,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    chosen: Mapping[str, Any] | None = None,
) -> Call:
    """Return a call; arguments that begin with an underscore and name an option become options of this call.

    Args:
        queue: The queue that the call would be put into.
        task: The task to call.
        args: The positional arguments.
        kwargs: The keyword arguments; options are removed from them.
        chosen: More options, without an underscore, and ``connection`` and ``after``.

    Raises:
        ConfigurationError: The call has an option that only a declaration can have.
        InvalidCall: The function does not accept these arguments, or an option is misspelled.
    """
    own = dict(chosen or ())
    for name in [name for name in kwargs if name[:1] == "_" and name[1:] in _OPTIONS | _CALLS_ONLY]:
        value = kwargs.pop(name)
        if name[1:] in _DECLARED_ONLY:
            msg = f"{name} is not an option of a call: give {name[1:]} where the task is declared"
            raise ConfigurationError(msg)
        if value is not None or name not in ("_schedule_at", "_expected_at"):  # pq ignores None for these two options
            own[name[1:]] = value
    connection, after = own.pop("connection", None), rereadable(own.pop("after", None))
    check_arguments(task, args, kwargs)
    return Call(queue, task, args, kwargs, with_options(task.options, own), connection, after)


def check_arguments(task: Task, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that a function accepts the arguments of a call.

    Args:
        task: The function.
        args: The arguments, without the job or its id.
        kwargs: The keyword arguments.

    Raises:
        InvalidCall: The function does not accept the arguments, or one of them looks like a misspelled option.
    """
    signature = task.signature
    if signature is None:
        return
    try:
        bound = signature.bind(*args, **kwargs) if task.first == "nothing" else signature.bind(None, *args, **kwargs)
    except TypeError as exc:
        msg = f"{task.path} cannot be called like this: {exc}; it takes {_taken(task, signature)}{_hints(kwargs)}"
        raise InvalidCall(msg) from None
    if any(name[:1] == "_" for name in kwargs):
        others = {name for name in kwargs if name not in signature.parameters and name in bound.kwargs}
        if hint := _hints(dict.fromkeys(name for name in others if name[:1] == "_")):
            msg = f"{task.path} cannot be called like this{hint} Give an argument of the function another name"
            raise InvalidCall(msg)


def _taken(task: Task, signature: inspect.Signature) -> str:
    """Return the parameters that a call of a task accepts, as Python source."""
    parameters = list(signature.parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if task.first != "nothing" and parameters and parameters[0].kind in positional:
        del parameters[0]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def _hints(kwargs: Mapping[str, Any]) -> str:
    """Return suggestions for arguments whose names equal or resemble the name of an option."""
    told = []
    for name in kwargs:
        if name in _OF_CALLS:
            told.append(f"{name} is an option of the call: write _{name}=..., or options({name}=...)(...)")
        elif name[:1] == "_" and (near := nearest(name[1:], _RESEMBLED)):
            told.append(f"{name} is not an option: did you mean _{near}?")
    return "".join(f"; {hint}" for hint in told)
