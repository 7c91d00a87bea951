"""Jobs that run without an asyncio task of their own: callbacks of the event loop step their coroutines."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Generator
from typing import Any, Protocol

from pqcore.worker.state import ActiveJob
from pqcore.worker.threads import ThreadCall


class _Pause:
    """An object that a coroutine without a task awaits to say how it must be continued; see `Steps`."""

    def __await__(self) -> Generator[_Pause, None, None]:
        yield self


CALL_IN_THREAD = _Pause()
"""The coroutine goes on once a thread has called its job's function."""
TASK = _Pause()
"""The coroutine goes on in a task, in which it may await anything."""


class StepsExecutor(Protocol):
    """An executor that runs jobs in steps.

    Attributes:
        stepped: Jobs whose functions are being called in threads.
    """

    stepped: set[Steps]

    def call_here(self, active: ActiveJob) -> Any:
        """Call a job's function."""

    def call_in_thread(self, steps: Steps) -> None:
        """Call a job's function in a thread, and call `Steps.settle` afterwards."""


class Steps(ThreadCall):
    """A job whose function is called in a thread, and whose coroutine runs in the event loop without a task.

    Args:
        executor: The executor that runs the job.
        active: The job.
        coroutine: The coroutine that runs the job.
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
        """Step the coroutine until a thread must call the function, a task is needed, or the job has ended."""
        active = self._active
        if active.steps is None:  # the job was abandoned: the thread's result comes too late
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
            # The function runs in a copy, so that the coroutine does not see variables that the function sets.
            self.context = self._own_context.copy()
            self._executor.call_in_thread(self)
        elif pause is TASK:
            active.task = self._own_context.run(asyncio.get_running_loop().create_task, self._coroutine)

    def abandon(self) -> None:
        """Continue as if the function had been cancelled."""
        self.result, self.error = None, asyncio.CancelledError()
        self.settle()
