"""A worker: takes jobs of its queues under leases, runs them, and stores how they ended.

It is asynchronous inside, over any backend.  These go on beside one another:

* `Fetcher` (one a queue) leases as many jobs as there are free places, and some ahead if they go fast;
* `Executor` runs them: coroutine functions on the loop, others in threads or processes;
* `Completer` (one a queue) stores how they ended;
* `Heartbeat` (one a queue) holds on to leases, hears what is to be cancelled, and stores progress;
* `watch` gives back what was fetched ahead and waits for too long;
* `Maintenance` (one a queue) put the jobs of periodic tasks, and sweep.

What they share is a `WorkerState`, with a `QueueState` a queue.  A failure of the database
stops none of them: each waits a while, with backoff and jitter, and goes on.
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

from pqcore.errors import ConfigurationError
from pqcore.operations import lease as leasing
from pqcore.tasks.job_events import find_job_events
from pqcore.tasks.registry import TaskDeclarations
from pqcore.times import seconds
from pqcore.worker.bridge import Bridge
from pqcore.worker.completer import Completer
from pqcore.worker.executor import Executor
from pqcore.worker.fetcher import Fetcher
from pqcore.worker.heartbeat import Heartbeat, watch_stalls
from pqcore.worker.maintenance import Maintenance
from pqcore.worker.state import QueueState, WorkerState

logger = logging.getLogger("pqcore.tasks")

LAST_WORDS = 5.0
"""Seconds that coroutines have, once cancelled at the end of the grace period; then their jobs are free, too."""

Tasks = list["asyncio.Task[None]"]


class Worker:
    """Runs the jobs of queues.

    Args:
        *queues: Queues of a `pqcore.PQ` or `AsyncPQ`, or of those of `pqcore.tasks`.
        concurrency: Jobs that run at once, at most.
        lease: Seconds, ``'1m'`` or a timedelta for which a job is held. The worker holds on while
            it lives; when it dies, its jobs run elsewhere after so long.
        grace: How long jobs may go on once the worker is to stop; then they are given back.
        poll_interval: Seconds after which an idle worker looks, woken or not.
        prefetch: Jobs fetched ahead, at most, where they go fast.
        run_in: Where functions that are no coroutines run: ``"thread"`` or ``"process"``.
        stall_timeout: Seconds without an answer after which a connection is broken off;
            never more than a third of the lease.
        burst: Whether to stop when there is nothing to do.

    Attributes:
        interrupts_handled: Whether the program handles SIGINT in another way than by KeyboardInterrupt. A
            KeyboardInterrupt that a coroutine function raises is then the job's own failure.

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
            msg = f"a worker's queues are {queues!r}; give queues, as in pq['emails'] of a PQ or AsyncPQ"
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
        self.interrupts_handled = False
        self._lease = leasing.lease_time(lease)
        self._grace = seconds(grace)
        self._poll_interval = seconds(poll_interval) * len(queues)
        self._prefetch = prefetch
        self._run_in: Literal["thread", "process"] = run_in
        # So a lease that could not be lengthened for a stalled connection can still be, over another.
        self._stall_timeout = min(seconds(stall_timeout), self._lease / 3)
        self._queues: Sequence[Any] = queues
        self._loop: asyncio.AbstractEventLoop | None = None
        self._worker_state = WorkerState(concurrency)

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._loop is not None

    # Its life

    async def run(self, *, handle_signals: bool = False) -> None:
        """Work until told to stop, and stop in order; if cancelled, at once.

        Args:
            handle_signals: Whether SIGTERM and SIGINT stop it: the first in order, a second at once.

        Raises:
            SchemaError: The table is missing, or not as this pqcore needs it.
            KeyboardInterrupt: A coroutine function was interrupted, or raised one, in the main thread, and the worker
                does not handle signals. Jobs are given back before.
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
                self._loop.add_signal_handler(number, self._signalled)
        logger.info("worker starts: %s, %d at once", ", ".join(repr(q.name) for q in self._queues), self.concurrency)
        job_events = find_job_events()
        executor = Executor(worker_state, job_events, self._run_in, self._stall_timeout)
        supplies = _started(*(self._supply(queue_state, executor).run() for queue_state in worker_state.queue_states))
        chores = _started(
            *(Maintenance(queue_state).run() for queue_state in worker_state.queue_states if not self.burst)
        )
        watching = _started(self._kept(partial(watch_stalls, worker_state)))
        beside = []
        for queue_state in worker_state.queue_states:
            tending = Heartbeat(queue_state, executor, self._lease)
            storing = Completer(worker_state, queue_state, job_events, self._lease)
            beside += _started(self._kept(storing.run), tending.run(), tending.hear())
        try:
            try:
                await self._until_told(supplies, [*beside, *watching, *chores])
                await self._drain(executor, supplies, chores)
            except BaseException:  # what runs is given back all the same
                worker_state.at_once.set()
                await self._drain(executor, supplies, chores)
                raise
            if worker_state.interrupted is not None:
                raise worker_state.interrupted
        finally:
            worker_state.over = True
            await self._end([*supplies, *chores, *beside], executor)
            for bridge in bridges.values():
                await bridge.close()
            await _ended(watching)  # to here, so that nothing above waits for an answer that does not come
            if handle_signals:
                for number in (signal.SIGTERM, signal.SIGINT):
                    self._loop.remove_signal_handler(number)
            self._loop = None
            logger.info("worker stopped")

    def stop(self) -> None:
        """Take no more jobs, finish those that run, and end; called again, end at once.  From any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        worker_state = self._worker_state
        if worker_state.draining.is_set():
            worker_state.at_once.set()
        worker_state.draining.set()
        worker_state.room.set()
        for queue_state in worker_state.queue_states:
            queue_state.bridge.engine.wake(queue_state.channel)

    def _signalled(self) -> None:
        at_once = self._worker_state.draining.is_set()
        logger.info(
            "told to stop%s", " at once" if at_once else f": no more jobs, {self._grace:.0f} s for those that run"
        )
        self._stop()

    def _bridges(self) -> dict[int, Bridge]:
        bridges: dict[int, Bridge] = {}
        for queue in self._queues:
            engine = queue.engine
            if id(engine) not in bridges:
                bridges[id(engine)] = Bridge(engine, 2 + 6 * len(self._queues), self._stall_timeout)
        return bridges

    def _supply(self, queue_state: QueueState, executor: Executor) -> Fetcher:
        return Fetcher(
            self._worker_state,
            queue_state,
            executor,
            lease=self._lease,
            poll_interval=self._poll_interval,
            prefetch=self._prefetch,
            stop=self._stop if self.burst else None,
        )

    async def _until_told(self, supplies: Tasks, beside: Tasks) -> None:
        told = asyncio.ensure_future(self._worker_state.draining.wait())
        pending = {told, *supplies, *beside}
        try:
            while told in pending and not all(task.done() for task in supplies):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # what cannot be gone on with is raised here
        finally:
            told.cancel()

    async def _drain(self, executor: Executor, supplies: Tasks, chores: Tasks) -> None:
        worker_state = self._worker_state
        worker_state.draining.set()
        worker_state.room.set()
        for task in chores:
            task.cancel()
        for queue_state in worker_state.queue_states:
            queue_state.hand_back(list(queue_state.buffer))
            queue_state.bridge.engine.wake(queue_state.channel)
        deadline = time.monotonic() + self._grace
        await asyncio.wait(supplies, timeout=self._stall_timeout)
        while (
            worker_state.in_hand()
            and not self._worker_state.at_once.is_set()
            and (left := deadline - time.monotonic()) > 0
        ):
            await self._quiet_or_at_once(left)
        for queue_state in worker_state.queue_states:
            executor.give_up(queue_state)
        # What was given back, and what ended because of it, is stored; for as long as it takes to hear from the server.
        begun = time.monotonic()
        while worker_state.in_hand() and (passed := time.monotonic() - begun) < LAST_WORDS + self._stall_timeout:
            if passed > LAST_WORDS:
                for queue_state in worker_state.queue_states:
                    executor.give_up(queue_state, at_once=True)
            worker_state.quiet.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(worker_state.quiet.wait(), 0.1)

    async def _quiet_or_at_once(self, seconds: float) -> None:
        self._worker_state.quiet.clear()
        waits = [
            asyncio.ensure_future(event.wait()) for event in (self._worker_state.quiet, self._worker_state.at_once)
        ]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _kept(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do what has to go on until the worker ends it, though the event loop cancels all of its tasks.

        `asyncio.run` does that when a KeyboardInterrupt or SystemExit leaves its loop.
        """
        while True:
            try:
                await work()
            except asyncio.CancelledError:
                if self._worker_state.over:
                    raise

    async def _end(self, tasks: Tasks, executor: Executor) -> None:
        for task in tasks:
            task.cancel()
        for queue_state in self._worker_state.queue_states:
            queue_state.bridge.engine.wake(queue_state.control)  # threads that listen are to end
        await executor.close()
        await _ended(tasks)


def _started(*coroutines: Coroutine[Any, Any, None]) -> Tasks:
    return [asyncio.ensure_future(coroutine) for coroutine in coroutines]


async def _ended(tasks: Tasks) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
