"""Telling plugins of jobs that are run."""

from __future__ import annotations

import time

from pqcore.events import JOB_HOOKS, REASONS, JobEvent, JobHook
from pqcore.hook_dispatch import call_hook
from pqcore.operations.complete import Outcome
from pqcore.plugins import plugins
from pqcore.tasks.outcomes import path_of, waited
from pqcore.worker.state import ActiveJob, QueueState


class JobEvents:
    """Tells plugins; where none listens, it does nothing.

    Attributes:
        surrounds: Whether any is around functions when they run.
    """

    def __init__(self) -> None:
        self._heard = {hook for hook in JOB_HOOKS if plugins.has_impl(hook)}
        self.surrounds = plugins.has_impl("pqcore_around_run")

    def hears(self, hook: JobHook) -> bool:
        """Whether any plugin wants to be told."""
        return hook in self._heard

    async def tell(
        self, hook: JobHook, queue_state: QueueState, held: ActiveJob, outcome: Outcome | None = None
    ) -> None:
        """Tell them."""
        if hook in self._heard:
            await call_hook(hook, self.event(queue_state, held, outcome))

    def event(self, queue_state: QueueState, held: ActiveJob, outcome: Outcome | None = None) -> JobEvent:
        """What plugins are told of a run: the same object each time."""
        ago = time.perf_counter() - held.began if held.began else 0.0
        if held.event is None:
            path = path_of(held.job, quickly=True) if held.run is None else held.run.task.path
            held.event = JobEvent(queue_state.queue.name, held.job, path, waited(held.job, ago))
        event = held.event
        event.error = held.error
        event.duration = held.took or (0.0 if outcome is None else ago)
        if outcome is not None:
            event.delay, event.reason = outcome.delay, outcome.reason or REASONS.get(outcome.kind, "")
        return event
