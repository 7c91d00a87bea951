"""Latches and notes for a test's functions, which wait for a latch and add notes, in threads or on event loops."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

from pqcore.testing.harness import PATIENCE


class Latch:
    """A latch that functions wait for until it is opened."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[asyncio.Future[None]] = []

    def open(self) -> None:
        """Let the waiting functions continue; any thread may call this."""
        with self._lock:
            self._event.set()
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            with suppress(RuntimeError):  # the loop of the waiter is closed
                future.get_loop().call_soon_threadsafe(_let_go, future)

    def wait(self) -> None:
        """Wait in a thread."""
        assert self._event.wait(PATIENCE), f"was not opened in {PATIENCE} seconds"

    async def passed(self) -> None:
        """Wait on a loop."""
        with self._lock:
            if self._event.is_set():
                return
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
        await future


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Notes:
    """Notes in the order in which they were added.

    Attributes:
        items: All notes.
    """

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._changed = threading.Condition()

    def add(self, item: Any) -> None:
        """Add a note; any thread may call this."""
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    def wait(self, number: int) -> list[Any]:
        """Wait until there are this many notes."""
        with self._changed:
            enough = self._changed.wait_for(lambda: len(self.items) >= number, PATIENCE)
            assert enough, f"only this in {PATIENCE} seconds: {self.items}"
            return list(self.items)
