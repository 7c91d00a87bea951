"""Calling plugins' hooks for a job's run, with the right event."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from pqcore.events import JOB_HOOKS, OUTCOME_HOOKS, REASONS, JobEvent, JobHook
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.job import BaseJob
from pqcore.operations.job_outcome import PUT_OFF, Outcome
from pqcore.plugins import plugins
from pqcore.tasks.context import JobContext
from pqcore.tasks.outcomes import Run, path_of, seconds_waited

AROUND_RUN: Literal["pqcore_around_run"] = "pqcore_around_run"
_HOOKS = (*JOB_HOOKS, AROUND_RUN)


@dataclass(eq=False, slots=True)
class Attempt:
    """One attempt to run a job.

    Attributes:
        queue: The job's queue, which also has the tasks.
        job: The job.
        run: The call of the job's function, after the job was decoded.
        context: The context that the function sees, after it has begun.
        started_at: When the attempt began, by the performance counter; 0 before.
        duration: Seconds that the function took, after it has ended.
        error: The exception of the function.
        event: The event for plugins, after it was first needed.
    """

    queue: Any
    job: BaseJob
    run: Run | None = None
    context: JobContext | None = None
    started_at: float = 0.0
    duration: float = 0.0
    error: BaseException | None = None
    event: JobEvent | None = None


class JobEvents:
    """A caller of plugins' hooks for jobs; if no plugin has a hook, its calls cost almost nothing.

    Args:
        hooks: The hooks that any plugin implements.
        blocking: Whether the calling coroutine must not suspend.
        logs_ends: Whether a worker logs a line for each attempt that has ended.

    Attributes:
        hooks: The hooks that any plugin implements.
        logs_ends: Whether a worker logs a line for each attempt that has ended.
        needs_ends: Whether a hook or the log needs an attempt after the attempt has ended.
    """

    def __init__(self, hooks: Collection[str], *, blocking: bool = False, logs_ends: bool = False) -> None:
        self.hooks = frozenset(hooks)
        self._blocking = blocking
        self.logs_ends = logs_ends
        self.needs_ends = logs_ends or bool(self.hooks)

    async def call(self, hook: JobHook, attempt: Attempt, outcome: Outcome | None = None) -> None:
        """Call a hook, if any plugin implements it.

        Args:
            hook: The hook.
            attempt: The attempt.
            outcome: The outcome of the attempt, after it has ended.
        """
        if hook in self.hooks:
            await call_hook(hook, self.event(attempt, outcome), blocking=self._blocking)

    async def call_for_outcome(
        self, attempt: Attempt, outcome: Outcome, *, lost: bool = False, hook: JobHook | None = None
    ) -> None:
        """Call the hook for a stored outcome, or for a lost lease.

        If the job's function was not called, plugins hear only of jobs that were ended, or that another worker must
        run.

        Args:
            attempt: The attempt.
            outcome: The outcome that was stored.
            lost: Whether the outcome could not be stored, because another worker has the job.
            hook: The hook to call in place of the outcome's own hook.
        """
        if attempt.run is not None or outcome.kind in ("dead", "drop") or outcome.reason in PUT_OFF:
            chosen = "pqcore_job_lost" if lost else hook or OUTCOME_HOOKS[outcome.kind]
            await self.call(chosen, attempt, outcome)

    def around(self, attempt: Attempt) -> AbstractContextManager[None]:
        """Return the context managers that plugins want around a function."""
        if AROUND_RUN not in self.hooks:
            return nullcontext()
        return run_wrapped(AROUND_RUN, self.event(attempt))

    def event(self, attempt: Attempt, outcome: Outcome | None = None) -> JobEvent:
        """Return the event of an attempt: always the same object, brought up to date."""
        run, event = attempt.run, attempt.event
        ago = time.perf_counter() - attempt.started_at if attempt.started_at else 0.0
        if event is None:
            path = path_of(attempt.job, quickly=True) if run is None else run.task.path
            event = attempt.event = JobEvent(attempt.queue.name, attempt.job, path, seconds_waited(attempt.job, ago))
        event.error = attempt.error
        event.duration = attempt.duration
        if outcome is not None:
            event.delay, event.reason = outcome.delay, outcome.reason or REASONS.get(outcome.kind, "")
            if run is not None and not event.duration:  # the attempt was given up, but the function's thread continues
                event.duration = ago
        return event


NO_EVENTS = JobEvents(())
"""A `JobEvents` that calls no hook."""


def find_job_events(*, blocking: bool = False, logs_ends: bool = False) -> JobEvents:
    """Return the `JobEvents` for the plugins that are registered now; see `JobEvents` for the arguments."""
    if not logs_ends and not plugins.has_impl(*_HOOKS):
        return NO_EVENTS
    hooks = [hook for hook in _HOOKS if plugins.has_impl(hook)]
    return JobEvents(hooks, blocking=blocking, logs_ends=logs_ends)
