"""Making schedules: a task, its arguments and its options become the job that each tick puts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict, cast

from pqcore.errors import ConfigurationError, UnknownTask
from pqcore.operations.schedules import NewSchedule, check_name
from pqcore.tasks.calling import BaseEnqueuer, call_of
from pqcore.tasks.conventions import BY_CONVENTION
from pqcore.tasks.declaring import Call, Key, Limits, Task, task_options
from pqcore.tasks.periodic import Missed, Timetable
from pqcore.times import TimeSpec, parse

if TYPE_CHECKING:
    from pqcore.settings import QueueSettings
    from pqcore.tasks.registry import TaskDeclarations


class ScheduleOptions(TypedDict, total=False):
    """The options with which the jobs of a schedule are put; `pqcore.tasks.TaskOptions` documents each."""

    max_retries: int
    retry_in: str | float | timedelta | None
    timeout: str | float | timedelta | None
    deadline: TimeSpec
    keep_result: str | float | timedelta | None
    group: Key
    limits: Limits
    headers: Mapping[str, Any] | None
    tenant: Key
    priority: int


def new_schedule(
    queue: Any,
    name: str,
    task: Any,
    cron: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    tz: str,
    missed: Missed,
    options: Mapping[str, Any],
) -> NewSchedule:
    """Return a schedule, checked; `pqcore.Queue.schedule` documents the arguments.

    Raises:
        ConfigurationError: The expression, the time zone or an option is invalid; or the name is that of a periodic
            task that this program declares.
        InvalidCall: The task does not accept the arguments.
        InvalidName: A schedule cannot have this name.
    """
    check_name(name)
    refuse_declared(queue, name)
    Timetable(name, cron, tz, missed).check()
    call = _call(queue, task, args, kwargs, options)
    if call.connection is not None:
        msg = f"{call.task.path}: a scheduled call cannot have a connection; write schedule(..., connection=...)"
        raise ConfigurationError(msg)
    deadline_in = None
    if isinstance(deadline := parse(call.options.deadline), timedelta):
        deadline_in = deadline.total_seconds()
        call = replace(call, options=replace(call.options, deadline=None))
    if call.options.dedup is not None:
        msg = f"{call.task.path}: a scheduled call cannot have a dedup key; see 'Schedule and repeat' for another way"
        raise ConfigurationError(msg)
    stored = call.stored()
    return NewSchedule(name, call.task.path, cron, tz, missed, tuple(call.args), dict(call.kwargs), stored, deadline_in)


def refuse_declared(queue: TaskDeclarations, name: str) -> None:
    """Raise if this queue declares a periodic task of this name: such a task is no schedule, and has no row.

    Raises:
        ConfigurationError: The queue has a periodic task of this name.
    """
    if any(periodic.name == name for periodic in queue.periodics):
        msg = f"{name!r} is the name of a periodic task that this program declares; give a schedule another name"
        raise ConfigurationError(msg)


def _call(
    queue: QueueSettings,
    task: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Call:
    """Return the call to put at each tick."""
    if unknown := sorted(options.keys() - ScheduleOptions.__annotations__.keys()):
        known = ", ".join(ScheduleOptions.__annotations__)
        raise ConfigurationError(f"{unknown[0]!r} is not an option of a schedule; the options are {known}")
    if isinstance(task, Call):
        if args or kwargs or options:
            msg = f"{task.task.path}: the call has its arguments and options already; give schedule none"
            raise ConfigurationError(msg)
        return replace(task, queue=queue)
    if isinstance(args, str) or not isinstance(args, Sequence):
        msg = f"args is {args!r}; give a tuple or a list of arguments"
        raise ConfigurationError(msg)
    if isinstance(task, BaseEnqueuer):
        return replace(task.options(**options).call(*args, **(kwargs or {})), queue=queue)
    return call_of(queue, _task(cast("TaskDeclarations", queue), task), tuple(args), dict(kwargs or {}), options)


def _task(queue: TaskDeclarations, task: Any) -> Task:
    """Return the task of a path, or of a declared function; a task that this program does not know takes any arguments.

    Raises:
        ConfigurationError: The value is neither a path nor a declared function.
    """
    path = getattr(task, "_path", task)  # the path of a function that was declared as a task
    if not isinstance(path, str) or not path.strip() or "\0" in path:
        msg = f"the task of a schedule is {task!r}; give a declared task, a call of one, or the path of a task"
        raise ConfigurationError(msg)
    try:
        return queue.declared_task(path) or queue.find_task(path)
    except UnknownTask:
        chosen = task_options(queue.conventions, None, None, BY_CONVENTION, BY_CONVENTION)
        return Task(path, _unknown, chosen, first="nothing")


def _unknown(*args: Any, **kwargs: Any) -> None:
    """Do nothing: a placeholder for a function that this program does not know."""
