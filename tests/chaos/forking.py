"""A client process that forks in C, as uWSGI does, while it has connections; parent and child go on over one `PQ`."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pqcore.tasks import PQ, AsyncPQ
from pqcore.testing.portal import Blocking, Portal

from .client import Client
from .log import Log

ACTS, MOST = 15, 3.0
"""What a child does at most, in acts and in seconds."""


class Loop(Portal):
    """A portal whose event loop runs in the main thread, during each call; a forked process has a loop of its own."""

    def __init__(self) -> None:
        self._kept: list[Any] = []  # the parent's: closing them here would end what the parent still uses
        self._pid = 0

    def call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await what is made, always in the same task, and return the result."""
        if self._pid != os.getpid():
            self._pid, self._loop = os.getpid(), asyncio.new_event_loop()
            self._inbox: asyncio.Queue[Any] = asyncio.Queue()
            self._kept += [self._loop, self._loop.create_task(self._work(self._inbox))]
        future = self._loop.create_future()
        self._inbox.put_nowait((make, future))
        return self._loop.run_until_complete(future)

    async def _work(self, inbox: asyncio.Queue[Any]) -> None:
        while True:
            make, future = await inbox.get()
            try:
                future.set_result(await make())
            except Exception as exc:
                future.set_exception(exc)


def main(backend: str, mode: str, dsn: str, log: str, seed: str) -> None:
    """Go on until killed, and fork at each SIGUSR1.

    Args:
        backend: The backend's name.
        mode: ``blocking`` or ``async``.
        dsn: The server, through whatever fails.
        log: Where it is written what happened, by the children too.
        seed: What is done.
    """
    logging.getLogger("pqcore").setLevel(logging.CRITICAL)  # it warns of what is done to it
    loop = Loop() if mode == "async" else None
    options: dict[str, Any] = {"backend": backend, "timeout": 0.05, "pool_timeout": 5}
    pq: Any = PQ(dsn, **options) if loop is None else Blocking(AsyncPQ(dsn, **options), loop)
    wanted: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: wanted.append(number))
    client = Client(pq, loop, Log(Path(log)), f"{os.getpid()}-{seed}", int(seed))
    if loop is not None:  # which runs in this thread alone
        del client.acts[client.put_together], client.acts[client.take_together]
    # The GIL is held during the call, so that the child's only thread has it.
    fork = ctypes.PyDLL(None).fork
    children: set[int] = set()
    while True:
        client.step()
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        if wanted:
            wanted.clear()
            child = int(fork())
            if child == 0:
                _enqueue_next_in_chain(client, seed)
            children.add(child)


def _enqueue_next_in_chain(client: Client, seed: str) -> None:
    """Use what the parent uses, for a while, and end."""
    client.become(f"{os.getpid()}-{seed}")
    until = time.monotonic() + MOST
    try:
        for _ in range(ACTS):
            client.step()
            if time.monotonic() > until:
                break
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
