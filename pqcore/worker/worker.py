"""A worker: takes jobs of its queues under leases, runs them, and stores how they ended.

It is asynchronous inside, over any backend.  Five things go on beside one another:

* *supply* (one a queue) leases as many jobs as there are free places, and some ahead if
  they go fast; those that wait too long for a place are given back to others;
* *execution*: coroutine functions on the loop, others in threads or processes;
* *storing*: how jobs ended, all that have gathered since the last time together;
* *tending*: holds on to leases, hears what is to be cancelled, stores progress, and breaks off
  connections that do not answer;
* *periodic tasks and the sweep* (`pqcore.worker.chores`).

A failure of the database stops none of them: each waits a while, with backoff
and jitter, and goes on.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

from pqcore.errors import ConfigurationError, PQError, SchemaError, SerializationError
from pqcore.events import JobEvent, around, heard, tell
from pqcore.operations import finishing, leasing, results, taking
from pqcore.operations.finishing import Outcome
from pqcore.tasks.context import JobCancelled, JobContext, enter_job
from pqcore.tasks.declaring import TaskDeclarations, logger
from pqcore.tasks.running import Run, caller, conclude, prepare
from pqcore.timespec import seconds
from pqcore.worker.bridge import Bridge
from pqcore.worker.chores import Chores
from pqcore.worker.executors import Processes, Threads, WorkerProcessDied, default_processes
from pqcore.worker.station import Held, Station

TEND = 0.2
"""Seconds between looks at what is held; they cost no statement unless there is something to say."""
STALE = 0.25
"""Seconds for which a job that was fetched ahead may wait for a place before it is given back."""
PROGRESS = 1.0
"""Seconds between two reports of a job's progress, at least."""
BRISK, GATHER = 1_000.0, 0.005
"""Jobs a second from which on ends are gathered for so many seconds before they are stored: a commit costs more."""
HEAR = 5.0
"""Seconds for which it is listened for cancellations at a time."""
CRASH_PAUSE = 1.0
"""Seconds until a job is tried again whose process died; twice as many each time."""

_HOOKS = {
    "done": "pqcore_job_succeeded",
    "retry": "pqcore_job_retried",
    "snooze": "pqcore_job_retried",
    "dead": "pqcore_job_dead",
    "drop": "pqcore_job_dropped",
}


class Worker:
    """Runs the jobs of queues.

    Args:
        *queues: Queues of `pqcore.tasks`, blocking or asynchronous.
        concurrency: Jobs that run at once, at most.
        lease: Seconds, ``'1m'`` or a timedelta for which a job is held. The worker holds on while
            it lives; when it dies, its jobs run elsewhere after so long.
        grace: How long jobs may go on once the worker is to stop; then they are given back.
        poll_interval: Seconds after which an idle worker looks, woken or not.
        prefetch: Jobs fetched ahead, at most, where they go fast.
        run_in: Where functions that are no coroutines run: ``"thread"`` or ``"process"``.
        stall_timeout: Seconds without an answer after which a connection is broken off.
        burst: Whether to stop when there is nothing to do.

    Raises:
        ConfigurationError: An argument cannot be, or a queue has a single connection.
    """

    def __init__(
        self,
        *queues: Any,
        concurrency: int = 20,
        lease: Any = 30.0,
        grace: Any = 30.0,
        poll_interval: float = 2.0,
        prefetch: int = 1_000,
        run_in: Literal["thread", "process"] = "thread",
        stall_timeout: float = 20.0,
        burst: bool = False,
    ) -> None:
        if not queues or not all(isinstance(queue, TaskDeclarations) for queue in queues):
            msg = f"a worker's queues are {queues!r}; give queues of pqcore.tasks.PQ or AsyncPQ"
            raise ConfigurationError(msg)
        for name, number, least in (("concurrency", concurrency, 1), ("prefetch", prefetch, 0)):
            if not isinstance(number, int) or number < least:
                msg = f"{name} is {number!r}; give a number of at least {least}"
                raise ConfigurationError(msg)
        if run_in not in ("thread", "process"):
            msg = f"run_in is {run_in!r}; choose 'thread' or 'process'"
            raise ConfigurationError(msg)
        self.concurrency = concurrency
        self.burst = burst
        self._lease = leasing.lease_time(lease)
        self._grace = seconds(grace)
        self._poll_interval = seconds(poll_interval) * len(queues)
        self._prefetch = prefetch
        self._run_in = run_in
        self._stall_timeout = seconds(stall_timeout)
        self._queues: Sequence[Any] = queues
        self._stations: list[Station] = []
        self._free = concurrency
        self._threads: Threads | None = None
        self._processes: Processes | None = None
        self._running = False

    # Its life

    async def run(self, *, handle_signals: bool = False) -> None:
        """Work until told to stop, and stop in order.

        Args:
            handle_signals: Whether SIGTERM and SIGINT stop it: the first in order, a second at once.

        Raises:
            SchemaError: The table is missing, or not as this pqcore needs it.
        """
        if self._running:
            msg = "this worker is running already"
            raise ConfigurationError(msg)
        self._running = True
        self._draining, self._aborted = asyncio.Event(), asyncio.Event()
        self._room, self._to_store = asyncio.Event(), asyncio.Event()
        self._quiet = asyncio.Event()
        self._heard = {hook: heard(hook) for hook in (*_HOOKS.values(), "pqcore_job_started", "pqcore_job_failed")}
        self._around = heard("pqcore_around_run")
        self._free = self.concurrency
        loop = asyncio.get_running_loop()
        if handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._signalled)
        bridges: dict[int, Bridge] = {}
        for queue in self._queues:
            engine = queue._engine  # noqa: SLF001 - the worker drives the core's operations
            if id(engine) not in bridges:
                bridges[id(engine)] = Bridge(engine, 4 + 3 * len(self._queues))
        self._stations = [Station(queue, bridges[id(queue._engine)]) for queue in self._queues]  # noqa: SLF001
        names = ", ".join(repr(queue.name) for queue in self._queues)
        logger.info("worker starts: %s, %d at once", names, self.concurrency)
        supplies = [loop.create_task(self._supply(station)) for station in self._stations]
        beside = [loop.create_task(self._tend()), *(loop.create_task(self._hear(each)) for each in self._stations)]
        storing = loop.create_task(self._store())
        chores = [] if self.burst else [loop.create_task(Chores(each).run()) for each in self._stations]
        try:
            await self._until_told(supplies, [*beside, storing, *chores])
            await self._drain(supplies, chores)
        finally:
            for task in (*supplies, *beside, *chores, storing):
                task.cancel()
            for station in self._stations:
                station.bridge.engine.nudge(station.control)  # threads that listen are to end
            for executor in (self._threads, self._processes):
                if executor is not None:
                    executor.close()
            self._threads = self._processes = None
            await asyncio.gather(*supplies, *beside, *chores, storing, return_exceptions=True)
            for bridge in bridges.values():
                with suppress(PQError):
                    await bridge.close()
            if handle_signals:
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.remove_signal_handler(number)
            self._running = False
            logger.info("worker stopped")

    def stop(self) -> None:
        """Take no more jobs, finish those that run, and end; called again, end at once."""
        if self._draining.is_set():
            self._aborted.set()
        self._draining.set()
        self._room.set()
        for station in self._stations:
            station.bridge.engine.nudge(station.channel)

    def _signalled(self) -> None:
        at_once = self._draining.is_set()
        logger.info(
            "told to stop%s", " at once" if at_once else f": no more jobs, {self._grace:.0f} s for those that run"
        )
        self.stop()

    async def _until_told(self, supplies: list[asyncio.Task[None]], beside: list[asyncio.Task[Any]]) -> None:
        told = asyncio.ensure_future(self._draining.wait())
        try:
            done, _ = await asyncio.wait([told, *supplies, *beside], return_when=asyncio.FIRST_COMPLETED)
            while done and told not in done:
                for task in done:
                    task.result()  # what cannot be gone on with is raised here
                if all(task.done() for task in supplies):
                    return
                pending = [task for task in (*supplies, *beside) if not task.done()]
                done, _ = await asyncio.wait([told, *pending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()

    async def _drain(self, supplies: list[asyncio.Task[None]], chores: list[asyncio.Task[None]]) -> None:
        self._draining.set()
        for task in chores:
            task.cancel()
        for station in self._stations:
            self._hand_back(station, list(station.buffer))
        deadline = time.monotonic() + self._grace
        await asyncio.wait(supplies, timeout=self._stall_timeout)
        while self._in_hand() and not self._aborted.is_set() and (left := deadline - time.monotonic()) > 0:
            self._quiet.clear()
            aborted = asyncio.ensure_future(self._aborted.wait())
            quiet = asyncio.ensure_future(self._quiet.wait())
            await asyncio.wait([aborted, quiet], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            aborted.cancel(), quiet.cancel()
        for station in self._stations:
            self._give_up(station)
        # What was given back, and what ended because of it, is stored; for as long as it takes to hear from the server.
        limit = time.monotonic() + self._stall_timeout
        while self._in_hand() and time.monotonic() < limit:
            self._to_store.set()
            self._quiet.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), 0.1)

    def _in_hand(self) -> bool:
        return any(station.held or station.done for station in self._stations)

    def _give_up(self, station: Station) -> None:
        """Give back what still runs: coroutines are cancelled, threads told, and their jobs free at once."""
        for held in list(station.held.values()):
            if held.ended:
                continue
            if held.cancellable and held.task is not None:
                self._stop(held, "shutdown")
            else:
                if held.context is not None:
                    held.context.stop("shutdown")
                self._decide(station, held, Outcome(held.job, "snooze"))

    # Supply

    async def _supply(self, station: Station) -> None:
        engine = station.bridge.engine
        failures = 0
        while not self._draining.is_set():
            reserved = sum(each.reserved for each in self._stations)
            station.measure(time.monotonic())
            n = station.wanted(self._free - reserved, self._prefetch)
            if n == 0:
                self._room.clear()
                await self._room.wait()
                continue
            ticket = engine.listener.ticket(station.channel)  # before the look, so that what comes after it counts
            station.reserved = n
            leased_at = time.monotonic()
            try:
                rows, wake_in = await station.bridge.call(taking.look, station.queue, n, self._lease)
                if failures:
                    logger.info("%r: the server answers again", station.queue.name)
                failures = 0
                station.idle = not rows
                self._accept(station, rows, leased_at)
                if rows:
                    continue
                if self.burst and wake_in != 0.0:
                    if not self._in_hand() and all(each.idle for each in self._stations):
                        self.stop()
                        return
                    self._quiet.clear()
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._quiet.wait(), 0.05)
                    continue
                pause = self._poll_interval if wake_in is None else min(self._poll_interval, max(wake_in, 0.001))
                station.reserved = 0
                await station.bridge.run(engine.wait, station.channel, ticket, pause)
            except (SchemaError, ConfigurationError):
                raise
            except PQError as exc:
                failures += 1
                pause = min(0.1 * 2 ** min(failures, 7), 5.0) * (0.5 + random.random())  # noqa: S311
                logger.warning("%r: cannot take jobs, next try in %.1f s: %s", station.queue.name, pause, exc)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), pause)
            finally:
                station.reserved = 0

    def _accept(self, station: Station, rows: Iterable[Any], leased_at: float) -> None:
        rows = list(rows)
        for row in rows:
            held = Held(station.job(row), leased_at)
            station.held[held.job.id] = held
            if self._draining.is_set():
                self._hand_back(station, [held])
            elif self._free > 0:
                self._begin(station, held)
            else:
                station.buffer.append(held)

    def _hand_back(self, station: Station, ones: list[Held]) -> None:
        """Give jobs back that were not begun."""
        for held in ones:
            with suppress(ValueError):
                station.buffer.remove(held)
            self._decide(station, held, Outcome(held.job, "snooze"))

    # Execution

    def _begin(self, station: Station, held: Held) -> None:
        run = prepare(station.queue, station.queue, held.job)
        station.started += 1
        if isinstance(run, Outcome):
            self._decide(station, held, run)
            return
        held.run = run
        held.context = JobContext(station.queue, held.job)
        held.began = time.perf_counter()
        self._free -= 1
        held.task = asyncio.get_running_loop().create_task(self._execute(station, held, run, held.context))

    async def _execute(self, station: Station, held: Held, run: Run, context: JobContext) -> None:
        enter_job(context)  # in this task's own context, which ends with it
        timer = None
        if run.timeout is not None:
            timer = asyncio.get_running_loop().call_later(run.timeout, self._stop, held, "timeout")
        outcome: Outcome | None
        try:
            if self._heard["pqcore_job_started"]:
                await tell("pqcore_job_started", self._event(station, held))
            result = await self._call(station, held, run)
            if held.job.raw_headers is not None:
                _check_result(station, held, result)
            outcome = Outcome(held.job, "done", result, finished=context.finished)
        except (asyncio.CancelledError, JobCancelled) as exc:
            held.error = exc
            outcome = self._stopped(station, held, run, context.stop_reason)
        except WorkerProcessDied as exc:
            logger.error("job %d of %r: %s", held.job.id, station.queue.name, exc)
            outcome = Outcome(held.job, "crash", delay=CRASH_PAUSE * 2 ** min(held.job.crashes, 10), reason="crashed")
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever a task raises is the job's failure
            held.error = exc
            outcome = conclude(station.queue, run, exc)
        finally:
            if timer is not None:
                timer.cancel()
            self._free += 1
        if held.ended:  # it was given up meanwhile
            self._next()
            return
        if held.error is not None and self._heard["pqcore_job_failed"]:
            await tell("pqcore_job_failed", self._event(station, held, outcome))
        if outcome is None:
            station.held.pop(held.job.id, None)
            self._look_quiet()
        else:
            self._decide(station, held, outcome)
        self._next()

    async def _call(self, station: Station, held: Held, run: Run) -> Any:
        if run.task.is_coroutine:
            held.cancellable = True
            if not self._around:
                return await run.task.function(run.job.id, *run.args, **run.kwargs)
            with around("pqcore_around_run", self._event(station, held)):
                return await run.task.function(run.job.id, *run.args, **run.kwargs)
        if (run.task.options.run_in or self._run_in) == "process":
            held.cancellable = True
            if self._processes is None:
                self._processes = Processes(min(self.concurrency, default_processes()))
            return await self._processes.run(run)
        if self._threads is None:
            self._threads = Threads(self.concurrency)
        call = caller(run)
        if not self._around:
            return await self._threads.run(call)

        def watched() -> Any:
            with around("pqcore_around_run", self._event(station, held)):
                return call()

        return await self._threads.run(watched)

    def _stop(self, held: Held, reason: str) -> None:
        """Have a function stop: a coroutine is cancelled, a process killed, a thread told."""
        if held.ended or held.context is None or held.context.cancelled:
            return
        held.context.stop(reason)
        if held.cancellable and held.task is not None:
            held.task.cancel()

    def _stopped(self, station: Station, held: Held, run: Run, reason: str) -> Outcome | None:
        """What becomes of a job whose function was stopped."""
        job = held.job
        if reason == "lost":
            return None
        if reason == "cancelled":
            logger.info("job %d of %r (%s) was cancelled", job.id, station.queue.name, run.task.path)
            return Outcome(job, "drop", reason="cancelled")
        if reason == "shutdown":
            return Outcome(job, "snooze")
        if reason == "timeout":
            held.error = TimeoutError(f"{run.task.path} did not end in {run.timeout} seconds")
        return conclude(station.queue, run, held.error or JobCancelled("the function was cancelled from within"))

    def _next(self) -> None:
        """Fill free places with what was fetched ahead, the queues in turn."""
        while self._free > 0:
            station = max(self._stations, key=_waiting) if len(self._stations) > 1 else self._stations[0]
            if not station.buffer or self._draining.is_set():
                break
            self._begin(station, station.buffer.popleft())
        self._room.set()

    # Storing

    def _decide(self, station: Station, held: Held, outcome: Outcome) -> None:
        held.ended = True
        station.done.append(outcome)
        self._to_store.set()

    async def _store(self) -> None:
        failures = 0
        while True:
            await self._to_store.wait()
            self._to_store.clear()
            for station in self._stations:
                outcomes, station.done = station.done, []
                if not outcomes:
                    continue
                try:
                    lost = await station.bridge.call(finishing.finish, station.queue, outcomes)
                except PQError as exc:
                    # It may have been stored, or not: done again, it is refused if it was.
                    station.done = outcomes + station.done
                    failures += 1
                    pause = min(0.1 * 2 ** min(failures, 7), 5.0) * (0.5 + random.random())  # noqa: S311
                    logger.warning("%r: cannot store how jobs ended: %s", station.queue.name, exc)
                    await asyncio.sleep(pause)
                    self._to_store.set()
                    continue
                failures = 0
                await self._stored(station, outcomes, lost)
            if any(station.pace > BRISK for station in self._stations):
                await asyncio.sleep(GATHER)

    async def _stored(self, station: Station, outcomes: list[Outcome], lost: list[Outcome]) -> None:
        refused = {id(outcome) for outcome in lost}
        for outcome in outcomes:
            held = station.held.pop(outcome.job.id, None)
            if id(outcome) in refused:
                logger.warning(
                    "job %d of %r was given to another meanwhile, or its end was stored before an answer was lost",
                    outcome.job.id,
                    station.queue.name,
                )
                continue
            hook = _HOOKS.get(outcome.end)
            if held is not None and held.run is not None and hook is not None and self._heard[hook]:
                await tell(hook, self._event(station, held, outcome))
        self._look_quiet()

    def _look_quiet(self) -> None:
        if not self._in_hand():
            self._quiet.set()

    def _event(self, station: Station, held: Held, outcome: Outcome | None = None) -> JobEvent:
        job, path = held.job, "" if held.run is None else held.run.task.path
        due = job.schedule_at or job.enqueued_at
        waited = max(time.time() - (time.perf_counter() - held.began) - due.timestamp(), 0.0)
        if outcome is None:
            return JobEvent(station.queue.name, job, path, waited)
        took = time.perf_counter() - held.began
        return JobEvent(station.queue.name, job, path, waited, took, held.error, outcome.delay, outcome.reason)

    # Tending

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(TEND)
            now = time.monotonic()
            for station in self._stations:
                station.measure(now)
                if station.buffer:
                    self._hand_back(station, [held for held in station.buffer if now - held.leased_at > STALE])
                station.bridge.engine.abort_stalled(self._stall_timeout)
                try:
                    await self._hold_on(station, now)
                    await self._report(station, now)
                except PQError as exc:
                    logger.warning("%r: cannot hold on to jobs: %s", station.queue.name, exc)
            self._room.set()

    async def _hold_on(self, station: Station, now: float) -> None:
        """Lengthen the leases that have run for a third of their time."""
        due = [held for held in station.held.values() if now - held.leased_at > self._lease / 3]
        if not due:
            return
        kept = await station.bridge.call(leasing.beat, [held.job for held in due], self._lease)
        for held in due:
            asked = kept.get((held.job.id, held.job.attempts))
            if asked is not None:
                held.leased_at = now
                if asked:
                    self._cancel(station, held)
            elif not held.ended and station.held.get(held.job.id) is held:
                logger.warning("the lease of job %d of %r was lost", held.job.id, station.queue.name)
                if held.run is None:
                    station.buffer.remove(held)
                    station.held.pop(held.job.id)
                else:
                    self._stop(held, "lost")

    async def _report(self, station: Station, now: float) -> None:
        for held in list(station.held.values()):
            if held.context is None or now - held.reported < PROGRESS:
                continue
            value = held.context.take_progress()
            if value is not None:
                held.reported = now
                keep = float(held.job.headers.get("keep", 3600))
                await station.bridge.call(results.report, station.queue, held.job.id, value, keep)

    async def _hear(self, station: Station) -> None:
        """Hear at once of jobs that are to be cancelled; without LISTEN it is seen when leases are lengthened."""
        engine = station.bridge.engine
        while True:
            ticket = engine.listener.ticket(station.control)
            try:
                await station.bridge.run(engine.wait, station.control, ticket, HEAR)
                running = [job_id for job_id, held in station.held.items() if not held.ended]
                if running and ticket is not None and engine.listener.ticket(station.control) != ticket:
                    rows = await station.bridge.run(engine.execute, "tasks.asked_to_stop", {"ids": running})
                    for [job_id] in rows:
                        if (held := station.held.get(job_id)) is not None:
                            self._cancel(station, held)
            except PQError as exc:
                logger.debug("%r: cannot hear of cancellations: %s", station.queue.name, exc)
                await asyncio.sleep(1.0)

    def _cancel(self, station: Station, held: Held) -> None:
        if held.run is None and not held.ended:
            station.buffer.remove(held)
            self._decide(station, held, Outcome(held.job, "drop", reason="cancelled"))
        else:
            self._stop(held, "cancelled")


def _waiting(station: Station) -> int:
    return len(station.buffer)


def _check_result(station: Station, held: Held, result: Any) -> None:
    """Refuse a result that is to be kept and cannot be: the job has failed then, and says why."""
    if "keep" in held.job.headers or "then" in held.job.headers:
        try:
            station.queue.encode_row(result)
        except SerializationError as exc:
            msg = f"the function's result cannot be kept: {exc}"
            raise SerializationError(msg) from exc
