"""What plugins are told of: jobs put, started, and how they ended.

With no plugin that listens, all of it costs a look at an empty list.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from pqcore.db.interrupts import is_from_outside
from pqcore.plugins import plugins

if TYPE_CHECKING:
    from pqcore.job import BaseJob

logger = logging.getLogger("pqcore")

JobHook: TypeAlias = Literal[
    "pqcore_job_started",
    "pqcore_job_succeeded",
    "pqcore_job_failed",
    "pqcore_job_retried",
    "pqcore_job_dead",
    "pqcore_job_dropped",
    "pqcore_job_lost",
]
JOB_HOOKS: tuple[JobHook, ...] = get_args(JobHook)
OUTCOME_HOOKS: dict[str, JobHook] = {
    "done": "pqcore_job_succeeded",
    "retry": "pqcore_job_retried",
    "snooze": "pqcore_job_retried",
    "crash": "pqcore_job_retried",
    "dead": "pqcore_job_dead",
    "drop": "pqcore_job_dropped",
}
"""The hook that is called after each kind of `Outcome`."""
FAILURES = ("retry", "crash", "dead")
"""The ends that follow a failure."""
REASONS = {"retry": "failed", "snooze": "snoozed"}
"""The reasons of ends that have none else."""


@dataclass
class PutEvent:
    """Jobs that are put, together.

    Attributes:
        queue: The queue's name.
        data: The data of the job; of `put_many`, the iterable that it was given; of calls put
            together, what is stored of them.
        task: The path of the function, if the job is a call of one, put by itself.
        headers: The headers of the jobs; what a plugin adds travels with them, and with what
            follows them in a chain or batch.
        ids: Their ids, once they are put; maybe not yet committed, if within a transaction.
        many: Whether they were put together, by `put_many`, `put_calls` or `batch`.
    """

    queue: str
    data: Any
    task: str | None
    headers: dict[str, Any]
    ids: list[int] = field(default_factory=list)
    many: bool = False


@dataclass
class JobEvent:
    """A job that a worker runs, or has run: one object for all that is told of one run.

    Attributes:
        queue: The queue's name.
        job: The job.
        task: The path of its function; empty if the job is not a call.
        waited: Seconds from when it was due until it was taken, by this machine's clock.
        duration: Seconds that the function took; 0 before.
        error: What it raised, if it did.
        delay: Seconds until it is run again, if it was retried; None for at once.
        reason: Why it is retried (``failed``, ``crashed``, ``snoozed``, ``shutdown``; ``unknown`` or
            ``unreadable`` if this worker does not know its function or cannot read its data), a dead
            letter (`DeadLetter.reason`), or was dropped (``discarded``, ``cancelled``, ``failed``).
        notes: What plugins keep for themselves until the run's next hook, each under its own name.
    """

    queue: str
    job: BaseJob
    task: str
    waited: float = 0.0
    duration: float = 0.0
    error: BaseException | None = None
    delay: float | None = None
    reason: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def attempt(self) -> int:
        """1 for the first time that the job is run, 2 for the second..."""
        return self.job.attempts - self.job.excused


@dataclass
class ServerEvent:
    """What a worker found when it looked at its server, as it does every half minute, more or less.

    Attributes:
        queue: The name of the queue for which it looked.
        notifications: How full the server's queue of notifications is, from 0 to 1. When it is full, puts and ends
            that notify fail.
    """

    queue: str
    notifications: float


def _each(hook: str, event: PutEvent | JobEvent | ServerEvent) -> Iterator[Any]:
    """What plugins return, one after the other; one that raises is logged, and stands in no other's way."""
    for plugin in reversed(getattr(plugins.manager.hook, hook).get_hookimpls()):
        try:
            result = plugin.function(*[event for _ in plugin.argnames])
        except BaseException as exc:  # a plugin is not to stop what it watches
            if is_from_outside(exc):
                raise
            logger.exception("plugin %s failed in %s", plugin.plugin_name, hook)
            continue
        if result is not None:
            yield result


class _Watched:
    """The end of a plugin's context manager, which can neither raise nor swallow an exception."""

    def __init__(self, hook: str, manager: AbstractContextManager[object]) -> None:
        self._hook = hook
        self._manager = manager

    def __call__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._manager.__exit__(kind, raised, traceback)
        except BaseException as exc:
            if is_from_outside(exc) and exc is not raised:
                raise
            if exc is not raised:
                logger.exception("a plugin failed at the end of %s", self._hook)


@contextmanager
def run_wrapped(hook: Literal["pqcore_around_put", "pqcore_around_run"], event: PutEvent | JobEvent) -> Iterator[None]:
    """Enter the context managers that plugins give; one that fails to open is logged, and left out."""
    with ExitStack() as stack:
        for manager in _each(hook, event):
            try:
                manager.__enter__()
            except BaseException as exc:
                if is_from_outside(exc):
                    raise
                logger.exception("a plugin failed in %s", hook)
            else:
                stack.push(_Watched(hook, manager))
        yield


async def call_hook(hook: str, event: PutEvent | JobEvent | ServerEvent, *, blocking: bool = False) -> None:
    """Call a hook; what it returns is awaited if it can be.  A plugin's exception is logged, and no more.

    Args:
        hook: Its name.
        event: What it is told.
        blocking: Whether it is told by a coroutine that must not suspend: an event loop is made then.
    """
    for result in _each(hook, event):
        if not inspect.isawaitable(result):
            continue
        try:
            if blocking:
                _run(result)
            else:
                await result
        except asyncio.CancelledError:
            raise  # of the task that tells
        except BaseException as exc:
            if is_from_outside(exc):
                raise
            logger.exception("a plugin failed in %s", hook)


def _run(awaitable: Any) -> None:
    async def wait() -> None:
        await awaitable

    coroutine = wait()
    try:
        asyncio.run(coroutine)
    finally:  # in a running loop it was not even begun
        coroutine.close()
        if inspect.iscoroutine(awaitable):
            awaitable.close()
