"""Time, locks and cancellation, for both kinds of face.

Operations wait through a `Runtime` and so never name a thread or an event loop.
`BlockingRuntime`'s coroutines (`pqcore.db.blocking_runtime`) block their thread and
never suspend; `run_sync` steps such a coroutine to its end.  Those of `AsyncioRuntime`
are awaited (`pqcore.db.asyncio_runtime`).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pqcore.errors import PQError

if TYPE_CHECKING:
    import asyncio  # which takes long to import, and the blocking face does without

    from pqcore.db.group_commit import Line, Runner, Together

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
    """A coroutine that runs concurrently with the caller."""

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
    def line(self, runner: Runner, together: Together) -> Line:
        """Make a line of concurrent calls, for this process or event loop; see `pqcore.db.group_commit`."""

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Background: ...
    async def sleep(self, seconds: float) -> None: ...
    async def at_end(self, cleanup: Callable[[], Awaitable[None]]) -> object:
        """Have ``cleanup`` run when the event loop ends, if there is one, and while what is returned is kept."""

    def finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have some work done where nothing can be awaited: immediately, or as a task of the running loop."""

    async def shield(
        self,
        work: Coroutine[Any, Any, T],
        undo: Callable[[T], Awaitable[None]],
        break_off: Callable[[], object],
        *,
        own_task: bool = True,
    ) -> T:
        """Finish ``work`` once begun; if the caller was cancelled meanwhile, undo it.

        Args:
            work: What to finish. After a cancellation it has `AFTER_CANCEL` seconds.
            undo: Undoes the result of ``work`` after a cancellation, within `UNDOING` seconds.
            break_off: Makes ``work`` fail where it waits for the server.
            own_task: Whether ``work`` needs a task of its own, as timeouts within it cancel the task that they run in.
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

    @property
    def made(self) -> Collection[object]:
        """Empty as long as there is no value, neither of here nor of a parent's process or another event loop."""

    def get(self) -> T:
        """The value of here; made when it is first asked for."""

    def others(self) -> list[T]:
        """The values of this process's other event loops."""

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """The event loops that have a value."""


async def hold_lock(lock: Lock, work: Callable[[], Awaitable[T]]) -> T:
    """Do some work while holding a lock, which the running thread or task does not hold yet.

    No ``with``: an interrupt between its lines would leave the lock held.

    Args:
        lock: The lock.
        work: Gives what is awaited.
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
    """Do some work as `hold_lock` does, if the lock can be had within ``seconds``; else return None."""
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
