"""Jobs that run without an asyncio task of their own: their coroutine goes on from the event loop's callbacks."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Generator
from typing import Any, Protocol

from pqcore.worker.state import ActiveJob
from pqcore.worker.threads import ThreadCall


class _Pause:
    """What a coroutine without a task of its own awaits, to say what it needs; see `Steps`."""

    def __await__(self) -> Generator[_Pause, None, None]:
        yield self


CALL_IN_THREAD = _Pause()
"""The coroutine goes on once a thread has called its job's function."""
TASK = _Pause()
"""The coroutine goes on in a task: from there it may await anything."""


class StepsExecutor(Protocol):
    """What runs jobs in steps.

    Attributes:
        stepped: Jobs whose functions are being called in threads.
    """

    stepped: set[Steps]

    def call_here(self, active: ActiveJob) -> Any:
        """Call a job's function."""

    def call_in_thread(self, steps: Steps) -> None:
        """Have a thread call a job's function, and settle then."""


class Steps(ThreadCall):
    """A job whose coroutine goes on in the event loop without a task, before and after the call in a thread.

    Args:
        executor: Runs the job.
        active: The job.
        coroutine: What runs it.
        context: The context variables of the coroutine.
    """

    __slots__ = ("_active", "_coroutine", "_executor", "_own_context")

    def __init__(
        self, executor: StepsExecutor, active: ActiveJob, coroutine: Any, context: contextvars.Context
    ) -> None:
        super().__init__(context)
        self._executor = executor
        self._active = active
        self._coroutine = coroutine
        self._own_context = context

    def call(self) -> Any:
        return self._executor.call_here(self._active)

    def settle(self) -> None:
        """Go on until a thread has to call the function, a task is needed, or the job has ended."""
        active = self._active
        if active.steps is None:  # abandoned: what the thread returned comes too late
            return
        pause = None
        try:
            pause = self._own_context.run(self._coroutine.send, None)
        except StopIteration:
            pass
        finally:
            if pause is not CALL_IN_THREAD:
                active.steps = None
                self._executor.stepped.discard(self)
        if pause is CALL_IN_THREAD:
            self.context = self._own_context.copy()  # so that what the function sets is not seen afterwards
            self._executor.call_in_thread(self)
        elif pause is TASK:
            active.task = self._own_context.run(asyncio.get_running_loop().create_task, self._coroutine)

    def abandon(self) -> None:
        """Go on as if the function had been cancelled."""
        self.result, self.error = None, asyncio.CancelledError()
        self.settle()
