"""Time, locks and cancellation, for both kinds of face.

Operations wait through a `Runtime` and so never name a thread or an event loop.
`BlockingRuntime`'s coroutines block their thread and never suspend; `drive`
steps such a coroutine to its end.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Hashable
from contextvars import ContextVar
from types import AsyncGeneratorType
from typing import Any, Generic, Protocol, TypeVar, cast

from pqcore.errors import ConfigurationError, PQError

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
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
    """Seconds until an operation that failed so often is to be tried again: 0.1 to 5, and some jitter."""
    return min(0.1 * 2.0 ** min(failures, 7), 5.0) * (0.5 + random.random())  # noqa: S311


class Event(Protocol):
    """Set once; waited for by one."""

    def set(self) -> None: ...
    async def wait(self, seconds: float) -> bool:
        """Wait until set, for at most ``seconds``; whether it is set."""


class Gate(Protocol):
    """For one at a time; a thread that is in may come again, as a generator within put_many does."""

    async def enter(self) -> object: ...
    def leave(self) -> None: ...


class Background(Protocol):
    """A coroutine that runs beside the caller."""

    def stop(self) -> None: ...


class Runtime(Protocol):
    """How operations wait, for one kind of face."""

    suspends: bool

    def owner(self) -> Hashable:
        """Changes when connections opened before can no longer be used: after a fork, in another loop."""

    def task(self) -> object:
        """The running task; None where there are threads only."""

    def event(self) -> Event: ...
    def gate(self) -> Gate: ...
    def local(self) -> Local: ...
    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background: ...
    async def sleep(self, seconds: float) -> None: ...
    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        """Have ``cleanup`` run when the event loop ends, if there is one."""

    async def settle(self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]]) -> T:
        """Finish ``work`` once begun; if the caller was cancelled meanwhile, undo it."""


class Local(Protocol):
    """A value of the running thread, or of the running task and those it starts."""

    def get(self) -> Any: ...
    def set(self, value: Any) -> None: ...


class held:  # noqa: N801 - used as a function
    """Hold a gate for the length of a block.

    No generator: what is closed with the event loop comes here, too late for another to be begun.

    Args:
        gate: The gate.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def __aenter__(self) -> None:
        await self._gate.enter()

    async def __aexit__(self, *exc: object) -> None:
        self._gate.leave()


# Blocking


class _ThreadEvent:
    def __init__(self) -> None:
        self._event = threading.Event()
        self.set = self._event.set

    async def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


class _ThreadGate:
    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.leave = self._lock.release

    async def enter(self) -> object:
        return self._lock.acquire()


class _ThreadLocal(threading.local):
    value: Any = None

    def get(self) -> Any:
        return self.value

    def set(self, value: Any) -> None:
        self.value = value


class _Thread:
    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._thread = threading.Thread(target=lambda: drive(work()), name="pqcore-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing to do: the work ends by itself when its connection is closed."""


def _forked() -> None:
    global _process  # it stands for the process, as os.getpid() does, which is a system call
    _process = os.getpid()


_process = os.getpid()
os.register_at_fork(after_in_child=_forked)


class BlockingRuntime:
    """Threads."""

    suspends = False

    def owner(self) -> Hashable:
        return _process

    def task(self) -> object:
        return None

    def event(self) -> Event:
        return _ThreadEvent()

    def gate(self) -> Gate:
        return _ThreadGate()

    def local(self) -> Local:
        return _ThreadLocal()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background:
        return _Thread(work)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - never runs in a loop

    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        """Nothing to do: connections are closed with the process."""

    async def settle(self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]]) -> T:
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
        self.enter = lock.acquire
        self.leave = lock.release


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


class AsyncioRuntime:
    """Tasks of an asyncio event loop."""

    suspends = True

    def __init__(self) -> None:
        self._kept: list[AsyncGeneratorType[None, None]] = []

    def owner(self) -> Hashable:
        try:
            return _process, asyncio.get_running_loop()
        except RuntimeError:
            raise ConfigurationError(NO_LOOP) from None

    def task(self) -> object:
        return asyncio.current_task()

    def event(self) -> Event:
        return _LoopEvent()

    def gate(self) -> Gate:
        return _LoopGate()

    def local(self) -> Local:
        return _LoopLocal()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background:
        return _LoopTask(work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        # asyncio.run lets open asynchronous generators finish before it closes the loop.
        kept = cast("AsyncGeneratorType[None, None]", _kept_open(cleanup))
        await kept.__anext__()
        self._kept = [other for other in self._kept if other.ag_frame is not None]
        self._kept.append(kept)

    async def settle(self, work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[None]]) -> T:
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
            await _outlast(task)
            if not task.cancelled() and task.exception() is None:
                await _outlast(asyncio.ensure_future(undo(task.result())))
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


async def _outlast(task: asyncio.Future[Any]) -> None:
    """Wait for a task to end, whatever becomes of the waiter; a further cancellation is already owed."""
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            continue
