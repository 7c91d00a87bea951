"""Running jobs here and now, one at a time, as a worker would; for `pqcore.testing.jobs`."""

from __future__ import annotations

import asyncio
import copy
import inspect
import sys
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pqcore import queue as core
from pqcore.db.interrupts import leaves
from pqcore.errors import ConfigurationError, PQError, ResultNotStored, UnknownTask
from pqcore.events import FAILURES, OUTCOME_HOOKS, REASONS, JobEvent, JobHook
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.job import AsyncJob, BaseJob, Job
from pqcore.operations import batch_counts, complete, fetch, results
from pqcore.operations.complete import Outcome, OutcomeKind
from pqcore.tasks import Retry
from pqcore.tasks.context import JobContext, enter_job, leave_job
from pqcore.tasks.fetched_jobs import given_up_jobs
from pqcore.tasks.outcomes import Run, as_failure, caller, completed, conclude, path_of, prepare, waited
from pqcore.tasks.registry import TaskDeclarations
from pqcore.testing.matching import is_call

if TYPE_CHECKING:
    from pqcore.db.engine import Engine

T = TypeVar("T")

LEASE = 86_400.0
"""Seconds for which a job is held: it is not to be lost in a debugger."""
MOST_RUN = 1_000
"""Jobs that are run, at most, unless told otherwise: one that puts itself again would never end."""


@dataclass(frozen=True)
class Ran:
    """A job that was run.

    Attributes:
        id: Its id.
        queue: The name of its queue.
        task: The path of the function.
        args: What it was called with, after the job's id.
        kwargs: Likewise.
        result: What it returned.
        outcome: How the job ended: ``done``, ``retry``, ``snooze``, ``dead`` or ``drop``.
        error: What the function raised.
        reason: Why the job is dead or was dropped; see `pqcore.dead_letters.DeadLetter`.
        attempt: 1 for the first time that the job was run, 2 for the second...
    """

    id: int
    queue: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    outcome: OutcomeKind = "done"
    error: BaseException | None = None
    reason: str = ""
    attempt: int = 1


async def drain(queues: Sequence[Any], *, raise_errors: bool, at_most: int, suspends: bool) -> list[Ran]:
    """Run what is due; see `Jobs.drain`.

    Args:
        queues: Of these.
        raise_errors: As there.
        at_most: As there.
        suspends: Whether this is awaited in an event loop, and functions may be, too.
    """
    for queue in queues:
        if not isinstance(queue, TaskDeclarations):
            msg = f"{queue!r} has no tasks to run: make it with pqcore.tasks.PQ or AsyncPQ"
            raise ConfigurationError(msg)
    ran: list[Ran] = []
    for queue in queues:
        await complete.follow_given_up(queue.engine, queue, given_up_jobs(queue))
    while True:
        for queue in queues:
            job = await _next(queue)
            if job is not None:
                break
        else:
            if sum([await batch_counts.end_lost(queue.engine, queue) for queue in queues]):
                continue
            return ran
        performance = _Performance(queue, job, suspends=suspends)
        if len(ran) >= at_most:
            await performance.give_back()
            msg = f"{at_most} jobs were run, and there are more, as of {path_of(job)}: does one put itself again?"
            raise PQError(msg)
        ran.append(await performance.run(raise_errors=raise_errors))


async def _next(queue: Any) -> BaseJob | None:
    """Lease the next job that is due, whatever the rate."""
    settings = queue
    if queue.rate is not None:
        settings = copy.copy(queue)
        settings.rate = None
    while True:
        rows, wake_in = await fetch.look(queue.engine, settings, 1, LEASE)
        if rows:
            kind: type[BaseJob] = Job if isinstance(queue, core.Queue) else AsyncJob
            return kind(queue, rows[0], leased=True)
        if wake_in != 0.0:  # else it was parked, and there may be others behind it
            return None


class _Performance:
    """One run of one job."""

    def __init__(self, queue: Any, job: BaseJob, *, suspends: bool) -> None:
        self._queue = queue
        self._engine: Engine = queue.engine
        self._job = job
        self._suspends = suspends
        self._event = JobEvent(queue.name, job, path_of(job), waited(job))

    async def run(self, *, raise_errors: bool) -> Ran:
        run = prepare(self._queue, self._queue, self._job)
        if isinstance(run, Outcome):
            await self._end(run)
            if raise_errors:
                self._say_why(run)
            return self._ran(run, (), {})
        if not self._suspends and run.task.is_coroutine and in_loop():
            await self.give_back()
            msg = f"{run.task.path} is to be awaited, within an event loop: await jobs.adrain(queue)"
            raise ConfigurationError(msg)
        outcome = await self._outcome(run)
        await self._end(outcome)
        error = self._event.error
        if raise_errors and outcome.unkept is not None:
            raise ResultNotStored(f"the result cannot be stored: {outcome.unkept['message']}", outcome.unkept)
        meant = isinstance(error, Retry) and outcome.kind == "retry"
        if error is not None and raise_errors and outcome.kind in FAILURES and not meant:
            raise error
        return self._ran(outcome, tuple(run.args), dict(run.kwargs))

    async def give_back(self) -> None:
        """Put the job back to its place: it was not to blame."""
        await complete.finish(self._engine, self._queue, [Outcome(self._job, "snooze")])

    async def _outcome(self, run: Run) -> Outcome:
        job, queue = self._job, self._queue
        context = JobContext(queue, job)
        token = enter_job(context)
        began = time.perf_counter()
        try:
            await self._tell("pqcore_job_started")
            with run_wrapped("pqcore_around_run", self._event):
                result = await self._call(run)
            outcome = completed(queue, job, result, finished=context.finished)
        except BaseException as exc:
            if leaves(exc) or _is_the_tests(exc, suspends=self._suspends):
                await self.give_back()
                raise
            self._event.error = as_failure(exc)
            outcome = conclude(queue, run, self._event.error)
        finally:
            self._event.duration = time.perf_counter() - began
            leave_job(token)
        if (progress := context.take_progress()) is not None:
            await results.report(self._engine, queue, job, progress)
        return outcome

    async def _call(self, run: Run) -> Any:
        result = caller(run)()
        if not inspect.isawaitable(result):
            return result
        return await result if self._suspends else asyncio.run(_awaited(result))

    async def _end(self, outcome: Outcome) -> None:
        self._event.delay, self._event.reason = outcome.delay, outcome.reason or REASONS.get(outcome.kind, "")
        if self._event.error is not None and outcome.kind in FAILURES:
            await self._tell("pqcore_job_failed")
        ended = await complete.finish_one(self._engine, self._queue, outcome)
        hook = "pqcore_job_lost" if ended is None else OUTCOME_HOOKS[ended.kind]
        await self._tell(hook)

    async def _tell(self, hook: JobHook) -> None:
        await call_hook(hook, self._event, blocking=not self._suspends)

    def _say_why(self, outcome: Outcome) -> None:
        """Raise what kept the job from being run, if it is a mistake."""
        if outcome.reason == "unknown":
            self._queue.find_task(path_of(self._job))
        elif outcome.reason == "unreadable":
            self._job.decode()
        elif outcome.reason == "invalid":
            data = self._job.decode()
            if not is_call(data):
                msg = f"job {self._job.id} of queue {self._queue.name!r} is no call of a function: {data!r}"
                raise UnknownTask(msg)

    def _ran(self, outcome: Outcome, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Ran:
        event = self._event
        return Ran(
            self._job.id,
            event.queue,
            event.task,
            args,
            kwargs,
            outcome.result,
            outcome.kind,
            event.error,
            outcome.reason,
            event.attempt,
        )


def _is_the_tests(error: BaseException, *, suspends: bool) -> bool:
    """Whether an exception is meant for the test: `pytest.fail`, or that the test's own task is cancelled."""
    if suspends and isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return sys.version_info < (3, 11) or (task is not None and task.cancelling() > 0)
    return any(kind.__module__ == "_pytest.outcomes" for kind in type(error).__mro__)


async def _awaited(result: Awaitable[T]) -> T:
    return await result


def in_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None
