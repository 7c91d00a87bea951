"""The turn to read the socket of a listening connection: a waiting thread or the listener's own thread has the turn.

A waiting thread reads the socket itself, so that no other thread must be scheduled between the notification and the
caller. The waiting thread reads for all waiters of the process, and wakes a waiter when its notification comes. When
the waiting thread leaves while other threads wait, the listener's own thread reads until another waiter comes.

The listener's own thread waits on a separate epoll(7) object. Waiters change which events of the socket this object
watches, so the turn passes without waking a thread. Every `pqcore.db.channels.SLICE` seconds, the listener's own thread
reads in any case. So a waiter that was interrupted and kept its turn delays other waiters by at most this time.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING
from weakref import ref

from pqcore.db.runtime import Event

if TYPE_CHECKING:
    from pqcore.db.session import Session

GRACE = 1.0
"""Seconds by which a waiter may exceed its time before another waiter takes the turn from it."""


def turn_for(session: Session) -> SocketTurn | None:
    """Return the turn to read a session's socket.

    Returns:
        None if the listener's own thread must always read: because the driver is asynchronous, because the driver does
        not give its socket, or because epoll(7) is missing (some libraries, such as gevent, remove it).
    """
    if session.suspends or not hasattr(session.driver, "fileno"):
        return None
    if sys.platform != "linux" or not hasattr(select, "epoll") or not hasattr(os, "eventfd"):
        return None
    try:
        return SocketTurn(session.driver.fileno())
    except OSError:  # too many files are open
        return None


class SocketTurn:
    """The turn to read one socket.

    Args:
        fileno: The socket.
    """

    _bell = -1

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._lock = Lock()
        self._reader: ref[ReadingWaiter] | None = None
        self._over = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # The listener's own thread waits on `_idle`. The waiter that has the turn waits on `_reading`.
        self._idle = select.epoll()
        self._reading = select.epoll()
        self._idle.register(fileno, select.EPOLLIN)
        self._reading.register(fileno, select.EPOLLIN)
        self._reading.register(self._bell, select.EPOLLIN)

    def __del__(self) -> None:
        if self._bell >= 0:
            os.close(self._bell)

    def wait_idle(self, seconds: float) -> None:
        """Wait, in the listener's own thread, until the socket has data that no waiter reads.

        Args:
            seconds: The largest number of seconds to wait.
        """
        self._idle.poll(seconds)

    def read_for_others(self) -> None:
        """Make the listener's own thread read for the other waiters, unless a waiter reads."""
        with self._lock:
            if self._current() is None:
                self._watch_idle(select.EPOLLIN)

    def _current(self) -> ReadingWaiter | None:
        reader = None if self._reader is None else self._reader()
        return None if reader is None or reader.over_at < time.monotonic() else reader

    def _watch_idle(self, events: int) -> None:
        with suppress(OSError):  # the socket is closed
            self._idle.modify(self._fileno, events)

    def take(self, waiter: ReadingWaiter) -> bool:
        """Give a waiter the turn, unless another waiter has it; return whether the waiter got it."""
        with self._lock:
            if self._current() is not None:
                return False
            self._reader = ref(waiter)
            self._watch_idle(0)
            return True

    def leave(self, waiter: Event) -> None:
        """Take the turn from a waiter, if the waiter has it.

        If other waiters wait, the caller must then call `read_for_others`.
        """
        if self._reader is not None and self._reader() is waiter:
            with self._lock:
                self._reader = None

    def poll(self, seconds: float) -> bool:
        """Wait until the socket has data, or `ring` is called, for at most ``seconds``.

        Returns:
            Whether the socket has data.
        """
        readable = False
        for fileno, _ in self._reading.poll(seconds):
            if fileno == self._bell:
                if not self._over:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._bell)
            else:
                readable = True
        return readable

    def end(self) -> None:
        """Wake all threads that wait for the socket, because epoll(7) does not report that the socket was closed."""
        self._over = True
        with suppress(OSError):
            self._idle.register(self._bell, select.EPOLLIN)
        self.ring()

    def ring(self) -> None:
        """Wake the waiter that has the turn."""
        with suppress(BlockingIOError):
            os.eventfd_write(self._bell, 1)


class ReadingWaiter:
    """A thread that waits for a notification, and may read the socket: an `Event`.

    Args:
        turn: The turn to read.
        event: The event to wait for while another thread reads.
        read: A function that reads what arrives within a number of seconds, and wakes all waiters concerned.

    Attributes:
        over_at: When the turn ends if the waiter does not leave it, by the monotonic clock.
    """

    def __init__(self, turn: SocketTurn, event: Event, read: Callable[[float], Awaitable[None]]) -> None:
        self._turn = turn
        self._event = event
        self._read = read
        self._is_set = False
        self._polls = False
        self.over_at = math.inf

    def set(self) -> None:
        """Wake the waiter."""
        self._is_set = True  # before reading `_polls`, because a waiter sets `_polls`, and then checks `_is_set`
        self._event.set()
        if self._polls:
            self._turn.ring()

    async def wait(self, seconds: float) -> bool:
        """Wait until set, for at most ``seconds``; return whether it is set.

        Read what arrives, unless another waiter does.
        """
        deadline = time.monotonic() + seconds
        self.over_at = deadline + GRACE
        if not self._turn.take(self):
            return await self._event.wait(seconds)
        self._polls = True
        while not self._is_set and (left := deadline - time.monotonic()) > 0:
            if self._turn.poll(left):
                self._polls = False
                await self._read(max(deadline - time.monotonic(), 0.0))
                self._polls = True
        return self._is_set
