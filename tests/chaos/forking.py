"""A client process that forks in C, as uWSGI does, while it has connections. Parent and child go on with one `PQ`."""

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
"""The largest number of a child's acts, and of its seconds."""


class Loop(Portal):
    """A portal whose event loop runs in the main thread during each call; a forked process has its own loop."""

    def __init__(self) -> None:
        self._kept: list[Any] = []  # these belong to the parent: closing them here would end what the parent still uses
        self._pid = 0

    def call(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Make an awaitable, await it, always in the same task, and return the result."""
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
    """Act until the process is killed, and fork at each SIGUSR1.

    Args:
        backend: The backend's name.
        mode: ``blocking`` or ``async``.
        dsn: The address of the server, behind the failing proxy.
        log: The path of the log, also for the children.
        seed: The seed that determines the acts.
    """
    logging.getLogger("pqcore").setLevel(logging.CRITICAL)  # pqcore warns of the injected faults
    loop = Loop() if mode == "async" else None
    options: dict[str, Any] = {"backend": backend, "timeout": 0.05, "pool_timeout": 5}
    pq: Any = PQ(dsn, **options) if loop is None else Blocking(AsyncPQ(dsn, **options), loop)
    wanted: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: wanted.append(number))
    client = Client(pq, loop, Log(Path(log)), f"{os.getpid()}-{seed}", int(seed))
    if loop is not None:  # runs only in this thread
        del client.acts[client.put_together], client.acts[client.take_together]
    # The call holds the GIL, so that the child's only thread has it.
    fork = ctypes.PyDLL(None).fork
    children: set[int] = set()
    while True:
        client.step()
        children -= {child for child in children if os.waitpid(child, os.WNOHANG)[0]}
        if wanted:
            wanted.clear()
            child = int(fork())
            if child == 0:
                _run_child(client, seed)
            children.add(child)


def _run_child(client: Client, seed: str) -> None:
    """Use the parent's `PQ` for a while, and exit."""
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
