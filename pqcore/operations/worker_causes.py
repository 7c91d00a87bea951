"""The causes for which workers do not take a job, in words; see `pqcore.operations.causes`."""

from __future__ import annotations

from collections.abc import Sequence

from pqcore.operations.explanation import SHOWN, Cause, named


def no_worker(queue: str) -> Cause:
    """Return the `Cause` for a job whose queue has no worker that is alive."""
    return Cause(
        "no_worker",
        f"No worker of queue {queue!r} has been seen within the last minute.",
        "Run one, as in: pqcore worker module:queue.",
    )


def no_worker_of_task(queue: str, task: str, workers: tuple[str, ...]) -> Cause:
    """Return the `Cause` for a job whose function is unknown to all workers that are alive."""
    return Cause(
        "no_worker_of_task",
        f"None of the {len(workers)} workers of queue {queue!r} knows the function {task!r}.",
        "Run a worker whose program declares it with @queue.task().",
        workers=workers,
    )


def workers_quiet(queue: str, workers: tuple[str, ...]) -> Cause:
    """Return the `Cause` for a job whose workers were all told to take no more jobs."""
    return Cause(
        "workers_quiet",
        f"All workers of queue {queue!r} that know its function were told to take no more jobs.",
        f"Have one take jobs again, as in: pqcore quiet --end {workers[0]}; or run another worker.",
        workers=workers,
    )


def workers_busy(slots: int, jobs: Sequence[int], workers: tuple[str, ...]) -> Cause:
    """Return the `Cause` for a job for which no worker has a free slot."""
    return Cause(
        "workers_busy",
        f"The workers that know its function have {slots} slots, and {named(jobs)} have a lease.",
        "Wait until one of them ends, or run another worker, or run the workers with more concurrency.",
        jobs=tuple(jobs[:SHOWN]),
        workers=workers,
    )
