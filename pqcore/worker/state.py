"""What a worker knows of one of its queues, and what its parts share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pqcore.job import AsyncJob, BaseJob, Job
from pqcore.operations.job_outcome import Outcome, Refusals
from pqcore.queue import Queue
from pqcore.sql.fetch_statements import SIZES
from pqcore.sql.identifiers import control_channel
from pqcore.tasks.job_events import Attempt
from pqcore.worker.bridge import Bridge

PACE = 0.02
"""Seconds after which the pace of before counts no more."""
AHEAD = 0.1
"""Seconds of work, at the pace of late, that a worker fetches ahead."""

Key: TypeAlias = tuple[int, int]
"""A lease: the job's id, and the token. The worker may be given a job again that it has lost."""


@dataclass(eq=False, slots=True, kw_only=True)
class ActiveJob(Attempt):
    """A job that the worker holds under a lease, and its attempt to run it.

    Attributes:
        queue_state: The state of the job's queue.
        leased_at: When the lease began, by the monotonic clock.
        task: The asyncio task that runs it.
        timer: What stops it when its time is up.
        thread: The identifier of the thread that calls the function, if it is one.
        ended: Whether its outcome is decided: then nothing can stop it.
        cancellable: Whether cancelling ``task`` stops the function.
        reported: When its progress was stored last, by the monotonic clock.
        doubtful: Whether the answer to an attempt to store its outcome was lost.
        refusals: Those of the server to store its outcome; None before the first.
    """

    queue_state: QueueState
    leased_at: float
    task: asyncio.Task[Any] | None = None
    timer: asyncio.TimerHandle | None = None
    thread: int | None = None
    ended: bool = False
    cancellable: bool = False
    reported: float = 0.0
    doubtful: bool = False
    refusals: Refusals | None = None

    @property
    def begun(self) -> bool:
        """Whether it has got a place, and is no longer in the buffer."""
        return self.task is not None or self.ended

    @property
    def key(self) -> Key:
        """Which lease it is held under."""
        return self.job.id, self.job.token


@dataclass(eq=False)
class QueueState:
    """A queue, the jobs that are held of it, and those of which the end is to be stored.

    Attributes:
        queue: The queue.
        bridge: How its operations are run.
        buffer: Jobs that were fetched ahead.
        held: All jobs that are held.
        done: How jobs ended, not stored yet.
        unbegun: Jobs that are to be given back as they were.
        to_store: Set when there is something in either.
        telling: Whether plugins are being told of what was stored.
        pace: Jobs a second, of late.
        started: Jobs begun since the pace was measured.
        measured_at: When that was, by the monotonic clock.
        reserved: Places that are kept for jobs that are being fetched.
        looking: Whether jobs are being fetched.
        asking: Whether it may have jobs, and has no place to fetch one for.
        looked: `WorkerState.changes` as it was before the last look, if that found nothing.
    """

    queue: Any
    bridge: Bridge
    buffer: deque[ActiveJob] = field(default_factory=deque)
    held: dict[Key, ActiveJob] = field(default_factory=dict)
    done: list[Outcome] = field(default_factory=list)
    unbegun: list[ActiveJob] = field(default_factory=list)
    to_store: asyncio.Event = field(default_factory=asyncio.Event)
    telling: bool = False
    pace: float = 0.0
    started: int = 0
    measured_at: float = 0.0
    reserved: int = 0
    looking: bool = False
    asking: bool = False
    looked: int = -1

    def __post_init__(self) -> None:
        self.channel = self.queue.channel
        self.control = control_channel(self.queue.name)
        self._job: type[BaseJob] = Job if isinstance(self.queue, Queue) else AsyncJob

    def lease(self, row: Any, leased_at: float) -> ActiveJob:
        """Return the active job of a row that was leased."""
        job = self._job(self.queue, row, leased=True)
        return ActiveJob(self.queue, job, queue_state=self, leased_at=leased_at)

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

    def decide(self, held: ActiveJob, outcome: Outcome) -> None:
        """Have a job end so."""
        held.ended = True
        self.done.append(outcome)
        self.to_store.set()

    def hand_back(self, ones: Sequence[ActiveJob]) -> None:
        """Give jobs back that were not begun."""
        if not ones:
            return
        for held in ones:
            held.ended = True
        self.buffer = deque(held for held in self.buffer if not held.ended)
        self.unbegun.extend(ones)
        self.to_store.set()


@dataclass(eq=False)
class WorkerState:
    """What the parts of a worker share.

    Attributes:
        free: Places for jobs that are free.
        queue_states: Its queues; the one whose turn it is comes first.
        room: Set when it may be time to fetch jobs.
        draining: Set when no more are to be fetched.
        at_once: Set when functions that run must stop, too.
        over: Whether the worker itself ends its parts; before, it is the event loop that cancels them.
        interruptible: Whether Ctrl-C may raise KeyboardInterrupt within a coroutine function.
        interrupted: What did so.
        quiet: Set when no job is held.
        changes: Rises when jobs came, and when their ends were stored.
        coding: The names of serializers that decode or encode in threads, one each time.
        coded: The names of those that did so since the watch looked last.
    """

    free: int
    queue_states: list[QueueState] = field(default_factory=list)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    at_once: asyncio.Event = field(default_factory=asyncio.Event)
    quiet: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False
    interruptible: bool = False
    interrupted: BaseException | None = None
    changes: int = 0
    coding: list[str] = field(default_factory=list)
    coded: set[str] = field(default_factory=set)

    def open_to(self, queue_state: QueueState) -> int:
        """The free places that are not kept for other queues."""
        if len(self.queue_states) == 1:
            return self.free
        return self.free - sum(each.reserved for each in self.queue_states) + queue_state.reserved

    def next(self) -> QueueState | None:
        """The queue that gets a free place: of those that have use for one, the one that got none for longest."""
        if self.free <= 0:
            return None
        for place, queue_state in enumerate(self.queue_states):
            if (queue_state.buffer or queue_state.asking) and self.open_to(queue_state) > 0:
                if len(self.queue_states) > 1:
                    self.queue_states.append(self.queue_states.pop(place))
                return queue_state
        return None

    def interrupt(self, interrupt: BaseException) -> None:
        """Have the worker stop immediately, and raise this."""
        self.interrupted = interrupt
        self.at_once.set()
        self.draining.set()
        self.room.set()

    def in_hand(self) -> bool:
        """Whether anything is held, being fetched, or still to be told of."""
        return any(queue_state.held or queue_state.looking or queue_state.telling for queue_state in self.queue_states)

    def look_quiet(self) -> None:
        """Say so if nothing is held any more."""
        if not self.in_hand():
            self.quiet.set()
