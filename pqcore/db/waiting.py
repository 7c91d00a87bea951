"""Waiting of an engine's callers: for a notification, or for a job."""

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
        channel: On which puts into it are notified.
    """

    name: str
    channel: str


class Waiting(Transactions):
    """The waiters of an engine, and what they wait with.

    Args:
        runtime: How to wait.
    """

    dialect: type[Dialect]
    _listeners: Kept[Listener | SharedConnectionListener]

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._blind = 0  # waiters that nothing can wake

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
        """What listens, for each process or event loop.

        Args:
            able: Whether we can listen at all.
        """
        if isinstance(self.source, AdoptedConnection):
            sole = SharedConnectionListener(self.source, self.runtime, able=able)
            return self.runtime.kept(lambda: sole)
        return self.runtime.kept(partial(Listener, self.source, self.runtime, able=able))

    @property
    def listener(self) -> Listener | SharedConnectionListener:
        """Waits for notifications, for this process or event loop."""
        return self._listeners.get()

    async def wait(self, channel: str, ticket: int | None, seconds: float, *, reads: bool = True) -> None:
        """Wait for a notification, for at most ``seconds``; may return early, to look at the table.

        Args:
            channel: What is waited for.
            ticket: What `snapshot` gave before the last look.
            seconds: How long to wait, at most.
            reads: Whether the waiter may read the listening socket. False for one that need not hear first.
        """
        if isinstance(self.listener, SharedConnectionListener) and self._current() is not None:
            await self.runtime.sleep(min(seconds, BLIND_POLL))  # the block has the only connection
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
        """Wait until a queue may have a job, for at most ``seconds``; may return early, to look at the table.

        Waiters that no notification can wake share one look, which finds what their own would find. A waiter within a
        block looks by itself, as only that look sees what the block has done. So does a waiter on a framework's
        connections, which may be in a transaction of the framework's.

        Args:
            queue: The queue.
            ticket: What `Listener.snapshot` gave for its channel before the last look.
            seconds: Seconds until it is worth another look.
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
        """Of these queues, give those that have a job to take."""

        async def work(session: Session) -> Sequence[Row]:
            return await session.execute(
                session.sql.ready_queues, session.sql.ready_queues.bind({"names": list(names)})
            )

        return [name for [name] in await self.run(work, protect=False, undo=keep_result)]

    def poll_interval(self, seconds: float) -> float:
        """How long a waiter waits that polls every ``seconds``: longer where very many wait."""
        return max(seconds, self.listener.crowd / LOOKS)

    def snapshot(self, channel: str) -> int | None:
        """What is given to `wait`, asked for before a look; None if the channel is not listened to."""
        return self.listener.snapshot(channel) if self._listeners.made else None

    def wake(self, channel: str) -> None:
        """Wake those who wait on a channel, as a notification would."""
        self.listener.wake(channel)

    def wake_unlistened(self, channel: str) -> None:
        """Wake those who wait on a channel that is not listened to, and which a notification cannot reach."""
        if self.snapshot(channel) is None:
            self.listener.wake(channel)
