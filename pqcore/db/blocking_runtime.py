"""Time and locks for the blocking face: threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pqcore.db.group_commit import Line, Runner, Together
from pqcore.db.process_id import current, process_id, unforked_page
from pqcore.db.runtime import Background, Event, Kept, Local, Lock, run_sync
from pqcore.db.thread_line import ThreadLine

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class _ThreadEvent:
    # This class uses a bare lock, because threading.Event makes another lock for each wait.
    __slots__ = ("_is_set", "_lock")

    def __init__(self) -> None:
        self._is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        # `_is_set` is set first, because waiters check `_is_set`, and an interrupt may come before the release. If the
        # event was already set, `release` raises RuntimeError.
        self._is_set = True
        with suppress(RuntimeError):
            self._lock.release()

    async def wait(self, seconds: float) -> bool:
        if not self._is_set:
            self._lock.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))
        return self._is_set


class _ThreadLock:
    def __init__(self) -> None:
        lock: Any = threading.RLock()  # an RLock knows its owner
        self.leave = lock.release
        self.mine = lock._is_owned  # a private method of RLock, which threading.Condition calls, too
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
        """Do nothing: the work ends by itself when its connection is closed."""


class _OfProcess(Generic[T]):
    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.made: dict[int, T] = {}  # in a forked child, the dict also has the parent's value

    def get(self) -> T:
        try:
            # `process_id` is partly inlined, because each operation runs this line.
            return self.made[current.id if unforked_page[0] else process_id()]
        except KeyError:  # several threads may come here concurrently
            return self.made.setdefault(process_id(), self._make())

    def others(self) -> list[T]:
        return []

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        return []


class BlockingRuntime:
    """The runtime for threads."""

    suspends = False

    def kept(self, make: Callable[[], T]) -> Kept[T]:
        return _OfProcess(make)

    def task(self) -> object:
        return None

    def event(self) -> Event:
        return _ThreadEvent()

    def lock(self) -> Lock:
        return _ThreadLock()

    def context_slot(self) -> Local:
        return _ThreadLocal()

    def line(self, runner: Runner, together: Together) -> Line:
        return ThreadLine(runner, together)

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background:
        return _Thread(work)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - never runs in a loop

    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> object:
        """Do nothing, because connections are closed when the process ends."""
        return None

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        run_sync(work())

    async def shield(
        self,
        work: Coroutine[Any, Any, T],
        undo: Callable[[T], Awaitable[None]],
        break_off: Callable[[], object],
        *,
        own_task: bool = True,
    ) -> T:
        return await work
