"""The blocking face of tasks: `PQ` and `Queue`, with pq's names."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast, overload

from pqcore import queue as core
from pqcore.db.interrupts import handle_kept, leaves, let_through, put_off
from pqcore.db.runtime import backoff, run_sync
from pqcore.db.sources import AdoptedConnection
from pqcore.errors import ConnectionLost, DatabaseError, OutcomeUnknown, PoolTimeout, PQError, TransactionAborted
from pqcore.events import FAILURES, JOB_HOOKS, OUTCOME_HOOKS, REASONS, JobEvent, JobHook
from pqcore.hook_dispatch import call_hook, run_wrapped
from pqcore.job import BaseJob, Job
from pqcore.operations import batch_counts, batches, burying, complete, fetch
from pqcore.operations import put as putting
from pqcore.operations.complete import Outcome
from pqcore.operations.lease import beat
from pqcore.plugins import plugins
from pqcore.put_options import put_options_of
from pqcore.serializers import Serializer
from pqcore.settings import Encoded, QueueSettings
from pqcore.tasks.context import JobContext, enter_job, leave_job
from pqcore.tasks.declaring import Call, Task, TaskOptions, call_of, stored_calls
from pqcore.tasks.fetched_jobs import PoppedJobs, popped_jobs
from pqcore.tasks.handles import Batch, Handle
from pqcore.tasks.outcomes import SLOW, as_failure, caller, completed, conclude, path_of, prepare, waited
from pqcore.tasks.periodic import Missed, Periodic, make_periodic, refuse_bare
from pqcore.tasks.registry import TaskDeclarations
from pqcore.times import TimeSpec

if TYPE_CHECKING:
    from pqcore.db.session import Session

LOOK_FOR_LOST = 30.0
"""Seconds between looks of `Queue.work` for batches whose jobs are gone."""
WORK_LEASE = 60.0
"""Seconds for which `Queue.work` holds the job that it performs; it holds on while it does."""
GIVE_BACK_TRIES = 3
"""How often `Queue.work` tries to give a job back when it is interrupted; then its lease runs out."""


class Enqueuer:
    """What a declared function becomes: calling it puts a job.

    Attributes:
        task: The task.
        queue: The queue that it is put into.
    """

    def __init__(self, queue: Queue, task: Task) -> None:
        functools.update_wrapper(self, task.function)
        self.task = task
        self.queue = queue
        self._path = task.path

    def __call__(self, *args: Any, **kwargs: Any) -> Handle:
        """Put a job; options of this call begin with an underscore: ``_schedule_at="5m"``.

        ``_connection`` puts it in the transaction of that connection.
        """
        return self.queue.put_call(call_of(self.queue, self.task, args, kwargs))

    def call(self, *args: Any, **kwargs: Any) -> Call:
        """The call, not put yet: for `Queue.chain`, `Queue.batch` and `Queue.put_calls`."""
        return call_of(self.queue, self.task, args, kwargs)


class Queue(TaskDeclarations, core.Queue):
    """A queue of function calls; see `pqcore.Queue` and `TaskDeclarations`."""

    @overload
    def task(self, function: Callable[..., Any], /) -> Enqueuer: ...
    @overload
    def task(
        self,
        schedule_at: TimeSpec = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: Any = "30s",
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Enqueuer]: ...
    def task(
        self,
        schedule_at: Any = None,
        expected_at: TimeSpec = None,
        max_retries: int = 0,
        retry_in: Any = "30s",
        **options: Any,
    ) -> Any:
        """Declare a function as a task: calling it then puts a job, and returns its id.

        The function, which may be a coroutine function, is called with the job's id first.  ``@queue.task`` is the
        same as ``@queue.task()``.

        Args:
            schedule_at: As for `put`.
            expected_at: As for `put`.
            max_retries: How often it is tried again after an exception.
            retry_in: The time until then.
            **options: As in `TaskOptions`.

        Raises:
            ConfigurationError, InvalidTimeSpec: An option is none, or has a value that it cannot have.
        """
        if callable(schedule_at):  # @queue.task, without parentheses
            return self.task(None, expected_at, max_retries, retry_in, **options)(schedule_at)
        chosen = TaskOptions(schedule_at, expected_at, max_retries, retry_in, **options)
        return lambda function: Enqueuer(self, self.declare(function, chosen))

    def periodic(
        self,
        cron: str,
        tz: str = "UTC",
        missed: Missed = "latest",
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Callable[[Any], Enqueuer]:
        """Have workers put a task at each tick of a cron expression, once however many they are.

        Args:
            cron: Five fields, six with seconds first, or ``@daily`` and the like.
            tz: The time zone that it is meant in.
            missed: What becomes of ticks that passed while there was no worker; see `Periodic`.
            name: What its ticks are remembered under; the function's path if not given.
            args: What the function is called with, after the job's id.
            kwargs: Likewise.

        Raises:
            ConfigurationError: The expression or time zone cannot be read, or the name is taken.
        """
        refuse_bare(cron)

        def decorate(function: Any) -> Enqueuer:
            task: Enqueuer = function if isinstance(function, Enqueuer) else self.task()(function)
            call = call_of(self, task.task, args, dict(kwargs or {}))
            self.add_periodic(make_periodic(call, cron, tz, missed, name))
            return task

        return decorate

    @functools.cached_property
    def popped(self) -> PoppedJobs:
        """Jobs that were taken with `get`, and that may still be performed."""
        return PoppedJobs()

    def get(self, block: bool = True, timeout: float | None = None) -> Job | None:
        """Take the next job that is due; see `pqcore.Queue.get`, and `perform`."""
        jobs = self._pop(1, block=block, timeout=timeout)
        return jobs[0] if jobs else None

    def get_many(self, n: int, block: bool = True, timeout: float | None = None) -> list[Job]:
        """Take up to ``n`` jobs; see `pqcore.Queue.get_many`, and `perform`."""
        return self._pop(n, block=block, timeout=timeout)

    def _pop(self, n: int, *, block: bool, timeout: float | None) -> list[Job]:
        if self.popped:
            self._follow_given_up()
        rows = run_sync(fetch.get(self.engine, self, n, block=block, timeout=timeout, performed=True))
        jobs = [Job(self, row) for row in rows]
        for job, row in zip(jobs, rows, strict=True):
            if job.raw_headers is not None and complete.is_continued(job.raw_headers):
                within = self.engine.block()
                self.popped.add(job, row, in_block=within is not None)
                if within is not None:
                    within.at_end.append(functools.partial(self._follow_with_block, job))
        return jobs

    async def _follow_with_block(self, job: Job, session: Session | None) -> None:
        """Do what follows from a job that a block took, and that nobody performed within the block."""
        if self.popped.claim(job.id) and session is not None:
            await complete.go_on(self.engine, self, session, [complete.by_hand(job)])

    def _follow_given_up(self, *, begins: bool = False) -> None:
        if self.engine.block() is None:  # else what follows might be undone with the block
            run_sync(complete.follow_given_up(self.engine, self, self.popped.given_up(self, begins=begins)))

    def bury(self, job: Job, error: BaseException | str | None = None, *, connection: Any = None) -> None:
        """Make a dead letter of a job; see `pqcore.Queue.bury`."""
        owed = None if job.leased else _claimed(job)
        run_sync(burying.bury(self.engine, self, job, error, connection, owed=owed))

    def put_call(self, call: Call) -> Handle:
        """Put a call; its job's id."""
        options = call.options
        times = (options.schedule_at, options.expected_at)
        put = putting.put_call(self.engine, self, call.data(), *times, call.connection, call.put_options())
        return Handle.of(self, *run_sync(put))

    def put_calls(self, *calls: Call, connection: Any = None) -> list[Handle]:
        """Put calls together, all or none; the ids in order."""
        ids = run_sync(batches.put_all(self.engine, [call.stored() for call in calls], connection))
        return [Handle.of(self, *identity) for identity in ids]

    def chain(self, *calls: Call, connection: Any = None) -> Handle:
        """Put calls to be made one after the other, each once the one before is done.

        Each finds what the one before returned in ``current().previous``.  If one
        fails for good, those after it wait with its dead letter.

        Returns:
            The first job's id.
        """
        first = batches.chained([call.stored() for call in calls])
        return Handle.of(self, *run_sync(batches.put_all(self.engine, [first], connection))[0])

    def batch(self, *calls: Call | tuple[Call, ...], then: Call | None = None, connection: Any = None) -> Batch[Handle]:
        """Put calls together, and another when all of them have ended, well or not.

        Args:
            *calls: The calls; a tuple of them is a chain.
            then: What is put at the end; it finds in ``current().previous`` the
                ``batch``, and how many there were (``total``) and did not end well (``failed``).
            connection: As for `put`.
        """
        after = None if then is None else then.stored()
        number, ids = run_sync(batches.put_batch(self.engine, self, stored_calls(calls), after, connection))
        return Batch(number, [Handle.of(self, *identity) for identity in ids])

    def work(self, burst: bool = False) -> None:
        """Perform jobs as they come, one at a time, in this thread; with ``burst``, until there are none.

        A job is leased meanwhile: if the process dies, another performs it.  For more at once, see `Worker`.

        Where the server fails, it waits a while, and tries again.  In the main thread, KeyboardInterrupt and
        SystemExit end it: the job that runs is given back, and the attempt does not count.  A signal that comes while a
        job is being taken, or its end stored, waits for that; a second one does not.

        Raises:
            TableMissing, SchemaOutdated, SchemaTooNew: There is no table, or it is of another version.
            ConnectionLost: The connection that `PQ` was given, or that of ``with queue``, is lost.
            Closed: The `PQ` was closed.
        """
        self.logger.info("%r starts to perform jobs", self.name)
        token = _working.set(True)
        try:
            with put_off():
                self._work(burst=burst)
        finally:
            _working.reset(token)

    def _work(self, *, burst: bool) -> None:
        failures = 0
        self._follow_given_up(begins=True)
        watch, looked = batch_counts.Watch(), time.monotonic()
        while True:
            handle_kept()  # a signal that came while a job was being finished
            try:
                rows = run_sync(
                    fetch.get(self.engine, self, 1, block=True, timeout=None, lease=WORK_LEASE, patient=True)
                )
                job = Job(self, rows[0], leased=True) if rows else None
                if job is None and burst and self._is_done():
                    return
                if job is None and time.monotonic() - looked > LOOK_FOR_LOST:
                    looked = time.monotonic()
                    run_sync(watch.look(self.engine, self))
            except PQError as exc:
                failures += 1
                self._pause(exc, failures, "cannot take jobs")
                continue
            failures = 0
            if job is not None:
                with self._held(job):
                    self.perform(job)

    def _is_done(self) -> bool:
        """Whether no job is left that `work` may still perform; ends batches whose jobs are gone."""
        return not self.contention.pending() and not run_sync(batch_counts.end_lost(self.engine, self))

    def _pause(self, error: PQError, failures: int, what: str) -> None:
        """Wait until the next attempt of something that failed; raise the error where that cannot help."""
        sole = isinstance(self.engine.source, AdoptedConnection) or self.engine.in_block()
        passing = isinstance(error, (DatabaseError, PoolTimeout)) and not isinstance(error, TransactionAborted)
        if not passing or (sole and isinstance(error, ConnectionLost)):
            raise error
        pause = backoff(failures)
        self.logger.warning("%r: %s, next try in %.1f s: %s", self.name, what, pause, error)
        with let_through():
            time.sleep(pause)

    def perform(self, job: Job) -> bool:
        """Call the function that a job names; True if it returned.

        A job that was leased is finished, or given back. One that was taken with `get` is finished already:
        it is put again, as another, if it is to be retried, and is no dead letter.
        Its chain goes on, and its batch counts it, when this method ends. A job that was taken in a ``with`` block
        must be performed in the block: at the end of the block it counts as done.

        Raises:
            KeyboardInterrupt, SystemExit: The function raised it, or a signal did, in the main thread. The job was
                given back, and the attempt does not count.
        """
        popped = None if job.leased else popped_jobs(job)
        with put_off(), popped.performing(job.id) if popped else nullcontext():
            return self._perform(job)

    def _perform(self, job: Job) -> bool:
        began = time.monotonic()
        run = prepare(self, self, job)
        if (took := time.monotonic() - began) > SLOW:
            name = job.serializer or self.serializer_name
            self.logger.warning("serializer %r took %.1f seconds to decode %r of %r", name, took, job, self.name)
        if isinstance(run, Outcome):
            return self._not_run(job, run)
        context = JobContext(self, job)
        token = enter_job(context)
        event = (
            JobEvent(self.name, job, run.task.path, waited(job))
            if plugins.has_impl(*JOB_HOOKS, "pqcore_around_run")
            else None
        )
        event_token = _event.set(event)
        try:
            with let_through():
                result = self._watched(caller(run), event)
            outcome = completed(self, job, result, finished=context.finished)
        except BaseException as exc:
            if leaves(exc):
                self._give_back(job, finished=context.finished)
                raise
            # Whatever else a task raises is the job's failure.
            return self.fail(job, job.data, as_failure(exc))
        else:
            self._end(outcome, failed=outcome.kind != "done")
            return True
        finally:
            _event.reset(event_token)
            leave_job(token)

    def _watched(self, call: Callable[[], Any], event: JobEvent | None) -> Any:
        """Make a call; plugins are told of it if there is an event to tell."""
        if event is None:
            return _called(call)
        run_sync(call_hook("pqcore_job_started", event, blocking=True))
        began = time.perf_counter()
        try:
            with run_wrapped("pqcore_around_run", event):
                return _called(call)
        except BaseException as exc:
            event.error = exc
            raise
        finally:
            event.duration = time.perf_counter() - began

    def _give_back(self, job: Job, *, finished: bool) -> None:
        try:
            self._end(Outcome(job, "snooze", reason="shutdown", finished=finished))
        except PQError as exc:  # what ends the program goes on
            self.logger.warning("%r: cannot give %r back: %s", self.name, job, exc)

    def fail(self, job: Job, data: dict[str, Any], e: BaseException | None = None) -> bool:
        """Have a failed job tried again if it has retries left, else say why; always False."""
        run = prepare(self, self, job)
        outcome = run if isinstance(run, Outcome) else conclude(self, run, e if e is not None else PQError("failed"))
        changed = None if data is job.decoded_data else data  # the function may have changed the job's own
        self._end(outcome, changed, failed=True)
        return False

    def _not_run(self, job: Job, outcome: Outcome) -> bool:
        token = _event.set(None)
        told = outcome.kind == "dead" or outcome.reason in complete.PUT_OFF
        if told and plugins.has_impl("pqcore_job_dead", "pqcore_job_retried"):
            _event.set(JobEvent(self.name, job, path_of(job), waited(job)))
        try:
            self._end(outcome)
        finally:
            _event.reset(token)
        return False

    def _end(self, outcome: Outcome, data: Any = None, *, failed: bool = False) -> None:
        """Store how a job ends, and tell plugins of it."""
        hook: JobHook = OUTCOME_HOOKS[outcome.kind]
        if not outcome.job.leased:
            owed = _claimed(outcome.job)
            if outcome.kind in ("retry", "snooze", "crash"):
                again = run_sync(self._put_again(outcome, data, owed=owed))
                self.logger.info("put %r again as job %d", outcome.job, again)
            else:
                if owed:
                    run_sync(complete.follow(self.engine, self, outcome))
                hook = hook if outcome.kind == "done" else "pqcore_job_dropped"
        elif _working.get():
            ended = self._stored(outcome)
            if ended is None:
                return
            outcome, hook = ended
        else:
            outcome, hook = self._told(outcome, run_sync(complete.finish_one(self.engine, self, outcome)))
        first: tuple[JobHook, ...] = ("pqcore_job_failed",) if failed and outcome.kind in FAILURES else ()
        self._tell_end(outcome, *first, hook)

    def _told(self, outcome: Outcome, ended: Outcome | None) -> tuple[Outcome, JobHook]:
        """How a job ended, and the hook that plugins are told by.

        Args:
            outcome: How it was to end.
            ended: How that was stored; None if the lease was lost.
        """
        if ended is not None:
            return ended, OUTCOME_HOOKS[ended.kind]
        self.logger.warning("%r was given to another meanwhile; what it did may be done again", outcome.job)
        return outcome, "pqcore_job_lost"

    def _stored(self, outcome: Outcome) -> tuple[Outcome, JobHook] | None:
        """Try for `work` to store how a leased job ends, until it is stored; None if it cannot be, as `_told` else."""
        refusals = complete.Refusals()
        unknown_at: float | None = None  # since when it may be stored, as an answer was lost
        while True:
            try:
                ended = run_sync(complete.finish_one(self.engine, self, outcome))
                if ended is None and unknown_at is not None and self._was_stored(outcome, unknown_at):
                    ended = outcome
                return self._told(outcome, ended)
            except PQError as exc:
                refusal = exc
            if unknown_at is None and isinstance(refusal, OutcomeUnknown):
                unknown_at = time.monotonic()
            verdict = refusals.judge(outcome, refusal)
            if outcome.reason == "shutdown" and (verdict != "again" or refusals.number == GIVE_BACK_TRIES):
                raise refusal
            if verdict == "again":
                self._pause(refusal, refusals.number, f"cannot store how {outcome.job!r} ended")
            elif verdict == "bury":
                self.logger.error("%r cannot end as it did: %s", outcome.job, refusal)
                outcome = complete.dead_letter_of(outcome, refusal)
            else:
                self.logger.error("%r cannot be a dead letter: %s", outcome.job, refusal)
                return None  # its lease runs out, which counts as a crash

    def _was_stored(self, outcome: Outcome, since: float) -> bool:
        """Whether the end of a job was stored by an earlier try, of which the answer was lost."""
        in_time = time.monotonic() - since < WORK_LEASE / 2
        return bool(run_sync(complete.stored_before(self.engine, self, [(outcome, in_time)])))

    def _tell_end(self, outcome: Outcome, *hooks: JobHook) -> None:
        event = _event.get()
        if event is None or event.job is not outcome.job:
            return
        event.delay, event.reason = outcome.delay, outcome.reason or REASONS.get(outcome.kind, "")
        for hook in hooks:
            run_sync(call_hook(hook, event, blocking=True))

    async def _put_again(self, outcome: Outcome, data: Any, *, owed: bool) -> int:
        """Put a job again that was taken for good, with all that it had but its dedup key, and what followed.

        Args:
            outcome: How it ended.
            data: Its data, if that was changed on purpose; else it is put with what is stored.
            owed: Whether what follows from it did not follow yet.
        """
        job = outcome.job
        queue: QueueSettings = self
        if outcome.kind == "retry":
            data = self.decode_row(job.id, job.serializer, job.raw) if data is None else data
            data = {**data, "retried": data.get("retried", 0) + 1}
        elif data is None:
            data = job.decoded_data  # which plugins are told; None if it cannot be decoded
            queue = _as_stored(self, job)
        due = None if outcome.delay is None else timedelta(seconds=outcome.delay)
        headers = job.headers if owed else complete.without_followers(job.headers)
        return await putting.put(self.engine, queue, data, due, job.expected_at, None, put_options_of(headers))

    @contextmanager
    def _held(self, job: Job) -> Iterator[None]:
        """Hold on to a lease, from a thread of its own, for as long as the block lasts."""
        over = threading.Event()

        def hold() -> None:
            while not over.wait(WORK_LEASE / 3):
                try:
                    run_sync(beat(self.engine, [job], WORK_LEASE))
                except PQError as exc:
                    self.logger.warning("could not hold on to %r: %s", job, exc)

        thread = threading.Thread(target=hold, name="pqcore-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _as_stored(queue: QueueSettings, job: BaseJob) -> QueueSettings:
    """A queue into which a job's data is put as it is stored, whatever is put: it may be unreadable here."""
    like: Any = copy.copy(queue)
    encoded = Encoded(job.raw, None) if isinstance(job.raw, str) else Encoded(None, job.raw)
    like.serializer_name = job.serializer
    like.encode_row = lambda _: encoded
    return cast("QueueSettings", like)


def _claimed(job: BaseJob) -> bool:
    """Claim what follows from a job that was taken with `get`; False if it has followed already."""
    if not complete.is_continued(job.raw_headers):
        return True
    popped = popped_jobs(job)
    return popped is not None and popped.claim(job.id)


_working: ContextVar[bool] = ContextVar("pqcore_working", default=False)
"""Whether `Queue.work` runs, which goes on where the server fails."""
_event: ContextVar[JobEvent | None] = ContextVar("pqcore_event", default=None)
"""What plugins are told of the job that the running thread performs."""


def _called(call: Callable[[], Any]) -> Any:
    result = call()
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(coroutine: Any) -> Any:
    return await coroutine


class PQ(core.PQ):
    """The queues of one table, as queues of function calls; see `pqcore.PQ`."""

    queue_class: type[core.Queue] = Queue

    def queue(self, name: str, *, serializer: Serializer | str | None = None, **options: Any) -> Queue:
        """A queue with options of its own; see `pqcore.PQ.queue`."""
        queue = super().queue(name, serializer=serializer, **options)
        assert isinstance(queue, Queue)  # noqa: S101 - for the type checker
        return queue

    def __getitem__(self, name: str) -> Queue:
        queue = super().__getitem__(name)
        assert isinstance(queue, Queue)  # noqa: S101 - for the type checker
        return queue


__all__ = ["PQ", "Enqueuer", "Periodic", "Queue"]
