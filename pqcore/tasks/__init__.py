"""Functions as jobs, as in ``pq.tasks``: put by calling them, run by a worker.

    from pqcore.tasks import PQ

    queue = PQ(dsn)["default"]

    @queue.task(max_retries=2, retry_in="10s")
    def eat(job_id, kind): ...

    eat("Cox")
    queue.work()  # or, for many at once: pqcore worker module:queue

A row names its function by path.  It is looked up among the functions declared
with `Queue.task`, and imported only if it was declared once, or lies in a module
listed in ``trusted_modules``: a row alone never decides what is run.
"""

from pqcore.put_options import Dedup
from pqcore.tasks.async_queue import AsyncEnqueuer, AsyncPQ, AsyncQueue
from pqcore.tasks.context import JobCancelled, JobContext, JobTimeout, current
from pqcore.tasks.declaring import Call, Task, TaskOptions
from pqcore.tasks.handles import AsyncHandle, Batch, Handle
from pqcore.tasks.periodic import Periodic
from pqcore.tasks.queue import PQ, Enqueuer, Queue
from pqcore.tasks.registry import TaskDeclarations
from pqcore.tasks.retry import Discard, Exponential, Fixed, Retry, RetryPolicy, Snooze

__all__ = [
    "PQ",
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
