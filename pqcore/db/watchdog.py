"""The watchdog: one thread that looks at all connections of the process, and breaks off those without an answer.

A half-open connection looks like one whose server is slow: the other side is gone, and nobody said so.  A call on it
would wait until TCP gives up, which may be never.  So each session has a limit.  When three quarters of the limit
have passed, the server is asked to cancel the statement (the cancel request of PostgreSQL's protocol, on a connection
of its own).  That ends a statement that waits for a lock, and leaves nothing behind on the server.  A call that is
still not answered at the limit fails, because its socket is shut down.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pqcore.db.session import Session

LOOK = 0.5
"""Seconds between two looks at all connections, at most."""
LATE = 1.0
"""Seconds by which a look may be late.  After more, the process stood still, and answers may lie unread."""
ASKED_AT = 0.75
"""The part of a session's limit after which the server is asked to cancel the statement."""
LEISURE = 20
"""Looks without any session after which the thread ends."""


class Watched(Protocol):
    """What opens sessions, and knows those that are in use: see `pqcore.db.backend_adapter.BackendAdapter`."""

    def sessions(self) -> Sequence[Session]: ...

    def count_broken_off(self, now: float) -> None: ...

    def break_off_unheard(self, limit: float) -> None: ...


class Watchdog:
    """Looks at the sessions of openers, in a thread that runs while there are sessions."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._openers: WeakSet[Watched] = WeakSet()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def watch(self, opener: Watched) -> None:
        """Look at the sessions of an opener from now on."""
        if self._process != os.getpid():  # forked: the thread, and the holder of the lock, are the parent's
            self._begin()
        with self._lock:
            self._openers.add(opener)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="pqcore-watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        steady = looked = time.monotonic()  # the process has not stood still since
        pause, idle = LOOK, 0
        while True:
            time.sleep(pause)
            now = time.monotonic()
            if now - looked > pause + LATE:
                steady = now
            looked = now
            shortest = self._look(now, steady)
            idle = 0 if shortest is not None else idle + 1
            if idle > LEISURE and self._rest():
                return
            pause = LOOK if shortest is None else min(max(shortest / 8, 0.02), LOOK)

    def _look(self, now: float, steady: float) -> float | None:
        """Look at all sessions; the shortest limit of any, None without one."""
        with self._lock:
            openers = list(self._openers)
        shortest: float | None = None
        for opener in openers:
            for session in opener.sessions():
                limit = session.limit
                if limit is None or session.caller_owned:
                    continue
                shortest = limit if shortest is None else min(shortest, limit)
                since = session.busy_since
                if since is None:
                    continue
                waited = now - max(since, steady)
                if waited >= limit:
                    if session.break_off(since):
                        opener.count_broken_off(now)
                        opener.break_off_unheard(limit)
                elif waited >= limit * ASKED_AT:
                    session.ask_to_cancel(since)
        return shortest

    def break_off_blocks_of(self, thread: int) -> bool:
        """Break off the transaction blocks of a thread in which a statement is under way; whether there was one."""
        with self._lock:
            openers = list(self._openers)
        found = False
        for opener in openers:
            for session in opener.sessions():
                if session.block_of == thread and session.busy():
                    session.abort()
                    found = True
        return found

    def _rest(self) -> bool:
        """Let the thread end if there is nothing to watch; whether it ends."""
        with self._lock:
            if any(opener.sessions() for opener in self._openers):
                return False
            self._thread = None
            return True


watchdog = Watchdog()
"""The one of this process."""
