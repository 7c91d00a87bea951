"""Plugins' hooks for jobs: which are called for a run, and with which event."""

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
        queue: The job's queue, which has the tasks, too.
        job: The job.
        run: The call of its function, once the job is decoded.
        context: What the function sees of the job, once it has begun.
        started_at: When the attempt began, by the performance counter; 0 before.
        duration: Seconds that the function took, once it has ended.
        error: What the function raised.
        event: The event that plugins get, once there is one.
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
    """Calls the hooks of plugins for jobs; costs next to nothing where no plugin has one.

    Args:
        hooks: The hooks that any plugin implements.
        blocking: Whether the hooks are called by a coroutine that must not suspend.

    Attributes:
        hooks: The hooks that any plugin implements.
    """

    def __init__(self, hooks: Collection[str], *, blocking: bool = False) -> None:
        self.hooks = frozenset(hooks)
        self._blocking = blocking

    async def call(self, hook: JobHook, attempt: Attempt, outcome: Outcome | None = None) -> None:
        """Call a hook, if any plugin implements it.

        Args:
            hook: The hook.
            attempt: The attempt.
            outcome: How the attempt ended, if it has.
        """
        if hook in self.hooks:
            await call_hook(hook, self.event(attempt, outcome), blocking=self._blocking)

    async def call_for_outcome(
        self, attempt: Attempt, outcome: Outcome, *, lost: bool = False, hook: JobHook | None = None
    ) -> None:
        """Call the hook of an outcome that is stored, or of a lease that was lost.

        Of a job whose function was not called plugins hear only if it is gone, or needs another worker.

        Args:
            attempt: The attempt.
            outcome: The outcome, as it is stored.
            lost: Whether the outcome could not be stored, as another worker has the job.
            hook: The hook to call instead of that of the outcome.
        """
        if attempt.run is not None or outcome.kind in ("dead", "drop") or outcome.reason in PUT_OFF:
            chosen = "pqcore_job_lost" if lost else hook or OUTCOME_HOOKS[outcome.kind]
            await self.call(chosen, attempt, outcome)

    def around(self, attempt: Attempt) -> AbstractContextManager[None]:
        """Return the context managers that plugins put around a function."""
        if AROUND_RUN not in self.hooks:
            return nullcontext()
        return run_wrapped(AROUND_RUN, self.event(attempt))

    def event(self, attempt: Attempt, outcome: Outcome | None = None) -> JobEvent:
        """Return the event of an attempt: the same object each time, brought up to date."""
        run, event = attempt.run, attempt.event
        ago = time.perf_counter() - attempt.started_at if attempt.started_at else 0.0
        if event is None:
            path = path_of(attempt.job, quickly=True) if run is None else run.task.path
            event = attempt.event = JobEvent(attempt.queue.name, attempt.job, path, seconds_waited(attempt.job, ago))
        event.error = attempt.error
        event.duration = attempt.duration
        if outcome is not None:
            event.delay, event.reason = outcome.delay, outcome.reason or REASONS.get(outcome.kind, "")
            if run is not None and not event.duration:  # given up: its thread goes on
                event.duration = ago
        return event


NO_EVENTS = JobEvents(())
"""Calls no hook."""


def find_job_events(*, blocking: bool = False) -> JobEvents:
    """Return the events for the plugins that are registered now.

    Args:
        blocking: Whether the hooks are called by a coroutine that must not suspend.
    """
    if not plugins.has_impl(*_HOOKS):
        return NO_EVENTS
    return JobEvents([hook for hook in _HOOKS if plugins.has_impl(hook)], blocking=blocking)
