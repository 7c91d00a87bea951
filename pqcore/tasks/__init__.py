"""Functions as jobs, as in ``pq.tasks``: a call of a task puts a job, and a worker runs the function.

    from pqcore.tasks import PQ

    queue = PQ(dsn)["default"]

    @queue.task(max_retries=2, retry_in="10s")
    def eat(job_id, kind): ...

    eat("Cox") queue.work() # or, for many concurrently: pqcore worker module:queue

The `PQ` and `AsyncPQ` of this package keep pq's conventions: a function gets the job's id as its first argument, and
has no retries unless its declaration says so. `pqcore.PQ` and `pqcore.AsyncPQ` differ from these two classes only in
their conventions; see `PQ.task`.

A row names its function by path. The path is looked up among the functions declared with `Queue.task`. Other functions
are imported only from modules in ``trusted_modules``. So a row alone never decides what runs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqcore.put_options import After, Dedup
    from pqcore.tasks.async_queue import AsyncEnqueuer
    from pqcore.tasks.context import JobCancelled, JobContext, JobTimeout, current
    from pqcore.tasks.declaring import Call, Task, TaskOptions
    from pqcore.tasks.handles import AsyncHandle, Batch, Handle
    from pqcore.tasks.periodic import Periodic
    from pqcore.tasks.pq import PQ, AsyncPQ, AsyncQueue, Queue
    from pqcore.tasks.queue import Enqueuer
    from pqcore.tasks.registry import TaskDeclarations
    from pqcore.tasks.retry import Discard, Exponential, Fixed, Retry, RetryPolicy, Snooze

__all__ = [
    "PQ",
    "After",
    "AsyncEnqueuer",
    "AsyncHandle",
    "AsyncPQ",
    "AsyncQueue",
    "Batch",
    "Call",
    "Dedup",
    "Discard",
    "Enqueuer",
    "Exponential",
    "Fixed",
    "Handle",
    "JobCancelled",
    "JobContext",
    "JobTimeout",
    "Periodic",
    "Queue",
    "Retry",
    "RetryPolicy",
    "Snooze",
    "Task",
    "TaskDeclarations",
    "TaskOptions",
    "current",
]

# Names are imported on first use: `pqcore.queue` imports modules of this package, and `pqcore.tasks.pq` imports
# `pqcore.queue`.
_HOMES = {
    "After": "pqcore.put_options",
    "Dedup": "pqcore.put_options",
    "AsyncEnqueuer": "pqcore.tasks.async_queue",
    "JobCancelled": "pqcore.tasks.context",
    "JobContext": "pqcore.tasks.context",
    "JobTimeout": "pqcore.tasks.context",
    "current": "pqcore.tasks.context",
    "Call": "pqcore.tasks.declaring",
    "Task": "pqcore.tasks.declaring",
    "TaskOptions": "pqcore.tasks.declaring",
    "AsyncHandle": "pqcore.tasks.handles",
    "Batch": "pqcore.tasks.handles",
    "Handle": "pqcore.tasks.handles",
    "Periodic": "pqcore.tasks.periodic",
    "PQ": "pqcore.tasks.pq",
    "AsyncPQ": "pqcore.tasks.pq",
    "AsyncQueue": "pqcore.tasks.pq",
    "Queue": "pqcore.tasks.pq",
    "Enqueuer": "pqcore.tasks.queue",
    "TaskDeclarations": "pqcore.tasks.registry",
    "Discard": "pqcore.tasks.retry",
    "Exponential": "pqcore.tasks.retry",
    "Fixed": "pqcore.tasks.retry",
    "Retry": "pqcore.tasks.retry",
    "RetryPolicy": "pqcore.tasks.retry",
    "Snooze": "pqcore.tasks.retry",
}

if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'pqcore.tasks' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
