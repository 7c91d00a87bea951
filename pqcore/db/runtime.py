"""Time, locks and cancellation, for both kinds of face.

Operations wait through a `Runtime` and so never name a thread or an event loop.
`BlockingRuntime`'s coroutines block their thread and never suspend; `run_sync`
steps such a coroutine to its end.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import ContextVar
from types import AsyncGeneratorType
from typing import Any, Generic, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary, ref

from pqcore.errors import ConfigurationError, PQError

T = TypeVar("T")

AFTER_CANCEL = 3.0
"""Seconds that a call has after a cancellation, to hear from the server; then its connection is broken off."""
UNDOING = 5.0
"""Seconds in which what a cancelled task took is put back, at most."""


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result.

    Raises:
        PQError: It did suspend: a blocking session awaited something.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    msg = "a blocking operation suspended: the backend's session is not blocking"
    raise PQError(msg)


def backoff(failures: int) -> float:
    """Seconds until the next attempt of an operation, after a number of failures: 0.1 to 5, and some jitter."""
    return min(0.1 * 2.0 ** min(failures, 7), 5.0) * (0.5 + random.random())  # noqa: S311


class Event(Protocol):
    """Set once; waited for by one."""

    def set(self) -> None: ...
    async def wait(self, seconds: float) -> bool:
        """Wait until set, for at most ``seconds``; whether it is set."""


class Lock(Protocol):
    """For one at a time.

    An interrupt (Ctrl-C, a time limit) may come between any two lines of a thread, those of a ``finally`` included.
    So a thread asks `mine` what it has to leave, and keeps no record of its own.
    """

    async def enter(self) -> object: ...
    def leave(self) -> None: ...
    def mine(self) -> bool:
        """Whether the running thread is in; never, for tasks."""

    async def enter_within(self, seconds: float) -> bool:
        """Enter if that is possible within ``seconds``; return whether it was."""


class Background(Protocol):
    """A coroutine that runs beside the caller."""

    def stop(self) -> None: ...


class Runtime(Protocol):
    """How operations wait, for one kind of face."""

    suspends: bool

    def kept(self, make: Callable[[], T]) -> Kept[T]:
        """Keep a value for this process, or for each of its event loops."""

    def task(self) -> object:
        """The running task; None where there are threads only."""

    def event(self) -> Event: ...
    def lock(self) -> Lock: ...
    def context_slot(self) -> Local: ...
    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background: ...
    async def sleep(self, seconds: float) -> None: ...
    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> object:
        """Have ``cleanup`` run when the event loop ends, if there is one, and while what is returned is kept."""

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have some work done where nothing can be awaited: immediately, or as a task of the running loop."""

    async def shield(
        self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]], break_off: Callable[[], object]
    ) -> T:
        """Finish ``work`` once begun; if the caller was cancelled meanwhile, undo it.

        Args:
            work: What to finish. After a cancellation it has `AFTER_CANCEL` seconds.
            undo: Undoes the result of ``work`` after a cancellation, within `UNDOING` seconds.
            break_off: Makes ``work`` fail where it waits for the server.
        """


class Local(Protocol):
    """A value of the running thread, or of the running task and those it starts."""

    def get(self) -> Any: ...
    def set(self, value: Any) -> None: ...


class Kept(Protocol[T]):
    """A value of which each process has one, or each event loop of it.

    A fork copies what the parent had, connections and locks that other threads held included. The child makes its
    own, and neither uses nor ends the parent's. The value of an event loop lasts no longer than the loop.
    """

    def get(self) -> T:
        """The value of here; made when it is first asked for."""

    def made(self) -> bool:
        """Whether there may be a value of here: one was made, though for a parent's process or another event loop."""

    def others(self) -> list[T]:
        """The values of this process's other event loops."""

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """The event loops that have a value."""


async def hold_lock(gate: Lock, work: Callable[[], Awaitable[T]]) -> T:
    """Do some work while holding a gate, which the running thread or task does not hold yet.

    No ``with``: an interrupt between its lines would leave the gate shut.

    Args:
        gate: The gate.
        work: Gives what is awaited.
    """
    entered = False
    try:
        await gate.enter()
        entered = True
        result = await work()
        entered = False
        gate.leave()
    except BaseException:
        if entered or gate.mine():
            gate.leave()
        raise
    return result


# Blocking


class _ThreadEvent:
    def __init__(self) -> None:
        self._event = threading.Event()
        self.set = self._event.set

    async def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


class _ThreadGate:
    def __init__(self) -> None:
        lock: Any = threading.RLock()  # which knows its owner
        self.leave = lock.release
        self.mine = lock._is_owned  # as threading.Condition asks it
        self._acquire = lock.acquire

    async def enter(self) -> object:
        return self._acquire()

    async def enter_within(self, seconds: float) -> bool:
        return bool(self._acquire(timeout=seconds))


class _ThreadLocal(threading.local):
    value: Any = None

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value


class _Thread:
    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._thread = threading.Thread(target=lambda: run_sync(work()), name="pqcore-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing to do: the work ends by itself when its connection is closed."""


class _OfProcess(Generic[T]):
    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}  # with the parent's, if this is a forked child

    def get(self) -> T:
        try:  # asked each time: a process that is forked in C (uWSGI) tells nobody
            return self._values[os.getpid()]
        except KeyError:  # threads may come here together
            return self._values.setdefault(os.getpid(), self._make())

    def made(self) -> bool:
        return bool(self._values)

    def others(self) -> list[T]:
        return []

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        return []


class BlockingRuntime:
    """Threads."""

    suspends = False

    def kept(self, make: Callable[[], T]) -> Kept[T]:
        return _OfProcess(make)

    def task(self) -> object:
        return None

    def event(self) -> Event:
        return _ThreadEvent()

    def lock(self) -> Lock:
        return _ThreadGate()

    def context_slot(self) -> Local:
        return _ThreadLocal()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background:
        return _Thread(work)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - never runs in a loop

    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> object:
        """Nothing to do: connections are closed with the process."""
        return None

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        run_sync(work())

    async def shield(
        self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]], break_off: Callable[[], object]
    ) -> T:
        return await work


# asyncio

NO_LOOP = (
    "AsyncPQ needs an asyncio event loop, and none runs here: await it within one, or use PQ; "
    "under trio, pqcore.integrations.anyio"
)


class _LoopEvent:
    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.set = self._event.set

    async def wait(self, seconds: float) -> bool:
        if not self._event.is_set():
            waiter = asyncio.ensure_future(self._event.wait())
            try:
                await asyncio.wait([waiter], timeout=seconds)
            finally:
                waiter.cancel()
        return self._event.is_set()


class _LoopGate:
    def __init__(self) -> None:
        lock = asyncio.Lock()  # nobody awaits anything within an operation of their own
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
"""The attribute of an event loop that has what belongs to it: kept elsewhere, it would keep the loop."""
_parents: list[object] = []
"""What a fork copied of the parent's event loops: not ended here, as the parent uses it."""


class _OfLoop(Generic[T]):
    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._loops: set[ref[asyncio.AbstractEventLoop]] = set()
        self._last: tuple[int, ref[asyncio.AbstractEventLoop], ref[T]] | None = None  # for speed: what `get` gave last

    def get(self) -> T:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(NO_LOOP) from None
        process, last = os.getpid(), self._last
        if last is not None and last[0] == process and last[1]() is loop and (known := last[2]()) is not None:
            return known
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
            self._loops = set()
        value = self._make()
        kept[self] = process, value
        self._loops.add(ref(loop, self._loops.discard))
        return value

    def made(self) -> bool:
        return bool(self._loops)

    def others(self) -> list[T]:
        here = asyncio.get_running_loop()
        return [getattr(loop, _KEPT)[self][1] for loop in self.loops() if loop is not here]

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        return [loop for known in self._loops.copy() if (loop := known()) is not None]


class AsyncioRuntime:
    """Tasks of an asyncio event loop."""

    suspends = True

    def __init__(self) -> None:
        self._finishing: set[asyncio.Task[None]] = set()

    def kept(self, make: Callable[[], T]) -> Kept[T]:
        return _OfLoop(make)

    def task(self) -> object:
        return asyncio.current_task()

    def event(self) -> Event:
        return _LoopEvent()

    def lock(self) -> Lock:
        return _LoopGate()

    def context_slot(self) -> Local:
        return _LoopLocal()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background:
        return _LoopTask(work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> object:
        # asyncio.run lets open asynchronous generators finish before it closes the loop.
        kept = cast("AsyncGeneratorType[None, None]", _kept_open(cleanup))
        await kept.__anext__()
        return kept

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with suppress(RuntimeError):  # no loop runs any more, and what is open ends with it
            task = asyncio.get_running_loop().create_task(work())
            self._finishing.add(task)
            task.add_done_callback(self._finishing.discard)

    async def shield(
        self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]], break_off: Callable[[], object]
    ) -> T:
        loop = asyncio.get_running_loop()
        over = loop.create_future()  # tells at once; who awaits a task hears of its end a turn of the loop later

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
            if not await _outlast(task, AFTER_CANCEL):
                break_off()
                await _end(task)
            if task.done() and not task.cancelled() and task.exception() is None:
                undoing = asyncio.ensure_future(undo(task.result()))
                if not await _outlast(undoing, UNDOING):
                    await _end(undoing)
            raise
        return task.result()


def _begun(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> asyncio.Task[T]:
    """A task that has begun, where Python can have it begin at once, and not with the next turn of the loop."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)


async def _kept_open(cleanup: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await cleanup()


async def _outlast(task: asyncio.Future[Any], seconds: float) -> bool:
    """Wait for a task to end, though the waiter is cancelled again: that cancellation is already owed.

    Args:
        task: The task.
        seconds: For how long, at most.

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


async def _end(task: asyncio.Future[Any]) -> None:
    """Wait for a task whose connection is broken off; cancel the task if that does not end it."""
    if not await _outlast(task, AFTER_CANCEL):
        task.cancel()
        await _outlast(task, AFTER_CANCEL)
    if not task.done():
        task.add_done_callback(_heard)
    else:
        _heard(task)


def _heard(task: asyncio.Future[Any]) -> None:
    """Take note of a task's exception, which asyncio would log otherwise."""
    if not task.cancelled():
        task.exception()
