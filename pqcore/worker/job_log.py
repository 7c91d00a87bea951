"""The line that a worker logs for each attempt to run a job, if the worker was told to log runs."""

from __future__ import annotations

import logging

from pqcore.operations.job_outcome import Outcome
from pqcore.tasks.job_events import Attempt, JobEvents

logger = logging.getLogger("pqcore.worker.jobs")


def log_end(events: JobEvents, attempt: Attempt, outcome: Outcome | None) -> None:
    """Log how an attempt ended: the job, its task, the outcome and the seconds that the function took.

    Args:
        events: The object that has the event of the attempt.
        attempt: The attempt.
        outcome: The stored outcome; None if the lease was lost.
    """
    event = events.event(attempt, outcome)
    if outcome is None:
        ended = "lost"
    elif outcome.kind == "done":
        ended = "done"
    elif outcome.kind == "dead":
        ended = f"dead, {event.reason}"
    else:
        ended = event.reason if event.delay is None else f"{event.reason}, again in {event.delay:.1f} s"
    task = event.task or "no task"
    logger.info("job %d of %r (%s): %s, %.3f s", event.job.id, event.queue, task, ended, event.duration)
