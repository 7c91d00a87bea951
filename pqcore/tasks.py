"""Functions as jobs, as in ``pq.tasks``: put by calling them, run by `Queue.work`.

    from pqcore.tasks import PQ

    queue = PQ(dsn)["default"]

    @queue.task(max_retries=2, retry_in="10s")
    def eat(job_id, kind): ...

    eat("Cox")
    queue.work()

A row names its function by path.  It is looked up among the functions declared
with `Queue.task`, and imported only if it was declared once, or lies in a module
listed in `Queue.trusted_modules`: a row alone never decides what is run.
"""

from __future__ import annotations

import functools
import pydoc
from collections.abc import Callable
from logging import getLogger
from typing import Any, ClassVar

from pqcore import queue as blocking
from pqcore.errors import DeserializationError
from pqcore.job import Job
from pqcore.timespec import TimeSpec


class Queue(blocking.Queue):
    """A queue of function calls.

    Attributes:
        handler_registry: Path to function; shared by all queues, as in pq.
        trusted_modules: Names of modules whose functions rows may name though
            they were not declared.
    """

    handler_registry: ClassVar[dict[str, Callable[..., Any]]] = {}
    trusted_modules: tuple[str, ...] = ()
    logger = getLogger("pqcore.tasks")
    _declared: ClassVar[set[str]] = set()

    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: TimeSpec = "30s",
    ) -> Callable[[Callable[..., Any]], Callable[..., int]]:
        """Declare a function as a task: calling it then puts a job, and returns its id.

        The function is called with the job's id first.  A call may override the
        times with ``_schedule_at`` and ``_expected_at``.

        Args:
            schedule_at: As for `put`.
            expected_at: As for `put`.
            max_retries: How often it is put again after an exception.
            retry_in: The time until then.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., int]:
            path = f"{function.__module__}.{function.__qualname__}"
            function._path = path  # type: ignore[attr-defined]  # noqa: SLF001 - pq's name
            self.handler_registry[path] = function
            self._declared.add(path)

            @functools.wraps(function)
            def enqueue(*args: Any, **kwargs: Any) -> int:
                schedule = kwargs.pop("_schedule_at", None) or schedule_at
                expected = kwargs.pop("_expected_at", None) or expected_at
                call = {
                    "function": path,
                    "args": args,
                    "kwargs": kwargs,
                    "retried": 0,
                    "retry_in": retry_in,
                    "max_retries": max_retries,
                }
                return self.put(call, schedule, expected)

            return enqueue

        return decorate

    def work(self, burst: bool = False) -> None:
        """Perform jobs as they come; with ``burst``, until there are none."""
        self.logger.info("%r starts to perform jobs", self.name)
        for job in self:
            if job is not None:
                self.perform(job)
            elif burst:
                return

    def perform(self, job: Job) -> bool:
        """Call the function that a job names; True if it returned."""
        try:
            data = job.data
            path, args, kwargs = data["function"], data["args"], data["kwargs"]
        except (DeserializationError, TypeError, KeyError) as exc:
            return self.fail(job, {}, exc)
        function = self._find(path)
        if function is None:
            advice = f"declare it with @queue.task, or list its module in trusted_modules: {path!r}"
            return self.fail(job, data, LookupError(f"job {job.id} names an unknown function; {advice}"))
        try:
            function(job.id, *args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - whatever a task raises is the job's failure, not the worker's
            return self.fail(job, data, exc)
        return True

    def fail(self, job: Job, data: dict[str, Any], e: BaseException | None = None) -> bool:
        """Put a failed job again if it has retries left, else log why; always False."""
        retried = data.get("retried", 0)
        if data.get("max_retries", 0) > retried:
            again = self.put({**data, "retried": retried + 1}, data["retry_in"], job.expected_at)
            self.logger.info("put %r again as job %d", job, again)
        else:
            self.logger.error("failed to perform %r", job, exc_info=e)
        return False

    def _find(self, path: str) -> Callable[..., Any] | None:
        function = self.handler_registry.get(path)
        if function is None and (path in self._declared or self._trusts(path)):
            found = pydoc.locate(path)
            if callable(found):
                function = self.handler_registry[path] = found
        return function

    def _trusts(self, path: str) -> bool:
        return any(path.startswith(module + ".") for module in self.trusted_modules)


class PQ(blocking.PQ):
    """The queues of one table, as queues of function calls; see `pqcore.PQ`."""

    queue_class: type[blocking.Queue] = Queue

    def __getitem__(self, name: str) -> Queue:
        queue = super().__getitem__(name)
        assert isinstance(queue, Queue)  # noqa: S101 - for the type checker
        return queue
