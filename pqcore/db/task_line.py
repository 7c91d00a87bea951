"""Lines for calls of tasks; see `pqcore.db.group_commit`.

A group runs in a separate task, without any caller's context variables; callers await bare futures. The cancellation of
a caller affects no other caller: the cancelled call leaves the line, or its answer is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextvars import Context
from typing import Any
from weakref import ref

from pqcore.db import group_commit, runtime
from pqcore.db.group_commit import ALONE, CROWDED, MOST_CALLS, NOT_YET, Rest, Runner, Together, error_for_each
from pqcore.db.process_id import current, process_id, unforked_page
from pqcore.db.session import Session
from pqcore.errors import PQError

logger = logging.getLogger("pqcore")


class TaskLine:
    """The calls of one operation, in one event loop.

    Args:
        runner: A function that runs a statement.
        together: The operation that the calls ask for.

    Attributes:
        since: See `pqcore.db.group_commit.Line`.
        waiting: The calls that wait for a group: the future of the answer, and the value.
        runner: The function that runs a statement.
        together: The operation that the calls ask for.
        rest: The switch that makes calls run separately for a while.
        claimed: The running calls; empty if `Together.undo` is None.
        undone: The futures of callers that were cancelled while their calls were running.
    """

    def __init__(self, runner: Runner, together: Together) -> None:
        self.runner = runner
        self.together = together
        self.since = 0.0
        self.rest = Rest()
        self.waiting: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self.claimed: set[asyncio.Future[Any]] = set()
        self.undone: dict[asyncio.Future[Any], asyncio.Future[None]] = {}
        self._loop = ref(asyncio.get_running_loop())
        self._process = process_id()
        self._timer: asyncio.TimerHandle | None = None
        self._travelling: set[asyncio.Task[None]] = set()  # references are kept, because a loop holds its tasks weakly

    def is_here(self) -> bool:
        # `process_id` is partly inlined, because each operation runs this line.
        process = current.id if unforked_page[0] else process_id()
        try:
            return self._process == process and asyncio.get_running_loop() is self._loop()
        except RuntimeError:  # no event loop runs
            return False

    def pass_on(self) -> None:
        # sends the waiting calls as a group
        self.since = 0.0
        if self.waiting and self.is_waited_for():
            self._set_off()

    def is_waited_for(self) -> bool:
        """Return whether any caller waits.

        Cancelled calls are removed: no task is started for them, because their loop may end.
        """
        waiting = self.waiting
        while waiting and waiting[0][0].done():
            waiting.popleft()
        return bool(waiting)

    def join(self, value: Any) -> Awaitable[Any]:
        future = asyncio.get_running_loop().create_future()
        if self.rest.is_on():
            future.set_result(ALONE)
            return future
        self.waiting.append((future, value))
        if self.since == CROWDED:
            self._set_off()  # the group goes in the next turn of the loop, so that calls made in this turn join it
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(group_commit.PATIENCE, self._look)
        return future if self.together.undo is None else self._answer(future)

    async def _answer(self, future: asyncio.Future[Any]) -> Any:
        """Await an answer; if the caller is cancelled, undo the effects of its call."""
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():  # the caller was cancelled after the answer came, and before the caller had it
                if future.exception() is None:
                    await outlast(asyncio.ensure_future(self._undo([future.result()])), runtime.UNDOING)
            elif future in self.claimed:
                self.undone[future] = over = asyncio.get_running_loop().create_future()
                await outlast(over, runtime.AFTER_CANCEL + runtime.UNDOING)
                self.undone.pop(future, None)
            raise

    async def _undo(self, answers: list[Any]) -> None:
        answers = [answer for answer in answers if answer is not ALONE]
        if answers and self.together.undo is not None:
            try:
                await self.together.undo(*answers)
            except PQError as exc:
                logger.warning("cannot roll back the operations of cancelled callers: %s", exc)

    async def undo(self, futures: list[asyncio.Future[Any]], answers: list[Any]) -> None:
        """Undo the calls of callers that were cancelled meanwhile; these callers wait until this method has ended."""
        try:
            await self._undo(answers)
        finally:
            self.let_go(futures)

    def let_go(self, futures: Collection[asyncio.Future[Any]]) -> None:
        """Record that calls are no longer running, and tell their cancelled callers."""
        self.claimed.difference_update(futures)
        for future in futures:
            if (over := self.undone.get(future)) is not None and not over.done():
                over.set_result(None)

    def start(
        self, work: Coroutine[Any, Any, None], forget: Callable[[asyncio.Task[None]], object] | None = None
    ) -> None:
        """Run some work in a separate task, without any caller's context variables.

        Args:
            work: The work.
            forget: A function that is called as the task ends.
        """
        task = Context().run(asyncio.get_running_loop().create_task, work)
        self._travelling.add(task)
        task.add_done_callback(forget or self._travelling.discard)

    def _look(self) -> None:
        """Send the waiting calls as another group if the running statement takes long."""
        self._timer = None
        if not self.is_waited_for():
            return
        left = self.since + group_commit.PATIENCE - time.monotonic()
        if left <= 0:
            self._set_off()
            left = group_commit.PATIENCE
        self._timer = asyncio.get_running_loop().call_later(min(left, group_commit.PATIENCE), self._look)

    def _set_off(self) -> None:
        self.since = NOT_YET
        self.start(self._travel(), self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        """Forget a task that sent groups; if the task was cancelled, let another task send the next group."""
        self._travelling.discard(task)
        if task.cancelled():
            self.pass_on()

    async def _travel(self) -> None:
        """Send groups, one after the other, while calls wait."""
        while await _Group(self).go():
            pass


class _Group:
    """Calls that share a statement.

    Args:
        line: The line of the calls.
    """

    def __init__(self, line: TaskLine) -> None:
        self._line = line
        self._began = NOT_YET
        self._futures: list[asyncio.Future[Any]] = []

    async def go(self) -> bool:
        """Send the waiting calls; return whether this task must send the calls that came meanwhile."""
        line = self._line
        came = len(line.waiting)
        try:
            answers = await line.runner(self._send)
        except BaseException as exc:
            self._fail(exc, came)
            if not isinstance(exc, Exception):
                raise
        else:
            line.rest.note(refused=False)
            gone: list[asyncio.Future[Any]] = []
            for future, answer in zip(self._futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
                elif line.together.undo is not None:
                    gone.append(future)
            line.claimed.difference_update(self._futures if not gone else set(self._futures).difference(gone))
            if gone:
                found = dict(zip(self._futures, answers, strict=True))
                line.start(line.undo(gone, [found[future] for future in gone]))
        if line.since == self._began and len(self._futures) > 1:
            # Callers that were just answered may call again in this turn of the loop, and then join the next group.
            await asyncio.sleep(0)
        if line.since != self._began:
            # This statement took long, so another task already sends the waiting calls.
            return False
        if line.is_waited_for():
            line.since = NOT_YET
            return True
        line.since = CROWDED if len(self._futures) > 1 else 0.0
        return False

    async def _send(self, session: Session) -> Sequence[Any]:
        values = self._claim()
        if not values:
            return ()
        return await self._line.together.run(session, values)

    def _claim(self) -> list[Any]:
        """Take calls out of the line, in order, and return their values."""
        line, size = self._line, 0
        values: list[Any] = []
        line.since = self._began = time.monotonic()
        waiting, futures = line.waiting, self._futures
        while waiting:
            future, value = waiting.popleft()
            if future.done():  # the caller was cancelled
                continue
            size += len(value)
            if values and (size > line.together.most or len(values) == MOST_CALLS):
                waiting.appendleft((future, value))
                break
            futures.append(future)
            values.append(value)
        if line.together.undo is not None:
            line.claimed.update(futures)
        return values

    def _fail(self, exc: BaseException, came: int) -> None:
        futures, claimed = self._futures, self._began != NOT_YET
        if not claimed:
            waiting = self._line.waiting
            futures = self._futures = [waiting.popleft()[0] for _ in range(min(came, len(waiting)))]
        make = error_for_each(exc, claimed=claimed)
        self._line.rest.note(refused=claimed and make is None)
        for future in futures:
            if future.done():
                continue
            if make is not None:
                future.set_exception(make())
            else:
                future.set_result(ALONE)
        self._line.let_go(futures)


async def outlast(task: asyncio.Future[Any], seconds: float) -> bool:
    """Wait for a task to end, even if the waiter is cancelled again.

    The waiter raises the first cancellation in any case.

    Args:
        task: The task.
        seconds: The largest number of seconds to wait.

    Returns:
        Whether the task ended.
    """
    deadline = time.monotonic() + seconds
    while not task.done() and (left := deadline - time.monotonic()) > 0:
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError:
            continue
    return task.done()
