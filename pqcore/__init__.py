"""A transactional queue for PostgreSQL, over the driver you use.

Start with `PQ`, or `AsyncPQ`:

>>> pq = PQ("postgresql://localhost/app")
>>> pq.create()
>>> pq["apples"].put({"kind": "Cox"})
1
>>> pq["apples"].get().data
{'kind': 'Cox'}
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqcore.async_queue import AsyncPQ, AsyncQueue, AsyncQueueIterator
    from pqcore.errors import PQError
    from pqcore.hookspecs import hookimpl
    from pqcore.job import AsyncJob, Job
    from pqcore.operations.admin import QueueStats
    from pqcore.operations.attempts import PastAttempt
    from pqcore.operations.encodings import Encoding
    from pqcore.operations.expiry import Expiry
    from pqcore.operations.explanation import Cause, Explanation
    from pqcore.operations.limits import LimitUsage
    from pqcore.operations.list_jobs import StoredJob
    from pqcore.operations.reencode import Reencoded
    from pqcore.operations.results import JobInfo
    from pqcore.operations.rules import Rule
    from pqcore.operations.schedules import Schedule
    from pqcore.operations.worker_registry import RunningJob, WorkerInfo
    from pqcore.put_options import After, Dedup, NewJob
    from pqcore.queue import PQ, Queue, QueueIterator
    from pqcore.settings import logger

__version__ = "0.1.0"
__all__ = [
    "PQ",
    "After",
    "AsyncJob",
    "AsyncPQ",
    "AsyncQueue",
    "AsyncQueueIterator",
    "Cause",
    "Dedup",
    "Encoding",
    "Expiry",
    "Explanation",
    "Job",
    "JobInfo",
    "LimitUsage",
    "NewJob",
    "PQError",
    "PastAttempt",
    "Queue",
    "QueueIterator",
    "QueueStats",
    "Reencoded",
    "Rule",
    "RunningJob",
    "Schedule",
    "StoredJob",
    "WorkerInfo",
    "hookimpl",
    "logger",
]

# Names are imported on first use. pytest imports this package in every run, for pqcore's pytest plugin, and importing
# all modules would delay each run.
_HOMES = {
    "AsyncPQ": "async_queue",
    "AsyncQueue": "async_queue",
    "AsyncQueueIterator": "async_queue",
    "PQError": "errors",
    "hookimpl": "hookspecs",
    "AsyncJob": "job",
    "Job": "job",
    "StoredJob": "operations.list_jobs",
    "PastAttempt": "operations.attempts",
    "Encoding": "operations.encodings",
    "Cause": "operations.explanation",
    "Explanation": "operations.explanation",
    "Reencoded": "operations.reencode",
    "QueueStats": "operations.admin",
    "LimitUsage": "operations.limits",
    "Expiry": "operations.expiry",
    "Rule": "operations.rules",
    "Schedule": "operations.schedules",
    "JobInfo": "operations.results",
    "RunningJob": "operations.worker_registry",
    "WorkerInfo": "operations.worker_registry",
    "After": "put_options",
    "Dedup": "put_options",
    "NewJob": "put_options",
    "PQ": "queue",
    "Queue": "queue",
    "QueueIterator": "queue",
    "logger": "settings",
}

if not TYPE_CHECKING:  # a type checker would otherwise accept any name

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = globals()[name] = getattr(importlib.import_module(f"pqcore.{_HOMES[name]}"), name)
            return value
        msg = f"module 'pqcore' has no attribute {name!r}"
        if name.startswith("_"):
            raise AttributeError(msg)
        try:  # a submodule, such as pqcore.errors
            return importlib.import_module(f"pqcore.{name}")
        except ModuleNotFoundError as exc:
            if exc.name != f"pqcore.{name}":
                raise
            raise AttributeError(msg) from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
