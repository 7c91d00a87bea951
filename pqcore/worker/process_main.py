"""The main loop of a process that runs a worker's jobs: it receives a call, makes the call, and answers."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from pqcore.job import BaseJob
from pqcore.operations.error_details import remove_outer_frames
from pqcore.rows import JobRow
from pqcore.settings import QueueSettings
from pqcore.tasks.context import JobContext, enter_job, leave_job
from pqcore.tasks.conventions import First
from pqcore.tasks.declaring import Task
from pqcore.tasks.outcomes import Run, refuse_unrun, stores_result
from pqcore.tasks.registry import TaskDeclarations
from pqcore.worker.parent_death import end_with_parent
from pqcore.worker.recycling import memory_in_use

PRELOADED_MODULES: list[str] = []
"""Modules that a worker's processes import before the modules of functions, for example to set up a framework."""
CALL_CONTEXTS: list[Callable[[], AbstractContextManager[object]]] = []
"""Context managers to enter around each call in a process; modules of `PRELOADED_MODULES` add theirs."""


@dataclass(frozen=True)
class Request:
    """A call of a function, and its job.

    Attributes:
        path: The name of the task.
        location: Where its function can be imported from.
        first: The argument that the function gets before the arguments of the call.
        args: The positional arguments, after the first.
        kwargs: The keyword arguments.
        queue: The queue's name, table and serializer.
        kind: The class of the job.
        row: The job's row.
    """

    path: str
    location: str
    first: First
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    queue: tuple[str, Any, str]
    kind: type[BaseJob]
    row: JobRow

    @classmethod
    def of(cls, run: Run) -> Request:
        """Return the request for a call."""
        queue = run.job.settings
        names = (queue.name, queue.table, queue.serializer_name)
        call = (run.task.path, run.task.location, run.task.first, tuple(run.args), dict(run.kwargs))
        return cls(*call, names, type(run.job), run.job.as_row())


class _Context(JobContext):
    """The context of a job in a process; the worker stops the job by killing the process."""

    def __init__(self, queue: QueueSettings, job: BaseJob, pipe: Connection) -> None:
        super().__init__(queue, job, leaves=lambda _: False)  # any exception of the function is a failure of the job
        self._pipe = pipe

    def progress(self, value: Any) -> None:
        super().progress(value)
        self._pipe.send_bytes(pickle.dumps(("progress", self.take_progress(), None)))

    def _note_finished(self, *, finished: bool) -> None:
        super()._note_finished(finished=finished)
        self._pipe.send_bytes(pickle.dumps(("finished", finished, None)))


def serve(pipe: Connection, first: Sequence[str] = (), max_memory: int | None = None) -> None:
    """Make calls until the worker closes the pipe, or ends.

    Args:
        pipe: The connection to the worker.
        first: The first message, with the worker's `PRELOADED_MODULES`.
        max_memory: Bytes of memory above which this process says so to the worker before it sends an answer; None for
            no limit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal, or systemd, may send signals to all processes, but the worker alone decides when jobs stop.
        # SIG_IGN is not used, because a job's child processes would inherit it.
        signal.signal(number, lambda *_: None)
    if (worker := multiprocessing.parent_process()) is not None:
        end_with_parent(worker.sentinel)  # otherwise the job would go on while another worker runs it again
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        answer = _answer(request, pipe, first)
        if max_memory is not None and (memory := memory_in_use()) > max_memory:
            pipe.send_bytes(pickle.dumps(("memory", memory, None)))
        pipe.send_bytes(answer)


def _answer(raw: bytes, pipe: Connection, first: Sequence[str]) -> bytes:
    try:
        for module in first:
            importlib.import_module(module)
        request: Request = pickle.loads(raw)  # noqa: S301 - from the worker
        function, queue = _find(request)
        context = _Context(queue, request.kind(queue, request.row, leased=True), pipe)
        before = enter_job(context)
        try:
            with ExitStack() as around:
                for each in CALL_CONTEXTS:
                    around.enter_context(each())
                task = Task(request.path, function, first=request.first)
                result = task.call(context.job, request.args, request.kwargs)
                if inspect.isawaitable(result):  # from a function without `async def`
                    result = asyncio.run(_awaited(result))
            refuse_unrun(result)  # this check happens here, because such a result cannot be pickled either
        finally:
            leave_job(before)
        return _returned(result if stores_result(context.job) else None, finished=context.finished)
    except BaseException as exc:  # noqa: BLE001 - any exception is the job's failure
        return _raised(exc)


def _returned(result: Any, *, finished: bool) -> bytes:
    try:
        return pickle.dumps(("done", pickle.dumps(result), finished))
    except BaseException as exc:  # noqa: BLE001 - an object's own code pickles it
        kind = f"{type(result).__module__}.{type(result).__qualname__}"
        return pickle.dumps(("unsent", f"the function returned a {kind}, which cannot be pickled: {exc}", finished))


async def _awaited(result: Any) -> Any:
    return await result


def _raised(error: BaseException) -> bytes:
    remove_outer_frames(error)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        answer = pickle.dumps(("raised", error, text))
        pickle.loads(answer)  # noqa: S301 - many exceptions can be pickled, and cannot be unpickled
    except Exception:  # noqa: BLE001 - unpickling may raise anything
        instead = RuntimeError(f"{type(error).__module__}.{type(error).__qualname__}: {error}")
        return pickle.dumps(("raised", instead, text))
    return answer


def _find(request: Request) -> tuple[Any, QueueSettings]:
    """Return the function and its queue: the queue as it was declared, if this process has the declaration."""
    location = request.location
    module = location
    while "." in module:
        module = module.rpartition(".")[0]
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
            break
    found: Any = None
    with suppress(AttributeError):
        found = importlib.import_module(module)
        for name in location.removeprefix(module + ".").split("."):
            found = getattr(found, name)
    queue = getattr(found, "queue", None)
    function = TaskDeclarations.handler_registry.get(request.path) or getattr(found, "__wrapped__", found)
    name, table, serializer = request.queue
    if not isinstance(queue, QueueSettings) or queue.name != name:
        queue = QueueSettings(name, table, serializer, {})
    if function is None:
        raise LookupError(
            f"{location} cannot be imported in a process: it must be a function at the top level of a module"
        )
    return function, queue
