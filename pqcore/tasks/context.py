"""What a function may know of the job that it runs, and say of it: `current`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from pqcore.db import interrupts
from pqcore.db.runtime import run_sync
from pqcore.errors import OutcomeUnknown, PQError, SerializationError
from pqcore.operations.complete import finish
from pqcore.operations.deferred_put import StoredPut
from pqcore.operations.job_outcome import Outcome
from pqcore.operations.lease import lease_lost
from pqcore.serializers import json_encode

if TYPE_CHECKING:
    from pqcore.job import BaseJob
    from pqcore.settings import QueueSettings


class JobCancelled(Exception):
    """The job that runs was cancelled, its time is up, or its lease was lost; see `JobContext.check`."""


class JobTimeout(TimeoutError):
    """The function did not end in the time that its job has."""


class JobContext:
    """The job that runs.

    Attributes:
        job: The job.
        queue: Its queue.
        finished: Whether the function has finished it itself, or is about to.
        leaves: Whether an exception of the function ends what runs the job, and is no failure of the job.
    """

    def __init__(
        self, queue: QueueSettings, job: BaseJob, leaves: Callable[[BaseException], bool] = interrupts.leaves
    ) -> None:
        self.job = job
        self.queue = queue
        self.leaves = leaves
        self._stopped = False
        self._woken: threading.Event | None = None  # made when it is waited for: most jobs never do
        self._progress: str | None = None
        self.stop_reason = ""
        self.finished = False

    @property
    def id(self) -> int:
        """The job's id."""
        return self.job.id

    @property
    def attempt(self) -> int:
        """1 for the first time that it is run, 2 for the second..."""
        return self.job.attempts

    @property
    def previous(self) -> Any:
        """What the function before in the chain returned; after a batch, its ``batch``, ``total`` and ``failed``."""
        stored = self.job.headers.get("previous")
        return None if stored is None else StoredPut.read_previous(self.queue, self.job.id, stored)

    @property
    def cancelled(self) -> bool:
        """Whether the function is to stop: cancelled, out of time, or no longer its worker's."""
        return self._stopped

    def check(self) -> None:
        """Stop if the function is to stop: for functions in threads, which nobody else can stop.

        Raises:
            JobCancelled: It is.
        """
        if self._stopped:
            raise JobCancelled(self.stop_reason)

    def wait(self, seconds: float) -> bool:
        """Sleep, or until the function is to stop; whether it is.  For functions in threads."""
        if self._woken is None:
            self._woken = threading.Event()
        if self._stopped:
            self._woken.set()
        return self._woken.wait(seconds)

    def progress(self, value: Any) -> None:
        """Report how far it is: anything that JSON can hold.  Stored by the worker, once a second at most.

        Raises:
            SerializationError: JSON cannot hold it.
        """
        try:
            self.set_progress(json_encode(value))
        except (TypeError, ValueError, RecursionError) as exc:
            raise SerializationError(f"progress is not JSON: {exc}") from exc

    def finish(self, result: Any = None, *, connection: Any = None) -> Any:
        """Finish the job now, in a transaction: it and what the function wrote commit together, or not at all.

        Within ``with queue``, or on a connection of yours. If that is rolled back, the job is not
        finished, and is run again if the function raises. To be awaited on an asynchronous queue.

        Args:
            result: What is kept as the result, if one is kept; instead of what the function returns.
            connection: As for `Queue.put`.

        Raises:
            LeaseLost: The job was given to another meanwhile: roll back.
        """
        engine = self.queue.engine  # type: ignore[attr-defined]

        async def work() -> None:
            outcome = Outcome(self.job, "done", result)
            self._note_finished(finished=True)  # first: the worker may find that it is over before the answer is here
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
        """Tell the function to stop; for workers."""
        self.stop_reason = reason
        self._stopped = True
        if self._woken is not None:
            self._woken.set()

    def set_progress(self, encoded: str | None) -> None:
        """Keep JSON text for the next `take_progress`; for workers."""
        self._progress = encoded

    def take_progress(self) -> str | None:
        """What was reported since the last call; for workers."""
        value, self._progress = self._progress, None
        return value


_current: ContextVar[JobContext | None] = ContextVar("pqcore_job", default=None)


def current() -> JobContext:
    """The job that the running thread or asyncio task works on.

    Raises:
        PQError: None.
    """
    context = _current.get()
    if context is None:
        msg = "no job is being run here"
        raise PQError(msg)
    return context


def enter_job(context: JobContext) -> JobContext | None:
    """Make a job the current one, and return the one that was; for workers."""
    before = _current.get()
    _current.set(context)
    return before


def leave_job(before: JobContext | None) -> None:
    """Undo `enter_job`, also in a copy of the `contextvars.Context` in which it was called.

    Args:
        before: What `enter_job` returned.
    """
    _current.set(before)
