"""The state of a worker and of its queues, which the worker's parts share."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from pqcore.job import AsyncJob, BaseJob, Job
from pqcore.operations.job_outcome import Outcome, Refusals
from pqcore.queue import Queue
from pqcore.sql.fetch_statements import SIZES
from pqcore.sql.identifiers import control_channel
from pqcore.tasks.job_events import Attempt
from pqcore.worker.bridge import Bridge
from pqcore.worker.threads import ThreadCall

THROUGHPUT_WINDOW = 0.02
"""Seconds over which the throughput is averaged."""
PREFETCH_SECONDS = 0.1
"""Seconds of work, at the current throughput, that a worker fetches ahead."""
PREFETCH_SECONDS_OF_LANES = 0.01
"""Seconds of work that a worker fetches ahead while jobs wait for admission.

If tenants have shares, nothing is fetched ahead: a new job would wait behind the jobs that were fetched ahead.
"""
PLACE_SECONDS = 0.02
"""The smallest number of seconds of work that is leased ahead for one place under a limit.

The statement that ends a job and leases another takes some milliseconds. Without jobs leased ahead, the place would be
empty meanwhile. If two such statements take longer than this number of seconds, more work is leased ahead.
"""
LONGEST_AHEAD = 0.1
"""Jobs that run longer than this number of seconds are not leased ahead for a place; of faster jobs, at most this
number of seconds of work is leased ahead."""
MOST_FOR_PLACE = 50
"""The largest number of jobs that are leased for one place."""
LONGEST_FADES = 0.9
"""The factor by which the recorded time of the longest job or statement shrinks with each later job or statement."""

STATEMENT_SIZE = 2 * 2**20
"""The approximate number of characters or bytes of data that one statement fetches. In a larger answer, each job takes
about twice as long, because the driver needs new memory from the kernel for the whole answer.
"""
SIZE_DECAY = 0.8
"""The recorded size of a queue's jobs is multiplied by this factor with each fetch of smaller jobs."""

Key: TypeAlias = tuple[int, int]
"""A lease: the job's id and the fencing token. The id is not enough: a worker may lose a job, and lease it again."""


@dataclass(eq=False)
class Places:
    """Places under a limit for which the worker leased more jobs than can run now; the other jobs wait in the worker.

    Attributes:
        number: How many of the jobs may run concurrently.
        since: When jobs were leased last, by the monotonic clock.
        used: How many of the jobs run.
    """

    number: int = 0
    since: float = 0.0
    used: int = 0


class Prefetch(NamedTuple):
    """The limits of what a worker fetches ahead from each queue.

    Attributes:
        jobs: The largest number of jobs.
        size: The largest size of the data of these jobs together, in characters (JSON) or bytes.
    """

    jobs: int
    size: int


@dataclass(eq=False, slots=True, kw_only=True)
class ActiveJob(Attempt):
    """A job that the worker has leased, and its attempt to run it.

    Attributes:
        queue_state: The state of the job's queue.
        leased_at: When the lease began, by the monotonic clock.
        task: The asyncio task that runs the job, if there is one.
        steps: The object that runs the job without an asyncio task, while its function is called in a thread.
        timer: The timer that stops the job at its timeout.
        thread: The identifier of the thread that calls the function, if a thread does.
        ended: Whether the outcome is decided: then nothing can stop the job.
        cancellable: Whether cancelling ``task`` stops the function.
        progress_stored_at: When the job's progress was stored last, by the monotonic clock.
        may_be_stored: Whether the outcome may be stored already, because the answer to an earlier try was lost.
        refusals: The server's refusals to store the outcome; None before the first.
        places: The places that the job shares with other jobs of the worker; None if the job has its own places.
    """

    queue_state: QueueState
    leased_at: float
    task: asyncio.Task[Any] | None = None
    steps: ThreadCall | None = None
    timer: asyncio.TimerHandle | None = None
    thread: int | None = None
    ended: bool = False
    cancellable: bool = False
    progress_stored_at: float = 0.0
    may_be_stored: bool = False
    refusals: Refusals | None = None
    places: Places | None = None

    @property
    def may_start(self) -> bool:
        """Whether the job may start as soon as a slot is free, because it has a place under its limits."""
        return self.places is None or self.places.used < self.places.number

    @property
    def is_started(self) -> bool:
        """Whether the job has left the buffer."""
        return self.steps is not None or self.task is not None or self.ended

    @property
    def is_running(self) -> bool:
        """Whether the job was started and has not ended."""
        return self.steps is not None or (self.task is not None and not self.task.done())

    @property
    def key(self) -> Key:
        """What identifies the lease of the job, for use as a key of dicts."""
        return self.job.id, self.job.token


@dataclass(eq=False)
class QueueState:
    """A queue, its active jobs, and the outcomes that are not stored yet.

    Attributes:
        queue: The queue.
        bridge: Runs operations on the worker's connections.
        buffer: The leased jobs that wait for a slot.
        active_jobs: All leased jobs; the keys are their leases.
        outcomes: Outcomes that are not stored yet.
        unstarted: Jobs to give back that were not started.
        quiet: Whether an operator told the worker to take no more jobs of the queue.
        wake_completer: Set when there are outcomes to store, or jobs to give back.
        calling_hooks: Whether hooks are being called for stored outcomes.
        throughput: Jobs per second, at the last measurement.
        job_size: The average size of the data of recent jobs, in characters or bytes; 0 before the first fetch.
        started: Jobs started since the throughput was measured.
        measured_at: When the throughput was measured, by the monotonic clock.
        longest: The approximate duration, in seconds, of the longest of the last jobs; infinite before the first job.
        reserved_slots: Slots for jobs that are being fetched.
        fetching: Whether jobs are being fetched.
        wants_slot: Whether the queue waits for a free slot to fetch a job.
        schedules_changed: Set when a schedule of the queue may have changed.
        empty_at: `WorkerState.changes` before the last fetch, if that fetch found no job.
        is_ending: Whether the completer is about to run a statement that ends jobs and leases other jobs.
        ends_take: Whether the next statement that ends jobs is expected to lease other jobs, too.
        turnaround: The approximate duration, in seconds, of the last statements that ended jobs and leased others.
        left_none_since: The channel's snapshot before the last statement that ended jobs, if that statement left no job
            to fetch; otherwise None.
        places: The places for which jobs were leased ahead, by key.
    """

    queue: Any
    bridge: Bridge
    buffer: deque[ActiveJob] = field(default_factory=deque)
    active_jobs: dict[Key, ActiveJob] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    unstarted: list[ActiveJob] = field(default_factory=list)
    quiet: bool = False
    wake_completer: asyncio.Event = field(default_factory=asyncio.Event)
    calling_hooks: bool = False
    throughput: float = 0.0
    job_size: float = 0.0
    started: int = 0
    measured_at: float = 0.0
    longest: float = float("inf")
    reserved_slots: int = 0
    fetching: bool = False
    wants_slot: bool = False
    schedules_changed: asyncio.Event = field(default_factory=asyncio.Event)
    empty_at: int = -1
    is_ending: bool = False
    ends_take: bool = False
    turnaround: float = 0.0
    left_none_since: int | None = None
    places: dict[str, Places] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.channel = self.queue.channel
        self.control = control_channel(self.queue.name)
        self._job: type[BaseJob] = Job if isinstance(self.queue, Queue) else AsyncJob

    def active_job(self, row: Any, leased_at: float) -> ActiveJob:
        """Return the active job of a row that was leased."""
        job = self._job(self.queue, row, leased=True)
        return ActiveJob(self.queue, job, queue_state=self, leased_at=leased_at)

    def measure(self, now: float) -> None:
        """Measure the throughput, unless the last measurement is very recent."""
        elapsed = now - self.measured_at
        if elapsed >= THROUGHPUT_WINDOW / 4:
            weight = min(elapsed / THROUGHPUT_WINDOW, 1.0)
            self.throughput += weight * (self.started / elapsed - self.throughput)
            self.started, self.measured_at = 0, now

    def note_sizes(self, jobs: Sequence[ActiveJob]) -> None:
        """Record the sizes of fetched jobs: the next jobs may be as large."""
        if jobs:
            mean = sum(len(active.job.raw) for active in jobs) / len(jobs)
            self.job_size = max(mean, SIZE_DECAY * self.job_size)

    def most_ahead(self, prefetch: Prefetch) -> int:
        """Return how many jobs may be fetched ahead, if they are as large as the last jobs."""
        return min(prefetch.jobs, int(prefetch.size / self.job_size)) if self.job_size else prefetch.jobs

    def fetch_size(self, free: int, prefetch: Prefetch) -> int:
        """Return how many jobs to fetch: for the free slots, and ahead if jobs run fast."""
        lanes = self.queue.lanes
        seconds = PREFETCH_SECONDS if not lanes.lanes else 0.0 if lanes.has_shares else PREFETCH_SECONDS_OF_LANES
        ahead = min(self.most_ahead(prefetch), int(self.throughput * seconds))
        most = max(STATEMENT_SIZE / self.job_size, 1) if self.job_size else math.inf
        waiting = len(self.buffer)
        if waiting and not self.buffer[0].may_start:  # jobs that wait for a place must not delay other jobs
            waiting = sum(active.may_start for active in self.buffer)
        if free <= 0 and waiting > ahead // 2:
            return 0
        n = min(max(free, 0) + ahead - waiting, most)
        return max((size for size in SIZES if size <= n), default=0)

    @property
    def awaits_ends(self) -> bool:
        """Whether the completer will soon send a statement that ends jobs, and that probably leases the next ones."""
        return self.ends_take and (self.is_ending or bool(self.outcomes))

    @property
    def shares_places(self) -> bool:
        """Whether a job waits for the end of other jobs that were leased for the same places a short time ago."""
        if not self.buffer or self.buffer[0].may_start:
            return False
        places = self.buffer[0].places
        return places is not None and time.monotonic() - places.since < 2 * PLACE_SECONDS

    def note_run(self, seconds: float) -> None:
        """Record how long a job ran."""
        self.longest = max(seconds, 0.0 if math.isinf(self.longest) else self.longest * LONGEST_FADES)

    def jobs_for_place(self) -> int:
        """Return how many jobs to lease for one place under a limit: several if jobs run very fast."""
        if self.longest > LONGEST_AHEAD:
            return 1
        seconds = min(max(PLACE_SECONDS, 2 * self.turnaround), LONGEST_AHEAD)
        return min(1 + math.ceil(seconds / max(self.longest, 1e-6)), MOST_FOR_PLACE)

    def note_turnaround(self, seconds: float) -> None:
        """Record the duration of a statement that ended jobs and leased others."""
        self.turnaround = max(seconds, self.turnaround * LONGEST_FADES)

    def jobs_ahead(self) -> list[ActiveJob]:
        """Return jobs that were leased ahead for places, except jobs that are being ended; forget unused places.

        Call this after outcomes were removed from `outcomes`, and before they are stored.
        """
        jobs = [active for active in self.active_jobs.values() if active.places is not None]
        used = {id(active.places) for active in jobs}
        self.places = {key: places for key, places in self.places.items() if id(places) in used}
        return jobs

    def next_job(self) -> ActiveJob | None:
        """Return the first job of the buffer that may start; None if no job may."""
        return next((active for active in self.buffer if active.may_start), None)

    def complete(self, active: ActiveJob, outcome: Outcome) -> None:
        """Give the end of a job to the completer, which stores it."""
        active.ended = True
        self.outcomes.append(outcome)
        self.wake_completer.set()

    def give_back(self, jobs: Sequence[ActiveJob]) -> None:
        """Give back jobs that were not started."""
        if not jobs:
            return
        for active in jobs:
            active.ended = True
        self.buffer = deque(active for active in self.buffer if not active.ended)
        self.unstarted.extend(jobs)
        self.wake_completer.set()


@dataclass(eq=False)
class WorkerState:
    """The state that the parts of a worker share.

    Attributes:
        free_slots: Slots in which no job runs.
        queue_states: The worker's queues; the queue whose turn it is comes first.
        wake_fetchers: Set when it may be time to fetch jobs.
        draining: Set when the worker fetches no more jobs.
        stop_now: Set when running jobs must stop, too.
        closing: Whether the worker itself ends its parts; before that, only the event loop cancels them.
        interruptible: Whether Ctrl-C may raise KeyboardInterrupt within a coroutine function.
        interrupted: The exception that such an interrupt raised, and that ended the worker.
        idle: Set when no job is active.
        changes: A number that rises when jobs are fetched and when outcomes are stored.
        serializers_running: The names of serializers that decode or encode in threads, one per call.
        serializers_seen: The names of serializers that ran in threads since `watch_stalls` looked last.
    """

    free_slots: int
    queue_states: list[QueueState] = field(default_factory=list)
    wake_fetchers: asyncio.Event = field(default_factory=asyncio.Event)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    stop_now: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    closing: bool = False
    interruptible: bool = False
    interrupted: BaseException | None = None
    changes: int = 0
    serializers_running: list[str] = field(default_factory=list)
    serializers_seen: set[str] = field(default_factory=set)

    def slots_for(self, queue_state: QueueState) -> int:
        """Return the number of free slots that are not reserved for other queues."""
        if len(self.queue_states) == 1:
            return self.free_slots
        return self.free_slots - sum(each.reserved_slots for each in self.queue_states) + queue_state.reserved_slots

    def next_queue(self) -> QueueState | None:
        """Return the queue that gets a free slot: of the queues that can use one, the queue that has waited longest."""
        if self.free_slots <= 0:
            return None
        for position, queue_state in enumerate(self.queue_states):
            if (queue_state.wants_slot or queue_state.next_job() is not None) and self.slots_for(queue_state) > 0:
                if len(self.queue_states) > 1:
                    self.queue_states.append(self.queue_states.pop(position))
                return queue_state
        return None

    def interrupt(self, interrupt: BaseException) -> None:
        """Make the worker stop immediately, and then raise the interrupt."""
        self.interrupted = interrupt
        self.stop_now.set()
        self.draining.set()
        self.wake_fetchers.set()

    def set_quiet(self, queue_state: QueueState, *, quiet: bool) -> bool:
        """Take no more jobs of a queue, or take jobs again; return whether that changes anything.

        Jobs of the queue that were fetched ahead are given back.
        """
        changed = queue_state.quiet != quiet
        if changed:
            queue_state.quiet = quiet
            queue_state.give_back(list(queue_state.buffer) if quiet else ())
            self.wake_fetchers.set()
        return changed

    def is_busy(self) -> bool:
        """Return whether a job is active or being fetched, or a hook is being called."""
        return any(
            queue_state.active_jobs or queue_state.fetching or queue_state.calling_hooks
            for queue_state in self.queue_states
        )

    def notify_if_idle(self) -> None:
        """Set ``idle`` if nothing is active any more."""
        if not self.is_busy():
            self.idle.set()
