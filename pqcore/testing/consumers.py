"""Consumers for threads and spawned processes: importable functions, whose arguments can be pickled.

A process gets a `Place`, which says where the queue is, and communicates with the test through a pipe. The functions
use an asynchronous backend through a portal, so that each consumer is written once.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeAlias

from pqcore.async_queue import AsyncPQ
from pqcore.backend import Mode
from pqcore.errors import LeaseLost
from pqcore.queue import PQ
from pqcore.testing.history import History
from pqcore.testing.portal import Blocking, Portal
from pqcore.testing.undo import Undo
from pqcore.worker.parent_death import end_with_parent

Way: TypeAlias = Literal["get", "get_many", "block", "lease", "lease_many"]
BATCH = 7


@dataclass(frozen=True)
class Place:
    """Where the tested queue is, and which backend the consumers use."""

    backend: str
    mode: Mode
    dsn: str
    schema: str
    queue: str = "q"

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Yield the queue, over a new `PQ`; the methods of an asynchronous queue are called as blocking ones."""
        if self.mode == "blocking":
            with PQ(self.dsn, schema=self.schema, backend=self.backend) as pq:
                yield pq[self.queue]
            return
        portal = Portal()
        try:
            async_pq = Blocking(portal.call(self._made), portal)
            try:
                yield async_pq[self.queue]
            finally:
                async_pq.close()
        finally:
            portal.close()

    async def _made(self) -> AsyncPQ:
        return AsyncPQ(self.dsn, schema=self.schema, backend=self.backend)


def consume(queue: Any, way: Way, history: History, rng: random.Random, share: float = 0.1) -> None:
    """Take jobs until no job is left.

    Args:
        queue: The queue.
        way: The way of taking jobs; ``block`` is a get within ``with queue``.
        history: The history in which operations are recorded.
        rng: The random generator that decides which operations fail.
        share: The share of transactions that are rolled back, and of leases that are left to run out, as if the
            consumer had died.
    """
    step: Callable[..., bool] = {
        "get": _get,
        "get_many": _get_many,
        "block": _block,
        "lease": _lease,
        "lease_many": _lease_many,
    }[way]
    while step(queue, history, rng, share):
        pass


def _get(queue: Any, history: History, rng: random.Random, share: float) -> bool:
    with history.record("get") as op:
        job = queue.get(block=False)
        if job is None:
            return False
        op.job, op.token = job.id, job.token
        return True


def _get_many(queue: Any, history: History, rng: random.Random, share: float) -> bool:
    with history.record("get") as op:
        op.jobs = [(job.id, job.token) for job in queue.get_many(BATCH, block=False)]
        return bool(op.jobs)


def _block(queue: Any, history: History, rng: random.Random, share: float) -> bool:
    with suppress(Undo), history.record("get") as op:
        with queue:
            job = queue.get(block=False)
            if job is None:
                return False
            op.job, op.token = job.id, job.token
            if rng.random() < share:
                op.outcome = "undone"
                raise Undo
        return True
    return True


def _lease(queue: Any, history: History, rng: random.Random, share: float) -> bool:
    with history.record("lease") as op:
        job = queue.lease("1h", block=False)
        if job is None:
            return False
        op.job, op.token = job.id, job.token
    if rng.random() < share:
        return True
    back = rng.random() < share
    with suppress(LeaseLost), history.record("nack" if back else "ack", token=job.token) as op:
        op.job = job.id
        if back:
            job.nack()
        else:
            job.ack()
    return True


def _lease_many(queue: Any, history: History, rng: random.Random, share: float) -> bool:
    with history.record("lease") as op:
        jobs = queue.lease_many(BATCH, "1h", block=False)
        op.jobs = [(job.id, job.token) for job in jobs]
    if rng.random() < share:
        return bool(jobs)
    with history.record("ack") as op:
        lost = {job.id for job in queue.ack_many(jobs)}
        op.jobs = [(job.id, job.token) for job in jobs if job.id not in lost]
    return bool(jobs)


# Functions that run in a process. Each first reports that it has started, and then waits for permission to continue.


def consumer(place: Place, way: Way, seed: int, pipe: Connection) -> None:
    """Consume jobs, and send the history."""
    history = History()
    with place.opened() as queue:
        queue.count()  # this opens the connection
        pipe.send("ready")
        pipe.recv()
        consume(queue, way, history, random.Random(seed))
    pipe.send(history)


def producer(place: Place, key: str, number: int, pipe: Connection) -> None:
    """Put jobs of one key, and send the history."""
    history = History()
    with place.opened() as queue:
        queue.count()
        pipe.send("ready")
        pipe.recv()
        for item in range(number):
            with history.record("put", key) as op:
                op.job = queue.put([key, item])
    pipe.send(history)


def holder(place: Place, way: Way, pipe: Connection) -> None:
    """Take a job and hold it, under a lease or in a transaction, until the process is killed."""
    with place.opened() as queue:
        pipe.send("ready")
        pipe.recv()
        if way == "lease":
            pipe.send(queue.lease("1h").id)
            threading.Event().wait()
        with queue:
            pipe.send(queue.get().id)
            threading.Event().wait()


def _attached(work: Callable[..., None], *arguments: object) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    end_with_parent(parent.sentinel)
    # A shell ignores SIGINT for programs that it runs in the background.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    work(*arguments)


class Child:
    """A spawned process with a pipe to it; the process is killed when its parent ends in any way.

    Args:
        work: One of this module's functions for processes.
        arguments: The function's arguments, without the pipe.
    """

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_attached, args=(work, *arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def recv(self, patience: float) -> Any:
        """Return the next message of the process; raise EOFError if the process has ended."""
        assert self.pipe.poll(patience), f"the process sent nothing for {patience} seconds"
        return self.pipe.recv()

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end of the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def children(*works: tuple[Any, ...]) -> Iterator[list[Child]]:
    """Spawn processes concurrently; the end of the block kills the processes that still run."""
    spawned = [Child(*work) for work in works]
    try:
        yield spawned
    finally:
        for child in spawned:
            child.kill()
