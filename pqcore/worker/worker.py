"""The worker: it leases jobs of its queues, runs them, and stores their outcomes.

The worker is asynchronous inside, over any backend. These parts run concurrently:

* `Fetcher` (one per queue) leases a job for each free slot, and some ahead if jobs run fast;
* `Executor` runs jobs: coroutine functions on the event loop, other functions in threads or processes;
* `Completer` (one per queue) stores outcomes, and calls plugins' hooks for them;
* `Heartbeat` (one per queue) extends leases, listens for cancellations, and stores progress;
* `watch_stalls` gives back jobs that wait too long for a slot;
* `Maintenance` (one per queue) puts the jobs of periodic tasks, and sweeps;
* `Registration` (one per table) lists the worker in the table of workers.

The parts share a `WorkerState`, with a `QueueState` per queue. A failure of the database stops none of these parts:
each waits, with backoff and jitter, and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from pqcore.db.engine import Engine
from pqcore.errors import ConfigurationError, PQError
from pqcore.operations.error_details import KeepErrors, check_keep_errors
from pqcore.operations.lease import lease_time
from pqcore.operations.readiness import describe_database
from pqcore.tasks.job_events import find_job_events
from pqcore.tasks.registry import TaskDeclarations
from pqcore.times import seconds
from pqcore.worker.bridge import Bridge
from pqcore.worker.completer import Completer
from pqcore.worker.executor import Executor
from pqcore.worker.fetcher import Fetcher
from pqcore.worker.health import Address, Health
from pqcore.worker.heartbeat import Heartbeat, watch_stalls
from pqcore.worker.maintenance import Maintenance
from pqcore.worker.recycling import Recycling
from pqcore.worker.registration import Registration, running_worker
from pqcore.worker.state import Prefetch, QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

CANCEL_TIMEOUT = 5.0
"""Seconds that coroutines have to end after the worker cancels them; then their jobs are given back in any case."""

PREFETCH_BYTES = 16 * 2**20
"""The default for the largest amount of data, in bytes, of the jobs that a worker fetches ahead."""

DESCRIBE_TIMEOUT = 2.0
"""Seconds that a worker waits at its start for the name of its database, which it logs."""

Tasks = list["asyncio.Task[None]"]


class Worker:
    """Runs the jobs of queues.

    Args:
        *queues: Queues of a `PQ` or `AsyncPQ`, of `pqcore` or of `pqcore.tasks`.
        concurrency: The number of slots: the largest number of jobs that run concurrently.
        lease: How long a job is leased: seconds, ``'1m'`` or a timedelta. The worker extends its leases while it lives.
            If it dies, other workers run its jobs after their leases have run out.
        grace: The time that running jobs get to finish after a stop signal: seconds, ``'1m'`` or a timedelta. After
            that time, the jobs are given back.
        poll_interval: Seconds after which an idle worker tries to fetch jobs, even if no notification wakes it.
        prefetch: The largest number of jobs fetched ahead from each queue, if jobs run fast.
        prefetch_bytes: The largest amount of data that these jobs hold together: bytes, or characters of JSON. It is
            estimated from the jobs fetched last. A larger job is fetched only for a free slot.
        run_in: Where functions that are not coroutine functions run: ``"thread"`` or ``"process"``.
        stall_timeout: Seconds without an answer after which a connection is closed; never more than a third of the
            lease.
        burst: Whether to stop when no job is left.
        max_jobs: The number of jobs after which a process of ``run_in="process"`` is replaced by a new one.
        max_memory: Bytes of memory, or ``'512MB'``, above which a process of ``run_in="process"`` is replaced, after
            its job has ended.
        health: The address at which the worker answers over HTTP whether it is alive (``/live``) and ready
            (``/ready``), such as ``'127.0.0.1:8081'``. Port 0 is any free port. None by default.
        log_jobs: Whether to log one line for each attempt that has ended, at level INFO to ``pqcore.worker.jobs``: the
            job, its task, the outcome and the seconds that the function took.
        keep_errors: What is stored of exceptions, for tasks without an option of their own: ``"all"``; ``"type"``, if
            messages may contain personal data; or ``"none"``.

    Attributes:
        interrupts_handled: Whether the program handles SIGINT itself, without KeyboardInterrupt. Then a
            KeyboardInterrupt of a coroutine function is a failure of its job.

    Raises:
        ConfigurationError: An argument is invalid, or a queue has a single connection.
    """

    def __init__(
        self,
        *queues: Any,
        concurrency: int = 20,
        lease: Any = 30.0,
        grace: Any = 30.0,
        poll_interval: float = 2.0,
        prefetch: int = 1_000,
        prefetch_bytes: int = PREFETCH_BYTES,
        run_in: Literal["thread", "process"] = "thread",
        stall_timeout: float = 20.0,
        burst: bool = False,
        max_jobs: int | None = None,
        max_memory: int | str | None = None,
        health: str | None = None,
        log_jobs: bool = False,
        keep_errors: KeepErrors = "all",
    ) -> None:
        if not queues or not all(isinstance(queue, TaskDeclarations) for queue in queues):
            msg = f"a worker's queues are {queues!r}; give queues, as in pq['emails'] of a PQ or AsyncPQ"
            raise ConfigurationError(msg)
        numbers = (("concurrency", concurrency, 1), ("prefetch", prefetch, 0), ("prefetch_bytes", prefetch_bytes, 0))
        for name, number, least in numbers:
            if not isinstance(number, int) or number < least:
                msg = f"{name} is {number!r}; give a number of at least {least}"
                raise ConfigurationError(msg)
        if run_in not in ("thread", "process"):
            msg = f"run_in is {run_in!r}; choose 'thread' or 'process'"
            raise ConfigurationError(msg)
        check_keep_errors(keep_errors)
        self.concurrency = concurrency
        self.burst = burst
        self.interrupts_handled = False
        self._lease = lease_time(lease)
        self._grace = seconds(grace)
        self._poll_interval = seconds(poll_interval) * len(queues)
        self._prefetch = Prefetch(prefetch, prefetch_bytes)
        self._run_in: Literal["thread", "process"] = run_in
        self._recycling = Recycling.of(max_jobs, max_memory)
        self._health_wanted = None if health is None else Address.of(health)
        self._health: Health | None = None
        self._log_jobs = log_jobs
        self._keep_errors: KeepErrors = keep_errors
        # At most a third of the lease: if a connection stalls, another connection can still extend the lease in time.
        self._stall_timeout = min(seconds(stall_timeout), self._lease / 3)
        self._queues: Sequence[Any] = queues
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker_state = WorkerState(concurrency)

    @property
    def running(self) -> bool:
        """Whether the worker runs."""
        return self._loop is not None

    @property
    def health_address(self) -> str | None:
        """The address of the worker's health, such as ``127.0.0.1:8081``; None if there is none."""
        return None if self._health is None else self._health.address

    async def run(self, *, handle_signals: bool = False) -> None:
        """Run jobs until stopped, and then drain; if cancelled, stop immediately.

        Args:
            handle_signals: Whether the first SIGTERM or SIGINT drains the worker, and the second stops it immediately.

        Raises:
            SchemaError: The table is missing, or its schema does not fit this pqcore.
            ConfigurationError: The worker runs already, or cannot listen on the address of ``health``.
            KeyboardInterrupt: A coroutine function was interrupted, or raised KeyboardInterrupt, in the main thread,
                and the worker does not handle signals. Jobs are given back first.
        """
        if self._loop is not None:
            msg = "this worker is running already"
            raise ConfigurationError(msg)
        bridges = self._bridges()
        self._worker_state = worker_state = WorkerState(self.concurrency)
        worker_state.queue_states = [QueueState(queue, bridges[id(queue.engine)]) for queue in self._queues]
        worker_state.interruptible = threading.current_thread() is threading.main_thread() and not (
            handle_signals or self.interrupts_handled
        )
        self._loop = asyncio.get_running_loop()
        if handle_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._on_signal)
        try:
            await self._begin(list(bridges.values()))
            await self._run_parts(bridges)
        finally:
            if handle_signals:
                for number in (signal.SIGTERM, signal.SIGINT):
                    self._loop.remove_signal_handler(number)
            self._loop = None
            logger.info("worker stopped")

    async def _begin(self, bridges: Sequence[Bridge]) -> None:
        """Log the worker's settings, and start the server for its health, before the worker takes jobs.

        Raises:
            ConfigurationError: The worker cannot listen on the address of ``health``.
        """
        asked = asyncio.ensure_future(_describe(bridges))
        try:
            await asyncio.wait([asked], timeout=DESCRIBE_TIMEOUT)
            for bridge in bridges:
                await bridge.call(Engine.share_connection)
            self._log_start(
                asked.result() if asked.done() else f"its server has not answered for {DESCRIBE_TIMEOUT:.0f} s"
            )
            if self._health_wanted is not None:
                self._health = Health(self._health_wanted, self._worker_state, bridges)
                await self._health.start()
        except BaseException:
            for bridge in bridges:
                await bridge.close()
            raise
        finally:
            asked.cancel()

    def _log_start(self, where: str) -> None:
        """Log the worker's queues and settings, and warn of possible mistakes."""
        names = ", ".join(repr(queue.name) for queue in self._queues)
        logger.info("worker starts: %s, concurrency %d; %s", names, self.concurrency, where)
        for queue in self._queues:
            if others := queue.queues_of_tasks():
                listed = ", ".join(map(repr, others[:10]))
                logger.warning(
                    "%r: no task is declared on this queue, but tasks are declared on %s: is the queue's name right?",
                    queue.name,
                    listed,
                )
        if self._recycling != Recycling() and self._run_in == "thread" and not TaskDeclarations.any_runs_in_process():
            logger.warning(
                "max_jobs and max_memory have no effect, because no function runs in a process: give run_in='process'"
            )

    async def _run_parts(self, bridges: dict[int, Bridge]) -> None:
        """Run the parts of the worker until it is stopped and has drained."""
        worker_state = self._worker_state
        job_events = find_job_events(logs_ends=self._log_jobs)
        runs_in, kept = self._run_in, self._keep_errors
        executor = Executor(worker_state, job_events, runs_in, self._stall_timeout, self._recycling, kept)
        fetchers = _start_tasks(*(self._fetcher(each, executor).run() for each in worker_state.queue_states))
        queue_states = () if self.burst else tuple(worker_state.queue_states)
        maintenance = _start_tasks(*(Maintenance(each, queue_states).run() for each in queue_states))
        watchers = _start_tasks(self._until_closing(partial(watch_stalls, worker_state)))
        running = running_worker(self.concurrency)
        registrations = [Registration(worker_state, bridge, running) for bridge in bridges.values()]
        services = _start_tasks(*(registration.run() for registration in registrations))
        for queue_state in worker_state.queue_states:
            heartbeat = Heartbeat(queue_state, executor, self._lease)
            completer = Completer(worker_state, queue_state, executor, job_events, self._lease, self._prefetch)
            services += _start_tasks(self._until_closing(completer.run), heartbeat.run(), heartbeat.listen())
        try:
            try:
                await self._until_stopped(fetchers, [*services, *watchers, *maintenance])
                await self._drain(executor, fetchers, maintenance)
            except BaseException:  # running jobs are still given back
                worker_state.stop_now.set()
                await self._drain(executor, fetchers, maintenance)
                raise
            if worker_state.interrupted is not None:
                raise worker_state.interrupted
        finally:
            worker_state.closing = True
            if self._health is not None:
                await self._health.close()
                self._health = None
            await self._close([*fetchers, *maintenance, *services], executor)
            await asyncio.gather(*(registration.withdraw() for registration in registrations))
            for bridge in bridges.values():
                await bridge.close()
            await _cancel_and_wait(watchers)  # last, because the steps above may wait for the server

    def stop(self) -> None:
        """Fetch no more jobs, finish running jobs, and end; a second call ends immediately. Threads may call this."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the worker has ended
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        worker_state = self._worker_state
        if worker_state.draining.is_set():
            worker_state.stop_now.set()
        worker_state.draining.set()
        worker_state.wake_fetchers.set()
        for queue_state in worker_state.queue_states:
            queue_state.bridge.engine.wake(queue_state.channel)

    def _on_signal(self) -> None:
        at_once = self._worker_state.draining.is_set()
        logger.info(
            "told to stop%s",
            " immediately" if at_once else f": no more jobs; running jobs get {self._grace:.0f} s to finish",
        )
        self._stop()

    def _bridges(self) -> dict[int, Bridge]:
        bridges: dict[int, Bridge] = {}
        for queue in self._queues:
            engine = queue.engine
            if id(engine) not in bridges:
                bridges[id(engine)] = Bridge(engine, 3 + 6 * len(self._queues), self._stall_timeout)
        return bridges

    def _fetcher(self, queue_state: QueueState, executor: Executor) -> Fetcher:
        return Fetcher(
            self._worker_state,
            queue_state,
            executor,
            lease=self._lease,
            poll_interval=self._poll_interval,
            prefetch=self._prefetch,
            stop=self._stop if self.burst else None,
        )

    async def _until_stopped(self, fetchers: Tasks, services: Tasks) -> None:
        stopped = asyncio.ensure_future(self._worker_state.draining.wait())
        pending = {stopped, *fetchers, *services}
        try:
            while stopped in pending and not all(task.done() for task in fetchers):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # raises an error that ends the worker, if there is one
        finally:
            stopped.cancel()

    async def _drain(self, executor: Executor, fetchers: Tasks, maintenance: Tasks) -> None:
        worker_state = self._worker_state
        worker_state.draining.set()
        worker_state.wake_fetchers.set()
        for task in maintenance:
            task.cancel()
        for queue_state in worker_state.queue_states:
            queue_state.give_back(list(queue_state.buffer))
            queue_state.bridge.engine.wake(queue_state.channel)
        deadline = time.monotonic() + self._grace
        await asyncio.wait(fetchers, timeout=self._stall_timeout)
        while (
            worker_state.is_busy()
            and not self._worker_state.stop_now.is_set()
            and (left := deadline - time.monotonic()) > 0
        ):
            await self._idle_or_stop_now(left)
        for queue_state in worker_state.queue_states:
            executor.give_back_running(queue_state)
        # Outcomes of the jobs that were given back or stopped are stored, unless the server does not answer for long.
        begun = time.monotonic()
        while worker_state.is_busy() and (passed := time.monotonic() - begun) < CANCEL_TIMEOUT + self._stall_timeout:
            if passed > CANCEL_TIMEOUT:
                for queue_state in worker_state.queue_states:
                    executor.give_back_running(queue_state, at_once=True)
            worker_state.idle.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker_state.idle.wait(), 0.1)

    async def _idle_or_stop_now(self, seconds: float) -> None:
        self._worker_state.idle.clear()
        waits = [
            asyncio.ensure_future(event.wait()) for event in (self._worker_state.idle, self._worker_state.stop_now)
        ]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _until_closing(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part that must go on until the worker closes, even if the event loop cancels all of its tasks.

        `asyncio.run` cancels all tasks when a KeyboardInterrupt or SystemExit leaves its loop.
        """
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                if self._worker_state.closing:
                    raise

    async def _close(self, tasks: Tasks, executor: Executor) -> None:
        for task in tasks:
            task.cancel()
        for queue_state in self._worker_state.queue_states:
            queue_state.bridge.engine.wake(queue_state.control)  # threads that wait on this channel then end
        await executor.close()
        await _cancel_and_wait(tasks)


async def _describe(bridges: Sequence[Bridge]) -> str:
    """Return the databases that a worker works on, or why they are unknown."""
    try:
        return ", ".join(dict.fromkeys([await bridge.call(describe_database) for bridge in bridges]))
    except PQError as exc:
        return f"its server cannot be reached: {exc}"


def _start_tasks(*coroutines: Coroutine[Any, Any, None]) -> Tasks:
    return [asyncio.ensure_future(coroutine) for coroutine in coroutines]


async def _cancel_and_wait(tasks: Tasks) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
