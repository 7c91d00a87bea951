"""How an engine's callers wait: for a notification, or for a job."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from pqcore.backend import Row
from pqcore.db.listener import Listener
from pqcore.db.runtime import Kept, Runtime
from pqcore.db.session import Session
from pqcore.db.shared_connection_listener import SharedConnectionListener
from pqcore.db.shared_poll import BLIND_POLL, LOOKS
from pqcore.db.sources import AdoptedConnection, ProvidedConnections
from pqcore.db.transactions import Transactions, keep_result
from pqcore.sql.dialect import Dialect

T = TypeVar("T")


class NamedQueue(Protocol):
    """A queue that a caller waits for.

    Attributes:
        name: The queue's name.
        channel: The channel that is notified after a put into the queue.
    """

    name: str
    channel: str


class Waiting(Transactions):
    """The waiters of an engine, and the objects with which they wait.

    Args:
        runtime: The runtime, which waits.
    """

    dialect: type[Dialect]
    _listeners: Kept[Listener | SharedConnectionListener]

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._blind = 0  # the number of waiters that no notification can wake

    @abstractmethod
    def run(
        self,
        operation: Callable[[Session], Awaitable[T]],
        *,
        protect: bool = True,
        undo: Callable[[T], Awaitable[None]] | None = None,
    ) -> Coroutine[Any, Any, T]:
        """Run an operation; see `pqcore.db.engine.Engine.run`."""

    def _listen(self, able: Callable[[], bool]) -> Kept[Listener | SharedConnectionListener]:
        """Return a listener for each process or event loop.

        Args:
            able: Whether LISTEN is possible at all.
        """
        if isinstance(self.source, AdoptedConnection):
            sole = SharedConnectionListener(self.source, self.runtime, able=able)
            return self.runtime.kept(lambda: sole)
        return self.runtime.kept(partial(Listener, self.source, self.runtime, able=able))

    @property
    def listener(self) -> Listener | SharedConnectionListener:
        """Return the listener of this process or event loop."""
        return self._listeners.get()

    async def wait(self, channel: str, ticket: int | None, seconds: float, *, reads: bool = True) -> None:
        """Wait for a notification, for at most ``seconds``.

        The call may return early, so that the caller looks at the table.

        Args:
            channel: The channel to wait for.
            ticket: The value that `snapshot` returned before the last look.
            seconds: The largest number of seconds to wait.
            reads: Whether the waiter may read the listening socket. False suits a waiter that need not be the first to
                hear of a notification.
        """
        if isinstance(self.listener, SharedConnectionListener) and self._current() is not None:
            await self.runtime.sleep(min(seconds, BLIND_POLL))  # the block uses the only connection
        elif ticket is not None:
            await self.listener.wait(channel, ticket, seconds, reads=reads)
        else:
            deadline = time.monotonic() + seconds
            if not await self.listener.listen(channel, seconds):
                self._blind += 1
                try:
                    pause = max(BLIND_POLL, self._blind / LOOKS)
                    await self.listener.pause(channel, min(max(deadline - time.monotonic(), 0.0), pause))
                finally:
                    self._blind -= 1

    async def wait_for_jobs(self, queue: NamedQueue, ticket: int | None, seconds: float, poll_interval: float) -> None:
        """Wait until a queue may have a job, for at most ``seconds``.

        The call may return early, so that the caller looks.

        Waiters that no notification can wake share one look, which finds the same jobs as a separate look by each
        waiter would. A waiter within a block looks by itself, because only that look sees the changes of the block. A
        waiter on a framework's connections also looks by itself, because it may be in a transaction of the framework.

        Args:
            queue: The queue.
            ticket: The value that `Listener.snapshot` returned for the channel before the last look.
            seconds: Seconds until the next look is worthwhile.
            poll_interval: Seconds after which to look in any case, unless the look is shared.
        """
        listener, pause = self.listener, min(seconds, self.poll_interval(poll_interval))
        if (
            ticket is not None
            or poll_interval < BLIND_POLL
            or isinstance(listener, SharedConnectionListener)
            or isinstance(self.source, ProvidedConnections)
            or "shared looks" in self.dialect.unsupported
            or self._current() is not None
        ):
            await self.wait(queue.channel, ticket, pause)
            return
        deadline = time.monotonic() + seconds
        if not await listener.listen(queue.channel, pause):
            left = max(deadline - time.monotonic(), 0.0)
            await listener.share(queue.channel, queue.name, left, self._ready_queues)

    async def _ready_queues(self, names: Sequence[str]) -> Sequence[str]:
        """Return the queues that have a job to take."""

        async def work(session: Session) -> Sequence[Row]:
            return await session.execute(
                session.sql.ready_queues, session.sql.ready_queues.bind({"names": list(names)})
            )

        return [name for [name] in await self.run(work, protect=False, undo=keep_result)]

    def poll_interval(self, seconds: float) -> float:
        """Return the poll interval of a waiter: ``seconds``, or a longer time if very many waiters poll."""
        return max(seconds, self.listener.crowd / LOOKS)

    def snapshot(self, channel: str) -> int | None:
        """Return the ticket to give to `wait`; get the ticket before a look.

        Return None if pqcore does not listen to the channel.
        """
        return self.listener.snapshot(channel) if self._listeners.made else None

    def wake(self, channel: str) -> None:
        """Wake the waiters on a channel, as a notification would."""
        self.listener.wake(channel)

    def wake_unlistened(self, channel: str) -> None:
        """Wake the waiters on a channel if pqcore does not listen to the channel, so that no notification arrives."""
        if self.snapshot(channel) is None:
            self.listener.wake(channel)
