"""The watchdog: one thread that checks the connections of the process, and closes those that get no answer.

A half-open connection looks like one with a slow server: the other side is gone, but TCP has not noticed. A call on
such a connection would wait until TCP gives up, which may never happen. So each session has a limit. After three
quarters of the limit, the watchdog asks the server to cancel the statement (the cancel request of PostgreSQL's
protocol, on a separate connection). If the statement waits for a lock, this request ends it, and nothing is left on the
server. A call that is still not answered at the limit fails, because the watchdog shuts its socket down.
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
"""The largest number of seconds between two checks of all connections."""
LATE = 1.0
"""Seconds by which a check may be late. If a check is later than that, the process was suspended, and answers may be
unread."""
ASKED_AT = 0.75
"""After this part of a session's limit, the server is asked to cancel the statement."""
LEISURE = 20
"""The thread ends after this many successive checks that found no session."""


class Watched(Protocol):
    """An object that opens sessions, and knows which are in use: see `pqcore.db.backend_adapter.BackendAdapter`."""

    def sessions(self) -> Sequence[Session]: ...

    def count_broken_off(self, now: float) -> None: ...

    def break_off_unheard(self, limit: float) -> None: ...


class Watchdog:
    """A watcher of openers' sessions, in a thread that runs while there are sessions."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._openers: WeakSet[Watched] = WeakSet()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def watch(self, opener: Watched) -> None:
        """Check the sessions of an opener from now on."""
        # A forked child has no watchdog thread, and its copy of the lock may be locked.
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            self._openers.add(opener)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="pqcore-watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        steady = looked = time.monotonic()  # `steady`: since this time, the process has not been suspended
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
        """Check all sessions; return the shortest of their limits, or None if there are no sessions."""
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
        """Close each connection that runs a statement in a transaction block of a thread.

        Return whether this method found such a connection.
        """
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
        """Let the thread end if there is nothing to watch; return whether it ends."""
        with self._lock:
            if any(opener.sessions() for opener in self._openers):
                return False
            self._thread = None
            return True


watchdog = Watchdog()
"""The watchdog of this process."""
