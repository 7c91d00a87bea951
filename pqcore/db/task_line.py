"""Lines of calls of tasks; see `pqcore.db.group_commit`.

What goes together runs in a task of its own, with no context variables of anybody's; callers await bare futures.  A
caller that is cancelled takes nobody along: its call leaves the line, or its answer finds nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from pqcore.db import group_commit
from pqcore.db.group_commit import ALONE, MOST_CALLS, MOST_SIZE, NOT_YET, Runner, Together, error_for_each
from pqcore.db.session import Session
from pqcore.db.sources import Loan


class TaskLine:
    """The calls of one operation, of one event loop.

    Args:
        runner: Runs a statement.
        together: What several calls ask for.

    Attributes:
        since: See `pqcore.db.group_commit.Line`.
        waiting: The calls that wait to travel: where the answer of each goes, and what it carries.
        runner: The same.
        together: The same.
    """

    def __init__(self, runner: Runner, together: Together) -> None:
        self.runner = runner
        self.together = together
        self.since = 0.0
        self.waiting: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._travelling: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly

    def begin(self) -> float:
        self.since = began = time.monotonic()
        return began

    def end(self, began: float) -> None:
        if self.since == began:
            self.pass_on()

    def pass_on(self) -> None:
        """Have those that wait go together; if nobody waits, the line is free."""
        self.since = 0.0
        if self.is_waited_for():
            self._set_off()

    def is_waited_for(self) -> bool:
        """Whether anybody waits. Calls that were cancelled leave: no task begins for them, as their loop may end."""
        waiting = self.waiting
        while waiting and waiting[0][0].done():
            waiting.popleft()
        return bool(waiting)

    def join(self, value: Any) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self.waiting.append((future, value))
        if self._timer is None:
            self._timer = self._loop.call_later(group_commit.PATIENCE, self._look)
        return future

    def _look(self) -> None:
        """Open the line, if a statement takes long for which calls wait."""
        self._timer = None
        if not self.is_waited_for():
            return
        left = self.since + group_commit.PATIENCE - time.monotonic()
        if left <= 0:
            self._set_off()
            left = group_commit.PATIENCE
        self._timer = self._loop.call_later(min(left, group_commit.PATIENCE), self._look)

    def _set_off(self) -> None:
        self.since = NOT_YET
        task = Context().run(self._loop.create_task, self._travel())
        self._travelling.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        """Forget a task that sent groups; if somebody cancelled it, as all tasks of the loop, have another go on."""
        self._travelling.discard(task)
        if task.cancelled():
            self.pass_on()

    async def _travel(self) -> None:
        """Send groups, one after the other, while calls wait."""
        while await _Group(self).go():
            pass


class _Group:
    """Calls that travel together.

    Args:
        line: Whence.
    """

    def __init__(self, line: TaskLine) -> None:
        self._line = line
        self._began = NOT_YET
        self._futures: list[asyncio.Future[Any]] = []

    async def go(self) -> bool:
        """Send what waits; return whether calls wait that the same task is to send next."""
        line = self._line
        came = len(line.waiting)
        try:
            answers = await line.runner(Loan(), self._send, protect=True)
        except BaseException as exc:
            self._fail(exc, came)
            if not isinstance(exc, Exception):
                raise
        else:
            for future, answer in zip(self._futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        if line.since == self._began and len(self._futures) > 1:
            await asyncio.sleep(0)  # callers that were answered may call again, and then travel too
        if line.since != self._began:  # it was opened, and another sends what waits
            return False
        if line.is_waited_for():
            line.since = NOT_YET
            return True
        line.since = 0.0
        return False

    async def _send(self, session: Session) -> Sequence[Any]:
        values = self._claim()
        if not values:
            return ()
        return await self._line.together(session, values)

    def _claim(self) -> list[Any]:
        """Take calls out of the line, in their order, and return their values."""
        line, size = self._line, 0
        values: list[Any] = []
        line.since = self._began = time.monotonic()
        waiting, futures = line.waiting, self._futures
        while waiting:
            future, value = waiting.popleft()
            if future.done():  # cancelled
                continue
            size += len(value)
            if values and (size > MOST_SIZE or len(values) == MOST_CALLS):
                waiting.appendleft((future, value))
                break
            futures.append(future)
            values.append(value)
        return values

    def _fail(self, exc: BaseException, came: int) -> None:
        futures, claimed = self._futures, self._began != NOT_YET
        if not claimed:
            waiting = self._line.waiting
            futures = self._futures = [waiting.popleft()[0] for _ in range(min(came, len(waiting)))]
        make = error_for_each(exc, claimed=claimed)
        for future in futures:
            if not future.done():
                if make is None:
                    future.set_result(ALONE)
                else:
                    future.set_exception(make())
