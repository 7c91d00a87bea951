"""Time, locks and cancellation for the asynchronous face: tasks of an asyncio event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import ContextVar
from types import AsyncGeneratorType, coroutine
from typing import Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary, ref

from pqcore.backend import Signal
from pqcore.db import runtime
from pqcore.db.bounded_call import still_cancelled
from pqcore.db.group_commit import Line, Runner, Together
from pqcore.db.process_id import current, process_id, unforked_page
from pqcore.db.runtime import Background, Event, Kept, Local, Lock
from pqcore.db.task_line import TaskLine, outlast
from pqcore.errors import ConfigurationError

T = TypeVar("T")

NO_LOOP = (
    "AsyncPQ needs an asyncio event loop, and none runs here: await it within one, or use PQ; "
    "under trio, pqcore.integrations.anyio"
)


class _LoopLock:
    def __init__(self) -> None:
        lock = asyncio.Lock()  # not reentrant: a task in an operation never begins a second operation
        self._lock = lock
        self.enter = lock.acquire
        self.leave = lock.release

    def mine(self) -> bool:
        return False

    async def enter_within(self, seconds: float) -> bool:
        if not self._lock.locked():
            return await self._lock.acquire()
        try:
            return await asyncio.wait_for(self._lock.acquire(), seconds)
        except asyncio.TimeoutError:
            return False


class _LoopLocal(Generic[T]):
    def __init__(self) -> None:
        self._value: ContextVar[Any] = ContextVar("pqcore_transaction", default=None)
        self.get = self._value.get

    def set(self, value: Any) -> None:
        self._value.set(value)


class _LoopTask:
    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._task = asyncio.get_running_loop().create_task(work(), name="pqcore-listener")

    def stop(self) -> None:
        self._task.cancel()


_KEPT = "_pqcore_kept"
"""The attribute of an event loop that holds pqcore's values for the loop; a global mapping would keep the loop alive.
"""
_parents: list[object] = []
"""The event loops of the parent process, in a forked child: kept, because finalizing them would disturb the parent."""


class _OfLoop(Generic[T]):
    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.made: set[ref[asyncio.AbstractEventLoop]] = set()
        # the value that `get` returned last, cached for speed
        self._last: tuple[int, ref[asyncio.AbstractEventLoop], ref[T]] | None = None

    def get(self) -> T:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(NO_LOOP) from None
        process, last = current.id if unforked_page[0] else process_id(), self._last
        if last is not None and last[0] == process and last[1]() is loop and (found := last[2]()) is not None:
            return found
        value = self._of(loop, process)
        self._last = process, ref(loop), ref(value)
        return value

    def _of(self, loop: asyncio.AbstractEventLoop, process: int) -> T:
        kept: WeakKeyDictionary[object, tuple[int, T]] | None = getattr(loop, _KEPT, None)
        if kept is None:
            setattr(loop, _KEPT, kept := WeakKeyDictionary())
        found = kept.get(self)
        if found is not None:
            if found[0] == process:
                return found[1]
            _parents.append(found)
            self.made.clear()
        value = self._make()
        kept[self] = process, value
        self.made.add(ref(loop, self.made.discard))
        return value

    def others(self) -> list[T]:
        here = asyncio.get_running_loop()
        return [getattr(loop, _KEPT)[self][1] for loop in self.loops() if loop is not here]

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        return [loop for known in self.made.copy() if (loop := known()) is not None]


class AsyncioRuntime:
    """The runtime for tasks of an asyncio event loop."""

    suspends = True

    def __init__(self) -> None:
        self._finishing: set[asyncio.Task[None]] = set()

    def kept(self, make: Callable[[], T]) -> Kept[T]:
        return _OfLoop(make)

    def task(self) -> object:
        return asyncio.current_task()

    def event(self) -> Event:
        return Signal()

    def lock(self) -> Lock:
        return _LoopLock()

    def context_slot(self) -> Local:
        return _LoopLocal()

    def line(self, runner: Runner, together: Together) -> Line:
        try:
            return TaskLine(runner, together)
        except RuntimeError:
            raise ConfigurationError(NO_LOOP) from None

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background:
        return _LoopTask(work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> object:
        # asyncio.run finishes open asynchronous generators before it closes the loop.
        kept = cast("AsyncGeneratorType[None, None]", _kept_open(cleanup))
        await kept.__anext__()
        return kept

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with suppress(RuntimeError):  # no event loop runs any more, and open connections end with their loop
            task = asyncio.get_running_loop().create_task(work())
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def shield(
        self,
        work: Coroutine[Any, Any, T],
        undo: Callable[[T], Awaitable[None]],
        break_off: Callable[[], object],
        *,
        own_task: bool = True,
    ) -> T:
        if own_task:
            return await self._shield_in_task(work, undo, break_off)
        guard = _Guard(break_off, asyncio.get_running_loop())
        try:
            result = await guard.run(work)
        except BaseException:
            if guard.cancelled():
                raise guard.cancellation() from None
            raise
        if guard.cancelled():
            await _undo(undo(result))
            raise guard.cancellation()
        return result

    async def _shield_in_task(
        self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]], break_off: Callable[[], object]
    ) -> T:
        loop = asyncio.get_running_loop()
        over = loop.create_future()  # a future wakes its waiter one turn of the loop earlier than a task does

        async def finish() -> T:
            try:
                return await work
            finally:
                if not over.done():
                    over.set_result(None)

        task = _begun(finish(), loop)
        try:
            if not task.done():
                await over
        except asyncio.CancelledError:
            if not await outlast(task, runtime.AFTER_CANCEL):
                break_off()
                await _end(task)
            if task.done() and not task.cancelled() and task.exception() is None:
                await _undo(undo(task.result()))
            raise
        return task.result()


async def _undo(work: Awaitable[None]) -> None:
    """Undo the result of work that finished after its caller was cancelled, even if the caller is cancelled again."""
    undoing = asyncio.ensure_future(work)
    if not await outlast(undoing, runtime.UNDOING):
        await _end(undoing)


def _begun(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> asyncio.Task[T]:
    """Return a task that starts immediately if Python supports this, and otherwise in the next turn of the loop."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return asyncio.Task(work, loop=loop)  # the same as loop.create_task(work), in half the time


class _Guard:
    """A guard that runs a coroutine to its end in the running task, even if another task cancels that task meanwhile.

    A task that waits for a future cancels the future when the task is cancelled. So the guard gives itself to the task
    in place of the future that the coroutine waits for. A separate task for the coroutine would cost each call two
    turns of the event loop, which would take longer than the rest of pqcore's work.

    After a cancellation, the coroutine has `AFTER_CANCEL` seconds to end. If it does not end, the guard closes its
    connection, waits for the same time again, cancels the coroutine, and finally abandons it.

    Args:
        break_off: A function that makes the coroutine fail where it waits for the server.
        loop: The event loop. A task may be cancelled while its loop does not run.
    """

    __slots__ = ("_asyncio_future_blocking", "_break_off", "_cancellation", "_cancels", "_future", "_loop", "_timer")

    def __init__(self, break_off: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
        self._break_off = break_off
        self._loop = loop
        self._cancels = 0
        self._timer: asyncio.TimerHandle | None = None
        self._future: Any = None
        self._cancellation: asyncio.CancelledError | None = None

    def cancelled(self) -> bool:
        """Return whether other code cancelled the task; a timeout in the coroutine takes its own cancellation back."""
        return self._cancellation is not None and still_cancelled()

    def cancellation(self) -> asyncio.CancelledError:
        """Return the exception of the cancellation, and keep no reference to it.

        The exception's traceback refers to this guard, so a reference to the exception would be a cycle.
        """
        thrown, self._cancellation = self._cancellation, None
        return thrown or asyncio.CancelledError()

    @coroutine
    def run(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run a coroutine, and return its result."""
        try:
            waits_for = work.send(None)
            while True:
                self._future = waits_for
                if waits_for is not None:  # otherwise the coroutine only yields to other tasks
                    self._asyncio_future_blocking = True
                try:
                    yield None if waits_for is None else self
                except asyncio.CancelledError as exc:  # either the future or the task was cancelled
                    if self._timer is None and (waits_for is None or not waits_for.cancelled()):
                        self.cancel()
                    if self._timer is not None:
                        self._cancellation = self._cancellation or exc
                except GeneratorExit:
                    work.close()
                    raise
                except BaseException as exc:  # noqa: BLE001 - passed on to the coroutine
                    if waits_for is None or not waits_for.done():
                        waits_for = work.throw(exc)
                        continue
                if self._cancels == 1:
                    self._cancels += 1
                    waits_for = work.throw(asyncio.CancelledError())
                elif self._cancels > 2:
                    work.close()
                    raise asyncio.CancelledError
                else:
                    waits_for = work.send(None)  # the future itself has the result
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            if self._timer is not None:
                self._timer.cancel()

    # The methods that a task calls on the future for which it waits

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any = None) -> None:
        self._future.add_done_callback(callback, context=context)

    def cancel(self, msg: object = None) -> bool:
        """Record a cancellation of the task.

        Return False, so that the task is cancelled only after the future is done.
        """
        if self._timer is None:
            self._timer = self._loop.call_later(runtime.AFTER_CANCEL, self._end_connection)
        return False

    def _end_connection(self) -> None:
        self._timer = self._loop.call_later(runtime.AFTER_CANCEL, self._end_work)
        self._break_off()

    def _end_work(self) -> None:
        self._timer = self._loop.call_later(runtime.AFTER_CANCEL, self._end_work)
        self._cancels += 1
        if self._future is not None:
            self._future.cancel()


async def _kept_open(cleanup: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await cleanup()


async def _end(task: asyncio.Future[Any]) -> None:
    """Wait for a task whose connection was closed; cancel the task if it does not end then."""
    if not await outlast(task, runtime.AFTER_CANCEL):
        task.cancel()
        await outlast(task, runtime.AFTER_CANCEL)
    if not task.done():
        task.add_done_callback(_heard)
    else:
        _heard(task)


def _heard(task: asyncio.Future[Any]) -> None:
    """Retrieve a task's exception, which asyncio would log otherwise."""
    if not task.cancelled():
        task.exception()
