"""What a worker knows of one of its queues."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pqcore.dialect import SIZES
from pqcore.identifiers import channel, control_channel
from pqcore.job import AsyncJob, BaseJob, Job
from pqcore.operations.finishing import Outcome
from pqcore.queue import Queue
from pqcore.tasks.context import JobContext
from pqcore.tasks.running import Run
from pqcore.worker.bridge import Bridge

PACE = 0.02
"""Seconds after which the pace of before counts no more."""
AHEAD = 0.1
"""Seconds of work, at the pace of late, that a worker fetches ahead."""


@dataclass(eq=False)
class Held:
    """A job that the worker holds under a lease.

    Attributes:
        job: The job.
        leased_at: When the lease began, by the monotonic clock.
        run: Its call, once begun.
        context: What the function sees of it.
        task: What executes it.
        began: When it was begun, by the performance counter.
        ended: Whether its end is decided: then nothing can stop it.
        cancellable: Whether cancelling ``task`` stops the function.
        reported: When its progress was stored last, by the monotonic clock.
    """

    job: BaseJob
    leased_at: float
    run: Run | None = None
    context: JobContext | None = None
    task: asyncio.Task[None] | None = None
    began: float = 0.0
    ended: bool = False
    cancellable: bool = False
    reported: float = 0.0
    error: BaseException | None = None


@dataclass(eq=False)
class Station:
    """A queue, the jobs that are held of it, and those of which the end is to be stored.

    Attributes:
        queue: The queue.
        bridge: How its operations are run.
        buffer: Jobs that were fetched ahead.
        held: All jobs that are held, by id.
        done: How jobs ended, not stored yet.
        pace: Jobs a second, of late.
        started: Jobs begun since the pace was measured.
        measured_at: When that was, by the monotonic clock.
        reserved: Jobs that are being fetched.
        idle: Whether there was nothing at the last look.
    """

    queue: Any
    bridge: Bridge
    buffer: deque[Held] = field(default_factory=deque)
    held: dict[int, Held] = field(default_factory=dict)
    done: list[Outcome] = field(default_factory=list)
    pace: float = 0.0
    started: int = 0
    measured_at: float = 0.0
    reserved: int = 0
    idle: bool = False

    def __post_init__(self) -> None:
        self.channel = channel(self.queue.name)
        self.control = control_channel(self.queue.name)
        self._job: type[BaseJob] = Job if isinstance(self.queue, Queue) else AsyncJob

    def job(self, row: Any) -> BaseJob:
        """The job of a row that was leased."""
        return self._job(self.queue, row, leased=True)

    def measure(self, now: float) -> None:
        """Reckon the pace anew, if there is enough to go by."""
        elapsed = now - self.measured_at
        if elapsed >= PACE / 4:
            weight = min(elapsed / PACE, 1.0)
            self.pace += weight * (self.started / elapsed - self.pace)
            self.started, self.measured_at = 0, now

    def wanted(self, free: int, prefetch: int) -> int:
        """How many jobs to fetch: for the free places, and ahead if they go fast."""
        ahead = min(prefetch, int(self.pace * AHEAD))
        waiting = len(self.buffer)
        if free <= 0 and waiting > ahead // 2:
            return 0
        n = max(free, 0) + ahead - waiting
        return max((size for size in SIZES if size <= n), default=0)
