"""Time, locks and cancellation, for both faces.

Operations wait through a `Runtime`, and so never name a thread or an event loop. Coroutines of `BlockingRuntime`
(`pqcore.db.blocking_runtime`) block their thread and never suspend; `run_sync` steps such a coroutine to its end.
Coroutines of `AsyncioRuntime` are awaited (`pqcore.db.asyncio_runtime`).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pqcore.errors import PQError

if TYPE_CHECKING:
    import asyncio  # asyncio takes long to import, and the blocking face does not need it

    from pqcore.db.group_commit import Line, Runner, Together

T = TypeVar("T")

AFTER_CANCEL = 3.0
"""Seconds for which a cancelled call may still wait for the server's answer; then its connection is closed."""
UNDOING = 5.0
"""The largest number of seconds that undoing the work of a cancelled task may take, such as putting jobs back."""


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result.

    Raises:
        PQError: The coroutine suspended, so a blocking session awaited something.
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
    """Return how many seconds, from 0.1 to 5 with jitter, to wait after a number of failures before another try."""
    return min(0.1 * 2.0 ** min(failures, 7), 5.0) * (0.5 + random.random())  # noqa: S311


class Event(Protocol):
    """An event that is set once, and has one waiter."""

    def set(self) -> None: ...
    async def wait(self, seconds: float) -> bool:
        """Wait until the event is set, for at most ``seconds``; return whether it is set."""


class Lock(Protocol):
    """A lock that one thread or task can hold.

    An interrupt (Ctrl-C, a time limit) may come between any two lines of a thread, even in a ``finally`` clause. So a
    thread keeps no record of whether it holds the lock, but asks `mine`.
    """

    async def enter(self) -> object: ...
    def leave(self) -> None: ...
    def mine(self) -> bool:
        """Return whether the running thread holds the lock; always False for tasks."""

    async def enter_within(self, seconds: float) -> bool:
        """Acquire the lock if that is possible within ``seconds``; return whether it was acquired."""


class Background(Protocol):
    """A coroutine that runs concurrently with the caller."""

    def stop(self) -> None: ...


class Runtime(Protocol):
    """The way in which operations wait, for one face."""

    suspends: bool

    def kept(self, make: Callable[[], T]) -> Kept[T]:
        """Return a value holder for this process, or for each of its event loops."""

    def task(self) -> object:
        """Return the running task; None if only threads are used."""

    def event(self) -> Event: ...
    def lock(self) -> Lock: ...
    def context_slot(self) -> Local: ...
    def line(self, runner: Runner, together: Together) -> Line:
        """Make a line of concurrent calls, for this process or event loop; see `pqcore.db.group_commit`."""

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background: ...
    async def sleep(self, seconds: float) -> None: ...
    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> object:
        """Have ``cleanup`` called when the event loop ends, if the caller still keeps the returned object then."""

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Finish some work from code that cannot await: immediately, or as a task of the running loop."""

    async def shield(
        self,
        work: Coroutine[Any, Any, T],
        undo: Callable[[T], Awaitable[None]],
        break_off: Callable[[], object],
        *,
        own_task: bool = True,
    ) -> T:
        """Run ``work`` to its end, even if the caller is cancelled meanwhile; in that case, undo the result.

        Args:
            work: The work to finish. After a cancellation, the work has `AFTER_CANCEL` seconds.
            undo: A function that undoes the result of ``work`` after a cancellation, within `UNDOING` seconds.
            break_off: A function that makes ``work`` fail where it waits for the server.
            own_task: Whether ``work`` needs its own task, because timeouts within it cancel the task that they run in.
        """


class Local(Protocol):
    """A value of the running thread, or of the running task and the tasks that it starts."""

    def get(self) -> Any: ...
    def set(self, value: Any) -> None: ...


class Kept(Protocol[T]):
    """A value that is made once for each process, or once for each event loop.

    A fork copies the parent's values, including connections, and locks that other threads held. The child makes its own
    value, and neither uses nor ends the parent's. The value of an event loop lasts no longer than the loop.
    """

    @property
    def made(self) -> Collection[object]:
        """A container that is empty until this process, a parent process, or an event loop makes a value."""

    def get(self) -> T:
        """Return the value of this process or event loop; the first call makes it."""

    def others(self) -> list[T]:
        """Return the values of this process's other event loops."""

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """Return the event loops that have a value."""


async def hold_lock(lock: Lock, work: Callable[[], Awaitable[T]]) -> T:
    """Do some work while holding a lock, which the running thread or task must not hold yet.

    A ``with`` statement does not suffice: an interrupt between its lines would leave the lock held.

    Args:
        lock: The lock.
        work: A function that returns what is awaited.
    """
    entered = False
    try:
        await lock.enter()
        entered = True
        result = await work()
        entered = False
        lock.leave()
    except BaseException:
        if entered or lock.mine():
            lock.leave()
        raise
    return result


async def hold_lock_within(lock: Lock, seconds: float, work: Callable[[], Awaitable[T]]) -> T | None:
    """Do some work as `hold_lock` does, if the lock becomes free within ``seconds``; otherwise return None."""
    entered = False
    try:
        entered = await lock.enter_within(seconds)
        if not entered:
            return None
        result = await work()
        entered = False
        lock.leave()
    except BaseException:
        if entered or lock.mine():
            lock.leave()
        raise
    return result
