"""The interface between a function and the job that it runs: `current`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pqcore import operations
from pqcore.db import interrupts
from pqcore.db.runtime import run_sync
from pqcore.errors import OutcomeUnknown, PQError, SerializationError
from pqcore.operations.complete import finish
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.job_outcome import Outcome
from pqcore.operations.lease import lease_lost
from pqcore.serializers import json_encode

if TYPE_CHECKING:
    import pqcore.operations.parent_results  # noqa: F401 - with this, the type checker knows the name in `operations`
    from pqcore.job import BaseJob
    from pqcore.settings import QueueSettings


class JobCancelled(Exception):
    """The running job was cancelled, its time is over, or its lease was lost; see `JobContext.check`."""


class JobTimeout(TimeoutError):
    """The function did not end within its job's timeout."""


class JobContext:
    """The context of a running job.

    Attributes:
        job: The job.
        queue: The job's queue.
        finished: Whether the function itself has finished the job, or is about to.
        leaves: A function that returns whether an exception ends the running program, rather than being a failure of
            the job.
    """

    def __init__(
        self, queue: QueueSettings, job: BaseJob, leaves: Callable[[BaseException], bool] = interrupts.leaves
    ) -> None:
        self.job = job
        self.queue = queue
        self.leaves = leaves
        self._stopped = False
        self._woken: threading.Event | None = None  # made by the first `wait`, because most functions never call it
        self._progress: str | None = None
        self.stop_reason = ""
        self.finished = False

    @property
    def id(self) -> int:
        """The job's id."""
        return self.job.id

    @property
    def attempt(self) -> int:
        """The number of the current attempt: 1 for the first run of the job, 2 for the second."""
        return self.job.attempts

    @property
    def previous(self) -> Any:
        """The result of the previous function in the chain.

        In the callback of a batch, this is a dict with ``batch``, ``total`` and ``failed``.
        """
        stored = self.job.headers.get("previous")
        return None if stored is None else StoredPut.read_previous(self.queue, self.job.id, stored)

    def results_of_parents(self) -> Any:
        """Return the results of the job's parents (``after``), by id.

        Parents whose results were not kept are left out, so put the parents with ``keep_result``. On an asynchronous
        queue, await this method.

        Raises:
            DeserializationError: The queue cannot decode a result.
            PayloadTooLarge: The results have more than 16 MB in all.
        """
        engine = self.queue.engine  # type: ignore[attr-defined]
        work = operations.parent_results.read_parent_results(engine, self.queue, self.job)
        return work if engine.runtime.suspends else run_sync(work)

    @property
    def cancelled(self) -> bool:
        """Whether the function must stop, because the job was cancelled, is out of time, or lost its lease."""
        return self._stopped

    def check(self) -> None:
        """Raise if the function must stop.

        A function in a thread must call this, because it cannot be stopped from outside.

        Raises:
            JobCancelled: The function must stop.
        """
        if self._stopped:
            raise JobCancelled(self.stop_reason)

    def wait(self, seconds: float) -> bool:
        """Sleep for some seconds, but at most until the function must stop; return whether the function must stop.

        This method is for functions in threads.
        """
        if self._woken is None:
            self._woken = threading.Event()
        if self._stopped:
            self._woken.set()
        return self._woken.wait(seconds)

    def progress(self, value: Any) -> None:
        """Report the function's progress, as any value that JSON can hold.

        The worker stores the progress, at most once per second.

        Raises:
            SerializationError: JSON cannot hold the value.
        """
        try:
            self.set_progress(json_encode(value))
        except (TypeError, ValueError, RecursionError) as exc:
            raise SerializationError(f"progress is not JSON: {exc}") from exc

    def finish(self, result: Any = None, *, connection: Any = None) -> Any:
        """Finish the job in a transaction: the job's end and the function's writes commit together, or not at all.

        Call this within ``with queue``, or with your own connection. If the transaction is rolled back, the job is
        not finished; if the function then raises, the job runs again. On an asynchronous queue, await this method.

        Args:
            result: The result to store, if results are kept, in place of the function's return value.
            connection: A connection whose open transaction finishes the job; see `Queue.put`.

        Raises:
            LeaseLost: Another consumer got the job meanwhile; roll the transaction back.
        """
        engine = self.queue.engine  # type: ignore[attr-defined]

        async def work() -> None:
            outcome = Outcome(self.job, "done", result)
            # The flag is set before the statement, because the worker may see the finished job before the answer
            # arrives here.
            self._note_finished(finished=True)
            try:
                if await finish(engine, self.queue, [outcome], connection):
                    raise lease_lost(self.queue, [self.job])
            except PQError as exc:
                if not isinstance(exc, OutcomeUnknown):
                    self._note_finished(finished=False)
                raise

        return work() if engine.runtime.suspends else run_sync(work())

    def _note_finished(self, *, finished: bool) -> None:
        self.finished = finished

    def stop(self, reason: str) -> None:
        """Tell the function to stop; only workers call this."""
        self.stop_reason = reason
        self._stopped = True
        if self._woken is not None:
            self._woken.set()

    def set_progress(self, encoded: str | None) -> None:
        """Store JSON text for the next `take_progress`; only workers call this."""
        self._progress = encoded

    def take_progress(self) -> str | None:
        """Return the progress reported since the last call; only workers call this."""
        value, self._progress = self._progress, None
        return value


_current: ContextVar[JobContext | None] = ContextVar("pqcore_job", default=None)


def current() -> JobContext:
    """Return the context of the job that the running thread or asyncio task runs.

    Raises:
        PQError: No job runs here.
    """
    context = _current.get()
    if context is None:
        msg = "no job is being run here"
        raise PQError(msg)
    return context


def enter_job(context: JobContext) -> JobContext | None:
    """Make a job the current job, and return the previous current job; only workers call this."""
    before = _current.get()
    _current.set(context)
    return before


def leave_job(before: JobContext | None) -> None:
    """Undo `enter_job`, even in a copy of the `contextvars.Context` in which `enter_job` was called.

    Args:
        before: The value that `enter_job` returned.
    """
    _current.set(before)
