"""A transactional queue for PostgreSQL, over the driver you use.

Start with `PQ`, or `AsyncPQ`:

>>> pq = PQ("postgresql://localhost/app")
>>> pq.create()
>>> pq["apples"].put({"kind": "Cox"})
1
>>> pq["apples"].get().data
{'kind': 'Cox'}
"""

from pqcore.aio import AsyncPQ, AsyncQueue, AsyncQueueIterator
from pqcore.errors import PQError
from pqcore.hookspecs import hookimpl
from pqcore.job import AsyncJob, Job
from pqcore.operations.managing import QueueStats
from pqcore.operations.results import JobInfo
from pqcore.options import Dedup
from pqcore.queue import PQ, Queue, QueueIterator
from pqcore.settings import logger

__version__ = "0.1.0"
__all__ = [
    "PQ",
    "AsyncJob",
    "AsyncPQ",
    "AsyncQueue",
    "AsyncQueueIterator",
    "Dedup",
    "Job",
    "JobInfo",
    "PQError",
    "Queue",
    "QueueIterator",
    "QueueStats",
    "hookimpl",
    "logger",
]
