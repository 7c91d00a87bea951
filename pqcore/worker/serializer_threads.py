"""Threads in which a worker's serializers decode and encode, so that they do not hold up the event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from pqcore.tasks.outcomes import SLOW_SERIALIZER
from pqcore.worker.state import WorkerState
from pqcore.worker.threads import Threads

logger = logging.getLogger("pqcore.tasks")

T = TypeVar("T")

CPU_BOUND_SECONDS = 0.01
"""Seconds of CPU time per call from which a serializer counts as CPU-bound."""
FAST_SECONDS = 0.0002
"""Seconds of CPU time per call up to which decoding needs no thread: handing a call to a thread takes as long."""
FAST_SIZE = 2**18
"""Data up to this size (characters or bytes) is assumed to decode as fast as earlier data; a wrong guess costs some
ms."""
DECAY = 0.8
"""The recorded CPU time of a serializer is multiplied by this factor with each call, because data differs in size."""


class SerializerThreads:
    """Decodes and encodes in threads.

    Serializers that wait, for a key service for example, work in one thread per job. Serializers that compute take
    turns, because many computing threads would keep the event loop's thread from getting the GIL. A serializer counts
    as computing until its calls are known to take little CPU time.

    Args:
        worker_state: The state that the worker's parts share.
        threads: The threads.
    """

    def __init__(self, worker_state: WorkerState, threads: Threads) -> None:
        self._worker_state = worker_state
        self._threads = threads
        self._seconds: dict[str, float] = {}
        self._busy = False
        self._waiters: list[asyncio.Future[None]] = []

    async def wait_turn(self, serializer: str) -> None:
        """Wait until a serializer may begin."""
        while self._busy and self._is_cpu_bound(serializer):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def run(self, serializer: str, what: str, call: Callable[[], T]) -> T:
        """Make a call in a thread, after `wait_turn`; the log names the serializer if the call takes long.

        Args:
            serializer: The serializer's name.
            what: A description of the call, for the log.
            call: The call.
        """

        def timed() -> tuple[T, float]:
            began = time.thread_time()
            return call(), time.thread_time() - began

        took_turn = self._is_cpu_bound(serializer)
        self._busy |= took_turn
        timer = asyncio.get_running_loop().call_later(SLOW_SERIALIZER, _warn_slow, serializer, what)
        self._worker_state.serializers_running.append(serializer)
        self._worker_state.serializers_seen.add(serializer)
        try:
            made: tuple[T, float] = await self._threads.run(timed)
            result, seconds = made
            self.note(serializer, seconds)
        finally:
            timer.cancel()
            self._worker_state.serializers_running.remove(serializer)
            if took_turn:
                self._busy = False
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        return result

    def is_fast(self, serializer: str) -> bool:
        """Return whether a serializer's last calls took so little CPU time that it needs no thread."""
        return self._seconds.get(serializer, math.inf) <= FAST_SECONDS

    def note(self, serializer: str, seconds: float) -> None:
        """Record the CPU time of a call."""
        self._seconds[serializer] = max(seconds, DECAY * self._seconds.get(serializer, 0.0))

    def _is_cpu_bound(self, serializer: str) -> bool:
        return self._seconds.get(serializer, math.inf) > CPU_BOUND_SECONDS


def _warn_slow(serializer: str, what: str) -> None:
    logger.warning("serializer %r has been %s for %.1f seconds", serializer, what, SLOW_SERIALIZER)
