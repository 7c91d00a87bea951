"""A backend for Django's own tasks (`django.tasks` of Django 6, or the package ``django-tasks`` before that).

    TASKS = {"default": {"BACKEND": "pqcore.integrations.django.tasks.PQCoreBackend"}}

A task is put on Django's connection, so it is committed together with other writes of the transaction. The job calls
`run` or `arun`, which find the task by its path and accept nothing but tasks.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from inspect import iscoroutinefunction
from typing import Any

from django.core.checks import CheckMessage, Error
from django.utils.module_loading import import_string
from django.utils.timezone import now

from pqcore.backend_registry import importable
from pqcore.db.runtime import run_sync
from pqcore.errors import (
    ConfigurationError,
    InvalidName,
    JobFailed,
    JobNotFound,
    PQError,
    ResultTimeout,
    UnknownSerializer,
)
from pqcore.integrations.django.queues import DjangoPQ, pqs
from pqcore.job import JobId
from pqcore.operations import list_jobs
from pqcore.operations.error_details import describe_error
from pqcore.operations.list_jobs import WholeJob
from pqcore.tasks import Task, TaskDeclarations, TaskOptions, current
from pqcore.tasks.calling import call_of
from pqcore.tasks.conventions import refuse_generator
from pqcore.tasks.outcomes import failure_of, kind_after

_ROOT = next(filter(importable, ("django.tasks", "django_tasks")), None)


class _Absent:
    """A stand-in for each class of `django.tasks` where the package is missing.

    With this stand-in, this module can be imported without the package. The import must not fail, because pqcore's
    worker, Celery and other programs import the module ``tasks`` of every app.
    """

    def __init__(self, *arguments: object, **named: object) -> None:
        msg = "the tasks backend needs Django 6, or django-tasks before: pip install django-tasks"
        raise ImportError(msg)


class _AbsentModule:
    def __getattr__(self, name: str) -> Any:
        return _Absent


def _module(name: str) -> Any:
    return _AbsentModule() if _ROOT is None else importlib.import_module(name)


base = _module(f"{_ROOT}.base")
backends: Any = _module(f"{_ROOT}.backends.base")
signals = _module(f"{_ROOT}.signals")
_exceptions = _module(f"{_ROOT}.exceptions")
InvalidTask: Any = getattr(_exceptions, "InvalidTask", None) or _exceptions.InvalidTaskError
TaskResultDoesNotExist: Any = _exceptions.TaskResultDoesNotExist
TaskResult, TaskResultStatus = base.TaskResult, base.TaskResultStatus
_json = _module("django.utils.json" if _ROOT == "django.tasks" else "django_tasks.utils")

KEEP_RESULT = "7d"
"""How long a result is kept, unless ``OPTIONS`` sets another time."""
FIRST_EXPECTED = datetime(2000, 1, 1, tzinfo=timezone.utc)
"""The ``expected_at`` of priority 0; each step of priority is one day. These times are decades ago, so no other job has
an ``expected_at`` among them.
"""
_CALL_OPTIONS = ("keep_result", "max_retries", "retry_in", "timeout")
_STATUS = {"leased": "RUNNING", "dead": "FAILED", "done": "SUCCESSFUL"}


class ResultId(str):
    """The id of a result, as `enqueue` returned it.

    The id of a result belongs to one job alone, even if another job gets the same job id later.
    """

    __slots__ = ("job_id",)
    job_id: JobId

    @classmethod
    def of(cls, queue: str, job_id: JobId) -> ResultId:
        """Return the id of the result of a job."""
        made = cls(f"{queue}:{int(job_id)}")
        made.job_id = JobId(job_id)  # a copy without the queue, so that a result can be pickled
        made.job_id.epoch = job_id.epoch
        return made


class PQCoreBackend(backends.BaseTaskBackend):
    """A backend that puts tasks as jobs, and finds their results.

    ``OPTIONS``: ``using`` (the alias in ``PQCORE``), ``keep_result``, ``max_retries``, ``retry_in``, ``timeout``;
    `pqcore.tasks.TaskOptions` documents the last four.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        self.call_options: dict[str, Any] = {"keep_result": KEEP_RESULT}
        self.call_options |= {name: self.options[name] for name in _CALL_OPTIONS if name in self.options}

    @property
    def pq(self) -> DjangoPQ:
        """Return the `PQ` of the table."""
        return pqs[self.options.get("using", "default")]

    def validate_task(self, task: Any) -> None:
        """Raise for a task that cannot be run as it is declared.

        Raises:
            InvalidTask: Django refuses the task, or its function has ``yield``, so that a call runs nothing.
        """
        super().validate_task(task)
        try:
            refuse_generator(task.func, task.module_path)
        except ConfigurationError as exc:
            raise InvalidTask(str(exc)) from None

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Put a task, in the transaction that Django has open.

        Raises:
            PQError: The task could not be put.
        """
        self.validate_task(task)
        result = self.result(task, "", TaskResultStatus.READY, args, kwargs, enqueued_at=now())
        queue = self.pq[task.queue_name]
        what = {
            "task": task.module_path,
            "backend": self.alias,
            "args": result.args,
            "kwargs": result.kwargs,
            "priority": task.priority,
        }
        how: dict[str, Any] = {f"_{name}": value for name, value in self.call_options.items()}
        how["_schedule_at"] = task.run_after
        how["_expected_at"] = FIRST_EXPECTED - timedelta(days=task.priority)
        function = _ARUN if iscoroutinefunction(task.func) else _RUN
        job_id = queue.put_call(call_of(queue, function, (), {**what, **how}))
        object.__setattr__(result, "id", ResultId.of(task.queue_name, job_id))
        signals.task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """Return the known state of a task that was put.

        Raises:
            TaskResultDoesNotExist: The task never existed, or its result is not kept any more.
        """
        name, _, number = str(result_id).rpartition(":")
        if not name or not number.isdecimal() or len(number) > 18:
            raise TaskResultDoesNotExist(result_id)
        try:
            queue = self.pq.queue(name)  # not cached, because a result id may contain any queue's name
        except (InvalidName, UnknownSerializer) as exc:
            raise TaskResultDoesNotExist(result_id) from exc
        job_id: int = result_id.job_id if isinstance(result_id, ResultId) else int(number)
        try:
            job = run_sync(list_jobs.get_full_job(queue.engine, job_id, queue))
        except JobNotFound:
            job = None
        try:
            if job is not None and job.state != "done":
                return self._unfinished(result_id, job, queue.decode_row(job.id, job.serializer, job.raw))
            return self._finished(result_id, queue.result(job_id, timeout=0))
        # TypeError, LookupError: the id belongs to a job that is not one of Django's tasks
        except (JobNotFound, JobFailed, ResultTimeout, TypeError, LookupError) as exc:
            raise TaskResultDoesNotExist(result_id) from exc

    def check(self, **kwargs: Any) -> Iterable[CheckMessage]:
        """Return the faults of the backend's settings."""
        try:
            TaskOptions(**self.call_options)
            self.pq  # noqa: B018 - made here
        except PQError as exc:
            return [Error(f"TASKS[{self.alias!r}] cannot be used: {exc}", id="pqcore.E004")]
        return []

    def _unfinished(self, result_id: str, job: WholeJob, data: Mapping[str, Any]) -> Any:
        call = data["kwargs"]
        status = TaskResultStatus[_STATUS.get(job.state, "READY")]
        errors = []
        if job.error:
            errors = [base.TaskError(exception_class_path=job.error["type"], traceback=job.error["traceback"])]
        return self.result(
            self.task(call, job.queue, None if job.schedule_at is None else _plain(job.schedule_at)),
            result_id,
            status,
            call["args"],
            call["kwargs"],
            enqueued_at=_plain(job.enqueued_at),
            finished_at=_plain(job.finished_at),
            errors=errors,
            worker_ids=["unknown"] * job.attempts,
        )

    def _finished(self, result_id: str, kept: Mapping[str, Any]) -> Any:
        call = kept["call"]
        times = {name: datetime.fromisoformat(kept[name]) for name in ("enqueued_at", "started_at", "finished_at")}
        task = self.task(call, kept["queue"], None)
        ids = kept["worker_ids"]
        result = self.result(
            task, result_id, TaskResultStatus.SUCCESSFUL, call["args"], call["kwargs"], **times, worker_ids=ids
        )
        object.__setattr__(result, "last_attempted_at", result.started_at)
        object.__setattr__(result, "_return_value", kept["value"])
        return result

    def task(self, call: Mapping[str, Any], queue: str, run_after: datetime | None) -> Any:
        """Return the task that a job calls, with the options with which the task was put."""
        task = _find(call["task"])
        return task.using(priority=call["priority"], queue_name=queue, run_after=run_after, backend=self.alias)

    def result(
        self, task: Any, result_id: str, status: Any, args: Sequence[Any], kwargs: Mapping[str, Any], **known: Any
    ) -> Any:
        """Return a result; unknown values are None or empty."""
        nothing: dict[str, Any] = dict.fromkeys(("enqueued_at", "started_at", "finished_at", "last_attempted_at"))
        nothing |= {"errors": [], "worker_ids": []}
        given = {"task": task, "id": result_id, "status": status, "args": list(args), "kwargs": dict(kwargs)}
        return TaskResult(**given, backend=self.alias, **{**nothing, **known})


def run(job_id: int, /, **call: Any) -> dict[str, Any]:
    """Run a task that is a function, and return the record of its result.

    If a signal's receiver fails at the end, the task does not run again.
    """
    execution = _Execution(job_id, call)
    signals.task_started.send(execution.sender, task_result=execution.result)
    try:
        value = execution.result.task.call(*execution.arguments, **execution.result.kwargs)
        kept = execution.succeeded(value)
    except BaseException as exc:
        if execution.failed(exc):
            signals.task_finished.send_robust(execution.sender, task_result=execution.result)
        raise
    signals.task_finished.send_robust(execution.sender, task_result=execution.result)
    return kept


async def arun(job_id: int, /, **call: Any) -> dict[str, Any]:
    """Run a task that is a coroutine function."""
    execution = _Execution(job_id, call)
    await signals.task_started.asend(execution.sender, task_result=execution.result)
    try:
        value = await execution.result.task.acall(*execution.arguments, **execution.result.kwargs)
        kept = execution.succeeded(value)
    except BaseException as exc:
        if execution.failed(exc):
            await signals.task_finished.asend_robust(execution.sender, task_result=execution.result)
        raise
    await signals.task_finished.asend_robust(execution.sender, task_result=execution.result)
    return kept


class ResultNotJsonError(BaseException):
    """The task ran and returned a value that JSON cannot hold.

    By Django's rules the task has failed, and it does not run again.

    The class is not an `Exception`, because pqcore retries a job that raised an `Exception`.
    """


def queues_of_tasks(using: str) -> set[str]:
    """Return the queues that ``TASKS`` names for a table.

    Args:
        using: The alias of the table in ``PQCORE``.
    """
    return {name for backend in _backends_of(using) for name in backend.queues}


def may_use_any_queue(using: str) -> bool:
    """Return whether ``TASKS`` lets tasks be put into any queue of a table: ``QUEUES`` is empty.

    Args:
        using: The alias of the table in ``PQCORE``.
    """
    return any(not backend.queues for backend in _backends_of(using))


def _backends_of(using: str) -> list[PQCoreBackend]:
    if _ROOT is None:
        return []
    handler = importlib.import_module(_ROOT).task_backends
    return [
        backend
        for backend in map(handler.__getitem__, handler)
        if isinstance(backend, PQCoreBackend) and backend.options.get("using", "default") == using
    ]


class _Execution:
    """A running task, with the result for signals and for the task itself."""

    def __init__(self, job_id: int, call: Mapping[str, Any]) -> None:
        context = current()
        self._context, self._job, self._call = context, context.job, call
        backend = _backend(call["backend"])
        self.sender = type(backend)
        name = context.queue.name
        started = now()
        self.result = backend.result(
            backend.task(call, name, None),
            f"{name}:{job_id}",
            TaskResultStatus.RUNNING,
            call["args"],
            call["kwargs"],
            enqueued_at=_plain(self._job.enqueued_at),
            started_at=started,
            last_attempted_at=started,
            worker_ids=["unknown"] * (context.attempt - 1) + [f"{socket.gethostname()}:{os.getpid()}"],
        )
        self.arguments = list(self.result.args)
        if self.result.task.takes_context:
            self.arguments.insert(0, base.TaskContext(task_result=self.result))

    def succeeded(self, value: Any) -> dict[str, Any]:
        """Record that the function has returned a value, and return the record of its result."""
        result = self.result
        try:
            kept = _json.normalize_json(value)
        except Exception as exc:
            raise ResultNotJsonError(str(exc)) from exc
        self._end(TaskResultStatus.SUCCESSFUL)
        object.__setattr__(result, "_return_value", kept)
        times = {name: getattr(result, name).isoformat() for name in ("enqueued_at", "started_at", "finished_at")}
        queue, ids = result.task.queue_name, result.worker_ids
        return {"value": kept, "call": dict(self._call), "queue": queue, "worker_ids": ids, **times}

    def failed(self, error: BaseException) -> bool:
        """Record that the function raised; return whether the job has failed for good, as its runner decides."""
        failure = failure_of(self._context, error)
        if failure is None:
            return False
        data = self._job.decode()
        failures = self._job.failures + int(data.get("retried", 0))
        end = kind_after(_RUN.options, failures, int(data.get("max_retries", 0)), failure)
        if end in ("snooze", "drop"):
            return False
        details = describe_error(failure)
        self.result.errors.append(base.TaskError(exception_class_path=details["type"], traceback=details["traceback"]))
        if end == "retry":
            return False
        self._end(TaskResultStatus.FAILED)
        return True

    def _end(self, status: Any) -> None:
        object.__setattr__(self.result, "finished_at", now())
        object.__setattr__(self.result, "status", status)


def _backend(alias: str) -> Any:
    return _Absent() if _ROOT is None else importlib.import_module(_ROOT).task_backends[alias]


def _find(path: str) -> Any:
    """Import the task that a dotted path names.

    Raises:
        TypeError: The path does not name a task, so nothing is run.
    """
    found = import_string(path)
    if not isinstance(found, base.Task):
        raise TypeError(f"{path} is a {type(found).__qualname__}: only functions with @task are run")
    return found


def _plain(moment: datetime | None) -> datetime | None:
    return None if moment is None else datetime.fromisoformat(moment.isoformat())


_RUN: Task = TaskDeclarations().declare(run, TaskOptions(), queues=())
_ARUN: Task = TaskDeclarations().declare(arun, TaskOptions(), queues=())
